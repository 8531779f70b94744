"""Objectives against plain loops, and on two ranks."""

import math
from pathlib import Path

import pytest
import torch

from cache_tools.errors import ConfigError
from distill.heads import MseHead
from distill.objectives import RelativeLossWeights, TeacherDropping, UncertaintyWeights, WeightedSum
from distill.students.molecule import GraphStudent
from distill.training.distiller import Distiller


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("divide_by", ["pairs", "row"])
def test_dropping_is_that_of_a_plain_loop(divide_by):
    losses, valid = torch.rand(4, 6), torch.rand(4, 6) > 0.2
    valid[:, 5] = False  # a row that no teacher has seen
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0])
    objective = TeacherDropping(drop=0.5, divide_by=divide_by)
    objective.attach(list("abcd"))
    torch.manual_seed(3)
    got = objective(losses.masked_fill(~valid, torch.nan), valid, weights)
    torch.manual_seed(3)
    coins = torch.rand(4, 6)
    total, pairs, rows = 0.0, 0, []
    for row in range(6):
        mine = {k: (weights[k] * losses[k, row]).item() for k in range(4) if valid[k, row]}
        kept = [k for k in mine if mine[k] == max(mine.values()) or coins[k, row] >= 0.5]
        total, pairs = total + sum(mine[k] for k in kept), pairs + len(kept)
        rows += [sum(mine[k] for k in kept) / len(kept)] if kept else []
    assert got.item() == pytest.approx(total / pairs if divide_by == "pairs" else sum(rows) / len(rows), rel=1e-5)


def test_nothing_is_dropped_in_validation():
    losses, valid = torch.rand(4, 6), torch.ones(4, 6, dtype=torch.bool)
    objective = TeacherDropping(drop=1.0).eval()
    objective.attach(list("abcd"))
    torch.testing.assert_close(objective(losses, valid, torch.ones(4)), losses.mean())


def test_shares_balance_and_reduction():
    losses, valid = torch.tensor([[1.0], [2.0]]), torch.ones(2, 1, dtype=torch.bool)
    weights = torch.tensor([64 / 16, 64 / 48])  # a student of 64, teachers of 16 and 48

    def total(**options):
        objective = WeightedSum(**options)
        objective.attach(["a", "b"])
        return objective(losses, valid, weights).item()

    assert total() == pytest.approx(4 * 1 + 4 / 3 * 2)
    assert total(shares={"b": 3}) == pytest.approx(4 * 1 + 3 * 4 / 3 * 2)
    assert total(balance="dimensions") == pytest.approx((1 + 2) * 64 / 32)
    assert total(reduction="mean", shares={"b": 3}) == pytest.approx((4 * 1 + 3 * 4 / 3 * 2) / 4)
    for shares, message in (
        ({"c": 1.0}, "names c"),
        ({"a": math.inf}, "a is inf"),
        ({"a": 0, "b": 0}, "0 for every teacher"),
    ):
        with pytest.raises(ConfigError, match=message):
            total(shares=shares)


def test_uncertainty_weights_are_learnt_and_bounded(data, trainer):
    objective = UncertaintyWeights(bound=1.0)
    distiller = Distiller(data.statistics, GraphStudent(layers=1, width=8), MseHead, objective=objective, head_lr=0.1)
    trainer(max_epochs=1).fit(distiller, data)
    assert (objective.raw.abs() > 0).all()
    assert objective.first.isfinite().all()
    again = UncertaintyWeights(bound=1.0)
    again.attach(list("abc"))
    again.raw.data.fill_(-50)
    losses, valid = torch.full((3, 2), 7.0), torch.ones(3, 2, dtype=torch.bool)
    assert again(losses, valid, torch.ones(3)).item() == pytest.approx(3 * (math.e - 1), rel=1e-5)
    assert again.eval()(losses, valid, torch.ones(3)).item() == pytest.approx(21), "what epochs are compared by"


def test_a_learnt_weight_becomes_one_over_what_is_left_of_a_loss():
    objective, valid, weights = UncertaintyWeights(), torch.ones(2, 1, dtype=torch.bool), torch.tensor([1.0, 64.0])
    objective.attach(["a", "b"])
    optimiser = torch.optim.Adam(objective.parameters(), 1e-3)
    objective(torch.tensor([[8.0], [8.0]]), valid, weights)
    for _ in range(1500):
        optimiser.zero_grad()
        objective(torch.tensor([[4.0], [0.8]]), valid, weights).backward()
        optimiser.step()
    learnt = objective.bound * (objective.pace * objective.raw / objective.bound).tanh()
    torch.testing.assert_close(learnt.exp(), torch.tensor([0.5, 0.1]), rtol=0.01, atol=0)


