"""A batch of aligned rows, and how batches of several corpora are joined."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_utilities import apply_to_collection
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from cache_tools import Ragged


class Batch:
    """Aligned rows.

    No tuple, which Lightning would open: ``bf16-true`` rounds every tensor that it finds, and targets are no inputs.

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
        """The same rows on a device; from pinned memory the host does not wait."""
        return Batch(*(_moved(each, torch.device(device), non_blocking) for each in vars(self).values()))

    def pin_memory(self) -> "Batch":
        """The same rows in memory that a GPU reads by itself."""
        return Batch(*(pin_memory(each) for each in vars(self).values()))


def _moved(data: Any, device: torch.device, non_blocking: bool) -> Any:
    return apply_to_collection(data, Tensor, lambda each: each.to(device, non_blocking=non_blocking))


def join(batches: Sequence[Batch], dims: Mapping[str, int]) -> Batch:
    """Batches one after the other, those of one input column together; a teacher that a batch lacks has not seen its rows.

    Args:
        batches: of different corpora.
        dims: teacher -> its width.
    """
    columns = list(dict.fromkeys(name for each in batches for name in each.inputs))
    batches = sorted(batches, key=lambda each: columns.index(next(iter(each.inputs))))
    inputs = {name: _join_inputs([each.inputs[name] for each in batches if name in each.inputs]) for name in columns}
    targets, valid = {}, {}
    for name, dim in dims.items():
        dtype = next((each.targets[name].dtype for each in batches if name in each.targets), torch.float16)
        unseen = [torch.zeros(0 if name in each.targets else len(each.rows), dim, dtype=dtype) for each in batches]
        targets[name] = torch.cat([each.targets.get(name, none) for each, none in zip(batches, unseen, strict=True)])
        valid[name] = torch.cat([each.valid.get(name, torch.zeros(len(each.rows), dtype=torch.bool)) for each in batches])
    rows, corpora = torch.cat([each.rows for each in batches]), torch.cat([each.corpora for each in batches])
    return Batch(inputs, targets, valid, rows, corpora)


def _join_inputs(inputs: Sequence[Any]) -> Any:
    if isinstance(inputs[0], dict):
        return {name: _join_inputs([each[name] for each in inputs]) for name in inputs[0]}
    if isinstance(inputs[0], Ragged):
        values, counts = (torch.cat([getattr(each, key) for each in inputs]) for key in ("values", "counts"))
        return Ragged(values, counts, max(each.longest for each in inputs))
    return torch.cat(list(inputs))
