"""Heads: from the student's embedding to a loss per row against one teacher's embedding.

The Gaussian head is the paper's (arXiv 2510.18680): the teacher's embedding t has density q(t | s) given the student's
embedding s, and the loss is ``-log q``. An upper bound on h(T | S), so lowering it raises the mutual information I(T; S).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools.errors import ConfigError, above_zero
from distill.exact import Float32

LOG_2PI = math.log(2 * math.pi)


def mlp(inputs: int, width: int | None, layers: int | None, outputs: int) -> nn.Sequential:
    """``layers`` x [LayerNorm, Linear, ReLU], then Linear to ``outputs``; 2 x 512 where not given.

    Heads' own defaults are None: a configuration that puts one class of head in another's place keeps the options that
    both have, and would keep the first one's defaults.
    """
    layers, width = 2 if layers is None else layers, 512 if width is None else width
    if layers < 0 or width < 1:
        raise ConfigError(f"a head of {layers} hidden layers, {width} wide: expected 0 or more, and 1 or more")
    stack: list[nn.Module] = []
    for _ in range(layers):
        stack += [nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*stack, nn.Linear(inputs, outputs))


class Ladder(nn.Module):
    """UNIC's ladder of projectors (arXiv 2408.05088): an MLP on every block of the student, their outputs summed.

    Args:
        widths: of the embeddings after each block, the student's own last.
        outputs: width of the sum.
    """

    def __init__(self, widths: Sequence[int], outputs: int):
        super().__init__()
        self.widths, last = list(widths), widths[-1]
        hidden = [last] * (len(widths) - 1) + [4 * last]
        self.rungs = nn.ModuleList(
            nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, outputs))
            for width, wide in zip(widths, hidden, strict=True)
        )

    def forward(self, blocks: Tensor) -> Tensor:
        """(batch, outputs) of the embeddings after each block side by side, (batch, sum of widths)."""
        parts = [rung(each) for rung, each in zip(self.rungs, blocks.split(self.widths, -1), strict=True)]
        return torch.stack(parts).sum(0)


@dataclass(frozen=True)
class Surroundings:
    """What a head can learn of the run that it stands in.

    Attributes:
        widths: of the embeddings after each of the student's blocks, the student's own last.
        rows: a number -> at most so many of the teacher's targets, (rows, teacher_dim), float32, spread over the rows to
            train on; the same ones in every process and every run.
    """

    widths: Sequence[int]
    rows: Callable[[int], Tensor]


class Head(Float32, ABC):
    """Loss of one teacher. Subclass it in any importable module and name the class in YAML.

    Class attributes:
        sums_dimensions: the loss is a sum over the teacher's dimensions; the paper then weights it by
            student_dim / teacher_dim.
        raw_targets: the head wants the teacher's embedding as it is, not normalised.
        scale_free: :meth:`predict` gives the target up to its scale or a shift, so R2 means nothing.
        pairs_rows: the loss of a row depends on the batch's other rows; it then sees no rows but valid ones.
        signed: the loss can be negative, as minus the logarithm of a density.

    Attributes:
        ladder: it reads the embeddings after every block of the student side by side, (batch, sum of widths), the
            student's own last, wherever ``student`` stands below.
    """

    sums_dimensions: ClassVar[bool] = True
    raw_targets: ClassVar[bool] = False
    scale_free: bool = False
    pairs_rows: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    ladder: bool = False

    def attach(self, surroundings: Surroundings) -> None:
        """Called once, before training, with what the constructor cannot know."""

    @abstractmethod
    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Loss per row, (batch,) in float32, of ``student`` (batch, student_dim) and ``target`` (batch, teacher_dim)."""

    def predict(self, student: Tensor) -> Tensor | None:
        """The expected target, (batch, teacher_dim), of ``student`` (batch, student_dim); None where the head has none."""
        return None


class MlpHead(Head):
    """A head that is an MLP of the student's embedding and a loss of its output; such heads are computed together.

    Attributes:
        mlp: from :func:`mlp`, its last layer as wide as the head needs; a :class:`Ladder` when ``ladder`` is set.
    """

    mlp: nn.Module

    def attach(self, surroundings: Surroundings) -> None:
        if self.ladder and not isinstance(self.mlp, Ladder):
            last = list(self.mlp.children())[-1]
            self.mlp = Ladder(surroundings.widths, int(last.get_parameter("bias").numel()))

    @abstractmethod
    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Loss per row, (batch,) in float32, of the MLP's output (batch, outputs)."""

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.mlp(student), target)


