"""The figures of a report."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator

from distill.report.scores import Scores, mean_of_known

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quorum",  # equal figures are equal files
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
}

COLOURS: Mapping[str, str] = {
    "student": "#2a7f62",
    "prefixes": "#6fae97",
    "other": "#7fb069",
    "untrained": "#b9b9b9",
    "start": "#8a8a8a",
    "teachers": "#5b8db8",
    "concatenated": "#c58940",
    "pca": "#8c5e2a",
    "fingerprints": "#7a5195",
    "student+fingerprints": "#14532d",
    "tokens": "#7a5195",
}

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#444444", "#bcbd22", "#a0522d")

Array = np.ndarray[Any, Any]


def panel(width: float, height: float, draw: Callable[[Axes], object]) -> Figure:
    """A figure with one panel, of ``width`` and ``height`` inches, that ``draw`` fills."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axis = figure.subplots()
        axis.spines[["top", "right"]].set_visible(False)
        draw(axis)
    return figure


def bars(scores: Scores) -> Figure:
    """The mean score of every system with its 95 % interval; every task is a dot."""

    def draw(axis: Axes) -> None:
        place, half = np.arange(len(scores.systems))[::-1], scores.half_width()
        colours = [COLOURS[scores.kinds[system]] for system in scores.systems]
        axis.barh(place, scores.mean(), color=colours, xerr=None if np.isnan(half).any() else half, ecolor="#333333")
        per_task = mean_of_known(scores.values)  # (systems, tasks)
        left = max(-0.05, min(0.0, float(np.nanmin(per_task))))  # a dot further left stands at the edge
        for scored in per_task.T:  # (systems,)
            axis.plot(scored.clip(left), place, "o", ms=3, color="#333333", alpha=0.45, clip_on=False)
        axis.set_yticks(place, scores.systems)
        axis.set_xlim(left, 1.0)
        axis.set_xlabel(f"mean over tasks ({', '.join(dict.fromkeys(scores.metrics.values()))})")

    return panel(5.2, 1.0 + 0.25 * len(scores.systems), draw)


def ranks(scores: Scores) -> Figure:
    """The rank of every system on every task, a mean over seeds; 1 is best."""
    rank, worst = mean_of_known(scores.ranks()), max(2, len(scores.systems))  # (systems, tasks)

    def draw(axis: Axes) -> None:
        cells = axis.imshow(rank, cmap="YlGnBu_r", vmin=1, vmax=worst, aspect="auto")
        _label(axis, cells, rank, "{:.1f}", scores.systems, scores.tasks)

    return panel(1.6 + max(3.6, 0.5 * len(scores.tasks)), 1.2 + 0.25 * len(scores.systems), draw)


def conflicts(teachers: Sequence[str], cosines: Array) -> Figure:
    """Cosines of the teachers' gradients, (teachers, teachers)."""

    def draw(axis: Axes) -> None:
        cells = axis.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
        _label(axis, cells, cosines, "{:.2f}", teachers, teachers)
        axis.figure.colorbar(cells, ax=axis, shrink=0.8)

    return panel(2.8 + 0.5 * len(teachers), 1.4 + 0.4 * len(teachers), draw)


def _label(axis: Axes, cells: AxesImage, values: Array, form: str, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Write each of ``values``, (rows, columns), into its cell, and name rows and columns."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if np.mean(cells.to_rgba(value)[:3]) < 0.5 else "black"
            axis.text(column, row, form.format(value), ha="center", va="center", fontsize=8, color=colour)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def cost(scores: Scores, costs: Mapping[str, float], label: str) -> Figure | None:
    """Mean score against a cost; a line joins the systems that none of the cheaper ones reaches (the Pareto front).

    Args:
        scores: of every system.
        costs: system -> its cost.
        label: of the cost, with its unit.

    Returns:
        None when fewer than two costs are known.
    """
    points = [
        (costs[name], mean, name) for name, mean in zip(scores.systems, scores.mean(), strict=True) if name in costs
    ]  # best mean first
    front = [point for place, point in enumerate(points) if all(point[0] < cheaper[0] for cheaper in points[:place])]

    def draw(axis: Axes) -> None:
        axis.step([x for x, *_ in front], [y for _, y, _ in front], where="pre", color="#999999", lw=1, zorder=1)
        for x, y, name in points:
            axis.plot(x, y, "o", ms=6, color=COLOURS[scores.kinds[name]])
        low, high = axis.get_ylim()
        height = np.inf
        for x, y, name in points:  # a label that would lie on another moves down
            height = min(y, height - 0.055 * (high - low))
            place: dict[str, Any] = {"xytext": (1.03, height), "textcoords": ("axes fraction", "data"), "va": "center"}
            line = {"arrowstyle": "-", "color": "#dddddd", "lw": 0.6}
            axis.annotate(name, (x, y), arrowprops=line, annotation_clip=False, zorder=0, **place)
        axis.set_xscale("log")
        axis.set_xlim(min(points)[0] / 1.6, max(points)[0] * 1.6)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter("{x:,.15g}")  # of matplotlib's own labels a page would show the TeX
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel(label)
        axis.set_ylabel("mean score over tasks")

    return panel(5.5, 3.4, draw) if len({x for x, *_ in points}) > 1 else None


def curves(rows: Sequence[Mapping[str, str]], keys: Mapping[str, str], label: str) -> Figure | None:
    """What a run logged by step: ``keys`` -> the lines' names; None when it logged none of them twice."""
    logged = {name: [(int(row["step"]), float(row[key])) for row in rows if row.get(key)] for key, name in keys.items()}
    lines = {name: points for name, points in logged.items() if len(points) > 1}

    def draw(axis: Axes) -> None:
        for colour, (name, points) in zip(cycle(SERIES), lines.items(), strict=False):
            axis.plot(*zip(*points, strict=True), label=name, color=colour)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        _legend(axis)

    return panel(5.2, 3.0, draw) if lines else None


def losses(rows: Sequence[Mapping[str, str]]) -> Figure | None:
    """The loss by step, in training and on held-out rows."""
    return curves(rows, {"train/loss": "training, one batch", "val/loss": "held out"}, "loss")


def plane(points: Array, labels: Array, kind: str) -> Figure:
    """Rows of a task on a plane, (rows, 2), coloured by their label."""

    def draw(axis: Axes) -> None:
        x, y = points.T
        if kind == "regression":
            drawn = axis.scatter(x, y, c=labels, s=7, cmap="viridis", linewidths=0, rasterized=True)
            axis.figure.colorbar(drawn, ax=axis, shrink=0.8)
        else:
            classes, sizes = np.unique(labels[np.isfinite(labels)], return_counts=True)
            common = classes[np.argsort(-sizes, kind="stable")][: len(SERIES)]
            rest = ~np.isin(labels, common)
            axis.scatter(x[rest], y[rest], s=7, color="#dddddd", linewidths=0, rasterized=True)
            for colour, each in zip(SERIES, common, strict=False):
                of = labels == each
                axis.scatter(x[of], y[of], s=7, color=colour, linewidths=0, rasterized=True, label=f"{each:g}")
            _legend(axis, markerscale=1.5)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)

    return panel(3.6, 3.0, draw)


def _legend(axis: Axes, **options: float) -> None:
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), **options)
