"""Layouts of folders in which tasks are found: images, MoleculeACE's tables, tables of texts.

A layout is a function from a folder to findings: a task with its name and place, or the words for a task that is missing.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cache_tools import TABLES, file_ending
from distill.evaluation.probes import KnnProbe, SoftmaxProbe
from distill.evaluation.tasks import MoleculeTask, TextPairTask, TextTask
from distill.evaluation.tasks.base import Task
from distill.evaluation.tasks.image import IdxTask, ImageTask, in_class_folders
from distill.evaluation.tasks.tables import header


class Finding(NamedTuple):
    """A task of a suite."""

    name: str
    place: Path
    task: Task


ARCHIVE = re.compile(r"\.(zip|tgz|tar(\.\w+)?)$", re.IGNORECASE)

IDX = re.compile(r"(.*?)[-_]?(?:(train)|(t10k|test))?-?images-idx3-ubyte(?:\.gz)?")


def vision_transfer(folder: Path) -> Iterator[Finding | str]:
    """Every sub-folder, zip and tar with images in class folders, and every pair of IDX files, by a linear and a kNN probe.

    IDX files may lie in the folder, in a sub-folder, or in ``SUB-FOLDER/raw`` as torchvision keeps them.
    """
    idx = _idx_files(folder)
    for name, files in idx.items():
        first = next(iter(files.values()))
        yield Finding(name, first, IdxTask(files if len(files) > 1 else {"": first}, [SoftmaxProbe(), KnnProbe()]))
    taken = {parent for files in idx.values() for path in files.values() for parent in path.parents}
    for path in sorted(folder.iterdir()):
        if path in taken or not (path.is_dir() or ARCHIVE.search(path.name)):
            continue
        if in_class_folders(path):
            yield Finding(ARCHIVE.sub("", path.name), path, ImageTask(path, probes=[SoftmaxProbe(), KnnProbe()]))
        else:
            yield f"images in class folders in {path.name}"


def _idx_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Name of a data set -> its parts, train and test, -> file of images."""
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(path for place in ("", "*/", "*/raw/") for path in folder.glob(f"{place}*images-idx3-ubyte*")):
        if match := IDX.fullmatch(path.name):
            home = path.parent.parent if path.parent.name == "raw" else path.parent
            files.setdefault(match[1] or home.name, {})["train" if match[2] else "test"] = path
    return files


def text_folder(folder: Path) -> Iterator[Finding | str]:
    """Every csv, jsonl and parquet file with columns text, label; text1, text2, score; or text1, text2, label (0 or 1)."""
    for name, path in _tables(folder):
        columns = set(header(path))
        if {"text", "label"} <= columns:
            yield Finding(name, path, TextTask(path))
        elif {"text1", "text2", "score"} <= columns:
            yield Finding(name, path, TextPairTask(path))
        elif {"text1", "text2", "label"} <= columns:
            yield Finding(name, path, TextPairTask(path, "label", "pairs"))
        else:
            yield f"such columns in {path.name}"


def molecule_ace(folder: Path) -> Iterator[Finding | str]:
    """Every table with MoleculeACE's columns: smiles, split, cliff_mol (or cliff), and y (or one more column of values).

    Such a task has its own split, and a score of the test rows on activity cliffs beside the score of all test rows: van
    Tilborg et al., J. Chem. Inf. Model. 2022. Other tables may lie in the same folder.
    """
    for name, path in _tables(folder):
        columns = header(path)
        marks = [column for column in ("cliff_mol", "cliff") if column in columns]
        values = ["y"] if "y" in columns else [column for column in columns if column not in ("smiles", "split", *marks)]
        if len(marks) == len(values) == 1 and {"smiles", "split"} <= set(columns):
            yield Finding(name, path, MoleculeTask(path, "regression", values, split="split", mark=marks))


def _tables(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every table in a folder."""
    for path in sorted(path for path in folder.iterdir() if path.is_file() and file_ending(path) in TABLES.split(", ")):
        yield path.name.removesuffix(".gz").removesuffix(file_ending(path)), path


LAYOUTS: dict[str, tuple[Callable[[Path], Iterator[Finding | str]], str]] = {  # name -> layout, and its files in words
    "moleculeace": (molecule_ace, f"{TABLES} with columns smiles, split, cliff_mol, y"),
    "vision-transfer": (vision_transfer, "folders, zips or tars of CLASS/IMAGE or train/CLASS/IMAGE, and for IDX files"),
    "text-folder": (text_folder, f"{TABLES} with columns text, label; text1, text2, score; or text1, text2, label"),
}
