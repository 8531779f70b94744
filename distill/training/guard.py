"""Stops a run whose loss breaks, and says which teacher and which row did it."""

from collections import deque
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cache_tools import TrainingError, read_item
from distill.data.batch import Batch

WARMUP = 100  # steps of a teacher before which no rise is a spike: losses fall fast

MEMORY = 0.98  # of the running mean and deviation

DEPTH = 2  # steps that a GPU may be behind


class Facts(NamedTuple):
    """What a step tells of each teacher's loss, (facts, teachers) in float64.

    Sum, valid rows, rows whose loss is not finite; the largest loss of a row, that row, its corpus.
    """

    table: Tensor

    @property
    def counts(self) -> Tensor:
        """Valid rows, (teachers,)."""
        return self.table[1]

    @property
    def means(self) -> Tensor:
        """Mean loss over valid rows, (teachers,)."""
        return self.table[0] / self.table[1].clamp_min(1)

    def of_all_ranks(self) -> "Facts":
        """The same of all ranks' rows; one exchange of a few bytes."""
        every = [torch.empty_like(self.table) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(every, self.table)
        ranks = torch.stack(every)  # (ranks, facts, teachers)
        worst = ranks[:, 3].argmax(0).expand(1, 3, -1)
        return Facts(torch.cat([ranks[:, :3].sum(0), ranks[:, 3:].gather(0, worst)[0]]))


def step_facts(losses: Tensor, valid: Tensor, batch: Batch) -> Facts:
    """Facts of a batch's losses (teachers, batch), where they are ``valid``."""
    known = torch.where(valid, losses.nan_to_num(nan=torch.inf), -torch.inf)  # (teachers, batch)
    worst, place = known.max(1)
    broken = (valid & ~losses.isfinite()).sum(1)
    sums = torch.where(valid, losses, 0.0).sum(1)
    rows = [sums, valid.sum(1), broken, worst, batch.rows[place], batch.corpora[place]]
    return Facts(torch.stack([each.double() for each in rows]))


class Seen(NamedTuple):
    """One step's facts, perhaps still on their way to the host."""

    step: int
    facts: Facts
    arrived: Any  # a CUDA event, or None


class Guard(Callback):
    """Watches each teacher's loss without making the host wait: what a GPU computes is looked at when it has arrived.

    Before a checkpoint is written all steps and the weights are looked at, so that none holds broken weights.

    Args:
        teachers: their names, in the order of the losses.
        spike: a loss so many mean deviations above its running mean stops the run; 0: only one that is not finite does.
    """

    def __init__(self, teachers: list[str], spike: float):
        self.teachers, self.spike = teachers, spike
        self.steps, self.mean, self.deviation = (torch.zeros(len(teachers), dtype=torch.float64) for _ in range(3))
        self.pending: deque[Seen] = deque()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps.clone(), "mean": self.mean.clone(), "deviation": self.deviation.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.mean, self.deviation = (state_dict[key] for key in ("steps", "mean", "deviation"))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        table, arrived = outputs["facts"], None
        if table.is_cuda:
            host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True).copy_(table, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            host = table.cpu()
        self.pending.append(Seen(trainer.global_step, Facts(host), arrived))
        while self.pending and (len(self.pending) > DEPTH or arrived is None or self.pending[0].arrived.query()):
            self._look(trainer, self.pending.popleft())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        while self.pending:
            self._look(trainer, self.pending.popleft())
        if not torch.stack([each.isfinite().all() for each in pl_module.parameters()]).all():
            raise TrainingError(
                f"step {trainer.global_step}: weights are not finite, though the losses were. {_go_on(trainer)}"
            )

    def _look(self, trainer: Trainer, seen: Seen) -> None:
        if seen.arrived is not None:
            seen.arrived.synchronize()
        means, told = seen.facts.means, seen.facts.counts > 0  # a teacher without a valid row says nothing
        rise = means - self.mean
        spiked = (rise > self.spike * self.deviation) & (self.steps >= WARMUP) & bool(self.spike)
        broken = told & ~means.isfinite()
        if (told & (broken | spiked)).any():
            raise TrainingError(self._told(trainer, seen, broken if broken.any() else told & spiked))
        keep = (self.steps / (self.steps + 1)).clamp_max(MEMORY)
        self.mean = torch.where(told, self.mean + (1 - keep) * rise, self.mean)
        self.deviation = torch.where(told, self.deviation + (1 - keep) * (rise.abs() - self.deviation), self.deviation)
        self.steps = self.steps + told

    def _told(self, trainer: Trainer, seen: Seen, broken: Tensor) -> str:
        names = [name for name, bad in zip(self.teachers, broken.tolist(), strict=True) if bad]
        number = self.teachers.index(names[0])
        _, count, bad, worst, row, corpus = seen.facts.table[:, number].tolist()
        now, before = float(seen.facts.means[number]), float(self.mean[number])
        if bad == count > 1:
            where = "in every row: the weights broke in the step before"
        else:
            where = f"worst in row {_item(trainer, int(row), int(corpus))}" + (
                f", {bad:.0f} rows in all" if bad > 1 else ""
            )
            where += "" if bad else f", whose loss is {worst:.4g}"
        allowed = "" if bad else " Or let rises pass: --model.spike 0."
        return (
            f"step {seen.step}: the loss of teacher {', '.join(names)} is {now:.4g}, about {before:.4g} before; {where}. "
            f"{_go_on(trainer)}{allowed}"
        )


def _item(trainer: Trainer, row: int, corpus: int) -> str:
    """A row, where it stands, and its id."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    folder = data.corpora[corpus].columns.corpus
    return f"{row} of {folder} (id {read_item(folder, row)[0]})"


def _go_on(trainer: Trainer) -> str:
    """What to do, with the newest checkpoint where there is one."""
    callbacks: list[Any] = trainer.checkpoint_callbacks
    saved = [path for each in callbacks for path in (each.last_model_path, each.best_model_path) if path]
    again = f"go on with --ckpt_path {saved[0]}, from before" if saved else "no checkpoint was written yet: begin again"
    return f"Lower model.student_lr and model.head_lr, or bound the density (configs/methods/nll-bounded.yaml); {again}."
