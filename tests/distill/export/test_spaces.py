"""From what a head predicts to the teacher's own embedding, and the search of an index that the teacher made."""

import numpy as np
import pytest
import torch

from cache_tools import Statistics
from distill.data.batch import Batch
from distill.evaluation.search import recall, search_recall
from distill.export.spaces import teacher_spaces
from distill.heads import CosineHead, HeadBank, KlHead, MixHead, MseHead, RelationHead
from distill.report.sections import training_table
from distill.students.base import Student
from distill.targets import (
    GlobalScalar,
    HadamardWhitening,
    Normaliser,
    PcaWhitening,
    PhiS,
    Raw,
    Standardise,
    TeacherStatistics,
    ZcaWhitening,
)

WIDE, ROWS = 6, 400


@pytest.fixture
def rows() -> torch.Tensor:
    """Embeddings whose dimensions depend on each other, of several sizes, with a mean; dimension 2 is constant."""
    random = torch.Generator().manual_seed(0)
    mixed = torch.randn(ROWS, WIDE, generator=random) @ torch.randn(WIDE, WIDE, generator=random)
    mixed = mixed * torch.tensor([1, 10, 0, 0.1, 1, 3]) + torch.tensor([0, 5, 7, 1, -2, 0])
    return mixed.float()


@pytest.fixture
def statistics(rows) -> TeacherStatistics:
    known = Statistics.of(rows.numpy())
    return TeacherStatistics(known.count, known.mean, known.var, lambda count: rows[:count])


class Passed(Student):
    """Its embedding is what it reads."""

    input, dim = "x", WIDE

    def embeddings(self, rows):
        return [rows]


class Oracle(MseHead):
    """It predicts the target without an error."""

    scale = 1.0

    def predict(self, student):
        return self.scale * self.normaliser(student)


class Direction(Oracle):
    """It predicts the direction of the target."""

    scale_free = predicts_direction = True
    scale = 0.01


@pytest.mark.parametrize(
    "cls",
    [Raw, Standardise, GlobalScalar, PcaWhitening, ZcaWhitening, HadamardWhitening, PhiS],
    ids=lambda cls: cls.__name__,
)
def test_every_normaliser_s_way_back_gives_the_embedding(rows, statistics, cls):
    bank = HeadBank(Passed(), {"t": statistics}, Oracle, {}, cls)
    bank.head("t").normaliser = bank.normaliser("t")
    spaces, reasons = teacher_spaces(bank, {"t": statistics})
    torch.testing.assert_close(spaces["t"](rows), rows, atol=1e-3, rtol=1e-3)
    assert not reasons


@pytest.mark.parametrize("cls", [Raw, Standardise, PhiS])
def test_a_head_of_directions_gives_the_length_of_a_target_on_average(rows, statistics, cls):
    bank = HeadBank(Passed(), {"t": statistics}, Direction, {}, cls)
    normaliser = bank.head("t").normaliser = bank.normaliser("t")
    target = normaliser(teacher_spaces(bank, {"t": statistics})[0]["t"](rows))
    torch.testing.assert_close(torch.cosine_similarity(target, normaliser(rows)), torch.ones(ROWS), atol=1e-3, rtol=0)
    length = normaliser(rows).square().sum(1).mean().sqrt().item()
    torch.testing.assert_close(target.norm(dim=1), torch.full((ROWS,), length), atol=0, rtol=2e-2)


def test_a_teacher_without_a_way_back_has_its_reason(statistics):
    class Squared(Standardise):
        def inverse(self):
            return Normaliser.inverse(self)

    heads = {"pairs": RelationHead, "logits": KlHead, "cosine": CosineHead, "mix": MixHead, "squared": MseHead}
    known = dict.fromkeys(heads, statistics)
    spaces, reasons = teacher_spaces(HeadBank(Passed(), known, MseHead, heads, Standardise), known)
    assert set(spaces) == {"cosine", "mix", "squared"}
    assert reasons == dict.fromkeys(("pairs", "logits"), "its head predicts none from it alone")
    _, reasons = teacher_spaces(HeadBank(Passed(), known, MseHead, {}, Squared), known)
    assert set(reasons.values()) == {"Squared has no way back"}


def test_the_recall_of_the_teacher_s_own_queries_is_1_and_that_of_others_is_chance():
    random = np.random.default_rng(0)
    index, other = (torch.from_numpy(random.normal(size=(500, 20))) for _ in range(2))
    assert recall(index, index) == 1
    assert recall(3 * index, index) == 1, "the length of a query does not matter"
    assert recall(other, index) == pytest.approx(10 / 499, abs=0.01)
    near = index + other / 2
    shared = []
    for row in range(500):
        others = [each for each in range(500) if each != row]
        wanted, found = (
            set(np.argsort(-torch.cosine_similarity(query[row : row + 1], index[others]).numpy())[:10])
            for query in (index, near)
        )
        shared.append(len(wanted & found) / 10)
    assert recall(near, index) == pytest.approx(np.mean(shared))
    assert 0.1 < np.mean(shared) < 0.9


def test_a_search_counts_valid_rows_alone(rows, statistics):
    valid, number = torch.arange(ROWS) < 300, torch.arange(ROWS)
    targets = torch.where(valid.unsqueeze(1), rows, torch.nan)
    batch = Batch({"x": rows}, {"t": targets}, {"t": valid}, number, torch.zeros_like(number))
    bank = HeadBank(Passed(), {"t": statistics}, Oracle, {}, Standardise)
    bank.head("t").normaliser = bank.normaliser("t")
    spaces, _ = teacher_spaces(bank, {"t": statistics})
    assert search_recall(Passed(), spaces, [batch], "cpu") == {"t": {"recall@10": pytest.approx(1, abs=0.01), "rows": 300}}


def test_the_report_has_a_column_of_it(tmp_path):
    from distill.records import Results
    from distill.run_folder import RunFolder

    (tmp_path / "metrics.csv").write_text("epoch,r2/a,r2/b,step,val/loss\n0,0.25,0.5,7,1.0\n")
    search = {"a": {"recall@10": 0.6942, "rows": 1000}}
    table = training_table({"x": Results(RunFolder(tmp_path), [], {}, {"search": search})})
    assert (table.head, table.rows) == (["teacher", "r2", "recall@10"], [["a", "0.250", "0.694"], ["b", "0.500", "-"]])
    assert table.note.startswith("recall@10: of the ten held-out items nearest")
