"""Kernel probes, and scores of every probe, against scikit-learn by inner folds."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, average_precision_score, r2_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KernelCenterer, StandardScaler

from distill.evaluation.probes import (
    LATER,
    TRAINED,
    KernelLogisticProbe,
    KernelRidgeProbe,
    KernelSoftmaxProbe,
    KnnProbe,
    LogisticProbe,
    RidgeProbe,
    SearchProbe,
    SoftmaxProbe,
    inner_folds,
    kernel,
)


def bent(kind: str, rows: int = 500, dim: int = 12, seed: int = 0):
    """Correlated features, and labels of which a linear probe finds a part."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, min(dim, 12)))
    mixed = hidden @ rng.normal(size=(hidden.shape[1], dim)) + 0.1 * rng.normal(size=(rows, dim)) * (dim > 12)
    x = (mixed * rng.uniform(0.01, 10, dim) + 5).astype(np.float32)
    value = np.sin(2 * hidden[:, 0]) + hidden[:, 1] * hidden[:, 2] + hidden[:, 3] + 0.5 * rng.normal(size=rows)
    y = {
        "value": np.stack([value, 100 + 5 * np.abs(hidden[:, 0]) + rng.normal(size=rows)], 1),
        "bit": np.stack([value > 0, value > np.quantile(value, 0.9)], 1).astype(float),
        "class": np.digitize(value, np.quantile(value, [0.3, 0.6]))[:, None].astype(float),
    }[kind]
    fold = rng.permutation(4 * rows // 5) % 3
    return x, y, fold


def gamma(x, width):
    return 1 / (2 * (width * np.median(pdist(x[np.random.RandomState(0).permutation(len(x))[:500]]))) ** 2)


def options(probe, x, width):
    """The model of scikit-learn for each strength of a probe, and the width of a kernel."""
    for strength in probe.strengths:
        if probe.name == "linear":
            yield Ridge(strength) if probe.valued else logistic(strength)
        elif probe.valued:
            yield Centred(gamma(x, width), strength)
        else:
            features = Nystroem(gamma=gamma(x, width), n_components=len(x), random_state=0).fit(x)
            yield make_pipeline(Fitted(features), logistic(strength))


def best_width(probe, x, y, fold):
    """The width with the best score of kernel ridge on the inner folds, mean over labels."""
    targets = np.eye(3)[y[:, 0].astype(int)] if probe.metric == "accuracy" else y
    reached = []
    for width in probe.widths:
        scores = []
        for train, held in inner_folds(fold):
            outputs = Centred(gamma(x, width), probe.ridge).fit(x[train], targets[train]).predict(x[held])
            if probe.metric == "accuracy":
                scores.append(accuracy_score(y[held], outputs.argmax(1)))
            else:
                score = r2_score if probe.metric == "r2" else roc_auc_score
                scores += [score(*columns) for columns in zip(y[held].T, outputs.T, strict=True)]
        reached.append(np.mean(scores))
    return probe.widths[int(np.argmax(reached))]


def logistic(strength):
    return LogisticRegression(C=1 / strength, max_iter=20_000, tol=1e-9)


class Fitted:
    """Features that are not fitted again."""

    def __init__(self, features):
        self.features, self.transform = features, features.transform

    def fit(self, x, y):
        return self

    def fit_transform(self, x, y):
        return self.transform(x)


class Centred:
    """Kernel ridge with an intercept that is not penalised: centred kernel, centred labels."""

    def __init__(self, gamma, alpha):
        self.gamma, self.alpha = gamma, alpha

    def kernel(self, x):
        squares = (x**2).sum(1)[:, None] + (self.x**2).sum(1) - 2 * x @ self.x.T
        return np.exp(-self.gamma * squares)

    def fit(self, x, y):
        self.x, self.mean = x, y.mean(0)
        self.centre = KernelCenterer().fit(self.kernel(x))
        self.model = KernelRidge(alpha=self.alpha, kernel="precomputed")
        self.model.fit(self.centre.transform(self.kernel(x)), y - self.mean)
        return self

    def predict(self, x):
        return self.model.predict(self.centre.transform(self.kernel(x))) + self.mean


def scored(probe, model, x, y):
    if probe.metric == "r2":
        return r2_score(y, model.predict(x))
    if probe.metric == "auroc":
        return roc_auc_score(y, model.decision_function(x))
    return accuracy_score(y, model.predict(x))


def by_scikit_learn(probe, x, y, fold):
    """Test scores of each label: the strength with the best mean over the inner folds, fitted again to all rows."""
    cut = len(fold)
    scaler = StandardScaler().fit(x[:cut].astype(np.float64))
    z = np.clip(scaler.transform(x.astype(np.float64)), -10, 10)
    width = best_width(probe, z[:cut], y[:cut], fold) if probe.name == "rbf" else None
    models = list(options(probe, z[:cut], width))
    table = np.zeros((len(models), y.shape[1]))
    for number, model in enumerate(models):
        for label in range(y.shape[1]):
            for train, held in inner_folds(fold):
                model.fit(z[train], y[train, label])
                table[number, label] += scored(probe, model, z[held], y[held, label]) / 3
    out = []
    for label, column in enumerate(table.T):
        best = len(column) - 1 - column[::-1].argmax() if probe.metric == "accuracy" else column.argmax()
        model = models[best].fit(z[:cut], y[:cut, label])
        if probe.metric == "r2":
            known = y[:cut, label]
            predicted = model.predict(z[cut:]).clip(known.min(), known.max())
            out.append(r2_score(y[cut:, label], predicted))
        else:
            out.append(scored(probe, model, z[cut:], y[cut:, label]))
    return out


@pytest.mark.parametrize("dim", [12, 600])
@pytest.mark.parametrize(
    ("probe", "kind"),
    [
        (RidgeProbe, "value"),
        (LogisticProbe, "bit"),
        (SoftmaxProbe, "class"),
        (KernelRidgeProbe, "value"),
        (KernelLogisticProbe, "bit"),
        (KernelSoftmaxProbe, "class"),
    ],
)
def test_scores_by_inner_folds_are_those_of_scikit_learn_alone(probe, kind, dim):
    x, y, fold = bent(kind, dim=dim)
    mine = probe().fit(x[: len(fold)], y[: len(fold)], fold).score(x[len(fold) :], y[len(fold) :])
    np.testing.assert_allclose(mine[probe.metric], by_scikit_learn(probe, x, y, fold), atol=1e-3)


def test_neighbours_by_inner_folds_are_those_of_scikit_learn_alone():
    x, y, fold = bent("class")
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)

    def model(k):  # the cosine of unit vectors is 1 - distance² / 2
        return KNeighborsClassifier(k, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07), algorithm="brute")

    cut = len(fold)
    means = [
        np.mean([model(k).fit(unit[t], y[t, 0]).score(unit[s], y[s, 0]) for t, s in inner_folds(fold)])
        for k in KnnProbe.neighbours
    ]
    expected = model(KnnProbe.neighbours[int(np.argmax(means))]).fit(unit[:cut], y[:cut, 0]).score(unit[cut:], y[cut:, 0])
    mine = KnnProbe().fit(x[:cut], y[:cut], fold).score(x[cut:], y[cut:])
    assert mine["accuracy"][0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("kernelled", "linear", "kind"),
    [
        (KernelRidgeProbe, RidgeProbe, "value"),
        (KernelLogisticProbe, LogisticProbe, "bit"),
        (KernelSoftmaxProbe, SoftmaxProbe, "class"),
    ],
)
def test_a_kernel_finds_what_no_linear_probe_finds(kernelled, linear, kind):
    x, y, fold = bent(kind, rows=1000, dim=4)
    cut = len(fold)
    scores = [
        probe().fit(x[:cut], y[:cut], fold).score(x[cut:], y[cut:])[probe.metric].mean() for probe in (linear, kernelled)
    ]
    assert scores[1] > scores[0] + 0.05


