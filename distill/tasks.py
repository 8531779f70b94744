"""Downstream tasks: items, labels, and how they are split."""

import csv
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from cache_tools.corpus import Corpus, Items
from cache_tools.errors import ConfigError, CorpusError
from cache_tools.tables import read_table
from distill.probes import Probe

Array = np.ndarray[Any, Any]
Kind = Literal["classification", "regression", "multiclass", "similarity", "pairs", "clustering"]
Key = str | tuple[str, str]
Provenance = Literal["measured", "computed"]
SHARES = (0.8, 0.1, 0.1)  # train, validation, test


class Task(ABC):
    """A labelled data set. Subclass it in any importable module and name the class in YAML.

    Class attributes:
        modality: of the items.

    Attributes:
        kind: what the labels are: ``classification`` (0 and 1, several columns), ``regression``, ``multiclass`` (class
            numbers), ``similarity`` (a score per pair), ``pairs`` (0 and 1 per pair) or ``clustering`` (class numbers).
        provenance: whether the labels were measured in the world or computed from the items.
        probes: what judges an embedding; by default the one of ``kind``.
    """

    modality: ClassVar[str]
    kind: Kind
    provenance: Provenance = "measured"
    probes: Sequence[Probe] = ()

    @abstractmethod
    def load(self) -> tuple[Sequence[Key], Array]:
        """Items (pairs of items, or names of them), and labels (items, labels) in float64 with NaN where one is missing."""

    @abstractmethod
    def split(self, name: str, seed: int, items: Sequence[Key]) -> tuple[Array, Array, Array]:
        """Row numbers for training, validation and test."""

    def offers(self, split: str) -> bool:
        """Whether the task has that kind of split."""
        return True

    def corpus(self, name: str) -> Corpus:
        """The distinct items, in the order in which they first appear."""
        return Items(distinct(self.load()[0]), self.modality, f"task {name}")


def distinct(keys: Sequence[Key]) -> list[str]:
    """Every item once, in the order in which it first appears, also inside pairs."""
    return list(dict.fromkeys(item for key in keys for item in ((key,) if isinstance(key, str) else key)))


class MoleculeTask(Task):
    """Molecules in a table (csv, jsonl or parquet) with one or more label columns; a label may be missing.

    Args:
        path: the table.
        targets: its label columns; all but the SMILES when not given.
        kind: ``classification`` (labels 0 and 1) or ``regression``.
        smiles: the column of SMILES.
        provenance: ``measured`` or ``computed``.

    Raises:
        CorpusError: missing file or column, or a label that is no number, with its line.
    """

    modality = "molecule"

    def __init__(
        self,
        path: Path,
        kind: Kind,
        targets: list[str] | None = None,
        smiles: str = "smiles",
        provenance: Provenance = "measured",
    ):
        if kind not in ("classification", "regression"):
            raise ConfigError(f"{type(self).__name__} cannot be of kind {kind}; it can be: classification, regression")
        self.path, self.kind, self.targets = Path(path), kind, targets
        self.smiles, self.provenance = smiles, provenance

    def load(self) -> tuple[list[str], Array]:
        rows = list(read_table(self.path, [self.smiles, *(self.targets or [])]))
        if not rows:
            raise CorpusError(f"{self.path} holds no rows below its header")
        targets = self.targets or [column for column in rows[0] if column != self.smiles]
        if not targets:
            raise CorpusError(f"{self.path} has no column of labels beside {self.smiles}")
        labels = [[self._label(row[target], target, line) for target in targets] for line, row in enumerate(rows, 2)]
        return [row[self.smiles].strip() for row in rows], np.array(labels, np.float64)

    def _label(self, text: str, target: str, line: int) -> float:
        try:
            value = float(text) if text.strip() else float("nan")
        except ValueError:
            raise CorpusError(f"{self.path} line {line}: {target} is {text!r}, expected a number or nothing") from None
        if np.isinf(value):
            raise CorpusError(f"{self.path} line {line}: {target} is {text!r}, expected a finite number or nothing")
        if self.kind == "classification" and value not in (0.0, 1.0) and not np.isnan(value):
            raise CorpusError(f"{self.path} line {line}: {target} is {text!r}, expected 0, 1 or nothing")
        return value

    def offers(self, split: str) -> bool:
        return split in ("random", "scaffold")

    def split(self, name: str, seed: int, items: Sequence[Any]) -> tuple[Array, Array, Array]:
        if name == "random":
            return grouped_split(items, seed)
        if name == "scaffold":
            return scaffold_split(items, seed)
        raise ConfigError(f"no split {name!r} for molecules; there are: random, scaffold")


def random_split(rows: int, seed: int) -> tuple[Array, Array, Array]:
    """Row numbers cut at random into 80 % training, 10 % validation and 10 % test."""
    order = np.random.default_rng(seed).permutation(rows)
    train, valid = round(SHARES[0] * rows), round((SHARES[0] + SHARES[1]) * rows)
    return order[:train], order[train:valid], order[valid:]


def grouped_split(items: Sequence[Key], seed: int) -> tuple[Array, Array, Array]:
    """Like :func:`random_split`, but rows of one item stay together."""
    first = {item: row for row, item in enumerate(dict.fromkeys(items))}
    number = np.array([first[item] for item in items])
    train, valid, test = (np.flatnonzero(np.isin(number, part)) for part in random_split(len(first), seed))
    return train, valid, test


