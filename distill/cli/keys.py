"""Refuse a wrong key of ``distill fit``, ``validate`` or ``test`` before torch and Lightning are imported."""

from collections.abc import Iterator, Sequence

import yaml

from cache_tools import CommandParser, read_configurations, suggestion
from distill.cli.source import parameters

SECTIONS = {  # key -> the class whose parameters are the keys below it
    "trainer": "lightning.pytorch.trainer.trainer:Trainer",
    "model": "distill.training.distiller:Distiller",
    "data": "distill.data.module:DistillData",
    "probe": "distill.evaluation.protocol:Evaluation",
}

KEYS = {  # others, of DistillCLI, of requirements.py and of Lightning
    *("help", "config", "print_config", "seed_everything", "run", "checkpoint_every", "monitor", "conflict"),
    *("require", "margin", "optimizer", "lr_scheduler", "ckpt_path", "weights_only", "verbose"),
}


def check_keys(arguments: Sequence[str]) -> None:
    """End the program when a key of the first two levels is wrong, on the command line or in a configuration.

    Deeper keys belong to the classes that a configuration names; jsonargparse checks these when they are imported.

    Args:
        arguments: ``fit``, ``validate`` or ``test``, and the words that follow it.

    Raises:
        ConfigError: when a configuration is missing or is no YAML.
    """
    below = {f"{section}.{name}" for section, path in SECTIONS.items() for name in [*parameters(path), "help"]}
    for place, key in _keys(arguments):
        section, _, name = key.partition(".")
        if section not in KEYS and (name or section not in SECTIONS) and key not in below:
            known = KEYS | SECTIONS.keys() | below
            CommandParser(f"distill {arguments[0]}").error(f"{place}no key {key!r}{suggestion(key, known)}")


def _keys(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Place and key, at most two levels deep, of every value that is given."""
    for path, tree in read_configurations(arguments):
        for node, value in tree.value if isinstance(tree, yaml.MappingNode) else ():
            within = value.value if isinstance(value, yaml.MappingNode) else ()
            for key in [node, *(inner for inner, _ in within if inner.value != "<<")]:
                name = node.value if key is node else f"{node.value}.{key.value}"
                yield f"{path}, line {key.start_mark.line + 1}: ", name
    for word in arguments[1:]:
        if word.startswith("--"):
            yield "", ".".join(word[2:].partition("=")[0].rstrip("+").split(".")[:2])
