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
    ones compare the rows of a batch, and the precision of all of them. It is no module: its owner registers ``heads``,
    ``prefixes`` and ``normalisers`` under these names, which checkpoints use.

    With ``dims`` each teacher also has a head on each of these prefixes of the student's embedding, and its loss is the
    mean over all lengths: Matryoshka representation learning (Kusupati et al., arXiv 2205.13147).

    Args:
        student: the encoder under the heads.
        statistics: teacher -> statistics of its embeddings.
        head: builds the head of every teacher without one of its own.
        heads: teacher -> builds its own head.
        normaliser: statistics -> normaliser of a teacher's embeddings.
        grouped: on a GPU, compute heads whose hidden layers have equal shapes together.
        dims: lengths of the prefixes, ascending, below the student's width; none when empty.

    Attributes:
        prefixes: length, as text -> teacher -> its head on so many first numbers of the embedding.
        weights: student_dim / teacher_dim where a loss sums over dimensions, else 1; (teachers,).
        groups: teachers whose heads are computed together.
        ladder: some head has a ladder.

    Raises:
        ConfigError: when ``heads`` names a teacher that is not there, or a teacher is constant; when ``dims`` are no such
            lengths, or a head cannot read a prefix.
    """

    def __init__(
        self,
        student: Student,
        statistics: Mapping[str, Statistics],
        head: HeadBuilder,
        heads: Mapping[str, HeadBuilder],
        normaliser: Callable[[Statistics], Normaliser],
        grouped: bool = True,
        dims: Sequence[int] = (),
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
        self.dims, self.prefixes = _checked(dims, student.dim), nn.ModuleDict()
        for length in self.dims:
            on_prefix = nn.ModuleDict()
            for name, known in statistics.items():
                on_prefix[name] = self._on_prefix(name, length, known, heads.get(name, head))
            self.prefixes[str(length)] = on_prefix

    def _on_prefix(self, teacher: str, length: int, statistics: Statistics, build: HeadBuilder) -> Head:
        """The head of a teacher on the first ``length`` numbers of the student's embedding."""
        whole, space = self.head(teacher), self.normaliser(teacher)
        if whole.ladder or whole.needs_whole:
            read = "every block of the student" if whole.ladder else "the whole embedding"
            raise ConfigError(
                f"model.dims is {self.dims}, but the {type(whole).__name__} of teacher {teacher} reads {read} and cannot "
                "read a prefix: leave model.dims out, or give the teacher another head, as a CosineHead without ladder"
            )
        head = build(length, space.dim)
        head.attach(HeadContext([length], _rows_of(teacher, statistics, space)))
        return head

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

    def __call__(
        self, student: Tensor, targets: Mapping[str, Tensor], valid: Mapping[str, Tensor], prefixes: bool = True
    ) -> Tensor:
        """Losses of all teachers, (teachers, batch), in float32; the mean over the whole embedding and its prefixes.

        Args:
            student: its embedding, (batch, student_dim); with :attr:`ladder` those after every block side by side, the
                embedding last.
            targets: teacher -> (batch, dim), from :meth:`targets`.
            valid: teacher -> whether it has the row, bool (batch,).
            prefixes: count them; without them the losses are those of the whole embedding.
        """
        with self.precision(student):
            losses = [self._losses(self.heads, student, targets, valid)]
            for length, heads in self.prefixes.items() if prefixes else ():
                losses.append(self._losses(cast(nn.ModuleDict, heads), student[:, : int(length)], targets, valid))
        return torch.stack(losses).mean(0)  # (lengths, teachers, batch) -> (teachers, batch)

    def _losses(
        self, heads: nn.ModuleDict, student: Tensor, targets: Mapping[str, Tensor], valid: Mapping[str, Tensor]
    ) -> Tensor:
        """Losses, (teachers, batch), of the teachers' ``heads`` on the whole embedding or on one prefix."""
        losses: dict[str, Tensor] = {}
        # a GPU launches small products together; a CPU is busy with each one, and stacking costs it extra
        for names in self.groups if student.device.type != "cpu" else []:
            losses |= self.group_losses(names, student, targets, heads)
        for name in [name for name in self.teachers if name not in losses]:
            losses[name] = _loss(cast(Head, heads[name]), self.read_by(name, student), targets[name], valid[name])
        return torch.stack([losses[name] for name in self.teachers])

    def group_losses(
        self, names: Sequence[str], student: Tensor, targets: Mapping[str, Tensor], heads: nn.ModuleDict | None = None
    ) -> dict[str, Tensor]:
        """Teacher -> losses (batch,) of heads that are computed together: those of a prefix, or else of the whole."""
        group = [cast(MlpHead, (heads or self.heads)[name]) for name in names]
        out = outputs(group, self.read_by(names[0], student))
        return {name: head.loss(mine, targets[name]) for name, head, mine in zip(names, group, out, strict=True)}

    def read_by(self, teacher: str, student: Tensor) -> Tensor:
        """What the head of ``teacher`` reads of ``student``, as :meth:`__call__` takes it; all of a prefix."""
        return student if self.head(teacher).ladder else student[:, -self.student_dim :]

    @staticmethod
    def precision(student: Tensor) -> AbstractContextManager[Any]:
        """Under ``bf16-true`` heads keep float32 parameters, and multiply as under ``bf16-mixed``."""
        half = student.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(student.device.type, student.dtype) if half else nullcontext()


def _checked(dims: Sequence[int], width: int) -> list[int]:
    """The lengths of prefixes of an embedding of this width."""
    if list(dims) != sorted(set(dims)) or (dims and not 1 <= dims[0] <= dims[-1] < width):
        raise ConfigError(
            f"model.dims is {list(dims)}, expected ascending lengths from 1 to {width - 1}: prefixes of the student's "
            f"embedding, whose width {width} has heads in any case"
        )
    return list(dims)


def _loss(head: Head, student: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    if not head.pairs_rows:
        return cast(Tensor, head(student, target))
    loss = 0 * student.float().sum(-1)  # DDP waits for a gradient of every head, also where no row is valid
    return loss.masked_scatter(valid, head(student[valid], target[valid])) if valid.any() else loss


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
    head.attach(HeadContext(widths, _rows_of(name, statistics, space)))
    return space, head


def _rows_of(teacher: str, statistics: Statistics, space: Normaliser) -> Callable[[int], Tensor]:
    """A number -> at most that many of a teacher's targets, (rows, dim)."""
    return lambda count: space(sample(statistics, count, f"the head of teacher {teacher}"))


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
