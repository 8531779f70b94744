"""Heads: from the student's embedding to a loss per row against one teacher's embedding.

The Gaussian head is the paper's (arXiv 2510.18680): the teacher's embedding t has density q(t | s) given the student's
embedding s, and the loss is ``-log q``. An upper bound on h(T | S), so lowering it raises the mutual information I(T; S).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools import ConfigError
from distill.targets import Float32


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
