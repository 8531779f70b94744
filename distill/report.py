"""Tables and plots of probe records."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from scipy import stats

from distill.evaluate import Record


class Scores:
    """Records arranged as systems x tasks x seeds for one split.

    Args:
        records: from an evaluation; all splits may be mixed.
        split: the one to look at.

    Attributes:
        systems: best mean first.
        values: (systems, tasks, seeds); NaN where nothing was measured.
    """

    def __init__(self, records: Iterable[Record], split: str):
        chosen = [record for record in records if record.split == split]
        self.kinds = {record.system: record.kind for record in chosen}
        self.tasks = list(dict.fromkeys(record.task for record in chosen))
        self.metrics = {record.task: record.metric for record in chosen}
        self.provenance = {record.task: record.provenance for record in chosen}
        self.seeds = sorted({record.seed for record in chosen})
        cells = {(record.system, record.task, record.seed): record.score for record in chosen}
        systems = list(self.kinds)
        grid = [[[cells.get((s, t, e), np.nan) for e in self.seeds] for t in self.tasks] for s in systems]
        values = np.array(grid)
        order = np.argsort(-np.nanmean(values, (1, 2)), kind="stable")
        self.systems, self.values = [systems[each] for each in order], values[order]

    def mean(self) -> np.ndarray[Any, Any]:
        """Mean over tasks and seeds, (systems,)."""
        means: np.ndarray[Any, Any] = np.nanmean(self.values, (1, 2))
        return means

    def half_width(self) -> np.ndarray[Any, Any]:
        """Half of the 95 % t-interval of :meth:`mean` over seeds, (systems,); NaN with one seed."""
        return half_width(np.nanmean(self.values, 1))

    def mean_rank(self) -> np.ndarray[Any, Any]:
        """Mean over tasks and seeds of the system's rank, 1 is best, (systems,)."""
        ranks: np.ndarray[Any, Any] = np.nanmean(stats.rankdata(-self.values, axis=0, nan_policy="omit"), (1, 2))
        return ranks

    def teachers_mean(self) -> np.ndarray[Any, Any]:
        """Mean over the teachers per task, (tasks,)."""
        rows = [row for row, system in enumerate(self.systems) if self.kinds[system] == "teachers"]
        means: np.ndarray[Any, Any] = np.nanmean(self.values[rows], (0, 2))
        return means


def half_width(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Half of the 95 % t-interval of the mean over the last axis."""
    seeds = values.shape[-1]
    if seeds < 2:
        return np.full(values.shape[:-1], np.nan)
    widths: np.ndarray[Any, Any] = stats.t.ppf(0.975, seeds - 1) * values.std(-1, ddof=1) / np.sqrt(seeds)
    return widths


def header(scores: Scores) -> list[str]:
    """Column headings: each task with its metric."""
    tasks = [f"{task}\n{scores.metrics[task]}" for task in scores.tasks]
    return ["system", *tasks, "mean", "± 95 %", "mean\nrank"]


def caption(scores: Scores) -> str:
    """Which labels were measured in the world and which computed from the items."""
    by_kind = {
        kind: [task for task in scores.tasks if scores.provenance[task] == kind] for kind in ("measured", "computed")
    }
    return "Labels " + "; ".join(f"{kind}: {', '.join(tasks)}" for kind, tasks in by_kind.items() if tasks)


def rows(scores: Scores) -> list[list[str]]:
    """A line per system, best first: score per task, mean with its 95 % interval, mean rank."""
    lines = []
    mean, half, rank = scores.mean(), scores.half_width(), scores.mean_rank()
    for row, system in enumerate(scores.systems):
        interval = "" if np.isnan(half[row]) else f"{half[row]:.3f}"
        per_task = [f"{each:.3f}" for each in np.nanmean(scores.values[row], -1)]
        lines.append([system, *per_task, f"{mean[row]:.3f}", interval, f"{rank[row]:.2f}"])
    if any(kind == "teachers" for kind in scores.kinds.values()):
        average = scores.teachers_mean()
        lines.append(["mean of teachers", *[f"{each:.3f}" for each in average], f"{average.mean():.3f}", "", ""])
    return lines


def table(scores: Scores, title: str) -> Table:
    """The scores as a rich table; students stand out."""
    out = Table(title=title, caption=caption(scores), box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(header(scores)):
        out.add_column(heading, justify="right" if number else "left", overflow="fold", no_wrap=not number)
    for line in rows(scores):
        kind = scores.kinds.get(line[0])
        out.add_row(*line, style="bold green" if kind == "student" else "dim" if kind == "untrained" else None)
    return out


def markdown(scores: Scores) -> str:
    """The scores as a Markdown table."""
    heads = [heading.replace("\n", "<br>") for heading in header(scores)]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows(scores)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{caption(scores)}."


COLOURS: Mapping[str, str] = {
    "student": "#2a7f62",
    "untrained": "#b9b9b9",
    "teachers": "#5b8db8",
    "concatenated": "#c58940",
}


def plot(by_split: Mapping[str, Scores], path: Path) -> None:
    """One bar per system and split: the mean score with its 95 % interval; every task as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tallest = max(len(scores.systems) for scores in by_split.values())
    figure, axes = plt.subplots(1, len(by_split), figsize=(6.4 * len(by_split), 1.6 + 0.36 * tallest), squeeze=False)
    for axis, (split, scores) in zip(axes[0], by_split.items(), strict=True):
        place = np.arange(len(scores.systems))[::-1]
        colours = [COLOURS[scores.kinds[system]] for system in scores.systems]
        half = scores.half_width()
        axis.barh(place, scores.mean(), color=colours, xerr=None if np.isnan(half).any() else half, ecolor="#333333")
        per_task = np.nanmean(scores.values, -1)  # (systems, tasks)
        left = max(-0.05, min(0.0, float(per_task.min())))  # a dot further left stands at the edge
        dots = {"ms": 3, "color": "#333333", "alpha": 0.45, "clip_on": False}
        axis.plot(per_task.clip(left), np.repeat(place[:, None], per_task.shape[1], 1), "o", **dots)
        axis.set_yticks(place, scores.systems)
        axis.set_xlim(left, 1.0)
        axis.set_xlabel(f"mean over tasks ({', '.join(dict.fromkeys(scores.metrics.values()))}); dots are tasks")
        axis.set_title(f"{split} split, {len(scores.seeds)} seeds")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
