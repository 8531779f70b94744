"""Suites: named lists of tasks, found in a folder that is laid out as the field lays it out."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cache_tools import TABLES, ConfigError, kind_of, read_table
from distill.evaluation.probes import KnnProbe, SoftmaxProbe
from distill.evaluation.tasks import AdmetTask, MoleculeTask, TextPairTask, TextTask
from distill.evaluation.tasks.base import Kind, Task
from distill.evaluation.tasks.image import IdxTask, ImageTask, in_class_folders

log = logging.getLogger(__name__)


Found = tuple[list[tuple[str, Path, Task]], list[str]]  # name, place and task of each; what was looked for in vain


def suite(name: str, folder: Path) -> dict[str, Task]:
    """The tasks of a suite whose files are in a folder; those that are not there are named in one warning.

    Args:
        name: ``moleculenet``, ``tdc-admet``, ``vision-transfer`` or ``text-folder``; the function of that name below tells
            the layout.
        folder: where the files are.

    Returns:
        Task by name.

    Raises:
        ConfigError: when there is no such suite or folder, not one task in it, or two of one name.
        CorpusError: when a file is damaged.
    """
    if name not in SUITES:
        raise ConfigError(f"no suite {name!r}; there are: {', '.join(SUITES)}")
    if not folder.is_dir():
        raise ConfigError(f"suite {name}: no folder {folder.absolute()}: check the path")
    find, layout = SUITES[name]
    found, absent = find(folder)
    if not found:
        missing = f" (not there: {'; '.join(absent)})" if absent else ""
        raise ConfigError(f"suite {name}: no task in {folder.absolute()}; looked for {layout}{missing}")
    tasks: dict[str, Task] = {}
    for task, place, made in found:
        if task in tasks:
            raise ConfigError(f"suite {name}: {place} is a second task called {task}: rename it or move it away")
        tasks[task] = made
    if absent:
        every = len(found) + len(absent)
        log.warning("suite %s: %d of %d tasks in %s; left out: %s", name, len(found), every, folder, "; ".join(absent))
    return tasks


class _Table(NamedTuple):
    kind: Kind
    files: tuple[str, ...]  # DeepChem's name, and the data set's
    labels: str | int  # the column of labels, or how many there are


MOLECULENET = {
    "esol": _Table("regression", ("delaney-processed", "esol"), "measured log solubility in mols per litre"),
    "freesolv": _Table("regression", ("sampl", "freesolv"), "expt"),
    "lipophilicity": _Table("regression", ("lipophilicity",), "exp"),
    "bbbp": _Table("classification", ("bbbp",), "p_np"),
    "bace": _Table("classification", ("bace",), "Class"),
    "clintox": _Table("classification", ("clintox",), 2),
    "tox21": _Table("classification", ("tox21",), 12),
    "sider": _Table("classification", ("sider",), 27),
    "hiv": _Table("classification", ("hiv",), "HIV_active"),
    "muv": _Table("classification", ("muv",), 17),
    "toxcast": _Table("classification", ("toxcast_data", "toxcast"), 617),
    "pcba": _Table("classification", ("pcba",), 128),
}

SMILES = ("smiles", "mol")  # bace.csv says mol

NUMBERS = ("mol_id",)  # of a molecule, beside many labels


def moleculenet(folder: Path) -> Found:
    """MoleculeNet's tables of measured labels, csv or csv.gz, named as DeepChem names them or for the data set (esol.csv).

    The sets of quantum chemistry and of protein complexes are none of molecules alone: their labels belong to a geometry.
    Wu et al., Chemical Science 2018; columns as in ``deepchem.molnet.load_function``.
    """
    there = {path.name.lower().removesuffix(".gz"): path for path in folder.iterdir()}
    found: list[tuple[str, Path, Task]] = []
    absent = []
    for name, table in MOLECULENET.items():
        path = next((there[f"{each}.csv"] for each in table.files if f"{each}.csv" in there), None)
        if path is None:
            absent.append(" or ".join(f"{each}.csv" for each in table.files))
        else:
            found.append((name, path, _molecules(path, table)))
    return found, absent


def _molecules(path: Path, table: _Table) -> MoleculeTask:
    columns = _columns(path)
    smiles = next((each for each in SMILES if each in columns), SMILES[0])
    if isinstance(table.labels, str):
        expected, wanted = f"column {table.labels!r}", table.labels.replace(" ", "_")
        targets = [each for each in columns if each.replace(" ", "_") == wanted]
        fits = len(targets) == 1
    else:
        expected = f"{table.labels} columns of labels beside {smiles}"
        targets = [each for each in columns if each not in (smiles, *NUMBERS)]
        fits = len(targets) == table.labels
    if not fits:
        shown = ", ".join(columns[:20]) or "none, or it has no rows"
        raise ConfigError(
            f"{path}: expected MoleculeNet's {expected}; its {len(columns)} columns are: {shown}. Move it away, or name it "
            "under probe.tasks as a distill.evaluation.tasks.MoleculeTask"
        )
    return MoleculeTask(path, table.kind, targets, smiles)


def _columns(path: Path) -> list[str]:
    """The columns of a table's first row; none when it has no rows."""
    return list(next(iter(read_table(path, [])), {}))


