"""``distill study``: one student under several methods, seeds and subsets of its teachers, probed alike.

A killed study goes on where it was; its runs are made here, or as the array of a SLURM cluster.
"""

import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import yaml
from jsonargparse import auto_cli
from rich.console import Console

from cache_tools.errors import ConfigError, QuorumError
from distill import report, scores
from distill.attribution import Attribution, Subsets, attribute, caption, choose, draw, table
from distill.evaluate import Record
from distill.page import Block, Heading, Table
from distill.results import Results, merged
from distill.slurm import queue
from distill.systems import SYSTEMS

log = logging.getLogger(__name__)


class Run:
    """One student; each stage is a process of its own and is skipped when its result is there.

    Args:
        method: of the study.
        label: says which ``teachers``; empty when they are those of ``configs``.
        folder: where the run lives.
        configs: configuration files, the later ones win.
        seed: of training and of the tasks' splits.
        probed: systems to probe.
        teachers: the only ones that it learns from; those of ``configs`` when not given.
    """

    threads = 1  # that a process may use

    def __init__(
        self,
        method: str,
        label: str,
        folder: Path,
        configs: Sequence[Path],
        seed: int,
        probed: Sequence[str],
        teachers: Sequence[str] | None = None,
    ):
        self.method, self.folder, self.configs, self.seed = method, folder, configs, seed
        self.probed, self.teachers = probed, teachers
        self.system = f"{method}, {label}" if label else method  # what the report calls it
        self.name, self.results = f"{self.system}, seed {seed}", folder / "probes" / "results.json"

    def fit(self) -> None:
        """Train, or train on from the last checkpoint.

        Raises:
            ConfigError: when the folder holds a run with other teachers.
            QuorumError: when it failed.
        """
        with self._alone() as output:
            self._same()
            last, mine = self.folder / "checkpoints" / "last.ckpt", self.folder / "config.yaml"
            if self.teachers and mine.exists():
                self._compare(yaml.safe_load(mine.read_text())["data"]["teachers"] or [])
            if self.results.exists():
                return
            if last.exists():
                self._distill(output, "fit", "--config", str(mine), "--ckpt_path", str(last))
            else:
                shutil.rmtree(self.folder, ignore_errors=True)  # it died before its first checkpoint
                configs = [word for path in [*self.configs, *self._only_teachers()] for word in ("--config", str(path))]
                self._distill(output, "fit", *configs, "--run", str(self.folder), "--seed_everything", str(self.seed))

    def test(self) -> None:
        """Probe on this seed's splits.

        Raises:
            QuorumError: when it failed.
        """
        with self._alone() as output:
            if not self.results.exists():
                best = self.folder / "checkpoints" / "best.ckpt"
                options = ["--probe.seeds", f"[{self.seed}]", "--probe.systems", f"[{','.join(self.probed)}]"]
                self._distill(output, "test", "--ckpt_path", str(best), *options)

    def _same(self) -> None:
        """Refuse to go on with what another configuration made."""
        read = [yaml.safe_load(path.read_text()) for path in self.configs]
        wanted = json.dumps([read, self.seed], default=str)
        path = self._beside(".made.json")
        if path.is_file() and self.folder.is_dir() and path.read_text() != wanted:
            raise ConfigError(
                f"{self.folder} was made by another content of {', '.join(map(str, self.configs))}: give the study another "
                "folder under `runs`, or remove this one"
            )
        path.write_text(wanted)

    def _compare(self, teachers: Sequence[str]) -> None:
        if set(teachers) != set(self.teachers or []):
            raise ConfigError(
                f"{self.folder} has a run with the teachers {', '.join(teachers)}, the study asks for "
                f"{', '.join(self.teachers or [])}: give the study another folder under `runs`, or remove this one"
            )

    def _only_teachers(self) -> list[Path]:
        """A configuration beside the run: its teachers, and no heads but theirs."""
        if not self.teachers:
            return []
        heads = _last([yaml.safe_load(path.read_text()) or {} for path in self.configs], "model", "heads") or {}
        kept = {name: head for name, head in heads.items() if name in self.teachers}
        mine = {"data": {"teachers": list(self.teachers)}} | ({"model": {"heads": kept}} if heads else {})
        path = self._beside(".yaml")
        path.write_text(yaml.safe_dump(mine, sort_keys=False))
        return [path]

    def _beside(self, ending: str) -> Path:
        return self.folder.with_name(self.folder.name + ending)

    @contextmanager
    def _alone(self) -> Iterator[IO[str]]:
        """The run's log, locked while this process or one that it started has it: a killed study's may still be at work."""
        path = self._beside(".log")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: waits for another process that is at it, see %s", self.name, path)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _distill(self, output: IO[str], *arguments: str) -> None:
        log.info("%s: distill %s", self.name, arguments[0])
        # a process of SLURM's own would name its folder for the job, and take its number of tasks for ranks
        variables = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        command = [sys.executable, "-m", "distill.cli", *arguments]
        if subprocess.run(command, stdout=output, stderr=output, env=variables, check=False).returncode:
            raise QuorumError(f"{self.name}: `distill {' '.join(arguments)}` failed, see the end of {output.name}")


