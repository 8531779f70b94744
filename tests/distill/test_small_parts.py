"""Normalisers, objective, order, metrics: against numpy or a plain loop."""

import numpy as np
import pytest
import torch

from cache_tools.format.statistics import Statistics
from distill.heads import CosineHead, GaussianHead, MseHead
from distill.objectives import WeightedSum
from distill.targets import Raw, Standardise
from distill.training.metrics import TeacherMetrics


def test_standardise_leaves_constant_dimensions_out():
    x = np.random.default_rng(0).normal(3, 5, (200, 4)).astype(np.float32)
    x[:, 2] = 7.0
    normal = Standardise(Statistics.of(x))
    y = normal(torch.from_numpy(x))
    assert normal.dim == 3
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(0, unbiased=False), 1, atol=1e-5)
    assert torch.isfinite(normal(torch.full((1, 4), 1e4, dtype=torch.float16))).all()


def test_raw_changes_nothing():
    x = torch.randn(5, 3).half()
    torch.testing.assert_close(Raw(Statistics.of(x.numpy()))(x), x.float())


def test_weighted_sum_ignores_rows_that_a_teacher_has_not_seen():
    losses = torch.tensor([[1.0, 2.0, float("nan")], [4.0, 5.0, 6.0]], requires_grad=True)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    total = WeightedSum()(losses, valid, torch.tensor([2.0, 1.0]))
    total.backward()
    assert total.item() == pytest.approx(2 * 1.5 + 5)
    assert losses.grad.tolist() == [[1, 1, 0], pytest.approx([1 / 3] * 3)]


def test_a_teacher_without_any_valid_row_adds_nothing():
    losses = torch.tensor([[3.0, 3.0], [1.0, 1.0]])
    valid = torch.tensor([[False, False], [True, True]])
    assert WeightedSum()(losses, valid, torch.ones(2)).item() == 1


@pytest.mark.parametrize("head", [GaussianHead(4, 3), MseHead(4, 3), CosineHead(4, 3)])
def test_metrics_over_batches_equal_the_metrics_of_all_rows(head):
    torch.manual_seed(0)
    student, target = torch.randn(64, 4), torch.randn(64, 3)
    normal = Raw(Statistics.of(target.numpy()))
    whole, parts = TeacherMetrics(3), TeacherMetrics(3)
    with torch.no_grad():
        whole.update(head, normal, head(student, target), student, target)
        for s, t in zip(student.split(24), target.split(24), strict=True):
            parts.update(head, normal, head(s, t), s, t)
    assert whole.named(head).keys() == parts.named(head).keys()
    torch.testing.assert_close(list(whole.named(head).values()), list(parts.named(head).values()), rtol=1e-4, atol=1e-5)


def test_predicting_the_corpus_mean_is_the_zero_line():
    torch.manual_seed(0)
    target = torch.randn(500, 3) * 2 + 1
    normal = Raw(Statistics.of(target.numpy()))
    head = GaussianHead(4, 3, layers=0, bounded=False)
    with torch.no_grad():
        head.mlp[0].weight.zero_()
        head.mlp[0].bias.copy_(torch.cat([torch.zeros(1), normal.mean, -0.5 * normal.var.log()]))
        student = torch.randn(500, 4)
        metrics = TeacherMetrics(3)
        metrics.update(head, normal, head(student, target), student, target)
    named = metrics.named(head)
    assert named["r2"].item() == pytest.approx(0, abs=1e-5)
    assert named["nats"].item() == pytest.approx(0, abs=1e-5)
