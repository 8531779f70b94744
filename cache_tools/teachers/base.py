"""The Teacher contract: a frozen encoder that turns items into embeddings."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cache_tools.errors import TeacherError
from cache_tools.format import packing
from cache_tools.format.packing import Array
from cache_tools.format.shard import Arrays
from cache_tools.producer import Producer, class_path

if TYPE_CHECKING:
    from torch import Tensor, nn


class Teacher(Producer):
    """A frozen encoder. Subclass it in any importable module and name the class in YAML.

    Example:
        >>> import numpy as np
        >>> class Length(Teacher):
        ...     modality = "text"
        ...     dim = 1
        ...     def embed(self, items):
        ...         return np.array([[len(item)] for item in items], dtype=np.float32)
        >>> Length().embed(["ab", "c"]).tolist()
        [[2.0], [1.0]]

    Class attributes:
        binary: embeddings are 0 or 1; the cache packs eight of them into a byte.
        live: it can embed new items; a teacher whose embeddings were imported from a file cannot.
    """

    kind = "teachers"
    dim: int
    binary: ClassVar[bool] = False
    live: ClassVar[bool] = True

    @abstractmethod
    def embed(self, items: Sequence[Any]) -> np.ndarray[Any, Any]:
        """Embed prepared items.

        Args:
            items: what :meth:`prepare` gave back, (batch,).

        Returns:
            Finite floats (batch, dim), or 0 and 1 for a binary teacher.
        """

    def modules(self) -> "Iterator[nn.Module]":
        """The torch modules in its attributes, also those of a :class:`Network` or of another teacher there."""
        from torch import nn

        from cache_tools.teachers.network import Network

        for value in vars(self).values():
            if isinstance(value, nn.Module | Network | Teacher):
                yield from value.modules()

    def start_batch(self, processed: Sequence[Any]) -> Callable[[], Array]:
        """Embed the items; what a GPU computes is copied to the host while the next batch starts."""
        import torch

        embedded: Any = self.embed(processed)
        copied = None
        if isinstance(embedded, torch.Tensor) and embedded.is_cuda:
            embedded = torch.empty(embedded.shape, dtype=embedded.dtype, pin_memory=True).copy_(embedded, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()

        def finish() -> Array:
            if copied is not None:
                copied.synchronize()
            values: Array = embedded.float().numpy() if isinstance(embedded, torch.Tensor) else np.asarray(embedded)
            if values.shape != (expected := (len(processed), self.dim)):
                raise TeacherError(f"{class_path(self)} gave an array of shape {values.shape}, expected {expected}")
            return values

        return finish

    def pack_batch(self, values: Array, ids: Sequence[str], dtype: str) -> Arrays:
        if not self.binary:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32, copy=False)  # first: a number that does not fit becomes an infinity
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
            raise TeacherError(f"the embedding of id {ids[row]!r} has a NaN or an infinity; nothing written")
        if self.binary:
            if not np.isin(values, (0, 1)).all():
                raise TeacherError(f"{class_path(self)} is binary but gave values beside 0 and 1")
            return {"embedding": values.astype(np.uint8)}
        return {"embedding": packing.narrow(values, dtype)}

    def pack_shard(self, batches: Sequence[Arrays], good: Sequence[int], rows: int, dtype: str) -> Arrays:
        stored = "bits" if self.binary else dtype
        return packing.dense([batch["embedding"] for batch in batches], good, rows, self.dim, stored)

    def manifest_fields(self) -> dict[str, Any]:
        return {"kind": "bits" if self.binary else "dense", "dim": self.dim}

    def row_bytes(self, dtype: str) -> float:
        return self.dim * (1 / 8 if self.binary else np.dtype(dtype).itemsize)


class Tunable(Teacher):
    """A teacher that is a torch network, which `distill specialise` can tune on the labels of a task."""

    @property
    @abstractmethod
    def module(self) -> "nn.Module":
        """The network, once the teacher is loaded."""

    @abstractmethod
    def forward(self, items: Sequence[Any]) -> "Tensor":
        """What :meth:`embed` gives, (batch, dim) in float32, with gradients to :attr:`module`, in the mode it is in.

        Args:
            items: what :meth:`prepare` gave back, (batch,).
        """