def outputs(heads: Sequence[MlpHead], student: Tensor) -> list[Tensor]:
    """``mlp(student)`` of heads whose hidden layers have the same shapes: one product per layer instead of one per head."""
    stacks = [list(head.mlp.children()) for head in heads]
    x = student.unsqueeze(0)  # (heads or 1, batch, width)
    for number, layer in enumerate(stacks[0][:-1]):
        if isinstance(layer, nn.ReLU):
            x = x.relu()
            continue
        weight, bias = (torch.stack([stack[number].get_parameter(key) for stack in stacks]) for key in ("weight", "bias"))
        if isinstance(layer, nn.LayerNorm):
            x = F.layer_norm(x, layer.normalized_shape) * weight.unsqueeze(1) + bias.unsqueeze(1)
        else:
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
    return [stack[-1](each) for stack, each in zip(stacks, x.expand(len(heads), -1, -1), strict=True)]


class DensityHead(MlpHead):
    """A head whose loss is a negative log-likelihood in nats, so that information can be counted."""

    signed = True

    def nll(self, student: Tensor, target: Tensor) -> Tensor:
        """-log q(target | student), (batch,), where the loss in training is something else."""
        out: Tensor = self(student, target)
        return out

    @staticmethod
    @abstractmethod
    def marginal_nll(target: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """NLL per row, (batch,), of ``target`` under the density that knows mean and variance (teacher_dim,) alone."""


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

    An MLP of s gives, per mode, a logit, a mean mu and a raw scale a; the inverse standard deviation is r = exp(a), or
    exp(tanh(a)) when bounded, so that sigma lies in [1/e, e]. Where rows repeat, or one dimension follows from another,
    sigma would fall until the loss is not finite (as in the paper's largest text run): ``floor`` ends that.

    Args:
        student_dim: width of s.
        teacher_dim: width of t.
        preset: bounded (2 layers x 512, bounded) for standardised targets, docs/results.md says why; or the paper's, by its
            own names: default (2 x 512), small (1 x 512), large (4 x 512), mini (1 x 128, bounded).
        layers: hidden layers; overrides the preset.
        width: of the hidden layers; overrides the preset.
        bounded: bound the scale; overrides the preset.
        floor: the least sigma, in units of the target, whose deviation is 1 when it is standardised.
        modes: Gaussians in the mixture.
        triangular: a full triangular precision factor instead of a diagonal one; teacher_dim ** 2 outputs per mode.
        beta: in training every dimension's term is multiplied by its variance to this power, which no gradient passes
            (Seitzer et al., ICLR 2022): at 0 what is easy draws the gradient of the mean, at 1 all draw it as under MSE.
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

    def _parts(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out = out.float().unflatten(-1, (self.modes, -1))  # (batch, modes, outputs)
        logit, mean, scale, factor = out.tensor_split([1, 1 + self.teacher_dim, 1 + 2 * self.teacher_dim], -1)
        return logit.squeeze(-1), mean, scale.tanh() if self.bounded else scale, factor

    def log_prob(self, student: Tensor, target: Tensor) -> Tensor:
        """log q(target | student), (batch,), always in float32."""
        return -self.nll(student, target)

    def nll(self, student: Tensor, target: Tensor) -> Tensor:
        return self._nll(self.mlp(student), target)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        if not (self.beta and self.training):
            return self._nll(out, target)
        _, mean, scale, _ = (part.squeeze(1) for part in self._parts(out))
        with torch.autocast(out.device.type, enabled=False):
            capped, z = self._whitened(scale, mean, target.float())
            each = 0.5 * (z.square() + LOG_2PI) - capped  # (batch, teacher_dim)
            return ((-2 * self.beta * capped.detach()).exp() * each).sum(-1)

    def _whitened(self, scale: Tensor, mean: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The scale below its limit, and r (t - mean)."""
        capped = scale.clamp_max(self.largest)
        # of a scale above the limit only z has a gradient, one that lowers it: a clamp's is zero, and sigma would stay
        passed = scale + (capped - scale).detach()
        return capped, passed.exp() * (target - mean)

    def _nll(self, out: Tensor, target: Tensor) -> Tensor:
        logit, mean, scale, factor = self._parts(out)
        with torch.autocast(out.device.type, enabled=False):
            capped, z = self._whitened(scale, mean, target.float().unsqueeze(1))  # (batch, modes, teacher_dim)
            if self.triangular:
                lower = factor.unflatten(-1, (self.teacher_dim, self.teacher_dim)).tril(-1)
                z = z + (lower @ z.unsqueeze(-1)).squeeze(-1)  # unit diagonal: the determinant stays that of r
            each = capped.sum(-1) - 0.5 * z.square().sum(-1) - 0.5 * self.teacher_dim * LOG_2PI  # (batch, modes)
            return -(each.squeeze(-1) if self.modes == 1 else torch.logsumexp(logit.log_softmax(-1) + each, -1))

    def predict(self, student: Tensor) -> Tensor:
        logit, mean, _, _ = self._parts(self.mlp(student))
        return (logit.softmax(-1).unsqueeze(-1) * mean).sum(1)

    @staticmethod
    def marginal_nll(target: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return 0.5 * (LOG_2PI + var.log() + (target - mean).square() / var).sum(-1)


class BernoulliHead(DensityHead):
    """One logit per bit: the density of a binary fingerprint.

    Args:
        student_dim: width of s.
        teacher_dim: bits.
        layers: hidden layers, 2 when not given.
        width: of the hidden layers, 512 when not given.

    Raises:
        ConfigError: when it is attached to a teacher whose values are not between 0 and 1.
    """

    raw_targets = True
    signed = False

    def __init__(self, student_dim: int, teacher_dim: int, layers: int | None = None, width: int | None = None):
        super().__init__()
        self.mlp = mlp(student_dim, width, layers, teacher_dim)

    def attach(self, surroundings: Surroundings) -> None:
        super().attach(surroundings)
        rows = surroundings.rows(1000)
        if rows.numel() and not (rows.min() >= -1e-3 and rows.max() <= 1 + 1e-3):  # as stored, perhaps rounded
            raise ConfigError(
                f"a BernoulliHead for a teacher whose values go from {rows.min():g} to {rows.max():g}: expected bits, "
                "or probabilities; take a head of real values, as GaussianHead"
            )

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(out.float(), target.float(), reduction="none").sum(-1)

    def predict(self, student: Tensor) -> Tensor:
        return torch.sigmoid(self.mlp(student).float())

    @staticmethod
    def marginal_nll(target: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        known = mean.clamp(1e-6, 1 - 1e-6).logit()  # of logits, for CUDA's autocast refuses what takes probabilities
        return F.binary_cross_entropy_with_logits(known.expand_as(target), target.float(), reduction="none").sum(-1)


class MseHead(MlpHead):
    """Squared error of a regressor, summed over the teacher's dimensions.

    Args:
        student_dim: width of s.
        teacher_dim: width of t.
        layers: hidden layers, 2 when not given.
        width: of the hidden layers, 512 when not given.
        ladder: read the embeddings after every block of the student, by :class:`Ladder`, instead of ``layers``.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        layers: int | None = None,
        width: int | None = None,
        ladder: bool = False,
    ):
        super().__init__()
        self.ladder = ladder
        self.mlp = mlp(student_dim, width, layers, teacher_dim)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return (out.float() - target.float()).square().sum(-1)

    def predict(self, student: Tensor) -> Tensor:
        out: Tensor = self.mlp(student)
        return out.float()


def has_direction(head: Head, teacher_dim: int) -> None:
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
    """``1 - cos`` between a regressor and the target; same arguments as :class:`MseHead`.

    Raises:
        ConfigError: for a teacher of one dimension, which has no direction to learn.
    """

    sums_dimensions = False
    scale_free = True

    def __init__(self, student_dim: int, teacher_dim: int, **kwargs: Any):
        super().__init__(student_dim, teacher_dim, **kwargs)
        has_direction(self, teacher_dim)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(out.float(), target.float())