@pytest.mark.parametrize(("probe", "kind"), [(KernelRidgeProbe, "value"), (KernelLogisticProbe, "bit")])
def test_a_label_is_fitted_to_the_rows_that_have_it(probe, kind):
    x, y, fold = bent(kind)
    cut, known = len(fold), np.arange(len(fold)) % 4 > 0
    y[:cut][~known, 0] = np.nan
    mine = probe()
    mine.strengths, mine.widths = mine.strengths[2:3], (1.0,)
    z = StandardScaler().fit(x[:cut].astype(np.float64)).transform(x.astype(np.float64)).clip(-10, 10)
    (model,) = options(mine, z[:cut], 1.0)
    model.fit(z[:cut][known], y[:cut][known, 0])
    expected = model.predict(z[cut:]) if probe.valued else model.decision_function(z[cut:])
    found = mine.fit(x[:cut], y[:cut], fold).predict(x[cut:])[:, 0]
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.std())


@pytest.mark.parametrize(
    ("probe", "kind", "model"),
    [
        (KernelRidgeProbe, "value", Ridge),
        (KernelLogisticProbe, "bit", logistic),
    ],
)
def test_more_rows_than_an_exact_kernel_takes_have_scikit_learns_landmarks(monkeypatch, probe, kind, model):
    monkeypatch.setattr(kernel, "EXACT", 300)
    monkeypatch.setattr(kernel, "LANDMARKS", 100)
    x, y, fold = bent(kind, rows=800)
    cut, one = len(fold), y[:, :1]
    fold[200:] = LATER
    mine = probe()
    mine.strengths, mine.widths = mine.strengths[2:3], (1.0,)
    found = mine.fit(x[:cut], one[:cut], fold).predict(x[cut:])[:, 0]
    z = StandardScaler().fit(x[:cut].astype(np.float64)).transform(x.astype(np.float64)).clip(-10, 10)
    features = Nystroem(gamma=1 / (2 * mine.width**2), n_components=100, random_state=0).fit(z[:cut])
    fitted = model(mine.strengths[0]).fit(features.transform(z[:cut]), one[:cut, 0])
    after = features.transform(z[cut:])
    expected = fitted.predict(after) if probe.valued else fitted.decision_function(after)
    assert mine.basis.shape == (12, 100)
    np.testing.assert_allclose(found, expected, atol=1e-2 * expected.std())


