"""Probes with a Gaussian (RBF) kernel: ridge, logistic and softmax regression that can bend.

A linear probe misses what an embedding says in curves. These find it, with two options, which the inner folds choose
together: the width of the kernel and the strength of regularisation. One kernel serves all labels, strengths and folds.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from distill.evaluation.probes.base import LATER, Array, _mean_of_known
from distill.evaluation.probes.linear import (
    LinearProbe,
    LogisticProbe,
    RidgeProbe,
    SoftmaxProbe,
    _apply,
    dual_ridge,
)

EXACT = 5000  # rows; of more, the kernel is that of landmarks

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
    """

    name = "rbf"
    widths: ClassVar[tuple[float, ...]] = (0.5, 1.0, 2.0)

    def fit(self, x: Array, y: Array, fold: Array) -> "_KernelProbe":
        rows, targets = self.prepare(x, y, fold)  # (dim, rows), (outputs, rows)
        used = np.flatnonzero(fold != LATER)
        squares, median = _squares(rows[:, used], rows[:, used]), _median_distance(rows[:, used])
        best = -np.inf
        for width in self.widths:
            kernel = _kernel(squares, width * median)
            features, mixing = self._features(kernel, kernel)
            scores, path = self.tried(features, targets[:, used], y[used], fold[used])
            chosen = self.best(scores, len(targets))
            reached = float(_mean_of_known(scores[range(len(scores)), chosen[: len(scores)]]))
            if reached > best or best == -np.inf:
                best, self.width, strengths = reached, width * median, self.strengths[chosen]
                start = path[chosen, range(len(targets))], mixing
        self._fit_all(rows, targets, strengths, start if len(used) == rows.shape[1] else None)
        return self

    def _fit_all(self, rows: Tensor, targets: Tensor, strengths: Array, start: tuple[Tensor, Tensor | None] | None) -> None:
        count = rows.shape[1]
        drawn = np.random.RandomState(0).permutation(count)[:LANDMARKS] if count > EXACT else np.arange(count)
        self.basis = rows[:, drawn]  # (dim, basis rows)
        across = _kernel(_squares(self.basis, rows), self.width)  # (basis rows, rows)
        features, self.mixing = self._features(across[:, drawn], across)
        begin = start[0] if start else features.new_zeros(len(targets), 1 + len(features))
        self.weights = self.solve(features, targets, strengths, begin)

    def _features(self, kernel: Tensor, across: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (rank, rows), and what mixes them of the kernel with the basis, (rank, basis rows).

        Args:
            kernel: of the basis rows with each other.
            across: of the basis rows with the rows.
        """
        values, axes = torch.linalg.eigh(kernel)
        kept = values > FLAT * values[-1]
        mixing = (axes[:, kept] * values[kept].rsqrt()).T
        return mixing @ across, mixing

    def predict(self, x: Array) -> Array:
        """Logits or values, (rows, outputs)."""
        across = _kernel(_squares(self.basis, self.scaled(x)), self.width)
        return self.values(_apply(self.weights, across if self.mixing is None else self.mixing @ across))


def _squares(one: Tensor, other: Tensor) -> Tensor:
    """Squared distances (rows of one, rows of the other) of features (dim, rows)."""
    squares = one.square().sum(0).unsqueeze(1) + other.square().sum(0)
    return squares.addmm_(one.T, other, alpha=-2).clamp_min_(0)


def _kernel(squares: Tensor, width: float) -> Tensor:
    return (squares * (-0.5 / width**2)).exp_()


def _median_distance(rows: Tensor) -> float:
    """The median distance between two different rows, of at most 500; 1 when all of them are equal."""
    drawn = np.random.RandomState(0).permutation(rows.shape[1])[:MEDIAN_ROWS]
    distances = _squares(rows[:, drawn], rows[:, drawn]).sqrt()
    above = distances[tuple(torch.triu_indices(len(drawn), len(drawn), 1, device=rows.device))]
    return float(np.median(above.cpu().numpy())) if above.any() else 1.0


class KernelRidgeProbe(_KernelProbe, RidgeProbe):
    """Ridge regression with a Gaussian kernel; R2. ``strengths`` are the alphas of scikit-learn's ``KernelRidge``.

    The intercept is not penalised. Up to 5,000 rows it is solved by the kernel itself: in float32 for the inner folds, in
    float64 for the last fit.
    """

    strengths = np.logspace(-2.5, 0.5, 7)

    def _features(self, kernel: Tensor, across: Tensor) -> tuple[Tensor, Tensor | None]:
        return (kernel, None) if kernel.shape == across.shape else super()._features(kernel, across)

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
