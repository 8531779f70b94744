"""A task's items in the cache: which columns they have, and what every system makes of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cache_tools import TASKS, CacheError, Column, ConfigError, Settings, build_like, finish
from distill.data.columns import CorpusColumns
from distill.evaluation.baselines import add_column, embed, is_live, other_student, principal
from distill.evaluation.costs import cost_of_student, cost_of_teacher
from distill.evaluation.seen import corpus_hashes
from distill.evaluation.tasks.base import Array, Key, Task, distinct
from distill.records import Cost, Kind, System
from distill.students.base import Student

log = logging.getLogger(__name__)


Students = Mapping[System, Student]  # the trained student, perhaps also as it is untrained, and as it began

Reduction = Callable[[Array], Array]  # (rows, dims of all teachers) -> (rows, dim)


class Embedded(NamedTuple):
    """What can be probed of a task: a row for each key that every system can read."""

    keys: list[Key]
    labels: Array  # (rows, labels)
    systems: dict[str, tuple[Kind, Array]]  # (rows, dim), of pairs (rows, 2, dim)
    split: list[Key]  # what splits are made of: all that a student can read, whoever else is probed
    places: Array  # of those keys in it


@dataclass(frozen=True)
class Prepared:
    """One task, its items embedded by everything but the run's students.

    Args:
        task: the labels.
        folder: of its items, with columns of the same producers as the corpus.
        input: the column that the students read.
        teachers: columns to probe.
        others: students from elsewhere, name -> column.
        parts: the corpora of its modality.
        seen: items that also stand in one of them.
    """

    task: Task
    folder: Path
    input: str
    teachers: list[str]
    others: dict[str, str]
    parts: Sequence[CorpusColumns]
    seen: set[str]

    def column(self, name: str, kind: str = "teachers") -> Column:
        """One of its columns."""
        return Column(self.folder / kind / name)

    def reduction(self, dim: int) -> Reduction | None:
        """To the teachers' principal components, learnt from a corpus that all of them embedded; None without one."""
        part = next((each for each in self.parts if self.teachers and set(self.teachers) <= each.teachers.keys()), None)
        return principal([part.teachers[each] for each in self.teachers], dim) if part else None

    def embed(self, systems: Sequence[System], students: Students, reduce: Reduction | None, device: str) -> Embedded:
        """Every system's embeddings.

        Raises:
            CacheError: when not one row can be embedded.
            ConfigError: when an embedding is not finite.
        """
        inputs = self.column(self.input, "inputs")
        teachers = {each: self.column(each) for each in self.teachers}
        others = {each: self.column(column) for each, column in self.others.items()}
        read = inputs, *teachers.values(), *others.values()
        valid = torch.stack([each.valid(torch.arange(len(inputs))) for each in read])
        keys, labels = self.task.load()
        position = {item: row for row, item in enumerate(distinct(keys))}
        rows = torch.tensor([position[key] if isinstance(key, str) else [position[each] for each in key] for key in keys])
        readable, kept = (each[rows].reshape(len(keys), -1).all(1) for each in (valid[0], valid.all(0)))
        if not kept.any():
            raise CacheError(f"task {self.folder}: not one row can be embedded, see skipped.csv there")
        wanted, rows = torch.unique(rows[kept], return_inverse=True)  # an item that stands in many pairs is embedded once
        out: dict[str, tuple[Kind, Array]] = {
            kind: (kind, embed(student, inputs, wanted, device)) for kind, student in students.items() if kind in systems
        }
        dense = {each: np.asarray(column.rows(wanted).float()) for each, column in teachers.items()}
        together = np.concatenate(list(dense.values()), 1) if dense else np.empty((len(wanted), 0))
        if "concatenated" in systems and dense:
            out["concatenated"] = "concatenated", together
        if "pca" in systems and dense and reduce:
            out["pca"] = "pca", reduce(together)
        if "teachers" in systems:
            out |= {each: ("teachers", x) for each, x in dense.items()}
        out |= {each: ("other", np.asarray(column.rows(wanted).float())) for each, column in others.items()}
        if broken := [each for each, (_, x) in out.items() if not np.isfinite(x).all()]:
            raise ConfigError(f"{self.folder}: the embedding of {broken[0]} has a NaN or an infinity, it cannot be probed")
        chosen = {each: (kind, x[rows.numpy()]) for each, (kind, x) in out.items()}
        mine, split = ([keys[row] for row in each.nonzero().squeeze(1).tolist()] for each in (kept, readable))
        return Embedded(mine, labels[kept.numpy()], chosen, split, np.flatnonzero(kept[readable].numpy()))

    def costs(self, systems: Sequence[System], students: Students, device: str) -> dict[str, Cost]:
        """What every system needs, its speed taken on this task's items."""
        teachers = {each: cost_of_teacher(self.column(each), device) for each in self.teachers}
        out = dict(teachers) if "teachers" in systems else {}
        if teachers:
            every, width = list(teachers.values()), max((each.dim for each in students.values()), default=0)
            wide = sum(each.dim for each in every)
            dims: dict[System, int] = {"concatenated": wide, "pca": min(wide, width)}
            out |= {kind: Cost.of_all(dim, every) for kind, dim in dims.items() if kind in systems}
        student: Cost | None = None  # one network, whatever its weights
        for kind in [each for each in students if each in systems]:
            inputs = self.column(self.input, "inputs")
            out[kind] = student = student or cost_of_student(students[kind], self.folder, inputs, device)
        return out | {each: cost_of_teacher(self.column(column), device) for each, column in self.others.items()}


