"""Stops a run whose loss breaks, and says which teacher and which rows did it."""

from collections import deque
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cache_tools import store
from cache_tools.errors import TrainingError
from distill.data import Batch

WARMUP = 100  # steps before which no rise is a spike: losses fall fast
MEMORY = 0.98  # of the running mean and deviation
DEPTH = 2  # steps that a GPU may be behind


class Seen(NamedTuple):
    """One step's losses, perhaps still on their way to the host."""

    step: int
    means: Tensor  # (teachers,), on the host
    arrived: Any  # a CUDA event, or None
    batch: Batch
    rows: Tensor  # losses (teachers, batch)


class Guard(Callback):
    """Watches each teacher's loss without making the host wait: what a GPU computes is looked at when it has arrived.

    Before a checkpoint is written all steps are looked at, so that none holds broken weights.

    Args:
        teachers: their names, in the order of the losses.
        spike: a loss so many mean deviations above its running mean stops the run; 0: only one that is not finite does.
    """

    def __init__(self, teachers: list[str], spike: float):
        self.teachers, self.spike, self.steps = teachers, spike, 0
        self.mean, self.deviation = torch.zeros(len(teachers)), torch.zeros(len(teachers))
        self.pending: deque[Seen] = deque()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "mean": self.mean.clone(), "deviation": self.deviation.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.mean, self.deviation = (state_dict[key] for key in ("steps", "mean", "deviation"))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        means, arrived = outputs["means"], None
        if means.is_cuda:
            host = torch.empty(means.shape, pin_memory=True).copy_(means, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            host = means.detach().cpu()
        self.pending.append(Seen(trainer.global_step, host, arrived, batch, outputs["rows"]))
        while self.pending and (len(self.pending) > DEPTH or arrived is None or self.pending[0].arrived.query()):
            self._look(trainer, self.pending.popleft())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        while self.pending:
            self._look(trainer, self.pending.popleft())

    def _look(self, trainer: Trainer, seen: Seen) -> None:
        if seen.arrived is not None:
            seen.arrived.synchronize()
        rise = seen.means - self.mean
        limit = self.spike * self.deviation if self.spike and self.steps >= WARMUP else torch.inf
        broken, risen = ~seen.means.isfinite(), rise > limit
        if broken.any() or risen.any():
            raise TrainingError(self._told(trainer, seen, broken if broken.any() else risen))
        keep = min(MEMORY, self.steps / (self.steps + 1))
        self.mean = self.mean + (1 - keep) * rise
        self.deviation = self.deviation + (1 - keep) * (rise.abs() - self.deviation)
        self.steps += 1

    def _told(self, trainer: Trainer, seen: Seen, broken: Tensor) -> str:
        names = [name for name, bad in zip(self.teachers, broken.tolist(), strict=True) if bad]
        valid = seen.batch.valid[names[0]].cpu()
        losses = seen.rows[self.teachers.index(names[0])].float().cpu()
        known = torch.where(valid, losses.nan_to_num(nan=torch.inf), -torch.inf)
        worst = (known == known.max()).nonzero().squeeze(1) if valid.any() else torch.zeros(0, dtype=torch.long)
        if len(worst) == int(valid.sum()) > 1:
            where = "every row: the student's weights broke in the step before, from row"
        else:
            where = "row"
        before, now = (dict(zip(self.teachers, each.tolist(), strict=True))[names[0]] for each in (self.mean, seen.means))
        rows = _ids(trainer, seen.batch, worst) or "of another process"
        return (
            f"step {seen.step}: the loss of teacher {', '.join(names)} is {now:.4g}, about {before:.4g} before; in {where} "
            f"{rows}. Checkpoints are from before. Look at these items; lower model.student_lr and model.head_lr, or bound "
            "the density's scale (bounded: true of GaussianHead); go on with --ckpt_path RUN/checkpoints/last.ckpt. "
            "--model.spike 0 lets a rise pass"
        )


def _ids(trainer: Trainer, batch: Batch, chosen: Tensor) -> str:
    """Ids of the first chosen rows of a batch, and where they stand."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    told = []
    for each in chosen[:5].tolist():
        row, corpus = int(batch.rows[each]), data.parts[int(batch.corpora[each])].columns.corpus
        shard, place = divmod(row, store.read_corpus(corpus).shard_rows)
        told.append(f"{row} of {corpus} (id {store.read_items(corpus, shard)[0][place]})")
    more = [f"{len(chosen) - 5} more"] if len(chosen) > 5 else []
    return ", ".join(told + more)
