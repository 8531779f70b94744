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
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rdkit.Chem import rdMolDescriptors
from scipy.spatial.distance import pdist
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.errors import BadItem
from cache_tools.items.molecule import parse_smiles
from cache_tools.teachers.molecule import Maccs, MorganCounts
from distill.evaluation.probes import (
    LATER,
    TRAINED,
    KernelLogisticProbe,
    KernelRidgeProbe,
    KernelSoftmaxProbe,
    LogisticProbe,
    RidgeProbe,
    SoftmaxProbe,
    inner_folds,
)
from distill.evaluation.tasks.base import folds
from measure import Benchmark, Row, Setup, benchmark, compare, line, run_all

Array = np.ndarray[Any, Any]
ROWS = 10_000


class Parts(NamedTuple):
    """What a probe is fitted to, and what it is scored on."""

    x: Array
    y: Array
    fold: Array
    x_test: Array
    y_test: Array


class Kind(NamedTuple):
    """A probe of ours and what scikit-learn has for it."""

    probe: Any
    make: Callable[[float], Any]
    score: Callable[..., float]
    method: str
    dtype: Any = np.float32


def logistic(strength: float) -> LogisticRegression:
    return LogisticRegression(C=1 / strength, max_iter=100_000, tol=1e-6)


def ridge(strength: float) -> Ridge:
    return Ridge(alpha=strength)


