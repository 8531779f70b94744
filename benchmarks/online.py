"""For comparison only: the teachers run in every step, as they would without a cache."""

from typing import Any

import torch
from torch import Tensor

from cache_tools.format import store
from cache_tools.producer import rebuild
from cache_tools.teachers.base import Teacher
from distill.data.batch import Batch
from distill.data.columns import CorpusColumns
from distill.data.module import DistillData


class OnlineData(DistillData):
    """Takes rows and inputs from a cache, and what teachers say of them from the live teachers, on the training device.

    Args: see :class:`distill.data.module.DistillData`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.items: dict[tuple[int, int], list[bytes]] = {}  # (corpus, shard) -> raw items
        self.live: list[dict[str, Teacher]] = []

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if not self.live:
            self.live = [self._load(part, batch.rows.device) for part in self.corpora]
        for number, (part, teachers) in enumerate(zip(self.corpora, self.live, strict=True)):
            mine = (batch.corpora == number).nonzero().squeeze(1)
            items = [self._item(part, number, row) for row in batch.rows[mine].tolist()]
            for name, teacher in teachers.items():
                good = batch.valid[name][mine]
                prepared = [teacher.prepare(item) for item, ok in zip(items, good.tolist(), strict=True) if ok]
                embedded = torch.as_tensor(teacher.embed(prepared)).to(batch.rows.device)
                targets: Tensor = batch.targets[name].to(embedded.dtype)
                targets[mine[good]] = embedded
                batch.targets[name] = targets
        return super().on_after_batch_transfer(batch, dataloader_idx)

    @staticmethod
    def _load(part: CorpusColumns, device: torch.device) -> dict[str, Teacher]:
        teachers = {}
        for name, column in part.teachers.items():
            teacher = rebuild(column.manifest["producer"], Teacher)
            assert isinstance(teacher, Teacher)
            teacher.load(str(device))
            teachers[name] = teacher
        return teachers

    def _item(self, part: CorpusColumns, number: int, row: int) -> bytes:
        shard, place = divmod(row, part.corpus.shard_rows)
        if (number, shard) not in self.items:
            self.items[number, shard] = store.read_items(part.columns.corpus, shard)[1]
        return self.items[number, shard][place]
