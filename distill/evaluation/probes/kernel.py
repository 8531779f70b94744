"""Probes with a Gaussian (RBF) kernel: ridge, logistic and softmax regression that can bend.

A linear probe misses what an embedding says in curves. These find it, with two options, which the inner folds choose: first
the width of the kernel, by kernel ridge of one strength, then the strength of regularisation. One kernel serves all
labels, strengths and folds.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.probes.base import LATER, Array, _mean_of_finite, _mean_of_known, inner_folds
from distill.evaluation.probes.linear import (
    LinearProbe,
    LogisticProbe,
    RidgeProbe,
    SoftmaxProbe,
    _apply,
    _eigh,
    _gram,
    dual_ridge,
)

EXACT = 5000  # rows; of more, the kernel is that of landmarks, which cost up to .024 of AUROC at 3,360 rows

LANDMARKS = 1000

MEDIAN_ROWS = 500  # that the median distance is measured on

FLAT = 1e-6  # axes of the kernel with less of its largest eigenvalue are left out: float32 has no digits for them


class _KernelProbe(LinearProbe):
    """A linear probe of the features that a Gaussian kernel stands for: exp(-distance² / (2 width²)).

    Features are standardised and clipped as for linear probes. Up to 5,000 rows the kernel is exact. Of more rows, 1,000
    are landmarks, drawn at random: Nyström's approximation (Williams and Seeger, NeurIPS 2000), with the rows that
    scikit-learn's ``Nystroem(random_state=0)`` draws.

    Attributes:
        widths: to choose from, as multiples of the median distance between two rows.
        ridge: alpha of the kernel ridge that the widths are compared by.
    """

    name = "rbf"
    widths: ClassVar[tuple[float, ...]] = (0.5, 1.0, 2.0)
    ridge: ClassVar[float] = 0.3
    mixing: Tensor | None  # of the kernel with the basis rows, (rank, basis rows); None: the kernel itself is used

    def fit(self, x: Array, y: Array, fold: Array) -> "_KernelProbe":
        rows, targets = self.prepare(x, y, fold)  # (dim, rows), (outputs, rows)
        used = np.flatnonzero(fold != LATER)
        every = -(-len(used) // EXACT)
        few = np.sort(used[np.argsort(fold[used], kind="stable")][::every])  # of each inner fold the same share
        squares = _squares(rows, rows) if len(fold) <= EXACT else None  # for the choice of a width, and for the features
        fewer = rows[:, few]
        among = _squares(fewer, fewer) if squares is None else squares[few][:, few]
        self.width = self._best_width(among, _median_distance(fewer), targets[:, few], y[few], fold[few])
        features = self._features(rows, squares)
        scores, path = self.tried(self._among(features, used), targets[:, used], y[used], fold[used])
        chosen = self.best(scores, len(targets))
        self.weights = self.solve(features, targets, self.strengths[chosen], path[chosen, range(len(targets))])
        return self

    def _best_width(self, squares: Tensor, median: float, targets: Tensor, y: Array, fold: Array) -> float:
        """The width with the best scores by kernel ridge, also for classes: one factor of the kernel serves all labels.

        A missing label counts as the mean.

        Args:
            squares: squared distances of the rows, (rows, rows).
            median: distance between two rows.
            targets: and the others: as in :meth:`tried`.
        """
        mean = targets.nanmean(1, keepdim=True).nan_to_num()
        filled = torch.where(targets.isfinite(), targets, mean)
        reached = []
        for width in self.widths:
            kernel, scores = _kernel(squares, width * median), []
            for train, scored in inner_folds(fold):
                (found,) = dual_ridge(kernel[train][:, train], filled[:, train], torch.tensor([self.ridge]))
                outputs = self.restored(_apply(found, kernel[train][:, scored]))  # (rows, outputs)
                scores.append(self.judge(outputs, y[scored])[1][self.metric])
            reached.append(float(_mean_of_known(_mean_of_finite(np.stack(scores)))))
        return self.widths[int(np.argmax(reached))] * median

    def _features(self, rows: Tensor, squares: Tensor | None) -> Tensor:
        """Features (rank, rows) of rows (dim, rows); keeps the basis rows, and what mixes the kernel with them.

        Args:
            rows: to fit on.
            squares: squared distances of all rows, (rows, rows); None where they are too many, so that some are landmarks.
        """
        landmarks = squares is None
        drawn = np.random.RandomState(0).permutation(rows.shape[1])[:LANDMARKS]
        self.basis = rows[:, drawn] if landmarks else rows
        values, axes = _eigh(_kernel(_squares(self.basis, self.basis) if squares is None else squares, self.width))
        kept = values > FLAT * values[-1]
        values, axes = values[kept], axes[:, kept]  # (rank,), (basis rows, rank)
        self.mixing = (axes * values.rsqrt()).T
        if landmarks:
            return self.mixing @ _kernel(_squares(self.basis, rows), self.width)
        features: Tensor = (axes * values.sqrt()).T.contiguous()
        return features

    def _among(self, features: Tensor, used: Array) -> Tensor:
        """Features of the rows ``used`` alone."""
        return features[:, used]

    def predict(self, x: Array) -> Array:
        """Logits or values, (rows, outputs)."""
        across = _kernel(_squares(self.basis, self.scaled(x)), self.width)
        return self.values(_apply(self.weights, across if self.mixing is None else self.mixing @ across))


def _squares(one: Tensor, other: Tensor) -> Tensor:
    """Squared distances (rows of one, rows of the other) of features (dim, rows)."""
    squares = one.square().sum(0).unsqueeze(1) + other.square().sum(0)
    if one is other:  # half of the products
        return squares.sub_(_gram(one.T), alpha=2).clamp_min_(0)
    return squares.addmm_(one.T, other, alpha=-2).clamp_min_(0)


def _kernel(squares: Tensor, width: float) -> Tensor:
    return (squares * (-0.5 / width**2)).exp_()


def _median_distance(rows: Tensor) -> float:
    """The median distance between two different rows, of at most 500; 1 when all of them are equal."""
    drawn = np.random.RandomState(0).permutation(rows.shape[1])[:MEDIAN_ROWS]
    few = rows[:, drawn]
    distances = _squares(few, few).sqrt()
    above = distances[tuple(torch.triu_indices(len(drawn), len(drawn), 1, device=rows.device))]
    return float(np.median(above.cpu().numpy())) if above.any() else 1.0


class KernelRidgeProbe(_KernelProbe, RidgeProbe):
    """Ridge regression with a Gaussian kernel; R2. ``strengths`` are the alphas of scikit-learn's ``KernelRidge``.

    The intercept is not penalised. Up to 5,000 rows it is solved by the kernel itself: in float32 for the inner folds, in
    float64 for the last fit.
    """

    strengths = np.logspace(-2.5, 0.5, 7)

    def _features(self, rows: Tensor, squares: Tensor | None) -> Tensor:
        if squares is None:
            return super()._features(rows, squares)
        self.basis, self.mixing = rows, None
        return _kernel(squares, self.width)

    def _among(self, features: Tensor, used: Array) -> Tensor:
        return super()._among(features if self.mixing is not None else features[used], used)

    def _ridge(self, x: Tensor, y: Tensor, known: Tensor, strengths: Tensor) -> Tensor:
        if len(x) != x.shape[1]:  # features of landmarks
            return super()._ridge(x, y, known, strengths)
        last = len(known) == len(x)
        gram = x.double() if last else x[known][:, known]
        found = dual_ridge(gram, y[:, known], strengths).to(y.dtype)
        out = found.new_zeros(*found.shape[:2], 1 + len(x))
        out[..., torch.cat([known.new_zeros(1), 1 + known])] = found
        return out


class KernelLogisticProbe(_KernelProbe, LogisticProbe):
    """Logistic regression with a Gaussian kernel, for each label; AUROC. ``strengths`` are 1 / C of scikit-learn."""

    strengths = np.logspace(-2, 1, 7)

    def _axes(self, x: Tensor) -> None:
        """The features are along principal axes already."""


class KernelSoftmaxProbe(_KernelProbe, SoftmaxProbe):
    """Multinomial logistic regression with a Gaussian kernel; accuracy. One strength for all classes."""

    strengths = np.logspace(-2, 1, 7)

    def _axes(self, x: Tensor) -> None:
        """As above."""
