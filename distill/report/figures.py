"""The figures of a report."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.records import Cost
from distill.report.page import panel
from distill.report.scores import Scores, mean_of_known

COLOURS: Mapping[str, str] = {
    "student": "#2a7f62",
    "other": "#7fb069",
    "untrained": "#b9b9b9",
    "pretrained": "#8a8a8a",
    "teachers": "#5b8db8",
    "concatenated": "#c58940",
    "pca": "#8c5e2a",
}

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#444444", "#bcbd22", "#a0522d")

Array = np.ndarray[Any, Any]


def bars(scores: Scores) -> Figure:
    """The mean score of every system with its 95 % interval; every task is a dot."""

    def draw(axis: Axes) -> None:
        place, half = np.arange(len(scores.systems))[::-1], scores.half_width()
        colours = [COLOURS[scores.kinds[system]] for system in scores.systems]
        axis.barh(place, scores.mean(), color=colours, xerr=None if np.isnan(half).any() else half, ecolor="#333333")
        per_task = mean_of_known(scores.values)  # (systems, tasks)
        left = max(-0.05, min(0.0, float(np.nanmin(per_task))))  # a dot further left stands at the edge
        for row in range(per_task.shape[1]):
            axis.plot(per_task[:, row].clip(left), place, "o", ms=3, color="#333333", alpha=0.45, clip_on=False)
        axis.set_yticks(place, scores.systems)
        axis.set_xlim(left, 1.0)
        axis.set_xlabel(f"mean over tasks ({', '.join(dict.fromkeys(scores.metrics.values()))})")

    return panel(5.2, 1.0 + 0.25 * len(scores.systems), draw)


def ranks(scores: Scores) -> Figure:
    """Mean rank over seeds of every system on every task, 1 is best."""

    def draw(axis: Axes) -> None:
        rank = mean_of_known(scores.ranks())  # (systems, tasks)
        worst = max(2, len(scores.systems))
        axis.imshow(rank, cmap="YlGnBu_r", vmin=1, vmax=worst, aspect="auto")
        for (row, column), each in np.ndenumerate(rank):
            if np.isfinite(each):
                colour = "white" if each < 1 + 0.45 * (worst - 1) else "black"
                axis.text(column, row, f"{each:.1f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_yticks(range(len(scores.systems)), scores.systems)
        axis.set_xticks(range(len(scores.tasks)), scores.tasks, rotation=35, ha="right", rotation_mode="anchor")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)

    return panel(1.6 + max(3.6, 0.5 * len(scores.tasks)), 1.2 + 0.25 * len(scores.systems), draw)


def critical_difference(scores: Scores) -> Figure:
    """Mean ranks over tasks on a line; a bar joins systems that Nemenyi's test does not tell apart (Demšar, JMLR 2006)."""

    def draw(axis: Axes) -> None:
        rank = np.nanmean(mean_of_known(scores.ranks()), 1)
        order, count = np.argsort(rank, kind="stable"), len(rank)
        rank, names = rank[order], [scores.systems[each] for each in order]
        half, step = (count + 1) // 2, 0.24
        for place, (at, name) in enumerate(zip(rank, names, strict=True)):
            left = place < half
            depth, end = -0.5 - step * (place if left else count - 1 - place), 0.5 if left else count + 0.5
            axis.plot([at, at, end], [0, depth, depth], color=COLOURS[scores.kinds[name]], lw=1.2, clip_on=False)
            axis.text(end, depth, f" {name} {at:.1f} ", ha="right" if left else "left", va="center")
        joined = scores.not_told_apart(rank)
        for level, (first, last) in enumerate(joined):
            height = -0.08 - 0.34 * (level + 1) / (len(joined) + 1)
            axis.plot(
                [rank[first] - 0.06, rank[last] + 0.06], [height, height], color="#222222", lw=3, solid_capstyle="butt"
            )
        axis.plot([1, 1 + scores.critical_difference()], [0.42, 0.42], color="#222222", lw=1.2, marker="|", clip_on=False)
        axis.text(1, 0.5, f"critical difference {scores.critical_difference():.1f}", va="bottom")
        ticks = range(1, count + 1, 1 + count // 20)
        axis.set(xlim=(0.5, count + 0.5), ylim=(-0.7 - step * half, 0.9), yticks=[], xticks=ticks)
        axis.spines["bottom"].set_position(("data", 0))
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="x", direction="in", pad=-14)

    return panel(7.2, 1.2 + 0.17 * len(scores.systems), draw)


