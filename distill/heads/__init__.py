"""Heads: a loss per row of one teacher's embedding given the student's. The Gaussian head is the paper's."""

from distill.heads.bank import HeadBank, outputs
from distill.heads.base import DensityHead, Head, HeadContext, Ladder, MlpHead, RegressionHead, mlp
from distill.heads.consolidation import KlHead
from distill.heads.densities import (
    DiagonalHead,
    LowRankGaussianHead,
    MseDensityHead,
    NaturalGaussianHead,
    StudentTHead,
    VidHead,
    WarmGaussianHead,
)
from distill.heads.gaussian import BernoulliHead, GaussianHead
from distill.heads.regression import AngleHead, CosineHead, DirectHead, MixHead, MseHead
from distill.heads.relations import ContrastHead, QueueHead, RelationHead

Surroundings = HeadContext  # its name in version 0.1

__all__ = [
    "AngleHead",
    "BernoulliHead",
    "ContrastHead",
    "CosineHead",
    "DensityHead",
    "DiagonalHead",
    "DirectHead",
    "GaussianHead",
    "Head",
    "HeadBank",
    "HeadContext",
    "KlHead",
    "Ladder",
    "LowRankGaussianHead",
    "MixHead",
    "MlpHead",
    "MseDensityHead",
    "MseHead",
    "NaturalGaussianHead",
    "QueueHead",
    "RegressionHead",
    "RelationHead",
    "StudentTHead",
    "VidHead",
    "WarmGaussianHead",
    "mlp",
    "outputs",
]
