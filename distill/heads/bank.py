"""The bank of heads: a head and a normaliser per teacher, and the losses of all teachers at once."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools import ConfigError, Statistics
from distill.heads.base import Head, HeadContext, MlpHead
from distill.students.base import Student
from distill.targets import Normaliser, Raw, sample

HeadBuilder = Callable[[int, int], Head]  # from student_dim and teacher_dim


class HeadBank:
    """A head and a normaliser per teacher: ``(student, targets, valid) -> losses (teachers, batch)``.

    Only the bank knows which heads read every block of the student (a ladder), which ones share a matrix product, which
    ones compare the rows of a batch, and the precision of all of them. It is no module: its owner registers ``heads`` and
    ``normalisers`` under these names, which checkpoints use.

    Args:
        student: the encoder under the heads.
        statistics: teacher -> statistics of its embeddings.
        head: builds the head of every teacher without one of its own.
        heads: teacher -> builds its own head.
        normaliser: statistics -> normaliser of a teacher's embeddings.
        grouped: on a GPU, compute heads whose hidden layers have equal shapes together.

    Attributes:
        weights: student_dim / teacher_dim where a loss sums over dimensions, else 1; (teachers,).
        groups: teachers whose heads are computed together.
        ladder: some head has a ladder.

    Raises:
        ConfigError: when ``heads`` names a teacher that is not there, or a teacher is constant.
    """

    def __init__(
        self,
        student: Student,
        statistics: Mapping[str, Statistics],
        head: HeadBuilder,
        heads: Mapping[str, HeadBuilder],
        normaliser: Callable[[Statistics], Normaliser],
        grouped: bool = True,
    ):
        if unknown := sorted(heads.keys() - statistics.keys()):
            raise ConfigError(f"model.heads names {', '.join(unknown)}; the teachers are: {', '.join(statistics)}")
        self.teachers, self.student_dim = list(statistics), student.dim
        self.normalisers, self.heads = nn.ModuleDict(), nn.ModuleDict()
        for name, known in statistics.items():
            space, built = _normaliser_and_head(name, student, known, normaliser, heads.get(name, head))
            self.normalisers[name], self.heads[name] = space, built
        self.weights = torch.tensor(
            [student.dim / self.normaliser(name).dim if self.head(name).sums_dimensions else 1.0 for name in self.teachers]
        )
        self.groups = self._equal_shapes() if grouped else []
        self.ladder = any(self.head(name).ladder for name in self.teachers)

    def _equal_shapes(self) -> list[list[str]]:
        """Teachers whose heads have hidden layers of equal shapes."""
        groups: dict[str, list[str]] = {}
        for name, head in self.heads.items():
            if isinstance(head, MlpHead) and type(head).forward is MlpHead.forward and not head.ladder | head.pairs_rows:
                groups.setdefault(str(list(head.mlp.children())[:-1]), []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def head(self, teacher: str) -> Head:
        """The head of ``teacher``."""
        return cast(Head, self.heads[teacher])

    def normaliser(self, teacher: str) -> Normaliser:
        """The normaliser of ``teacher``."""
        return cast(Normaliser, self.normalisers[teacher])

    def targets(self, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Teacher -> what its head predicts, (batch, dim), of the teachers' raw embeddings (batch, teacher_dim)."""
        return {name: self.normaliser(name)(embeddings[name]) for name in self.teachers}

    def __call__(self, student: Tensor, targets: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> Tensor:
        """Losses of all teachers, (teachers, batch), in float32.

        Args:
            student: its embedding, (batch, student_dim); with :attr:`ladder` those after every block side by side, the
                embedding last.
            targets: teacher -> (batch, dim), from :meth:`targets`.
            valid: teacher -> whether it has the row, bool (batch,).
        """
        losses: dict[str, Tensor] = {}
        with self.precision(student):
            # a GPU launches small products together; a CPU is busy with each one, and stacking costs it extra
            for names in self.groups if student.device.type != "cpu" else []:
                losses |= self.group_losses(names, student, targets)
            for name in [name for name in self.teachers if name not in losses]:
                losses[name] = self._loss(name, self.read_by(name, student), targets[name], valid[name])
        return torch.stack([losses[name] for name in self.teachers])

    def group_losses(self, names: Sequence[str], student: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Teacher -> losses (batch,) of heads that are computed together."""
        heads = [cast(MlpHead, self.heads[name]) for name in names]
        out = outputs(heads, self.read_by(names[0], student))
        return {name: head.loss(mine, targets[name]) for name, head, mine in zip(names, heads, out, strict=True)}

    def read_by(self, teacher: str, student: Tensor) -> Tensor:
        """What the head of ``teacher`` reads of ``student``, as :meth:`__call__` takes it."""
        return student if self.head(teacher).ladder else student[:, -self.student_dim :]

    def _loss(self, teacher: str, student: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        head = self.head(teacher)
        if not head.pairs_rows:
            return cast(Tensor, head(student, target))
        loss = 0 * student.float().sum(-1)  # DDP waits for a gradient of every head, also where no row is valid
        return loss.masked_scatter(valid, head(student[valid], target[valid])) if valid.any() else loss

    @staticmethod
    def precision(student: Tensor) -> AbstractContextManager[Any]:
        """Under ``bf16-true`` heads keep float32 parameters, and multiply as under ``bf16-mixed``."""
        half = student.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(student.device.type, student.dtype) if half else nullcontext()


def _normaliser_and_head(
    name: str,
    student: Student,
    statistics: Statistics,
    normaliser: Callable[[Statistics], Normaliser],
    build: HeadBuilder,
) -> tuple[Normaliser, Head]:
    space = normaliser(statistics)
    if not space.dim:
        raise ConfigError(f"teacher {name} is constant over the corpus and teaches nothing: leave it out of data.teachers")
    head = build(student.dim, space.dim)
    if head.raw_targets:
        space = Raw(statistics)
        head = build(student.dim, space.dim)
    widths = student.widths if head.ladder else [student.dim]
    head.attach(HeadContext(widths, lambda count: space(sample(statistics, count, f"the head of teacher {name}"))))
    return space, head


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
    return [stack[-1](hidden) for stack, hidden in zip(stacks, x.expand(len(heads), -1, -1), strict=True)]
