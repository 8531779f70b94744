"""``distill compare``: what `distill test` measured of several runs side by side, or what several studies found."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from cache_tools import ConfigError
from distill.records import Record, Results, read_scores, save_scores
from distill.report import page, tables
from distill.report import sections as report
from distill.report.page import Block, Heading, Table, Text
from distill.report.scores import Scores

EVERY = "every"  # kind of split: the mean over those that a task has, and over seeds


def compare(runs: list[Path], out: Path) -> None:
    """Put the probes of several runs into one report.

    Args:
        runs: folders of runs that `distill test` probed, by the same tasks, splits and seeds.
        out: a folder for report.html, report.md and figures.

    Raises:
        ConfigError: when a run was not probed, or two runs have one name.
    """
    names = [run.absolute().name for run in runs]
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise ConfigError(f"two runs are called {twice[0]}: rename a folder")
    results = {name: [Results.load(run)] for name, run in zip(names, runs, strict=True)}
    by_split = report.write(out, f"{len(runs)} runs compared", results, f"Runs: {', '.join(map(str, runs))}.")
    for split, found in by_split.items():
        Console().print(tables.table(found, f"{split} split"))
    Console().print(f"written: {out}/report.html, report.md")


def together(studies: Sequence[Path], out: Path) -> None:
    """Put the methods of several studies, of other teachers and tasks each, into one report.

    Systems are those that stand in all studies by the same name; ranks are over the tasks of all, each once:
    seeds of one task are no tasks of their own (Demšar, JMLR 2006, section 3.2).

    Args:
        studies: folders of the reports of `distill study`, of which scores.csv is read.
        out: a folder for report.html, report.md, scores.csv and figures.

    Raises:
        ConfigError: when a folder has no scores, two have one name or a task of one name, or no system stands in all.
    """
    if len({study.name for study in studies}) < len(studies):
        raise ConfigError(f"two of {', '.join(map(str, studies))} have one name: rename a folder")
    records = {study.name: once(read_scores(study)) for study in studies}
    systems = {name: dict.fromkeys(record.system for record in each) for name, each in records.items()}
    shared = set.intersection(*map(set, systems.values()))
    if not any(record.kind == "student" and record.system in shared for each in records.values() for record in each):
        raise ConfigError(f"no method stands in all of {', '.join(map(str, studies))}")
    records = {name: [each for each in of if each.system in shared] for name, of in records.items()}
    tasks = [task for each in records.values() for task in dict.fromkeys(record.task for record in each)]
    if twice := [task for task in tasks if tasks.count(task) > 1]:
        raise ConfigError(f"two studies have a task {twice[0]}: rename one in its configuration")
    left = [f"{name}: {', '.join(rest)}" for name, of in systems.items() if (rest := [s for s in of if s not in shared])]
    by_split = report.alike([record for each in records.values() for record in each])
    blocks: list[Block] = [
        Text(
            f"Studies: {', '.join(f'`{study}`' for study in studies)}. A task's score is the mean over its kinds of split "
            "and over seeds, so that it counts once; intervals are over tasks."
        ),
        Text(f"Left out, as not all studies have them. {'; '.join(left)}.") if left else Text("All have the same systems."),
        *(Text(f"{split.capitalize()} split: {report.answer(each)}") for split, each in by_split.items()),
    ]
    blocks += [Heading("Mean score in each study"), per_study(records)]
    for split, each in by_split.items():
        blocks += report.of_split(split, each, "seeds averaged")
    page.write(out, f"{len(studies)} studies together", blocks)
    save_scores(out, [record for each in records.values() for record in each])
    for split, each in by_split.items():
        Console().print(tables.table(each, f"{split} split"))
    Console().print(f"written: {out}/report.html, report.md")


def once(records: Sequence[Record]) -> list[Record]:
    """A record for each system and task: the mean over kinds of split and seeds, so that each task counts once."""
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        cells.setdefault((record.system, record.task), []).append(record)
    return [replace(of[0], split=EVERY, seed=0, score=float(np.mean([each.score for each in of]))) for of in cells.values()]


def per_study(records: dict[str, list[Record]]) -> Table:
    """Every system's mean over the tasks of each study, and the mean of these, best first."""
    found = {name: Scores(each, EVERY) for name, each in records.items()}
    means = {name: dict(zip(each.systems, each.mean().tolist(), strict=True)) for name, each in found.items()}
    overall = {system: np.mean([each[system] for each in means.values()]) for system in next(iter(means.values()))}
    rows = [
        [system, *(f"{each[system]:.3f}" for each in means.values()), f"{overall[system]:.3f}"]
        for system in sorted(overall, key=lambda system: -overall[system])
    ]
    counts = ", ".join(f"{name} {len(each.tasks)}" for name, each in found.items())
    strong = frozenset(system for each in found.values() for system, kind in each.kinds.items() if kind == "student")
    return Table(["system", *means, "mean"], rows, f"Tasks: {counts}. The mean is over studies.", strong)
