"""Probes of a real embedding against the sweep that anybody would write with scikit-learn, one thread each.

The sweep stops at tol=1e-6: scikit-learn's own 1e-4 left a rare label 0.04 of AUROC away from where both end. Ridge has
float64: in float32 it was off by 0.1 of R2. `python benchmarks/probes.py` runs this alone;
`python benchmarks/probes.py --path` compares with a scikit-learn sweep that reuses its weights instead.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
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
from measure import Benchmark, Row, Setup, benchmark, compare, line, run_all

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


@cache
def data(rows: int = ROWS, dim: int = 512) -> tuple[Array, dict[str, Array]]:
    """MACCS keys and Morgan counts (rows, dim), and labels that RDKit computes: values, bits (some rare), 30 classes."""
    chosen = list(islice(molecules(), rows))
    x = np.concatenate([teacher.embed(chosen) for teacher in (Maccs(), MorganCounts(dim - 167))], 1).astype(np.float32)

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


def warm_started(kind: str, parts: Parts) -> Array:
    """Test scores of each label by scikit-learn along a path: each fit begins with the weights of the stronger penalty.

    The best strength on validation rows is fitted again to both, from its own weights.
    """
    probe, _, score, method, dtype = KINDS[kind]
    scaler = StandardScaler().fit(parts[0][0])
    x = [scaler.transform(part).clip(-10, 10).astype(dtype) for part, _ in parts]
    scores = []
    for y in zip(*(part.T for _, part in parts), strict=True):
        model, best, weights = logistic(1.0).set_params(warm_start=True), -np.inf, (0.0, np.zeros(0), np.zeros(0))
        for strength in probe.strengths[::-1]:  # from the strongest penalty to the weakest
            model.set_params(C=1 / strength).fit(x[0], y[0])
            valid = score(y[1], getattr(model, method)(x[1]))
            if valid > best or (valid == best and kind != "softmax"):  # of equals the one that our probe takes
                best, weights = valid, (strength, model.coef_.copy(), model.intercept_.copy())
        strength, model.coef_, model.intercept_ = weights
        model.set_params(C=1 / strength).fit(np.concatenate(x[:2]), np.concatenate(y[:2]))
        scores.append(score(y[2], getattr(model, method)(x[2])))
    return np.array(scores)


def ours(kind: str, parts: Parts) -> Array:
    probe = KINDS[kind].probe()
    return probe.fit(*parts[0], *parts[1]).score(*parts[2])[probe.metric]


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def against_a_sweep(kind: str, name: str, columns: int, told: str, repeats: int) -> Benchmark:
    title = f"{kind} probe, {ROWS:,} x 512, {told}"

    @benchmark(f"{title}: against a scikit-learn sweep", f"{title}: the test score's largest difference")
    def rows(setup: Setup) -> Iterator[Row]:
        count = setup.size(ROWS, 400)
        x, labels = data(count, setup.size(512, 200))
        y = labels[name][:, : setup.size(columns, 1)]
        if setup.tiny and kind == "softmax":
            y = np.minimum(y, 5)  # a few rows lack the rare classes
        parts = [(x[start:stop], y[start:stop]) for start, stop in pairwise([0, 8 * count // 10, 9 * count // 10, count])]
        with one_thread():
            apart = float(np.abs(ours(kind, parts) - naive(kind, parts)).max())
            yield compare(lambda: ours(kind, parts), lambda: naive(kind, parts), setup.size(repeats, 1), ">= 5", warm=False)
        yield Row(f"{apart:.5f}", "", apart, "< 0.0011")

    return rows


BENCHMARKS = (
    against_a_sweep("ridge", "value", 1, "1 label", 5),
    against_a_sweep("ridge", "value", 4, "4 labels", 3),
    against_a_sweep("logistic", "bit", 1, "1 label", 5),
    against_a_sweep("logistic", "bit", 6, "6 labels", 3),
    against_a_sweep("softmax", "class", 1, "30 classes", 2),
)


SIZES = ((600, 256), (600, 1024), (1000, 512), (2000, 256), (2000, 1024), (5000, 512), (5000, 1024), (ROWS, 512))


def along_a_path() -> Iterator[tuple[str, Row]]:
    """Ours against a warm-started path of scikit-learn at the sizes that tasks have; CPU seconds, one thread each."""
    known = {dim: data(ROWS, dim) for dim in sorted({dim for _, dim in SIZES})}
    with one_thread():
        for count, dim in SIZES:
            x, labels = known[dim]
            cuts = [0, 8 * count // 10, 9 * count // 10, count]
            for kind, name, columns in (("logistic", "bit", 1), ("logistic", "bit", 6), ("softmax", "class", 1)):
                y = labels[name][:, :columns]
                if kind == "softmax":  # classes that a few rows of training may lack are left to the last one
                    y = np.minimum(y, 29 if count >= 5000 else 9)
                parts = [(x[start:stop], y[start:stop]) for start, stop in pairwise(cuts)]
                results, seconds = {}, {}
                for system in (ours, warm_started):
                    taken = []
                    for _ in range(1 if count == ROWS else 3):
                        begin = time.process_time()  # whatever else the machine does
                        results[system] = system(kind, parts)
                        taken.append(time.process_time() - begin)
                    seconds[system] = min(taken)
                apart = float(np.abs(results[ours] - results[warm_started]).max())
                title = f"{kind}, {count:,} x {dim}, {int(y.max()) + 1 if kind == 'softmax' else columns} outputs"
                mine, peer = seconds[ours], seconds[warm_started]
                yield title, Row(f"{mine:.3f} s", f"{peer:.3f} s", peer / mine, ">= 3")
                yield f"{title}: the test score's largest difference", Row(f"{apart:.5f}", "", apart, "< 0.001")


if __name__ == "__main__":
    if "--path" in sys.argv:
        for name, row in along_a_path():
            print(line(name, row), flush=True)
    else:
        sys.exit(not run_all(BENCHMARKS, Setup(Path())))
