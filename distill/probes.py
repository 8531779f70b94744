"""Probes of frozen embeddings: linear ones with the regularisation chosen on validation rows, neighbours, clusters, pairs.

Linear probes fit every label and every strength on the same matrix, rotated to its principal axes: the ridge solution is
then a division, and the curvature of logistic regression at its start is diagonal. Same optimum as scikit-learn's, many
times faster.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score, v_measure_score
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Array = np.ndarray[Any, Any]


class Probe(ABC):
    """Judges frozen embeddings by a task's labels. Subclass it in any importable module and name it in YAML.

    Class attributes:
        name: stands beside the task's where a task has several probes.
        metric: what :meth:`score` reports.
        fits: whether :meth:`fit` learns from training rows; the others look at test rows alone.

    Attributes:
        predicted: (rows, columns) what the last :meth:`score` compared with the labels: logits, values, classes, cosines
            or clusters.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    fits: ClassVar[bool] = True
    predicted: Array

    @abstractmethod
    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "Probe":
        """Fit on training rows, choose on validation rows, refit on both.

        Args:
            x: embeddings (rows, dim); of pairs (rows, 2, dim).
            y: labels (rows, labels), NaN where missing.
            x_valid, y_valid: the same of the validation rows.
        """

    @abstractmethod
    def score(self, x: Array, y: Array) -> dict[str, Array]:
        """``metric`` -> score per label (labels,); NaN where the rows cannot be scored."""


class LinearProbe(Probe):
    """Fits on training rows, chooses on validation rows, refits on both; labels may be missing (NaN).

    Features are standardised by the training rows and clipped to ``clip`` standard deviations: a feature that hardly varies
    in training would else let one odd test row decide the score.
    """

    name = "linear"
    clip: ClassVar[float] = 10.0
    centred: ClassVar[bool] = False  # whether labels are values, so that an offset can be taken off
    strengths: ClassVar[Array]  # (strengths,), each larger one regularises more

    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "LinearProbe":
        self._learn_scale(x)
        strengths = torch.from_numpy(self.strengths)
        y, y_valid = (np.asarray(each, np.float64) for each in (y, y_valid))
        middle = np.nan_to_num(_mean_of_known(y)) if self.centred else 0.0  # in float64: labels may have a large offset
        y, y_valid = y - middle, y_valid - middle
        path = self._solve(self._scaled(x), _tensor(y), strengths.expand(y.shape[1], -1))  # (1 + dim, labels, strengths)
        predicted = _apply(self._scaled(x_valid), path)
        chosen = [self._best(y_valid[:, label], predicted[:, label]) for label in range(y.shape[1])]
        both = self._scaled(np.concatenate([x, x_valid])), _tensor(np.concatenate([y, y_valid]))
        self.weights = self._solve(*both, strengths[chosen].unsqueeze(1))
        self.middle = middle
        return self

    def _learn_scale(self, x: Array) -> None:
        self.shift, spread = x.mean(0), x.std(0)  # of the training rows alone
        self.scale = np.where(spread > 1e-8, 1 / np.maximum(spread, 1e-8), 0.0)

    def predict(self, x: Array) -> Array:
        """Logits or values, (rows, labels)."""
        predicted: Array = _apply(self._scaled(x), self.weights)[..., 0] + self.middle
        return predicted

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        self.predicted = predicted = self.predict(x)
        return {self.metric: np.array([self._score(y[:, each], predicted[:, each]) for each in range(y.shape[1])])}

    def _scaled(self, x: Array) -> Tensor:
        return _tensor(np.clip((x - self.shift) * self.scale, -self.clip, self.clip))

    def _best(self, y: Array, predicted: Array) -> int:
        scores = [self._score(y, predicted[:, each]) for each in range(predicted.shape[1])]
        return int(np.nanargmax(scores)) if np.isfinite(scores).any() else len(scores) // 2

    @abstractmethod
    def _solve(self, x: Tensor, y: Tensor, strengths: Tensor) -> Tensor:
        """Weights (1 + dim, labels, strengths), intercept first."""

    @staticmethod
    @abstractmethod
    def _score(y: Array, predicted: Array) -> float:
        """The metric over the rows that have a label."""


