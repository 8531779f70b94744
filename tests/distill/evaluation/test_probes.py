import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, balanced_accuracy_score, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from distill.evaluation.probes import (
    TRAINED,
    ClusterProbe,
    KnnProbe,
    LogisticProbe,
    MlpProbe,
    PairProbe,
    RidgeProbe,
    SimilarityProbe,
    SoftmaxProbe,
)


def data(rows: int, dim: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, dim)) @ rng.normal(size=(dim, dim)) * rng.uniform(0.01, 10, dim) + 5
    x[:, 0] = 3.0  # constant
    signal = x @ rng.normal(size=(dim, 2)) / np.sqrt(dim)
    return x.astype(np.float32), signal + rng.normal(size=signal.shape) * signal.std(0) * 0.5


def correlated(rows: int, dim: int, seed: int = 0):
    """Like the embedding of a graph network: squares that differ by ten million between the principal axes."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, dim))
    x = hidden * np.logspace(0, -3.5, dim) @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    signal = hidden @ rng.normal(size=(dim, 2)) * 0.5 + 10 * hidden[:, :2]
    return x.astype(np.float32), signal + rng.normal(size=signal.shape) * signal.std(0) * 0.2


def parts(*arrays, rows=300):
    return [(a[: rows // 2], a[rows // 2 : 3 * rows // 4], a[3 * rows // 4 :]) for a in arrays]


def fitted(x, y):
    """Training and validation rows as a probe is fitted to them."""
    fold = np.concatenate([np.full(len(x[0]), TRAINED), np.zeros(len(x[1]), int)])
    return np.concatenate(x[:2]), np.concatenate(y[:2]), fold


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
        xs = [np.clip(scaler.transform(each.astype(np.float64)), -10, 10) for each in xs]
        valid = [score(ys[1], make(each).fit(xs[0], ys[0]), xs[1]) for each in strengths]
        final = make(strengths[int(np.argmax(valid))]).fit(np.concatenate(xs[:2]), np.concatenate(ys[:2]))
        out.append(score(ys[2], final, xs[2]))
    return out


def logistic_by_scikit_learn(x, y):
    def make(strength):
        return LogisticRegression(C=1 / strength, max_iter=10_000, tol=1e-8)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return by_scikit_learn(
            make, lambda t, m, z: roc_auc_score(t, m.decision_function(z)), LogisticProbe.strengths, x, y
        )


HARD = [
    (data, 20),
    (data, 500),
    (correlated, 60),
    (correlated, 400),
]  # rows are 300: 500 and 400 are more features than rows


@pytest.mark.parametrize(("make", "dim"), HARD)
def test_ridge_equals_scikit_learn(make, dim):
    x, y = parts(*make(300, dim))
    y[0][::7, 0] = np.nan
    y[2][::5, 1] = np.nan
    probe = RidgeProbe().fit(*fitted(x, y))
    expected = by_scikit_learn(
        lambda strength: Ridge(alpha=strength), lambda t, m, z: r2_score(t, m.predict(z)), RidgeProbe.strengths, x, y
    )
    np.testing.assert_allclose(probe.score(x[2], y[2])["r2"], expected, atol=1e-3)


@pytest.mark.parametrize(("make", "dim"), HARD)
def test_ridge_of_every_strength_predicts_as_scikit_learns(make, dim):
    x, y = parts(*make(300, dim))
    scaler, labels = StandardScaler().fit(x[0]), np.concatenate(y[:2])
    for strength in RidgeProbe.strengths[::4]:
        probe = RidgeProbe()
        probe.strengths = np.array([strength])
        other = Ridge(alpha=strength).fit(scaler.transform(np.concatenate(x[:2]).astype(np.float64)), labels)
        expected = np.clip(other.predict(scaler.transform(x[2].astype(np.float64))), labels.min(0), labels.max(0))
        found = probe.fit(*fitted(x, y)).predict(x[2])
        np.testing.assert_allclose(found, expected, atol=2e-3 * labels.std())


@pytest.mark.parametrize(("make", "dim"), HARD)
def test_logistic_regression_equals_scikit_learn(make, dim):
    x, y = make(300, dim)
    y = (y > np.median(y, 0)).astype(float)
    x, y = parts(x, y)
    y[0][::7, 0] = np.nan
    mine = LogisticProbe().fit(*fitted(x, y)).score(x[2], y[2])["auroc"]
    np.testing.assert_allclose(mine, logistic_by_scikit_learn(x, y), atol=1e-3)


@pytest.mark.parametrize(("make", "dim"), HARD)
def test_rare_labels_and_separable_ones_are_fitted_as_well(make, dim):
    x, y = make(1200, dim)
    rare = y[:, 0] > np.quantile(y[:, 0], 0.98)
    separable = x @ np.random.default_rng(1).normal(size=dim) > 0
    x, y = parts(x, np.stack([rare, separable], 1).astype(float), rows=1200)
    assert y[0][:, 0].sum() < 20
    mine = LogisticProbe().fit(*fitted(x, y)).score(x[2], y[2])["auroc"]
    np.testing.assert_allclose(mine, logistic_by_scikit_learn(x, y), atol=1e-3)


def test_a_label_is_fitted_alike_alone_and_beside_others():
    x, y = data(300, 40)
    y = np.concatenate([y > np.median(y, 0), y > np.quantile(y, 0.95, 0)], 1).astype(float)
    x, y = parts(x, y)
    together = LogisticProbe().fit(*fitted(x, y)).predict(x[2])
    for label in range(4):
        alone = LogisticProbe().fit(*fitted(x, [part[:, [label]] for part in y])).predict(x[2])
        np.testing.assert_allclose(together[:, label], alone[:, 0], atol=1e-2 * alone.std())


@pytest.mark.parametrize("probe", [RidgeProbe, LogisticProbe])
def test_the_test_rows_change_nothing_in_the_fit(probe):
    x, y = data(300, 20)
    y = (y > 0).astype(float)
    x, y = parts(x, y)
    first = probe().fit(*fitted(x, y))
    assert first.scale.shape == (20,)
    assert first.scale[0] == 0, "a constant dimension must not be blown up"
    np.testing.assert_allclose(first.shift, x[0].mean(0), rtol=1e-6)
    predicted = first.predict(x[2][:5])
    first.score(100 * x[2], 1 - y[2])
    np.testing.assert_array_equal(first.predict(x[2][:5]), predicted)
    np.testing.assert_allclose(first.shift, x[0].mean(0), rtol=1e-6)


def test_a_label_that_cannot_be_scored_is_nan_and_does_not_disturb_the_others():
    x, y = data(300, 20)
    y = (y > np.median(y, 0)).astype(float)
    x, y = parts(x, y)
    alone = LogisticProbe().fit(*fitted(x, [part[:, 1:] for part in y])).score(x[2], y[2][:, 1:])["auroc"]
    for part in y:
        part[:, 0] = np.nan
    both = LogisticProbe().fit(*fitted(x, y)).score(x[2], y[2])["auroc"]
    assert np.isnan(both[0])
    np.testing.assert_allclose(both[1], alone[0], atol=1e-4)


def test_a_feature_that_hardly_varies_in_training_cannot_ruin_the_score():
    x, y = data(300, 20)
    x[:, 1] = 1e-4 * np.random.default_rng(1).normal(size=300)
    x[299, 1] = 5.0  # a test row
    x, y = parts(x, y)
    assert RidgeProbe().fit(*fitted(x, y)).score(x[2], y[2])["r2"].min() > 0.5


def test_predictions_stay_within_the_labels_that_were_fitted():
    x, y = parts(*data(300, 20))
    probe = RidgeProbe().fit(*fitted(x, y))
    labels = np.concatenate(y[:2])
    far = probe.predict(np.concatenate([x[2] * 100, -100 * x[2]]))
    assert (far >= labels.min(0)).all()
    assert (far <= labels.max(0)).all()
    assert np.isclose(far.min(0), labels.min(0)).all()


def test_noise_is_worth_nothing():
    rng = np.random.default_rng(0)
    x, y = parts(rng.normal(size=(4000, 10)).astype(np.float32), rng.integers(2, size=(4000, 1)).astype(float), rows=4000)
    assert abs(LogisticProbe().fit(*fitted(x, y)).score(x[2], y[2])["auroc"][0] - 0.5) < 0.05
    assert abs(RidgeProbe().fit(*fitted(x, y)).score(x[2], y[2])["r2"][0]) < 0.05


def test_labels_with_a_large_offset_are_fitted_as_well():
    x, y = data(300, 20)
    x, y = parts(x, y * 1e-3 + 1e6)
    assert RidgeProbe().fit(*fitted(x, y)).score(x[2], y[2])["r2"].min() > 0.5


def test_a_constant_label_is_no_success():
    x, y = parts(*data(300, 20))
    y = [np.full_like(part, 3.7) for part in y]
    assert np.isnan(RidgeProbe().fit(*fitted(x, y)).score(x[2], y[2])["r2"]).all()


def test_a_label_without_training_rows_is_nan():
    x, y = parts(*data(300, 20))
    y[0][:, 0] = y[1][:, 0] = np.nan
    scores = RidgeProbe().fit(*fitted(x, y)).score(x[2], y[2])["r2"]
    assert np.isnan(scores[0])
    assert scores[1] > 0.5


# --------------------------------------------------------------------------- classes, neighbours, pairs, clusters


def classed(rows: int, dim: int, classes: int, noise: float, seed: int = 0):
    """Gaussian clouds of correlated features of very different scales, cut into training, validation and test rows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=rows)
    mix = rng.normal(size=(dim, dim)) * np.logspace(0, -3, dim)[:, None] @ rng.normal(size=(dim, dim))
    x = (rng.normal(size=(classes, dim))[y] + noise * rng.normal(size=(rows, dim))) @ mix * rng.uniform(0.01, 10, dim) + 5
    x[:, 0] = 3.0
    return [list(each) for each in parts(x.astype(np.float32), y[:, None].astype(float), rows=rows)]


