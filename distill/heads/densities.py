"""Other densities: one variance per dimension, heavy tails, low-rank covariance, other parametrisations of the paper's."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools import ConfigError, above_zero
from distill.heads.base import DensityHead, RegressionHead
from distill.heads.gaussian import GaussianHead
from distill.targets import LOG_2PI


class VidHead(RegressionHead, DensityHead):
    """VID (Ahn et al., CVPR 2019): a Gaussian whose variance, softplus(a) + 1e-5, does not depend on the input."""

    pace: ClassVar[float] = 1.0  # how much faster than other parameters the variance moves

    def __init__(self, student_dim: int, teacher_dim: int, **kwargs: Any):
        super().__init__(student_dim, teacher_dim, **kwargs)
        self.raw_variance = nn.Parameter(torch.full((teacher_dim,), math.log(math.e - 1) / self.pace))  # variance 1

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return self._nll((target.float() - out.float()).square()).sum(-1)

    def _nll(self, square: Tensor) -> Tensor:
        """Of every dimension, (batch, teacher_dim), from the squared error."""
        variance = F.softplus(self.pace * self.raw_variance) + 1e-5
        return 0.5 * (square / variance + variance.log() + LOG_2PI)

    marginal_nll = staticmethod(GaussianHead.marginal_nll)


class MseDensityHead(VidHead):
    """Squared error, plus a density for the metrics: VID's, whose variance gives the mean no gradient.

    The student is, step for step, that of :class:`distill.heads.MseHead`; information can be counted, as of any density.
    In validation the loss is the density's.
    """

    pace = 10.0  # the variance has several units to go, and moves no other parameter

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        if not self.training:
            return super().loss(out, target)
        square = (target.float() - out.float()).square()
        return (square + self._nll(square.detach())).sum(-1)


class DiagonalHead(GaussianHead):
    """The paper's head of one mode with a scale per dimension, the base of other densities; its preset is ``bounded``."""

    def __init__(self, student_dim: int, teacher_dim: int, **kwargs: Any):
        # options named here are settled, so `--help` does not offer them
        super().__init__(student_dim, teacher_dim, preset="bounded", modes=1, triangular=False, beta=0.0, **kwargs)


class StudentTHead(DiagonalHead):
    """Student's t in every dimension: its heavy tails are robust to rare values, and its degrees of freedom are learnt.

    Args:
        degrees: of freedom at the start; never below 2, so that there is a variance.

    Raises:
        ConfigError: when ``degrees`` is not above 2.
    """

    def __init__(self, student_dim: int, teacher_dim: int, degrees: float = 4.0, **kwargs: Any):
        super().__init__(student_dim, teacher_dim, **kwargs)
        if degrees <= 2:
            raise ConfigError(f"degrees is {degrees}, expected a number above 2")
        self.raw_degrees = nn.Parameter(torch.full((teacher_dim,), degrees - 2 + math.log(-math.expm1(2 - degrees))))

    def _nll(self, out: Tensor, target: Tensor) -> Tensor:
        capped, z = self._single_mode(out, target)  # (batch, teacher_dim)
        degrees = 2 + F.softplus(self.raw_degrees)
        half = 0.5 * (degrees + 1)
        constant = torch.lgamma(half) - torch.lgamma(0.5 * degrees) - 0.5 * (degrees * math.pi).log()
        return -(constant + capped - half * torch.log1p(z.square() / degrees)).sum(-1)


class LowRankGaussianHead(DiagonalHead):
    """A Gaussian whose dimensions are correlated: covariance ``D (I + U U^T) D``, D diagonal, U (teacher_dim, rank).

    The scale D depends on the student, the correlation U does not, so U needs no output of the MLP.

    Args:
        rank: of U.

    Raises:
        ConfigError: when ``rank`` is not above 0.
    """

    def __init__(self, student_dim: int, teacher_dim: int, rank: int = 16, **kwargs: Any):
        super().__init__(student_dim, teacher_dim, **kwargs)
        above_zero("a LowRankGaussianHead", rank=rank)
        self.factor = nn.Parameter(0.1 * torch.randn(teacher_dim, min(rank, teacher_dim)))

    def _nll(self, out: Tensor, target: Tensor) -> Tensor:
        capped, z = self._single_mode(out, target)  # (batch, teacher_dim)
        inner = torch.eye(self.factor.shape[1], device=z.device) + self.factor.T @ self.factor  # (rank, rank)
        lower = torch.linalg.cholesky(inner)
        shared = torch.linalg.solve_triangular(lower, (z @ self.factor).T, upper=False)  # (rank, batch)
        squares = z.square().sum(-1) - shared.square().sum(0)  # Woodbury
        log_det = lower.diagonal().log().sum() - capped.sum(-1)  # of the covariance's root
        nll: Tensor = 0.5 * (squares + self.teacher_dim * LOG_2PI) + log_det
        return nll


class NaturalGaussianHead(DiagonalHead):
    """The same density by its natural parameters, r^2 mu and r (Immer et al., NeurIPS 2023)."""

    def _parameters_of(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logit, natural, scale, factor = super()._parameters_of(out)
        return logit, natural * (-2 * scale.clamp(-self.largest, self.largest)).exp(), scale, factor


class WarmGaussianHead(DiagonalHead):
    """The same density, its variance held at 1 for the first batches of training: the mean is learnt before the scale.

    Args:
        steps: batches with variance 1.

    Raises:
        ConfigError: when ``steps`` is not above 0.
    """

    step: Tensor

    def __init__(self, student_dim: int, teacher_dim: int, steps: int = 100, **kwargs: Any):
        super().__init__(student_dim, teacher_dim, **kwargs)
        above_zero("a WarmGaussianHead", steps=steps)
        self.steps = steps
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def _parameters_of(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logit, mean, scale, factor = super()._parameters_of(out)
        return logit, mean, torch.where(self.step <= self.steps, 0.0, scale), factor  # the host need not wait for `step`

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        self.step += self.training
        return super().loss(out, target)