ADMET: dict[Kind, str] = {
    "regression": "caco2_wang lipophilicity_astrazeneca solubility_aqsoldb ppbr_az vdss_lombardo half_life_obach "
    "clearance_microsome_az clearance_hepatocyte_az ld50_zhu",
    "classification": "hia_hou pgp_broccatelli bioavailability_ma bbb_martins cyp2d6_veith cyp3a4_veith cyp2c9_veith "
    "cyp2d6_substrate_carbonmangels cyp3a4_substrate_carbonmangels cyp2c9_substrate_carbonmangels herg ames dili",
}


def tdc_admet(folder: Path) -> Found:
    """The 22 data sets of TDC's ADMET group, a folder each as :class:`AdmetTask` reads it, perhaps in ``admet_group``."""
    root = folder / "admet_group" if (folder / "admet_group").is_dir() else folder
    found: list[tuple[str, Path, Task]] = []
    absent = []
    for kind, names in ADMET.items():
        for name in names.split():
            if all((root / name / file).is_file() for file in AdmetTask.files.values()):
                found.append((name, root / name, AdmetTask(root / name, kind)))
            else:
                absent.append(name)
    return found, absent


ARCHIVE = re.compile(r"\.(zip|tgz|tar(\.\w+)?)$", re.IGNORECASE)

IDX = re.compile(r"(.*?)[-_]?(?:(train)|(t10k|test))?-?images-idx3-ubyte(?:\.gz)?")


def vision_transfer(folder: Path) -> Found:
    """Every sub-folder, zip and tar with images in class folders, and every pair of IDX files, by a linear and a kNN probe.

    IDX files may lie in the folder, in a sub-folder, or in ``SUB-FOLDER/raw`` as torchvision keeps them.
    """
    found: list[tuple[str, Path, Task]] = []
    absent = []
    idx = _idx_files(folder)
    for name, files in idx.items():
        first = next(iter(files.values()))
        found.append((name, first, IdxTask(files if len(files) > 1 else {"": first}, [SoftmaxProbe(), KnnProbe()])))
    taken = {parent for files in idx.values() for path in files.values() for parent in path.parents}
    for path in sorted(folder.iterdir()):
        if path in taken or not (path.is_dir() or ARCHIVE.search(path.name)):
            continue
        if in_class_folders(path):
            found.append((ARCHIVE.sub("", path.name), path, ImageTask(path, probes=[SoftmaxProbe(), KnnProbe()])))
        else:
            absent.append(f"images in class folders in {path.name}")
    return found, absent


def _idx_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Name of a data set -> its parts, train and test, -> file of images."""
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(each for place in ("", "*/", "*/raw/") for each in folder.glob(f"{place}*images-idx3-ubyte*")):
        if match := IDX.fullmatch(path.name):
            home = path.parent.parent if path.parent.name == "raw" else path.parent
            files.setdefault(match[1] or home.name, {})["train" if match[2] else "test"] = path
    return files


def text_folder(folder: Path) -> Found:
    """Every csv, jsonl and parquet file with columns text, label; text1, text2, score; or text1, text2, label (0 or 1)."""
    found: list[tuple[str, Path, Task]] = []
    absent = []
    for path in sorted(each for each in folder.iterdir() if each.is_file() and kind_of(each) in TABLES.split(", ")):
        columns = set(_columns(path))
        name = path.name.removesuffix(".gz").removesuffix(kind_of(path))
        if {"text", "label"} <= columns:
            found.append((name, path, TextTask(path)))
        elif {"text1", "text2", "score"} <= columns:
            found.append((name, path, TextPairTask(path)))
        elif {"text1", "text2", "label"} <= columns:
            found.append((name, path, TextPairTask(path, "label", "pairs")))
        else:
            absent.append(f"such columns in {path.name}")
    return found, absent


SUITES: dict[str, tuple[Callable[[Path], Found], str]] = {
    "moleculenet": (moleculenet, "MoleculeNet's tables"),
    "tdc-admet": (tdc_admet, "NAME/train_val.csv and NAME/test.csv of TDC's admet_group"),
    "vision-transfer": (vision_transfer, "folders, zips or tars of CLASS/IMAGE or train/CLASS/IMAGE, and for IDX files"),
    "text-folder": (text_folder, f"{TABLES} with columns text, label; text1, text2, score; or text1, text2, label"),
}
