import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from distill.probes import LogisticProbe, RidgeProbe


def data(rows: int, dim: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, dim)) @ rng.normal(size=(dim, dim)) * rng.uniform(0.01, 10, dim) + 5
    x[:, 0] = 3.0  # constant
    signal = x @ rng.normal(size=(dim, 2)) / np.sqrt(dim)
    return x.astype(np.float32), signal + rng.normal(size=signal.shape) * signal.std(0) * 0.5


def parts(*arrays, rows=300):
    return [(a[: rows // 2], a[rows // 2 : 3 * rows // 4], a[3 * rows // 4 :]) for a in arrays]


def by_scikit_learn(make, score, strengths, x, y):
    """The protocol, naively: scale on train, choose on validation, refit on both, test once."""
    out = []
    for label in range(y[0].shape[1]):
        xs, ys = [], []
        for a, b in zip(x, y, strict=True):
            known = np.isfinite(b[:, label])
            xs.append(a[known])
            ys.append(b[known, label])
        scaler = StandardScaler().fit(x[0])
        xs = [scaler.transform(each.astype(np.float64)) for each in xs]
        valid = [score(ys[1], make(each).fit(xs[0], ys[0]), xs[1]) for each in strengths]
        final = make(strengths[int(np.argmax(valid))]).fit(np.concatenate(xs[:2]), np.concatenate(ys[:2]))
        out.append(score(ys[2], final, xs[2]))
    return out


@pytest.mark.parametrize("dim", [20, 500])
def test_ridge_equals_scikit_learn(dim):
    x, y = parts(*data(300, dim))
    y[0][::7, 0] = np.nan
    y[2][::5, 1] = np.nan
    probe = RidgeProbe().fit(x[0], y[0], x[1], y[1])
    expected = by_scikit_learn(
        lambda strength: Ridge(alpha=strength), lambda t, m, z: r2_score(t, m.predict(z)), RidgeProbe.strengths, x, y
    )
    np.testing.assert_allclose(probe.score(x[2], y[2])["r2"], expected, atol=1e-3)


@pytest.mark.parametrize("dim", [20, 300])
def test_logistic_regression_equals_scikit_learn(dim):
    x, y = data(300, dim)
    y = (y > np.median(y, 0)).astype(float)
    x, y = parts(x, y)
    y[0][::7, 0] = np.nan
    probe = LogisticProbe().fit(x[0], y[0], x[1], y[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = by_scikit_learn(
            lambda strength: LogisticRegression(C=1 / strength, max_iter=5000, tol=1e-8),
            lambda t, m, z: roc_auc_score(t, m.decision_function(z)),
            LogisticProbe.strengths,
            x,
            y,
        )
    np.testing.assert_allclose(probe.score(x[2], y[2])["auroc"], expected, atol=2e-3)


@pytest.mark.parametrize("probe", [RidgeProbe, LogisticProbe])
def test_the_test_rows_change_nothing_in_the_fit(probe):
    x, y = data(300, 20)
    y = (y > 0).astype(float)
    x, y = parts(x, y)
    first = probe().fit(x[0], y[0], x[1], y[1])
    assert first.scale.shape == (20,)
    assert first.scale[0] == 0, "a constant dimension must not be blown up"
    np.testing.assert_allclose(first.shift, x[0].mean(0), rtol=1e-6)


def test_a_label_that_cannot_be_scored_is_nan_and_does_not_disturb_the_others():
    x, y = data(300, 20)
    y = (y > np.median(y, 0)).astype(float)
    x, y = parts(x, y)
    alone = LogisticProbe().fit(x[0], y[0][:, 1:], x[1], y[1][:, 1:]).score(x[2], y[2][:, 1:])["auroc"]
    for part in y:
        part[:, 0] = np.nan
    both = LogisticProbe().fit(x[0], y[0], x[1], y[1]).score(x[2], y[2])["auroc"]
    assert np.isnan(both[0])
    np.testing.assert_allclose(both[1], alone[0], atol=1e-4)


def test_a_feature_that_hardly_varies_in_training_cannot_ruin_the_score():
    x, y = data(300, 20)
    x[:, 1] = 1e-4 * np.random.default_rng(1).normal(size=300)
    x[299, 1] = 5.0  # a test row
    x, y = parts(x, y)
    assert RidgeProbe().fit(x[0], y[0], x[1], y[1]).score(x[2], y[2])["r2"].min() > 0.5


def test_predictions_stay_within_the_labels_that_were_fitted():
    x, y = parts(*data(300, 20))
    probe = RidgeProbe().fit(x[0], y[0], x[1], y[1])
    fitted = np.concatenate(y[:2])
    far = probe.predict(np.concatenate([x[2] * 100, -100 * x[2]]))
    assert (far >= fitted.min(0)).all()
    assert (far <= fitted.max(0)).all()
    assert np.isclose(far.min(0), fitted.min(0)).all()


def test_noise_is_worth_nothing():
    rng = np.random.default_rng(0)
    x, y = parts(rng.normal(size=(4000, 10)).astype(np.float32), rng.integers(2, size=(4000, 1)).astype(float), rows=4000)
    assert abs(LogisticProbe().fit(x[0], y[0], x[1], y[1]).score(x[2], y[2])["auroc"][0] - 0.5) < 0.05
    assert abs(RidgeProbe().fit(x[0], y[0], x[1], y[1]).score(x[2], y[2])["r2"][0]) < 0.05


def test_labels_with_a_large_offset_are_fitted_as_well():
    x, y = data(300, 20)
    x, y = parts(x, y * 1e-3 + 1e6)
    assert RidgeProbe().fit(x[0], y[0], x[1], y[1]).score(x[2], y[2])["r2"].min() > 0.5


def test_a_constant_label_is_no_success():
    x, y = parts(*data(300, 20))
    y = [np.full_like(part, 3.7) for part in y]
    assert np.isnan(RidgeProbe().fit(x[0], y[0], x[1], y[1]).score(x[2], y[2])["r2"]).all()


def test_a_label_without_training_rows_is_nan():
    x, y = parts(*data(300, 20))
    y[0][:, 0] = y[1][:, 0] = np.nan
    scores = RidgeProbe().fit(x[0], y[0], x[1], y[1]).score(x[2], y[2])["r2"]
    assert np.isnan(scores[0])
    assert scores[1] > 0.5
