"""``distill-cache build | list | verify | import | export | sample``; a command's modules are imported when it runs."""

import pkgutil
import sys
from typing import Any

import jsonargparse

from cache_tools.console import start_console
from cache_tools.errors import QuorumError
from cache_tools.interrupt import Interruptible

COMMANDS = {
    "build": "cache_tools.cli.build:build",
    "list": "cache_tools.cli.check:list_",
    "verify": "cache_tools.cli.check:verify",
    "import": "cache_tools.cli.transfer:import_",
    "export": "cache_tools.cli.transfer:export",
    "sample": "cache_tools.cli.sample:sample",
}


class _Parser(jsonargparse.ArgumentParser):
    """Lets ``--check`` stand for ``--check true``."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        action = super().add_argument(*args, **kwargs)
        if kwargs.get("type") is bool:
            action.nargs, action.const = "?", True
        return action


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``distill-cache``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with Interruptible("interrupted: finished shards are kept, the same command goes on from there"):
        start_console(arguments)
        command = arguments[:1]
        names = command if command and command[0] in COMMANDS else COMMANDS  # `--help` shows all of them
        try:
            jsonargparse.auto_cli(
                {name: pkgutil.resolve_name(COMMANDS[name]) for name in names},
                args=arguments,
                prog="distill-cache",
                as_positional=False,
                parser_class=_Parser,
            )
        except QuorumError as error:
            sys.exit(f"error: {error}")
