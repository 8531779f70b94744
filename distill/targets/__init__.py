"""Targets: from a teacher's raw embedding to what a head predicts, and the density that does not see the student."""

from distill.targets.float32 import Float32
from distill.targets.marginal import LOG_2PI, MarginalMixture
from distill.targets.normalize import (
    GlobalScalar,
    HadamardWhitening,
    Inverse,
    Linear,
    Normaliser,
    PcaWhitening,
    PhiS,
    Raw,
    Standardise,
    ZcaWhitening,
)
from distill.targets.statistics import TeacherStatistics, sample

__all__ = [
    "LOG_2PI",
    "Float32",
    "GlobalScalar",
    "HadamardWhitening",
    "Inverse",
    "Linear",
    "MarginalMixture",
    "Normaliser",
    "PcaWhitening",
    "PhiS",
    "Raw",
    "Standardise",
    "TeacherStatistics",
    "ZcaWhitening",
    "sample",
]
