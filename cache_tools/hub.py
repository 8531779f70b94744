"""Find and load models, from a folder or from the Hugging Face hub, with clear errors when that fails."""

import hashlib
import importlib.util
import itertools
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises of a file that is none, or holds code
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from safetensors import SafetensorError
from torch import Tensor

from cache_tools.errors import TeacherError

PACKAGE = "package:"
UNREADABLE = (  # what libraries raise when a model is missing, or when a file holds something else
    *(OSError, RuntimeError, ValueError, KeyError, EOFError, ImportError, AttributeError, TypeError),
    *(UnpicklingError, SafetensorError),
)
WHERE = ("model", "tokenizer", "weights", "revision")  # arguments that say where a model lies; hashes say what it is


@cache
def stay_local() -> None:
    """Set the hub's libraries to offline mode when the hub cannot be reached: otherwise they retry for a minute.

    They read the setting when they are imported, so call this first.
    """
    if "HF_HUB_OFFLINE" in os.environ or getproxies():
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def locate(model: str) -> str:
    """A model's name with environment variables and ``package:`` replaced by what they stand for.

    Args:
        model: a hub name, a folder, or ``package:NAME/FOLDER`` for a folder inside an installed Python package.

    Raises:
        TeacherError: when that package is not installed, a variable is not set, or a folder holds a pipe or a device, which
            a library would read for ever.
    """
    place = _expanded(model)
    folder = Path(place.removeprefix("local-dir:"))
    if folder.is_dir():
        for path in itertools.chain(folder.glob("*"), folder.glob("*/*")):
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise TeacherError(f"{path} is a pipe or a device, expected a file: restore the model's folder")
    return place


def _expanded(model: str) -> str:
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
    """A context in which a library loads a model: what it raises becomes one error that says what to do.

    Args:
        model: its name.
        folder: in words, what a local copy of it is, for instance ``a folder that save_pretrained made``.
        fetch: the command that downloads it; ``hf download`` with its name when not given.
        kept: the folder of ``~/.cache`` where downloads are kept.
        file: the weights that were asked for: a file, or the library's name for them.

    Raises:
        TeacherError: when the model is not there, ``file`` does not fit it, or it needs Python code of its own that nobody
            allowed.
    """
    if transformers := sys.modules.get("transformers"):
        transformers.utils.logging.disable_progress_bar()  # of weights that are read within a second; downloads keep theirs
    try:
        yield
    except UNREADABLE as error:
        if "trust_remote_code" in str(error):  # every library that refuses names this option
            raise TeacherError(
                f"{model} needs Python code that comes with it; that code was not run. Read it first. Only a teacher of "
                "texts or SMILES can run it, when you set its trust_remote_code to true; inputs and students never do: "
                "choose a model without its own code for them"
            ) from None
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
    """The first line of an error's message, with its class."""
    text = str(error).strip().splitlines()
    if "weights_only" in str(error):  # torch and timm advise to switch this option off, which runs the code in the file
        text = ["it is damaged, or holds more than tensors: Python objects, which could run code, are not read"]
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def weights_file(path: str, way: str = "point WEIGHTS at the folder that has them") -> Path:
    """The absolute path of a file of weights that exists.

    Args:
        path: may contain environment variables.
        way: what to do when there is no such file, for the message.

    Raises:
        TeacherError: when a variable is not set, or there is no such file.
    """
    expanded = os.path.expandvars(path)
    if "$" in expanded or ("${WEIGHTS}" in path and not os.environ.get("WEIGHTS")):
        raise TeacherError(f"{path}: a variable is not set: name the folder, as in `make cache ... WEIGHTS=folder`")
    if not os.path.isfile(expanded):
        lacking = "a folder, device or pipe is no weights file:" if os.path.exists(expanded) else "no weights at"
        raise TeacherError(f"{lacking} {os.path.abspath(expanded)}: {way}")
    return Path(expanded).absolute()


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        TeacherError: when it is no such file.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise TeacherError(f"{path} is not a safetensors file: {error}") from None


def read_state(file: str | Path) -> Any:
    """A network's state, from a safetensors file or from a checkpoint that holds no code."""
    import torch

    if str(file).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def never_ask() -> None:
    """Make transformers refuse a model's own code where a library does not say what to do; its default is to ask."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to wait for the answer; 0 does not ask


def from_pretrained(kind: str, name: str, **arguments: Any) -> Any:
    """Part of a transformers model, from a folder or the hub; Python code that comes with it is refused unless asked for.

    Args:
        kind: the class that loads it, for instance ``AutoTokenizer``.
        name: a hub name, a folder that ``save_pretrained`` made, or ``package:NAME/FOLDER``.
        arguments: of that class's ``from_pretrained``.

    Raises:
        TeacherError: when there is no such model, or it needs code that may not run.
    """
    place = locate(name)
    import transformers

    with loading(name, "a folder that save_pretrained made"):
        return getattr(transformers, kind).from_pretrained(place, **{"trust_remote_code": False, **arguments})


def load_network(name: str, **arguments: Any) -> Any:
    """A transformers network to run as it is, in float32; without its pooler when the checkpoint has no weights for it.

    Raises:
        TeacherError: when there is no such network, or when its checkpoint lacks other weights, which transformers would
            fill with random numbers.
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
        TeacherError: when there is no such network.
    """
    if pretrained:
        return from_pretrained("AutoModel", name)
    config = from_pretrained("AutoConfig", name)
    from transformers import AutoModel

    return AutoModel.from_config(config, trust_remote_code=False)


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 of everything that decides which token ids a tokenizer gives."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend else tokenizer.get_vocab()
    if backend:
        state |= {"truncation": None, "padding": None}  # every call of the tokenizer sets these two again
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def content_only(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint without the arguments that only say where a model lies."""
    return {name: value for name, value in fingerprint.items() if name not in WHERE}
