"""Probe a student on tasks that it never saw, beside its teachers, all of them concatenated, and its untrained self."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import track

from cache_tools.build import build_like
from cache_tools.errors import CacheError, ConfigError
from cache_tools.producer import rebuild
from cache_tools.reader import Column
from cache_tools.run import TASKS, Settings
from cache_tools.seen import corpus_hashes
from cache_tools.teacher import Teacher
from distill.data import Part, featuriser_of
from distill.probes import PROBES, Probe
from distill.student import Student
from distill.tasks import Array, Key, Task, distinct

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
    seen_rows: int = 0  # test rows that also stand in the corpus, among test_rows or left out of them


class Evaluation:
    """The protocol: which tasks, splits, seeds and systems.

    Args:
        tasks: name -> task.
        splits: kinds of split; molecules offer ``random`` and ``scaffold``, texts and images ``own``, and ``5-shot`` or
            another number.
        seeds: one split each.
        systems: what to compare.
        every: also probe the student during a fit, every so many epochs, by the first split and seed; 0: never.
        during: the tasks of that; all of them when not given.
        exclude_seen: leave out test rows whose item also stands in the corpus (a pair: one of its items); they are counted
            in any case.

    Raises:
        ConfigError: when ``during`` names a task that is not there.
    """

    def __init__(
        self,
        tasks: dict[str, Task] | None = None,
        splits: list[str] | None = None,
        seeds: list[int] | None = None,
        systems: list[System] | None = None,
        every: int = 0,
        during: list[str] | None = None,
        exclude_seen: bool = False,
    ):
        self.tasks, self.splits = tasks or {}, splits or ["random"]
        self.seeds = [0, 1, 2, 3, 4] if seeds is None else seeds
        self.systems = systems or ["student", "untrained", "teachers", "concatenated"]
        self.exclude_seen = exclude_seen
        if every < 0:
            raise ConfigError(f"probe.every is {every}, expected epochs between two probes, or 0 for none")
        self.every, self.during = every, during or list(self.tasks)
        if unknown := sorted(set(self.during) - set(self.tasks)):
            raise ConfigError(f"probe.during names {unknown[0]}; probe.tasks has: {', '.join(self.tasks) or 'none'}")

    def prepare(self, parts: Sequence[Part], settings: Settings | None = None) -> None:
        """Embed every task's items with the same producers as a corpus's; what is there already is not made again.

        Args:
            parts: the corpora of the run with their columns; a task belongs to the first one of its modality.
            settings: how to run the teachers.

        Raises:
            ConfigError: when there is no task, or none of its modality among the corpora.
            CorpusError: when a task's file or column is missing.
        """
        teachers = {name for part in parts for name in part.teachers}
        if taken := sorted({"student", "untrained", "concatenated"} & teachers):
            raise ConfigError(
                f"a teacher is called {taken[0]}, which is the name of another system: give its column another"
            )
        if not self.tasks:
            raise ConfigError(
                "no task to probe: name some under probe.tasks in the configuration, as configs/mol.yaml does"
            )
        if idle := [split for split in self.splits if not any(task.offers(split) for task in self.tasks.values())]:
            raise ConfigError(f"probe.splits names {idle[0]}, which none of the tasks {', '.join(self.tasks)} offers")
        self.folders: dict[str, Path] = {}
        self.teachers: dict[str, list[str]] = {}
        self.inputs: dict[str, str] = {}
        self.seen: dict[str, set[str]] = {}
        for modality in dict.fromkeys(task.modality for task in self.tasks.values()):
            self._prepare(modality, [part for part in parts if part.corpus.modality == modality], settings)

    def _prepare(self, modality: str, parts: Sequence[Part], settings: Settings | None) -> None:
        tasks = {name: task for name, task in self.tasks.items() if task.modality == modality}
        if not parts:
            raise ConfigError(f"task {next(iter(tasks))} has {modality}s, the run has no corpus of them: leave it out")
        probed = {"teachers", "concatenated"} & set(self.systems)
        columns = {name: column for part in reversed(parts) for name, column in part.teachers.items() if probed}
        live = {name: column for name, column in columns.items() if is_live(column)}
        paths = [column.path for column in (*live.values(), parts[0].inputs)]
        parent = parts[0].inputs.path.parents[1] / TASKS
        folders = {name: build_like(paths, parent, task.corpus(name), settings) for name, task in tasks.items()}
        kept = [
            name
            for part in parts
            for name in part.teachers
            if name in live or (name in columns and self._imported(name, folders))
        ]
        known = np.concatenate([corpus_hashes(part.columns.corpus) for part in parts])
        for name, task in tasks.items():
            stands = np.isin(corpus_hashes(folders[name]), known).tolist()
            self.seen[name] = {item for item, seen in zip(distinct(task.load()[0]), stands, strict=True) if seen}
        self.folders |= folders
        self.teachers |= {name: list(dict.fromkeys(kept)) for name in tasks}
        self.inputs |= dict.fromkeys(tasks, parts[0].inputs.name)

    def _imported(self, teacher: str, folders: Mapping[str, Path]) -> bool:
        """Whether every task has a column of a teacher that cannot embed by itself."""
        lacking = [folder for folder in folders.values() if not (folder / "teachers" / teacher).is_dir()]
        if lacking:
            log.warning(
                "teacher %s was imported and is left out of the probes: it cannot embed the items of %d tasks. Import its "
                "embeddings of them: distill-cache import --corpus %s --name %s --embeddings FILE --key item",
                *(teacher, len(lacking), lacking[0], teacher),
            )
        return not lacking

    def run(self, students: dict[System, Student], device: str, quiet: bool = False) -> list[Record]:
        """Probe every system on every task; :meth:`prepare` comes first.

        Args:
            students: the trained student, and optionally the ``untrained`` one.
            device: where the students run.
            quiet: show no progress.

        Returns:
            A record per system, task, split and seed.
        """
        work = [
            (name, split, seed)
            for name, task in self.tasks.items()
            for split in self.splits
            if task.offers(split)
            for seed in self.seeds
        ]
        embedded = {name: self._embed(name, students, device) for name in self.tasks}
        records = [
            record
            for name, split, seed in track(work, "probing", disable=quiet)
            for record in self._probe(name, split, seed, *embedded[name])
        ]
        if not records:
            raise ConfigError("no task could be scored: the test rows of every split are too few or of one class")
        return records

    def _embed(
        self, name: str, students: dict[System, Student], device: str
    ) -> tuple[list[Key], Array, dict[str, tuple[System, Array]]]:
        """Keys, labels and each system's (rows, dim), of pairs (rows, 2, dim), for the rows that every system can read."""
        folder = self.folders[name]
        columns = {each: Column(folder / "teachers" / each) for each in self.teachers[name]}
        inputs = Column(folder / "inputs" / self.inputs[name])
        usable = torch.stack([each.valid(torch.arange(len(inputs))) for each in (inputs, *columns.values())]).all(0)
        keys, labels = self.tasks[name].load()
        position = {item: row for row, item in enumerate(distinct(keys))}
        rows = torch.tensor([position[key] if isinstance(key, str) else [position[each] for each in key] for key in keys])
        kept = usable[rows] if rows.ndim == 1 else usable[rows].all(1)
        if not kept.any():
            raise CacheError(f"task {name}: not one row can be embedded, see skipped.csv in {folder}")
        wanted, rows = torch.unique(rows[kept], return_inverse=True)  # an item that stands in many pairs is embedded once
        systems: dict[str, tuple[System, Array]] = {}
        for kind, student in students.items():
            if kind in self.systems:
                systems[kind] = kind, embed(student, inputs, wanted, device)
        dense = {each: np.asarray(column.rows(wanted).float()) for each, column in columns.items()}
        if "concatenated" in self.systems and dense:
            systems["concatenated"] = "concatenated", np.concatenate(list(dense.values()), 1)
        if "teachers" in self.systems:
            systems |= {each: ("teachers", x) for each, x in dense.items()}
        if broken := [each for each, (_, x) in systems.items() if not np.isfinite(x).all()]:
            raise ConfigError(f"task {name}: the embedding of {broken[0]} has a NaN or an infinity, it cannot be probed")
        chosen = {each: (kind, x[rows.numpy()]) for each, (kind, x) in systems.items()}
        return [key for key, keep in zip(keys, kept.tolist(), strict=True) if keep], labels[kept.numpy()], chosen

    def _probe(
        self, name: str, split: str, seed: int, keys: list[Key], labels: Array, systems: dict[str, tuple[System, Array]]
    ) -> Iterator[Record]:
        task = self.tasks[name]
        probes = task.probes or [PROBES[task.kind]()]
        parts = task.split(split, seed, keys)
        seen = np.array([not self.seen[name].isdisjoint([key] if isinstance(key, str) else key) for key in keys])[parts[2]]
        if self.exclude_seen:
            parts = (*parts[:2], parts[2][~seen])
        for probe in probes:
            if not min(len(part) for part in (parts if probe.fits else parts[2:])):
                log.warning("task %s, %s split, seed %d: a part of the split is empty, left out", name, split, seed)
                continue
            label = name if len(probes) == 1 else f"{name} {probe.name}"
            scores = {system: _score(probe, x, labels, *parts) for system, (_, x) in systems.items()}
            if np.isnan(list(scores.values())).any():
                log.warning("task %s, %s split, seed %d: the test rows cannot be scored, left out", name, split, seed)
                continue
            for system, score in scores.items():
                kind = systems[system][0]
                facts = label, task.provenance, split, seed, probe.metric, score, len(parts[2]), int(seen.sum())
                yield Record(system, kind, *facts)