def softmax_by_scikit_learn(x, y):
    """The protocol, naively; accuracy and the predicted classes of the test rows."""
    scaler = StandardScaler().fit(x[0])
    z = [scaler.transform(each.astype(np.float64)) for each in x]

    def fit(strength, features, labels):
        return LogisticRegression(C=1 / strength, max_iter=5000, tol=1e-6).fit(features, labels[:, 0])

    valid = [fit(each, z[0], y[0]).score(z[1], y[1][:, 0]) for each in SoftmaxProbe.strengths]
    best = len(valid) - 1 - int(np.argmax(valid[::-1]))  # of equals the strongest
    final = fit(SoftmaxProbe.strengths[best], np.concatenate(z[:2]), np.concatenate(y[:2]))
    return final.score(z[2], y[2][:, 0]), final.predict(z[2])


@pytest.mark.parametrize(
    ("rows", "dim", "classes", "noise", "lacks"),
    [
        (600, 20, 4, 1.0, None),
        (600, 20, 6, 1.5, None),
        (300, 500, 5, 4.0, None),  # fewer rows than dimensions
        (400, 64, 6, 2.0, 0),  # a class without training rows
        (400, 64, 6, 2.0, 1),  # ... and without validation rows
    ],
)
def test_softmax_regression_equals_scikit_learn(rows, dim, classes, noise, lacks):
    x, y = classed(rows, dim, classes, noise)
    if lacks is not None:
        kept = y[lacks][:, 0] != classes - 1
        x[lacks], y[lacks] = x[lacks][kept], y[lacks][kept]
    accuracy, predicted = softmax_by_scikit_learn(x, y)
    probe = SoftmaxProbe().fit(*fitted(x, y))
    assert 0.4 < accuracy < 0.95
    assert abs(probe.score(x[2], y[2])["accuracy"][0] - accuracy) <= 0.01
    assert (probe.predict(x[2]).argmax(1) == predicted).mean() >= 0.99