@pytest.mark.parametrize("probe", [KernelRidgeProbe, KernelSoftmaxProbe])
def test_no_kernel_of_many_rows_with_each_other_is_made(monkeypatch, probe):
    """With validation rows, all rows choose: 50,000 images would be a kernel of 10 GB."""
    made, squares = [], kernel._squares
    monkeypatch.setattr(
        kernel, "_squares", lambda one, other: made.append((one.shape[1], other.shape[1])) or squares(one, other)
    )
    monkeypatch.setattr(kernel, "EXACT", 100)
    monkeypatch.setattr(kernel, "LANDMARKS", 50)
    x, y, _ = bent("class", rows=450)
    fold = np.where(np.arange(400) < 360, TRAINED, 0)
    score = probe().fit(x[:400], y[:400], fold).score(x[400:], y[400:])
    assert score[probe.metric][0] > {"r2": 0, "accuracy": 0.4}[probe.metric]
    assert max(map(min, made)) == 100


@pytest.mark.parametrize("probe", [KernelRidgeProbe, KernelLogisticProbe, KernelSoftmaxProbe])
def test_embeddings_that_are_all_the_same_are_worth_a_guess(probe):
    y = (np.arange(90) % 3 == 0)[:, None].astype(float)
    x = np.full((90, 8), 3.0, np.float32)
    score = probe().fit(x[:60], y[:60], np.arange(60) % 3).score(x[60:], y[60:])[probe.metric][0]
    assert score == pytest.approx({"r2": 0, "auroc": 0.5, "accuracy": 2 / 3}[probe.metric], abs=1e-3)


# --------------------------------------------------------------------------- search


