"""Tasks of molecules: tables, and files that RDKit ships."""

import csv
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from cache_tools import ConfigError, CorpusError
from distill.evaluation.tasks.base import SHARES, Array, Key, Kind, Provenance, Task, grouped_split
from distill.evaluation.tasks.labelled import Labelled
from distill.evaluation.tasks.tables import table_rows, values


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
        rows = table_rows(self.path, [self.smiles, *(self.targets or [])])
        columns = dict.fromkeys(column for row in rows for column in row)  # of jsonl, a row may lack some
        targets = self.targets or [column for column in columns if column != self.smiles]
        if not targets:
            raise CorpusError(f"{self.path} has no column of labels beside {self.smiles}")
        labels = values(rows, self.path, targets, self.kind == "classification", optional=True)
        return [row[self.smiles].strip() for row in rows], labels

    def offers(self, split: str) -> bool:
        return split in ("random", "scaffold")

    def split(self, name: str, seed: int, items: Sequence[Any]) -> tuple[Array, Array, Array]:
        if name == "random":
            return grouped_split(items, seed)
        if name == "scaffold":
            return scaffold_split(items, seed)
        raise ConfigError(f"no split {name!r} for molecules; there are: random, scaffold")


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


def _scaffold(smiles: str) -> str:
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    try:
        scaffold: str = MurckoScaffoldSmiles(smiles, includeChirality=False)
    except ValueError:
        raise CorpusError(f"{smiles!r} is no molecule and has no scaffold: remove it, or take a random split") from None
    return scaffold


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
