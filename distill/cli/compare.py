"""``distill compare``: put the probes of several runs, or the methods of several studies, into one report."""

from pathlib import Path

from jsonargparse import ArgumentParser

from distill.report.compare import compare, together


def main(arguments: list[str]) -> None:
    """Entry point of ``distill compare``."""
    parser = ArgumentParser("distill compare", description="Put the probes of several runs into one report.")
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs that `distill test` probed alike")
    parser.add_argument(
        "--studies",
        nargs="+",
        type=Path,
        default=[],
        help="instead: folders of reports of `distill study`, their methods in one",
    )
    parser.add_argument("--out", type=Path, default=Path("compare"), help="a folder for report.html, report.md and figures")
    given = parser.parse_args(arguments)
    if bool(given.runs) == bool(given.studies):
        parser.error("name runs or --studies")
    if given.studies:
        together(given.studies, given.out)
    else:
        compare(given.runs, given.out)
