"""Read a checkpoint of a fit, and refuse what is none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from cache_tools import UNREADABLE, ConfigError, first_line


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ``distill fit``; no code in the file is run, and tensors stay on disk until they are used.

    Raises:
        ConfigError: when it is missing, damaged, or of another program.
    """
    if not path.is_file():
        raise ConfigError(
            f"no checkpoint at {path.absolute()}: expected RUN/checkpoints/best.ckpt or last.ckpt of a `distill fit`"
        )
    if not is_zipfile(path):
        raise ConfigError(f"{path} is no checkpoint of `distill fit`, or was cut off: it is no archive of torch")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        known = {"epoch", "global_step"} <= content.keys() and any(
            name.startswith("student.") for name in content["state_dict"]
        )
    except (*UNREADABLE, IndexError) as error:
        raise ConfigError(f"{path} is no checkpoint of `distill fit`, or is damaged: {first_line(error)}") from None
    if not known:
        raise ConfigError(
            f"{path} is a checkpoint of another program, without a student: expected RUN/checkpoints/best.ckpt or "
            "last.ckpt of a `distill fit`"
        )
    return content


def student_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of the student in a checkpoint."""
    state = checkpoint["state_dict"]
    return {name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")}