@pytest.mark.parametrize("dim", [20, 500])
def test_softmax_regression_of_every_strength_predicts_as_scikit_learns(dim):
    x, y = classed(400, dim, 5, 1.5)
    scaler = StandardScaler().fit(x[0])
    features, labels = scaler.transform(np.concatenate(x[:2])), np.concatenate(y[:2])[:, 0]
    for strength in SoftmaxProbe.strengths:
        probe = SoftmaxProbe()
        probe.strengths = np.array([strength])
        probe.fit(*fitted(x, y)).score(x[2], y[2])
        other = LogisticRegression(C=1 / strength, max_iter=5000, tol=1e-6).fit(features, labels)
        assert (probe.predicted[:, 0] == other.predict(scaler.transform(x[2]))).mean() >= 0.99


def test_of_equally_good_strengths_the_strongest_is_taken():
    x, y = classed(600, 20, 4, 0.01)
    probe = SoftmaxProbe().fit(*fitted(x, y))
    assert probe.score(x[2], y[2])["accuracy"] == 1
    weak = SoftmaxProbe()
    weak.strengths = SoftmaxProbe.strengths[:1]
    weak.fit(*fitted(x, y))
    assert weak.score(x[2], y[2])["accuracy"] == 1
    assert probe.weights[1:].norm() < 0.5 * weak.weights[1:].norm()


