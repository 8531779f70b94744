"""Speed as ratios, measured side by side in one run: `make bench`; other data loaders: `make bench-peers`."""

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge

import cache
import train
from cache_tools.console import start_logging
from distill.probes import LogisticProbe, RidgeProbe
from measure import Row, compare, show


def probes() -> dict[str, Row]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 512)).astype(np.float32)
    signal = x[:, :64] @ rng.normal(size=(64, 1)) / 8 + rng.normal(size=(4000, 1))
    bits = (signal > 0).astype(np.float64)

    def ours(probe: type, y: np.ndarray) -> Callable[[], object]:
        return lambda: probe().fit(x[:3200], y[:3200], x[3200:], y[3200:])

    def naive(models: list, y: np.ndarray) -> Callable[[], object]:
        return lambda: [model.fit(x[:3200], y[:3200, 0]).predict(x[3200:]) for model in models]

    logistic = [LogisticRegression(C=1 / strength, max_iter=1000) for strength in LogisticProbe.strengths]
    ridge = [Ridge(alpha=strength) for strength in RidgeProbe.strengths]
    return {
        "ridge probe, 4,000 x 512: ours against a scikit-learn sweep": compare(
            ours(RidgeProbe, signal), naive(ridge, signal), 5
        ),
        "logistic probe, 4,000 x 512: ours against a scikit-learn sweep": compare(
            ours(LogisticProbe, bits), naive(logistic, bits), 3
        ),
    }


def main() -> None:
    start_logging()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        rows = {name: row for part in cache.everything(Path(folder)) for name, row in part.items()}
        show("cache and probes", rows | probes())
        show("training", train.everything(Path(folder) / "train"))


if __name__ == "__main__":
    main()
