"""The folder of an exported student: where a name finds it, and its ``config.json``. Nothing here imports torch."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cache_tools import ConfigError, suggestion

FORMAT_VERSION = 1
Dtype = Literal["float32", "float16", "int8"]  # of weights
CONFIG, WEIGHTS = "config.json", "model.safetensors"
HERE = "{export}"  # stands for the folder in paths of its config.json
NEEDED = ("student", "dim", "inputs", "teachers", "weights_sha256")

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.md"]  # of these, vocab.txt and spiece.model are tokenizers'

RELEASED = Path(__file__).parents[1] / "released"


def released() -> list[Path]:
    """The folders of the students that come with this package, by name."""
    return sorted(path.parent for path in RELEASED.glob(f"*/{CONFIG}"))


def find(student: str | Path) -> Path:
    """The folder of an export.

    Args:
        student: the folder; or, where there is none, the name of a released student, or ``user/name`` of an export on the
            Hugging Face hub, which is downloaded.

    Raises:
        ConfigError: when it is none of these.
    """
    folder = Path(student)
    if folder.exists():
        return folder
    names = {path.name: path for path in released()}
    if HUB_NAME.fullmatch(str(student)):
        return _download(str(student))
    if str(student) not in names:
        raise ConfigError(
            f"no export at {folder.absolute()}: expected {CONFIG} there, or the name of a released student "
            f"({', '.join(names)}){suggestion(str(student), names)}; make one with `distill export`"
        )
    return names[str(student)]


def _download(name: str) -> Path:
    """An export of the hub: its JSON, tensors and card alone, so that nothing in it could be code."""
    from cache_tools import first_line, stay_local

    stay_local()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=DOWNLOADED))
    except _hub_errors() as error:
        raise ConfigError(
            f"no export at {Path(name).absolute()}: expected {CONFIG} there; make one with `distill export`. The Hugging "
            f"Face hub gives none of this name, either ({first_line(error)})"
        ) from None


def push_to_hub(folder: Path, name: str, private: bool = False) -> str:
    """Upload an export to the Hugging Face hub; `hf auth login` says first who you are.

    Args:
        folder: of the export.
        name: ``user/name``, made when it is not there.
        private: a new one is seen by its owner alone.

    Returns:
        The address of the upload. ``distill.load_student(name)`` loads it.

    Raises:
        ConfigError: when the hub refuses it.
    """
    from cache_tools import first_line, stay_local

    stay_local()
    from huggingface_hub import HfApi

    read_config(folder)
    try:
        HfApi().create_repo(name, private=private, exist_ok=True)
        return str(HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Student of quorum-distill"))
    except _hub_errors() as error:
        raise ConfigError(f"the hub does not take {folder} as {name}: {first_line(error)}") from None


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises: errors of its HTTP library, of the system, and about names."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, ValueError)


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
