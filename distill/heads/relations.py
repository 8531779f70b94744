"""Losses of a row beside others: similarities to a queue, contrast with the cache, distances and angles in a batch."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools import ConfigError, above_zero
from distill.heads.base import Head, Surroundings
from distill.heads.regression import MseHead, has_direction

CORNERS = 64  # rows between which angles are measured; all rows would cost the cube of the batch


class QueueHead(MseHead):
    """KL of similarities to rows of the cache: those of the regressor's prediction follow those of the target.

    The queue holds targets of rows that are spread over the cache (their teacher is frozen, so that they never grow
    stale); softmax over them of cosine / temperature (SEED; Fang et al., ICLR 2021).

    Args:
        student_dim: width of s.
        teacher_dim: width of t.
        queue: rows in it.
        temperature: of the softmax.

    Raises:
        ConfigError: when ``queue`` or ``temperature`` is not above 0; for a teacher of one dimension.
    """

    sums_dimensions = False
    scale_free = True
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
        has_direction(self, teacher_dim)
        self.queue, self.temperature = queue, temperature
        self.register_buffer("bank", torch.empty(0, teacher_dim), persistent=False)

    def attach(self, surroundings: Surroundings) -> None:
        super().attach(surroundings)
        self.bank = F.normalize(surroundings.rows(self.queue))  # (queue, teacher_dim)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(out.device.type, enabled=False):
            mine, theirs = (
                (F.normalize(each.float()) @ self.bank.T / self.temperature).log_softmax(-1) for each in (out, target)
            )  # (batch, queue)
            return F.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)


class ContrastHead(QueueHead):
    """CRD (Tian et al., ICLR 2020) against an exact bank: a prediction tells its row's target from those of other rows.

    Noise-contrastive, with the cosine in the teacher's own space as score and a learnt log partition; negatives are drawn
    anew in every step. The original's bank holds projections of earlier steps; here it holds the teacher's very embeddings.

    Args:
        student_dim: width of s.
        teacher_dim: width of t.
        queue: rows of the cache to draw from.
        negatives: drawn for a batch.
    """

    pace = 10.0  # of the log partition, beside other parameters: it has several units to go

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
            mine, theirs = F.normalize(out.float()), F.normalize(target.float())
            drawn = (
                torch.randint(len(self.bank), (self.negatives,), device=out.device)
                if self.training
                else torch.linspace(0, len(self.bank) - 1, self.negatives, device=out.device).long()
            )
            others = self.bank[drawn]  # (negatives, teacher_dim)
            partition = self.pace * self.raw_partition
            own = (theirs @ others.T > 1 - 1e-6).float()  # the row itself, or its double, is no negative
            right = (mine * theirs).sum(-1) / self.temperature - partition  # (batch,)
            wrong = mine @ others.T / self.temperature - partition  # (batch, negatives)
            return -F.logsigmoid(right) - ((1 - own) * F.logsigmoid(-wrong)).sum(-1)


class RelationHead(Head):
    """Distances and angles among the batch's rows (RKD; Park et al., CVPR 2019): the student's follow the teacher's.

    It has no parameters and predicts nothing. Distances are divided by their mean; angles are measured at every row between
    the batch's first 64.

    Args:
        student_dim: width of s.
        teacher_dim: width of t.
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
            (mine, angles), (theirs, wanted) = _relations(student), _relations(target)
            pairs = F.huber_loss(mine, theirs, reduction="none").mean(-1)
            corners = F.huber_loss(angles, wanted, reduction="none").mean((-1, -2))
            return (self.distance * pairs + self.angle * corners).float()


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows (batch, dim): distances between all over their mean, (batch, batch), and cosines of the angles at every row
    between the first ones, (batch, corners, corners).

    All from the products of the rows, in float64, since differences of near ones cancel.
    """
    x = x.double()
    x = x - x.mean(0)
    dot = x @ x.T  # (batch, batch)
    own = dot.diagonal()
    squares = own.unsqueeze(1) + own - 2 * dot
    apart = squares > 1e-6 * own.mean()  # a row and itself, or its double, have no direction, and no gradient
    length = torch.where(apart, squares, 1.0).sqrt() * apart
    near = dot[:, :CORNERS]
    inner = near[:CORNERS] - near.unsqueeze(1) - near.unsqueeze(2) + own.view(-1, 1, 1)
    scale = (apart / torch.where(apart, length, 1.0))[:, :CORNERS]
    mean = length.sum() / (len(x) * max(1, len(x) - 1))
    return length / mean.clamp_min(1e-12), inner * scale.unsqueeze(1) * scale.unsqueeze(2)
