"""The bank of heads on plain tensors, without Lightning."""

import numpy as np
import pytest
import torch

from cache_tools import ConfigError, Statistics
from distill.heads import BernoulliHead, GaussianHead, HeadBank, MixHead, MseHead, QueueHead, RelationHead
from distill.students.base import Student
from distill.targets import Standardise, TeacherStatistics

TEACHERS = {"a": 5, "b": 3}


class Blocks(Student):
    """Two blocks, 4 and 6 wide."""

    input, dim = "pixels", 6
    widths = (4, 6)

    def embeddings(self, rows):
        return [rows[:, :4], rows[:, 4:]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def statistics() -> dict[str, TeacherStatistics]:
    made = {}
    for name, dim in TEACHERS.items():
        rows = torch.rand(50, dim)
        known = Statistics.of(rows.numpy())
        made[name] = TeacherStatistics(known.count, known.mean, known.var, lambda count, rows=rows: rows[:count])
    return made


def bank(head=MseHead, **heads) -> HeadBank:
    return HeadBank(Blocks(), statistics(), head, heads, Standardise)


def batch(made: HeadBank, width: int = 6):
    student = torch.randn(8, width)
    targets = made.targets({name: torch.rand(8, dim) for name, dim in TEACHERS.items()})
    return student, targets, {name: torch.rand(8) > 0.3 for name in TEACHERS}


def test_losses_are_those_of_each_head_in_the_order_of_the_teachers():
    made = bank(GaussianHead, b=BernoulliHead)
    student, targets, valid = batch(made)
    losses = made(student, targets, valid)
    assert losses.shape == (2, 8)
    for loss, name in zip(losses, TEACHERS, strict=True):
        torch.testing.assert_close(loss, made.heads[name](student, targets[name]))
    assert made.weights.tolist() == pytest.approx([6 / 5, 6 / 3])


def test_heads_with_a_ladder_read_every_block_and_others_the_last_one():
    made = bank(MseHead, b=lambda s, t: MixHead(s, t, ladder=True))
    assert made.ladder
    blocks, targets, valid = batch(made, width=10)
    losses = made(blocks, targets, valid)
    torch.testing.assert_close(losses[0], made.heads["a"](blocks[:, 4:], targets["a"]))
    torch.testing.assert_close(losses[1], made.heads["b"](blocks, targets["b"]))
    assert made.weights[1] == 1, "a mean over dimensions is not weighted by their number"


def test_heads_that_compare_rows_see_valid_ones_only():
    made = bank(RelationHead)
    student, targets, valid = batch(made)
    losses = made(student, targets, valid)
    for loss, name in zip(losses, TEACHERS, strict=True):
        ok = valid[name]
        torch.testing.assert_close(loss[ok], made.heads[name](student[ok], targets[name][ok]))


def test_heads_of_equal_hidden_layers_are_computed_together_with_the_same_result():
    made = bank(GaussianHead, b=BernoulliHead)
    assert made.groups == [["a", "b"]]
    student, targets, valid = batch(made)
    together = made.group_losses(["a", "b"], student, targets)
    torch.testing.assert_close(torch.stack(list(together.values())), made(student, targets, valid))
    assert HeadBank(Blocks(), statistics(), MseHead, {}, Standardise, grouped=False).groups == []
    assert bank(MseHead, b=lambda s, t: MseHead(s, t, width=8)).groups == []


def test_a_head_that_wants_raw_targets_gets_them():
    made = bank(b=BernoulliHead)
    embeddings = {name: torch.rand(8, dim) for name, dim in TEACHERS.items()}
    assert torch.equal(made.targets(embeddings)["b"], embeddings["b"])
    assert not torch.equal(made.targets(embeddings)["a"], embeddings["a"])


def test_parameters_and_losses_stay_in_float32_under_a_half_student():
    made = bank(GaussianHead)
    made.heads.to(torch.bfloat16)
    student, targets, valid = batch(made)
    assert {parameter.dtype for parameter in made.heads.parameters()} == {torch.float32}
    assert made(student.bfloat16(), targets, valid).dtype == torch.float32


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="model.heads names c; the teachers are: a, b"):
        bank(c=MseHead)
    constant = {"a": Statistics(9, np.ones(3), np.zeros(3))}
    with pytest.raises(ConfigError, match="teacher a is constant over the corpus"):
        HeadBank(Blocks(), constant, MseHead, {}, Standardise)
    plain = {"a": Statistics(9, np.ones(3), np.ones(3))}
    with pytest.raises(ConfigError, match="the head of teacher a needs rows of the teacher: take the statistics of a Dist"):
        HeadBank(Blocks(), plain, QueueHead, {}, Standardise)