def prepare(
    tasks: Mapping[str, Task],
    parts: Sequence[CorpusColumns],
    systems: Sequence[System],
    students: Mapping[str, Path],
    settings: Settings | None,
) -> dict[str, Prepared]:
    """Embed every task's items with the same producers as a corpus's; what is there already is not made again.

    Args:
        tasks: name -> task.
        parts: the corpora of the run with their columns; a task belongs to the first one of its modality.
        systems: what will be probed.
        students: from elsewhere: name -> export or checkpoint.
        settings: how to run the teachers.

    Raises:
        ConfigError: when a task's modality is not among the corpora.
        CorpusError: when a task's file or column is missing.
    """
    out: dict[str, Prepared] = {}
    for modality in dict.fromkeys(task.modality for task in tasks.values()):
        named = {name: task for name, task in tasks.items() if task.modality == modality}
        fitting = [part for part in parts if part.corpus.modality == modality]
        if not fitting:
            raise ConfigError(f"task {next(iter(named))} has {modality}s, the run has no corpus of them: leave it out")
        out |= _of_modality(named, fitting, systems, students, settings)
    return out


def _of_modality(
    tasks: Mapping[str, Task],
    parts: Sequence[CorpusColumns],
    systems: Sequence[System],
    students: Mapping[str, Path],
    settings: Settings | None,
) -> dict[str, Prepared]:
    modality, inputs = parts[0].corpus.modality, parts[0].inputs
    probed = {"teachers", "concatenated", "pca"} & set(systems)
    columns = {name: column for part in reversed(parts) for name, column in part.teachers.items() if probed}
    live = {name: column for name, column in columns.items() if is_live(column)}
    parent = inputs.path.parents[1] / TASKS
    paths = [column.path for column in (*live.values(), inputs)]
    folders = {name: build_like(paths, parent, task.corpus(name), settings) for name, task in tasks.items()}
    teachers = [
        name for part in parts for name in part.teachers if name in columns and (name in live or _imported(name, folders))
    ]
    found = {name: other_student(place, modality) for name, place in students.items()}
    others = {name: each for name, each in found.items() if each}
    if unread := sorted(found.keys() - others.keys()):
        log.warning("student %s reads no %ss: it is left out of their tasks", ", ".join(unread), modality)
    finish([add_column(folder, *each, settings) for folder in folders.values() for each in others.values()])
    known = np.concatenate([corpus_hashes(part.columns.corpus) for part in parts])
    out = {}
    for name, task in tasks.items():
        stands = np.isin(corpus_hashes(folders[name]), known).tolist()
        seen = {item for item, stood in zip(distinct(task.load()[0]), stands, strict=True) if stood}
        read = {other: column for other, (column, _) in others.items()}
        out[name] = Prepared(task, folders[name], inputs.name, list(dict.fromkeys(teachers)), read, parts, seen)
    return out


def _imported(teacher: str, folders: Mapping[str, Path]) -> bool:
    """Whether every task has a column of a teacher that cannot embed by itself."""
    lacking = [folder for folder in folders.values() if not (folder / "teachers" / teacher).is_dir()]
    if lacking:
        log.warning(
            "teacher %s was imported and is left out of the probes: it cannot embed the items of %d tasks. Import its "
            "embeddings of them: distill-cache import --corpus %s --name %s --embeddings FILE --key item",
            *(teacher, len(lacking), lacking[0], teacher),
        )
    return not lacking
