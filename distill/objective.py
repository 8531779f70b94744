"""Objectives: from the losses of all teachers to the one scalar that is minimised."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Objective(ABC):
    """Subclass it in any importable module and name the class in YAML."""

    @abstractmethod
    def __call__(self, losses: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
        """One scalar.

        Args:
            losses: per teacher and row, (teachers, batch).
            valid: where the teacher has that row, bool (teachers, batch).
            weights: per teacher, (teachers,): student_dim / teacher_dim where a loss sums over dimensions.
        """


class WeightedSum(Objective):
    """The paper's: the sum over teachers of weight times the mean loss over the valid rows.

    Example:
        >>> losses, valid = torch.tensor([[1.0, 3.0], [4.0, 9.0]]), torch.tensor([[True, True], [True, False]])
        >>> WeightedSum()(losses, valid, torch.tensor([1.0, 0.5]))
        tensor(4.)
    """

    def __call__(self, losses: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
        kept = torch.where(valid, losses, 0.0).sum(1)  # (teachers,); where: a masked row's loss may be anything
        return (weights * kept / valid.sum(1).clamp_min(1)).sum()
