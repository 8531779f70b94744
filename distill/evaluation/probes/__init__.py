"""Probes of frozen embeddings, and the default probe of each kind of task."""

from distill.evaluation.probes.base import LATER, TRAINED, Probe, inner_folds
from distill.evaluation.probes.kernel import KernelLogisticProbe, KernelRidgeProbe, KernelSoftmaxProbe
from distill.evaluation.probes.linear import LinearProbe, LogisticProbe, RidgeProbe, SoftmaxProbe
from distill.evaluation.probes.mlp import MlpProbe
from distill.evaluation.probes.neighbours import ClusterProbe, KnnProbe, PairProbe, SearchProbe, SimilarityProbe

__all__ = [
    "LATER",
    "PROBES",
    "TRAINED",
    "ClusterProbe",
    "KernelLogisticProbe",
    "KernelRidgeProbe",
    "KernelSoftmaxProbe",
    "KnnProbe",
    "LinearProbe",
    "LogisticProbe",
    "MlpProbe",
    "PairProbe",
    "Probe",
    "RidgeProbe",
    "SearchProbe",
    "SimilarityProbe",
    "SoftmaxProbe",
    "inner_folds",
]

PROBES: dict[str, type[Probe]] = {
    "classification": LogisticProbe,
    "regression": RidgeProbe,
    "multiclass": SoftmaxProbe,
    "similarity": SimilarityProbe,
    "pairs": PairProbe,
    "clustering": ClusterProbe,
    "search": SearchProbe,
}
