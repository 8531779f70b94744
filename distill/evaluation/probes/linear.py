"""Linear probes of frozen embeddings: ridge, logistic and softmax regression, their strength chosen on validation rows.

They are faster than a sweep over scikit-learn's models. Ridge needs one matrix of sums for all labels and strengths.
Logistic and softmax regression descend along the principal axes, all labels at once; each strength starts from the weights
of stronger ones, and the refit from the chosen weights. All run on the GPU when there is one.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from sklearn.metrics import r2_score, roc_auc_score
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from distill.evaluation.probes.base import Array, Probe, _accuracy, _class_scores, _mean_of_known, _one_hot, _tensor
from distill.evaluation.probes.descent import minimise

Choose = Callable[[Tensor], Tensor]  # weights (strengths, outputs, 1 + dim) -> the number of a strength for each output


class LinearProbe(Probe):
    """Fits on training rows, chooses a strength on validation rows, fits again on both; labels may be missing (NaN).

    Features are standardised by the training rows and clipped to ``clip`` standard deviations. Otherwise one unusual test
    row could decide the score through a feature that hardly varies in training.
    """

    name = "linear"
    clip: ClassVar[float] = 10.0
    valued: ClassVar[bool] = False  # whether labels are values: standardised, and predicted within their range
    strengths: ClassVar[Array]  # (strengths,): a larger one regularises more
    middle: Array | float = 0.0
    spread: Array | float = 1.0
    low: Array | float = -np.inf
    high: Array | float = np.inf

    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "LinearProbe":
        both, targets = self.prepare(x, y, x_valid, y_valid)
        axes = self._axes(both)
        both = both if axes is None else axes @ both

        def choose(path: Tensor) -> Tensor:
            outputs = self.restored(_apply(path, both[:, len(x) :]))  # (strengths, rows, outputs)
            return torch.tensor(self._best(y_valid, outputs), device=both.device)

        weights = self._solve(both, targets, len(x), choose)  # (outputs, 1 + rank)
        self.weights = weights if axes is None else torch.cat([weights[:, :1], weights[:, 1:] @ axes.to(weights)], 1)
        return self

    def prepare(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> tuple[Tensor, Tensor]:
        """Learn the scales; give features (dim, rows) float32 and targets (outputs, rows) float64, training rows first."""
        self.shift, spread = x.mean(0), x.std(0)  # of the training rows alone, as are the labels'
        self.scale = np.where(spread > 1e-8, 1 / np.maximum(spread, 1e-8), 0.0).astype(np.float32)
        targets = self._targets(np.concatenate([y, y_valid]).astype(np.float64))  # (rows, outputs)
        if self.valued:
            self.low, self.high = np.fmin.reduce(targets), np.fmax.reduce(targets)  # (outputs,), NaN ignored
            self.middle = _mean_of_known(targets[: len(x)])
            self.spread = np.sqrt(_mean_of_known((targets[: len(x)] - self.middle) ** 2))
            self.spread = np.where(self.spread > 0, self.spread, 1.0)
        return self.scaled(np.concatenate([x, x_valid])), _tensor((targets - self.middle) / self.spread, np.float64).T

    def scaled(self, x: Array) -> Tensor:
        """Features (dim, rows): rows are last, since few weights times a wide matrix is faster than the other order."""
        return _tensor(np.clip((x - self.shift) * self.scale, -self.clip, self.clip), np.float32).T.contiguous()

    def restored(self, outputs: Array) -> Array:
        """Outputs (..., rows, outputs) in the units of the labels."""
        return outputs * self.spread + self.middle

    def values(self, outputs: Array) -> Array:
        """The same, within the range of the labels."""
        within: Array = np.clip(self.restored(outputs), self.low, self.high)
        return within

    def predict(self, x: Array) -> Array:
        """Logits or values, (rows, outputs)."""
        return self.values(_apply(self.weights, self.scaled(x)))

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        self.predicted, scores = self.judge(self.predict(x), y)
        return scores

    def judge(self, outputs: Array, y: Array) -> tuple[Array, dict[str, Array]]:
        """The predictions (rows, columns) of outputs (rows, outputs), and their scores."""
        return outputs, {self.metric: np.array([self._score(*columns) for columns in zip(y.T, outputs.T, strict=True)])}

    def _targets(self, y: Array) -> Array:
        return y

    def _axes(self, x: Tensor) -> Tensor | None:
        """Axes (rank, dim) of the coordinates to solve in: with more features than rows, the space of the rows."""
        return torch.linalg.qr(x)[0].T if len(x) > x.shape[1] else None

    def _best(self, y: Array, outputs: Array) -> list[int]:
        """The number of a strength for each output, from outputs (strengths, rows, outputs)."""
        scores = np.stack([self.judge(predicted, y)[1][self.metric] for predicted in outputs], 1)  # (labels, strengths)
        return [int(np.nanargmax(row)) if np.isfinite(row).any() else len(row) // 2 for row in scores]

    @abstractmethod
    def _solve(self, x: Tensor, y: Tensor, train: int, choose: Choose) -> Tensor:
        """Weights (outputs, 1 + dim), intercept first, fitted to all rows with the chosen strengths.

        Args:
            x: (dim, rows) float32.
            y: (outputs, rows) float64, NaN where missing.
            train: how many of the rows to try the strengths on.
            choose: finds the best strength for each output.
        """

    @staticmethod
    @abstractmethod
    def _score(y: Array, predicted: Array) -> float:
        """The metric over the rows that have a label."""


def _apply(weights: Tensor, x: Tensor) -> Array:
    """Outputs (..., rows, outputs) of weights (..., outputs, 1 + dim) and ``x`` (dim, rows)."""
    flat = weights.flatten(0, -2).float()
    outputs = (flat[:, :1] + flat[:, 1:] @ x).unflatten(0, weights.shape[:-1])
    return np.asarray(outputs.mT.cpu())


def _gram(x: Tensor) -> Tensor:
    """``x @ x.T``; on the CPU by NumPy, which computes only one half of it."""
    return x @ x.T if x.is_cuda else torch.from_numpy(x.numpy() @ x.numpy().T)


class RidgeProbe(LinearProbe):
    """Ridge regression; R2. ``strengths`` are scikit-learn's alphas.

    Predictions stay within the range of the fitted labels: R2 has no lower bound, so one extrapolation could decide the
    mean over tasks (one GAT teacher had R2 = -120 in one FreeSolv split). Sums are in float64: squares of a graph network's
    embedding differ by ten million between its axes.
    """

    metric = "r2"
    strengths = np.logspace(-1, 5, 13)
    valued = True

    def _solve(self, x: Tensor, y: Tensor, train: int, choose: Choose) -> Tensor:
        patterns, pattern_of = y.isfinite().unique(dim=0, return_inverse=True)
        groups = [(pattern_of == number).nonzero().squeeze(1) for number in range(len(patterns))]  # labels of the same rows
        strengths = torch.from_numpy(self.strengths).to(x.device)
        path = y.new_empty(len(strengths), len(y), 1 + len(x))
        fitted = [_sums(x[:, :train], y[group, :train]) for group in groups]
        for group, sums in zip(groups, fitted, strict=True):
            path[:, group] = _ridge(sums, strengths, len(group))
        chosen = choose(path)
        for group, sums in zip(groups, fitted, strict=True):
            both = sums + _sums(x[:, train:], y[group, train:])
            path[0, group] = _ridge(both, strengths[chosen[group]], len(group)).diagonal().T
        return path[0]

    @staticmethod
    def _score(y: Array, predicted: Array) -> float:
        rows = np.isfinite(y) & np.isfinite(predicted)  # no prediction where no label was fitted
        if rows.sum() < 2 or np.ptp(y[rows]) == 0:  # scikit-learn gives a constant label R2 = 1
            return float("nan")
        return float(r2_score(y[rows], predicted[rows]))


def _sums(x: Tensor, y: Tensor) -> Tensor:
    """Sums over rows with a label of the products of [1, x, y]: all that ridge regression needs."""
    known = y[0].isfinite()
    table = torch.cat([torch.ones_like(y[:1]), x, y])  # (1 + dim + labels, rows)
    return _gram(table if known.all() else table[:, known])


def _ridge(sums: Tensor, strengths: Tensor, labels: int) -> Tensor:
    """Ridge weights (strengths, labels, 1 + dim), intercept first, from :func:`_sums`."""
    mean = sums[0, 1:] / sums[0, 0].clamp_min(1)
    centred = sums[1:, 1:] - sums[0, 0] * mean.outer(mean)
    squares, products = centred[:-labels, :-labels], centred[:-labels, -labels:]  # (dim, dim), (dim, labels)
    unit = torch.eye(len(squares), dtype=sums.dtype, device=sums.device)
    factors = [torch.linalg.cholesky(squares + strength * unit) for strength in strengths]
    weights = torch.stack([torch.cholesky_solve(products, factor).T for factor in factors])
    return torch.cat([(mean[-labels:] - weights @ mean[:-labels]).unsqueeze(-1), weights], -1)


class LogisticProbe(LinearProbe):
    """Logistic regression; AUROC. ``strengths`` are 1 / C of scikit-learn.

    Descends along the principal axes, each scaled by the curvature of the loss along it, for all labels at once. Each
    strength starts from the weights of stronger ones.
    """

    metric = "auroc"
    strengths = np.logspace(-1, 5, 7)
    joint: ClassVar[bool] = False  # whether the outputs have one loss, not one each
    tolerance = 1e-7  # of the loss, as a share of the gain by the features over the intercept alone

    def _axes(self, x: Tensor) -> Tensor:
        rows = super()._axes(x)
        axes: Tensor = torch.linalg.eigh(_gram(x if rows is None else rows @ x))[1].T
        return axes if rows is None else axes @ rows

    def _solve(self, x: Tensor, y: Tensor, train: int, choose: Choose) -> Tensor:
        strengths, squares = torch.from_numpy(self.strengths).to(x), x.square()
        known = x[:, :train], squares[:, :train], y[:, :train]
        path: list[Tensor] = []  # the weakest first
        for strength in strengths.flip(0):
            start = 2 * path[0] - path[1] if len(path) > 1 else path[0] if path else None  # the path is nearly straight
            path.insert(0, self._descend(*known, strength.expand(len(y)), start))
        weights = torch.stack(path)
        chosen = choose(weights)
        return self._descend(x, squares, y, strengths[chosen], weights[chosen, torch.arange(len(y), device=x.device)])

    def _descend(self, x: Tensor, squares: Tensor, y: Tensor, strengths: Tensor, start: Tensor | None) -> Tensor:
        """Weights (outputs, 1 + dim) at which the penalised loss is least.

        Args:
            x: (dim, rows).
            squares: of ``x``.
            y: (outputs, rows), NaN where missing.
            strengths: (outputs,).
            start: weights to begin with; by default only the intercept is not zero.
        """
        shape = (1, len(y), -1) if self.joint else (len(y), 1, -1)  # (problems, outputs of one, ...)
        known, truth = y.isfinite().float().view(shape), y.nan_to_num().float().view(shape)
        share = (truth.sum(-1, keepdim=True) + 0.5) / (known.sum(-1, keepdim=True) + 1)
        null, penalty = x.new_zeros(2, len(y), 1 + len(x)).unflatten(1, shape[:2])
        null[..., :1], penalty[..., 1:] = share.log() if self.joint else share.logit(), strengths.view(shape)
        begin, everything = null if start is None else start.view_as(null), torch.arange(shape[0], device=x.device)

        def fit(weights: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            logits = weights[..., :1] + (weights[..., 1:].flatten(0, 1) @ x).unflatten(0, weights.shape[:2])
            return self._fit(logits, truth[which], known[which])  # both (which, outputs, rows)

        def over_rows(values: Tensor, features: Tensor) -> Tensor:
            products = (values.flatten(0, 1) @ features.T).unflatten(0, values.shape[:2])
            return torch.cat([values.sum(-1, keepdim=True), products], -1)  # (which, outputs, 1 + dim)

        chance = truth + fit(begin, everything)[1]
        spread = known * (chance * (1 - chance) + 0.1 * share * (1 - share))  # never zero, however certain the start
        scale: Tensor = (over_rows(spread, squares) + penalty).rsqrt()

        def loss(scaled: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            weights = scaled.view(-1, *scale.shape[1:]) * scale[which]
            losses, residual = fit(weights, which)
            value = losses.sum((1, 2), dtype=torch.float64) + (penalty[which] * weights.square()).sum((1, 2)) / 2
            return value, ((over_rows(residual, x) + penalty[which] * weights) * scale[which]).flatten(1)

        worst, _ = loss((null / scale).flatten(1), everything)
        found = minimise(loss, (begin / scale).flatten(1), worst, self.tolerance)
        return (found.view_as(scale) * scale).flatten(0, 1)

    @staticmethod
    def _fit(logits: Tensor, truth: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and their derivatives."""
        return known * F.softplus((1 - 2 * truth) * logits), known * (logits.sigmoid() - truth)

    @staticmethod
    def _score(y: Array, predicted: Array) -> float:
        rows = np.isfinite(y)
        if len(np.unique(y[rows])) < 2:
            return float("nan")
        return float(roc_auc_score(y[rows], predicted[rows]))


class SoftmaxProbe(LogisticProbe):
    """Multinomial logistic regression; accuracy. Labels are class numbers (rows, 1). One strength for all classes."""

    metric = "accuracy"
    strengths = np.logspace(-1, 4, 6)
    joint = True
    tolerance = 1e-6  # classes are less sensitive than ranks

    def _targets(self, y: Array) -> Array:
        return _one_hot(y)

    def _best(self, y: Array, predicted: Array) -> list[int]:
        scores = [_accuracy(y, outputs.argmax(1, keepdims=True)) for outputs in predicted]
        return [len(scores) - 1 - int(np.argmax(scores[::-1]))] * predicted.shape[2]  # the strongest of equal ones

    @staticmethod
    def _fit(logits: Tensor, truth: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        logs = logits.log_softmax(1)
        return -truth * logs, logs.exp() - truth

    def judge(self, outputs: Array, y: Array) -> tuple[Array, dict[str, Array]]:
        classes = outputs.argmax(1, keepdims=True)
        return classes, _class_scores(y, classes)
