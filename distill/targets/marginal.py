"""Unconditional density of a teacher's embedding: the baseline that nats are counted from."""

import math
from typing import Self

import torch
from torch import Tensor

from distill.targets.float32 import Float32

LOG_2PI = math.log(2 * math.pi)

ROWS = 8192  # of the cache that a mixture is fitted to


class MarginalMixture(Float32):
    """A mixture of diagonal Gaussians that does not see the student.

    Where embeddings come in clusters, one Gaussian alone overestimates h(T), and with it the information that a head is
    credited with. A mixture is closer.

    Args:
        logits: of the modes' weights, (modes,).
        means: (modes, teacher_dim).
        log_variances: (modes, teacher_dim).
    """

    logits: Tensor
    means: Tensor
    log_variances: Tensor

    def __init__(self, logits: Tensor, means: Tensor, log_variances: Tensor):
        super().__init__()
        for name, value in (("logits", logits), ("means", means), ("log_variances", log_variances)):
            self.register_buffer(name, value.float(), persistent=False)

    @classmethod
    def fitted(cls, rows: Tensor, modes: int) -> Self:
        """Fitted to targets (rows, teacher_dim) by expectation maximisation; no standard deviation falls below 0.03."""
        from sklearn.mixture import GaussianMixture

        mixture = GaussianMixture(
            min(modes, len(rows)), covariance_type="diag", reg_covar=1e-3, max_iter=50, random_state=0
        )
        mixture.fit(rows.double().numpy())
        weights, means, variances = map(torch.from_numpy, (mixture.weights_, mixture.means_, mixture.covariances_))
        return cls(weights.log(), means, variances.log())

    def forward(self, target: Tensor) -> Tensor:
        """-log q(target), (batch,), in float32, of ``target`` (batch, teacher_dim)."""
        z = (target.float().unsqueeze(1) - self.means) * (-0.5 * self.log_variances).exp()  # (batch, modes, teacher_dim)
        log_densities = -0.5 * (z.square() + self.log_variances + LOG_2PI).sum(-1)  # (batch, modes)
        return -torch.logsumexp(self.logits.log_softmax(-1) + log_densities, -1)
