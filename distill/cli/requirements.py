"""What a script may require of the verdict of ``distill test`` and ``distill compare``."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser
from rich.console import Console

from distill.records import MARGIN

if TYPE_CHECKING:  # reports load much that a fit does not need
    from distill.report.answer import Answer

UNMET = 3  # status of a command whose verdict is not the required one


def add_requirements(parser: ArgumentParser) -> None:
    """Add ``--require`` and ``--margin`` to a command."""
    required = "end with status 3 unless these verdicts hold: beats:best-teacher, equal:concatenated ..."
    parser.add_argument("--require", nargs="*", type=str, default=[], help=required)
    parser.add_argument(
        "--margin", type=float, default=MARGIN, help="a student whose score is lower by less is called equal"
    )


def check(requirements: Sequence[str]) -> None:
    """Refuse what no verdict can be, before anything is computed.

    Raises:
        ConfigError: what was expected.
    """
    from distill.report.answer import check_requirements

    check_requirements(requirements)


def require(requirements: Sequence[str], answers: Sequence["Answer"]) -> None:
    """End the program with status 3 if a verdict is not what was required, and say which one."""
    from distill.report.answer import unmet

    if sentences := unmet(requirements, answers):
        Console(stderr=True).print("\n".join(sentences), markup=False, highlight=False)
        sys.exit(UNMET)
