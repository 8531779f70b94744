"""Probe a student on tasks that it never saw, beside its teachers, all of them concatenated, and its untrained self."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import track

from cache_tools.build import build_like
from cache_tools.errors import CacheError, ConfigError
from cache_tools.producer import rebuild
from cache_tools.reader import Column
from cache_tools.run import TASKS, Settings
from cache_tools.teacher import Teacher
from distill.probes import PROBES
from distill.student import Student
from distill.tasks import Array, Task

log = logging.getLogger(__name__)

System = Literal["student", "untrained", "teachers", "concatenated"]


@dataclass(frozen=True)
class Record:
    """One score: a system on a task, one split and seed, averaged over the task's labels."""

    system: str
    kind: System
    task: str
    provenance: str
    split: str
    seed: int
    metric: str
    score: float
    test_rows: int


class Evaluation:
    """The protocol: which tasks, splits, seeds and systems.

    Args:
        tasks: name -> task.
        splits: kinds of split that the tasks offer, for molecules ``random`` and ``scaffold``.
        seeds: one split each.
        systems: what to compare.
    """

    def __init__(
        self,
        tasks: dict[str, Task] | None = None,
        splits: list[str] | None = None,
        seeds: list[int] | None = None,
        systems: list[System] | None = None,
    ):
        self.tasks, self.splits = tasks or {}, splits or ["random"]
        self.seeds = [0, 1, 2, 3, 4] if seeds is None else seeds
        self.systems = systems or ["student", "untrained", "teachers", "concatenated"]

    def prepare(self, inputs: Column, teachers: dict[str, Column], settings: Settings | None = None) -> None:
        """Embed every task's items with the same producers as the corpus's; what is there already is not made again.

        Args:
            inputs: the column of the corpus that the student reads.
            teachers: the columns that were distilled.
            settings: how to run the teachers.

        Raises:
            ConfigError: when there is no task.
            CorpusError: when a task's file or column is missing.
        """
        if taken := sorted({"student", "untrained", "concatenated"} & set(teachers)):
            raise ConfigError(
                f"a teacher is called {taken[0]}, which is the name of another system: give its column another"
            )
        if not self.tasks:
            raise ConfigError(
                "no task to probe: name some under probe.tasks in the configuration, as configs/mol.yaml does"
            )
        live = {name: column for name, column in teachers.items() if is_live(column)}
        columns = [column.path for column in (*live.values(), inputs)]
        parent = inputs.path.parents[1] / TASKS
        self.folders = {name: build_like(columns, parent, task.corpus(name), settings) for name, task in self.tasks.items()}
        self.teachers = [name for name in teachers if name in live or self._imported(name)]

    def _imported(self, teacher: str) -> bool:
        """Whether every task has a column of a teacher that cannot embed by itself."""
        lacking = [folder for folder in self.folders.values() if not (folder / "teachers" / teacher).is_dir()]
        if lacking:
            log.warning(
                "teacher %s was imported and is left out of the probes: it cannot embed the items of %d tasks. Import its "
                "embeddings of them: distill-cache import --corpus %s --name %s --embeddings FILE --key item",
                *(teacher, len(lacking), lacking[0], teacher),
            )
        return not lacking

    def run(self, students: dict[System, Student], device: str) -> list[Record]:
        """Probe every system on every task; :meth:`prepare` comes first.

        Args:
            students: the trained student, and optionally the ``untrained`` one.
            device: where the students run.

        Returns:
            A record per system, task, split and seed.
        """
        work = [(name, split, seed) for name in self.tasks for split in self.splits for seed in self.seeds]
        embedded = {name: self._embed(name, students, device) for name in self.tasks}
        records = [
            record
            for name, split, seed in track(work, "probing")
            for record in self._probe(name, split, seed, *embedded[name])
        ]
        if not records:
            raise ConfigError("no task could be scored: the test rows of every split are too few or of one class")
        return records

    def _embed(
        self, name: str, students: dict[System, Student], device: str
    ) -> tuple[list[str], Array, dict[str, tuple[System, Array]]]:
        """Items, labels and each system's embeddings of the task's rows that every system can read."""
        folder = self.folders[name]
        columns = {each: Column(folder / "teachers" / each) for each in self.teachers}
        inputs = Column(folder / "inputs" / students["student"].input)
        usable = torch.stack([each.valid(torch.arange(len(inputs))) for each in (inputs, *columns.values())]).all(0)
        items, labels = self.tasks[name].load()
        position = {item: row for row, item in enumerate(dict.fromkeys(items))}
        rows = torch.tensor([position[item] for item in items])
        kept = usable[rows].numpy()
        rows = rows[usable[rows]]
        if not len(rows):
            raise CacheError(f"task {name}: not one row can be embedded, see skipped.csv in {folder}")
        systems: dict[str, tuple[System, Array]] = {}
        for kind, student in students.items():
            if kind in self.systems:
                systems[kind] = kind, embed(student, inputs, rows, device)
        dense = {each: np.asarray(column.rows(rows).float()) for each, column in columns.items()}
        if "concatenated" in self.systems and dense:
            systems["concatenated"] = "concatenated", np.concatenate(list(dense.values()), 1)
        if "teachers" in self.systems:
            systems |= {each: ("teachers", x) for each, x in dense.items()}
        return [item for item, keep in zip(items, kept, strict=True) if keep], labels[kept], systems

    def _probe(
        self, name: str, split: str, seed: int, items: list[str], labels: Array, systems: dict[str, tuple[System, Array]]
    ) -> Iterator[Record]:
        task = self.tasks[name]
        train, valid, test = task.split(split, seed, items)
        if not min(len(train), len(valid), len(test)):
            log.warning("task %s, %s split, seed %d: a part of the split is empty, left out", name, split, seed)
            return
        for system, (kind, x) in systems.items():
            probe = PROBES[task.kind]()
            probe.fit(x[train], labels[train], x[valid], labels[valid])
            scores = probe.score(x[test], labels[test])[probe.metric]
            if np.isnan(scores).all():
                log.warning("task %s, %s split, seed %d: the test rows cannot be scored, left out", name, split, seed)
                return
            score = float(np.nanmean(scores))
            yield Record(system, kind, name, task.provenance, split, seed, probe.metric, score, len(test))


def is_live(column: Column) -> bool:
    """Whether the teacher of a column can embed items that it has never seen."""
    teacher = rebuild(column.manifest["producer"], Teacher)
    return isinstance(teacher, Teacher) and teacher.live


def embed(student: Student, inputs: Column, rows: torch.Tensor, device: str, batch: int = 512) -> Array:
    """The student's embeddings (rows, dim) of ``rows`` of an input column, in evaluation mode, float32."""
    student = student.to(device).eval()
    parts = []
    with torch.inference_mode():
        for chunk in rows.split(batch):
            moved = move(inputs.rows(chunk), device)
            parts.append(student(moved).float().cpu())
    return np.asarray(torch.cat(parts))


def move(inputs: Any, device: str) -> Any:
    """A student's input on another device."""
    from lightning.pytorch.utilities import move_data_to_device

    return move_data_to_device(inputs, torch.device(device))


def as_json(records: list[Record]) -> list[dict[str, Any]]:
    """Records as plain dictionaries."""
    return [asdict(record) for record in records]
