"""Tables of scores, for the terminal and for a report."""

from itertools import zip_longest

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill.report import page
from distill.report.scores import Scores, mean_of_known

STUDENTS = ("student", "other")

MANY = 6


def header(scores: Scores) -> list[str]:
    """Column headings: each task with its metric."""
    tasks = [f"{task}\n{scores.metrics[task]}" for task in scores.tasks]
    return ["system", *tasks, "mean", "± 95 %", "mean\nrank"]


def caption(scores: Scores) -> str:
    """Which labels were measured in the world and which computed from the items; what the student may have seen."""
    by_kind = {
        kind: [task for task in scores.tasks if scores.provenance[task] == kind] for kind in ("measured", "computed")
    }
    labels = "Labels " + "; ".join(f"{kind}: {', '.join(tasks)}" for kind, tasks in by_kind.items() if tasks)
    seen = [f"{task} {seen} of {rows}" for task, (seen, rows) in scores.test_rows.items() if seen]
    return labels + (f". Test rows that also stand in the corpus: {', '.join(seen)}" if seen else "")


def rows(scores: Scores) -> list[list[str]]:
    """A line per system, best first: score per task, mean with its 95 % interval, mean rank."""
    lines = []
    mean, half, rank = scores.mean(), scores.half_width(), scores.mean_rank()
    for row, system in enumerate(scores.systems):
        interval = "" if np.isnan(half[row]) else f"{half[row]:.3f}"
        per_task = ["-" if np.isnan(each) else f"{each:.3f}" for each in mean_of_known(scores.values[row])]
        lines.append([system, *per_task, f"{mean[row]:.3f}", interval, f"{rank[row]:.2f}"])
    if any(kind == "teachers" for kind in scores.kinds.values()):
        average = scores.teachers_mean()
        told = ["-" if np.isnan(each) else f"{each:.3f}" for each in [*average, np.nanmean(average)]]
        lines.append(["mean of teachers", *told, "", ""])
    return lines


def table(scores: Scores, title: str, width: int | None = None) -> Table:
    """The scores as a rich table; students stand out. Tasks that do not fit into ``width`` are left out."""
    heads, lines = header(scores), rows(scores)
    needed = sum(
        1 + max(len(part) for row in (heads, *lines) for part in row[column].split("\n")) for column in range(len(heads))
    )
    if needed > (width or Console().width):
        few = [0, *range(len(heads) - 3, len(heads))]
        heads, lines = ([heads[each] for each in few], [[line[each] for each in few] for line in lines])
    out = Table(
        title=escape(title), caption=escape(caption(scores)), box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for number, heading in enumerate(heads):
        out.add_column(escape(heading), justify="right" if number else "left", overflow="fold", no_wrap=not number)
    for line in lines:
        kind = scores.kinds.get(line[0])
        out.add_row(*map(escape, line), style="bold green" if kind == "student" else "dim" if kind == "untrained" else None)
    return out


def score_table(scores: Scores) -> page.Table:
    """The same for a report, with the mean rank's interval and the share of the concatenated teachers' score."""
    (low, high), kept = scores.rank_interval(), scores.kept()
    ends = [
        [
            "" if len(scores.tasks) == 1 else f"{low[row]:.1f} to {high[row]:.1f}",
            "" if np.isnan(kept[row]) else f"{kept[row]:.0%}",
        ]
        for row in range(len(scores.systems))
    ]
    body = [line + end for line, end in zip_longest(rows(scores), ends, fillvalue=["", ""])]
    strong = frozenset(system for system, kind in scores.kinds.items() if kind in STUDENTS)
    return page.Table([*header(scores), "95 %", "of\nconcatenated"], body, f"{caption(scores)}.", strong)


def duel_table(scores: Scores) -> page.Table:
    """Every student against every other one, and against the best teacher; of many students the best against all."""
    students = [row for row, system in enumerate(scores.systems) if scores.kinds[system] in STUDENTS]
    best = [row for row, system in enumerate(scores.systems) if scores.kinds[system] == "teachers"][:1]
    ahead = students if len(students) <= MANY else students[:1]
    pairs = [(one, other) for k, one in enumerate(ahead) for other in students[k + 1 :] + best]
    lines = []
    for one, other in pairs:
        duel = scores.against(one, other)
        names = f"{scores.systems[one]} - {scores.systems[other]}"
        interval = "-" if np.isnan(duel.low) else f"{duel.low:+.3f} to {duel.high:+.3f}"
        counts = [str(duel.won), str(duel.tied), str(duel.lost)] if scores.several else []
        lines.append([names, f"{duel.difference:+.3f}", interval, *counts])
    return page.Table(["", "difference", "95 %", *(["won", "tied", "lost"] if scores.several else [])], lines)
