"""Read molecules from tables and files of SMILES, or take RDKit's samples."""

import csv
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from cache_tools.corpora.base import Corpus, warn_once
from cache_tools.corpora.tables import file_ending, read_lines, read_table
from cache_tools.errors import CorpusError

MAX_SMILES = 100_000  # characters: ten times the longest in PubChem; RDKit needs 30 bytes for each and more


class SmilesFile(Corpus):
    """Molecules in a table, or in a smi or txt file (one SMILES a line, then optionally a name).

    Args:
        path: ``.csv``, ``.jsonl``, ``.parquet``, ``.smi`` or ``.txt``; all but parquet also as ``.gz``.
        smiles: the table's column of SMILES.
        id: the table's column of ids; without one an id is a hash of the SMILES.
        limit: read so many rows at most.

    Raises:
        CorpusError: when the file, a column or every row is missing, or when the ending is unknown.
    """

    modality = "molecule"

    def __init__(
        self, path: str | os.PathLike[str], smiles: str = "smiles", id: str | None = None, limit: int | None = None
    ):
        self.path = Path(path)
        self.source = str(self.path)
        self.smiles, self.id, self.limit = smiles, id, limit

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        for number, (identity, smiles) in enumerate(itertools.islice(self._rows(), self.limit), 1):
            if len(smiles) > MAX_SMILES:
                wrong = f"a SMILES of {len(smiles):,} characters, at most {MAX_SMILES:,} are read"
            elif "\n" in smiles or "\r" in smiles:
                wrong = f"the SMILES {smiles!r:.60} has a line break, so rows are lost in it: a quote before it is stray"
            else:
                yield identity, smiles.encode()
                continue
            raise CorpusError(f"{self.path} row {number}: {wrong}. Mend or remove this row")

    def _rows(self) -> Iterator[tuple[str, str]]:
        if file_ending(self.path) in (".smi", ".txt"):
            return (("", line.split()[0]) for line in smiles_lines(self.path))
        table = read_table(self.path, [self.smiles, *([self.id] if self.id else [])], ", .smi, .txt")
        return ((row[self.id] if self.id else "", row[self.smiles].strip()) for row in table)


def smiles_lines(path: Path) -> Iterator[str]:
    """The lines of a file of SMILES without blank lines, comments and a header such as ZINC's ``smiles zinc_id``."""
    lines = (line for line in read_lines(path) if line.strip() and not line.startswith("#"))
    first = next(lines, "")
    if "smiles" in first.lower().partition(" ")[0]:  # no SMILES has an m outside of brackets
        warn_once(f"{path}: the header line {first!r} was left out")
        return lines
    return itertools.chain([first] if first else [], lines)


class RdkitSamples(Corpus):
    """The real molecules that the RDKit wheel ships: NCI (first 5,000) and WEHI screening molecules (10,000).

    Args:
        limit: read so many molecules at most.
    """

    modality = "molecule"
    source = "RDKit sample molecules (NCI first 5K, WEHI 10K)"

    def __init__(self, limit: int | None = None):
        self.limit = limit

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        from rdkit import RDConfig

        data = Path(RDConfig.RDDataDir)
        with open(data / "NCI" / "first_5K.smi") as nci, open(data / "Pains" / "test_data" / "wehi_mols.csv") as wehi:
            smiles = [line.split()[0] for line in nci if line.strip()] + [row[0] for row in csv.reader(wehi) if row]
        return (("", molecule.encode()) for molecule in smiles[: self.limit])
