"""The base of teachers and featurisers: an object with arguments and a fingerprint, which makes the rows of a column."""

import importlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from cache_tools.errors import BadItem, CacheError, install_hint
from cache_tools.moved import current_names

LIBRARIES = ("torch", "numpy", "rdkit", "torch_geometric", "transformers")

Arrays = dict[str, np.ndarray[Any, Any]]


class Recorded:
    """Remembers the arguments that it was made with, so that a file can name them.

    Attributes:
        init_args: name -> value, of every argument that has one.
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self.init_args = {}
        if cls.__init__ is not object.__init__:
            signature = inspect.signature(cls.__init__)
            bound = signature.bind_partial(self, *args, **kwargs)  # not `bind`: a copy is made without arguments
            bound.apply_defaults()
            several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
            named = {name for name, parameter in signature.parameters.items() if parameter.kind not in several}
            self.init_args = {name: value for name, value in bound.arguments.items() if name in named - {"self"}}
        return self


class Producer(Recorded, ABC):
    """Base of teachers and featurisers: remembers its own arguments, so that a manifest can rebuild it.

    A build calls :meth:`process_item` on each item, :meth:`start_batch` and :meth:`pack_batch` on each batch, and
    :meth:`pack_shard` on all batches of a shard.

    Class attributes:
        kind: ``teachers`` or ``inputs``: the folder of a corpus that its columns lie in.
        modality: ``molecule``, ``text`` or ``image``; must equal the corpus's.
        python_bound: much time goes into Python or RDKit rather than into torch, so worker processes help.
        on_device: batches run on the device that :meth:`load` was given; worker processes beside a GPU then process items
            only.
        by_id: :meth:`prepare` gets a row's id instead of its item.
        added: arguments that came after version 0.1, and the value that stands for what that version did: with it, a
            column of version 0.1 is the same column.
    """

    kind: ClassVar[str]
    modality: ClassVar[str]
    python_bound: ClassVar[bool] = False
    on_device: ClassVar[bool] = False
    by_id: ClassVar[bool] = False
    added: ClassVar[Mapping[str, Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.init_args)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.init_args.items())})"

    def load(self, device: str) -> None:
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
        arguments = {name: value for name, value in self.init_args.items() if (name, value) not in self.added.items()}
        return {"class_path": class_path(self), **arguments}

    def process_item(self, item: bytes) -> Any:
        """Do all the work that one item needs by itself; runs in worker processes or threads, ahead of the batches.

        Raises:
            BadItem: as :meth:`prepare`.
        """
        return self.prepare(item)

    def start_batch(self, processed: Sequence[Any]) -> Callable[[], Any]:
        """Start the work on a batch of processed items; the function that is returned waits for it and gives the values."""
        return lambda: processed

    def reads(self) -> "Producer | None":
        """What :meth:`process_item` does first, once this is loaded, as a featuriser of its own; None when it is none.

        A corpus that has this featuriser's column has done that work.
        """
        return None

    @abstractmethod
    def pack_batch(self, values: Any, ids: Sequence[str], dtype: str) -> Arrays:
        """The values of a batch as arrays for the disk.

        Args:
            values: of the batch, from :meth:`start_batch`.
            ids: of the batch's rows, for messages.
            dtype: ``float16``, ``float32`` or ``int8``.

        Raises:
            TeacherError: when a value cannot be stored; the row's id is named.
        """

    @abstractmethod
    def pack_shard(self, batches: Sequence[Arrays], good: Sequence[int], rows: int, dtype: str) -> Arrays:
        """All batches of a shard as the data sets of its file.

        Args:
            batches: what :meth:`pack_batch` returned.
            good: the rows of the shard that could be made, in the order of the batches.
            rows: of the shard.
            dtype: as in :meth:`pack_batch`.
        """

    @abstractmethod
    def manifest_fields(self) -> dict[str, Any]:
        """What the manifest of its column says of the rows; ``kind`` is ``dense``, ``bits`` or ``ragged``."""

    def row_bytes(self, dtype: str) -> float:
        """Bytes that a row needs on disk, where that is known beforehand."""
        return 0.0


def _rebuild(cls: type[Producer], init_args: dict[str, Any]) -> Producer:
    return cls(**init_args)


def class_path(instance: object) -> str:
    """The import path of an object's class."""
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


Named = TypeVar("Named")


def import_class(path: str, base: type[Named]) -> type[Named]:
    """The class at an import path, perhaps one of version 0.1; only subclasses of ``base`` are given.

    Raises:
        CacheError: when it cannot be imported, or is not a ``base``.
    """
    try:
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError, SyntaxError) as error:
        raise CacheError(f"cannot import {path}: {error}{install_hint(str(error))}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CacheError(f"{path} is no {base.__name__}")
    return found


Wanted = TypeVar("Wanted", bound=Producer)


def rebuild(
    spec: Mapping[str, Any], base: type[Wanted], where: object = "a manifest", trust_remote_code: bool = False
) -> Wanted:
    """The producer that a manifest's ``class_path`` and ``init_args`` name, with the producers among its arguments.

    Only subclasses of ``base`` are ever called; the module of any class is imported, so it must be one that Python finds.

    Args:
        spec: a file's ``class_path`` and ``init_args``.
        base: what the class must be.
        where: the file or column, for messages.
        trust_remote_code: the present command allows the file to have a model run Python code that comes with it.

    Raises:
        CacheError: when the class cannot be imported, is not a ``base``, or does not take these arguments; when the file
            would run a model's own code, and the command does not allow it.
    """
    if not trust_remote_code:
        refuse_remote_code(spec, where)
    try:
        arguments = {
            key: rebuild(value, Producer, where, trust_remote_code=trust_remote_code) if _is_spec(value) else value
            for key, value in spec["init_args"].items()
        }
        return import_class(spec["class_path"], base)(**arguments)
    except (TypeError, KeyError, AttributeError) as error:
        raise CacheError(
            f"{where}: no {base.__name__} can be made of {str(spec)[:200]}: {error!r}; build it again"
        ) from None


def refuse_remote_code(content: Any, where: object) -> None:
    """Check that arguments that a file gives, as JSON has them, let no model run Python code that comes with it.

    Args:
        content: of the file.
        where: the file or column, for the message.

    Raises:
        CacheError: when one of them is a ``trust_remote_code`` other than false.
    """
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            if part.get("trust_remote_code") not in (False, None):
                model = part.get("model", "a model")
                raise CacheError(
                    f"{where} says trust_remote_code: {part['trust_remote_code']}, expected false: it would run the Python "
                    f"code that comes with {model}, and no file may allow this. Read that code; if you trust it, allow it "
                    "for this command: `distill-cache sample` takes --trust_remote_code true, `distill test`, `validate` "
                    "and `fit` take --probe.trust_remote_code true; no other command runs it"
                )
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part


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
    """The same as JSON would return it: paths as text, tuples as lists, producers as :func:`rebuild` reads them."""
    plain: dict[str, Any] = json.loads(json.dumps(arguments, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    return {"class_path": class_path(value), "init_args": value.init_args} if isinstance(value, Recorded) else str(value)


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that embeddings may depend on, for the record."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
