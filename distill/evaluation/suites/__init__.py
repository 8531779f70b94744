"""Suites: many tasks by one name, found in a folder that is laid out as the field lays it out.

A suite of fixed data sets is a YAML file beside this module; the layouts that are searched for any data set are functions.
"""

import importlib
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from cache_tools import ConfigError
from distill.evaluation.suites.layouts import LAYOUTS, Finding
from distill.evaluation.tasks.base import Task
from distill.evaluation.tasks.tables import header

log = logging.getLogger(__name__)


def suite(name: str, folder: Path) -> dict[str, Task]:
    """The tasks of a suite whose files are in a folder; one warning names those whose files are missing.

    Args:
        name: ``moleculenet``, ``biogen`` or ``tdc-admet``, listed in the YAML file of that name; ``moleculeace``,
            ``vision-transfer`` or ``text-folder``, functions of :mod:`distill.evaluation.suites.layouts`.
        folder: where the files are.

    Returns:
        Task by name.

    Raises:
        ConfigError: when there is no such suite or folder, the folder holds no task of it, or two tasks share a name.
        CorpusError: when a file is damaged.
    """
    listings = [path.stem for path in sorted(Path(__file__).parent.glob("*.yaml"))]
    if name not in (*listings, *LAYOUTS):
        raise ConfigError(f"no suite {name!r}; there are: {', '.join([*listings, *LAYOUTS])}")
    if not folder.is_dir():
        raise ConfigError(f"suite {name}: no folder {folder.absolute()}: check the path")
    find, looked_for = LAYOUTS[name] if name in LAYOUTS else (partial(listed, listing(name)), listing(name)["looks_for"])
    tasks: dict[str, Task] = {}
    absent: list[str] = []
    for finding in find(folder):
        if isinstance(finding, str):
            absent.append(finding)
        elif finding.name in tasks:
            raise ConfigError(
                f"suite {name}: {finding.place} is a second task called {finding.name}: rename it or move it away"
            )
        else:
            tasks[finding.name] = finding.task
    if not tasks:
        missing = f" (not there: {'; '.join(absent)})" if absent else ""
        raise ConfigError(f"suite {name}: no task in {folder.absolute()}; looked for {looked_for}{missing}")
    if absent:
        count = len(tasks) + len(absent)
        log.warning("suite %s: %d of %d tasks in %s; left out: %s", name, len(tasks), count, folder, "; ".join(absent))
    return tasks


def listing(name: str) -> dict[str, Any]:
    """The YAML file of a suite.

    >>> listing("moleculenet")["tasks"]["tox21"]
    {'kind': 'classification', 'files': ['tox21.csv'], 'labels': 12}
    """
    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text())
    return content


def listed(suite: Mapping[str, Any], folder: Path) -> Iterator[Finding | str]:
    """The tasks that a suite's YAML file lists: those whose files are in ``folder``, and the files of the others in words.

    Args:
        suite: ``class_path`` of the tasks; ``tasks``: name -> ``kind``, ``files`` (the names that the file may have; by
            default the task's own), and ``labels`` (names that their column may have, or how many columns there are).
            Optional for all tasks: ``folder``, in which everything may lie; ``contains``, the files of a task that is a
            folder; ``smiles``, names that the column of molecules may have; ``ignored``, columns that are neither.
        folder: where the files are; case and a ``.gz`` in their names do not matter.

    Raises:
        ConfigError: when a table has not the columns of its data set.
    """
    module, _, name = suite["class_path"].rpartition(".")
    task_class = getattr(importlib.import_module(module), name)
    inner = folder / suite.get("folder", "")
    there = {path.name.lower().removesuffix(".gz"): path for path in (inner if inner.is_dir() else folder).iterdir()}
    for title, spec in suite["tasks"].items():
        files = spec.get("files", [title])
        path = next((there[file] for file in files if file in there), None)
        if path is None or not all((path / file).is_file() for file in suite.get("contains", [])):
            yield " or ".join(files)
        else:
            columns = _columns(path, spec["labels"], suite) if "labels" in spec else {}
            yield Finding(title, path, task_class(path, spec["kind"], **columns))


def _columns(path: Path, labels: list[str] | int, suite: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a table that are labels, and the one of SMILES, as arguments of a task."""
    columns, names = header(path), suite["smiles"]
    smiles = next((name for name in names if name in columns), names[0])
    if isinstance(labels, list):
        expected = f"column {' or '.join(map(repr, labels))}"
        targets = [column for column in columns if column in labels]
    else:
        expected = f"{labels} columns of labels beside {smiles}"
        targets = [column for column in columns if column not in (smiles, *suite["ignored"])]
    if len(targets) != (1 if isinstance(labels, list) else labels):
        shown = ", ".join(columns[:20]) or "none, or it has no rows"
        raise ConfigError(
            f"{path}: expected {suite['publisher']}'s {expected}; its {len(columns)} columns are: {shown}. Move it away, "
            f"or name it under probe.tasks as a {suite['class_path']}"
        )
    return {"targets": targets, "smiles": smiles}
