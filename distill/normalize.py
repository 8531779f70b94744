"""Normalisers of a teacher's embeddings, from the exact statistics that the cache holds."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cache_tools.statistics import Statistics
from distill.exact import Float32


class Normaliser(Float32, ABC):
    """From a teacher's raw embedding (batch, teacher_dim) to the target of a head (batch, dim).

    Attributes:
        dim: width of the target; constant dimensions may be left out.
        mean, var: of the target over the corpus, (dim,), float32.
    """

    dim: int
    mean: Tensor
    var: Tensor

    @abstractmethod
    def forward(self, embedding: Tensor) -> Tensor:
        """Normalise ``embedding`` (batch, teacher_dim) to (batch, dim) in float32."""


class Raw(Normaliser):
    """No normalisation.

    Args:
        statistics: the teacher's, from the cache.
    """

    def __init__(self, statistics: Statistics):
        super().__init__()
        self.dim = len(statistics.mean)
        self.register_buffer("mean", torch.tensor(statistics.mean, dtype=torch.float32))
        self.register_buffer("var", torch.tensor(statistics.var, dtype=torch.float32).clamp_min(1e-12))

    def forward(self, embedding: Tensor) -> Tensor:
        return embedding.float()


class Standardise(Normaliser):
    """Mean 0 and standard deviation 1 in every dimension.

    A dimension that is constant over the corpus tells nothing, and a density on it would collapse: it is left out.

    Args:
        statistics: the teacher's, from the cache.
    """

    kept: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, statistics: Statistics):
        super().__init__()
        mean, var = torch.from_numpy(statistics.mean), torch.from_numpy(statistics.var)
        kept = (var > 1e-10 * mean.square() + 1e-30).nonzero().squeeze(1)  # (dim,)
        self.dim = len(kept)
        self.register_buffer("kept", kept)
        self.register_buffer("shift", mean[kept].float())
        self.register_buffer("scale", var[kept].rsqrt().float())
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("var", torch.ones(self.dim))

    def forward(self, embedding: Tensor) -> Tensor:
        kept = embedding if self.dim == embedding.shape[-1] else embedding.index_select(-1, self.kept)
        return (kept - self.shift).mul_(self.scale)  # in float32, as shift is
