"""The bank of heads on plain tensors, without Lightning."""

import numpy as np
import pytest
import torch

from cache_tools import ConfigError, Statistics
from distill.heads import (
    BernoulliHead,
    CosineHead,
    DirectHead,
    GaussianHead,
    HeadBank,
    MixHead,
    MseHead,
    QueueHead,
    RelationHead,
)
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


def bank(head=MseHead, dims=(), **heads) -> HeadBank:
    return HeadBank(Blocks(), statistics(), head, heads, Standardise, dims=dims)


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


def test_the_loss_of_a_teacher_is_the_mean_over_the_prefixes_and_the_whole_embedding():
    made = bank(GaussianHead, [2, 4], b=QueueHead)
    student, targets, valid = batch(made)
    losses = made(student, targets, valid)
    for loss, name in zip(losses, TEACHERS, strict=True):
        heads = {2: made.prefixes["2"][name], 4: made.prefixes["4"][name], 6: made.heads[name]}
        by_hand = [head(student[:, :length], targets[name]) for length, head in heads.items()]
        torch.testing.assert_close(loss, torch.stack(by_hand).mean(0))
    whole = made(student, targets, valid, prefixes=False)
    torch.testing.assert_close(whole[0], made.heads["a"](student, targets["a"]))
    student.requires_grad_()
    made(student, targets, valid).sum().backward()
    assert all(parameter.grad is not None for heads in made.prefixes.values() for parameter in heads.parameters())


def test_prefixes_draw_nothing_that_the_heads_of_the_whole_embedding_draw():
    states = []
    for dims in ((), [2, 4]):
        torch.manual_seed(0)
        made = bank(MseHead, dims)
        states.append(made.heads.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert len(bank().prefixes) == 0


def test_heads_on_a_prefix_are_computed_together_with_the_same_result():
    made = bank(GaussianHead, [4], b=BernoulliHead)
    student, targets, valid = batch(made)
    together = made.group_losses(["a", "b"], student[:, :4], targets, made.prefixes["4"])
    alone = [made.prefixes["4"][name](student[:, :4], targets[name]) for name in TEACHERS]
    torch.testing.assert_close(torch.stack(list(together.values())), torch.stack(alone))
    torch.testing.assert_close(made(student, targets, valid)[0], (alone[0] + made.heads["a"](student, targets["a"])) / 2)


@pytest.mark.parametrize("dims", [[4, 2], [2, 2], [0, 2], [2, 6], [-1]])
def test_lengths_that_are_no_prefixes_are_refused(dims):
    with pytest.raises(ConfigError, match=r"model.dims is \[.*\], expected ascending lengths from 1 to 5: prefixes of the"):
        bank(MseHead, dims)


def test_a_head_that_cannot_read_a_prefix_is_refused():
    with pytest.raises(
        ConfigError, match=r"the MixHead of teacher b reads every block of the student and cannot read a pre"
    ):
        bank(MseHead, [2], b=lambda s, t: MixHead(s, t, ladder=True))
    wide = {"a": TeacherStatistics(9, np.ones(6), np.ones(6), lambda count: torch.rand(count, 6))}
    with pytest.raises(
        ConfigError, match=r"the DirectHead of teacher a reads the whole embedding and cannot read a prefix"
    ):
        HeadBank(Blocks(), wide, DirectHead, {}, Standardise, dims=[2])
    assert HeadBank(Blocks(), wide, CosineHead, {}, Standardise, dims=[2]).dims == [2]
