"""The paper's head, a conditional Gaussian density, and its counterpart for bits.

The teacher's embedding t has density q(t | s) given the student's embedding s, and the loss is ``-log q``. It is an upper
bound on h(T | S), so lowering it raises the mutual information I(T; S) (arXiv 2510.18680).
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cache_tools import ConfigError, above_zero
from distill.heads.base import DensityHead, HeadContext, RegressionHead, mlp
from distill.targets import LOG_2PI

Preset = Literal["bounded", "default", "small", "large", "mini"]

PRESETS: dict[str, tuple[int, int, bool]] = {  # layers, width, bounded
    "bounded": (2, 512, True),
    "default": (2, 512, False),
    "small": (1, 512, False),
    "large": (4, 512, False),
    "mini": (1, 128, True),
}


class GaussianHead(DensityHead):
    """A conditional (mixture of) Gaussian(s) over the teacher's embedding (arXiv 2510.18680).

    An MLP of s gives, per mode, a logit, a mean mu and a raw scale a. The inverse standard deviation is r = exp(a), or
    exp(tanh(a)) when bounded, so that sigma lies in [1/e, e]. Where rows repeat, or one dimension follows from another,
    sigma would fall until the loss is not finite (as in the paper's largest text run); ``floor`` prevents that.

    Args:
        student_dim: width of s.
        teacher_dim: width of t.
        preset: bounded (2 layers x 512, bounded) for standardised targets, docs/results.md says why; or the paper's, by its
            own names: default (2 x 512), small (1 x 512), large (4 x 512), mini (1 x 128, bounded).
        layers: hidden layers; the preset's when not given.
        width: of the hidden layers; the preset's when not given.
        bounded: bound the scale; the preset's choice when not given.
        floor: the least sigma, in units of the target, whose deviation is 1 when it is standardised.
        modes: Gaussians in the mixture.
        triangular: a full triangular precision factor instead of a diagonal one; teacher_dim ** 2 outputs per mode.
        beta: in training every dimension's term is multiplied by its variance to this power, without a gradient through it
            (Seitzer et al., ICLR 2022). At 0 easy dimensions take most of the mean's gradient; at 1 all dimensions count
            as under MSE.
        ladder: read the embeddings after every block of the student, by :class:`Ladder`, instead of ``layers``.

    Raises:
        ConfigError: for a floor or modes that are not above 0, and for ``beta`` outside of 0 and 1, or beside several modes
            or a triangular factor.

    Example:
        >>> head = GaussianHead(student_dim=4, teacher_dim=3)
        >>> head(torch.zeros(2, 4), torch.zeros(2, 3)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        preset: Preset = "bounded",
        layers: int | None = None,
        width: int | None = None,
        bounded: bool | None = None,
        floor: float = 1e-3,
        modes: int = 1,
        triangular: bool = False,
        beta: float = 0.0,
        ladder: bool = False,
    ):
        super().__init__()
        if beta and (modes > 1 or triangular):
            raise ConfigError("beta weighs dimensions of one diagonal Gaussian: leave beta out, or modes and triangular")
        self.beta, self.ladder = beta, ladder
        preset_layers, preset_width, preset_bounded = PRESETS[preset]
        self.teacher_dim, self.modes, self.triangular = teacher_dim, modes, triangular
        self.bounded = preset_bounded if bounded is None else bounded
        above_zero(f"a {type(self).__name__}", floor=floor, modes=modes)
        if not 0 <= beta <= 1:
            raise ConfigError(f"beta of a GaussianHead is {beta}, expected a power between 0 and 1")
        self.largest = -math.log(floor)  # of a
        outputs = 1 + 2 * teacher_dim + (teacher_dim**2 if triangular else 0)
        depth = preset_layers if layers is None else layers
        self.mlp = mlp(student_dim, width or preset_width, depth, modes * outputs)

    def _parameters_of(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logit (batch, modes), mean and scale (batch, modes, teacher_dim), and the triangular factor, of the output."""
        out = out.float().unflatten(-1, (self.modes, -1))  # (batch, modes, outputs)
        logit, mean, scale, factor = out.tensor_split([1, 1 + self.teacher_dim, 1 + 2 * self.teacher_dim], -1)
        return logit.squeeze(-1), mean, scale.tanh() if self.bounded else scale, factor

    def _whitened(self, scale: Tensor, mean: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The scale below its limit, and r (t - mean)."""
        if self.bounded and self.largest >= 1:
            return scale, scale.exp() * (target - mean)  # never above the limit
        capped = scale.clamp_max(self.largest)
        # above the limit a clamp has no gradient, and sigma would stay; here z has one, which lowers the scale
        passed = scale + (capped - scale).detach()
        return capped, passed.exp() * (target - mean)

    def _single_mode(self, out: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`_whitened` of a head of one mode, both (batch, teacher_dim)."""
        _, mean, scale, _ = self._parameters_of(out)
        return self._whitened(scale.squeeze(1), mean.squeeze(1), target.float())

    def _nll(self, out: Tensor, target: Tensor) -> Tensor:
        """-log q(target), (batch,), of the MLP's output; autocast is off."""
        logit, mean, scale, factor = self._parameters_of(out)
        capped, z = self._whitened(scale, mean, target.float().unsqueeze(1))  # (batch, modes, teacher_dim)
        if self.triangular:
            lower = factor.unflatten(-1, (self.teacher_dim, self.teacher_dim)).tril(-1)
            z = z + (lower @ z.unsqueeze(-1)).squeeze(-1)  # unit diagonal: the determinant stays that of r
        log_densities = capped.sum(-1) - 0.5 * z.square().sum(-1) - 0.5 * self.teacher_dim * LOG_2PI  # (batch, modes)
        if self.modes == 1:
            return -log_densities.squeeze(-1)
        return -torch.logsumexp(logit.log_softmax(-1) + log_densities, -1)

    def _beta_nll(self, out: Tensor, target: Tensor) -> Tensor:
        """Every dimension's term times its variance to the power of ``beta``, summed, (batch,); autocast is off."""
        capped, z = self._single_mode(out, target)
        terms = 0.5 * (z.square() + LOG_2PI) - capped  # (batch, teacher_dim)
        return ((-2 * self.beta * capped.detach()).exp() * terms).sum(-1)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(out.device.type, enabled=False):
            return self._beta_nll(out, target) if self.beta and self.training else self._nll(out, target)

    def nll(self, student: Tensor, target: Tensor) -> Tensor:
        out = self.mlp(student)
        with torch.autocast(out.device.type, enabled=False):
            return self._nll(out, target)

    def log_prob(self, student: Tensor, target: Tensor) -> Tensor:
        """log q(target | student), (batch,), always in float32."""
        return -self.nll(student, target)

    def predict(self, student: Tensor) -> Tensor:
        logit, mean, _, _ = self._parameters_of(self.mlp(student))
        return (logit.softmax(-1).unsqueeze(-1) * mean).sum(1)

    @staticmethod
    def marginal_nll(target: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return 0.5 * (LOG_2PI + var.log() + (target - mean).square() / var).sum(-1)


class BernoulliHead(RegressionHead, DensityHead):
    """One logit per bit: the density of a binary fingerprint.

    Raises:
        ConfigError: when it is attached to a teacher whose values are not between 0 and 1.
    """

    raw_targets = True
    signed = False

    def __init__(self, student_dim: int, teacher_dim: int, **kwargs: Any):
        super().__init__(student_dim, teacher_dim, ladder=False, **kwargs)

    def attach(self, context: HeadContext) -> None:
        super().attach(context)
        rows = context.rows(1000)
        if rows.numel() and not (rows.min() >= -1e-3 and rows.max() <= 1 + 1e-3):  # as stored, perhaps rounded
            raise ConfigError(
                f"a BernoulliHead for a teacher whose values go from {rows.min():g} to {rows.max():g}: expected bits, "
                "or probabilities; take a head of real values, as GaussianHead"
            )

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(out.float(), target.float(), reduction="none").sum(-1)

    def predict(self, student: Tensor) -> Tensor:
        return super().predict(student).sigmoid()

    @staticmethod
    def marginal_nll(target: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        logits = mean.clamp(1e-6, 1 - 1e-6).logit()  # CUDA's autocast refuses a cross entropy of probabilities
        return F.binary_cross_entropy_with_logits(logits.expand_as(target), target.float(), reduction="none").sum(-1)
