"""A task's items in the cache: which columns they have, and the embeddings that every system makes of them."""

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cache_tools import TASKS, CacheError, Column, ConfigError, Settings, Teacher, add_columns, build_like, rebuild
from distill.data.columns import CorpusColumns
from distill.evaluation.baselines import BESIDE, PARTS, embed, fingerprints, other_student, principal, with_parts
from distill.evaluation.costs import cost_of_student, cost_of_teacher
from distill.evaluation.seen import corpus_hashes
from distill.evaluation.tasks.base import Array, Key, Task, distinct
from distill.records import SYSTEMS, Cost, Kind, System, prefix
from distill.students.base import Student

IN_PROCESS = 2000  # items of all tasks: the start of further processes would take longer

log = logging.getLogger(__name__)


Students = Mapping[System, Student]  # the trained student, perhaps also what it was before distillation

Reduction = Callable[[Array], Array]  # (rows, dims of all teachers) -> (rows, dim)


class Embedded(NamedTuple):
    """What can be probed of a task: a row for each key that every system can read."""

    keys: list[Key]
    labels: Array  # (rows, labels)
    systems: dict[str, tuple[Kind, Array]]  # (rows, dim), of pairs (rows, 2, dim)
    split: list[Key]  # all that a student can read, whoever else is probed: splits are made of these
    places: Array  # of ``keys`` in ``split``
    marks: Mapping[str, Array] = {}  # name -> whether a row of ``keys`` has it, (rows,)


@dataclass(frozen=True)
class Prepared:
    """One task, its items embedded by everything but the run's students.

    Args:
        task: the labels.
        folder: of its items, with columns of the same producers as the corpus.
        input: the column that the students read.
        teachers: columns to probe.
        others: fingerprints and other students, name -> columns.
        corpora: those of its modality.
        seen: items that also stand in one of them.
        trust_remote_code: as for :func:`prepare`.
    """

    task: Task
    folder: Path
    input: str
    teachers: list[str]
    others: dict[str, list[str]]
    corpora: Sequence[CorpusColumns]
    seen: set[str]
    trust_remote_code: bool

    def column(self, name: str, kind: str = "teachers") -> Column:
        """One of its columns."""
        return Column(self.folder / kind / name)

    def reduction(self, dim: int) -> Reduction | None:
        """To the teachers' principal components, learnt from a corpus that all of them embedded; None without one."""
        complete = (corpus for corpus in self.corpora if self.teachers and set(self.teachers) <= corpus.teachers.keys())
        corpus = next(complete, None)
        return principal([corpus.teachers[name] for name in self.teachers], dim) if corpus else None

    def embed(
        self,
        systems: Sequence[System],
        students: Students,
        reduce: Reduction | None,
        device: str,
        dims: Sequence[int] = (),
    ) -> Embedded:
        """Every system's embeddings.

        Args:
            systems: what to compare.
            students: those of the run.
            reduce: to the teachers' principal components.
            device: where students run.
            dims: lengths of the prefixes of the student's embedding that are systems of their own.

        Raises:
            CacheError: when not one row can be embedded.
            ConfigError: when an embedding is not finite.
        """
        inputs = self.column(self.input, "inputs")
        teachers = {name: self.column(name) for name in self.teachers}
        others = {name: [self.column(column) for column in columns] for name, columns in self.others.items()}
        columns = inputs, *teachers.values(), *chain.from_iterable(others.values())
        valid = torch.stack([column.valid(torch.arange(len(inputs))) for column in columns])
        keys, labels = self.task.load()
        position = {item: row for row, item in enumerate(distinct(keys))}
        rows = torch.tensor([position[key] if isinstance(key, str) else [position[item] for item in key] for key in keys])
        readable, kept = (mask[rows].reshape(len(keys), -1).all(1) for mask in (valid[0], valid.all(0)))
        if not kept.any():
            raise CacheError(f"task {self.folder}: not one row can be embedded, see skipped.csv there")
        wanted, rows = torch.unique(rows[kept], return_inverse=True)  # an item that stands in many pairs is embedded once
        own = {kind: student for kind, student in students.items() if kind in with_parts(systems)}
        embedded = embed([*own.values()], inputs, wanted, device)
        found: dict[str, tuple[Kind, Array]] = {kind: (kind, x) for kind, x in zip(own, embedded, strict=True)}
        if "prefixes" in systems and "student" in found:
            found |= {prefix(dim): ("prefixes", found["student"][1][:, :dim]) for dim in dims}
        dense = {name: np.asarray(column.rows(wanted).float()) for name, column in teachers.items()}
        together = np.concatenate(list(dense.values()), 1) if dense else np.empty((len(wanted), 0))
        if "concatenated" in systems and dense:
            found["concatenated"] = "concatenated", together
        if "pca" in systems and dense and reduce:
            found["pca"] = "pca", reduce(together)
        if "teachers" in systems:
            found |= {name: ("teachers", x) for name, x in dense.items()}
        for name, parts in others.items():
            x = np.concatenate([np.asarray(column.rows(wanted).float()) for column in parts], 1)
            found[name] = name if name in SYSTEMS else "other", x
        if BESIDE in systems and {*PARTS} <= found.keys():
            found[BESIDE] = BESIDE, np.concatenate([found[name][1] for name in PARTS], 1)
        if broken := [name for name, (_, x) in found.items() if not np.isfinite(x).all()]:
            raise ConfigError(f"{self.folder}: the embedding of {broken[0]} has a NaN or an infinity, it cannot be probed")
        chosen = {name: (kind, x[rows.numpy()]) for name, (kind, x) in found.items() if kind in (*systems, "other")}
        mine, split = ([keys[row] for row in mask.nonzero().squeeze(1).tolist()] for mask in (kept, readable))
        marks = {name: marked[kept.numpy()] for name, marked in self.task.marks().items()}
        return Embedded(mine, labels[kept.numpy()], chosen, split, np.flatnonzero(kept[readable].numpy()), marks)

    def costs(
        self, systems: Sequence[System], students: Students, device: str, dims: Sequence[int] = ()
    ) -> dict[str, Cost]:
        """What every system needs, its speed measured on this task's items; ``dims`` as of :meth:`embed`."""
        measure = partial(cost_of_teacher, device=device, trust_remote_code=self.trust_remote_code)
        teachers = {name: measure(self.column(name)) for name in self.teachers}
        costs: dict[str, Cost] = dict(teachers) if "teachers" in systems else {}
        if teachers:
            together = costs["concatenated"] = Cost.of_all(list(teachers.values()))
            costs["pca"] = replace(together, dim=min(together.dim, width_of(students)))
        own = {kind: student for kind, student in students.items() if kind in with_parts(systems)}
        inputs = self.column(self.input, "inputs")
        networks = {type(student): student for student in own.values()}  # one network, whatever its weights
        of = {name: cost_of_student(student, self.folder, inputs, device) for name, student in networks.items()}
        costs |= {kind: of[type(student)] for kind, student in own.items()}
        if "prefixes" in systems and "student" in costs:
            costs |= {prefix(dim): replace(costs["student"], dim=dim) for dim in dims}
        for name, columns in self.others.items():
            costs[name] = Cost.of_all([measure(self.column(column)) for column in columns])
        if BESIDE in systems and {*PARTS} <= costs.keys():
            costs[BESIDE] = Cost.of_all([costs[name] for name in PARTS])
        return {name: cost for name, cost in costs.items() if name not in SYSTEMS or name in systems}


