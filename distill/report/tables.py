"""Tables of scores, for the terminal and for a report."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill.report import page
from distill.report.scores import Scores, mean_of_known

STUDENTS = ("student", "other")

MEANS = 3  # columns behind the tasks

NAMED = 8  # tasks whose labels a caption lists by name, if all are of one kind


def print_scores(answers: Sequence[object], by_split: Mapping[str, Scores], written: str, title: str = "") -> None:
    """Print the verdicts, a table per kind of split, and what was ``written``."""
    console = Console()
    for answer in answers:
        console.print(f"\n{answer}", markup=False, highlight=False)
    for scores in by_split.values():
        shown = table(scores, "")
        caption, shown.caption = str(shown.caption), None  # beside a narrow table they would be cut into short lines
        console.print(f"\n[italic]{escape(title + scores.title)}[/italic]", shown, caption, sep="\n", highlight=False)
    console.print(f"written: {written}", markup=False)


def header(scores: Scores) -> list[str]:
    """Column headings: each task with its metric."""
    tasks = [f"{task}\n{scores.metrics[task]}" for task in scores.tasks]
    return ["system", *tasks, "mean", "± 95 %", "mean\nrank"]


def caption(scores: Scores) -> str:
    """Which labels were measured and which were computed from the items; which test rows the student may have seen."""
    by_kind = {
        kind: [task for task in scores.tasks if scores.provenance[task] == kind] for kind in ("measured", "computed")
    }
    every = len(scores.tasks) > NAMED and not all(by_kind.values())  # many names, all of one kind
    named = (f"{kind}: {f'all {len(of)} tasks' if every else ', '.join(of)}" for kind, of in by_kind.items() if of)
    labels = f"Labels {'; '.join(named)}"
    seen = [f"{task} {seen} of {rows}" for task, (seen, rows) in scores.test_rows.items() if seen]
    return labels + (f". Test rows that also stand in the corpus: {', '.join(seen)}" if seen else "")


def rows(scores: Scores) -> list[list[str]]:
    """A line per system, best first: score per task, mean with its 95 % interval, mean rank."""
    per_task, measures = (
        mean_of_known(scores.values),
        zip(scores.mean(), scores.half_width(), scores.mean_rank(), strict=True),
    )
    lines = []
    for system, by_task, (mean, half, rank) in zip(scores.systems, per_task, measures, strict=True):
        interval = "" if np.isnan(half) else f"{half:.3f}"
        lines.append([system, *map(_score, by_task), f"{mean:.3f}", interval, f"{rank:.2f}"])
    if scores.of_kind("teachers"):
        average = scores.teachers_mean()
        lines.append(["mean of teachers", *map(_score, [*average, np.nanmean(average)]), "", ""])
    return lines


def _score(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def table(scores: Scores, title: str, width: int | None = None) -> Table:
    """The scores as a rich table; students stand out. Tasks that do not fit into ``width`` are left out."""
    heads, lines = header(scores), rows(scores)
    columns = list(zip(heads, *lines, strict=True))
    widths = [max(len(part) for cell in column for part in cell.split("\n")) for column in columns]
    if sum(2 + each for each in widths) - 2 > (width or Console().width):
        columns = [columns[0], *columns[-MEANS:]]
    shown = Table(title=escape(title), caption=escape(caption(scores)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.show_edge = shown.pad_edge = False
    for number, (heading, *_) in enumerate(columns):
        shown.add_column(escape(heading), justify="right" if number else "left", overflow="fold", no_wrap=not number)
    for system, *cells in zip(*(cells for _, *cells in columns), strict=True):
        style = {"student": "bold green", "untrained": "dim"}.get(scores.kinds.get(system, ""))
        shown.add_row(*map(escape, [system, *cells]), style=style)
    return shown


def score_table(scores: Scores) -> page.Table:
    """The scores for a report, means first, with the mean rank's interval and the share of the concatenated teachers."""
    marks = [f"{name}\n{tasks} tasks" for name, (tasks, _) in scores.marked.items()]
    means = [mean for _, mean in scores.marked.values()]
    ends = [
        [
            "" if len(scores.tasks) == 1 else f"{low:.1f} to {high:.1f}",
            "" if np.isnan(kept) else f"{kept:.0%}",
            *map(_score, marked),
        ]
        for low, high, kept, *marked in zip(*scores.rank_interval(), scores.kept(), *means, strict=True)
    ]
    lines = [header(scores), *rows(scores)]
    more = zip_longest(lines, [["95 %", "of\nconcatenated", *marks], *ends], fillvalue=["", "", *("" for _ in marks)])
    head, *body = [[line[0], *line[-MEANS:], *end, *line[1:-MEANS]] for line, end in more]
    strong = frozenset(scores.systems[row] for row in scores.of_kind(*STUDENTS))
    return page.Table(head, body, f"{caption(scores)}.", strong)
