"""Corpora: a fixed, ordered list of items, each with a stable string id."""

import csv
import gzip
import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, TextIO

from cache_tools.errors import CorpusError

log = logging.getLogger(__name__)


class Corpus(ABC):
    """A fixed, ordered list of ``(id, item)``.

    Class attributes:
        modality: ``molecule``, ``text`` or ``image``.
    """

    modality: ClassVar[str]

    @property
    @abstractmethod
    def source(self) -> str:
        """Where the items come from, for people."""

    @abstractmethod
    def pairs(self) -> Iterator[tuple[str, bytes]]:
        """Every item as ``(id, raw item)``; an empty id asks for a hash of the content."""

    def read(self) -> tuple[list[str], list[bytes], str]:
        """Ids, items and the fingerprint, which changes when any item, id or the order changes.

        An item that comes again under the same id is dropped and counted in the log.

        Raises:
            CorpusError: on an empty corpus, or one id for two different items.
        """
        items: dict[str, bytes] = {}
        repeated: list[str] = []
        for given, item in self.pairs():
            identity = given or hashlib.sha256(item).hexdigest()[:16]
            if identity in items:
                repeated.append(identity)
            if items.setdefault(identity, item) != item:
                raise CorpusError(
                    f"{self.source}: id {identity!r} stands for {items[identity]!r:.60} and for {item!r:.60}: "
                    "give every row its own id, or name no id column to use content hashes"
                )
        if not items:
            raise CorpusError(f"{self.source} holds no rows: expected at least one {self.modality}")
        if repeated:
            log.warning("%s: %d duplicates dropped, for instance id %s", self.source, len(repeated), repeated[0])
        digest = hashlib.sha256()
        for identity, item in items.items():
            digest.update(b"%d %d " % (len(identity), len(item)) + identity.encode() + item)
        return list(items), list(items.values()), digest.hexdigest()


class Items(Corpus):
    """Items in memory.

    Args:
        items: the raw items as text.
        modality: ``molecule`` or ``text``.
        source: where they come from.
    """

    def __init__(self, items: list[str], modality: str, source: str = "memory"):
        self.items = items
        self.modality = modality  # type: ignore[misc]  # a fact of the instance here
        self._source = source

    @property
    def source(self) -> str:
        return self._source

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        return (("", item.encode()) for item in self.items)


class SmilesFile(Corpus):
    """Molecules in a csv (with a header) or in a smi or txt file (one SMILES a line, then optionally a name); also gzipped.

    Args:
        path: the file: ``.csv``, ``.smi`` or ``.txt``, with or without ``.gz``.
        smiles: the csv's column of SMILES.
        id: the csv's column of ids; without one an id is a hash of the SMILES.
        limit: read so many rows at most.

    Raises:
        CorpusError: missing file, unknown ending, missing column, no rows.
    """

    modality = "molecule"

    def __init__(
        self, path: str | os.PathLike[str], smiles: str = "smiles", id: str | None = None, limit: int | None = None
    ):
        self.path = Path(path)
        self.smiles, self.id, self.limit = smiles, id, limit

    @property
    def source(self) -> str:
        return str(self.path)

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        for number, (identity, smiles) in enumerate(self._rows()):
            if number == self.limit:
                return
            yield identity, smiles.encode()

    def _rows(self) -> Iterator[tuple[str, str]]:
        with open_text(self.path) as file:
            if ".csv" in self.path.suffixes:
                for row in read_csv(self.path, file, [self.smiles, *([self.id] if self.id else [])]):
                    yield (row[self.id] if self.id else ""), row[self.smiles].strip()
            elif {".smi", ".txt"} & set(self.path.suffixes):
                yield from (("", line.split()[0]) for line in file if line.strip() and not line.startswith("#"))
            else:
                raise CorpusError(f"{self.path}: expected a name ending in .csv, .smi or .txt (or these with .gz)")


def open_text(path: Path) -> TextIO:
    """Open a text file, gzipped or not.

    Raises:
        CorpusError: when there is no such file.
    """
    if not path.is_file():
        raise CorpusError(f"no file {path.absolute()}: check the path (a csv, csv.gz, smi or txt file)")
    encoding = "utf-8-sig"  # Excel writes a byte order mark
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return open(path, encoding=encoding, newline="")


def read_csv(path: Path, file: TextIO, required: list[str]) -> Iterator[dict[str, str]]:
    """Rows of a csv with a header.

    Raises:
        CorpusError: naming the columns that are missing and those that are there.
    """
    reader = csv.DictReader(file, restval="")
    try:
        found = reader.fieldnames or []
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from None
    if missing := [name for name in required if name not in found]:
        raise CorpusError(f"{path}: no column {', '.join(missing)}; its columns are: {', '.join(found) or 'none'}")
    return _csv_rows(path, reader)


def _csv_rows(path: Path, reader: "csv.DictReader[str]") -> Iterator[dict[str, str]]:
    try:
        for row in reader:
            if None in row:
                raise CorpusError(f"{path} line {reader.line_num}: more cells than the header has columns")
            yield row
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from None


class RdkitSamples(Corpus):
    """The real molecules that the RDKit wheel ships: NCI (first 5,000) and WEHI screening molecules (10,000).

    Args:
        limit: read so many molecules at most.
    """

    modality = "molecule"

    def __init__(self, limit: int | None = None):
        self.limit = limit

    @property
    def source(self) -> str:
        return "RDKit sample molecules (NCI first 5K, WEHI 10K)"

    def pairs(self) -> Iterator[tuple[str, bytes]]:
        from rdkit import RDConfig

        data = Path(RDConfig.RDDataDir)
        with open(data / "NCI" / "first_5K.smi") as nci, open(data / "Pains" / "test_data" / "wehi_mols.csv") as wehi:
            smiles = [line.split()[0] for line in nci if line.strip()] + [row[0] for row in csv.reader(wehi) if row]
        return (("", each.encode()) for each in smiles[: self.limit])
