"""What makes a column: an object with arguments, a fingerprint, and a way to prepare one item."""

import importlib
import inspect
import json
from abc import ABC
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from cache_tools.errors import BadItem, CacheError
from cache_tools.moved import current_names

LIBRARIES = ("torch", "numpy", "rdkit", "torch_geometric", "transformers")


class Producer(ABC):
    """Base of teachers and featurisers: remembers its own arguments, so that a manifest can rebuild it.

    Class attributes:
        modality: ``molecule``, ``text`` or ``image``; must equal the corpus's.
        python_bound: the time goes into Python or RDKit rather than into torch, so worker processes help.
        by_id: :meth:`prepare` gets a row's id instead of its item.
    """

    modality: ClassVar[str]
    python_bound: ClassVar[bool] = False
    by_id: ClassVar[bool] = False
    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self.init_args = {}
        if cls.__init__ is not object.__init__:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.init_args = {name: value for name, value in bound.arguments.items() if name != "self"}
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.init_args)

    def load(self, device: str) -> None:  # noqa: B027 - most producers have nothing to load
        """Make ready on ``device`` (``cpu``, ``cuda``, ...); heavy imports and weights belong here."""

    def prepare(self, item: bytes) -> Any:
        """Turn one raw item of the corpus into what the producer works on.

        Raises:
            BadItem: when the item cannot be used; the row is masked and the reason listed.
        """
        text = item.decode()
        if not text.strip():
            raise BadItem("empty")
        return text

    def fingerprint(self) -> dict[str, Any]:
        """What the output depends on, field by field; a difference in any field makes it another column."""
        return {"class_path": class_path(self), **self.init_args}


def _rebuild(cls: type[Producer], init_args: dict[str, Any]) -> Producer:
    return cls(**init_args)


def class_path(instance: object) -> str:
    """The import path of an object's class."""
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


Made = TypeVar("Made", bound=Producer)


def rebuild(manifest: Mapping[str, Any], base: type[Made]) -> Made:
    """The producer that a manifest names, with those that it is made of; only subclasses of ``base`` are ever called.

    Raises:
        CacheError: when the class is gone or is no ``base``.
    """
    module, _, name = manifest["class_path"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CacheError(f"cannot import {manifest['class_path']}, which made a column: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise CacheError(f"{manifest['class_path']} is no {base.__name__}")
    return cls(
        **{name: rebuild(value, Producer) if _is_spec(value) else value for name, value in manifest["init_args"].items()}
    )


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"class_path", "init_args"}


def require_same(path: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with a column that something else made.

    Raises:
        CacheError: naming the field that differs.
    """
    recorded, wanted = current_names(dict(recorded)), current_names(dict(wanted))
    for key in sorted(recorded.keys() | wanted.keys()):
        if recorded.get(key) != wanted.get(key):
            raise CacheError(
                f"{path} was made with {key} = {recorded.get(key)!r}, now it is {wanted.get(key)!r}: "
                "give the new one another name, or delete that folder to make it again"
            )


def as_json(arguments: dict[str, Any]) -> dict[str, Any]:
    """As JSON would give them back: paths as text, tuples as lists, producers as :func:`rebuild` reads them."""
    plain: dict[str, Any] = json.loads(json.dumps(arguments, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    return {"class_path": class_path(value), "init_args": value.init_args} if isinstance(value, Producer) else str(value)


def libraries() -> dict[str, str]:
    """Versions of the installed libraries that embeddings may depend on, for the record."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