def votes_by_hand(bank, labels, row, k):
    cosine = bank @ row / np.linalg.norm(bank, axis=1) / np.linalg.norm(row)
    votes = np.zeros(int(labels.max()) + 1)
    for near in np.argsort(-cosine)[:k]:
        votes[int(labels[near])] += np.exp(cosine[near] / 0.07)
    return votes


def test_neighbours_vote_as_in_a_naive_loop():
    x, y = classed(600, 16, 5, 1.0)
    x = [each - 5 for each in x]

    def accuracy(bank, labels, part, k):
        found = [votes_by_hand(bank, labels[:, 0], row, k).argmax() for row in x[part].astype(np.float64)]
        return np.mean(np.array(found) == y[part][:, 0])

    valid = [accuracy(x[0], y[0], 1, k) for k in KnnProbe.neighbours]
    probe = KnnProbe().fit(*fitted(x, y))
    assert probe.k == KnnProbe.neighbours[int(np.argmax(valid))]
    both = np.concatenate(x[:2]), np.concatenate(y[:2])
    assert probe.score(x[2], y[2])["accuracy"][0] == pytest.approx(accuracy(*both, 2, probe.k), abs=1e-9)
    assert 0.25 < probe.score(x[2], y[2])["accuracy"][0] < 1


def test_with_fewer_rows_than_neighbours_all_rows_vote():
    x, y = classed(16, 4, 2, 0.1)
    probe = KnnProbe().fit(*fitted([x[0][:5], x[1]], [y[0][:5], y[1]]))
    assert probe.k == 5
    assert 0 <= probe.score(x[2], y[2])["accuracy"][0] <= 1


def test_of_equal_votes_the_first_class_wins():
    x, y = np.ones((8, 3), np.float32), np.array([[1.0], [0.0]] * 4)
    probe = KnnProbe().fit(*fitted([x, x], [y, y]))
    assert probe.score(x, y)["accuracy"] == 0.5
    assert (probe._classes(x, [probe.k]) == 0).all()


def test_neighbours_care_for_directions_not_lengths():
    x, y = classed(400, 16, 4, 2.0)
    longer = [each * np.random.default_rng(0).uniform(0.1, 10, (len(each), 1)).astype(np.float32) for each in x]
    plain = KnnProbe().fit(*fitted(x, y)).score(x[2], y[2])["accuracy"]
    np.testing.assert_allclose(KnnProbe().fit(*fitted(longer, y)).score(longer[2], y[2])["accuracy"], plain)


def pairs_of(rows: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(rows, 12))
    noise = rng.uniform(0.1, 3, rows)
    second = first + noise[:, None] * rng.normal(size=(rows, 12))
    return np.stack([first, 7 * second], 1).astype(np.float32), -noise[:, None]


def cosines(x):
    first, second = x.astype(np.float64).transpose(1, 0, 2)
    return (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


def test_similarity_is_scipys_spearman_of_the_cosines_ties_included():
    x, y = pairs_of(200)
    y = np.round(y)
    score = SimilarityProbe().fit(*fitted([x, x], [y, y])).score(x, y)["spearman"]
    assert score.shape == (1,)
    assert score[0] == pytest.approx(stats.spearmanr(cosines(x), y[:, 0]).statistic, abs=1e-6)
    assert score[0] > 0.6


def test_pairs_are_scored_by_scikit_learns_average_precision():
    x, y = pairs_of(200)
    y = (y > np.quantile(y, 0.7)).astype(float)
    score = PairProbe().fit(*fitted([x, x], [y, y])).score(x, y)["ap"]
    assert score.shape == (1,)
    assert score[0] == pytest.approx(average_precision_score(y[:, 0], cosines(x)), abs=1e-6)
    assert score[0] > 0.6


@pytest.mark.parametrize("labels", [np.zeros((20, 1)), np.ones((20, 1))])
@pytest.mark.parametrize("probe", [SimilarityProbe, PairProbe])
def test_pairs_of_one_label_cannot_be_scored(probe, labels):
    x, _ = pairs_of(20)
    assert np.isnan(probe().score(x, labels)[probe.metric]).all()


def test_clusters_of_one_class_cannot_be_scored():
    assert np.isnan(ClusterProbe().score(pairs_of(20)[0][:, 0], np.ones((20, 1)))["v-measure"]).all()


def test_separated_clouds_are_found_whatever_their_lengths():
    rng = np.random.default_rng(0)
    y = rng.integers(5, size=300)
    x = (10 * np.eye(8)[y] + 0.3 * rng.normal(size=(300, 8))) * rng.uniform(0.01, 100, (300, 1))
    probe = ClusterProbe()
    first = probe.score(x.astype(np.float32), y[:, None].astype(float))["v-measure"]
    assert first == pytest.approx(1)
    assert probe.score(x.astype(np.float32), 10.0 * y[:, None]) == {"v-measure": first}


def test_clusters_of_noise_are_the_same_every_time_and_worth_little():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 8)).astype(np.float32), rng.integers(4, size=(400, 1)).astype(float)
    scores = [ClusterProbe().score(x, y)["v-measure"][0] for _ in range(2)]
    assert scores[0] == scores[1] < 0.05


