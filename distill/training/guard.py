"""The guard: stops a run whose loss breaks, and names the teacher and the row that broke it."""

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cache_tools import TrainingError, read_item
from distill.data.batch import Batch

Array = np.ndarray[Any, Any]

WARMUP = 100  # first steps of a teacher, in which no rise counts as a spike

MEMORY = 0.98  # share of the old value in the running mean and deviation

STATE = ("steps", "mean", "deviation")  # of each teacher, in checkpoints

DEPTH = 2  # steps whose facts may still be on their way from a GPU


class Facts(NamedTuple):
    """Facts of each teacher's loss in a step, (facts, teachers) in float64.

    The facts are: sum, valid rows, rows whose loss is not finite, the largest loss of a row, that row, its corpus.
    """

    table: Tensor

    def of_all_ranks(self) -> "Facts":
        """Facts of the rows of all ranks; the ranks exchange a few bytes."""
        tables = [torch.empty_like(self.table) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(tables, self.table)
        ranks = torch.stack(tables)  # (ranks, facts, teachers)
        worst = ranks[:, 3].argmax(0).expand(1, 3, -1)
        return Facts(torch.cat([ranks[:, :3].sum(0), ranks[:, 3:].gather(0, worst)[0]]))


def step_facts(losses: Tensor, valid: Tensor, batch: Batch) -> Facts:
    """Facts of a batch's losses (teachers, batch), where they are ``valid``."""
    largest, place = torch.where(valid, losses.nan_to_num(nan=torch.inf), -torch.inf).max(1)  # (teachers,)
    broken = (valid & ~losses.isfinite()).sum(1)
    sums = torch.where(valid, losses, 0.0).sum(1)
    facts = [sums, valid.sum(1), broken, largest, batch.rows[place], batch.corpora[place]]
    return Facts(torch.stack([fact.double() for fact in facts]))


class PendingFacts(NamedTuple):
    """Facts of a step, perhaps still on their way from the GPU."""

    step: int
    table: Tensor  # of :class:`Facts`, in the host's memory
    arrived: Any  # a CUDA event, or None


class Guard(Callback):
    """Watches each teacher's loss without making the host wait: facts of a step are checked when they have arrived.

    Before a checkpoint is written all pending steps and the weights are checked, so that no checkpoint is broken.

    Args:
        teachers: their names, in the order of the losses.
        spike: a loss this many mean deviations above its running mean stops the run; 0: only one that is not finite does.
    """

    def __init__(self, teachers: list[str], spike: float):
        self.teachers, self.spike = teachers, spike
        # numpy: as tensors of so few numbers, these figures would take longer than the optimiser of a small student
        self.steps, self.mean, self.deviation = (np.zeros(len(teachers)) for _ in range(3))
        self.pending: deque[PendingFacts] = deque()

    def state_dict(self) -> dict[str, Any]:
        return {key: torch.tensor(getattr(self, key)) for key in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.mean, self.deviation = (state_dict[key].numpy() for key in STATE)

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
        self.pending.append(PendingFacts(trainer.global_step, host, arrived))
        while self.pending and (len(self.pending) > DEPTH or arrived is None or self.pending[0].arrived.query()):
            self._check(trainer, self.pending.popleft())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        while self.pending:
            self._check(trainer, self.pending.popleft())
        if not torch.stack([parameter.isfinite().all() for parameter in pl_module.parameters()]).all():
            raise TrainingError(
                f"step {trainer.global_step}: weights are not finite, though the losses were. {_go_on(trainer)}"
            )

    def _check(self, trainer: Trainer, pending: PendingFacts) -> None:
        if pending.arrived is not None:
            pending.arrived.synchronize()
        total, count = pending.table[:2].numpy()  # (teachers,)
        means, present = total / np.maximum(count, 1), count > 0  # a teacher without a valid row has no loss
        rise = means - self.mean
        spiked = (rise > self.spike * self.deviation) & (self.steps >= WARMUP) & bool(self.spike)
        broken = present & ~np.isfinite(means)
        if (present & (broken | spiked)).any():
            raise TrainingError(self._message(trainer, pending, broken if broken.any() else present & spiked))
        keep = np.minimum(self.steps / (self.steps + 1), MEMORY)
        self.mean = np.where(present, self.mean + (1 - keep) * rise, self.mean)
        self.deviation = np.where(present, self.deviation + (1 - keep) * (np.abs(rise) - self.deviation), self.deviation)
        self.steps = self.steps + present

    def _message(self, trainer: Trainer, pending: PendingFacts, broken: Array) -> str:
        names = [name for name, bad in zip(self.teachers, broken.tolist(), strict=True) if bad]
        number = self.teachers.index(names[0])
        total, count, bad, worst, row, corpus = pending.table[:, number].tolist()
        now, before = total / max(count, 1), float(self.mean[number])
        if bad == count > 1:
            where = "in every row: the weights broke in the step before"
        else:
            more = f", {bad:.0f} rows in all" if bad > 1 else "" if bad else f", whose loss is {worst:.4g}"
            where = f"worst in row {_row(trainer, int(row), int(corpus))}{more}"
        allowed = "" if bad else " Or let rises pass: --model.spike 0."
        return (
            f"step {pending.step}: the loss of teacher {', '.join(names)} is {now:.4g}, about {before:.4g} before; "
            f"{where}. {_go_on(trainer)}{allowed}"
        )


def _row(trainer: Trainer, row: int, corpus: int) -> str:
    """A row, its corpus and its id."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    folder = data.corpora[corpus].columns.corpus
    return f"{row} of {folder} (id {read_item(folder, row)[0]})"


def _go_on(trainer: Trainer) -> str:
    """What to do next, with the newest checkpoint if there is one."""
    callbacks: list[Any] = trainer.checkpoint_callbacks
    saved = [path for keeper in callbacks for path in (keeper.last_model_path, keeper.best_model_path) if path]
    again = f"go on with --ckpt_path {saved[0]}, from before" if saved else "no checkpoint was written yet: begin again"
    return f"Lower model.student_lr and model.head_lr, or bound the density (configs/methods/nll-bounded.yaml); {again}."
