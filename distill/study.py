"""``distill study``: one student under several methods and seeds, probed alike; a killed study goes on where it was."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console

from cache_tools.errors import QuorumError
from distill import report
from distill.evaluate import Record

log = logging.getLogger(__name__)

DUELS = (
    "Pair by pair: mean difference over tasks, its bootstrap interval over tasks and seeds; tasks won and lost where the "
    "interval over seeds leaves out zero."
)


class Run:
    """One method with one seed; each stage is a process of its own and is skipped when its result is there.

    Args:
        name: of the run.
        folder: where the run lives.
        configs: configuration files, the later ones win.
        seed: of training and of the tasks' splits.
        threads: that a process may use.
    """

    def __init__(self, name: str, folder: Path, configs: Sequence[Path], seed: int, threads: int):
        self.name, self.folder, self.configs, self.seed, self.threads = name, folder, configs, seed, threads
        self.results = folder / "probes" / "results.json"

    def fit(self) -> None:
        """Train, or train on from the last checkpoint."""
        last = self.folder / "checkpoints" / "last.ckpt"
        if self.results.exists():
            return
        if last.exists():
            self._distill("fit", "--config", str(self.folder / "config.yaml"), "--ckpt_path", str(last))
        else:
            shutil.rmtree(self.folder, ignore_errors=True)  # it died before its first checkpoint
            configs = [word for path in self.configs for word in ("--config", str(path))]
            self._distill("fit", *configs, "--run", str(self.folder), "--seed_everything", str(self.seed))

    def test(self, systems: Iterable[str]) -> None:
        """Probe ``systems`` on this seed's splits."""
        if not self.results.exists():
            best = self.folder / "checkpoints" / "best.ckpt"
            options = ["--probe.seeds", f"[{self.seed}]", "--probe.systems", f"[{','.join(systems)}]"]
            self._distill("test", "--ckpt_path", str(best), *options)

    def records(self, student: str) -> list[Record]:
        """What :meth:`test` measured, with the student renamed to ``student``."""
        found = [Record(**each) for each in json.loads(self.results.read_text())["records"]]
        return [replace(each, system=student) if each.kind == "student" else each for each in found]

    def _distill(self, *arguments: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        output = self.folder.with_suffix(".log")
        log.info("%s: distill %s", self.name, arguments[0])
        threads = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        with open(output, "a") as file:
            command = [sys.executable, "-m", "distill.cli", *arguments]
            code = subprocess.run(command, stdout=file, stderr=file, env=os.environ | threads, check=False).returncode
        if code:
            raise QuorumError(f"{self.name}: `distill {' '.join(arguments)}` failed, see the end of {output}")


def study(
    base: Path,
    methods: dict[str, Path],
    report_file: Path,
    runs: Path = Path("runs/study"),
    seeds: list[int] | None = None,
    jobs: int = 1,
) -> None:
    """Fit and probe every method with every seed, then write the report.

    Args:
        base: configuration that all methods share.
        methods: name -> configuration of the method, laid over ``base``.
        report_file: Markdown; the study replaces its own section there, named for ``runs``, and keeps all else.
        runs: a folder per method and seed goes here.
        seeds: each one is a run's seed and the seed of its probes' splits.
        jobs: runs at a time; they share the cores.
    """
    chosen = [0, 1, 2] if seeds is None else seeds
    threads = max(1, (os.cpu_count() or 1) // jobs)
    grid = {
        (method, seed): Run(f"{method}, seed {seed}", runs / f"{method}-{seed}", [base, path], seed, threads)
        for seed in chosen
        for method, path in methods.items()
    }
    first = next(iter(methods))  # its run also probes what does not depend on the method
    systems = {method: ["student"] for method in methods} | {first: ["student", "untrained", "teachers", "concatenated"]}
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(Run.fit, grid.values()))
        tests = [(run, systems[method]) for (method, _), run in grid.items()]
        tests[0][0].threads = os.cpu_count() or 1  # alone: it embeds the tasks' items, which the others then find
        Run.test(*tests[0])
        tests.sort(key=lambda each: -len(each[1]))  # the long ones first
        list(pool.map(lambda each: Run.test(*each), tests))
    records = [record for (method, _), run in grid.items() for record in run.records(method)]
    files = ", ".join(f"{method} ({path})" for method, path in methods.items())
    write(records, report_file, runs.name, f"base {base}; methods {files}; seeds {chosen}")


def write(records: list[Record], path: Path, name: str, origin: str, command: str = "distill study") -> None:
    """Write tables and a plot of ``records`` into their section of ``path``; all else in it stays as it is."""
    by_split = {split: report.Scores(records, split) for split in dict.fromkeys(record.split for record in records)}
    plot = path.with_name(f"{path.stem}-{name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    report.plot(by_split, plot)
    parts = [f"Made by `{command}`: {origin}.", f"![mean scores]({plot.name})"]
    for split, scores in by_split.items():
        parts.append(f"### {split.capitalize()} split, {len(scores.seeds)} seeds\n\n{report.markdown(scores)}")
        parts.append(f"{DUELS}\n\n{report.duels(scores)}")
        Console().print(report.table(scores, f"{split} split"))
    begin, end = f"<!-- {name}: written by `{command}`, what stands here is replaced -->", f"<!-- {name}: end -->"
    section = "\n\n".join([begin, *parts, end])
    before = path.read_text() if path.exists() else f"# Results\n\n## {name}\n"
    head, there, rest = before.partition(begin)
    _, _, tail = rest.partition(end) if there else ("", "", "\n")
    path.write_text(f"{head if there else head.rstrip() + chr(10) * 2}{section}{tail}")
    Console().print(f"written: {path}, section {name}, and {plot.name}")


def main(arguments: list[str]) -> None:
    """Entry point of ``distill study``."""
    auto_cli(study, args=arguments, as_positional=False)


if __name__ == "__main__":
    main(sys.argv[1:])
