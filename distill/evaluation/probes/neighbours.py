"""Probes without fitted weights: nearest neighbours, similarity of pairs, clusters."""

import numpy as np
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import average_precision_score, v_measure_score

from distill.evaluation.probes.base import Array, Probe, _accuracy, _class_scores, _one_hot, _tensor, _unit


class KnnProbe(Probe):
    """Weighted k nearest neighbours by cosine; accuracy (Wu et al., CVPR 2018; UNIC's protocol).

    A neighbour of cosine c votes for its class with weight exp(c / 0.07); k is chosen on validation rows.
    """

    name, metric = "knn", "accuracy"
    neighbours = (10, 20, 100, 200)
    temperature = 0.07

    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "KnnProbe":
        both = _tensor(_one_hot(np.concatenate([y, y_valid])), np.float32)  # (rows, classes)
        self.bank, self.labels = _unit(x), both[: len(x)]
        usable = [k for k in self.neighbours if k <= len(x)] or [len(x)]
        self.k = usable[int(np.argmax([_accuracy(y_valid, classes) for classes in self._classes(x_valid, usable)]))]
        self.bank, self.labels = _unit(np.concatenate([x, x_valid])), both
        return self

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        self.predicted = self._classes(x, [self.k])[0]
        return _class_scores(y, self.predicted)

    def _classes(self, x: Array, counts: list[int]) -> Array:
        """For each number of neighbours the class with most votes, (counts, rows, 1)."""
        chunks = []
        for unit in _unit(x).split(256):  # votes are (rows, k, classes)
            cosine, near = (unit @ self.bank.T).topk(max(counts), 1)  # (rows, k)
            weight = (cosine / self.temperature).exp().unsqueeze(-1)
            votes = (weight * self.labels[near]).cumsum(1)
            chunks.append(votes[:, [k - 1 for k in counts]].transpose(0, 1).cpu().numpy())  # (counts, rows, classes)
        classes: Array = np.concatenate(chunks, 1).argmax(-1, keepdims=True)  # the first of equal classes wins
        return classes


class _Untrained(Probe):
    fits = False

    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "_Untrained":
        return self


class SimilarityProbe(_Untrained):
    """Spearman correlation of the cosine of a pair's embeddings (rows, 2, dim) with its score, as in STS and SICK."""

    name, metric = "similarity", "spearman"

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        self.predicted = _cosine(x)
        if np.ptp(y) and not np.ptp(self.predicted):  # a system with one cosine for all pairs has no information
            return {self.metric: np.zeros(1)}
        return {self.metric: np.array([float(stats.spearmanr(self.predicted[:, 0], y[:, 0]).statistic)])}


class PairProbe(_Untrained):
    """Average precision of the cosine of a pair's embeddings (rows, 2, dim) for label 1 against 0."""

    name, metric = "pairs", "ap"

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        self.predicted = _cosine(x)
        if not np.ptp(y):
            return {self.metric: np.full(1, np.nan)}
        return {self.metric: np.array([float(average_precision_score(y[:, 0], self.predicted[:, 0]))])}


def _cosine(x: Array) -> Array:
    unit = _unit(x)
    return np.asarray((unit[:, 0] * unit[:, 1]).sum(-1, keepdim=True).cpu())  # (rows, 1)


class ClusterProbe(_Untrained):
    """V-measure of k-means on the unit sphere, with as many clusters as classes; the best of three starts."""

    name, metric = "clusters", "v-measure"

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        means = KMeans(len(np.unique(y)), n_init=3, random_state=0).fit(_unit(x).cpu().numpy())
        self.predicted = means.labels_[:, None]
        return {self.metric: np.array([float(v_measure_score(y[:, 0], means.labels_)) if np.ptp(y) else np.nan])}
