"""The folder of an exported student: where a name finds it, and its ``config.json``. Nothing here imports torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_tools import ConfigError, suggestion

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
HERE = "{export}"  # stands for the folder in paths of its config.json
NEEDED = ("student", "dim", "inputs", "teachers", "weights_sha256")

RELEASED = Path(__file__).parents[1] / "released"


def released() -> list[Path]:
    """The folders of the students that come with this package, by name."""
    return sorted(path.parent for path in RELEASED.glob(f"*/{CONFIG}"))


def find(student: str | Path) -> Path:
    """The folder of an export.

    Args:
        student: the folder; or, where there is no such folder, the name of a released student.

    Raises:
        ConfigError: when it is neither.
    """
    folder = Path(student)
    if folder.exists():
        return folder
    names = {path.name: path for path in released()}
    if str(student) not in names:
        raise ConfigError(
            f"no export at {folder.absolute()}: expected {CONFIG} there, or the name of a released student "
            f"({', '.join(names)}){suggestion(str(student), names)}; make one with `distill export`"
        )
    return names[str(student)]


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of an export.

    Raises:
        ConfigError: when there is none that this version reads.
    """
    path = folder / CONFIG
    again = "export the student again with `distill export`"
    try:
        if not path.is_file():  # a pipe, for instance, would never end
            raise FileNotFoundError
        config = json.loads(path.read_text())
    except OSError:
        raise ConfigError(
            f"no export at {folder.absolute()}: expected {CONFIG} there; make one with `distill export`"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}): {again}") from None
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{path} has format version {version}, this version reads {FORMAT_VERSION}: upgrade quorum-distill, or {again}"
        )
    if lacking := [key for key in NEEDED if key not in config]:
        raise ConfigError(f"{path} lacks {', '.join(lacking)}: {again}")
    return dict(config)


def replaced(content: Any, old: str, new: str) -> Any:
    """``content``, as JSON has it, with ``old`` replaced by ``new`` in every text."""
    if isinstance(content, Mapping):
        return {key: replaced(value, old, new) for key, value in content.items()}
    if isinstance(content, list):
        return [replaced(value, old, new) for value in content]
    return content.replace(old, new) if isinstance(content, str) else content
