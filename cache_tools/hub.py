"""Models and data sets of the Hugging Face hub, or from a folder by the same code; clear words when they are not there."""

import hashlib
import importlib.util
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises of a file that is none, or holds code
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from safetensors import SafetensorError
from torch import Tensor

from cache_tools.errors import CorpusError, TeacherError

PACKAGE = "package:"
UNREADABLE = (  # what libraries raise of a model that is not there, or of a file that holds something else
    *(OSError, RuntimeError, ValueError, KeyError, EOFError, ImportError, AttributeError, TypeError),
    *(UnpicklingError, SafetensorError),
)
WHERE = ("model", "tokenizer", "weights", "revision")  # arguments that say where content is; hashes say what it is


@cache
def stay_local() -> None:
    """Let the hub's libraries look into local folders alone where the hub cannot be reached: they would retry for a minute.

    They read this when they are imported, so it comes first.
    """
    if "HF_HUB_OFFLINE" in os.environ or getproxies():
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def locate(model: str) -> str:
    """A model's name with what stands for something else put in: environment variables, and installed packages.

    Args:
        model: a hub name, a folder, or ``package:NAME/FOLDER`` for a folder inside an installed Python package.

    Raises:
        TeacherError: when that package is not installed, or a variable is not set.
    """
    stay_local()
    if model.startswith(PACKAGE):
        name, _, inside = model.removeprefix(PACKAGE).partition("/")
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # a.b without a; no name at all
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise TeacherError(f"{model}: no package {name} is installed: pip install {name.replace('_', '-')}")
        return str(Path(next(iter(spec.submodule_search_locations))) / inside)
    expanded = os.path.expandvars(model)
    if "$" in expanded:
        raise TeacherError(f"{model}: an environment variable in it is not set: set it, or write the path out")
    return expanded


@contextmanager
def loading(model: str, folder: str, fetch: str = "", kept: str = "huggingface", file: str | None = None) -> Iterator[None]:
    """Turn what a library raises in this context, where it loads a model, into one error that says what to do.

    Args:
        model: its name.
        folder: what a local copy of it is called, for instance ``a folder that save_pretrained made``.
        fetch: what downloads it, where that is not ``hf download`` with its name.
        kept: the folder of ``~/.cache`` that downloads go to.
        file: the weights that were asked for: a file, or the library's name of them.

    Raises:
        TeacherError: when the model is not there, or ``file`` does not fit it.
    """
    try:
        yield
    except UNREADABLE as error:
        if file and Path(file).is_file():
            raise TeacherError(f"{file} does not fit {model}, or cannot be read: {first_line(error)}") from None
        name = f"{model} {file or ''}".strip()
        fetch = fetch or f"hf download {model}"
        raise TeacherError(
            f"cannot load {name!r}: it is neither on this machine nor available from the hub. Two ways: give the path of "
            f"{folder} instead of the name; or download it once on a machine with the network (`{fetch}`) and copy the "
            f"folder ~/.cache/{kept}. ({first_line(error)})"
        ) from None


