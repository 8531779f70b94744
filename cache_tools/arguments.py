"""Read the words of a command line: its command, its configurations, and keys, with a suggestion for a wrong one."""

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from inspect import signature
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from textwrap import wrap
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from rich.console import Console

from cache_tools import __version__
from cache_tools.console import CONFIG_KEYS, configurations
from cache_tools.errors import ConfigError, install_hint

PACKAGED = Path(__file__).with_name("configs")


def choose_command(page: str, commands: Collection[str], arguments: Sequence[str]) -> str:
    """The command that was named; ends the program when there is none, or when help or the version were asked for.

    Args:
        page: the list of all commands.
        commands: their names.
        arguments: of the program.

    Example:
        >>> choose_command("usage: ...", ["build", "list"], ["list", "--cache", "cache"])
        'list'
    """
    command = arguments[0] if arguments else "--help"
    if command in commands:
        return command
    if command == "--version":
        Console(highlight=False).print(f"quorum-distill {__version__}")
        sys.exit()
    known = command in ("-h", "--help")
    console = Console(highlight=False, soft_wrap=True, stderr=not known)
    console.print(fitted(page, console.width), markup=False)
    sys.exit(0 if known else f"\nerror: no command {command!r}{suggestion(command, commands)}")


def fitted(page: str, width: int) -> str:
    """A list of commands whose descriptions go on below themselves, where a line is longer than ``width``.

    Example:
        >>> print(fitted("  fit   train a student of many teachers", 30))
          fit   train a student of
                many teachers
    """
    lines = []
    for line in page.splitlines():
        name = re.match(r"  \S+ {2,}| +|", line)
        indent = " " * len(name[0] if name else "")
        lines += wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
    return "\n".join(lines)


def suggestion(word: str, known: Collection[str]) -> str:
    """Words to add to an error about an unknown name; empty when no known one is like it.

    Example:
        >>> suggestion("max_epochs", ["trainer.max_epochs", "data.batch_size"])
        '; did you mean trainer.max_epochs?'
        >>> suggestion("data.batchsize", ["trainer.max_epochs", "data.batch_size"])
        '; did you mean data.batch_size?'
        >>> suggestion("colour", ["trainer.max_epochs", "data.batch_size"])
        ''
    """
    alike = matching(word, known)
    return f"; did you mean {' or '.join(alike)}?" if alike else ""


def matching(word: str, known: Collection[str]) -> list[str]:
    """Known names that end in ``.word`` or begin with ``word``; else at most two that are spelt nearly like it.

    Of ``section.name`` the name alone is compared, with those of the section.
    """
    if whole := [name for name in known if name.rpartition(".")[2] == word or name.startswith(word)]:
        return sorted(whole)[:3]
    section, dot, end = word.rpartition(".")
    ends = {name.removeprefix(section + dot): name for name in sorted(known) if name.startswith(section + dot)}
    return [ends[match] for match in get_close_matches(end, ends, n=2, cutoff=0.65)]


def with_packaged(arguments: Sequence[str], inside: str = "") -> list[str]:
    """The words of a command; a ``--config NAME`` that names no file names one that comes with this package.

    Args:
        arguments: of the program.
        inside: the folder of ``configs`` in which names are looked up.

    Example:
        >>> with_packaged(["build", "--config", "mol", "--name", "mol"], "cache")[1:]
        ['--config', '...configs/cache/mol.yaml', '--name', 'mol']
        >>> with_packaged(["fit", "--config=my.yaml"])
        ['fit', '--config=my.yaml']
    """
    words = list(arguments)
    for place, (before, word) in enumerate(pairwise(["", *arguments])):
        key, equals, name = word.rpartition("=")
        packaged = PACKAGED / inside / f"{name}.yaml"
        named = (key if equals else before) in CONFIG_KEYS and re.fullmatch(r"[\w/-]+", name)
        if named and not Path(name).is_file() and packaged.is_file():
            words[place] = f"{key}{equals}{packaged}"
    return words


