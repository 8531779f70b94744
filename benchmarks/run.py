"""Speed as ratios, measured side by side in one run: `make bench`; other data loaders: `make bench-peers`."""

import sys
import tempfile
import warnings
from pathlib import Path

import torch

import cache
import probes
import train
from cache_tools.console import start_logging
from measure import show


def main() -> None:
    start_logging()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        rows = {name: row for part in cache.everything(Path(folder)) for name, row in part.items()}
        show("cache", rows)
        show("probes", probes.everything())
        show("training", train.everything(Path(folder) / "train"))


if __name__ == "__main__":
    main()
