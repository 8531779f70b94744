"""The probe of the paper: a network with one hidden layer."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from distill.evaluation.probes.base import Array, Probe, _mean_of_known, inner_folds
from distill.evaluation.probes.linear import LinearProbe, LogisticProbe, RidgeProbe, SoftmaxProbe


class MlpProbe(Probe):
    """The paper's network: one hidden layer of 128, layer norm, ReLU; Adam at 1e-3, batches of 128. Scored as linear ones.

    It trains for 100 epochs, fewer when there are more than 5,000 rows, as the published code does. The last training, on
    all rows, ends with the epoch that scored best in the inner folds.

    Args:
        kind: of the labels.
    """

    name = "mlp"
    width, rate, batch, epochs = 128, 1e-3, 128, 100

    def __init__(self, kind: Literal["classification", "regression", "multiclass"]):
        linear: dict[str, type[LinearProbe]]
        linear = {"classification": LogisticProbe, "regression": RidgeProbe, "multiclass": SoftmaxProbe}
        self.kind, self.linear = kind, linear[kind]()
        self.metric = self.linear.metric

    def fit(self, x: Array, y: Array, fold: Array) -> "MlpProbe":
        with torch.inference_mode(False), torch.enable_grad():  # validation during a student's fit turns gradients off
            rows, targets = (each.T.float().contiguous() for each in self.linear.prepare(x, y, fold))
            folds = list(inner_folds(fold))
            epochs = min(self.epochs, 1 + 5000 * self.epochs // len(folds[0][0]))
            scores = np.zeros(epochs)
            for train, scored in folds:
                for epoch, weights in enumerate(self._trained(rows[train], targets[train], epochs)):
                    self.weights = weights
                    judged = self.linear.judge(self.predict(x[scored]), y[scored])[1]
                    scores[epoch] += _mean_of_known(judged[self.metric])
            best = int(np.argmax(scores)) if np.ptp(scores) else epochs // 2
            *_, self.weights = self._trained(rows, targets, 1 + best)
        return self

    def _trained(self, x: Tensor, y: Tensor, epochs: int) -> Iterator[list[Tensor]]:
        """The weights after each epoch, from features (rows, dim) and targets (rows, outputs)."""
        own = torch.Generator().manual_seed(0)  # probes run in parallel and inside fits: no global state
        dim, wide, outputs = x.shape[1], self.width, y.shape[1]
        weights = [
            torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5, generator=own).to(x.device).requires_grad_()
            for inputs, shape in ((dim, (dim, wide)), (dim, (wide,)), (wide, (wide, outputs)), (wide, (outputs,)))
        ]
        optimiser = torch.optim.Adam(weights, self.rate)
        labelled = y.isfinite().any(1)
        x, y = x[labelled], y[labelled]
        for _ in range(epochs):
            for batch in torch.randperm(len(x), generator=own).split(self.batch) if len(x) else ():
                optimiser.zero_grad()
                self._loss(self._outputs(x[batch], weights), y[batch]).backward()
                optimiser.step()
            yield weights

    def _outputs(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        hidden, offset, out, middle = weights
        return F.layer_norm(x @ hidden + offset, [self.width]).relu() @ out + middle  # (rows, outputs)

    def _loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        if self.kind == "multiclass":
            return F.cross_entropy(outputs, y)
        known = y.isfinite()
        loss = F.mse_loss if self.kind == "regression" else F.binary_cross_entropy_with_logits
        return loss(outputs[known], y[known])

    def predict(self, x: Array) -> Array:
        """Logits or values, (rows, outputs)."""
        with torch.no_grad():
            outputs = self._outputs(self.linear.scaled(x).T, self.weights).cpu()
        return self.linear.values(np.asarray(outputs))

    def score(self, x: Array, y: Array) -> dict[str, Array]:
        self.predicted, scores = self.linear.judge(self.predict(x), y)
        return scores
