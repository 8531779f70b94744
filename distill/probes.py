"""Linear probes of frozen embeddings, with the regularisation chosen on validation rows.

Every label and every strength is fitted at once on the same matrix, rotated to its principal axes: the ridge solution is
then a division, and logistic regression has a diagonal curvature bound. Same optimum as scikit-learn's, many times faster.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.metrics import r2_score, roc_auc_score
from torch import Tensor

Array = np.ndarray[Any, Any]


class Probe(ABC):
    """Fits on training rows, chooses on validation rows, refits on both; labels may be missing (NaN).

    Features are standardised by the training rows and clipped to ``clip`` standard deviations: a feature that hardly varies
    in training would else let one odd test row decide the score.

    Class attributes:
        metric: what :meth:`score` reports.
    """

    metric: ClassVar[str]
    clip: ClassVar[float] = 10.0
    centred: ClassVar[bool] = False  # whether labels are values, so that an offset can be taken off
    strengths: ClassVar[Array]  # (strengths,), each larger one regularises more

    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "Probe":
        """Fit.

        Args:
            x: embeddings (rows, dim).
            y: labels (rows, labels), NaN where missing.
            x_valid, y_valid: the same of the validation rows.
        """
        self.shift, spread = x.mean(0), x.std(0)  # of the training rows alone
        self.scale = np.where(spread > 1e-8, 1 / np.maximum(spread, 1e-8), 0.0)
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

    def predict(self, x: Array) -> Array:
        """Logits or values, (rows, labels)."""
        predicted: Array = _apply(self._scaled(x), self.weights)[..., 0] + self.middle
        return predicted

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        """``metric`` -> score per label (labels,); NaN where the rows cannot be scored."""
        predicted = self.predict(x)
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


class RidgeProbe(Probe):
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


class LogisticProbe(Probe):
    """Logistic regression; AUROC. ``strengths`` are 1 / C of scikit-learn.

    Accelerated proximal steps in the principal axes, where a quarter of the squared singular values bounds the curvature
    (Boehning and Lindsay, 1988); Nesterov's momentum restarts when it climbs (O'Donoghue and Candes, 2015).
    """

    metric = "auroc"
    strengths = np.logspace(-1, 5, 7)
    steps = 300
    tolerance = 1e-4

    def _solve(self, x: Tensor, y: Tensor, strengths: Tensor) -> Tensor:
        axes, squares = _axes(x)
        design = torch.cat([torch.ones(len(x), 1), x @ axes], 1)  # (rows, 1 + rank)
        known = y.isfinite().float().unsqueeze(-1)  # (rows, labels, 1)
        truth = y.nan_to_num().unsqueeze(-1)
        penalty = torch.cat([torch.zeros(1, *strengths.shape), strengths.float().expand(len(squares), -1, -1)])
        curvature = torch.cat([torch.tensor([float(len(x))]), squares])[:, None, None] / 4 + penalty
        weights = look = torch.zeros_like(penalty)  # (1 + rank, labels, strengths)
        momentum = torch.ones(strengths.shape)
        for _ in range(self.steps):
            logits = (design @ look.flatten(1)).unflatten(1, strengths.shape)
            residual = known * (logits.sigmoid() - truth)
            gradient = (design.T @ residual.flatten(1)).unflatten(1, strengths.shape) + penalty * look
            after = look - gradient / curvature
            step = after - weights
            restart = (gradient * step).sum(0) > 0  # (labels, strengths)
            following = torch.where(restart, 1.0, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
            look = after + torch.where(restart, 0.0, (momentum - 1) / following) * step
            weights, momentum = after, following
            if step.abs().max() < self.tolerance * weights.abs().max():
                break
        return torch.cat([weights[:1], (axes @ weights[1:].flatten(1)).unflatten(1, strengths.shape)])

    @staticmethod
    def _score(y: Array, predicted: Array) -> float:
        rows = np.isfinite(y)
        if len(np.unique(y[rows])) < 2:
            return float("nan")
        return float(roc_auc_score(y[rows], predicted[rows]))


PROBES: dict[str, type[Probe]] = {"classification": LogisticProbe, "regression": RidgeProbe}
