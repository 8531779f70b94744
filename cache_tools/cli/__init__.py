"""The command ``distill-cache``: shows the help, runs the command that was named, and says errors in words."""

import pkgutil
import sys

from jsonargparse import auto_cli

from cache_tools.arguments import CommandParser, choose_command, read_configurations, with_packaged
from cache_tools.console import start_console
from cache_tools.errors import QuorumError, install_hint
from cache_tools.interrupt import Interruptible

HELP = """usage: distill-cache COMMAND [--KEY VALUE ...]

  build    run every teacher and featuriser once over a corpus: --config configs/cache/mol.yaml
           continue a stopped build: the same command
  list     show every column of a cache: --cache cache
  verify   check every byte of a cache: --cache cache
  import   make a column from embeddings in a file: --corpus cache/mol --name NAME --embeddings FILE
  export   write a teacher's column to a file: --column cache/mol/teachers/maccs --to FILE
  push     copy a corpus to an object store, to train from there: --corpus cache/mol --to s3://BUCKET/cache/mol
  sample   show random rows of a teacher's column; with --check, embed them again: --column cache/mol/teachers/maccs

Every key of a command: distill-cache COMMAND --help; the version: distill-cache --version"""

COMMANDS = {
    "build": "cache_tools.cli.build:build",
    "list": "cache_tools.cli.check:list_",
    "verify": "cache_tools.cli.check:verify",
    "import": "cache_tools.cli.transfer:import_",
    "export": "cache_tools.cli.transfer:export",
    "push": "cache_tools.cli.push:push",
    "sample": "cache_tools.cli.sample:sample",
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``distill-cache``.

    Args:
        arguments: the words after ``distill-cache``; those of the command line when not given.
    """
    arguments = with_packaged(sys.argv[1:] if arguments is None else arguments, "cache")
    command = choose_command(HELP, COMMANDS, arguments)
    with Interruptible("interrupted: finished shards are kept, the same command goes on from there"):
        start_console(arguments)
        try:
            list(read_configurations(arguments))  # a missing or broken file is told with its line
            function = pkgutil.resolve_name(COMMANDS[command])
            prog = f"distill-cache {command}"
            auto_cli(function, args=arguments[1:], prog=prog, as_positional=False, parser_class=CommandParser)
        except QuorumError as error:
            sys.exit(f"error: {error}")
        except ModuleNotFoundError as error:
            if not (hint := install_hint(str(error))):
                raise
            sys.exit(f"error: {error}{hint}")