def read_configurations(arguments: Sequence[str]) -> Iterator[tuple[Path, yaml.Node | None]]:
    """Every file that ``--config`` names, as a tree whose nodes know their lines.

    Raises:
        ConfigError: when one is missing, or is no YAML; the line is named.
    """
    for value in configurations(arguments):
        path = Path(value)
        if "{" in value or "\n" in value:  # a configuration itself, not a file
            continue
        if not path.is_file():
            packaged = {} if path.suffix else {other.stem: other.stem for other in PACKAGED.rglob("*.yaml")}
            names = packaged | {other.stem: str(other) for other in path.parent.glob(f"*{path.suffix}")}
            alike = " or ".join(names[stem] for stem in matching(path.stem, names))
            raise ConfigError(f"no file {path}, which --config names{f'; did you mean {alike}?' if alike else ''}")
        try:
            yield path, yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            begin = f" ({error.context} of line {error.context_mark.line + 1})" if error.context_mark else ""
            line = error.problem_mark.line + 1 if error.problem_mark else "?"
            raise ConfigError(f"{path}, line {line}: this is no YAML: {error.problem}{begin}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: this is no text in UTF-8: {error}") from None


class PlainHelp(DefaultHelpFormatter):
    """Shows the docstrings of arguments without their markup."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return super()._split_lines(re.sub(r":[a-z]+:`(?:~[\w.]*\.)?([^`]+)`", r"\1", text), width)


class CommandParser(ArgumentParser):
    """A parser of jsonargparse that takes whole keys only, and says which key or class was probably meant.

    Args:
        options: of :class:`jsonargparse.ArgumentParser`.

    Example:
        >>> parser = CommandParser("example")
        >>> _ = parser.add_argument("--check", type=bool, default=False)
        >>> parser.parse_args(["--check"]).check
        True
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, allow_abbrev=False, formatter_class=PlainHelp, **options)

    def add_argument(self, *arguments: Any, **options: Any) -> Any:
        """The same as of any parser; ``--check`` stands for ``--check true``."""
        action = super().add_argument(*arguments, **options)
        if options.get("type") is bool:
            action.nargs, action.const = "?", True
        return action

    def print_usage(self, file: Any = None) -> None:
        """Nothing: a long list of keys before an error hides the error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program with the message in words that a user typed, and what was probably meant."""
        message = re.sub(r"^  - Expected a path but .*\n", "", message, flags=re.MULTILINE)
        message = re.sub(r"Namespace\(class_path='([^']+)'(?:, init_args=Namespace\((.*)\))?\)", r"\1(\2)", message)
        message = re.sub(r"unrecognized arguments: --([\w.+-]+).*", r"no key '\1'", message, flags=re.DOTALL)
        parser = getattr(ex, "subcommand_parser", None) or self
        super().error(message + _meant(message, parser), ex)


def _meant(message: str, parser: ArgumentParser) -> str:
    """What to add to jsonargparse's message about a wrong key, a wrong option of a class, or a wrong class."""
    if hint := install_hint(message):
        return hint
    if key := re.search(r"(?:no key|not accept option) '([\w.]+)\+?'", message):
        return suggestion(key[1], {option.strip("-+") for option in parser._option_string_actions})
    found = re.search(r"class_path '([\w.]+)'|dot import path string: ([\w.]+)|Got value: ([\w.]+)\(", message)
    class_path = found[found.lastindex or 0] if found else ""
    if class_path and (option := re.search(r"Option '(\w+)' is not accepted", message)):
        key = re.search(r'Parser key "([\w.]+)":', message)
        options = f"\n  Its options: {parser.prog.replace(' [options]', '')} --{key[1]}.help {class_path}" if key else ""
        return suggestion(option[1], signature(resolve_name(class_path)).parameters) + options
    if class_path and re.search(r"No module named|no longer there|has no attribute|dot import path", message):
        known = _classes()
        alike = [known[name] for name in matching(class_path.rpartition(".")[2], known)]
        return f"; did you mean {' or '.join(alike)}?" if alike else ""
    return ""


def _classes() -> dict[str, str]:
    """Name -> import path of the classes of the two packages that are loaded, or stand at their front door."""
    paths = {name: f"cache_tools.{name}" for name in sys.modules["cache_tools"].__all__}
    for module in [module for name, module in sys.modules.items() if re.match(r"(cache_tools|distill)\.", name)]:
        for name, value in vars(module).items():
            if isinstance(value, type) and not name.startswith("_") and value.__module__ == module.__name__:
                paths[name] = f"{module.__name__}.{name}"
    return paths
