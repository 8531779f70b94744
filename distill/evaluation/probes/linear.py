"""Linear probes of frozen embeddings: ridge, logistic and softmax regression, their strength chosen by inner folds.

They are faster than a sweep over scikit-learn's models. Ridge needs one matrix of products for all labels and strengths.
Logistic and softmax regression descend along the principal axes, all labels and folds at once; each strength starts from
the weights of stronger ones, and the last fit from the chosen weights. All run on the GPU when there is one.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from scipy import linalg
from scipy.stats import rankdata
from sklearn.metrics import r2_score
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from distill.evaluation.probes.base import (
    LATER,
    TRAINED,
    Array,
    Probe,
    _class_scores,
    _mean_of_finite,
    _mean_of_known,
    _one_hot,
    _tensor,
    inner_folds,
)
from distill.evaluation.probes.descent import minimise

FACTORS = 8  # Cholesky factors that take the time of all eigenvectors

ROUNDING = 1e-12  # of the largest product of rows: what float64 cannot tell from nothing


class LinearProbe(Probe):
    """Chooses a strength by inner folds, then fits on all rows; labels may be missing (NaN).

    Features are standardised by the rows that no inner fold scores, or by all rows when each is scored once; and clipped to
    ``clip`` standard deviations. Otherwise one unusual test row could decide the score through a feature that hardly varies
    in training.
    """

    name = "linear"
    clip: ClassVar[float] = 10.0
    valued: ClassVar[bool] = False  # whether labels are values: standardised, and predicted within their range
    strengths: ClassVar[Array]  # (strengths,): a larger one regularises more
    middle: Array | float = 0.0
    spread: Array | float = 1.0
    low: Array | float = -np.inf
    high: Array | float = np.inf

    def fit(self, x: Array, y: Array, fold: Array) -> "LinearProbe":
        features, targets = self.prepare(x, y, fold)
        used = np.flatnonzero(fold != LATER)
        scores, path = self.tried(features[:, used], targets[:, used], y[used], fold[used])
        chosen = self.best(scores, len(targets))
        self.weights = self.solve(features, targets, self.strengths[chosen], path[chosen, range(len(targets))])
        return self

    def prepare(self, x: Array, y: Array, fold: Array) -> tuple[Tensor, Tensor]:
        """Learn the scales; give features (dim, rows) in float32 and targets (outputs, rows) in float64."""
        train = fold == TRAINED
        train = train if train.any() else np.ones_like(train)
        self.shift, spread = x[train].mean(0), x[train].std(0)
        self.scale = np.where(spread > 1e-8, 1 / np.maximum(spread, 1e-8), 0.0).astype(np.float32)
        targets = self._targets(y.astype(np.float64))  # (rows, outputs)
        if self.valued:
            self.low, self.high = np.fmin.reduce(targets), np.fmax.reduce(targets)  # (outputs,), NaN ignored
            self.middle = _mean_of_known(targets[train])
            self.spread = np.sqrt(_mean_of_known((targets[train] - self.middle) ** 2))
            self.spread = np.where(self.spread > 0, self.spread, 1.0)
        return self.scaled(x), _tensor((targets - self.middle) / self.spread, np.float64).T

    def scaled(self, x: Array) -> Tensor:
        """Features (dim, rows): rows are last, since few weights times a wide matrix is faster than the other order."""
        return _tensor(np.clip((x - self.shift) * self.scale, -self.clip, self.clip), np.float32).T.contiguous()

    def tried(self, x: Tensor, targets: Tensor, y: Array, fold: Array) -> tuple[Array, Tensor]:
        """Every strength tried in every inner fold.

        Args:
            x: features (dim, rows).
            targets: (outputs, rows).
            y: labels (rows, labels).
            fold: see :meth:`Probe.fit`.

        Returns:
            Scores (labels, strengths), their mean over the folds; and weights (strengths, outputs, 1 + dim), likewise.
        """
        folds = list(inner_folds(fold))
        masked = targets.repeat(len(folds), 1, 1)  # (folds, outputs, rows)
        for number, (_, scored) in enumerate(folds):
            masked[number, :, scored] = torch.nan
        path = self._path(x, masked)  # (strengths, folds, outputs, 1 + dim)
        scores = []
        for number, (_, scored) in enumerate(folds):
            outputs = self.restored(_apply(path[:, number], x[:, scored]))  # (strengths, rows, outputs)
            scores.append(np.stack([self.judge(each, y[scored])[1][self.metric] for each in outputs], 1))
        return _mean_of_finite(np.stack(scores)), path.mean(1)

    def best(self, scores: Array, outputs: int) -> list[int]:
        """The number of a strength for each output, from scores (labels, strengths)."""
        return [int(np.nanargmax(row)) if np.isfinite(row).any() else len(row) // 2 for row in scores]

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

    @abstractmethod
    def _path(self, x: Tensor, y: Tensor) -> Tensor:
        """Weights (strengths, folds, outputs, 1 + dim), intercept first, fitted to the rows that have a target.

        Args:
            x: (dim, rows) float32.
            y: (folds, outputs, rows) float64, NaN where missing.
        """

    @abstractmethod
    def solve(self, x: Tensor, y: Tensor, strengths: Array, start: Tensor) -> Tensor:
        """Weights (outputs, 1 + dim) of a strength for each output, fitted to all rows.

        Args:
            x: (dim, rows) float32.
            y: (outputs, rows) float64, NaN where missing.
            strengths: (outputs,).
            start: weights to begin with, (outputs, 1 + dim).
        """

    @staticmethod
    @abstractmethod
    def _score(y: Array, predicted: Array) -> float:
        """The metric over the rows that have a label."""


def _apply(weights: Tensor, x: Tensor) -> Array:
    """Outputs (..., rows, outputs) of weights (..., outputs, 1 + dim) and ``x`` (dim, rows)."""
    flat = weights.flatten(0, -2).to(x.dtype)
    outputs = (flat[:, :1] + flat[:, 1:] @ x).unflatten(0, weights.shape[:-1])
    return np.asarray(outputs.mT.cpu())


def _gram(x: Tensor) -> Tensor:
    """``x @ x.T``; on the CPU by NumPy, which computes only one half of it."""
    return x @ x.T if x.is_cuda else torch.from_numpy(x.numpy() @ x.numpy().T)


def _eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (rows,), the least first, and axes (rows, rows); on the CPU by SciPy, whose library is faster there."""
    if x.is_cuda:
        values, axes = torch.linalg.eigh(x)
        return values, axes
    values, axes = linalg.eigh(x.numpy(), driver="evd", check_finite=False)
    return torch.from_numpy(values), torch.from_numpy(axes)


