"""A batch of aligned rows, how it moves to a device, and how batches of several corpora are joined."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_utilities import apply_to_collection
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from cache_tools import Ragged


class Batch:
    """Aligned rows.

    It is no tuple, whose tensors Lightning would find: ``bf16-true`` rounds them all, and targets must stay as they are.

    Attributes:
        inputs: input column -> what the student reads of its rows; with several, rows come in this order.
        targets: teacher -> (batch, teacher_dim).
        valid: teacher -> (batch,), bool: False where the teacher has not seen the row.
        rows: rows of the corpus, (batch,).
        corpora: number of each row's corpus, (batch,).
    """

    def __init__(
        self, inputs: dict[str, Any], targets: dict[str, Tensor], valid: dict[str, Tensor], rows: Tensor, corpora: Tensor
    ):
        self.inputs, self.targets, self.valid, self.rows, self.corpora = inputs, targets, valid, rows, corpora

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same rows on a device, this batch itself when they are there; from pinned memory the host does not wait."""
        if self.rows.device == torch.device(device):
            return self
        return Batch(*to_device(list(vars(self).values()), device, non_blocking))

    def pin_memory(self) -> "Batch":
        """The same rows in memory that a GPU reads by itself."""
        return Batch(*(pin_memory(part) for part in vars(self).values()))


def to_device(data: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """``data`` with every tensor in it on ``device``: a tensor, or dicts, tuples and lists of tensors.

    Example:
        >>> to_device({"pixels": torch.zeros(2, 3)}, "meta")["pixels"].device.type
        'meta'
    """
    return apply_to_collection(data, Tensor, lambda tensor: tensor.to(device, non_blocking=non_blocking))


def join(batches: Sequence[Batch], dims: Mapping[str, int]) -> Batch:
    """Batches of different corpora as one. Batches of one input column stand together.

    A teacher that a batch lacks has not seen its rows.

    Args:
        batches: of different corpora.
        dims: teacher -> its width.
    """
    columns = list(dict.fromkeys(name for batch in batches for name in batch.inputs))
    batches = sorted(batches, key=lambda batch: columns.index(next(iter(batch.inputs))))
    inputs = {name: _join_inputs([batch.inputs[name] for batch in batches if name in batch.inputs]) for name in columns}
    targets, valid = {}, {}
    for name, dim in dims.items():
        dtype = next((batch.targets[name].dtype for batch in batches if name in batch.targets), torch.float16)
        absent = [torch.zeros(0 if name in batch.targets else len(batch.rows), dim, dtype=dtype) for batch in batches]
        targets[name] = torch.cat([batch.targets.get(name, zeros) for batch, zeros in zip(batches, absent, strict=True)])
        valid[name] = torch.cat(
            [batch.valid.get(name, torch.zeros(len(batch.rows), dtype=torch.bool)) for batch in batches]
        )
    rows, corpora = (torch.cat([getattr(batch, key) for batch in batches]) for key in ("rows", "corpora"))
    return Batch(inputs, targets, valid, rows, corpora)


def _join_inputs(inputs: Sequence[Any]) -> Any:
    if isinstance(inputs[0], dict):
        return {name: _join_inputs([columns[name] for columns in inputs]) for name in inputs[0]}
    if isinstance(inputs[0], Ragged):
        values, counts = (torch.cat([getattr(rows, key) for rows in inputs]) for key in ("values", "counts"))
        return Ragged(values, counts, max(rows.longest for rows in inputs))
    return torch.cat(list(inputs))
