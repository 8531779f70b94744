"""The Featuriser contract: from one item to the named arrays that a student reads."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cache_tools.errors import TeacherError
from cache_tools.format import packing
from cache_tools.format.packing import Array, Ragged
from cache_tools.format.shard import Arrays
from cache_tools.producer import Producer


class Featuriser(Producer):
    """Turns one item into named arrays; rows may differ in length.

    Class attributes:
        fields: name -> (dtype on disk, shape of one element).
        padded: the field whose rows a student pads to the longest of a batch; then rows of similar length share a batch.
        standalone: a Python file that makes an ONNX file's inputs of raw items and needs nothing of this package.
    """

    kind = "inputs"
    fields: ClassVar[dict[str, tuple[str, tuple[int, ...]]]]
    padded: ClassVar[str | None] = None
    standalone: ClassVar[Path | None] = None

    @abstractmethod
    def featurise(self, item: Any) -> dict[str, Array]:
        """One prepared item as ``field -> (length, *shape)``.

        Raises:
            BadItem: when the item cannot be expressed.
        """

    def unpack(self, rows: dict[str, Ragged]) -> Any:
        """Turn rows that were read back into a student's input; by default their fields as they are."""
        return rows

    def portable(self, folder: Path) -> dict[str, Any]:
        """Arguments that make the same featuriser from ``folder`` alone; what it needs is written there."""
        return dict(self.init_args)

    def process_item(self, item: bytes) -> dict[str, Array]:
        return self.featurise(self.prepare(item))

    def pack_batch(self, values: Any, ids: Sequence[str], dtype: str) -> Arrays:
        batch = packing.ragged_batch(values, self.fields)
        for name in self.fields:
            flat, counts = batch[f"{name}/values"], batch[f"{name}/counts"]
            if not np.isfinite(flat).all():
                bad = np.flatnonzero(~np.isfinite(flat.reshape(len(flat), -1)).all(1))[0]  # an element; its row follows
                row = int(np.searchsorted(counts.cumsum(), bad, side="right"))
                raise TeacherError(f"{name} of id {ids[row]!r} has a NaN or an infinity; nothing written")
        return batch

    def pack_shard(self, batches: Sequence[Arrays], good: Sequence[int], rows: int, dtype: str) -> Arrays:
        return packing.ragged(batches, good, rows, self.fields)

    def manifest_fields(self) -> dict[str, Any]:
        return {"kind": "ragged", "fields": {name: [dtype, *shape] for name, (dtype, shape) in self.fields.items()}}
