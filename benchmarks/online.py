"""For comparison only: the teachers run in every training step, as they would without a cache."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from cache_tools import Teacher, read_items, rebuild
from distill.data.batch import Batch
from distill.data.columns import CorpusColumns
from distill.data.module import DistillData


class OnlineData(DistillData):
    """Takes rows and inputs from a cache, and the teachers' embeddings from the live teachers, on the training device.

    Args: see :class:`distill.data.module.DistillData`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.read_items = cache(read_items)  # (folder, shard) -> ids and raw items
        self.live: list[dict[str, Teacher]] = []

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if not self.live:
            self.live = [self._load(corpus, batch.rows.device) for corpus in self.corpora]
        for number, (corpus, teachers) in enumerate(zip(self.corpora, self.live, strict=True)):
            places = (batch.corpora == number).nonzero().squeeze(1)  # of this corpus's rows in the batch
            items = [self._item(corpus, row) for row in batch.rows[places].tolist()]
            for name, teacher in teachers.items():
                valid = batch.valid[name][places]
                prepared = [teacher.prepare(item) for item, ok in zip(items, valid.tolist(), strict=True) if ok]
                embedded = torch.as_tensor(teacher.embed(prepared)).to(batch.rows.device)
                targets: Tensor = batch.targets[name].to(embedded.dtype)
                targets[places[valid]] = embedded
                batch.targets[name] = targets
        return super().on_after_batch_transfer(batch, dataloader_idx)

    @staticmethod
    def _load(corpus: CorpusColumns, device: torch.device) -> dict[str, Teacher]:
        teachers = {name: rebuild(column.manifest["producer"], Teacher) for name, column in corpus.teachers.items()}
        for teacher in teachers.values():
            teacher.load(str(device))
        return teachers

    def _item(self, corpus: CorpusColumns, row: int) -> bytes:
        shard, place = divmod(row, corpus.corpus.shard_rows)
        return self.read_items(corpus.columns.corpus, shard)[1][place]
