"""Tasks of molecules: tables, and files that RDKit ships."""

import csv
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from cache_tools import ConfigError, CorpusError
from distill.evaluation.probes import Probe
from distill.evaluation.tasks.base import SHARES, Array, Key, Kind, Provenance, Task, copies, grouped_split
from distill.evaluation.tasks.labelled import Labelled, numbered
from distill.evaluation.tasks.tables import part_names, table_rows, values


class MoleculeTask(Task):
    """Molecules in a table (csv, jsonl or parquet) with one or more label columns; a label may be missing.

    Split ``own`` is that of the column ``split``. A task of kind ``search`` has all rows for test under this name: its
    actives (a label of 1 or more than ``active``) are to be found by actives of other scaffolds, among all other rows.

    Args:
        path: the table.
        targets: its label columns; all that no other argument names when not given.
        kind: ``classification`` (labels 0 and 1), ``regression`` or ``search``.
        smiles: the column of SMILES.
        provenance: ``measured`` or ``computed``.
        split: a column that names the row's part: ``train``, ``test``, and perhaps ``validation``.
        mark: columns of 0 and 1; test rows that have a 1 get scores of their own beside the others, as the activity cliffs
            of MoleculeACE (van Tilborg et al., J. Chem. Inf. Model. 2022).
        active: for ``search``, the least value of an active; without it labels are 0 and 1.
        probes: instead of the kind's own.
        apart: each label counts as a task of its own, as the 12 assays of Tox21 do; else a score is the mean over labels.
        splits: the only ones of ``probe.splits`` that it takes part in; all that it has when not given.

    Raises:
        CorpusError: missing file or column, or a label that is no number, with its line.
        ConfigError: another kind.
    """

    modality = "molecule"
    part: str | None = None
    marked: Sequence[str] = ()
    labels_apart: bool = False  # each label is a task
    splits: Sequence[str] | None = None

    def __init__(
        self,
        path: Path,
        kind: Kind,
        targets: list[str] | None = None,
        smiles: str = "smiles",
        provenance: Provenance = "measured",
        split: str | None = None,
        mark: Sequence[str] | None = None,
        active: float | None = None,
        probes: list[Probe] | None = None,
        apart: bool = False,
        splits: list[str] | None = None,
    ):
        if kind not in ("classification", "regression", "search"):
            raise ConfigError(
                f"{type(self).__name__} cannot be of kind {kind}; it can be: classification, regression, search"
            )
        self.path, self.kind, self.targets, self.part = Path(path), kind, targets, split
        self.smiles, self.provenance, self.active = smiles, provenance, active
        self.marked, self.probes, self.labels_apart, self.splits = mark or (), probes or [], apart, splits

    def load(self) -> tuple[list[str], Array]:
        rows = self._read()
        binary = self.kind == "classification" or (self.kind == "search" and self.active is None)
        labels = values(rows, self.path, self._targets(rows), binary, optional=True)
        smiles = [row[self.smiles].strip() for row in rows]
        return smiles, self._searched(smiles, labels) if self.kind == "search" else labels

    def _targets(self, rows: Sequence[dict[str, str]]) -> list[str]:
        """The columns of labels."""
        columns = dict.fromkeys(column for row in rows for column in row)  # of jsonl, a row may lack some
        others = (self.smiles, self.part, *self.marked)
        targets = self.targets or [column for column in columns if column not in others]
        if not targets:
            raise CorpusError(f"{self.path} has no column of labels beside {self.smiles}")
        return targets

    def apart(self) -> list[str]:
        return self._targets(self._read()) if self.labels_apart else []

    def _read(self) -> list[dict[str, str]]:
        named = [self.part] if self.part else []
        return table_rows(self.path, [self.smiles, *(self.targets or []), *named, *self.marked])

    def _searched(self, smiles: Sequence[str], labels: Array) -> Array:
        """Whether a molecule is active, and in the last column the number of its scaffold, (rows, labels + 1)."""
        if self.active is not None:
            labels = np.where(np.isfinite(labels), labels >= self.active, np.nan)
        return np.concatenate([labels, scaffold_numbers(smiles)[:, None]], 1)

    def marks(self) -> dict[str, Array]:
        if not self.marked:
            return {}
        found = values(self._read(), self.path, self.marked, binary=True, optional=True)
        return {name: column == 1 for name, column in zip(self.marked, found.T, strict=True)}

    def offers(self, split: str) -> bool:
        if self.splits is not None and split not in self.splits:
            return False
        if self.kind == "search":
            return split == "own"
        return split in ("random", "scaffold") or (split == "own" and self.part is not None)

    def groups(self, split: str, items: Sequence[Any]) -> Array | None:
        """Copies of a molecule for a random split, molecules of one scaffold for a split by scaffold."""
        if split == "random":
            return copies(items)
        return scaffold_numbers(items) if split == "scaffold" else None

    def split(self, name: str, seed: int, items: Sequence[Any]) -> tuple[Array, Array, Array]:
        if name == "random":
            return grouped_split(items, seed)
        if name == "scaffold":
            return scaffold_split(items, seed)
        if name == "own" and self.offers(name):
            return self._own(items)
        raise ConfigError(f"no split {name!r} for molecules; there are: random, scaffold")

    def _own(self, items: Sequence[Any]) -> tuple[Array, Array, Array]:
        if not self.part:
            none = np.zeros(0, np.int64)
            return none, none, np.arange(len(items))
        rows: dict[str, list[str]] = {}
        table = self._read()
        for row, part in zip(table, part_names(table, self.path, self.part), strict=True):
            rows.setdefault(row[self.smiles].strip(), []).append(part)
        named = {smiles: iter(parts) for smiles, parts in rows.items()}  # a molecule's rows come in order
        train, valid, test = numbered([next(named[item]) for item in items], items)
        return train, valid, test


