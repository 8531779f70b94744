"""Regressions: mixes of cosine, smooth L1 and squared error, as in UNIC and AM-RADIO; the angle over its dispersion."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools import ConfigError
from distill.heads.base import Head, HeadContext, RegressionHead


class MseHead(RegressionHead):
    """Squared error of a regressor, summed over the teacher's dimensions."""

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return (out.float() - target.float()).square().sum(-1)


def require_direction(head: Head, teacher_dim: int) -> None:
    """Refuse a head that compares directions for a teacher that has none: its gradient would be zero.

    Raises:
        ConfigError: when ``teacher_dim`` is below 2.
    """
    if teacher_dim < 2:
        raise ConfigError(
            f"{type(head).__name__} compares directions, and this teacher has {teacher_dim} dimension that varies: "
            "give it a head of values under model.heads, as MseHead or GaussianHead"
        )


class CosineHead(MseHead):
    """``1 - cos`` between a regressor and the target; the base of heads that compare directions.

    Raises:
        ConfigError: for a teacher of one dimension, which has no direction to learn.
    """

    sums_dimensions = False
    scale_free = True
    predicts_direction = True

    def __init__(self, student_dim: int, teacher_dim: int, **kwargs: Any):
        super().__init__(student_dim, teacher_dim, **kwargs)
        require_direction(self, teacher_dim)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(out.float(), target.float())


class DirectHead(CosineHead):
    """``1 - cos`` between the student's embedding itself and the target, without a regressor.

    For a student that is as wide as the teacher, above all one that begins with the teacher's weights: no head begins at
    random and turns the student away from its start. With ``distill.targets.Raw`` the student takes the teacher's place:
    its cosines are the teacher's.

    Raises:
        ConfigError: when the student is not as wide as the target.
    """

    needs_whole = True

    def __init__(self, student_dim: int, teacher_dim: int):
        super().__init__(student_dim, teacher_dim, layers=0)
        if student_dim != teacher_dim:
            raise ConfigError(
                f"DirectHead compares embeddings themselves: the student's is {student_dim} wide and the teacher's target "
                f"{teacher_dim}; make the student as wide (model.student.init_args.dim), or take a CosineHead"
            )
        self.mlp = nn.Sequential(nn.Identity())


class MixHead(MseHead):
    """``cosine (1 - cos) + smooth_l1 SmoothL1 + mse MSE`` of a regressor, means over the teacher's dimensions.

    The defaults with ``ladder`` are UNIC's loss (arXiv 2408.05088); 0.9 and 0.1 are AM-RADIO's (arXiv 2312.06709).

    Args:
        cosine: weight of one minus the cosine.
        smooth_l1: weight of the smooth L1 loss, beta 1.
        mse: weight of the squared error.

    Raises:
        ConfigError: when no weight is above 0; when only that of the cosine is, for a teacher of one dimension.
    """

    sums_dimensions = False

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        cosine: float = 0.5,
        smooth_l1: float = 0.5,
        mse: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(student_dim, teacher_dim, **kwargs)
        if min(cosine, smooth_l1, mse) < 0 or not cosine + smooth_l1 + mse:
            raise ConfigError(
                f"a MixHead of cosine {cosine}, smooth_l1 {smooth_l1}, mse {mse}: expected one above 0, none below"
            )
        self.cosine, self.smooth_l1, self.mse = cosine, smooth_l1, mse
        self.scale_free = self.predicts_direction = not smooth_l1 + mse
        if self.scale_free:
            require_direction(self, teacher_dim)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        out, target = out.float(), target.float()
        loss = torch.zeros(len(out), device=out.device)
        if self.cosine:
            loss = loss + self.cosine * (1 - F.cosine_similarity(out, target))
        if self.smooth_l1:
            loss = loss + self.smooth_l1 * F.smooth_l1_loss(out, target, reduction="none").mean(-1)
        if self.mse:
            loss = loss + self.mse * (out - target).square().mean(-1)
        return loss


ROWS = 16_384  # of the cache that a dispersion is computed of


class AngleHead(CosineHead):
    """``angle(prediction, target)^2 / dispersion``, the summary loss of C-RADIOv4.

    The dispersion is the mean squared angle of the teacher's embeddings to their mean direction, computed from rows of the
    cache. So a teacher whose embeddings fill a narrow cone counts as much as one whose embeddings fill the sphere.
    Standardised targets always fill the sphere; the dispersion makes a difference under ``distill.targets.Raw``.

    Raises:
        ConfigError: for a teacher of one dimension.
    """

    dispersion: Tensor

    def __init__(self, student_dim: int, teacher_dim: int, **kwargs: Any):
        super().__init__(student_dim, teacher_dim, **kwargs)
        self.register_buffer("dispersion", torch.ones(()))

    def attach(self, context: HeadContext) -> None:
        super().attach(context)
        directions = F.normalize(context.rows(ROWS).double())
        squares = _angle(directions, directions.mean(0).expand_as(directions)).square()
        self.dispersion = squares.mean().clamp_min(1e-6).float()

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return _angle(out.float(), target.float()).square() / self.dispersion


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Angles between rows, in radians; by the chord and its complement, whose gradient is finite everywhere but at pi."""
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    tiny = torch.finfo(a.dtype).tiny
    chord, complement = ((difference.square().sum(-1) + tiny).sqrt() for difference in (a - b, a + b))
    return 2 * torch.atan2(chord, complement)
