"""Scores of a task computed again with scikit-learn alone; nothing of this project is imported.

    distill predict --corpus CACHE/tasks/HASH --ckpt_path RUN/checkpoints/best.ckpt --settings.dtype float32
    distill-cache export --column CACHE/tasks/HASH/teachers/student --to student.npy
    python benchmarks/recompute.py RUN/probes esol rbf random 0 student=student.npy

It takes the rows of the task's file in RUN/probes/predictions: one split, or folds, for each of which inner folds or
validation rows choose. A probe is ``linear``, ``rbf`` or ``search``. Several files give a system of columns side by side:
fingerprints=morgan.npy,descriptors.npy.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import pdist
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, average_precision_score, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

Array = np.ndarray[Any, Any]
WIDTHS, WIDTHS_AT = (0.5, 1.0, 2.0), 0.3  # of a kernel, as docs/evaluation.md has them; the ridge that they are compared at


class Kind(NamedTuple):
    """What scikit-learn has for a score."""

    make: Callable[[float], Any]
    score: Callable[[Array, Array], float]
    method: str
    strengths: dict[str, Array]  # by probe


def logistic(strength: float) -> Any:
    return LogisticRegression(C=1 / strength, max_iter=100_000, tol=1e-6)


KINDS = {
    "r2": Kind(Ridge, r2_score, "predict", {"linear": np.logspace(-1, 5, 13), "rbf": np.logspace(-2.5, 0.5, 7)}),
    "auroc": Kind(
        logistic, roc_auc_score, "decision_function", {"linear": np.logspace(-1, 5, 7), "rbf": np.logspace(-2, 1, 7)}
    ),
    "accuracy": Kind(  # of equal strengths the strongest
        logistic, accuracy_score, "predict", {"linear": np.logspace(4, -1, 6), "rbf": np.logspace(1, -2, 7)}
    ),
}


def features(paths: str, items: list[str]) -> Array:
    """Embeddings of ``items``, (rows, dim), from files of `distill-cache export`, whose ids are hashes of the items."""
    wanted, found = [hashlib.sha256(item.encode()).hexdigest()[:16] for item in items], []
    for path in map(Path, paths.split(",")):
        place = {each: row for row, each in enumerate(np.load(path.with_suffix(".ids.npy")).astype(str))}
        found.append(np.load(path)[[place[each] for each in wanted]].astype(np.float64))
    return np.concatenate(found, 1)


def parts(kept: Any) -> Iterator[tuple[Array, Array, Array]]:
    """Row numbers to fit on, the inner fold of each (-1: always trained on, -2: for the last fit), and test rows."""
    if "valid" in kept:
        train, valid = kept["train"], kept["valid"]
        yield np.concatenate([train, valid]), np.repeat([-1, 0], [len(train), len(valid)]), kept["test"]
    elif "inner" in kept:
        yield kept["train"], kept["inner"], kept["test"]
    else:
        for number in range(sum(name.startswith("test/") for name in kept)):
            yield tuple(kept[f"{name}/{number}"] for name in ("train", "inner", "test"))


def inner_folds(inner: Array) -> Iterator[tuple[Array, Array]]:
    for number in np.unique(inner[inner >= 0]):
        yield np.flatnonzero((inner != number) & (inner != -2)), np.flatnonzero(inner == number)


def bent(kind: Kind, x: Array, x_test: Array, y: Array, inner: Array) -> tuple[Array, Array]:
    """Features that a Gaussian kernel stands for, of the width that ridge does best with; a missing label is the mean."""
    used = np.flatnonzero(inner != -2)
    median = np.median(pdist(x[used][np.random.RandomState(0).permutation(len(used))[:500]]))
    classes = kind.score is accuracy_score
    targets = np.eye(1 + int(y.max()))[y[:, 0].astype(int)] if classes else y
    targets = np.where(np.isfinite(targets), targets, np.nanmean(targets[used], 0))
    options = []
    for width in WIDTHS:
        exact = Nystroem(gamma=1 / (2 * (width * median) ** 2), n_components=len(x), random_state=0).fit(x)
        z, scores = exact.transform(x), []
        for train, held in inner_folds(inner):
            outputs = Ridge(WIDTHS_AT).fit(z[train], targets[train]).predict(z[held]).reshape(len(held), -1)
            outputs = outputs.argmax(1)[:, None] if classes else outputs
            for truth, output in zip(y[held].T, outputs.T, strict=True):
                scores.append(kind.score(truth[np.isfinite(truth)], output[np.isfinite(truth)]))
        options.append((np.mean(scores), z, exact.transform(x_test)))
    return max(options, key=lambda option: option[0])[1:]


def fitted(kind: Kind, strengths: Array, x: Array, y: Array, inner: Array, x_test: Array, y_test: Array) -> float:
    """The test score of one label: the best strength by inner folds, then one fit on all rows that have the label."""
    known, asked = np.isfinite(y), np.isfinite(y_test)
    x, y, inner, x_test, y_test = x[known], y[known], inner[known], x_test[asked], y_test[asked]

    def outputs(strength: float, train: Array, rows: Array) -> Array:
        return getattr(kind.make(strength).fit(x[train], y[train]), kind.method)(rows)

    reached = [
        np.mean([kind.score(y[held], outputs(strength, train, x[held])) for train, held in inner_folds(inner)])
        for strength in strengths
    ]
    found = outputs(strengths[int(np.argmax(reached))], np.arange(len(x)), x_test)
    return kind.score(y_test, found.clip(y.min(), y.max()) if kind.score is r2_score else found)


def searched(x: Array, y: Array) -> list[float]:
    """Of each label the mean average precision of its actives as queries, those of the query's own group left out."""
    unit, (*labels, group), out = x / np.linalg.norm(x, axis=1, keepdims=True), y.T, []
    for label in labels:
        precisions = []
        for query in np.flatnonzero(label == 1):
            asked = np.isfinite(label) & ~((label == 1) & (group == group[query]))
            if (label[asked] == 1).any():
                precisions.append(average_precision_score(label[asked] == 1, unit[asked] @ unit[query]))
        out.append(float(np.mean(precisions)))
    return out


