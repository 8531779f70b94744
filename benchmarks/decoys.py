"""A table for similarity search: actives of MoleculeACE's targets, and molecules of the corpus as decoys.

    python benchmarks/decoys.py DATA/mol runs/decoys.csv

It has a column for each target: 1 for its actives (100 nM or less; at most 50, drawn at random), 0 for decoys, nothing
for the actives of other targets. Decoys are rows 20,001 to 21,500 of the corpus: no student of 20,000 molecules saw them;
`mol-small`, of 40,000, did.
"""

import csv
import gzip
import os
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

ACTIVE = -2.0  # log10 of 1 / nM
ACTIVES = 50
SEEN, DECOYS = 20_000, 1500


def rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def main(data: str, out: str) -> None:
    labels: dict[str, dict[str, int]] = {}  # SMILES -> target -> label
    targets = {path.name.removesuffix(".csv.gz"): path for path in sorted(Path(data).glob("tasks/ace_*.csv.gz"))}
    for target, path in targets.items():
        actives = sorted({row["smiles"] for row in rows(path) if float(row["neg_log_nm"]) >= ACTIVE})
        for smiles in random.Random(0).sample(actives, min(ACTIVES, len(actives))):
            labels.setdefault(smiles, {})[target] = 1
    for row in islice(rows(Path(data) / "corpus.csv.gz"), SEEN, SEEN + DECOYS):
        labels[row["smiles"]] = dict.fromkeys(targets, 0)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    part = Path(f"{out}.part")
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, ["smiles", *targets])
        writer.writeheader()
        writer.writerows({"smiles": smiles, **of} for smiles, of in labels.items())
    os.replace(part, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
