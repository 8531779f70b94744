"""The Probe contract, and the small functions that probes share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Array = np.ndarray[Any, Any]

TRAINED, LATER = -1, -2  # see Probe.fit


class Probe(ABC):
    """Judges frozen embeddings by a task's labels. Subclass it in any importable module and name it in YAML.

    Attributes:
        name: is added to the task's name when a task has several probes.
        metric: what :meth:`score` reports first.
        fits: whether :meth:`fit` learns from training rows; other probes use the test rows alone.
        predicted: the predictions that the last :meth:`score` compared with the labels, (rows, columns): logits, values,
            classes, cosines or clusters.
    """

    name: ClassVar[str]
    metric: str
    fits: ClassVar[bool] = True
    predicted: Array

    @abstractmethod
    def fit(self, x: Array, y: Array, fold: Array) -> "Probe":
        """Choose options by inner folds of the rows, then fit on all rows.

        Args:
            x: embeddings (rows, dim); of pairs (rows, 2, dim).
            y: labels (rows, labels), NaN where missing.
            fold: number of the inner fold that scores a row, (rows,), from 0; ``TRAINED`` for rows that no fold scores and
                every fold trains on; ``LATER`` for rows that only the last fit sees. One validation part is fold 0.
        """

    @abstractmethod
    def score(self, x: Array, y: Array) -> dict[str, Array]:
        """Score -> its value for each label, (labels,): ``metric``, and perhaps others; NaN where it cannot be computed."""


def inner_folds(fold: Array) -> Iterator[tuple[Array, Array]]:
    """Row numbers of each inner fold: those that it trains on, and those that it scores; see :meth:`Probe.fit`.

    >>> [(train.tolist(), scored.tolist()) for train, scored in inner_folds(np.array([TRAINED, 0, 1, LATER]))]
    [([0, 2], [1]), ([0, 1], [2])]
    """
    for number in np.unique(fold[fold >= 0]):
        yield np.flatnonzero((fold != number) & (fold != LATER)), np.flatnonzero(fold == number)


def _mean_of_known(y: Array) -> Array:
    labelled = np.isfinite(y)
    total = np.where(labelled, y, 0.0).sum(0)
    mean: Array = total / np.maximum(labelled.sum(0), 1)
    return mean


def _mean_of_finite(scores: Array) -> Array:
    """Mean over the first axis; NaN where nothing is finite."""
    finite = np.isfinite(scores)
    total = np.where(finite, scores, 0.0).sum(0)
    mean: Array = np.where(finite.any(0), total / np.maximum(finite.sum(0), 1), np.nan)
    return mean


def _tensor(array: Array, dtype: type[np.floating[Any]]) -> Tensor:
    """A tensor on the GPU when there is one, else on the CPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype))
    return tensor.cuda() if torch.cuda.is_available() else tensor


def _one_hot(y: Array) -> Array:
    one_hot: Array = np.eye(1 + int(y.max()))[y[:, 0].astype(int)]  # (rows, classes)
    return one_hot


def _accuracy(y: Array, classes: Array) -> float:
    return float((classes == y).mean())  # both (rows, 1)


def _class_scores(y: Array, classes: Array) -> dict[str, Array]:
    """Accuracy, and its mean over the classes of ``y``; both arrays are (rows, 1)."""
    macro = np.mean([_accuracy(y[y == label], classes[y == label]) for label in np.unique(y)])
    return {"accuracy": np.array([_accuracy(y, classes)]), "macro-accuracy": np.array([macro])}


def _unit(x: Array) -> Tensor:
    return F.normalize(_tensor(x, np.float32), dim=-1)