def main(probes: str, task: str, probe: str, split: str, seed: str, *embeddings: str) -> None:
    records = json.loads((Path(probes) / "results.json").read_text())["records"]
    records = [r for r in records if (r["probe"], r["split"], r["seed"]) == (probe, split, int(seed))]
    files = sorted((Path(probes) / "predictions").glob(f"{task}*-{split}-{seed}.npz"))
    path = next(path for path in files if path.name.startswith((f"{task}-{probe}-", f"{task}-{split}-")))
    kept = np.load(path)
    items, labels = json.loads(bytes(kept["items"])), kept["labels"]
    print(f"{'system':24} {'ours':>8} {'scikit-learn':>12} {'difference':>10}")
    for each in embeddings:
        name, _, paths = each.partition("=")
        mine = [
            r for r in records if r["system"] == name and (r["task"] + " ").startswith(f"{task} ")
        ]  # one for each label
        ours, x = float(np.mean([r["score"] for r in mine])), features(paths, items)
        if probe == "search":
            theirs = float(np.mean(searched(x[kept["test"]], labels[kept["test"]])))
        else:
            kind, scores = KINDS[mine[0]["metric"]], []
            for rows, inner, test in parts(kept):
                scaler = StandardScaler().fit(x[rows][inner == -1] if (inner == -1).any() else x[rows])
                z, z_test = (scaler.transform(x[part]).clip(-10, 10) for part in (rows, test))
                if probe == "rbf":
                    z, z_test = bent(kind, z, z_test, labels[rows], inner)
                for y, y_test in zip(labels[rows].T, labels[test].T, strict=True):
                    scores.append(fitted(kind, kind.strengths[probe], z, y, inner, z_test, y_test))
            theirs = float(np.mean(scores))
        print(f"{name:24} {ours:8.4f} {theirs:12.4f} {ours - theirs:+10.4f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