@cache
def _scaffold(smiles: str) -> str:
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    try:
        scaffold: str = MurckoScaffoldSmiles(smiles, includeChirality=False)
    except ValueError:
        raise CorpusError(f"{smiles!r} is no molecule and has no scaffold: remove it, or take a random split") from None
    return scaffold


def scaffold_split(smiles: Sequence[str], seed: int) -> tuple[Array, Array, Array]:
    """Like :func:`random_split`, but molecules of one Bemis-Murcko scaffold stay together.

    Scaffolds come in random order; one with more molecules than half of a test set goes to training, as in chemprop's
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
        for row, molecule in enumerate(smiles):
            groups.setdefault(_scaffold(molecule), []).append(row)
    return list(groups.values())


def scaffold_numbers(smiles: Sequence[str]) -> Array:
    """The number of each molecule's scaffold, (rows,)."""
    number = np.zeros(len(smiles), np.int64)
    for count, rows in enumerate(scaffold_groups(smiles)):
        number[rows] = count
    return number


class _RdkitFile(MoleculeTask):
    """A value for each molecule of a file that the RDKit wheel ships."""

    def __init__(self, limit: int = 2000):
        from rdkit import RDConfig

        self.data, self.contrib, self.limit = Path(RDConfig.RDDataDir), Path(RDConfig.RDContribDir), limit

    @abstractmethod
    def pairs(self) -> list[tuple[str, Any]]:
        """SMILES and value of every molecule."""

    def load(self) -> tuple[list[str], Array]:
        pairs = self.pairs()
        return [smiles for smiles, _ in pairs], np.array([[value] for _, value in pairs], np.float64)

    def screening(self) -> list[tuple[str, Any]]:
        """The last WEHI screening molecules, as SMILES and as RDKit molecules."""
        from rdkit import Chem, rdBase

        path = self.data / "Pains" / "test_data" / "wehi_mols.csv"
        with open(path, newline="") as file, rdBase.BlockLogs():
            smiles = [row[0] for row in csv.reader(file) if row][-self.limit :]
            pairs = [(text, Chem.MolFromSmiles(text)) for text in smiles]
        return [(text, molecule) for text, molecule in pairs if molecule is not None]


class CmetActivity(_RdkitFile):
    """Measured: the activities of CHEMBL2321810, from RDKit's Free-Wilson set; about 1,000 molecules of one series."""

    kind, provenance = "regression", "measured"

    def __init__(self) -> None:
        super().__init__()

    def pairs(self) -> list[tuple[str, Any]]:
        folder = self.contrib / "FreeWilson" / "data"
        with open(folder / "CHEMBL2321810_act.csv", newline="") as file:
            activity = {row["Name"]: float(row["Act"]) for row in csv.DictReader(file)}
        lines = [line.split() for line in (folder / "CHEMBL2321810.smi").read_text().splitlines() if line.strip()]
        return [(smiles, activity[name]) for smiles, name in lines if name in activity]


