"""The Probe contract, and the small functions that probes share."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Array = np.ndarray[Any, Any]


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
    def fit(self, x: Array, y: Array, x_valid: Array, y_valid: Array) -> "Probe":
        """Fit on training rows, choose options on validation rows, fit again on both.

        Args:
            x: embeddings (rows, dim); of pairs (rows, 2, dim).
            y: labels (rows, labels), NaN where missing.
            x_valid, y_valid: the same of the validation rows.
        """

    @abstractmethod
    def score(self, x: Array, y: Array) -> dict[str, Array]:
        """Score -> its value for each label, (labels,): ``metric``, and perhaps others; NaN where it cannot be computed."""


def _mean_of_known(y: Array) -> Array:
    labelled = np.isfinite(y)
    total = np.where(labelled, y, 0.0).sum(0)
    mean: Array = total / np.maximum(labelled.sum(0), 1)
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