def cost(scores: Scores, costs: Mapping[str, Cost], field: str, label: str) -> Figure | None:
    """Mean score against a field of every system's cost; None when fewer than two systems have it."""
    known = [(system, getattr(costs[system], field)) for system in scores.systems if system in costs]
    points = [(system, value) for system, value in known if value]

    def draw(axis: Axes) -> None:
        mean = dict(zip(scores.systems, scores.mean(), strict=True))
        for system, value in points:
            axis.plot(value, mean[system], "o", ms=6, color=COLOURS[scores.kinds[system]])
        low, high = axis.get_ylim()
        taken: list[float] = []
        for system, value in sorted(points, key=lambda each: -mean[each[0]]):  # labels that would lie on another move down
            y = min([mean[system], *(each - 0.05 * (high - low) for each in taken[-1:])])
            taken.append(y)
            axis.annotate(system, (value, mean[system]), (1.02, y), textcoords=("axes fraction", "data"), va="center",
                          arrowprops={"arrowstyle": "-", "color": "#cccccc", "lw": 0.6}, annotation_clip=False)  # fmt: skip
        axis.set_xscale("log")
        powers = np.log10([value for _, value in points])
        axis.set_xlim(10 ** np.floor(powers.min() - 0.05), 10 ** np.ceil(powers.max() + 0.05))
        axis.set_xlabel(label)
        axis.set_ylabel("mean score")

    return panel(5.2, 3.4, draw) if len(points) > 1 else None


def conflicts(teachers: Sequence[str], cosines: Array) -> Figure:
    """Cosines of the teachers' gradients, (teachers, teachers)."""

    def draw(axis: Axes) -> None:
        drawn = axis.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
        for (row, column), each in np.ndenumerate(cosines):
            if np.isfinite(each):
                colour = "white" if abs(each) > 0.6 else "black"
                axis.text(column, row, f"{each:.2f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_yticks(range(len(teachers)), teachers)
        axis.set_xticks(range(len(teachers)), teachers, rotation=35, ha="right", rotation_mode="anchor")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.figure.colorbar(drawn, ax=axis, shrink=0.8)

    return panel(2.8 + 0.5 * len(teachers), 1.4 + 0.4 * len(teachers), draw)


def curves(rows: Sequence[Mapping[str, str]], keys: Mapping[str, str], label: str) -> Figure | None:
    """What a run logged by step: ``keys`` -> the lines' names; None when it logged none of them."""
    found = {name: [(int(row["step"]), float(row[key])) for row in rows if row.get(key)] for key, name in keys.items()}
    lines = {name: points for name, points in found.items() if points}

    def draw(axis: Axes) -> None:
        for colour, (name, points) in zip(_repeat(LINES), lines.items(), strict=False):
            axis.plot(*zip(*points, strict=True), label=name, color=colour, marker="o" if len(points) < 3 else "", ms=3)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))

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
            common = classes[np.argsort(-sizes, kind="stable")][: len(LINES)]
            rest = ~np.isin(labels, common)
            axis.scatter(x[rest], y[rest], s=7, color="#dddddd", linewidths=0, rasterized=True)
            for colour, each in zip(LINES, common, strict=False):
                of = labels == each
                axis.scatter(x[of], y[of], s=7, color=colour, linewidths=0, rasterized=True, label=f"{each:g}")
            axis.legend(frameon=False, fontsize=7, markerscale=1.5, loc="center left", bbox_to_anchor=(1, 0.5))
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)

    return panel(3.6, 3.0, draw)


def _repeat(colours: Sequence[str]) -> Iterable[str]:
    while True:
        yield from colours