class NciTpsa(_RdkitFile):
    """Computed: topological polar surface areas of the NCI molecules, by Daylight tools and Ertl's program."""

    kind, provenance = "regression", "computed"

    def pairs(self) -> list[tuple[str, Any]]:
        with open(self.data / "NCI" / "first_5k.tpsa.csv", newline="") as file:
            rows = [row for row in csv.reader(line for line in file if not line.startswith("#")) if row]
        return [(row[0], float(row[1])) for row in rows[: self.limit]]


class ComputedProperty(_RdkitFile):
    """Computed: one RDKit property of WEHI screening molecules.

    Args:
        name: of a descriptor in ``rdkit.Chem.Descriptors``, for instance ``qed`` or ``MolLogP``.
        limit: molecules.
    """

    kind, provenance = "regression", "computed"

    def __init__(self, name: str, limit: int = 2000):
        super().__init__(limit)
        self.name = name

    def pairs(self) -> list[tuple[str, Any]]:
        from rdkit.Chem import Descriptors

        function = dict(Descriptors.descList).get(self.name)
        if function is None:
            raise ConfigError(f"RDKit has no descriptor {self.name!r}: see rdkit.Chem.Descriptors.descList")
        return [(smiles, function(molecule)) for smiles, molecule in self.screening()]


class PainsAlerts(_RdkitFile):
    """Computed: whether a WEHI screening molecule matches one of the PAINS alerts.

    Args:
        limit: molecules.
    """

    kind, provenance = "classification", "computed"

    def pairs(self) -> list[tuple[str, Any]]:
        from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams

        catalogue = FilterCatalog(FilterCatalogParams(FilterCatalogParams.FilterCatalogs.PAINS))
        return [(smiles, catalogue.HasMatch(molecule)) for smiles, molecule in self.screening()]


class AdmetTask(Labelled):
    """A data set of TDC's ADMET benchmark group, in the folder that TDC makes: ``train_val.csv`` and ``test.csv``.

    Split ``own`` is TDC's: its test rows, and an eighth of the other rows for validation, taken by scaffold with a seed,
    the same rows as ``admet_group.get_train_valid_split(seed)``. Scores are AUROC and R2, as in the paper. TDC's
    leaderboard has MAE, Spearman and, for some, AUPRC: do not compare its figures with these.

    Huang et al., Therapeutics Data Commons, NeurIPS 2021; https://tdcommons.ai/benchmark/admet_group/overview.

    Args:
        path: the folder of the data set, for instance ``data/admet_group/caco2_wang``.
        kind: ``classification`` or ``regression``.

    Raises:
        CorpusError: missing file or column (``Drug``, ``Y``), or a label that is no number.
    """

    modality = "molecule"
    kinds = ("classification", "regression")
    files = {"train": "train_val.csv", "test": "test.csv"}

    def __init__(self, path: Path, kind: Kind):
        super().__init__(kind, None)
        self.path = Path(path)

    def load(self) -> tuple[Sequence[Key], Array]:
        keys: list[Key] = []
        parts, labels = [], []
        for part, name in self.files.items():
            smiles, values = MoleculeTask(self.path / name, self.kind, ["Y"], "Drug").load()
            keys += smiles
            parts += [part] * len(smiles)
            labels.append(values)
        return self._keep(keys, parts, np.concatenate(labels))

    def _own(self, seed: int, items: Sequence[Any], named: Sequence[str]) -> tuple[Array, Array, Array]:
        rest, test = (np.flatnonzero([part == name for part in named]) for name in self.files)
        groups = scaffold_groups([items[row] for row in rest.tolist()])
        Random(seed).shuffle(groups)  # as TDC does, so that its seeds are ours
        parts: tuple[list[int], list[int]] = [], []
        for group in groups:
            parts[len(parts[0]) + len(group) > int(0.875 * len(rest))].extend(group)
        train, valid = (rest[np.array(part, np.int64)] for part in parts)
        return train, valid, test
