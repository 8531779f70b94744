"""``distill compare``: what `distill test` measured of several runs, side by side."""

import argparse
from pathlib import Path

from rich.console import Console

from cache_tools.errors import ConfigError
from distill import report, scores
from distill.results import Results


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
        Console().print(scores.table(found, f"{split} split"))
    Console().print(f"written: {out}/report.html, report.md")


def main(arguments: list[str]) -> None:
    """Entry point of ``distill compare``."""
    parser = argparse.ArgumentParser("distill compare", description="Put the probes of several runs into one report.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs that `distill test` probed alike")
    parser.add_argument("--out", type=Path, default=Path("compare"), help="a folder for report.html, report.md and figures")
    compare(**vars(parser.parse_args(arguments)))
