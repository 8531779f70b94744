"""Gradients of the teachers' losses at the student's embedding, measured during a fit: do the teachers agree?"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from cache_tools import ConfigError
from distill.run_folder import RunFolder
from distill.training.distiller import Distiller
from distill.training.observer import LossObserver, StepLosses


class Conflict(LossObserver):
    """Logs ``gradient/TEACHER``, a norm, and ``conflict/TEACHER``, the mean cosine with the others' gradients.

    It uses the losses that the training step has computed, so nothing is computed, drawn or updated twice and the fit is
    the same with and without it. Only rank zero measures, on its own rows. All cosines go to RUN/conflict.csv.

    Args:
        every: steps between two measurements.
    """

    def __init__(self, every: int):
        self.every, self.last = every, -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if cast(Distiller, pl_module).compiled:
            raise ConfigError("--conflict and model.compile do not go together: what is compiled has one backward pass")

    def on_losses(self, trainer: Trainer, pl_module: LightningModule, step: StepLosses) -> None:
        number = trainer.global_step
        if number % self.every or number == self.last or not trainer.is_global_zero:
            return
        self.last = number
        model = cast(Distiller, pl_module)
        self._log(trainer, model.teachers, gradients(step.losses, step.valid, step.student, model.weights))

    def _log(self, trainer: Trainer, teachers: Sequence[str], measured: Tensor) -> None:
        matrix, step = cosines(measured), trainer.global_step
        others = matrix.masked_fill(torch.eye(len(teachers), dtype=torch.bool), torch.nan).nanmean(1)  # (teachers,)
        figures = {f"gradient/{name}": norm for name, norm in zip(teachers, measured.norm(dim=1).tolist(), strict=True)}
        figures |= {f"conflict/{name}": mean for name, mean in zip(teachers, others.tolist(), strict=True)}
        for logger in trainer.loggers:  # not `log`, which keeps the steps that are a multiple of log_every_n_steps
            logger.log_metrics({name: value for name, value in figures.items() if np.isfinite(value)}, step)
        path = RunFolder(Path(trainer.default_root_dir)).conflict
        path.parent.mkdir(parents=True, exist_ok=True)
        head: list[list[object]] = [] if path.is_file() else [["step", "teacher_a", "teacher_b", "cosine"]]
        pairs = [
            [step, a, b, f"{cosine:.6g}"]
            for a, row in zip(teachers, matrix.tolist(), strict=True)
            for b, cosine in zip(teachers, row, strict=True)
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
    rows = [
        torch.autograd.grad(mean, student, retain_graph=True, materialize_grads=True)[0].detach().float().flatten()
        for mean in means
    ]
    return torch.stack(rows).cpu()


def cosines(gradients: Tensor) -> Tensor:
    """Cosine of each two rows, (teachers, teachers); NaN where a row is zero.

    Example:
        >>> cosines(torch.tensor([[1.0, 0.0], [-2.0, 0.0], [3.0, 4.0]])).tolist()[0]
        [1.0, -1.0, 0.6]
    """
    unit = gradients.double() / gradients.double().norm(dim=1, keepdim=True)
    matrix: Tensor = unit @ unit.T
    return matrix
