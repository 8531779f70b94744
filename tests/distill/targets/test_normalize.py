"""Normalisers against what they promise of real rows."""

import numpy as np
import pytest
import torch

from cache_tools.errors import ConfigError
from distill.data.module import DistillData
from distill.targets import (
    GlobalScalar,
    HadamardWhitening,
    PcaWhitening,
    PhiS,
    Standardise,
    TeacherStatistics,
    ZcaWhitening,
)
from distill.targets.hadamard import hadamard


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_every_multiple_of_4_has_a_hadamard_matrix_or_none_that_is_known():
    missing = []
    for order in range(4, 1025, 4):
        found = hadamard(order)
        if found is None:
            missing.append(order)
            continue
        assert found.shape == (order, order)
        assert set(np.unique(found)) == {-1, 1}
        whole = found.astype(np.float64)
        assert (whole @ whole.T == order * np.eye(order)).all(), order
    assert len(missing) == 67
    assert missing[:4] == [52, 92, 100, 116]
    assert hadamard(300) is not None
    assert hadamard(7) is None


@pytest.mark.parametrize("cls", [PcaWhitening, ZcaWhitening, HadamardWhitening])
def test_whitened_rows_have_the_identity_as_covariance(data, cls):
    known = data.statistics["counts"]
    normal = cls(known, shrinkage=0.0)
    values = np.linalg.eigvalsh(np.cov(known.rows(10_000).numpy()[:, normal.kept].T, bias=True))
    rows = normal(known.rows(10_000))
    covariance = rows.T.double() @ rows.double() / len(rows)
    alive = normal.dim if cls is not PcaWhitening else int((values > 1e-6).sum())
    torch.testing.assert_close(covariance[:alive, :alive], torch.eye(alive).double(), atol=2e-2, rtol=0)
    torch.testing.assert_close(normal.var[:alive], torch.ones(alive), atol=2e-2, rtol=0)


@pytest.mark.parametrize("cls", [PcaWhitening, PhiS])
def test_a_machine_that_chooses_other_signs_of_eigenvectors_makes_the_same_targets(data, cls, monkeypatch):
    known, eigh = data.statistics["counts"], torch.linalg.eigh
    rows = cls(known)(known.rows(50))

    def other_signs(covariance):
        values, vectors = eigh(covariance)
        return values, vectors * (torch.arange(len(values)) % 2 * 2 - 1)

    monkeypatch.setattr(torch.linalg, "eigh", other_signs)
    torch.testing.assert_close(cls(known)(known.rows(50)), rows)


def test_a_limit_moves_what_lies_beyond_it(data):
    known = data.statistics["counts"]
    rows, plain = known.rows(10_000), Standardise(known)
    assert plain(rows).abs().max() > 4
    limited, moved = Standardise(known, limit=4.0), plain(rows).clamp(-4, 4)
    torch.testing.assert_close(limited(rows), moved)
    torch.testing.assert_close(limited.var, moved.var(0, correction=0))
    torch.testing.assert_close(limited.mean, moved.mean(0))
    with pytest.raises(ConfigError, match="above 0"):
        Standardise(known, limit=0.0)


@pytest.mark.parametrize("cls", [GlobalScalar, PhiS])
def test_one_scale_keeps_the_proportions_of_distances(data, cls):
    known = data.statistics["counts"]
    normal, raw = cls(known), known.rows(50)
    before, after = torch.pdist(raw), torch.pdist(normal(raw))
    torch.testing.assert_close(after / before, (after[0] / before[0]).expand_as(before), rtol=1e-3, atol=0)
    rows = normal(known.rows(10_000))
    assert rows.var(0, correction=0).mean().item() == pytest.approx(1, abs=2e-2)


def test_phi_s_gives_every_dimension_variance_1_where_there_is_a_hadamard_matrix(data):
    known = data.statistics["counts"]
    normal = PhiS(known)
    assert hadamard(normal.dim) is not None, "128 counts that all vary"
    torch.testing.assert_close(normal(known.rows(10_000)).var(0, correction=0), torch.ones(normal.dim), atol=3e-2, rtol=0)


def test_statistics_for_whitening_come_from_the_rows_to_train_on(cache):
    data = DistillData(cache / "mol", batch_size=32, held_out=200)
    known, held = data.statistics["counts"], data.sources[0].held_out
    column = data.corpora[0].teachers["counts"]
    train = np.setdiff1d(np.arange(len(column)), held)
    torch.testing.assert_close(known.rows(10**6), column.rows(train).float())
    assert len(known.rows(10)) == 10


def test_means_and_variances_are_those_of_the_rows_to_train_on(cache):
    data = DistillData(cache / "mol", batch_size=32, held_out=200)
    for name, column in data.corpora[0].teachers.items():
        train = np.setdiff1d(np.arange(len(column)), data.sources[0].held_out)
        rows, known = column.rows(train)[column.valid(train)].double().numpy(), data.statistics[name]
        assert known.count == len(rows)
        np.testing.assert_allclose(known.mean, rows.mean(0), rtol=1e-3, atol=1e-3)  # stored in float16
        varies = rows.var(0) > 0  # where only held-out rows vary, the variance is that of all rows
        np.testing.assert_allclose(known.var[varies], rows.var(0)[varies], rtol=1e-2, atol=1e-3)
        assert varies.mean() > 0.8
        assert not np.allclose(known.mean, column.statistics.mean, rtol=1e-6)


def test_whitening_of_fewer_rows_than_dimensions_is_refused(cache):
    data = DistillData(cache / "mol", batch_size=8, held_out=300)
    known = data.statistics["counts"]
    few = TeacherStatistics(known.count, known.mean, known.var, lambda count: known.rows(60))
    with pytest.raises(ConfigError, match="PcaWhitening of 128 dimensions from 60 rows"):
        PcaWhitening(few)
    PhiS(few)


def test_whitening_without_rows_says_what_it_needs(data):
    from cache_tools.format.statistics import Statistics

    known = data.statistics["counts"]
    with pytest.raises(ConfigError, match="needs rows"):
        ZcaWhitening(Statistics(known.count, known.mean, known.var))
    with pytest.raises(ConfigError, match="shrinkage"):
        ZcaWhitening(known, shrinkage=2)
