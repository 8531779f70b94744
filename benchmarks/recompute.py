"""Scores of a task computed again with scikit-learn alone; nothing of this project is imported.

    distill-cache export --column cache/mol/tasks/HASH/teachers/maccs --to maccs.npy
    python benchmarks/recompute.py RUN/probes tpsa random 0 maccs=maccs.npy

It takes the rows of RUN/probes/predictions/TASK-SPLIT-SEED.npz, fits a ridge or logistic regression per strength on the
training rows, chooses on validation rows, fits again on both, and compares its score on the test rows with results.json.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

ALPHAS, COSTS = np.logspace(-1, 5, 13), 1 / np.logspace(-1, 5, 7)  # as docs/evaluation.md has them


def features(path: Path, items: list[str]) -> np.ndarray:
    """Embeddings of ``items``, (rows, dim), from a file of `distill-cache export`, whose ids are hashes of the items."""
    ids = np.load(path.with_suffix(".ids.npy")).astype(str)
    place = {each: row for row, each in enumerate(ids)}
    wanted = [hashlib.sha256(item.encode()).hexdigest()[:16] for item in items]
    return np.load(path)[[place[each] for each in wanted]].astype(np.float64)


def regression(x: np.ndarray, y: np.ndarray, train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> float:
    def predict(alpha: float, fitted: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return Ridge(alpha).fit(x[fitted], y[fitted]).predict(x[asked])

    best = max(ALPHAS, key=lambda alpha: r2_score(y[valid], predict(alpha, train, valid)))
    both = np.concatenate([train, valid])
    return r2_score(y[test], predict(best, both, test).clip(y[both].min(), y[both].max()))


def classification(x: np.ndarray, y: np.ndarray, train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> float:
    def predict(cost: float, fitted: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return LogisticRegression(C=cost, max_iter=10_000, tol=1e-6).fit(x[fitted], y[fitted]).decision_function(x[asked])

    best = max(COSTS, key=lambda cost: roc_auc_score(y[valid], predict(cost, train, valid)))
    return roc_auc_score(y[test], predict(best, np.concatenate([train, valid]), test))


def classes(x: np.ndarray, y: np.ndarray, train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> float:
    def score(cost: float, fitted: np.ndarray, asked: np.ndarray) -> float:
        return LogisticRegression(C=cost, max_iter=10_000, tol=1e-6).fit(x[fitted], y[fitted]).score(x[asked], y[asked])

    best = max(sorted(COSTS)[1:], key=lambda cost: score(cost, train, valid))  # of equals the strongest regularisation
    return score(best, np.concatenate([train, valid]), test)


def main(probes: str, task: str, split: str, seed: str, *embeddings: str) -> None:
    kept = np.load(Path(probes) / "predictions" / f"{task}-{split}-{seed}.npz")
    records = json.loads((Path(probes) / "results.json").read_text())["records"]
    items, parts = json.loads(bytes(kept["items"])), [kept[part] for part in ("train", "valid", "test")]
    print(f"{'system':24} {'ours':>8} {'scikit-learn':>12} {'difference':>10}")
    for each in embeddings:
        name, _, path = each.partition("=")
        ours = next(r for r in records if (r["system"], r["task"], r["split"], r["seed"]) == (name, task, split, int(seed)))
        x = features(Path(path), items)
        x = StandardScaler().fit(x[parts[0]]).transform(x).clip(-10, 10)
        fit = {"r2": regression, "auroc": classification, "accuracy": classes}[ours["metric"]]
        known = [np.isfinite(column) for column in kept["labels"].T]
        scores = [
            fit(x, column, *(part[seen[part]] for part in parts))
            for column, seen in zip(kept["labels"].T, known, strict=True)
        ]
        theirs = float(np.mean(scores))
        print(f"{name:24} {ours['score']:8.4f} {theirs:12.4f} {ours['score'] - theirs:+10.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
