"""Losses that compare a row with other rows: of a queue, of the cache, or of the batch."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools import ConfigError, above_zero
from distill.heads.base import Head, HeadContext
from distill.heads.regression import CosineHead

CORNERS = 64  # rows between which angles are measured; all rows would cost the cube of the batch


class QueueHead(CosineHead):
    """SEED (Fang et al., ICLR 2021): KL divergence of the prediction's similarities to rows of the cache from the target's.

    The queue holds targets of rows that are spread over the cache; they never grow stale, since the teacher is frozen.
    Similarities are a softmax over the queue of cosine / temperature.

    Args:
        queue: rows in it.
        temperature: of the softmax.

    Raises:
        ConfigError: when ``queue`` or ``temperature`` is not above 0; for a teacher of one dimension.
    """

    bank: Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        queue: int = 2048,
        temperature: float = 0.07,
        **kwargs: Any,
    ):
        super().__init__(student_dim, teacher_dim, **kwargs)
        above_zero(f"a {type(self).__name__}", queue=queue, temperature=temperature)
        self.queue, self.temperature = queue, temperature
        self.register_buffer("bank", torch.empty(0, teacher_dim), persistent=False)

    def attach(self, context: HeadContext) -> None:
        super().attach(context)
        self.bank = F.normalize(context.rows(self.queue))  # (queue, teacher_dim)

    def _log_similarities(self, rows: Tensor) -> Tensor:
        """Log softmax over the queue, (batch, queue), of the cosines with ``rows`` (batch, teacher_dim)."""
        return (F.normalize(rows.float()) @ self.bank.T / self.temperature).log_softmax(-1)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(out.device.type, enabled=False):
            predicted, wanted = self._log_similarities(out), self._log_similarities(target)
            return F.kl_div(predicted, wanted, reduction="none", log_target=True).sum(-1)


class ContrastHead(QueueHead):
    """CRD (Tian et al., ICLR 2020): noise-contrastive estimation that tells a row's target from those of other rows.

    The score is the cosine in the teacher's own space, the log partition is learnt, and negatives are drawn anew in every
    step. The paper's memory bank holds projections of earlier steps; here it holds exact embeddings of the teacher.

    Args:
        queue: rows of the cache to draw from.
        negatives: drawn for a batch.
    """

    pace = 10.0  # how much faster than other parameters the log partition moves: it has several units to go

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        queue: int = 16_384,
        negatives: int = 512,
        **kwargs: Any,
    ):
        super().__init__(student_dim, teacher_dim, queue, **kwargs)
        above_zero("a ContrastHead", negatives=negatives)
        self.negatives = negatives
        self.raw_partition = nn.Parameter(torch.tensor(math.log(negatives) / self.pace))

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(out.device.type, enabled=False):
            predicted, wanted = F.normalize(out.float()), F.normalize(target.float())
            drawn = (
                torch.randint(len(self.bank), (self.negatives,), device=out.device)
                if self.training
                else torch.linspace(0, len(self.bank) - 1, self.negatives, device=out.device).long()
            )
            others = self.bank[drawn]  # (negatives, teacher_dim)
            partition = self.pace * self.raw_partition
            own = (wanted @ others.T > 1 - 1e-6).float()  # the row itself, or a duplicate of it, is no negative
            right = (predicted * wanted).sum(-1) / self.temperature - partition  # (batch,)
            wrong = predicted @ others.T / self.temperature - partition  # (batch, negatives)
            return -F.logsigmoid(right) - ((1 - own) * F.logsigmoid(-wrong)).sum(-1)


class RelationHead(Head):
    """The student's distances and angles among the batch's rows follow the teacher's (RKD; Park et al., CVPR 2019).

    It has no parameters and predicts nothing. Distances are divided by their mean. Angles are measured at every row,
    between the first 64 rows of the batch.

    Args:
        distance: weight of the distances.
        angle: weight of the angles.
    """

    sums_dimensions = False
    pairs_rows = True

    def __init__(self, student_dim: int, teacher_dim: int, distance: float = 1.0, angle: float = 2.0):
        super().__init__()
        if min(distance, angle) < 0 or not distance + angle:
            raise ConfigError(f"a RelationHead of distance {distance}, angle {angle}: expected one above 0, none below")
        self.distance, self.angle = distance, angle

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            (distances, angles), (wanted_distances, wanted_angles) = _relations(student), _relations(target)
            pairs = F.huber_loss(distances, wanted_distances, reduction="none").mean(-1)
            corners = F.huber_loss(angles, wanted_angles, reduction="none").mean((-1, -2))
            return (self.distance * pairs + self.angle * corners).float()


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances and angles of rows (batch, dim), from their products in float64, since differences of near rows cancel.

    Returns:
        Distances between all rows over their mean, (batch, batch), and cosines of the angles at every row between the
        first ones, (batch, corners, corners).
    """
    x = x.double()
    x = x - x.mean(0)
    dot = x @ x.T  # (batch, batch)
    own = dot.diagonal()
    squares = own.unsqueeze(1) + own - 2 * dot
    apart = squares > 1e-6 * own.mean()  # a row and its duplicate have no direction, and no gradient
    length = torch.where(apart, squares, 1.0).sqrt() * apart
    near = dot[:, :CORNERS]
    inner = near[:CORNERS] - near.unsqueeze(1) - near.unsqueeze(2) + own.view(-1, 1, 1)
    scale = (apart / torch.where(apart, length, 1.0))[:, :CORNERS]
    mean = length.sum() / (len(x) * max(1, len(x) - 1))
    return length / mean.clamp_min(1e-12), inner * scale.unsqueeze(1) * scale.unsqueeze(2)
