"""Normalisers: from a teacher's raw embedding to the target of a head, by the exact statistics that the cache holds."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cache_tools import ConfigError, Statistics
from distill.targets.float32 import Float32
from distill.targets.hadamard import orthogonal
from distill.targets.statistics import TeacherStatistics, sample

ROWS = 32_768  # that a covariance is computed of, at most


class Inverse(NamedTuple):
    """The way back from a target to the teacher's raw embedding: ``embedding[places] = shift + gain * target``.

    Attributes:
        places: dimensions of the embedding that the target has, (dim,).
        gain: (dim,); or (dim, dim), for ``target @ gain``.
        shift: (dim,).
    """

    places: Tensor
    gain: Tensor
    shift: Tensor


class Normaliser(Float32, ABC):
    """From a teacher's raw embedding (batch, teacher_dim) to the target of a head (batch, dim).

    Subclass it in any importable module and name the class in YAML; it is built from the teacher's statistics.

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

    def inverse(self) -> Inverse | None:
        """The way back to the embedding, but for limits; None where a subclass does not say."""
        return None


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

    def inverse(self) -> Inverse:
        return Inverse(torch.arange(self.dim), torch.ones(self.dim), torch.zeros(self.dim))


class Centred(Normaliser):
    """A normaliser that first drops the dimensions that are constant over the corpus, then subtracts the mean.

    A constant dimension carries no information, and a density on it would collapse.

    Args:
        statistics: the teacher's, from the cache.
    """

    kept: Tensor
    shift: Tensor

    def __init__(self, statistics: Statistics):
        super().__init__()
        mean, var = torch.from_numpy(statistics.mean), torch.from_numpy(statistics.var)
        kept = (var > 1e-10 * mean.square() + 1e-30).nonzero().squeeze(1)  # (dim,)
        self.dim = len(kept)
        self.register_buffer("kept", kept)
        self.register_buffer("shift", mean[kept].float())

    def centred(self, embedding: Tensor) -> Tensor:
        """``embedding`` (batch, teacher_dim) without constant dimensions, minus the mean: (batch, dim), float32."""
        kept = embedding if self.dim == embedding.shape[-1] else embedding.index_select(-1, self.kept)
        return kept - self.shift  # in float32, as shift is


class Standardise(Centred):
    """Mean 0 and standard deviation 1 in every dimension that varies.

    Args:
        statistics: the teacher's, from the cache.
        limit: in standard deviations; values beyond it are clamped, so that a rare count does not outweigh all else.

    Raises:
        ConfigError: when ``limit`` is not above 0.
    """

    scale: Tensor

    def __init__(self, statistics: Statistics, limit: float | None = None):
        super().__init__(statistics)
        if limit is not None and not limit > 0:
            raise ConfigError(f"limit is {limit}, expected deviations above 0")
        self.limit = limit
        self.register_buffer("scale", torch.from_numpy(statistics.var)[self.kept].rsqrt().float())
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("var", torch.ones(self.dim))
        if limit is not None and isinstance(statistics, TeacherStatistics):  # nats and R2 are counted from these
            self.var, self.mean = torch.var_mean(self(statistics.rows(ROWS)), 0, correction=0)
            self.var.clamp_min_(1e-12)

    def forward(self, embedding: Tensor) -> Tensor:
        standard = self.centred(embedding).mul_(self.scale)
        return standard if self.limit is None else standard.clamp_(-self.limit, self.limit)

    def inverse(self) -> Inverse:
        return Inverse(self.kept, self.scale.reciprocal(), self.shift)


class Linear(Centred):
    """A linear map of the centred embedding, made from the covariance of a teacher's rows.

    Args:
        statistics: the teacher's, with rows, as :class:`distill.data.module.DistillData` gives them.
        shrinkage: how far every eigenvalue is moved to their mean, between 0 and 1, since directions that hardly vary are
            noise.

    Raises:
        ConfigError: when ``statistics`` have no rows, or ``shrinkage`` is not between 0 and 1; when a whitening has no more
            rows than dimensions.
    """

    whitens: ClassVar[bool] = False  # every direction gets variance 1, so each must be seen to vary
    matrix: Tensor

    def __init__(self, statistics: Statistics, shrinkage: float = 1e-3):
        super().__init__(statistics)
        if not 0 <= shrinkage <= 1:
            raise ConfigError(f"shrinkage is {shrinkage}, expected a number between 0 and 1")
        rows = sample(statistics, ROWS, type(self).__name__).index_select(-1, self.kept)
        if self.whitens and len(rows) <= self.dim:
            raise ConfigError(
                f"{type(self).__name__} of {self.dim} dimensions from {len(rows)} rows: where no row was seen to vary "
                "there is no variance to make 1; take more rows, or Standardise, GlobalScalar or PhiS"
            )
        centred = rows.double() - self.shift.double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(centred)))  # (dim,), (dim, dim)
        # machines choose either sign of an eigenvector; ranks, and a resumed run, must agree on one
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        values = values.clamp_min(0)
        shrunk = ((1 - shrinkage) * values + shrinkage * values.mean()).clamp_min(1e-12 * values.sum())
        matrix = self.linear_map(shrunk, vectors) if self.dim else vectors
        self.register_buffer("matrix", matrix.float())
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("var", ((matrix @ vectors).square() * values).sum(1).float().clamp_min(1e-12))

    @abstractmethod
    def linear_map(self, values: Tensor, vectors: Tensor) -> Tensor:
        """The map (dim, dim), float64, from the covariance's eigenvalues (dim,), ascending, and eigenvectors (columns)."""

    def forward(self, embedding: Tensor) -> Tensor:
        with torch.autocast(embedding.device.type, enabled=False):
            return self.centred(embedding) @ self.matrix.T

    def inverse(self) -> Inverse:
        return Inverse(self.kept, torch.linalg.inv(self.matrix.double()).T.float(), self.shift)


class GlobalScalar(Linear):
    """One scale for all dimensions: their mean variance becomes 1, distances keep their proportions."""

    def linear_map(self, values: Tensor, vectors: Tensor) -> Tensor:
        return torch.eye(len(values), dtype=torch.float64) / values.mean().sqrt()


class PcaWhitening(Linear):
    """Principal components, the strongest first, each of variance 1."""

    whitens = True

    def linear_map(self, values: Tensor, vectors: Tensor) -> Tensor:
        return (vectors * values.rsqrt()).flip(1).T


class ZcaWhitening(Linear):
    """Whitened by the symmetric map, which changes the embedding least."""

    whitens = True

    def linear_map(self, values: Tensor, vectors: Tensor) -> Tensor:
        return (vectors * values.rsqrt()) @ vectors.T


class HadamardWhitening(Linear):
    """Principal components of variance 1, spread over all dimensions by a Hadamard matrix."""

    whitens = True

    def linear_map(self, values: Tensor, vectors: Tensor) -> Tensor:
        return torch.from_numpy(orthogonal(len(values))) @ (vectors * values.rsqrt()).T


class PhiS(Linear):
    """PHI-S (arXiv 2410.01680): principal components, spread over all dimensions by a Hadamard matrix, one scale for all.

    Every dimension gets variance 1 and all distances keep their proportions. Where there is no Hadamard matrix of the
    teacher's width a fixed random rotation takes its place, and the variances are 1 on average.
    """

    def linear_map(self, values: Tensor, vectors: Tensor) -> Tensor:
        return torch.from_numpy(orthogonal(len(values))) @ vectors.T / values.mean().sqrt()
