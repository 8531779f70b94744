"""The contract of a head: from the student's embedding to a loss per row against one teacher's embedding.

Every head is built as ``head(student_dim, teacher_dim, options)``: the widths of the student's embedding s and of the
teacher's target t. A class documents the options that it adds; it also takes those of its parent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cache_tools import ConfigError
from distill.targets import Float32


@dataclass(frozen=True)
class HeadContext:
    """What a head may learn of the run before training starts.

    Attributes:
        widths: of the embeddings after each of the student's blocks, the student's own last.
        rows: a number -> at most that many of the teacher's targets, (rows, teacher_dim), float32, spread over the rows to
            train on. Every process and every run gets the same ones.
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
        predicts_direction: :meth:`predict` gives the direction of the target, whose length alone is unknown.
        pairs_rows: the loss of a row depends on the batch's other rows; the head then gets valid rows only.
        signed: the loss can be negative, as minus the logarithm of a density.
        needs_whole: the head compares the embedding itself with the target, so none can read a prefix of it alone.

    Attributes:
        ladder: the head reads the embeddings after every block of the student side by side, (batch, sum of widths), the
            student's own last, wherever ``student`` stands below.
    """

    sums_dimensions: ClassVar[bool] = True
    raw_targets: ClassVar[bool] = False
    scale_free: bool = False
    predicts_direction: bool = False
    pairs_rows: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    needs_whole: ClassVar[bool] = False
    ladder: bool = False

    def attach(self, context: HeadContext) -> None:
        """Called once, before training, with what the constructor cannot know."""

    @abstractmethod
    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Loss per row, (batch,) in float32, of ``student`` (batch, student_dim) and ``target`` (batch, teacher_dim)."""

    def predict(self, student: Tensor) -> Tensor | None:
        """The expected target, (batch, teacher_dim), of ``student`` (batch, student_dim); None where the head has none."""
        return None


def mlp(inputs: int, width: int | None, layers: int | None, outputs: int) -> nn.Sequential:
    """``layers`` x [LayerNorm, Linear, ReLU], then Linear to ``outputs``; 2 x 512 where not given.

    Heads leave ``layers`` and ``width`` at None by default. A configuration that replaces one class of head by another
    keeps the options that both have; a default number of the first class would then become a choice for the second.

    Raises:
        ConfigError: for fewer than 0 layers, or a width below 1.
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
        projected = [rung(block) for rung, block in zip(self.rungs, blocks.split(self.widths, -1), strict=True)]
        return torch.stack(projected).sum(0)


class MlpHead(Head):
    """A head that is an MLP of the student's embedding and a loss of its output; such heads are computed together.

    Attributes:
        mlp: from :func:`mlp`, its last layer as wide as the head needs; a :class:`Ladder` when ``ladder`` is set.
    """

    mlp: nn.Module

    def attach(self, context: HeadContext) -> None:
        if self.ladder and not isinstance(self.mlp, Ladder):
            last = list(self.mlp.children())[-1]
            self.mlp = Ladder(context.widths, int(last.get_parameter("bias").numel()))

    @abstractmethod
    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Loss per row, (batch,) in float32, of the MLP's output (batch, outputs)."""

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.mlp(student), target)


class RegressionHead(MlpHead):
    """A head whose MLP has one output per dimension of the teacher: the expected target, unless a subclass says more.

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

    def predict(self, student: Tensor) -> Tensor:
        out: Tensor = self.mlp(student)
        return out.float()


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
