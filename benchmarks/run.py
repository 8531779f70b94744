"""Measure speed as ratios, side by side in one run: `make bench`; other data loaders: `make bench-peers`.

    python benchmarks/run.py [FOLDER]

FOLDER is where caches are written; by default a temporary folder. Some rows need files that are not part of the
repository: WEIGHTS=folder has mol/ with pretrained GNNs, DATA=folder has mol/corpus.csv.gz. Without them these rows are
left out, and a line says so. ROWS='probe|build' measures only rows whose names match that pattern.
"""

import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

from cache_tools import start_console
from measure import RESULTS, Benchmark, Setup, drop_stale, run_all


def benchmarks() -> tuple[Benchmark, ...]:
    """All that `make bench` runs.

    Their modules are imported here: a process of the pool beside the descriptors' build imports the file that was started.
    """
    import cache
    import probes
    import processor
    import startup
    import train

    return (*cache.BENCHMARKS, *probes.BENCHMARKS, *processor.BENCHMARKS, *startup.BENCHMARKS, *train.BENCHMARKS)


def main() -> None:
    import torch

    import peers

    start_console()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    drop_stale(RESULTS, [name for each in (*benchmarks(), *peers.BENCHMARKS) for name in each.names])
    chosen = [each for each in benchmarks() if re.search(os.environ.get("ROWS", ""), " ".join(each.names))]
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        whole = run_all(chosen, Setup(Path(folder)))
    sys.exit(not whole)


if __name__ == "__main__":
    main()
