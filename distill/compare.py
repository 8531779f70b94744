"""``distill compare``: what `distill test` measured of several runs, side by side."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cache_tools.errors import ConfigError
from distill.evaluate import Record
from distill.study import write

log = logging.getLogger(__name__)


def compare(runs: list[Path], report_file: Path, name: str = "compare") -> None:
    """Put the probes of several runs into one report.

    Args:
        runs: folders of runs that `distill test` probed, by the same tasks, splits and seeds.
        report_file: Markdown; the comparison replaces its own section there and keeps all else. Its plot lies beside it.
        name: of that section.

    Raises:
        ConfigError: when a run was not probed, or two runs have one name.
    """
    write(merged(runs), report_file, name, f"runs {', '.join(map(str, runs))}", "distill compare")


def merged(runs: Sequence[Path]) -> list[Record]:
    """Records of all runs; a student is called as its run's folder, what several runs measured is taken once.

    Raises:
        ConfigError: when a run was not probed, or two runs have one name.
    """
    names = [run.absolute().name for run in runs]
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise ConfigError(f"two runs are called {twice[0]}: rename a folder")
    kept: dict[tuple[str, str, str, int], Record] = {}
    for run, name in zip(runs, names, strict=True):
        path = run / "probes" / "results.json"
        if not path.is_file():
            raise ConfigError(f"no {path}: probe the run first with `distill test --run {run}`")
        for each in json.loads(path.read_text())["records"]:
            record = Record(**each)
            if record.kind in ("student", "untrained"):
                record = replace(record, system=name if record.kind == "student" else f"{name} untrained")
            first = kept.setdefault((record.system, record.task, record.split, record.seed), record)
            if abs(first.score - record.score) > 1e-3:
                log.warning("%s on %s has %.4f in one run and %.4f in %s", *_told(first, record), run)
    return list(kept.values())


def _told(first: Record, other: Record) -> tuple[str, str, float, float]:
    return first.system, first.task, first.score, other.score


def main(arguments: list[str]) -> None:
    """Entry point of ``distill compare``."""
    parser = argparse.ArgumentParser("distill compare", description="Put the probes of several runs into one report.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs that `distill test` probed alike")
    parser.add_argument("--report_file", type=Path, default=Path("compare.md"), help="Markdown; its other sections stay")
    parser.add_argument("--name", default="compare", help="of the section in it")
    compare(**vars(parser.parse_args(arguments)))
