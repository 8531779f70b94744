"""Objectives: from the losses of all teachers to the one scalar that is minimised."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cache_tools import ConfigError, above_zero
from distill.targets import Float32


class Objective(Float32, ABC):
    """Subclass it in any importable module and name the class in YAML. Its parameters are trained with the heads'."""

    def attach(self, teachers: Sequence[str]) -> None:
        """Called once, before training, with the teachers' names in the order of the losses."""

    @abstractmethod
    def forward(self, losses: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
        """One scalar. Counts and means are those of all ranks, as :func:`mean_of_all_ranks` takes them.

        Args:
            losses: per teacher and row, (teachers, batch).
            valid: where the teacher has that row, bool (teachers, batch).
            weights: per teacher, (teachers,): student_dim / teacher_dim where a loss sums over dimensions.
        """


def over_all_ranks(value: Tensor) -> Tensor:
    """The sum of every rank's ``value``, without a gradient; ``value`` itself in a single process."""
    total = value.detach().clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total


def mean_of_all_ranks(total: Tensor, count: Tensor) -> Tensor:
    """This rank's part of ``total / count`` over all ranks. DDP averages gradients, so the average of the parts is right.

    Args:
        total: this rank's sum, of any shape.
        count: this rank's count, of the same shape.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if several else 1
    return total * ranks / over_all_ranks(count).clamp_min(1)


def means(losses: Tensor, valid: Tensor) -> Tensor:
    """Every teacher's mean loss over the valid rows of all ranks, (teachers,); 0 where it has none."""
    total = torch.where(valid, losses, 0.0).sum(1)  # `where`, since a masked row's loss may be anything
    return mean_of_all_ranks(total, valid.sum(1))


class WeightedSum(Objective):
    """The paper's objective: the sum over teachers of weight times the mean loss over the valid rows.

    Args:
        shares: teacher -> a factor of its weight; 1 for those that are not named.
        balance: ``teachers``: every teacher counts the same, however wide it is. ``dimensions``: every dimension that a
            loss is summed over counts the same.
        reduction: ``sum`` over teachers, or their ``mean``, weighted by ``shares``.

    Raises:
        ConfigError: when ``shares`` names a teacher that is not there, a share is below 0, or all shares are 0.

    Example:
        >>> losses, valid = torch.tensor([[1.0, 3.0], [4.0, 9.0]]), torch.tensor([[True, True], [True, False]])
        >>> WeightedSum()(losses, valid, torch.tensor([1.0, 0.5]))
        tensor(4.)
    """

    factors: Tensor

    def __init__(
        self,
        shares: dict[str, float] | None = None,
        balance: Literal["teachers", "dimensions"] = "teachers",
        reduction: Literal["sum", "mean"] = "sum",
    ):
        super().__init__()
        self.shares, self.balance, self.reduction = shares or {}, balance, reduction
        if bad := [name for name, share in self.shares.items() if not 0 <= share < math.inf]:
            raise ConfigError(f"the share of teacher {bad[0]} is {self.shares[bad[0]]}, expected a number, 0 or more")
        self.register_buffer("factors", torch.ones(1), persistent=False)

    def attach(self, teachers: Sequence[str]) -> None:
        if unknown := sorted(set(self.shares) - set(teachers)):
            raise ConfigError(f"objective.shares names {unknown[0]}; the teachers are: {', '.join(teachers)}")
        self.factors = torch.tensor([float(self.shares.get(name, 1.0)) for name in teachers])
        if not self.factors.any():
            raise ConfigError("objective.shares are 0 for every teacher: nothing would be learnt")

    def weighted(self, weights: Tensor) -> Tensor:
        """The weight of every teacher, (teachers,)."""
        if self.balance == "dimensions":  # student_dim / mean teacher_dim
            weights = weights.reciprocal().mean().reciprocal().expand_as(weights)
        weights = weights * self.factors
        return weights / self.factors.sum() if self.reduction == "mean" else weights

    def forward(self, losses: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
        return (self.weighted(weights) * means(losses, valid)).sum()


class Relative(Objective):
    """An objective that divides each teacher's loss by its first value. In validation it is the paper's sum.

    It is for losses that are never negative, as squared errors and cosines.

    Attributes:
        first: weight times mean loss of the first batch that has rows of a teacher, (teachers,).

    Raises:
        ConfigError: in training, on a negative loss, as a density's can be.
    """

    first: Tensor

    def attach(self, teachers: Sequence[str]) -> None:
        self.register_buffer("first", torch.full((len(teachers),), torch.nan))

    def forward(self, losses: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
        weighted = weights * means(losses, valid)
        if not self.training:
            return weighted.sum()
        count = over_all_ranks(valid.sum(1))
        now = weights * over_all_ranks(torch.where(valid, losses, 0.0).sum(1)) / count.clamp_min(1)
        now = torch.where(count > 0, now, torch.nan)
        if (now < 0).any():
            kind = type(self).__name__
            raise ConfigError(f"{kind} divides losses, and one is negative: take heads whose losses never are, as MseHead")
        self.first = torch.where(self.first.isnan(), now.clamp_min(1e-12), self.first)
        return self.combine(weighted, now)

    @abstractmethod
    def combine(self, weighted: Tensor, now: Tensor) -> Tensor:
        """One scalar of all teachers.

        Args:
            weighted: weight times mean loss of every teacher, (teachers,), to differentiate.
            now: the same over all ranks, without a gradient; nan for a teacher that has no row.
        """


class UncertaintyWeights(Relative):
    """Learnt weights: ``sum_k exp(-s_k) L_k + s_k`` (Kendall et al., CVPR 2018), with losses scaled to be 1 at first.

    Args:
        bound: of s, on both sides, so that no teacher is lost and none takes all.

    Raises:
        ConfigError: when ``bound`` is not above 0.
    """

    pace = 10.0  # how much faster than other parameters s moves: as an exponent it has further to go
    raw: nn.Parameter

    def __init__(self, bound: float = 3.0):
        super().__init__()
        above_zero("UncertaintyWeights", bound=bound)
        self.bound = bound

    def attach(self, teachers: Sequence[str]) -> None:
        super().attach(teachers)
        self.raw = nn.Parameter(torch.zeros(len(teachers)))

    def combine(self, weighted: Tensor, now: Tensor) -> Tensor:
        s = self.bound * (self.pace * self.raw / self.bound).tanh()  # beyond a clamp s would have no gradient, and stay
        terms = (-s).exp() * weighted / self.first.nan_to_num(1.0) + s
        return torch.where(now.isnan(), 0.0, terms).sum()  # without a row of the teacher, s alone would be minimised


class RelativeLossWeights(Relative):
    """The slower a teacher's loss falls, the more it weighs: its share is a softmax of loss / first loss.

    Losses here are running means over all ranks.

    Args:
        temperature: of the softmax.
        memory: of the running means, in steps, 1 or more.

    Raises:
        ConfigError: when ``temperature`` is not above 0, ``memory`` below 1.
    """

    running: Tensor

    def __init__(self, temperature: float = 0.5, memory: float = 50.0):
        super().__init__()
        above_zero("RelativeLossWeights", temperature=temperature)
        if not memory >= 1:
            raise ConfigError(f"memory of RelativeLossWeights is {memory}, expected steps, 1 or more")
        self.temperature, self.keep = temperature, 1 - 1 / memory

    def attach(self, teachers: Sequence[str]) -> None:
        super().attach(teachers)
        self.register_buffer("running", torch.full((len(teachers),), torch.nan))

    def combine(self, weighted: Tensor, now: Tensor) -> Tensor:
        updated = torch.where(self.running.isnan(), now, self.keep * self.running + (1 - self.keep) * now)
        self.running = torch.where(now.isnan(), self.running, updated)
        relative = (self.running / self.first).nan_to_num(1.0)
        share = (relative / self.temperature).softmax(0) * len(relative)
        return (share * weighted).sum()


class TeacherDropping(WeightedSum):
    """UNIC's teacher dropping: in training every row keeps the teacher of its largest loss, and drops others at random.

    Args:
        drop: probability; UNIC takes 0.25 for two teachers and 0.5 for four.
        divide_by: ``pairs``: the sum is divided by the (row, teacher) pairs that the whole batch keeps, as in the published
            code; ``row``: by those that each row keeps, and then by the rows.
        shares: as of :class:`distill.objectives.WeightedSum`.

    Raises:
        ConfigError: when ``drop`` is not between 0 and 1.
    """

    def __init__(
        self,
        drop: float = 0.5,
        divide_by: Literal["pairs", "row"] = "pairs",
        shares: dict[str, float] | None = None,
    ):
        super().__init__(shares)
        if not 0 <= drop <= 1:
            raise ConfigError(f"drop is {drop}, expected a probability between 0 and 1")
        self.drop, self.divide_by = drop, divide_by

    def forward(self, losses: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
        if not self.training:
            return super().forward(losses, valid, weights) / valid.any(1).sum().clamp_min(1)
        weighted = torch.where(valid, losses * self.weighted(weights).unsqueeze(1), -torch.inf)  # (teachers, batch)
        largest = weighted.argmax(0, keepdim=True)
        kept = torch.rand_like(weighted) >= self.drop
        kept = kept.scatter(0, largest, True) & valid
        losses = torch.where(kept, weighted, 0.0)
        if self.divide_by == "pairs":
            return mean_of_all_ranks(losses.sum(), kept.sum())
        rows = losses.sum(0) / kept.sum(0).clamp_min(1)  # (batch,)
        return mean_of_all_ranks(rows.sum(), valid.any(0).sum())