@pytest.mark.parametrize("value", [0.0, -3e4])
@pytest.mark.parametrize(
    ("probe", "expected"),
    [(SoftmaxProbe, 0.25), (KnnProbe, 0.25), (ClusterProbe, 0), (PairProbe, 0.25), (SimilarityProbe, 0)],
    ids=lambda each: getattr(each, "name", None),
)
@pytest.mark.filterwarnings("ignore")
def test_embeddings_that_are_all_the_same_are_worth_a_guess(probe, expected, value):
    y = (np.arange(80) % 4)[:, None].astype(float)
    x = np.full((80, 2, 8) if probe in (PairProbe, SimilarityProbe) else (80, 8), value, np.float32)
    y = (y == 0).astype(float) if probe is PairProbe else y
    assert probe().fit(*fitted([x, x], [y, y])).score(x, y)[probe.metric] == pytest.approx(expected)


@pytest.mark.parametrize("probe", [SoftmaxProbe, KnnProbe])
def test_a_class_that_only_the_test_rows_have_is_missed(probe):
    x, y = classed(400, 16, 4, 0.05)
    for part in (0, 1):
        kept = y[part][:, 0] < 3
        x[part], y[part] = x[part][kept], y[part][kept]
    score = probe().fit(*fitted(x, y)).score(x[2], y[2])["accuracy"][0]
    assert score == pytest.approx((y[2] < 3).mean(), abs=0.02)


@pytest.mark.parametrize("probe", [SoftmaxProbe, KnnProbe])
def test_macro_accuracy_weighs_every_class_alike(probe):
    x, y = classed(800, 16, 4, 2.5)
    rare = (y[0][:, 0] > 0) | (np.arange(len(y[0])) % 8 == 0)  # class 0 is seldom seen, and so seldom found
    rarer = probe().fit(*fitted([x[0][rare], x[1]], [y[0][rare], y[1]]))
    scores = rarer.score(x[2], y[2])
    macro = balanced_accuracy_score(y[2][:, 0], rarer.predicted[:, 0])
    assert scores["macro-accuracy"] == pytest.approx(macro)
    assert abs(scores["accuracy"][0] - macro) > 1e-3


# --------------------------------------------------------------------------- the MLP