KINDS = {
    "ridge": Kind(RidgeProbe, ridge, r2_score, "predict", np.float64),
    "logistic": Kind(LogisticProbe, logistic, roc_auc_score, "decision_function"),
    "softmax": Kind(SoftmaxProbe, logistic, accuracy_score, "predict"),
    "kernel ridge": Kind(KernelRidgeProbe, ridge, r2_score, "predict", np.float64),
    "kernel logistic": Kind(KernelLogisticProbe, logistic, roc_auc_score, "decision_function", np.float64),
    "kernel softmax": Kind(KernelSoftmaxProbe, logistic, accuracy_score, "predict", np.float64),
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


def cut(x: Array, y: Array) -> Parts:
    """The first 80 % of the rows for training, 10 % for validation, 10 % for test."""
    train, valid = 8 * len(x) // 10, 9 * len(x) // 10
    fold = np.concatenate([np.full(train, TRAINED), np.zeros(valid - train, int)])
    return Parts(x[:valid], y[:valid], fold, x[valid:], y[valid:])


def in_folds(x: Array, y: Array) -> Parts:
    """The first 80 % of the rows to fit on, in three inner folds; the others for test."""
    stop = 8 * len(x) // 10
    return Parts(x[:stop], y[:stop], np.arange(stop) % 3, x[stop:], y[stop:])


def space(kind: str, x: Array, x_test: Array, parts: Parts) -> tuple[Array, Array]:
    """The features of both: of a linear probe themselves, of a kernel those of the width that ridge does best with."""
    probe, _, score, *_ = KINDS[kind]
    if kind in ("ridge", "logistic", "softmax"):
        return x, x_test
    median = np.median(pdist(x[np.random.RandomState(0).permutation(len(x))[:500]]))
    classes = score is accuracy_score
    targets = np.eye(1 + int(parts.y.max()))[parts.y[:, 0].astype(int)] if classes else parts.y
    options = []
    for width in probe.widths:
        kernel = Nystroem(gamma=1 / (2 * (width * median) ** 2), n_components=len(x), random_state=0).fit(x)  # exact
        features, scores = kernel.transform(x), list[float]()
        for train, held in inner_folds(parts.fold):
            outputs = ridge(probe.ridge).fit(features[train], targets[train]).predict(features[held])
            outputs = (outputs.argmax(1) if classes else outputs).reshape(len(held), -1)
            scores += [score(*columns) for columns in zip(parts.y[held].T, outputs.T, strict=True)]
        options.append((np.mean(scores), features, kernel.transform(x_test)))
    return max(options, key=lambda option: option[0])[1:]


def naive(kind: str, parts: Parts) -> Array:
    """Test scores of each label: a model per option from nothing, the best by inner folds, fitted again to all rows."""
    probe, make, score, method, dtype = KINDS[kind]
    scaler = StandardScaler().fit(parts.x[parts.fold < 0] if parts.fold.min() < 0 else parts.x)
    x, x_test = (scaler.transform(part).clip(-10, 10).astype(dtype) for part in (parts.x, parts.x_test))
    x, x_test = space(kind, x, x_test, parts)
    strengths, table = probe.strengths, np.zeros((parts.y.shape[1], len(probe.strengths)))
    for (label, y), (number, strength) in product(enumerate(parts.y.T), enumerate(strengths)):
        for train, held in inner_folds(parts.fold):
            outputs = getattr(make(strength).fit(x[train], y[train]), method)(x[held])
            table[label, number] += score(y[held], outputs)
    scores = []
    for row, y, y_test in zip(table, parts.y.T, parts.y_test.T, strict=True):
        best = len(row) - 1 - row[::-1].argmax() if probe.metric == "accuracy" else row.argmax()  # of equal ones
        outputs = getattr(make(strengths[best]).fit(x, y), method)(x_test)
        scores.append(score(y_test, outputs.clip(y.min(), y.max()) if probe.metric == "r2" else outputs))
    return np.array(scores)


def warm_started(kind: str, parts: Parts) -> Array:
    """Test scores of each label by scikit-learn along a path: each fit begins with the weights of the stronger penalty.

    The best strength on validation rows is fitted again to both, from its own weights.
    """
    probe, _, score, method, dtype = KINDS[kind]
    train, valid = parts.fold < 0, parts.fold == 0
    scaler = StandardScaler().fit(parts.x[train])
    x, x_test = (scaler.transform(part).clip(-10, 10).astype(dtype) for part in (parts.x, parts.x_test))
    scores = []
    for y, y_test in zip(parts.y.T, parts.y_test.T, strict=True):
        model, best, weights = logistic(1.0).set_params(warm_start=True), -np.inf, (0.0, np.zeros(0), np.zeros(0))
        for strength in probe.strengths[::-1]:  # from the strongest penalty to the weakest
            model.set_params(C=1 / strength).fit(x[train], y[train])
            found = score(y[valid], getattr(model, method)(x[valid]))
            if found > best or (found == best and kind != "softmax"):  # of equals the one that our probe takes
                best, weights = found, (strength, model.coef_.copy(), model.intercept_.copy())
        strength, model.coef_, model.intercept_ = weights
        model.set_params(C=1 / strength).fit(x, y)
        scores.append(score(y_test, getattr(model, method)(x_test)))
    return np.array(scores)


def ours(kind: str, parts: Parts) -> Array:
    probe = KINDS[kind].probe()
    return probe.fit(parts.x, parts.y, parts.fold).score(parts.x_test, parts.y_test)[probe.metric]


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
        parts = cut(x, y)
        with one_thread():
            apart = float(np.abs(ours(kind, parts) - naive(kind, parts)).max())
            yield compare(lambda: ours(kind, parts), lambda: naive(kind, parts), setup.size(repeats, 1), ">= 5", warm=False)
        yield Row(f"{apart:.5f}", "", apart, "< 0.0011")

    return rows


@benchmark("kernel ridge probe, 1,000 x 512, 1 label, 3 inner folds: against a scikit-learn sweep")
def kernel_sweep(setup: Setup) -> Iterator[Row]:
    x, labels = data(setup.size(ROWS, 400), setup.size(512, 200))
    parts = in_folds(x[: setup.size(1250, 100)], labels["value"][: setup.size(1250, 100), :1])
    with one_thread():
        kind = "kernel ridge"
        yield compare(lambda: ours(kind, parts), lambda: naive(kind, parts), setup.size(3, 1), ">= 5", warm=False)


@benchmark("10 scores of linear and kernel probes by inner folds, against scikit-learn alone: the largest difference")
def recomputed(setup: Setup) -> Iterator[Row]:
    x, labels = data(setup.size(ROWS, 400), setup.size(512, 200))
    apart = 0.0
    with one_thread():
        for kernel in ("", "kernel "):
            for kind, name, columns in (("ridge", "value", 2), ("logistic", "bit", 2), ("softmax", "class", 1)):
                rows = slice(setup.size(750, 150))
                y = (
                    np.minimum(labels[name][rows, :columns], 4)
                    if kind == "softmax"
                    else labels[name][rows, [0, 3][:columns]]
                )
                parts = in_folds(x[rows], y)
                found = np.abs(ours(kernel + kind, parts) - naive(kernel + kind, parts)).max()
                apart = max(apart, float(found))
    yield Row(f"{apart:.5f}", "", apart, "< 0.0011")


@benchmark("probes of one task of 1,500 molecules, 5 folds by 2 splits, 10 systems, linear and kernel: CPU seconds")
def of_a_task(setup: Setup) -> Iterator[Row]:
    count = setup.size(1500, 60)
    x, labels = data(setup.size(ROWS, 400), setup.size(512, 200))
    x, y = x[:count], labels["value"][:count, :1]
    wide = np.tanh(x @ np.random.default_rng(0).normal(size=(x.shape[1], setup.size(4277, 300))) / 20).astype(np.float32)
    systems = [x] * 8 + [wide[:, : setup.size(1145, 250)], wide]
    with one_thread():
        begin = time.process_time()
        for number, system, (seed, outer) in product(range(5), systems, enumerate([folds(np.arange(count), 5, 0)] * 2)):
            held = outer == number
            fold = folds(np.arange(count - held.sum()), 3, seed)
            fold[1000:] = LATER
            for probe in (RidgeProbe(), KernelRidgeProbe()):
                probe.fit(system[~held], y[~held], fold).score(system[held], y[held])
        taken = time.process_time() - begin
    yield Row(f"{taken:.1f} s", "", taken, "< 72")


BENCHMARKS = (
    against_a_sweep("ridge", "value", 1, "1 label", 5),
    against_a_sweep("ridge", "value", 4, "4 labels", 3),
    against_a_sweep("logistic", "bit", 1, "1 label", 5),
    against_a_sweep("logistic", "bit", 6, "6 labels", 3),
    against_a_sweep("softmax", "class", 1, "30 classes", 2),
    kernel_sweep,
    recomputed,
    of_a_task,
)


SIZES = ((600, 256), (600, 1024), (1000, 512), (2000, 256), (2000, 1024), (5000, 512), (5000, 1024), (ROWS, 512))


def along_a_path() -> Iterator[tuple[str, Row]]:
    """Ours against a warm-started path of scikit-learn at the sizes that tasks have; CPU seconds, one thread each."""
    known = {dim: data(ROWS, dim) for dim in sorted({dim for _, dim in SIZES})}
    with one_thread():
        for count, dim in SIZES:
            x, labels = known[dim]
            for kind, name, columns in (("logistic", "bit", 1), ("logistic", "bit", 6), ("softmax", "class", 1)):
                y = labels[name][:, :columns]
                if kind == "softmax":  # classes that a few rows of training may lack are left to the last one
                    y = np.minimum(y, 29 if count >= 5000 else 9)
                parts = cut(x[:count], y[:count])
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