def first_line(error: Exception) -> str:
    """What an error says first, with its kind."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def weights_file(path: str, way: str = "point WEIGHTS at the folder that has them") -> Path:
    """``path`` with environment variables expanded, as an absolute path to a file that exists.

    Raises:
        TeacherError: with what to set, or with the ``way`` to such a file.
    """
    expanded = os.path.expandvars(path)
    if "$" in expanded or ("${WEIGHTS}" in path and not os.environ.get("WEIGHTS")):
        raise TeacherError(f"{path}: a variable is not set; give the folder, as in `make cache ... WEIGHTS=folder`")
    if not os.path.isfile(expanded):
        raise TeacherError(f"no weights at {os.path.abspath(expanded)}: {way}")
    return Path(expanded).absolute()


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        TeacherError: when it is none.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise TeacherError(f"{path} is not a safetensors file: {error}") from None


def read_state(file: str | Path) -> Any:
    """The state of a network from a safetensors file or a checkpoint without pickled code."""
    import torch

    if str(file).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def from_pretrained(kind: str, name: str, **arguments: Any) -> Any:
    """Part of a transformers model, from a folder or the hub.

    Args:
        kind: the class that loads it, for instance ``AutoTokenizer``.
        name: a hub name, a folder that ``save_pretrained`` made, or ``package:NAME/FOLDER``.
        arguments: of that class's ``from_pretrained``.

    Raises:
        TeacherError: when there is no such model.
    """
    place = locate(name)
    import transformers

    with loading(name, "a folder that save_pretrained made"):
        return getattr(transformers, kind).from_pretrained(place, **arguments)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """A transformers tokenizer from a folder or the hub.

    Raises:
        TeacherError: when there is none.
    """
    return from_pretrained("AutoTokenizer", name, revision=revision)


def load_network(name: str, **arguments: Any) -> Any:
    """A transformers network to run as it is, float32; a pooler that its checkpoint lacks is taken off.

    Raises:
        TeacherError: when there is none, or its checkpoint lacks other weights: transformers would make them at random.
    """
    network, facts = from_pretrained("AutoModel", name, output_loading_info=True, **arguments)
    if any(key.startswith("pooler.") for key in facts["missing_keys"]):
        network.pooler = None
    if lacking := sorted(key for key in facts["missing_keys"] if not key.startswith("pooler.")):
        raise TeacherError(f"{name}: its checkpoint lacks {len(lacking)} weights of the network, for instance {lacking[0]}")
    return network.float()


def create_network(name: str, pretrained: bool) -> Any:
    """A transformers network to train, with the weights of its checkpoint or with random ones.

    Raises:
        TeacherError: when there is none.
    """
    if pretrained:
        return from_pretrained("AutoModel", name)
    config = from_pretrained("AutoConfig", name)
    from transformers import AutoModel

    return AutoModel.from_config(config)


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 of all that decides what a tokenizer gives."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) | {"truncation": None, "padding": None} if backend else tokenizer.get_vocab()
    content = json.dumps(state, sort_keys=True)  # every call sets those two anew
    return hashlib.sha256(content.encode()).hexdigest()


def read_dataset(name: str, config: str | None, split: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of a data set; images come encoded, as ``{"bytes": ..., "path": ...}``.

    Args:
        name: a folder that ``save_to_disk`` made, or a name on the hub.
        config: of a data set with several.
        split: which part.
        columns: those wanted.

    Raises:
        CorpusError: when it is not there, or lacks the split or a column.
    """
    stay_local()
    try:
        from datasets import Dataset, DatasetDict, Image, load_dataset, load_from_disk
        from datasets.exceptions import DatasetNotFoundError
    except ImportError:
        raise CorpusError("data sets of the hub need datasets: pip install 'quorum-distill[hub]'") from None
    try:
        found = load_from_disk(name) if Path(name).is_dir() else load_dataset(name, config, split=split)
    except (DatasetNotFoundError, OSError, ValueError, LookupError) as error:  # ConnectionError is an OSError
        if Path(name).is_dir():
            raise CorpusError(
                f"{name} is no folder that save_to_disk made, or it is damaged ({first_line(error)}): make it again, or "
                "give a folder of files to the corpus that reads files"
            ) from None
        raise CorpusError(
            f"cannot read data set {name!r}, split {split!r}: it is neither here nor to be had from the hub. Two ways: "
            "give a corpus of your own (CORPUS=folder or file), or load it once on a machine with the hub (`python -c "
            f"'from datasets import load_dataset; load_dataset(*{[name, *([config] if config else [])]})'`) and copy "
            f"the folder ~/.cache/huggingface. ({first_line(error)})"
        ) from None
    if isinstance(found, DatasetDict):
        if split not in found:
            raise CorpusError(f"{name} has no split {split!r}; it has: {', '.join(found)}")
        found = found[split]
    assert isinstance(found, Dataset)
    if lacking := [column for column in columns if column not in found.column_names]:
        raise CorpusError(f"{name}: no column {', '.join(lacking)}; its columns are: {', '.join(found.column_names)}")
    found = found.select_columns(columns)
    for column in columns:
        if isinstance(found.features[column], Image):
            found = found.cast_column(column, Image(decode=False))
    yield from found


def as_id(row: dict[str, Any], column: str | None) -> str:
    """A row's id as text; empty where the row or the corpus has none."""
    return "" if column is None or row[column] is None else str(row[column])