class RidgeProbe(LinearProbe):
    """Ridge regression; R2, and RMSE beside it. ``strengths`` are scikit-learn's alphas.

    Predictions stay within the range of the fitted labels: R2 has no lower bound, so one extrapolation could decide the
    mean over tasks (one GAT teacher had R2 = -120 in one FreeSolv split). Sums are in float64: squares of a graph network's
    embedding differ by ten million between its axes.
    """

    metric = "r2"
    strengths = np.logspace(-1, 5, 13)
    valued = True

    def _path(self, x: Tensor, y: Tensor) -> Tensor:
        flat, strengths = y.flatten(0, 1), torch.from_numpy(self.strengths).to(x.device)
        path: Tensor = flat.new_empty(len(strengths), len(flat), 1 + len(x))
        for group, known in _alike(flat):
            path[:, group] = self._ridge(x, flat[group], known, strengths)
        return path.view(len(strengths), *y.shape[:2], -1)

    def solve(self, x: Tensor, y: Tensor, strengths: Array, start: Tensor) -> Tensor:
        out, each = y.new_empty(len(y), 1 + len(x)), torch.from_numpy(strengths).to(x.device)
        for group, known in _alike(y):
            different, number = each[group].unique(return_inverse=True)
            out[group] = self._ridge(x, y[group], known, different)[number, range(len(group))]
        return out

    def _ridge(self, x: Tensor, y: Tensor, known: Tensor, strengths: Tensor) -> Tensor:
        """Weights (strengths, labels, 1 + dim) of labels (labels, rows) that the rows ``known`` have."""
        x, y = x[:, known].double(), y[:, known]
        if len(x) < x.shape[1]:
            return _primal(x, y, strengths)
        return _along(dual_ridge(_gram(x.T), y, strengths), x.T)

    def judge(self, outputs: Array, y: Array) -> tuple[Array, dict[str, Array]]:
        outputs, scores = super().judge(outputs, y)
        return outputs, scores | {"rmse": np.sqrt(_mean_of_finite((outputs - y) ** 2))}

    @staticmethod
    def _score(y: Array, predicted: Array) -> float:
        rows = np.isfinite(y) & np.isfinite(predicted)  # no prediction where no label was fitted
        if rows.sum() < 2 or np.ptp(y[rows]) == 0:  # scikit-learn gives a constant label R2 = 1
            return float("nan")
        return float(r2_score(y[rows], predicted[rows]))