def test_a_learnt_weight_comes_back_from_its_bound():
    objective, valid, weights = UncertaintyWeights(bound=1.0), torch.ones(1, 1, dtype=torch.bool), torch.ones(1)
    objective.attach(["a"])
    optimiser = torch.optim.Adam(objective.parameters(), 1e-2)
    losses = [torch.tensor([[each]]) for each in [1.0, *[0.001] * 30, *[1.0] * 90]]
    found = []
    for each in losses:
        optimiser.zero_grad()
        total = objective(each, valid, weights)
        total.backward()
        optimiser.step()
        found.append(total.item())
    assert found[30] < -0.9, "as light as may be"
    assert found[-1] == pytest.approx(1.0, abs=0.05), "a loss that is again what it was weighs what it did"


@pytest.mark.parametrize("made", [UncertaintyWeights, RelativeLossWeights])
def test_a_negative_loss_is_not_divided(made):
    objective = made()
    objective.attach(["a", "b"])
    valid, weights = torch.ones(2, 1, dtype=torch.bool), torch.ones(2)
    objective(torch.tensor([[4.0], [4.0]]), valid, weights)
    with pytest.raises(ConfigError, match=f"{made.__name__} divides losses, and one is negative"):
        objective(torch.tensor([[-1.0], [1.0]]), valid, weights)


def test_a_teacher_that_falls_behind_weighs_more():
    objective = RelativeLossWeights(memory=1.0)
    objective.attach(["a", "b"])
    valid, weights = torch.ones(2, 1, dtype=torch.bool), torch.ones(2)
    objective(torch.tensor([[4.0], [4.0]]), valid, weights)
    losses = torch.tensor([[1.0], [3.0]], requires_grad=True)
    objective(losses, valid, weights).backward()
    share = 2 * torch.tensor([0.25, 0.75]).div(0.5).softmax(0)
    torch.testing.assert_close(losses.grad.squeeze(1), share)


OBJECTIVES = {
    "sum": WeightedSum,
    "pairs": lambda: TeacherDropping(drop=0.0),
    "row": lambda: TeacherDropping(drop=0.0, divide_by="row"),
    "uncertainty": UncertaintyWeights,
    "relative": RelativeLossWeights,
}


def gradients(rank: int, ranks: int, folder: Path) -> None:
    """Writes the gradient of this rank's losses under every objective; ranks have rows, and masks, of their own."""
    if ranks > 1:
        torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=ranks)
    generator = torch.Generator().manual_seed(0)
    losses, valid = torch.rand(3, 8, generator=generator), torch.rand(3, 8, generator=generator) > 0.4
    valid[1, :3] = False  # a teacher without a row on the first rank
    mine = slice(0, 8) if ranks == 1 else slice(0, 3) if rank == 0 else slice(3, 8)
    found = {}
    for name, made in OBJECTIVES.items():
        objective = made()
        objective.attach(list("abc"))
        for factor in (1.0, 0.5):  # the second step knows the first
            each = (factor * losses[:, mine]).requires_grad_()
            objective(each, valid[:, mine], torch.tensor([1.0, 2.0, 0.5])).backward()
            found[f"{name} {factor}"] = each.grad / ranks  # as DDP averages
        learnt = [parameter.grad for parameter in objective.parameters()]
        found |= {f"{name}, weights": torch.cat(learnt).unsqueeze(1) / ranks} if learnt else {}
    torch.save(found, folder / f"{ranks}-{rank}.pt")


def test_two_ranks_minimise_what_one_does(tmp_path):
    torch.multiprocessing.start_processes(gradients, (2, tmp_path), nprocs=2, start_method="fork")
    gradients(0, 1, tmp_path)
    one, *two = (torch.load(tmp_path / f"{each}.pt") for each in ("1-0", "2-0", "2-1"))
    for name, expected in one.items():
        both = [each[name] for each in two]
        torch.testing.assert_close(sum(both) if "weights" in name else torch.cat(both, 1), expected)
