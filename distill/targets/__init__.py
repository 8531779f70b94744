"""Targets: from a teacher's raw embedding to what a head predicts, and the density that knows no student."""

from distill.targets.float32 import Float32
from distill.targets.marginal import LOG_2PI, MarginalMixture
from distill.targets.normalize import (
    GlobalScalar,
    HadamardWhitening,
    Linear,
    Normaliser,
    PcaWhitening,
    PhiS,
    Raw,
    Standardise,
    ZcaWhitening,
)

__all__ = [
    "LOG_2PI",
    "Float32",
    "GlobalScalar",
    "HadamardWhitening",
    "Linear",
    "MarginalMixture",
    "Normaliser",
    "PcaWhitening",
    "PhiS",
    "Raw",
    "Standardise",
    "ZcaWhitening",
]
