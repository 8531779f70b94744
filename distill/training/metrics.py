"""What is logged of one teacher: loss or NLL per dimension, R2 or cosine, nats per dimension."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchmetrics import Metric

from cache_tools import Statistics
from distill.heads import DensityHead, Head
from distill.targets import MarginalMixture, Normaliser, sample
from distill.targets.marginal import ROWS


class TeacherMetrics(Metric):
    """How much of one teacher the student's embedding holds, over all rows of an epoch and all ranks.

    - ``nll`` (density heads) or ``loss``: per dimension where the head sums over dimensions.
    - ``r2``: share of the target's variance that the head's mean explains; "predict the corpus mean" is 0. A scale-free
      head has ``cosine`` instead.
    - ``nats``: marginal minus conditional NLL per dimension, an estimate of I(T; S) / teacher_dim. It is a lower bound
      where the marginal is the teacher's true density.

    Args:
        dim: width of the target.
        marginal: what nats are counted from; a Gaussian of the cache's statistics when not given.
    """

    full_state_update = False
    total: Tensor

    def __init__(self, dim: int, marginal: MarginalMixture | None = None) -> None:
        super().__init__()
        self.dim, self.marginal = dim, marginal
        self.add_state("total", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    @classmethod
    def of(cls, head: Head, normaliser: Normaliser, statistics: Statistics, modes: int) -> Self:
        """Metrics of a teacher; a density head of normalised targets gets a marginal mixture of ``modes`` Gaussians."""
        if modes == 1 or head.raw_targets or not isinstance(head, DensityHead):
            return cls(normaliser.dim)
        return cls(normaliser.dim, MarginalMixture.fitted(normaliser(sample(statistics, ROWS, "marginal_modes")), modes))

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
            marginal = (
                self.marginal(target) if self.marginal else head.marginal_nll(target, normaliser.mean, normaliser.var)
            )
            information = (marginal - loss).sum() / self.dim
        count = loss.new_tensor(len(loss))
        # not in place: a reset inside Lightning's inference mode leaves an inference tensor
        self.total = self.total + torch.stack([count, loss.sum(), error, spread, cosine, information]).double()

    def named(self, head: Head) -> dict[str, Tensor]:
        """The figures that make sense for ``head``."""
        count, loss, error, spread, cosine, nats = self.compute().float()
        density = isinstance(head, DensityHead)
        figures = {"nll" if density else "loss": loss / count / (self.dim if head.sums_dimensions else 1)}
        if not error.isnan():
            figures |= {"cosine": cosine / count} if head.scale_free else {"r2": 1 - error / spread}
        return figures | ({"nats": nats / count} if density else {})

    def mean_loss(self) -> Tensor:
        """Mean over all rows and ranks of the loss as the head gives it."""
        count, loss, *_ = self.compute().float()
        mean: Tensor = loss / count.clamp_min(1)
        return mean

    def compute(self) -> Tensor:
        return self.total
