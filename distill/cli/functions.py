"""``distill average | embed | export | predict | mteb | specialise``: commands that are a function each."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from jsonargparse import auto_cli

from cache_tools import CommandParser
from distill.cli.source import declared

log = logging.getLogger(__name__)

FUNCTIONS = {
    "average": "distill.export.average:average",
    "embed": "distill.export.table:embed",
    "export": "distill.export.write:export",
    "predict": "distill.export.write:predict",
    "mteb": "distill.evaluation.mteb:mteb",
    "specialise": "distill.study.specialise:specialise",
}

NEXT = {  # command -> what a user does next, with the command's arguments in it; embed and mteb are the end of a way
    "average": "distill test --ckpt_path {run}/checkpoints/average.ckpt --probe.score_on validation",
    "export": "distill embed --student {out} --input FILE --out embeddings.parquet",
    "predict": "distill fit --config FILE --data.corpus {corpus} --data.teachers '[{name}]'; only then it is a teacher",
    "specialise": "name it in a configuration of a cache, with the class cache_tools.teachers.specialist.Specialist and "
    "weights: {out}; then distill-cache build --config FILE",
}


def main(arguments: list[str]) -> None:
    """Run one of ``FUNCTIONS``.

    Args:
        arguments: its name, and the words that follow it on the command line.
    """
    command, *rest = arguments
    function = told(declared(FUNCTIONS[command]), NEXT.get(command, ""))
    auto_cli(function, args=rest, as_positional=False, prog=f"distill {command}", parser_class=CommandParser)


def told(function: Callable[..., None], following: str) -> Callable[..., None]:
    """The same function, which says at its end what to do next.

    Args:
        function: of a command.
        following: the next command, with names of arguments in braces; RUN stands for a ``run`` that was not given.
    """

    @wraps(function)
    def run(**given: Any) -> None:
        function(**given)
        if following:
            named = {name: name.upper() if value is None else value for name, value in given.items()}
            log.info("next: %s", following.format(**named))

    return run
