"""A study: the runs of several methods, seeds and subsets of the teachers, and their report."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cache_tools import Cluster, ConfigError, QuorumError, cores, write_file
from distill.records import OF_A_STUDENT, SYSTEMS, Record, Results, merged
from distill.report import sections
from distill.report.page import Table
from distill.report.tables import print_scores
from distill.study.attribution import Attribution, Subsets, attribute, choose, draw, table
from distill.study.run import Run, Sweep, Trial, best_trial, discard_failed

log = logging.getLogger(__name__)

Files = Sequence[Path] | Path


class Study:
    """Every run of a study; the first one of a seed also probes the systems that depend on neither method nor subset.

    Args:
        base: configuration that all methods share, or several.
        methods: name -> configuration of the method, or several.
        runs: a folder per run goes here.
        seeds: of the runs.
        teachers: columns that ``subsets`` are of.
        subsets: as :func:`distill.study.attribution.choose` reads them; without them a run has the teachers of its
            configuration.
        sweep: whose trials the runs of a method share.
        redraw: each seed has splits of its own. False: all runs are probed on the splits of the first seed, and systems
            that depend on no fit are probed once.

    Attributes:
        grid: the runs, by seed, method and subset.

    Raises:
        ConfigError: when the arguments do not go together, or name a file that does not exist.
    """

    def __init__(
        self,
        base: Files,
        methods: Mapping[str, Files],
        runs: Path,
        seeds: Sequence[int],
        teachers: Sequence[str] | None = None,
        subsets: Subsets | None = None,
        sweep: Sweep | None = None,
        redraw: bool = True,
    ):
        if (teachers is None) != (subsets is None):
            raise ConfigError("teachers and subsets go together: name both in the study's configuration, or neither")
        if not (methods and seeds):
            raise ConfigError(f"a study of {len(methods)} methods, {len(seeds)} seeds: expected one or more of each")
        if odd := [name for name in methods if not re.fullmatch(r"[\w.+-]*\w", name)]:
            raise ConfigError(
                f"a method is called {odd[0]!r}: a folder is named after it, so use letters, digits and . + - _"
            )
        if taken := sorted(({*SYSTEMS} - {"student"}) & methods.keys()):
            raise ConfigError(f"a method is called {taken[0]}, as another system of the report is: rename it")
        self.base, self.methods = _listed(base), {name: _listed(files) for name, files in methods.items()}
        if missing := [path for files in (self.base, *self.methods.values()) for path in files if not path.is_file()]:
            raise ConfigError(
                f"no file {missing[0]}: the study's base and methods name configuration files, from the current folder"
            )
        self.folder, self.seeds, self.teachers, self.subsets = runs, list(seeds), list(teachers or []), subsets
        self.redraw = redraw
        self.grid = self._plan(sweep)

    def _plan(self, sweep: Sweep | None) -> list[Run]:
        subsets = [None] if self.subsets is None else choose(self.teachers, self.subsets)
        grid: list[Run] = []
        trials: dict[str, list[Trial]] = {}
        for seed in self.seeds:
            # the first method's student beside its fingerprints would say nothing of the other methods
            again = SYSTEMS if self.redraw or seed == self.seeds[0] else ("student", *OF_A_STUDENT)
            probed: Sequence[str] = [system for system in again if system != "student+fingerprints"]
            splits = seed if self.redraw else self.seeds[0]
            for method, files in self.methods.items():
                for subset in subsets:
                    names = None if subset is None else [name for name in self.teachers if name in subset]
                    label = _label(names, self.teachers) if names else ""
                    folder = self.folder / "-".join([method, *label.split(), str(seed)])
                    run = Run(method, label, folder, [*self.base, *files], seed, probed, names, splits)
                    if sweep:
                        run.trials = trials.setdefault(method, [Trial(run, sweep, value) for value in sweep.values])
                    grid.append(run)
                    probed = ["student", "prefixes"]
        return grid

    def require_corpora(self) -> None:
        """Refuse runs that are still to be made and whose corpus does not exist.

        Raises:
            ConfigError: which corpus.
        """
        for run in self.grid:
            if run.corpus and not (run.outcome.exists() or "://" in run.corpus or Path(run.corpus).is_dir()):
                raise ConfigError(
                    f"no corpus {run.corpus}, which {run.method} is to be fitted on: make it with `distill-cache build`"
                )

    def require_different_methods(self, resolve: Callable[[Sequence[Path]], str]) -> None:
        """Refuse methods whose configurations are not valid, or come to the same.

        Args:
            resolve: configuration files -> everything that ``distill fit`` reads in them.

        Raises:
            ConfigError: which ones.
        """
        by_content: dict[str, str] = {}
        for method, files in self.methods.items():
            configs = [*self.base, *files]
            try:
                content = resolve(configs)
            except ConfigError as error:
                raise ConfigError(f"{method}, of {', '.join(map(str, configs))}: {error}") from None
            if (same := by_content.setdefault(content, method)) != method:
                raise ConfigError(
                    f"the methods {same} and {method} come to one configuration. An option that an earlier file gives to a "
                    "class stays when a later file names that class without the option: set it there, perhaps to null"
                )

    def make_one(self, number: int) -> None:
        """Fit and probe one run of the grid.

        Raises:
            ConfigError: when there is no such run.
        """
        if not 0 <= number < len(self.grid):
            raise ConfigError(f"only is {number}, the study has the runs 0 to {len(self.grid) - 1}")
        make(self.grid[number : number + 1], 1)

    def report(self, out: Path) -> None:
        """Write the report of all runs, and ``attribution.json`` where there are subsets of the teachers."""
        by_system: dict[str, list[Results]] = {}
        for run in self.grid:
            by_system.setdefault(run.system, []).append(self._results(run))
        files = ", ".join(f"{method} ({_named(files)})" for method, files in self.methods.items())
        same = "" if self.redraw else ", all on the same splits"
        origin = f"Made by `distill study`: base {_named(self.base)}; methods {files}; seeds {self.seeds}{same}"
        attributions: list[Attribution] = []
        if self.subsets is not None:
            origin += f"; subsets {self.subsets} of the teachers {', '.join(self.teachers)}"
            attributions = self.attributions(merged(by_system)[0])
            content = json.dumps([asdict(attribution) for attribution in attributions], indent=1)
            write_file(self.folder / "attribution.json", content + "\n")
        values = {"rates": learning_rates(self.grid), "trials": self.grid[0].trials, "attributions": attributions}
        values |= {"attribution_table": table}
        title, template = f"Study {out.absolute().name}", "study/study.md.jinja"
        summary = sections.write(out, title, by_system, f"{origin}.", template, **values)
        print_scores(*summary, f"{out}/report.html, report.md")

    def _results(self, run: Run) -> Results:
        results = Results.load(run.folder.path)
        return results if self.redraw else results.of_seed(run.seed, self.seeds)

    def attributions(self, records: Sequence[Record]) -> list[Attribution]:
        """What each teacher brings, per method and kind of split."""
        orders = draw(self.teachers, self.subsets) if isinstance(self.subsets, int) else []
        splits = dict.fromkeys(record.split for record in records)
        attributions = []
        for method in self.methods:
            systems = {frozenset(run.teachers or []): run.system for run in self.grid if run.method == method}
            attributions += [attribute(records, systems, method, split, orders) for split in splits]
        return attributions


def _listed(files: Files) -> list[Path]:
    return [files] if isinstance(files, Path) else list(files)


def _named(files: Sequence[Path]) -> str:
    return ", ".join(f"`{path}`" for path in files)


def _label(names: Sequence[str], teachers: Sequence[str]) -> str:
    rest = [name for name in teachers if name not in names]
    if not rest:
        return "all"
    return f"without {'+'.join(rest)}" if len(rest) < len(names) else f"only {'+'.join(names)}"


def make(grid: Sequence[Run], jobs: int, cluster: Cluster | None = None) -> None:
    """Fit and probe ``jobs`` runs at a time, their trials first; one that fails does not stop the others.

    Args:
        grid: the runs.
        jobs: at a time.
        cluster: its nodes make the runs, whose folder they share; this machine when not given.

    Raises:
        ConfigError: when ``jobs`` is not at least one.
        QuorumError: which ones failed, when all others are done.
    """
    if jobs < 1:
        raise ConfigError(f"{jobs} jobs at a time: expected one or more")
    failed: dict[Run, str] = {}

    def all_of(stage: Callable[[Run], None], runs: Iterable[Run], jobs: int) -> None:
        def attempt(run: Run) -> None:
            run.threads = max(1, cores() // jobs) if cluster is None else cluster.resources.cpus
            try:
                if cluster is None:
                    stage(run)
                else:
                    cluster.call(stage, run, lambda run: run.name)
            except QuorumError as error:
                failed[run] = str(error)
                log.error("%s failed", run.name)

        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(attempt, [run for run in runs if not {run, *run.trials} & failed.keys()]))
            except KeyboardInterrupt:
                Run.stopped = True  # a process that ends with an error from now on did not fail
                raise

    trials_of = {run.method: run.trials for run in grid}
    for trials in trials_of.values():
        discard_failed(trials)
    all_of(lambda trial: trial.fit(), [trial for trials in trials_of.values() for trial in trials], jobs)
    all_of(Run.fit, grid, jobs)
    all_of(Run.test, grid[:1], 1)  # alone: it embeds the tasks' items, which the others then find
    all_of(Run.test, sorted(grid[1:], key=lambda run: -len(run.probed)), jobs)  # the long ones first
    if failed:
        count = sum(not {run, *run.trials}.isdisjoint(failed) for run in grid)
        raise QuorumError("\n".join([f"{count} of {len(grid)} runs failed:", *dict.fromkeys(failed.values())]))


def learning_rates(grid: Sequence[Run]) -> Table:
    """The learning rate of each method with the losses that it was chosen by, and how long a fit took, where known."""
    rows, times = [], []
    for method, trials in {run.method: run.trials for run in grid}.items():
        seconds = [time for run in grid if run.method == method and (time := run.folder.seconds()) is not None]
        times += seconds
        losses = ["failed" if np.isinf(trial.loss) else f"{trial.loss:.5g}" for trial in trials]
        chosen = [f"{best_trial(trials).value:g}"] if trials else []
        rows.append([method, *losses, *chosen, f"{np.mean(seconds):,.0f}" if seconds else "-"])
    values = [f"{trial.value:g}" for trial in grid[0].trials]
    return Table(["method", *values, *(["chosen"] if values else []), "fit, s"], rows if values or times else [])
