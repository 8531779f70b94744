"""Do the teachers pull the student the same way? Their gradients at its embedding, measured during a fit."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cache_tools import ConfigError
from distill.data.batch import Batch
from distill.run_folder import RunFolder
from distill.training.distiller import Distiller


class Conflict(Callback):
    """Logs ``gradient/TEACHER``, a norm, and ``conflict/TEACHER``, the mean cosine with the others' gradients.

    It looks at the losses that the training step computes, so that nothing is computed, drawn or updated twice: the fit
    is that without it. Rank zero measures its own rows. All cosines go to RUN/conflict.csv.

    Args:
        every: steps between two measurements.
    """

    def __init__(self, every: int):
        self.every, self.last = every, -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if cast(Distiller, pl_module).compiled:
            raise ConfigError("--conflict and model.compile do not go together: what is compiled has one backward pass")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every or step == self.last or not trainer.is_global_zero:
            return
        self.last = step
        model = cast(Distiller, pl_module)
        losses = model.losses

        def measured(batch: Batch) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
            vars(model).pop("losses")  # from now on the class's own again
            found = losses(batch)
            self._keep(trainer, model.teachers, gradients(*found[:3], model.weights))
            return found

        vars(model)["losses"] = measured

    def _keep(self, trainer: Trainer, teachers: Sequence[str], found: Tensor) -> None:
        matrix, step = cosines(found), trainer.global_step
        others = matrix.masked_fill(torch.eye(len(teachers), dtype=torch.bool), torch.nan).nanmean(1)  # (teachers,)
        figures = {f"gradient/{name}": each for name, each in zip(teachers, found.norm(dim=1).tolist(), strict=True)}
        figures |= {f"conflict/{name}": each for name, each in zip(teachers, others.tolist(), strict=True)}
        for logger in trainer.loggers:  # not `log`, which keeps the steps that are a multiple of log_every_n_steps
            logger.log_metrics({name: each for name, each in figures.items() if np.isfinite(each)}, step)
        path = RunFolder(Path(trainer.default_root_dir)).conflict
        path.parent.mkdir(parents=True, exist_ok=True)
        head: list[list[object]] = [] if path.is_file() else [["step", "teacher_a", "teacher_b", "cosine"]]
        pairs = [
            [step, a, b, f"{each:.6g}"]
            for a, row in zip(teachers, matrix.tolist(), strict=True)
            for b, each in zip(teachers, row, strict=True)
        ]
        with open(path, "a", newline="") as file:
            csv.writer(file).writerows(head + pairs)


def gradients(losses: Tensor, valid: Tensor, student: Tensor, weights: Tensor) -> Tensor:
    """Gradient of each teacher's weighted mean loss at the student's embedding, flattened, (teachers, batch * dim).

    Args:
        losses: per teacher and row, (teachers, batch), with their graph, which is kept.
        valid: where the teacher has that row, (teachers, batch).
        student: the embedding that the losses came from, (batch, dim); the backward passes end there.
        weights: per teacher, (teachers,).
    """
    means = weights * torch.where(valid, losses, 0.0).sum(1) / valid.sum(1).clamp_min(1)  # (teachers,)
    found = [
        torch.autograd.grad(mean, student, retain_graph=True, materialize_grads=True)[0].detach().float().flatten()
        for mean in means
    ]
    return torch.stack(found).cpu()


def cosines(gradients: Tensor) -> Tensor:
    """Cosine of each two rows, (teachers, teachers); NaN with one that is zero.

    Example:
        >>> cosines(torch.tensor([[1.0, 0.0], [-2.0, 0.0], [3.0, 4.0]])).tolist()[0]
        [1.0, -1.0, 0.6]
    """
    unit = gradients.double() / gradients.double().norm(dim=1, keepdim=True)
    matrix: Tensor = unit @ unit.T
    return matrix
