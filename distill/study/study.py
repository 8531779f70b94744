"""``distill study``: one student under several methods, seeds and subsets of its teachers, probed alike.

A killed study goes on where it was; its runs are made here, or as the array of a SLURM cluster.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console

from cache_tools import ConfigError, QuorumError
from distill.records import SYSTEMS, Record, Results, merged
from distill.report import sections as report
from distill.report import tables
from distill.report.page import Block, Heading, Table
from distill.run_folder import RunFolder
from distill.study.attribution import Attribution, Subsets, attribute, caption, choose, draw, table
from distill.study.run import Run, Sweep, Trial, best, forget
from distill.study.slurm import queue

log = logging.getLogger(__name__)


def run_study(
    base: list[Path] | Path,
    methods: dict[str, list[Path] | Path],
    out: Path,
    runs: Path,
    seeds: list[int] | None,
    jobs: int,
    teachers: list[str] | None,
    subsets: Subsets | None,
    sweep: Sweep | None,
    only: int | None,
    array_of: Mapping[str, object] | None,
    resolve: Callable[[Sequence[Path]], str],
) -> None:
    """Make what ``distill study`` is asked for; its arguments are those of :func:`distill.cli.study.study`."""
    if (teachers is None) != (subsets is None):
        raise ConfigError("teachers and subsets go together: name both in the study's configuration, or neither")
    seeds = [0, 1, 2] if seeds is None else seeds
    if not (methods and seeds) or jobs < 1:
        raise ConfigError(
            f"a study of {len(methods)} methods, {len(seeds)} seeds, {jobs} jobs: expected one or more of each"
        )
    if odd := [name for name in methods if not re.fullmatch(r"[\w.+-]*\w", name)]:
        raise ConfigError(
            f"a method is called {odd[0]!r}: its name becomes a folder's, so letters, digits and . + - _ only"
        )
    if gone := [path for paths in (base, *methods.values()) for path in listed(paths) if not path.is_file()]:
        raise ConfigError(
            f"no file {gone[0]}: the study's base and methods name configuration files, from the current folder"
        )
    grid = plan(base, methods, runs, seeds, teachers or [], subsets, sweep)
    if lost := [run for run in grid if run.corpus and not (run.results.exists() or Path(run.corpus).is_dir())]:
        raise ConfigError(
            f"no corpus {lost[0].corpus}, which {lost[0].method} is to be fitted on: make it with `distill-cache build`"
        )
    if only is not None:
        if not 0 <= only < len(grid):
            raise ConfigError(f"only is {only}, the study has the runs 0 to {len(grid) - 1}")
        return finish(grid[only : only + 1], 1)
    tell_apart(grid, resolve)
    if array_of is not None:
        return queue(array_of, runs, len(grid))
    log.info("%s: %d runs", runs, len(grid))
    finish(grid, jobs)
    by_system: dict[str, list[Results]] = {}
    for run in grid:
        by_system.setdefault(run.system, []).append(Results.load(run.folder))
    files = ", ".join(f"{method} ({_named(paths)})" for method, paths in methods.items())
    origin = f"Made by `distill study`: base {_named(base)}; methods {files}; seeds {seeds}"
    extra = fitted(grid)
    if subsets is not None:
        origin += f"; subsets {subsets} of the teachers {', '.join(teachers or [])}"
        extra += tell(attributions(grid, merged(by_system)[0], subsets), runs / "attribution.json")
    by_split = report.write(out, f"Study {runs.name}", by_system, f"{origin}.", extra)
    for split, found in by_split.items():
        Console().print(tables.table(found, f"{split} split"))
    Console().print(f"written: {out}/report.html, report.md")


def plan(
    base: Sequence[Path] | Path,
    methods: Mapping[str, Sequence[Path] | Path],
    runs: Path,
    seeds: Iterable[int],
    teachers: Sequence[str] = (),
    subsets: Subsets | None = None,
    sweep: Sweep | None = None,
) -> list[Run]:
    """Every run of a study; the first one of a seed also probes what depends on neither method nor subset.

    Args:
        base: configuration that all methods share, or several.
        methods: name -> configuration of the method, or several.
        runs: folder of their folders.
        seeds: of the runs.
        teachers: columns that ``subsets`` are of.
        subsets: as :func:`choose` knows them; without them a run has the teachers of its configuration.
        sweep: whose trials the runs of a method share.
    """
    chosen = [None] if subsets is None else choose(teachers, subsets)
    grid = []
    trials: dict[str, list[Trial]] = {}
    for seed in seeds:
        probed: Sequence[str] = SYSTEMS
        for method, paths in methods.items():
            for subset in chosen:
                names = None if subset is None else [name for name in teachers if name in subset]
                label = _label(names, teachers) if names else ""
                folder = runs / "-".join([method, *label.split(), str(seed)])
                run = Run(method, label, folder, [*listed(base), *listed(paths)], seed, probed, names)
                if sweep:
                    run.trials = trials.setdefault(method, [Trial(run, sweep, value) for value in sweep.values])
                grid.append(run)
                probed = ["student"]
    return grid


def tell_apart(grid: Iterable[Run], resolve: Callable[[Sequence[Path]], str]) -> None:
    """Refuse methods whose configurations are not valid, or come to the same.

    Args:
        grid: runs of a study.
        resolve: configuration files -> all that ``distill fit`` reads in them.

    Raises:
        ConfigError: which ones.
    """
    found: dict[str, str] = {}
    for method, run in {run.method: run for run in grid}.items():
        try:
            whole = resolve(run.configs)
        except ConfigError as error:
            raise ConfigError(f"{method}, of {', '.join(map(str, run.configs))}: {error}") from None
        if (same := found.setdefault(whole, method)) != method:
            raise ConfigError(
                f"the methods {same} and {method} come to one configuration. An option that an earlier file gives to a "
                "class stays when a later one names that class without it: say there what it is to be, perhaps null"
            )


def _named(paths: Sequence[Path] | Path) -> str:
    return ", ".join(f"`{path}`" for path in listed(paths))


def listed(paths: Sequence[Path] | Path) -> list[Path]:
    """One file as well as several."""
    return [paths] if isinstance(paths, Path) else list(paths)


def _label(names: Sequence[str], teachers: Sequence[str]) -> str:
    rest = [name for name in teachers if name not in names]
    if not rest:
        return "all"
    return f"without {'+'.join(rest)}" if len(rest) < len(names) else f"only {'+'.join(names)}"


def finish(grid: Sequence[Run], jobs: int) -> None:
    """Fit and probe ``jobs`` runs at a time, their trials first; one that fails does not stop the others.

    Raises:
        QuorumError: which ones failed, when all others are done.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    failed: dict[Run, str] = {}

    def attempt(stage: Callable[[Run], None], run: Run, threads: int) -> None:
        run.threads = threads
        try:
            stage(run)
        except QuorumError as error:
            failed[run] = str(error)
            log.error("%s failed", run.name)

    def all_of(stage: Callable[[Run], None], runs: Iterable[Run], jobs: int) -> None:
        left, threads = [run for run in runs if not {run, *run.trials} & failed.keys()], max(1, cores // jobs)
        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(lambda run: attempt(stage, run, threads), left))
            except KeyboardInterrupt:
                Run.stopped = True  # what now ends with an error did not fail
                raise

    by_method = {run.method: run.trials for run in grid}
    for trials in by_method.values():
        forget(trials)
    all_of(lambda trial: trial.fit(), [trial for trials in by_method.values() for trial in trials], jobs)
    all_of(Run.fit, grid, jobs)
    all_of(Run.test, grid[:1], 1)  # alone: it embeds the tasks' items, which the others then find
    all_of(Run.test, sorted(grid[1:], key=lambda run: -len(run.probed)), jobs)  # the long ones first
    if failed:
        count = sum(not {run, *run.trials}.isdisjoint(failed) for run in grid)
        raise QuorumError("\n".join([f"{count} of {len(grid)} runs failed:", *dict.fromkeys(failed.values())]))


