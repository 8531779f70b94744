"""The configurations that come with the package: recipes of students, and groups of teachers."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from cache_tools import PACKAGED, ConfigError, Featuriser, Teacher, read_configurations, suggestion, with_packaged
from distill.students.base import Student


class Group(NamedTuple):
    """Teachers that are built together, and the columns that students of them read.

    Attributes:
        teachers: name -> ``class_path`` and ``init_args``.
        inputs: the same of the students' inputs.
    """

    teachers: dict[str, Any]
    inputs: dict[str, Any]


def recipe_of(student: str | Path | Student) -> Path:
    """The configuration of a student's fit.

    Args:
        student: the name of a recipe, a configuration, or a student, for which the recipe of its modality is taken.

    Raises:
        ConfigError: when there is none.
    """
    if isinstance(student, Student):
        reading = {name: title.partition("-")[0] for title, group in groups().items() for name in group.inputs}
        if student.input not in reading:
            raise ConfigError(
                f"no recipe has a student that reads the input {student.input}: name a configuration instead of a student"
            )
        student = reading[student.input]
    _, path = with_packaged(["--config", str(student)])
    list(read_configurations(["--config", path]))
    return Path(path)


def groups() -> dict[str, Group]:
    """Name -> group of teachers."""
    found = {}
    for path in sorted((PACKAGED / "cache").glob("*.yaml"), key=lambda path: path.stem):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[path.stem] = Group(content.get("teachers") or {}, content.get("inputs") or {})
    return found


def chosen_group(wanted: str | Sequence[str] | None, recipe: Path) -> Group:
    """The teachers that are called by name, with the inputs of the group in which the first one stands.

    Args:
        wanted: the name of a group, or names of teachers; the recipe's group when not given.
        recipe: whose group is looked at first: the one that its comment tells to build, or of its corpus's name.

    Raises:
        ConfigError: when there is no teacher of that name, or the recipe has no group; the message lists all.
    """
    known, text = groups(), recipe.read_text(encoding="utf-8")
    told = re.search(r"TEACHERS=([\w-]+)", text)
    own = told[1] if told else Path(((yaml.safe_load(text) or {}).get("data") or {}).get("corpus") or "").name
    if wanted is None or isinstance(wanted, str):
        wanted = own if wanted is None else wanted
        if wanted in known:
            return known[wanted]
        wanted = [wanted]
    ordered = [*([known[own]] if own in known else []), *known.values()]
    holding = {name: group for group in reversed(ordered) for name in group.teachers}
    if unknown := [name for name in wanted if name not in holding]:
        alike = suggestion(unknown[0], holding) or "."
        lines = [f"{title}: {', '.join(group.teachers)}" for title, group in known.items()]
        raise ConfigError(f"no teacher or group is called {unknown[0]!r}{alike} There are:\n  " + "\n  ".join(lines))
    return Group({name: holding[name].teachers[name] for name in wanted}, holding[wanted[0]].inputs)


def instantiated(group: Group) -> tuple[Mapping[str, Teacher], Mapping[str, Featuriser]]:
    """The objects of a group.

    Raises:
        ConfigError: when an object cannot be made.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--teachers", type=dict[str, Teacher])
    parser.add_argument("--inputs", type=dict[str, Featuriser])
    try:
        made = parser.instantiate(parser.parse_object(group._asdict()))
    except (ArgumentError, TypeError) as error:
        raise ConfigError(" ".join(str(error).split())[:400]) from None
    return made.teachers, made.inputs


def words_of(options: Mapping[str, Any]) -> Iterator[str]:
    """Words of the command line for keys with their values.

    >>> list(words_of({"trainer.max_epochs": 3, "data.teachers": ["maccs"]}))
    ['--trainer.max_epochs=3', '--data.teachers=["maccs"]']
    """
    for key, value in options.items():
        yield f"--{key}={value if isinstance(value, str | Path) else json.dumps(value)}"
