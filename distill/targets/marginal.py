"""The density of a teacher's embedding when nothing is known of the student: the zero line of information."""

import math
from typing import Self

import torch
from torch import Tensor

from distill.targets.float32 import Float32

ROWS = 8192  # of the cache that a mixture is fitted to


class MarginalMixture(Float32):
    """A mixture of diagonal Gaussians.

    One Gaussian alone overrates h(T), and with it the information that a head is credited with, where embeddings come in
    clusters; a mixture is closer.

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
        """Fitted to targets (rows, teacher_dim) by expectation and maximisation; no deviation falls below 0.03."""
        from sklearn.mixture import GaussianMixture

        found = GaussianMixture(min(modes, len(rows)), covariance_type="diag", reg_covar=1e-3, max_iter=50, random_state=0)
        found.fit(rows.double().numpy())
        logits, means, variances = (torch.from_numpy(each) for each in (found.weights_, found.means_, found.covariances_))
        return cls(logits.log(), means, variances.log())

    def forward(self, target: Tensor) -> Tensor:
        """-log q(target), (batch,), in float32, of ``target`` (batch, teacher_dim)."""
        z = (target.float().unsqueeze(1) - self.means) * (-0.5 * self.log_variances).exp()  # (batch, modes, teacher_dim)
        each = -0.5 * (z.square() + self.log_variances + LOG_2PI).sum(-1)  # (batch, modes)
        return -torch.logsumexp(self.logits.log_softmax(-1) + each, -1)


LOG_2PI = math.log(2 * math.pi)
