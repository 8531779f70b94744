"""``distill compare``: put the probes of several runs, or the scores of studies, into one report."""

import logging
from pathlib import Path

from cache_tools import CommandParser
from distill.cli.requirements import add_requirements, check, require
from distill.report.compare import compare_runs, compare_studies

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Entry point of ``distill compare``.

    Args:
        arguments: folders of runs that `distill test` probed by the same tasks, splits and seeds; or ``--studies`` and
            folders of reports of `distill study`, of which scores.csv is read; ``--student``, a name, if the runs are fits
            of one student with several seeds; ``--out``, the folder of the new report;
            ``--require`` and ``--margin``, see :mod:`distill.cli.requirements`.
    """
    parser = CommandParser("distill compare", description="Put the probes of several runs, or of studies, into one report.")
    parser.add_argument(
        "runs", nargs="*", type=Path, default=[], help="folders of runs that `distill test` probed by the same tasks"
    )
    one = "the name of the one student of which the runs are fits with several seeds"
    parser.add_argument("--student", default=None, help=one)
    studies = "instead of runs: folders of reports of `distill study`, whose scores.csv is read; one alone is drawn in full"
    parser.add_argument("--studies", nargs="+", type=Path, default=[], help=studies)
    parser.add_argument("--out", type=Path, default=Path("compare"), help="a folder for report.html, report.md and figures")
    add_requirements(parser)
    given = parser.parse_args(arguments)
    check(given.require)
    if bool(given.runs) == bool(given.studies):
        parser.error("name runs or --studies")
    if given.studies and given.student:
        parser.error("--student is a name for runs, not for --studies")
    if given.studies:
        answers = compare_studies(given.studies, given.out, given.margin)
    else:
        answers = compare_runs(given.runs, given.out, given.margin, given.student)
        log.info("next: distill export --ckpt_path %s/checkpoints/best.ckpt --out FOLDER, or another run", given.runs[0])
    require(given.require, answers)
