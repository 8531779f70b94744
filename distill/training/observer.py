"""The hook for callbacks that look at the losses of a training step."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class StepLosses(NamedTuple):
    """The losses of a batch, and what they were computed from.

    Attributes:
        losses: (teachers, batch), with their graph in training.
        valid: whether the teacher has the row, bool (teachers, batch).
        student: what the heads read, as :class:`distill.heads.HeadBank` takes it.
        targets: teacher -> (batch, dim).
    """

    losses: Tensor
    valid: Tensor
    student: Tensor
    targets: dict[str, Tensor]


class LossObserver(Callback, ABC):
    """A callback that also sees the losses of every training step, before the objective makes one scalar of them."""

    @abstractmethod
    def on_losses(self, trainer: Trainer, pl_module: LightningModule, step: StepLosses) -> None:
        """Called in every training step of a fit. The graph of the losses must stay."""
