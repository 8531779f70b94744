"""From a student's embedding to that of a teacher: a head, and the way back from its target."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools import Statistics
from distill.heads import Head, HeadBank


class TeacherSpace(nn.Module):
    """A head and the way back from its target to the teacher's raw embedding: the mean, plus ``gain`` times the target.

    A head that predicts a direction gives it the length that targets have on average (root mean square).

    Args:
        head: predicts the target.
        dim: width of the teacher's embedding; dimensions that the target lacks stay at their mean.
        targets: width of the target.
        matrix: the gain is a matrix, of a normaliser that mixes dimensions.
    """

    places: Tensor  # (targets,): dimensions of the embedding that the target has
    gain: Tensor  # (targets,), or (targets, targets)
    mean: Tensor  # (dim,): the embedding of a target of zeros
    length: Tensor  # (): of a target; only where the head predicts a direction

    def __init__(self, head: Head, dim: int, targets: int, matrix: bool = False):
        super().__init__()
        self.head = head
        self.register_buffer("places", torch.arange(targets))
        self.register_buffer("gain", torch.eye(targets) if matrix else torch.ones(targets))
        self.register_buffer("mean", torch.zeros(dim))
        if head.predicts_direction:
            self.register_buffer("length", torch.ones(()))

    def forward(self, student: Tensor) -> Tensor:
        """The teacher's expected embedding, (batch, dim), of ``student`` (batch, student_dim)."""
        target = self.head.predict(student)
        assert target is not None, "such a head is not exported"
        if self.head.predicts_direction:
            target = self.length * F.normalize(target, dim=-1)
        raw = target @ self.gain if self.gain.dim() > 1 else self.gain * target  # (batch, targets)
        return self.mean.repeat(len(student), 1).index_add(1, self.places, raw)


def teacher_spaces(bank: HeadBank, statistics: Mapping[str, Statistics]) -> tuple[dict[str, TeacherSpace], dict[str, str]]:
    """The spaces of the teachers whose raw embedding a head can give, and why others have none.

    Args:
        bank: of a run, trained.
        statistics: teacher -> those of its embeddings.
    """
    spaces, reasons = {}, {}
    for name in bank.teachers:
        head, normaliser = bank.head(name), bank.normaliser(name)
        inverse = normaliser.inverse()
        if type(head).predict is Head.predict or head.ladder or (head.scale_free and not head.predicts_direction):
            reasons[name] = "its head predicts none from it alone"
        elif inverse is None:
            reasons[name] = f"{type(normaliser).__name__} has no way back"
        else:
            places, gain, shift = (part.cpu() for part in inverse)
            mean = torch.from_numpy(statistics[name].mean).float()
            spaces[name] = space = TeacherSpace(head, len(mean), len(places), gain.dim() > 1)
            space.places, space.gain, space.mean = places, gain, mean.index_copy(0, places, shift)
            if head.predicts_direction:
                space.length = (normaliser.var + normaliser.mean.square()).sum().sqrt().cpu()
    return spaces, reasons