def bent(kind: str, rows: int = 800):
    """Features, and labels that no linear probe finds: whether two signs agree, how far from the middle, which quadrant."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 8)).astype(np.float32)
    agree, far = (x[:, 0] * x[:, 1] > 0).astype(float), np.abs(x[:, 0]) + x[:, 2] ** 2
    y = {
        "classification": np.stack([agree, (far > np.median(far)).astype(float)], 1),
        "regression": np.stack([far, 1e6 + 1e-3 * np.abs(x[:, 3].astype(np.float64))], 1),
        "multiclass": (agree + 2 * (far > np.median(far)))[:, None],
    }
    return parts(x, y[kind], rows=rows)


LINEAR = {"classification": LogisticProbe, "regression": RidgeProbe, "multiclass": SoftmaxProbe}


@pytest.mark.parametrize("kind", LINEAR)
def test_the_mlp_finds_what_no_linear_probe_finds(kind):
    x, y = bent(kind)
    linear, mlp = (probe.fit(*fitted(x, y)) for probe in (LINEAR[kind](), MlpProbe(kind)))
    first, second = linear.score(x[2], y[2]), mlp.score(x[2], y[2])
    assert first.keys() == second.keys()
    assert mlp.metric == linear.metric
    assert mlp.predicted.shape == linear.predicted.shape
    assert (second[mlp.metric] > first[mlp.metric] + 0.2).all()


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_mlp_learns_from_the_labels_that_are_there(kind):
    x, y = bent(kind)
    whole = MlpProbe(kind).fit(*fitted(x, y)).score(x[2], y[2])
    for part in y[:2]:
        part[::5, 0] = np.nan
        part[::7] = np.nan
    y[2][::3, 1] = np.nan
    probe = MlpProbe(kind)
    scores = probe.fit(*fitted(x, y)).score(x[2], y[2])[probe.metric]
    np.testing.assert_allclose(scores, whole[probe.metric], atol=0.1)


def test_the_mlp_trains_again_on_both_for_as_many_epochs_as_the_validation_rows_prefer():
    x, y = bent("classification", 400)
    probe, trained = MlpProbe("classification"), []
    train = probe._trained

    def spied(features, targets, epochs):
        for number, weights in enumerate(train(features, targets, epochs), 1):
            yield weights
            trained.append((len(features), number))

    probe._trained = spied
    probe.fit(*fitted(x, y))
    first = [number for rows, number in trained if rows == len(x[0])]
    again = [number for rows, number in trained if rows == len(x[0]) + len(x[1])]
    assert first == list(range(1, 101))
    assert again == list(range(1, len(again) + 1))
    scores = []
    for epochs in (len(again), 1):
        *_, probe.weights = train(
            *(each.T.float() for each in probe.linear.prepare(x[0], y[0], np.full(len(x[0]), TRAINED))), epochs
        )
        scores.append(probe.score(x[1], y[1])["auroc"].mean())
    assert scores[0] > scores[1]


def test_many_rows_are_seen_in_fewer_epochs():
    x, y = np.zeros((20_000, 1), np.float32), np.tile([[0.0], [1.0]], (10_000, 1))
    probe, wanted = MlpProbe("classification"), []
    probe._trained = lambda features, targets, epochs: wanted.append(epochs) or iter([[torch.zeros(0)]] * epochs)
    probe.predict = lambda x: np.zeros((len(x), 1))
    probe.fit(*fitted([x, x[:10]], [y, y[:10]]))
    assert wanted[0] == 26


def test_the_mlp_predicts_within_the_labels_that_were_fitted():
    x, y = bent("regression", 400)
    probe = MlpProbe("regression").fit(*fitted(x, y))
    labels, far = np.concatenate(y[:2]), probe.predict(100 * x[2])
    assert (far >= labels.min(0)).all()
    assert (far <= labels.max(0)).all()


# --------------------------------------------------------------------------- where probes run


def fitting():
    """Every probe that fits, with something to fit it to."""
    x, y = classed(300, 30, 3, 1.5)
    binary = [np.concatenate([part == 0, part == 1], 1).astype(float) for part in y]
    yield from ((probe, x, binary) for probe in (LogisticProbe, RidgeProbe))
    yield from ((probe, x, y) for probe in (SoftmaxProbe, KnnProbe, lambda: MlpProbe("multiclass")))


def scored(make, x, y):
    probe = make()
    probe.fit(*fitted(x, y)).score(x[2], y[2])
    return probe.predicted


def test_probes_that_run_beside_each_other_do_not_disturb_each_other():
    work = list(fitting()) * 3
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda each: scored(*each), work))
    for each, found in zip(work, beside, strict=True):
        np.testing.assert_allclose(found, scored(*each), rtol=1e-4, atol=1e-5)


def test_probes_leave_the_random_numbers_of_a_fit_alone():
    before = torch.get_rng_state()
    for each in fitting():
        scored(*each)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_probes_run_inside_the_validation_of_a_fit(mode):
    for each in fitting():
        outside = scored(*each)
        with mode():
            np.testing.assert_allclose(scored(*each), outside, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_what_the_cpu_finds(monkeypatch):
    on_gpu = [scored(*each) for each in fitting()]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for each, found in zip(fitting(), on_gpu, strict=True):
        assert np.mean(np.abs(found - scored(*each)) > 1e-2) <= 0.02
