"""Draw the corpus of the students of texts, without labels: ``python benchmarks/text_lines.py DATA OUT``.

Reads ``DATA/text/corpus.jsonl.gz``; writes to ``OUT`` (jsonl.gz) so many lines of each source as ``SHARES`` says (seed 0).
"""

import gzip
import json
import random
import sys
from pathlib import Path

SHARES = {"multi30k": 15_000, "brown": 12_000, "agnews": 8_000, "imdb-unsup": 13_000, "wikitext2": 8_000}


def main(data: Path, out: Path) -> None:
    lines: dict[str, list[str]] = {}
    with gzip.open(data / "text" / "corpus.jsonl.gz", "rt", encoding="utf-8") as corpus:
        for line in corpus:
            lines.setdefault(json.loads(line)["source"], []).append(line)
    random_lines = random.Random(0)
    drawn = [line for source, count in SHARES.items() for line in random_lines.sample(lines[source], count)]
    random_lines.shuffle(drawn)
    out.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(out, "wt", encoding="utf-8") as file:
        file.writelines(drawn)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