def _mean_of_known(y: Array) -> Array:
    known = np.isfinite(y)
    total = np.where(known, y, 0.0).sum(0)
    mean: Array = total / np.maximum(known.sum(0), 1)
    return mean


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def _apply(x: Tensor, weights: Tensor) -> Array:
    predicted = weights[0] + (x @ weights[1:].flatten(1)).unflatten(1, weights.shape[1:])
    return np.asarray(predicted)


def _axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Principal axes (dim, rank) of ``x`` (rows, dim) and the squared singular values (rank,)."""
    wide = x.shape[1] > x.shape[0]
    double = x.double()
    values, vectors = torch.linalg.eigh(double @ double.T if wide else double.T @ double)
    kept = values > 1e-6 * values[-1].clamp_min(1e-12)
    values, vectors = values[kept], vectors[:, kept]
    axes = double.T @ vectors / values.sqrt() if wide else vectors
    return axes.float(), values.float()


def _rotated(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Principal axes (dim, rank); ``x`` in them after a column of ones (rows, 1 + rank); that design's squares."""
    axes, squares = _axes(x)
    design = torch.cat([torch.ones(len(x), 1), x @ axes], 1)
    return axes, design, torch.cat([torch.tensor([float(len(x))]), squares])


def _penalty(features: int, strengths: Tensor) -> Tensor:
    """(features, *strengths): of each squared weight; the intercept, the first feature, has none."""
    penalty = strengths.float().repeat(features, 1, 1)
    penalty[0] = 0
    return penalty


class RidgeProbe(LinearProbe):
    """Ridge regression; R2. ``strengths`` are scikit-learn's alphas.

    Predictions stay within the range of the labels that were fitted: R2 has no lower bound, so that one extrapolation
    would decide the mean over tasks (one GAT teacher had R2 = -120 in one FreeSolv split).
    """

    metric = "r2"
    strengths = np.logspace(-1, 5, 13)
    centred = True

    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "RidgeProbe":
        super().fit(x, y, x_valid, y_valid)
        labels = np.concatenate([y, y_valid])
        self.low, self.high = np.fmin.reduce(labels), np.fmax.reduce(labels)  # (labels,), NaN ignored
        return self

    def predict(self, x: Array) -> Array:
        within: Array = np.clip(super().predict(x), self.low, self.high)
        return within

    def _solve(self, x: Tensor, y: Tensor, strengths: Tensor) -> Tensor:
        out = torch.zeros(1 + x.shape[1], *strengths.shape)
        for label in range(y.shape[1]):
            rows = y[:, label].isfinite()
            if not rows.any():  # nothing to learn from; scored as it is
                continue
            x_mean, y_mean = x[rows].mean(0), y[rows, label].mean()
            weights = _ridge(x[rows] - x_mean, y[rows, label] - y_mean, strengths[label].float())
            out[1:, label] = weights
            out[0, label] = y_mean - x_mean @ weights
        return out

    @staticmethod
    def _score(y: Array, predicted: Array) -> float:
        rows = np.isfinite(y) & np.isfinite(predicted)  # no prediction where no label was fitted
        if rows.sum() < 2 or np.ptp(y[rows]) == 0:  # scikit-learn gives a constant label R2 = 1
            return float("nan")
        return float(r2_score(y[rows], predicted[rows]))


def _ridge(x: Tensor, y: Tensor, strengths: Tensor) -> Tensor:
    """Ridge weights (dim, strengths) of centred ``x`` (rows, dim) and ``y`` (rows,)."""
    if len(strengths) == 1:  # one system of equations is cheaper than the axes
        double = x.double()
        wide = x.shape[1] > x.shape[0]
        gram = double @ double.T if wide else double.T @ double
        gram.diagonal().add_(float(strengths))
        right = (y if wide else x.T @ y).double().unsqueeze(1)
        solved: Tensor = torch.linalg.solve(gram, right)
        return (double.T @ solved if wide else solved).float()
    axes, squares = _axes(x)
    return axes @ ((axes.T @ (x.T @ y)).unsqueeze(1) / (squares.unsqueeze(1) + strengths))