def _score(probe: Probe, x: Array, labels: Array, train: Array, valid: Array, test: Array) -> float:
    """Fit a probe and score it on the test rows, averaged over the labels that can be scored."""
    probe.fit(x[train], labels[train], x[valid], labels[valid])
    scores = probe.score(x[test], labels[test])[probe.metric]
    return float("nan") if np.isnan(scores).all() else float(np.nanmean(scores))


def is_live(column: Column) -> bool:
    """Whether the teacher of a column can embed items that it has never seen."""
    teacher = rebuild(column.manifest["producer"], Teacher)
    return isinstance(teacher, Teacher) and teacher.live


def embed(student: Student, inputs: Column, rows: torch.Tensor, device: str, batch: int = 512) -> Array:
    """The student's embeddings (rows, dim) of ``rows`` of an input column, in evaluation mode, float32."""
    student, featuriser = student.to(device).eval(), featuriser_of(inputs)
    order = torch.arange(len(rows))
    if featuriser.padded:  # rows of like length go together
        order = torch.from_numpy(np.argsort(inputs.counts(featuriser.padded, rows), kind="stable"))
    out = torch.empty(len(rows), student.dim)
    with torch.inference_mode():
        for chunk in order.split(batch):
            read = featuriser.unpack(inputs.rows(rows[chunk]))
            out[chunk] = student(move({inputs.name: read}, device)).float().cpu()
    return np.asarray(out)


def move(inputs: Any, device: str) -> Any:
    """A student's input on another device."""
    from lightning.pytorch.utilities import move_data_to_device

    return move_data_to_device(inputs, torch.device(device))


def as_json(records: list[Record]) -> list[dict[str, Any]]:
    """Records as plain dictionaries."""
    return [asdict(record) for record in records]
