"""Probes without fitted weights: nearest neighbours, similarity of pairs, search, clusters."""

import numpy as np
import torch
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import average_precision_score, v_measure_score
from torch import Tensor

from distill.evaluation.probes.base import (
    Array,
    Probe,
    _accuracy,
    _class_scores,
    _mean_of_finite,
    _one_hot,
    _tensor,
    _unit,
    inner_folds,
)


class KnnProbe(Probe):
    """Weighted k nearest neighbours by cosine; accuracy (Wu et al., CVPR 2018; UNIC's protocol).

    A neighbour of cosine c votes for its class with weight exp(c / 0.07); k is chosen by the inner folds.
    """

    name, metric = "knn", "accuracy"
    neighbours = (10, 20, 100, 200)
    temperature = 0.07

    def fit(self, x: Array, y: Array, fold: Array) -> "KnnProbe":
        unit, labels = _unit(x), _tensor(_one_hot(y), np.float32)  # (rows, dim), (rows, classes)
        folds = list(inner_folds(fold))
        least = min(len(train) for train, _ in folds)
        usable = [k for k in self.neighbours if k <= least] or [least]
        accuracies = np.zeros(len(usable))
        for train, scored in folds:
            self.bank, self.labels = unit[train], labels[train]
            accuracies += [_accuracy(y[scored], classes) for classes in self._classes(x[scored], usable)]
        self.bank, self.labels, self.k = unit, labels, usable[int(np.argmax(accuracies))]
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

    def fit(self, x: Array, y: Array, fold: Array) -> "_Untrained":
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


class SearchProbe(_Untrained):
    """Similarity search: each active is a query, other rows are ranked by cosine; average precision, nothing is fitted.

    Relevant are actives of other groups, such as scaffolds: actives of the query's own group are too easy to find, and are
    left out. ``enrichment`` is the share of relevant rows among the first 1 % of the ranking, divided by their share among
    all ranked rows. Both are means over the queries that have something to find.

    Labels are a class, (rows, 1); or several, each searched for by itself, and in the last column the number of a group,
    (rows, labels + 1). Rows without a class are left out.

    Args:
        decoys: class 0 holds decoys, which are never queries; false: every class is searched for.
    """

    name, metric = "search", "ap"
    first = 0.01  # of the ranking

    def __init__(self, decoys: bool = True):
        self.decoys = decoys

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        classes, group = (y[:, :-1], y[:, -1:]) if y.shape[1] > 1 else (y, y[:, :0])  # group: (rows, 0 or 1)
        unit = _unit(x)
        labels = [np.concatenate([label[:, None], group], 1) for label in classes.T]
        precisions, enrichments = zip(*(self._of_queries(unit, label) for label in labels), strict=True)
        self.predicted = np.stack(precisions, 1)  # of each query its average precision, (rows, labels)
        return {self.metric: _mean_of_finite(self.predicted), "enrichment": _mean_of_finite(np.stack(enrichments, 1))}

    def _of_queries(self, unit: Tensor, y: Array) -> tuple[Array, Array]:
        """Average precision and enrichment by each row, NaN of those that are no queries; both (rows,).

        Args:
            unit: embeddings (rows, dim).
            y: a class and perhaps a group, (rows, 1 or 2).
        """
        rows = np.random.default_rng(0).permutation(np.flatnonzero(np.isfinite(y).all(1)))  # ties in no order of the file
        known, labels = unit[rows], _tensor(y[rows], np.float64)
        queries = (labels[:, 0] > 0).nonzero().squeeze(1) if self.decoys else torch.arange(len(rows), device=unit.device)
        out = np.full((2, len(y)), np.nan)
        for chosen in queries.split(256):
            found = _search(known, labels, chosen, self.first)
            out[:, rows[chosen.cpu().numpy()]] = [values.cpu().numpy() for values in found]
        return out[0], out[1]


def _search(unit: Tensor, labels: Tensor, queries: Tensor, first: float) -> tuple[Tensor, Tensor]:
    """Average precision and enrichment of some queries, NaN of those that have nothing to find; both (queries,)."""
    alike = labels[queries, :1] == labels[:, 0]  # (queries, rows)
    own = labels[queries, -1:] == labels[:, -1] if labels.shape[1] > 1 else torch.zeros_like(alike)
    own[torch.arange(len(queries)), queries] = True
    cosine = (unit[queries] @ unit.T).masked_fill(alike & own, -torch.inf)  # left out: behind everything
    relevant = (alike & ~own).gather(1, cosine.argsort(stable=True, dim=1, descending=True)).double()
    ranked, found = torch.isfinite(cosine).sum(1), relevant.sum(1)
    place = torch.arange(1, 1 + len(unit), device=unit.device)
    precision = (relevant * relevant.cumsum(1) / place).sum(1) / found
    ahead = (first * ranked).ceil().long()
    hits = relevant.cumsum(1).gather(1, ahead.clamp_min(1).unsqueeze(1) - 1).squeeze(1)
    return precision, hits / ahead / (found / ranked)


class ClusterProbe(_Untrained):
    """V-measure of k-means on the unit sphere, with as many clusters as classes; the best of three starts."""

    name, metric = "clusters", "v-measure"

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        means = KMeans(len(np.unique(y)), n_init=3, random_state=0).fit(_unit(x).cpu().numpy())
        self.predicted = means.labels_[:, None]
        return {self.metric: np.array([float(v_measure_score(y[:, 0], means.labels_)) if np.ptp(y) else np.nan])}
