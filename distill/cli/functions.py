"""``distill embed | export | predict | mteb | specialise``: commands that are a function each."""

from jsonargparse import auto_cli

from cache_tools import CommandParser
from distill.cli.source import declared

FUNCTIONS = {
    "embed": "distill.export.table:embed",
    "export": "distill.export.write:export",
    "predict": "distill.export.write:predict",
    "mteb": "distill.evaluation.mteb:mteb",
    "specialise": "distill.study.specialise:specialise",
}


def main(arguments: list[str]) -> None:
    """Run one of ``FUNCTIONS``.

    Args:
        arguments: its name, and the words that follow it on the command line.
    """
    command, *rest = arguments
    prog = f"distill {command}"
    auto_cli(declared(FUNCTIONS[command]), args=rest, as_positional=False, prog=prog, parser_class=CommandParser)
