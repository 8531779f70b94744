"""Probes of frozen embeddings, and the default probe of each kind of task."""

from distill.evaluation.probes.base import Probe
from distill.evaluation.probes.linear import LinearProbe, LogisticProbe, RidgeProbe, SoftmaxProbe
from distill.evaluation.probes.mlp import MlpProbe
from distill.evaluation.probes.neighbours import ClusterProbe, KnnProbe, PairProbe, SimilarityProbe

__all__ = [
    "PROBES",
    "ClusterProbe",
    "KnnProbe",
    "LinearProbe",
    "LogisticProbe",
    "MlpProbe",
    "PairProbe",
    "Probe",
    "RidgeProbe",
    "SimilarityProbe",
    "SoftmaxProbe",
]

PROBES: dict[str, type[Probe]] = {
    "classification": LogisticProbe,
    "regression": RidgeProbe,
    "multiclass": SoftmaxProbe,
    "similarity": SimilarityProbe,
    "pairs": PairProbe,
    "clustering": ClusterProbe,
}