def scaffold_split(smiles: Sequence[str], seed: int) -> tuple[Array, Array, Array]:
    """Like :func:`random_split`, but molecules of one Bemis-Murcko scaffold stay together.

    Scaffolds are taken in random order; one with more molecules than half of a test set goes to training, as in chemprop's
    balanced split. Molecules without a ring share the empty scaffold.
    """
    sizes = [share * len(smiles) for share in SHARES]
    shuffled = scaffold_groups(smiles)
    np.random.default_rng(seed).shuffle(shuffled)
    shuffled.sort(key=lambda group: len(group) <= sizes[2] / 2)  # stable: the big ones first
    parts: list[list[int]] = [[], [], []]
    for group in shuffled:
        fitting = [part for part, size in zip(parts, sizes, strict=True) if len(part) + len(group) <= size]
        (fitting[0] if fitting else parts[0]).extend(group)
    train, valid, test = (np.array(part, np.int64) for part in parts)
    return train, valid, test


def scaffold_groups(smiles: Sequence[str]) -> list[list[int]]:
    """Row numbers of each Bemis-Murcko scaffold, in the order in which the scaffolds first appear."""
    from rdkit import rdBase

    groups: dict[str, list[int]] = {}
    with rdBase.BlockLogs():
        for row, each in enumerate(smiles):
            groups.setdefault(_scaffold(each), []).append(row)
    return list(groups.values())


def _scaffold(smiles: str) -> str:
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    try:
        scaffold: str = MurckoScaffoldSmiles(smiles, includeChirality=False)
    except ValueError:
        raise CorpusError(f"{smiles!r} is no molecule and has no scaffold: remove it, or take a random split") from None
    return scaffold


# --------------------------------------------------------------------------- tasks from files that RDKit ships


class _RdkitFile(MoleculeTask):
    def __init__(self, kind: Kind, provenance: Provenance):
        from rdkit import RDConfig

        self.data, self.contrib = Path(RDConfig.RDDataDir), Path(RDConfig.RDContribDir)
        self.kind, self.provenance = kind, provenance


class CmetActivity(_RdkitFile):
    """Measured: the activities of CHEMBL2321810, from RDKit's Free-Wilson set; about 1,000 molecules of one series."""

    def __init__(self) -> None:
        super().__init__("regression", "measured")

    def load(self) -> tuple[list[str], Array]:
        folder = self.contrib / "FreeWilson" / "data"
        with open(folder / "CHEMBL2321810_act.csv", newline="") as file:
            activity = {row["Name"]: float(row["Act"]) for row in csv.DictReader(file)}
        pairs = [line.split() for line in (folder / "CHEMBL2321810.smi").read_text().splitlines() if line.strip()]
        known = [(smiles, activity[name]) for smiles, name in pairs if name in activity]
        return [smiles for smiles, _ in known], np.array([[value] for _, value in known])


class NciTpsa(_RdkitFile):
    """Computed: topological polar surface areas of the NCI molecules, by Daylight tools and Ertl's program."""

    def __init__(self, limit: int = 2000) -> None:
        super().__init__("regression", "computed")
        self.limit = limit

    def load(self) -> tuple[list[str], Array]:
        with open(self.data / "NCI" / "first_5k.tpsa.csv", newline="") as file:
            rows = [row for row in csv.reader(line for line in file if not line.startswith("#")) if row][: self.limit]
        return [row[0] for row in rows], np.array([[float(row[1])] for row in rows])


class ComputedProperty(_RdkitFile):
    """Computed: one RDKit property of WEHI screening molecules.

    Args:
        name: of a descriptor in ``rdkit.Chem.Descriptors``, for instance ``qed`` or ``MolLogP``.
        limit: molecules.
    """

    def __init__(self, name: str, limit: int = 2000):
        super().__init__("regression", "computed")
        self.name, self.limit = name, limit

    def load(self) -> tuple[list[str], Array]:
        from rdkit.Chem import Descriptors

        function = dict(Descriptors.descList).get(self.name)
        if function is None:
            raise ConfigError(f"RDKit has no descriptor {self.name!r}: see rdkit.Chem.Descriptors.descList")
        pairs = [(smiles, function(molecule)) for smiles, molecule in _wehi(self.data, self.limit)]
        return [smiles for smiles, _ in pairs], np.array([[value] for _, value in pairs], np.float64)


class PainsAlerts(_RdkitFile):
    """Computed: whether a WEHI screening molecule matches one of the PAINS alerts.

    Args:
        limit: molecules.
    """

    def __init__(self, limit: int = 2000):
        super().__init__("classification", "computed")
        self.limit = limit

    def load(self) -> tuple[list[str], Array]:
        from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams

        catalogue = FilterCatalog(FilterCatalogParams(FilterCatalogParams.FilterCatalogs.PAINS))
        pairs = [(smiles, catalogue.HasMatch(molecule)) for smiles, molecule in _wehi(self.data, self.limit)]
        return [smiles for smiles, _ in pairs], np.array([[value] for _, value in pairs], np.float64)


def _wehi(data: Path, limit: int) -> list[tuple[str, Any]]:
    from rdkit import Chem, rdBase

    with open(data / "Pains" / "test_data" / "wehi_mols.csv", newline="") as file, rdBase.BlockLogs():
        smiles = [row[0] for row in csv.reader(file) if row][-limit:]
        pairs = [(each, Chem.MolFromSmiles(each)) for each in smiles]
    return [(each, molecule) for each, molecule in pairs if molecule is not None]