def fitted(grid: Sequence[Run]) -> list[Block]:
    """The learning rate of each method with the losses that it was chosen by, and how long a fit took."""
    rows = []
    for method, trials in {run.method: run.trials for run in grid}.items():
        took = [time for run in grid if run.method == method and (time := RunFolder(run.folder).seconds()) is not None]
        losses = ["failed" if np.isinf(trial.loss) else f"{trial.loss:.5g}" for trial in trials]
        chosen = [f"{best(trials).value:g}"] if trials else []
        rows.append([method, *losses, *chosen, f"{np.mean(took):,.0f}" if took else "-"])
    values = [f"{trial.value:g}" for trial in grid[0].trials]
    if not values and all(row[-1] == "-" for row in rows):
        return []
    told = "fit, s: from a fit's start to the last figure that it logged, mean over the method's runs."
    if not values:
        return [Heading("Time of each method"), Table(["method", "fit, s"], rows, told)]
    first = grid[0].trials[0]
    note = (
        f"`val/loss` at the end of trials, epochs: {first.epochs}, seed: {first.seed}, with the value "
        f"for {' and '.join(first.keys)}. Losses of two methods are not of one scale. {told}"
    )
    head = ["method", *values, "chosen", "fit, s"]
    return [Heading("Learning rate of each method, by held-out loss"), Table(head, rows, note)]


def attributions(grid: Sequence[Run], records: Sequence[Record], subsets: Subsets) -> list[Attribution]:
    """What each teacher brings, per method and kind of split."""
    everyone = grid[0].teachers or []
    orders = draw(everyone, subsets) if isinstance(subsets, int) else []
    found = []
    for method in dict.fromkeys(run.method for run in grid):
        systems = {frozenset(run.teachers or []): run.system for run in grid if run.method == method}
        splits = dict.fromkeys(record.split for record in records)
        found += [attribute(records, systems, method, split, orders) for split in splits]
    return found


def tell(found: Sequence[Attribution], path: Path) -> list[Block]:
    """Write attributions to ``path``; gives their section of the report."""
    path.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    blocks: list[Block] = [Heading("What each teacher brings")]
    for each in found:
        head, lines = table(each)
        blocks.append(Table(head, lines, f"{each.method}, {each.split} split. {caption(each)}"))
    return blocks
