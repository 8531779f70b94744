"""What is logged of one teacher: loss or NLL per dimension, R2 or cosine, nats per dimension."""

import math
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchmetrics import Metric

from cache_tools import Statistics
from distill.heads import DensityHead, Head
from distill.targets import MarginalMixture, Normaliser, sample
from distill.targets.marginal import ROWS

LEAST_VARIANCE = 1e-6  # of the marginal in a dimension; heads have the same least deviation, 1e-3


class TeacherMetrics(Metric):
    """How much of one teacher the student's embedding holds, over all rows of an epoch and all ranks.

    - ``nll`` (density heads) or ``loss``: per dimension where the head sums over dimensions.
    - ``r2``: share of the target's variance that the head's mean explains; "predict the corpus mean" is 0. A scale-free
      head has ``cosine`` instead.
    - ``nats``: marginal minus conditional NLL per dimension, an estimate of I(T; S) / teacher_dim. It is a lower bound
      where the marginal is the teacher's true density.
    - ``floored``: number of dimensions in which :meth:`within` replaced a value, or whose variance is below the marginal's
      floor of 1e-6; only logged where there are some.

    Args:
        dim: width of the target.
        marginal: what nats are counted from; a Gaussian of the cache's statistics when not given.
        limit: deviations from the mean that no row to train on can exceed.
    """

    full_state_update = False
    total: Tensor
    floored: Tensor

    def __init__(self, dim: int, marginal: MarginalMixture | None = None, limit: float = math.inf) -> None:
        super().__init__()
        self.dim, self.marginal, self.limit = dim, marginal, limit
        self.add_state("total", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("floored", torch.zeros(dim), dist_reduce_fx="sum")

    @classmethod
    def of(cls, head: Head, normaliser: Normaliser, statistics: Statistics, modes: int) -> Self:
        """Metrics of a teacher; a density head of normalised targets gets a marginal mixture of ``modes`` Gaussians."""
        limit = math.sqrt(2 * statistics.count)  # one of n values is never more than sqrt(n - 1) deviations from their mean
        if modes == 1 or head.raw_targets or not isinstance(head, DensityHead):
            return cls(normaliser.dim, limit=limit)
        rows = normaliser(sample(statistics, ROWS, "marginal_modes"))
        return cls(normaliser.dim, MarginalMixture.fitted(rows, modes), limit)

    def within(self, head: Head, normaliser: Normaliser, target: Tensor, valid: Tensor) -> Tensor:
        """Held-out targets (batch, dim), with the mean in the place of values that no row to train on can have.

        A dimension may vary in held-out rows alone, as the count of a rare group does. There one value would outweigh all
        others in every figure. Bits are never replaced: their density is bounded.

        Args:
            valid: rows that count, (batch,).
        """
        if head.raw_targets:
            return target
        beyond = (target - normaliser.mean).square() > self.limit**2 * normaliser.var  # (batch, dim)
        floored = (beyond | (normaliser.var < LEAST_VARIANCE)) & valid.unsqueeze(1)
        self.floored = self.floored + floored.sum(0)
        return torch.where(beyond, normaliser.mean.to(target), target)

    def update(self, head: Head, normaliser: Normaliser, loss: Tensor, student: Tensor, target: Tensor) -> None:
        """Take in the valid rows of a batch: loss (batch,), student (batch, student_dim), target (batch, dim)."""
        target = target.float()
        predicted = head.predict(student)
        error = cosine = loss.new_full((), torch.nan)  # of a head that predicts nothing
        information = loss.new_zeros(())
        spread = (target - normaliser.mean).square().sum()
        if predicted is not None:
            error, cosine = (target - predicted).square().sum(), F.cosine_similarity(predicted, target).sum()
        if isinstance(head, DensityHead):
            loss = head.nll(student, target)
            var = normaliser.var if head.raw_targets else normaliser.var.clamp_min(LEAST_VARIANCE)
            marginal = self.marginal(target) if self.marginal else head.marginal_nll(target, normaliser.mean, var)
            information = (marginal - loss).sum() / self.dim
        count = loss.new_tensor(len(loss))
        # not in place: a reset inside Lightning's inference mode leaves an inference tensor
        self.total = self.total + torch.stack([count, loss.sum(), error, spread, cosine, information]).double()

    def named(self, head: Head) -> dict[str, Tensor]:
        """The figures that make sense for ``head``."""
        count, loss, error, spread, cosine, nats, floored = self.compute().float()
        density = isinstance(head, DensityHead)
        figures = {"nll" if density else "loss": loss / count / (self.dim if head.sums_dimensions else 1)}
        if not error.isnan():
            figures |= {"cosine": cosine / count} if head.scale_free else {"r2": 1 - error / spread} if spread else {}
        return figures | ({"nats": nats / count} if density else {}) | ({"floored": floored} if floored else {})

    def mean_loss(self) -> Tensor:
        """Mean over all rows and ranks of the loss as the head gives it."""
        count, loss, *_ = self.compute().float()
        mean: Tensor = loss / count.clamp_min(1)
        return mean

    def compute(self) -> Tensor:
        return torch.cat([self.total, (self.floored > 0).sum().double().unsqueeze(0)])