def _alike(y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers of the labels (labels, rows) that the same rows have, and the numbers of these rows."""
    patterns, pattern_of = y.isfinite().unique(dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        yield (pattern_of == number).nonzero().squeeze(1), pattern.nonzero().squeeze(1)


def _primal(x: Tensor, y: Tensor, strengths: Tensor) -> Tensor:
    """Ridge weights (strengths, labels, 1 + dim), intercept first, of ``x`` (dim, rows) and ``y`` (labels, rows)."""
    mean, middle = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    products = _gram(torch.cat([x - mean, y - middle]))  # (dim + labels, dim + labels)
    weights = _solved(products[: len(x), : len(x)], products[: len(x), len(x) :], strengths)
    return torch.cat([middle - weights @ mean, weights], -1)


def _solved(matrix: Tensor, right: Tensor, strengths: Tensor) -> Tensor:
    """Solutions (strengths, columns, rows) of ``(matrix + strength I) x = right``, whose columns are (rows, columns).

    Eigenvectors take the time of about eight factors, and serve all strengths.
    """
    if len(strengths) > FACTORS:
        values, axes = _eigh(matrix)
        along = (axes.T @ right).T  # (columns, rows)
        return along / (values + strengths[:, None]).unsqueeze(1) @ axes.T
    added, out = matrix.clone(), []
    for strength in strengths:
        added.diagonal().copy_(matrix.diagonal() + strength)
        out.append(torch.cholesky_solve(right, torch.linalg.cholesky(added)).T)
    return torch.stack(out)


def dual_ridge(gram: Tensor, y: Tensor, strengths: Tensor) -> Tensor:
    """The same by products of rows: an intercept, which is not penalised, and a coefficient for each row.

    Args:
        gram: products of the rows, or their kernel, (rows, rows).
        y: (labels, rows).
        strengths: (strengths,).

    Returns:
        (strengths, labels, 1 + rows).
    """
    ones = gram.new_ones(len(gram), 1)
    right = torch.cat([ones, y.T.to(gram.dtype)], 1)  # (rows, 1 + labels)
    solved = _solved(gram, right, strengths.to(gram.dtype))  # (strengths, 1 + labels, rows)
    least = torch.finfo(gram.dtype).tiny
    intercepts = solved[:, 1:].sum(2, keepdim=True) / solved[:, :1].sum(2, keepdim=True).clamp_min(least)
    return torch.cat([intercepts, solved[:, 1:] - intercepts * solved[:, :1]], 2)


class LogisticProbe(LinearProbe):
    """Logistic regression; AUROC. ``strengths`` are 1 / C of scikit-learn.

    Descends along the principal axes, each scaled by the curvature of the loss along it, for all labels at once. Each
    strength starts from the weights of stronger ones.
    """

    metric = "auroc"
    strengths = np.logspace(-1, 5, 7)
    joint: ClassVar[bool] = False  # whether the outputs have one loss, not one each
    tolerance = 1e-8  # of the loss, as a share of the gain by the features over the intercept alone

    def _axes(self, x: Tensor) -> Tensor | None:
        """Axes (rank, dim) along which to descend; with more features than rows, of the space of the rows."""
        axes: Tensor
        if len(x) <= x.shape[1]:
            axes = _eigh(_gram(x))[1]  # (dim, dim)
            return axes.T
        values, vectors = _eigh(_gram(x.T.double()))  # (rows,), (rows, rows)
        kept = values > ROUNDING * values[-1]
        axes = x @ (vectors[:, kept] * values[kept].rsqrt()).to(x.dtype)  # (dim, rank)
        return axes.T

    def _path(self, x: Tensor, y: Tensor) -> Tensor:
        axes = self._axes(x)
        x = x if axes is None else axes @ x
        squares, path = x.square(), list[Tensor]()  # the weakest first
        for strength in self.strengths[::-1]:
            start = 2 * path[0] - path[1] if len(path) > 1 else path[0] if path else None  # the path is nearly straight
            path.insert(0, self._descend(x, squares, y, torch.full_like(y[..., 0], strength, dtype=x.dtype), start))
        return _along(torch.stack(path), axes)

    def solve(self, x: Tensor, y: Tensor, strengths: Array, start: Tensor) -> Tensor:
        axes = self._axes(x)
        if axes is not None:
            x, start = axes @ x, torch.cat([start[:, :1], start[:, 1:] @ axes.T], 1)
        each = torch.from_numpy(strengths).to(x).unsqueeze(0)
        return _along(self._descend(x, x.square(), y.unsqueeze(0), each, start.unsqueeze(0))[0], axes)

    def _descend(self, x: Tensor, squares: Tensor, y: Tensor, strengths: Tensor, start: Tensor | None) -> Tensor:
        """Weights (folds, outputs, 1 + dim) at which the penalised loss is least.

        Args:
            x: (dim, rows).
            squares: of ``x``.
            y: (folds, outputs, rows), NaN where missing.
            strengths: (folds, outputs).
            start: weights to begin with; by default only the intercept is not zero.
        """
        shape = y.shape[:2] if self.joint else (y.shape[0] * y.shape[1], 1)  # problems, outputs of one
        flat = y.reshape(*shape, -1)
        known, truth = flat.isfinite().float(), flat.nan_to_num().float()
        share = (truth.sum(-1, keepdim=True) + 0.5) / (known.sum(-1, keepdim=True) + 1)
        null, penalty = x.new_zeros(2, *shape, 1 + len(x))
        null[..., :1] = share.log() if self.joint else share.logit()
        penalty[..., 1:] = strengths.reshape(*shape, 1)
        begin = null if start is None else start.reshape(null.shape)
        everything = torch.arange(shape[0], device=x.device)

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
        return (found.view_as(scale) * scale).view(*y.shape[:2], -1)

    @staticmethod
    def _fit(logits: Tensor, truth: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and their derivatives."""
        return known * F.softplus((1 - 2 * truth) * logits), known * (logits.sigmoid() - truth)

    @staticmethod
    def _score(y: Array, predicted: Array) -> float:
        rows = np.isfinite(y)
        ranks, positive = rankdata(predicted[rows]), y[rows] > 0
        above, below = positive.sum(), (~positive).sum()
        if not above or not below:
            return float("nan")
        return float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))


def _along(weights: Tensor, axes: Tensor | None) -> Tensor:
    """Weights (..., 1 + dim) of weights along the axes (rank, dim), intercepts first."""
    return weights if axes is None else torch.cat([weights[..., :1], weights[..., 1:] @ axes], -1)


class SoftmaxProbe(LogisticProbe):
    """Multinomial logistic regression; accuracy. Labels are class numbers (rows, 1). One strength for all classes."""

    metric = "accuracy"
    strengths = np.logspace(-1, 4, 6)
    joint = True
    tolerance = 1e-7  # classes are less sensitive than ranks

    def _targets(self, y: Array) -> Array:
        return _one_hot(y)

    def best(self, scores: Array, outputs: int) -> list[int]:
        return [scores.shape[1] - 1 - int(np.argmax(scores[0, ::-1]))] * outputs  # the strongest of equal ones

    @staticmethod
    def _fit(logits: Tensor, truth: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        logs = logits.log_softmax(1)
        return -truth * logs, known * (logs.exp() - truth)

    def judge(self, outputs: Array, y: Array) -> tuple[Array, dict[str, Array]]:
        classes = outputs.argmax(1, keepdims=True)
        return classes, _class_scores(y, classes)
