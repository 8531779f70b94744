"""Search an index that a teacher made, by the embedding that the student expects of that teacher."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from distill.data.batch import Batch
from distill.export.spaces import TeacherSpace
from distill.records import RECALL
from distill.students.base import Student

NEIGHBOURS = 10

ROWS = 2_000  # held-out rows of the index, at most


def search_recall(
    student: Student, spaces: Mapping[str, TeacherSpace], batches: Iterable[Batch], device: str
) -> dict[str, dict[str, float]]:
    """Teacher -> ``recall@10`` of the student's queries, and the ``rows`` of the index.

    The index holds a teacher's raw embeddings of held-out rows. Each row is a query twice: by the teacher's own embedding
    and by the one that the student expects. The recall is the share of the ten rows nearest to the former that are also
    among the ten nearest to the latter, by cosine, without the row itself.

    Args:
        student: trained.
        spaces: of its teachers.
        batches: held-out rows; the first 2,000 are taken.
        device: where it runs.
    """
    expected: dict[str, list[Tensor]] = {name: [] for name in spaces}
    stored: dict[str, list[Tensor]] = {name: [] for name in spaces}
    student, rows = student.to(device).eval(), 0
    with torch.inference_mode():
        for batch in batches:
            here = batch.to(device)
            embedded = student(here.inputs).float()
            for name, space in spaces.items():
                valid = here.valid[name]
                expected[name].append(space.to(device).eval()(embedded[valid]).float().cpu())
                stored[name].append(here.targets[name][valid].float().cpu())
            if (rows := rows + len(batch.rows)) >= ROWS:
                break
    indexes = {name: torch.cat(parts)[:ROWS] for name, parts in stored.items() if parts}
    return {
        name: {RECALL: recall(torch.cat(expected[name])[:ROWS], index), "rows": len(index)}
        for name, index in indexes.items()
        if len(index) > NEIGHBOURS
    }


def recall(queries: Tensor, index: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """The share of each row's neighbours in ``index`` (rows, dim) that its query among ``queries`` (rows, dim) finds, too.

    Example:
        >>> index, queries = torch.tensor([[1, 0], [1, 0.1], [0, 1]]), torch.tensor([[0, 1], [1, 0], [1, 1]])
        >>> round(recall(queries, index, neighbours=1), 2)  # the first query finds the third row
        0.67
    """
    wanted, found = _nearest(index, index, neighbours), _nearest(queries, index, neighbours)
    return float((found.unsqueeze(2) == wanted.unsqueeze(1)).any(1).double().mean())


def _nearest(queries: Tensor, index: Tensor, neighbours: int) -> Tensor:
    """The rows of ``index`` nearest to each query by cosine, without its own, (rows, neighbours)."""
    cosines = F.normalize(queries.double()) @ F.normalize(index.double()).T  # (rows, rows)
    return cosines.fill_diagonal_(-torch.inf).topk(neighbours).indices
