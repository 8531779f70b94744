"""Probes of a real embedding against the sweep that anybody would write with scikit-learn, one thread each.

The sweep stops at tol=1e-6: scikit-learn's own 1e-4 left a rare label 0.04 of AUROC away from where both end. Ridge has
float64: in float32 it was off by 0.1 of R2. `python benchmarks/probes.py` runs this alone.
"""

from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from rdkit.Chem import rdMolDescriptors
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.errors import BadItem
from cache_tools.items.molecule import parse_smiles
from cache_tools.teachers.molecule import Maccs, MorganCounts
from distill.evaluation.probes import LogisticProbe, RidgeProbe, SoftmaxProbe
from measure import Row, compare, show

Array = np.ndarray[Any, Any]
Parts = list[tuple[Array, Array]]  # embeddings and labels of training, validation and test rows
ROWS = 10_000


class Kind(NamedTuple):
    """A probe of ours and what scikit-learn has for it."""

    probe: Any
    make: Callable[[float], Any]
    score: Callable[..., float]
    method: str
    dtype: Any = np.float32


def logistic(strength: float) -> LogisticRegression:
    return LogisticRegression(C=1 / strength, max_iter=100_000, tol=1e-6)


KINDS = {
    "ridge": Kind(RidgeProbe, lambda strength: Ridge(alpha=strength), r2_score, "predict", np.float64),
    "logistic": Kind(LogisticProbe, logistic, roc_auc_score, "decision_function"),
    "softmax": Kind(SoftmaxProbe, logistic, accuracy_score, "predict"),
}


def molecules() -> Iterator[Any]:
    _, items, _ = RdkitSamples().read()
    for row in np.random.default_rng(0).permutation(len(items)):
        try:
            yield parse_smiles(items[row])
        except BadItem:
            continue


def data() -> tuple[Array, dict[str, Array]]:
    """MACCS keys and Morgan counts (rows, 512), and labels that RDKit computes: values, bits (some rare), 30 classes."""
    chosen = list(islice(molecules(), ROWS))
    x = np.concatenate([teacher.embed(chosen) for teacher in (Maccs(), MorganCounts(345))], 1).astype(np.float32)

    def computed(*names: str) -> Array:
        functions = [getattr(rdMolDescriptors, f"Calc{name}") for name in names]
        return np.array([[function(each) for function in functions] for each in chosen])

    values = computed("LabuteASA", "TPSA", "FractionCSP3", "Kappa1", "ExactMolWt", "Chi3v")
    shares = (0.5, 0.9, 0.8, 0.5, 0.98, 0.75)
    bits = [column > np.quantile(column, share) for column, share in zip(values.T, shares, strict=True)]
    codes = computed("NumRings", "NumHeteroatoms", "NumRotatableBonds") // [1, 2, 3]
    _, code, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-sizes))[code.ravel()]  # the largest class is 0
    return x, {"value": values[:, :4], "bit": np.stack(bits, 1) * 1.0, "class": np.minimum(rank, 29)[:, None] * 1.0}


def naive(kind: str, parts: Parts) -> Array:
    """Test scores of each label: a model per strength from nothing, the best on validation rows, fitted again to both."""
    probe, make, score, method, dtype = KINDS[kind]
    scaler = StandardScaler().fit(parts[0][0])
    x = [scaler.transform(part).clip(-10, 10).astype(dtype) for part, _ in parts]
    scores = []
    for y in zip(*(part.T for _, part in parts), strict=True):
        models = {each: make(each).fit(x[0], y[0]) for each in probe.strengths}
        strengths = probe.strengths[::-1] if kind == "softmax" else probe.strengths  # which of equals comes first
        best = max(strengths, key=lambda each: score(y[1], getattr(models[each], method)(x[1])))
        both = np.concatenate(y[:2])
        outputs = getattr(make(best).fit(np.concatenate(x[:2]), both), method)(x[2])
        scores.append(score(y[2], outputs.clip(both.min(), both.max()) if kind == "ridge" else outputs))
    return np.array(scores)


def ours(kind: str, parts: Parts) -> Array:
    probe = KINDS[kind].probe()
    return probe.fit(*parts[0], *parts[1]).score(*parts[2])[probe.metric]


def everything() -> dict[str, Row]:
    x, labels = data()
    cuts, threads = [0, 8 * ROWS // 10, 9 * ROWS // 10, ROWS], torch.get_num_threads()
    rows: dict[str, Row] = {}
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for kind, name, columns, told, repeats in (
            ("ridge", "value", 1, "1 label", 5),
            ("ridge", "value", 4, "4 labels", 3),
            ("logistic", "bit", 1, "1 label", 5),
            ("logistic", "bit", 6, "6 labels", 3),
            ("softmax", "class", 1, "30 classes", 2),
        ):
            y = labels[name][:, :columns]
            parts = [(x[start:stop], y[start:stop]) for start, stop in pairwise(cuts)]
            apart = float(np.abs(ours(kind, parts) - naive(kind, parts)).max())
            title = f"{kind} probe, {ROWS:,} x 512, {told}"
            rows[f"{title}: against a scikit-learn sweep"] = compare(
                lambda kind=kind, parts=parts: ours(kind, parts),
                lambda kind=kind, parts=parts: naive(kind, parts),
                repeats,
                ">= 5",
                warm=False,
            )
            rows[f"{title}: the test score's largest difference"] = Row(f"{apart:.5f}", "", apart, "< 0.0011")
    torch.set_num_threads(threads)
    return rows


if __name__ == "__main__":
    show("probes", everything())
