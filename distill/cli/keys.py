"""Refuse a wrong key of ``distill fit``, ``validate`` or ``test`` before torch and Lightning are imported."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import yaml

from cache_tools import CommandParser, read_configurations, suggestion
from distill.cli.source import parameters

SECTIONS = {  # key -> the class whose parameters are the keys below it
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "model": "distill.training.distiller.Distiller",
    "data": "distill.data.module.DistillData",
    "probe": "distill.evaluation.protocol.Evaluation",
}

KEYS = {  # others, of DistillCLI, of requirements.py and of Lightning
    *("help", "config", "print_config", "seed_everything", "run", "checkpoint_every", "monitor", "conflict"),
    *("require", "margin", "optimizer", "lr_scheduler", "ckpt_path", "weights_only", "verbose"),
}

OF_A_CLASS = ("class_path", "init_args", "dict_kwargs", "help")


class Given(NamedTuple):
    """A key that the user wrote."""

    key: str  # such as model.student.width
    value: str  # empty when it is not a word
    place: str  # file and line


def check_keys(arguments: Sequence[str]) -> None:
    """End the program when a key is wrong, on the command line or in a configuration.

    The keys of a class that is named by ``class_path`` are checked where its source lists them. jsonargparse checks all
    that is not checked here, when the classes are imported.

    Args:
        arguments: ``fit``, ``validate`` or ``test``, and the words that follow it.

    Raises:
        ConfigError: when a configuration is missing or is no YAML.
    """
    parser = CommandParser(f"distill {arguments[0]}")
    classes = dict(SECTIONS)  # key -> class of its value; a later key names another class
    for key, value, place in _given(arguments):
        section = key.partition(".")[0]
        if section not in KEYS | SECTIONS.keys():
            known = KEYS | {f"{name}.{inner}" for name, path in SECTIONS.items() for inner in parameters(path) or ()}
            parser.error(f"{place}no key {section!r}{suggestion(section, known | SECTIONS.keys())}")
        owner, option = _owner(key, classes)
        options = parameters(classes[owner]) if option and option not in OF_A_CLASS else None
        if options is not None and option not in options:
            if owner in SECTIONS:
                full = f"{owner}.{option}"
                parser.error(f"{place}no key {full!r}{suggestion(full, [f'{owner}.{name}' for name in options])}")
            wrong = f"{place}Option {option!r} is not accepted by {classes[owner]}{suggestion(option, options)}"
            parser.error(f"{wrong}\n  Its options: {parser.prog} --{owner}.help {classes[owner]}")
        named = key.removesuffix(".class_path")
        if key != named or (value and named in classes and named not in SECTIONS):
            classes = {other: path for other, path in classes.items() if not f"{other}.".startswith(f"{named}.")}
            classes[named] = value


def _owner(key: str, classes: dict[str, str]) -> tuple[str, str]:
    """The deepest key of a class around ``key``, and the class's option in it; both are empty when there is none."""
    parts = key.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        if (owner := ".".join(parts[:depth])) in classes:
            return owner, parts[depth]
    return "", ""


def _given(arguments: Sequence[str]) -> Iterator[Given]:
    """Every key in the order in which it counts."""
    for word, following in zip(arguments[1:], [*arguments[2:], ""], strict=False):
        key, equals, value = word.partition("=")
        if key in ("--config", "-c"):
            for path, tree in read_configurations([word, following]):
                yield from _within(tree, "", str(path))
        elif key.startswith("--"):
            own = value if equals else "" if following.startswith("--") else following
            yield Given(_plain(key[2:].rstrip("+")), own, "")


def _plain(key: str) -> str:
    return key.replace(".init_args.", ".")


def _within(node: yaml.Node | None, above: str, path: str) -> Iterator[Given]:
    """Every key of a configuration, a class's path before its other keys."""
    if isinstance(node, yaml.MappingNode):
        for key, value in sorted(node.value, key=lambda pair: pair[0].value != "class_path"):
            if key.value != "<<":
                name = f"{above}{key.value}"
                scalar = value.value if isinstance(value, yaml.ScalarNode) and key.value == "class_path" else ""
                yield Given(_plain(name), scalar, f"{path}, line {key.start_mark.line + 1}: ")
                yield from _within(value, f"{name}.", path)