def actives(rows: int = 300, scaffolds: int = 12, seed: int = 0):
    """Embeddings in which actives resemble each other, the more so with one scaffold."""
    rng = np.random.default_rng(seed)
    active, scaffold = rng.random(rows) < 0.2, rng.integers(scaffolds, size=rows)
    x = 2.5 * active[:, None] * np.eye(16)[0] + rng.normal(size=(scaffolds, 16))[scaffold] + rng.normal(size=(rows, 16))
    return x.astype(np.float32), np.stack([active, scaffold], 1).astype(float)


def by_hand(x, y, decoys=True):
    """Mean average precision and enrichment, query by query."""
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    precisions, enrichments = [], []
    for query in np.flatnonzero((y[:, 0] > 0) | (not decoys)):
        same = y[:, 0] == y[query, 0]
        near = same & ((y[:, 1] == y[query, 1]) if y.shape[1] > 1 else np.arange(len(y)) == query)
        asked = ~near
        cosine, relevant = (unit @ unit[query])[asked], same[asked]
        if relevant.any():
            precisions.append(average_precision_score(relevant, cosine))
            ahead = int(np.ceil(0.01 * asked.sum()))
            enrichments.append(relevant[np.argsort(-cosine)[:ahead]].mean() / relevant.mean())
    return np.mean(precisions), np.mean(enrichments)


def test_a_search_finds_actives_of_other_scaffolds_as_scikit_learn_ranks_them():
    x, y = actives()
    scores = SearchProbe().fit(x, y, np.zeros(0)).score(x, y)
    np.testing.assert_allclose([scores["ap"][0], scores["enrichment"][0]], by_hand(x, y), rtol=1e-5)
    assert scores["ap"][0] > y[:, 0].mean() + 0.05
    assert not np.allclose(by_hand(x, y), by_hand(x, y[:, :1])), "the query's own scaffold must be left out"


def test_each_class_is_searched_for_when_none_holds_decoys():
    x, y = actives()
    classes = (y[:, 1:] % 4).astype(float)
    scores = SearchProbe(decoys=False).score(x, classes)
    np.testing.assert_allclose([scores["ap"][0], scores["enrichment"][0]], by_hand(x, classes, decoys=False), rtol=1e-5)


def test_rows_without_a_class_are_not_searched():
    x, y = actives()
    y[::5, 0] = np.nan
    there = np.isfinite(y[:, 0])
    probe = SearchProbe()
    assert probe.score(x, y)["ap"] == pytest.approx(SearchProbe().score(x[there], y[there])["ap"])
    assert np.isfinite(probe.predicted[:, 0]).sum() == (y[:, 0] == 1).sum()


def test_several_labels_are_searched_for_each_by_itself():
    x, y = actives()
    other = np.where(np.arange(len(y)) % 3 == 0, np.nan, y[::-1, 0])
    probe = SearchProbe()
    both = probe.score(x, np.stack([y[:, 0], other, y[:, 1]], 1))
    alone = [SearchProbe().score(x, np.stack([label, y[:, 1]], 1)) for label in (y[:, 0], other)]
    for name, values in both.items():
        np.testing.assert_allclose(values, [scores[name][0] for scores in alone], rtol=1e-6)
    assert np.isfinite(probe.predicted).sum(0).tolist() == [(label == 1).sum() for label in (y[:, 0], other)]


def test_a_search_that_ranks_at_random_is_worth_the_share_of_actives():
    _, y = actives(2000)
    scores = SearchProbe().score(np.ones((2000, 4), np.float32), y)
    assert scores["ap"][0] == pytest.approx(y[:, 0].mean(), abs=0.03)
    assert scores["enrichment"][0] == pytest.approx(1, abs=0.6)


def test_without_actives_or_decoys_there_is_no_score():
    x, y = actives()
    for label in (0.0, 1.0):
        alone = np.stack([np.full(len(y), label), np.zeros(len(y))], 1)
        assert np.isnan(SearchProbe().score(x, alone)["ap"]).all()