class LogisticProbe(LinearProbe):
    """Logistic regression; AUROC. ``strengths`` are 1 / C of scikit-learn.

    L-BFGS in the principal axes, scaled to the curvature where all weights are zero, of all labels and strengths at once: a
    dozen or two steps.
    """

    metric = "auroc"
    strengths = np.logspace(-1, 5, 7)
    steps = 300
    tolerance = 3e-4  # of the gradient, as a share of the one where all weights are zero

    def _solve(self, x: Tensor, y: Tensor, strengths: Tensor) -> Tensor:
        known, truth = y.isfinite().float().unsqueeze(-1), y.nan_to_num().unsqueeze(-1)  # (rows, labels, 1)

        def fit(logits: Tensor) -> tuple[Tensor, Tensor]:
            return known * (F.softplus(logits) - truth * logits), known * (logits.sigmoid() - truth)

        axes, design, squares = _rotated(x)
        penalty = _penalty(len(squares), strengths)
        curvature = squares[:, None, None] / 4 + penalty
        weights = self._descend(torch.zeros_like(penalty), design, penalty, curvature, fit)
        return torch.cat([weights[:1], (axes @ weights[1:].flatten(1)).unflatten(1, strengths.shape)])

    def _descend(
        self,
        weights: Tensor,
        design: Tensor,
        penalty: Tensor,
        curvature: Tensor,
        fit: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Weights (features, ...) at which the penalised loss is least.

        Args:
            weights: to begin with.
            design: (rows, features).
            penalty: of each squared weight.
            curvature: the loss's where all weights are zero, of each weight.
            fit: from logits (rows, ...) to losses and their derivatives.
        """
        scale = curvature.rsqrt()

        def gradient(weights: Tensor) -> tuple[Tensor, Tensor]:
            losses, residual = fit((design @ weights.flatten(1)).unflatten(1, weights.shape[1:]))
            slope = (design.T @ residual.flatten(1)).unflatten(1, weights.shape[1:])
            return losses.sum() + (penalty * weights**2).sum() / 2, (slope + penalty * weights) * scale

        scaled = weights / scale

        def loss() -> float:
            value, scaled.grad = gradient(scaled.detach() * scale)
            return float(value)

        enough = self.tolerance * float(gradient(torch.zeros_like(weights))[1].abs().max())
        torch.optim.LBFGS(
            [scaled], max_iter=self.steps, tolerance_grad=enough, tolerance_change=0, line_search_fn="strong_wolfe"
        ).step(loss)
        return scaled.detach() * scale

    @staticmethod
    def _score(y: Array, predicted: Array) -> float:
        rows = np.isfinite(y)
        if len(np.unique(y[rows])) < 2:
            return float("nan")
        return float(roc_auc_score(y[rows], predicted[rows]))


class SoftmaxProbe(LogisticProbe):
    """Multinomial logistic regression; accuracy. Labels are class numbers (rows, 1). One strength for all classes.

    Each strength goes on from the weights of the next stronger one.
    """

    metric = "accuracy"
    strengths = np.logspace(-1, 4, 6)

    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "SoftmaxProbe":
        self._learn_scale(x)
        classes = 1 + int(max(y.max(), y_valid.max()))
        strengths = torch.from_numpy(self.strengths)
        path = self._solve(self._scaled(x), _one_hot(y, classes), strengths.expand(classes, -1))
        logits = _apply(self._scaled(x_valid), path)  # (rows, classes, strengths)
        scores = [_accuracy(y_valid, each) for each in logits.argmax(1, keepdims=True).transpose(2, 0, 1)]
        best = len(scores) - 1 - int(np.argmax(scores[::-1]))  # of equals the strongest
        both = self._scaled(np.concatenate([x, x_valid])), _one_hot(np.concatenate([y, y_valid]), classes)
        self.weights, self.middle = self._solve(*both, strengths[best].expand(classes, 1)), 0.0
        return self

    def _solve(self, x: Tensor, y: Tensor, strengths: Tensor) -> Tensor:
        def fit(logits: Tensor) -> tuple[Tensor, Tensor]:
            logs = logits.log_softmax(1)
            return -y * logs, logs.exp() - y

        axes, design, squares = _rotated(x)
        penalties = _penalty(len(squares), strengths)  # (1 + rank, classes, strengths)
        path, weights = torch.empty_like(penalties), torch.zeros_like(penalties[..., 0])
        for number in strengths[0].argsort(descending=True).tolist():
            penalty = penalties[..., number]
            curvature = squares.unsqueeze(1) / y.shape[1] + penalty
            weights = path[..., number] = self._descend(weights, design, penalty, curvature, fit)
        return torch.cat([path[:1], (axes @ path[1:].flatten(1)).unflatten(1, strengths.shape)])

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        self.predicted = self.predict(x).argmax(1, keepdims=True)
        return {self.metric: np.array([_accuracy(y, self.predicted)])}


def _one_hot(y: Array, classes: int) -> Tensor:
    return torch.eye(classes)[torch.from_numpy(y[:, 0]).long()]  # (rows, classes)


def _accuracy(y: Array, classes: Array) -> float:
    return float((classes == y).mean())  # both (rows, 1)


class KnnProbe(Probe):
    """Weighted k nearest neighbours by cosine; accuracy (Wu et al., CVPR 2018; UNIC's protocol).

    A neighbour of cosine c votes for its class with weight exp(c / 0.07); k is chosen on validation rows.
    """

    name, metric = "knn", "accuracy"
    neighbours = (10, 20, 100, 200)
    temperature = 0.07

    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "KnnProbe":
        self.classes = 1 + int(max(y.max(), y_valid.max()))
        self.bank, self.labels = _unit(x), _one_hot(y, self.classes)
        usable = [k for k in self.neighbours if k <= len(x)] or [len(x)]
        self.k = usable[int(np.argmax([_accuracy(y_valid, each) for each in self._classes(x_valid, usable)]))]
        self.bank, self.labels = _unit(np.concatenate([x, x_valid])), _one_hot(np.concatenate([y, y_valid]), self.classes)
        return self

    def _votes(self, x: Array, counts: list[int]) -> list[Array]:
        """Per number of neighbours the weight of each class, (rows, classes)."""
        cosine, near = (_unit(x) @ self.bank.T).topk(max(counts), 1)  # (rows, k)
        weight = (cosine / self.temperature).exp().unsqueeze(-1)
        votes = (weight * self.labels[near]).cumsum(1)  # (rows, k, classes)
        return [votes[:, k - 1].numpy() for k in counts]

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        self.predicted = self._classes(x, [self.k])[0]
        return {self.metric: np.array([_accuracy(y, self.predicted)])}

    def _classes(self, x: Array, counts: list[int]) -> list[Array]:
        """Per number of neighbours the class of most votes, (rows, 1)."""
        chunks = range(0, len(x), 256)  # votes are (rows, k, classes)
        votes = [self._votes(x[start : start + 256], counts) for start in chunks]
        return [np.concatenate(each).argmax(1, keepdims=True) for each in zip(*votes, strict=True)]


def _unit(x: Array) -> Tensor:
    return torch.nn.functional.normalize(_tensor(x), dim=-1)


class _Untrained(Probe):
    fits = False

    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "_Untrained":
        return self


class SimilarityProbe(_Untrained):
    """Spearman correlation of the cosine of a pair's embeddings (rows, 2, dim) with its score, as in STS and SICK."""

    name, metric = "similarity", "spearman"

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        self.predicted = _cosine(x)
        if np.ptp(y) and not np.ptp(self.predicted):  # a system that calls all pairs alike knows nothing
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
    return np.asarray((unit[:, 0] * unit[:, 1]).sum(-1, keepdim=True))  # (rows, 1)


class ClusterProbe(_Untrained):
    """V-measure of k-means on the unit sphere, with as many clusters as classes; the best of three starts."""

    name, metric = "clusters", "v-measure"

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        means = KMeans(len(np.unique(y)), n_init=3, random_state=0).fit(_unit(x).numpy())
        self.predicted = means.labels_[:, None]
        return {self.metric: np.array([float(v_measure_score(y[:, 0], means.labels_)) if np.ptp(y) else np.nan])}


PROBES: dict[str, type[Probe]] = {
    "classification": LogisticProbe,
    "regression": RidgeProbe,
    "multiclass": SoftmaxProbe,
    "similarity": SimilarityProbe,
    "pairs": PairProbe,
    "clustering": ClusterProbe,
}