def _last(configs: Iterable[Mapping[str, Any]], group: str, key: str) -> Any:
    """What the last configuration says that has ``group.key``; None when none has."""
    groups = [each[group] for each in configs if isinstance(each.get(group), dict)]
    return next((each[key] for each in reversed(groups) if key in each), None)


def study(
    base: Path,
    methods: dict[str, Path],
    out: Path,
    runs: Path = Path("runs/study"),
    seeds: list[int] | None = None,
    jobs: int = 1,
    teachers: list[str] | None = None,
    subsets: Subsets | None = None,
    only: int | None = None,
    slurm: bool = False,
) -> None:
    """Fit and probe every method with every seed and subset of the teachers, then write the report.

    Args:
        base: configuration that all methods share.
        methods: name -> configuration of the method, laid over ``base``.
        out: a folder for report.html, report.md and figures.
        runs: a folder per run goes here.
        seeds: each one is a run's seed and the seed of its probes' splits.
        jobs: runs at a time; they share the cores.
        teachers: columns of one ``data.corpus``, to tell what each of them brings.
        subsets: of ``teachers``. ``leave-one-out``: all, and all but each. ``all``: every subset, which gives exact Shapley
            values. A number: those of so many random orders in which the teachers join, which gives estimates.
        only: make this one run, counted from 0, and no report.
        slurm: write a SLURM array of all runs into ``runs`` and tell how to submit it, instead of making them here.

    Raises:
        ConfigError: when the arguments do not go together.
        QuorumError: when runs failed; all others are done then.
    """
    settings = {key: value for key, value in locals().items() if key not in ("only", "slurm")}
    if (teachers is None) != (subsets is None):
        raise ConfigError("teachers and subsets go together: name both in the study's configuration, or neither")
    seeds = [0, 1, 2] if seeds is None else seeds
    grid = plan(base, methods, runs, seeds, teachers or [], subsets)
    if slurm:
        return queue(settings, runs, len(grid))
    if only is not None:
        if not 0 <= only < len(grid):
            raise ConfigError(f"only is {only}, the study has the runs 0 to {len(grid) - 1}")
        return finish(grid[only : only + 1], 1)
    log.info("%s: %d runs", runs, len(grid))
    finish(grid, jobs)
    by_system: dict[str, list[Results]] = {}
    for run in grid:
        by_system.setdefault(run.system, []).append(Results.load(run.folder))
    files = ", ".join(f"{method} (`{path}`)" for method, path in methods.items())
    origin = f"Made by `distill study`: base `{base}`; methods {files}; seeds {seeds}"
    extra: list[Block] = []
    if subsets is not None:
        origin += f"; subsets {subsets} of the teachers {', '.join(teachers or [])}"
        extra = tell(attributions(grid, merged(by_system)[0], subsets), runs / "attribution.json")
    by_split = report.write(out, f"Study {runs.name}", by_system, f"{origin}.", extra)
    for split, found in by_split.items():
        Console().print(scores.table(found, f"{split} split"))
    Console().print(f"written: {out}/report.html, report.md")


def plan(
    base: Path,
    methods: Mapping[str, Path],
    runs: Path,
    seeds: Iterable[int],
    teachers: Sequence[str] = (),
    subsets: Subsets | None = None,
) -> list[Run]:
    """Every run of a study; the first one of a seed also probes what depends on neither method nor subset.

    Args:
        base: configuration that all methods share.
        methods: name -> configuration of the method.
        runs: folder of their folders.
        seeds: of the runs.
        teachers: columns that ``subsets`` are of.
        subsets: as :func:`choose` knows them; without them a run has the teachers of its configuration.
    """
    chosen = [None] if subsets is None else choose(teachers, subsets)
    grid = []
    for seed in seeds:
        probed: Sequence[str] = SYSTEMS
        for method, path in methods.items():
            for subset in chosen:
                names = None if subset is None else [name for name in teachers if name in subset]
                label = _label(names, teachers) if names else ""
                folder = runs / "-".join([method, *label.split(), str(seed)])
                grid.append(Run(method, label, folder, [base, path], seed, probed, names))
                probed = ["student"]
    return grid


def _label(names: Sequence[str], teachers: Sequence[str]) -> str:
    rest = [name for name in teachers if name not in names]
    if not rest:
        return "all"
    return f"without {'+'.join(rest)}" if len(rest) < len(names) else f"only {'+'.join(names)}"


def finish(grid: Sequence[Run], jobs: int) -> None:
    """Fit and probe ``jobs`` runs at a time; one that fails does not stop the others.

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
        left, threads = [run for run in runs if run not in failed], max(1, cores // jobs)
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda run: attempt(stage, run, threads), left))

    all_of(Run.fit, grid, jobs)
    all_of(Run.test, grid[:1], 1)  # alone: it embeds the tasks' items, which the others then find
    all_of(Run.test, sorted(grid[1:], key=lambda run: -len(run.probed)), jobs)  # the long ones first
    if failed:
        raise QuorumError("\n".join([f"{len(failed)} of {len(grid)} runs failed:", *failed.values()]))


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


def main(arguments: list[str]) -> None:
    """Entry point of ``distill study``."""
    auto_cli(study, args=arguments, as_positional=False)


if __name__ == "__main__":
    main(sys.argv[1:])
