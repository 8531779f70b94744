"""Normalisers of a teacher's embeddings, from the exact statistics that the cache holds."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from cache_tools import ConfigError, Statistics
from distill.targets.float32 import Float32
from distill.targets.hadamard import orthogonal

MOST = 32_768  # rows that a covariance is computed of


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
        limit: deviations; what lies beyond is moved there, so that a rare count does not outweigh all else.

    Raises:
        ConfigError: when ``limit`` is not above 0.
    """

    kept: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, statistics: Statistics, limit: float | None = None):
        super().__init__()
        if limit is not None and not limit > 0:
            raise ConfigError(f"limit is {limit}, expected deviations above 0")
        self.limit = limit
        mean, var = torch.from_numpy(statistics.mean), torch.from_numpy(statistics.var)
        kept = (var > 1e-10 * mean.square() + 1e-30).nonzero().squeeze(1)  # (dim,)
        self.dim = len(kept)
        self.register_buffer("kept", kept)
        self.register_buffer("shift", mean[kept].float())
        self.register_buffer("scale", var[kept].rsqrt().float())
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("var", torch.ones(self.dim))
        rows = getattr(statistics, "rows", None)
        if limit is not None and rows is not None:  # what nats and R2 start from
            self.var, self.mean = torch.var_mean(self(rows(MOST)), 0, correction=0)
            self.var.clamp_min_(1e-12)

    def forward(self, embedding: Tensor) -> Tensor:
        kept = embedding if self.dim == embedding.shape[-1] else embedding.index_select(-1, self.kept)
        standard = (kept - self.shift).mul_(self.scale)  # in float32, as shift is
        return standard if self.limit is None else standard.clamp_(-self.limit, self.limit)


class Linear(Normaliser):
    """A linear map of the centred embedding, made from the mean and the covariance of a teacher's rows.

    Dimensions that are constant over the corpus are left out first.

    Args:
        statistics: the teacher's, as :class:`distill.data.module.DistillData` gives them: with rows.
        shrinkage: how far every eigenvalue is moved to their mean, between 0 and 1: what hardly varies is noise.

    Raises:
        ConfigError: when ``statistics`` have no rows, or ``shrinkage`` is not between 0 and 1; when a whitening has no more
            rows than dimensions.
    """

    whitens: ClassVar[bool] = False
    kept: Tensor
    shift: Tensor
    matrix: Tensor

    def __init__(self, statistics: Statistics, shrinkage: float = 1e-3):
        super().__init__()
        if not 0 <= shrinkage <= 1:
            raise ConfigError(f"shrinkage is {shrinkage}, expected a number between 0 and 1")
        rows = getattr(statistics, "rows", None)
        if rows is None:
            raise ConfigError(f"{type(self).__name__} needs rows of the teacher: take the statistics of a DistillData")
        plain = Standardise(statistics)
        self.dim = plain.dim
        self.register_buffer("kept", plain.kept)
        self.register_buffer("shift", plain.shift)
        centred = rows(MOST).index_select(-1, plain.kept).double() - plain.shift.double()
        if self.whitens and len(centred) <= self.dim:
            raise ConfigError(
                f"{type(self).__name__} of {self.dim} dimensions from {len(centred)} rows: where no row was seen to vary "
                "there is no variance to make 1; take more rows, or Standardise, GlobalScalar or PhiS"
            )
        values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(centred)))  # (dim,), (dim, dim)
        # an eigenvector has two signs, and machines choose either: ranks, and a run that goes on, are to agree
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        values = values.clamp_min(0)
        shrunk = ((1 - shrinkage) * values + shrinkage * values.mean()).clamp_min(1e-12 * values.sum())
        matrix = self.made(shrunk, vectors) if self.dim else vectors
        self.register_buffer("matrix", matrix.float())
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("var", ((matrix @ vectors).square() * values).sum(1).float().clamp_min(1e-12))

    @abstractmethod
    def made(self, values: Tensor, vectors: Tensor) -> Tensor:
        """The map (dim, dim), float64, from the covariance's eigenvalues (dim,), ascending, and eigenvectors (columns)."""

    def forward(self, embedding: Tensor) -> Tensor:
        kept = embedding if self.dim == embedding.shape[-1] else embedding.index_select(-1, self.kept)
        with torch.autocast(embedding.device.type, enabled=False):
            return (kept.float() - self.shift) @ self.matrix.T


class GlobalScalar(Linear):
    """One scale for all dimensions: their mean variance becomes 1, distances keep their proportions."""

    def made(self, values: Tensor, vectors: Tensor) -> Tensor:
        return torch.eye(len(values), dtype=torch.float64) / values.mean().sqrt()


class Whitening(Linear):
    """A map after which every direction has variance 1: of more rows than dimensions, for each has to be seen to vary."""

    whitens = True


class PcaWhitening(Whitening):
    """Principal components, the strongest first, each of variance 1."""

    def made(self, values: Tensor, vectors: Tensor) -> Tensor:
        return (vectors * values.rsqrt()).flip(1).T


class ZcaWhitening(Whitening):
    """Whitened by the symmetric map, which moves the embedding least."""

    def made(self, values: Tensor, vectors: Tensor) -> Tensor:
        return (vectors * values.rsqrt()) @ vectors.T


class HadamardWhitening(Whitening):
    """Principal components of variance 1, spread over all dimensions by a Hadamard matrix."""

    def made(self, values: Tensor, vectors: Tensor) -> Tensor:
        return torch.from_numpy(orthogonal(len(values))) @ (vectors * values.rsqrt()).T


class PhiS(Linear):
    """PHI-S (arXiv 2410.01680): principal components, spread over all dimensions by a Hadamard matrix, one scale for all.

    Every dimension gets variance 1 and all distances keep their proportions; where there is no Hadamard matrix of the
    teacher's width a rotation stands in, and the variances are 1 on average.
    """

    def made(self, values: Tensor, vectors: Tensor) -> Tensor:
        return torch.from_numpy(orthogonal(len(values))) @ vectors.T / values.mean().sqrt()