def prepare(
    tasks: Mapping[str, Task],
    corpora: Sequence[CorpusColumns],
    systems: Sequence[System],
    students: Mapping[str, Path],
    settings: Settings | None,
    trust_remote_code: bool,
    cache: Path | None = None,
) -> dict[str, Prepared]:
    """Embed the items of tasks of one modality with the producers of a corpus's columns; finished columns are kept.

    Args:
        tasks: name -> task.
        corpora: those of the run with this modality; the first one lends its input column and its folder.
        systems: what will be probed.
        students: other students, name -> export.
        settings: how to run the teachers.
        trust_remote_code: the present command lets teachers run Python code that comes with their models.
        cache: a folder for the tasks' columns; beside the corpus when not given.

    Raises:
        CorpusError: when a task's file or column is missing.
        CacheError: when a teacher's manifest asks for such code, and the command does not allow it; when the tasks' columns
            cannot be written.
    """
    inputs, modality = corpora[0].inputs, corpora[0].corpus.modality
    probed = {"teachers", "concatenated", "pca"} & set(systems)
    columns = {name: column for corpus in reversed(corpora) for name, column in corpus.teachers.items() if probed}
    live = {
        name
        for name, column in columns.items()
        if rebuild(column.manifest["producer"], Teacher, column.path, trust_remote_code=trust_remote_code).live
    }
    copied = [column.path for column in (*(columns[name] for name in columns if name in live), inputs)]
    place = cache / corpora[0].corpus.fingerprint[:16] if cache else None
    parent = place or inputs.path.parents[1] / TASKS
    items = sum(len(distinct(task.load()[0])) for task in tasks.values())
    running = settings or Settings(workers=1 if items <= IN_PROCESS else 0)
    with _writing_to(parent):
        listed = [task.corpus(name) for name, task in tasks.items()]
        built = build_like(copied, parent, listed, running, trust_remote_code=trust_remote_code)
    folders = dict(zip(tasks, built, strict=True))
    names = dict.fromkeys(name for corpus in corpora for name in corpus.teachers if name in columns)
    teachers = [name for name in names if name in live or _imported(name, folders)]
    others = {name: other_student(place, modality) for name, place in students.items()}
    producers = {name: [other] for name, other in others.items() if other}
    if unread := sorted(others.keys() - producers.keys()):
        log.warning("student %s reads no %ss: it is left out of their tasks", ", ".join(unread), modality)
    if "fingerprints" in with_parts(systems) and (named := fingerprints(corpora)):
        producers["fingerprints"] = named
    for column, producer in chain.from_iterable(producers.values()):
        with _writing_to(parent):
            add_columns(folders.values(), column, producer, running)
    corpus_items = np.concatenate([corpus_hashes(corpus.columns.corpus, place) for corpus in corpora])
    prepared = {}
    for name, task in tasks.items():
        stands = np.isin(corpus_hashes(folders[name]), corpus_items).tolist()
        seen = {item for item, stood in zip(distinct(task.load()[0]), stands, strict=True) if stood}
        read = {system: [column for column, _ in named] for system, named in producers.items()}
        prepared[name] = Prepared(task, folders[name], inputs.name, teachers, read, corpora, seen, trust_remote_code)
    return prepared


def width_of(students: Students) -> int:
    """How wide the embedding of a run's student is; 0 without one."""
    return max((student.dim for kind, student in students.items() if kind != "tokens"), default=0)


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Say which key names another folder, when the tasks' columns cannot be written to ``folder``.

    Raises:
        CacheError: then.
    """
    try:
        yield
    except (OSError, CacheError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        code: int | None = getattr(cause, "errno", None)
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if code not in (errno.EROFS, errno.EACCES, errno.EPERM) or os.access(above, os.W_OK):
            raise
        raise CacheError(
            f"{folder}: the embeddings of the tasks' items are kept here, but the folder cannot be written to "
            f"({os.strerror(code)}): name another one with --probe.cache FOLDER"
        ) from None


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
