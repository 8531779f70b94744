"""Probe a student on tasks that it never saw, beside its teachers, all of them together, its untrained self, and others."""

import copy
import json
import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast
from zlib import crc32

import numpy as np
import torch
from rich.progress import track

from cache_tools import ConfigError, Settings
from distill.data.columns import CorpusColumns
from distill.evaluation.baselines import on_a_plane
from distill.evaluation.prepared import Embedded, Prepared, Reduction, Students, prepare
from distill.evaluation.probes import PROBES, Probe
from distill.evaluation.suites import suite
from distill.evaluation.tasks.base import Array, Task
from distill.records import SYSTEMS, Cost, Record, System
from distill.run_folder import MAP

log = logging.getLogger(__name__)


PREDICTIONS = "predictions"

Parts = tuple[Array, Array, Array]  # row numbers for training, validation and test


class Evaluation:
    """The protocol: which tasks, splits, seeds and systems.

    Args:
        tasks: name -> task.
        suites: more tasks: name of a suite -> folder of its files, as :mod:`distill.suites` reads them.
        splits: kinds of split; molecules offer ``random`` and ``scaffold``, texts and images ``own``, and ``5-shot`` or
            another number.
        seeds: one split each.
        systems: what to compare: the ``student``; itself ``untrained``, of random weights, and ``pretrained``, as it was
            before it was distilled if it had others; its ``teachers``; their embeddings ``concatenated``; the ``pca`` of
            these to the student's width, learnt from the corpus.
        students: more of them: name -> a folder of ``distill export``, or another run's checkpoint.
        every: also probe the student during a fit, every so many epochs, by the first split and seed; 0: never.
        during: the tasks of that; all of them when not given.
        exclude_seen: leave out test rows whose item also stands in the corpus (a pair: one of its items); they are counted
            in any case.

    Raises:
        ConfigError: when ``during`` names a task that is not there, or a suite's folder holds none of its files.
    """

    def __init__(
        self,
        tasks: dict[str, Task] | None = None,
        suites: dict[str, Path] | None = None,
        splits: list[str] | None = None,
        seeds: list[int] | None = None,
        systems: list[System] | None = None,
        students: dict[str, Path] | None = None,
        every: int = 0,
        during: list[str] | None = None,
        exclude_seen: bool = False,
    ):
        self.unseen = False  # whether test rows are out of bounds, as while a student is chosen
        self.tasks, self.splits = dict(tasks or {}), splits or ["random"]
        for name, folder in (suites or {}).items():
            found = suite(name, folder)
            if twice := sorted(found.keys() & self.tasks.keys()):
                raise ConfigError(f"two tasks are called {twice[0]}, one of them of the suite {name}: rename the other")
            self.tasks |= found
        self.seeds = [0, 1, 2, 3, 4] if seeds is None else seeds
        if not self.seeds or min(self.seeds) < 0:
            raise ConfigError(f"probe.seeds is {self.seeds}, expected one seed or more, none below 0")
        self.systems, self.students = systems or list(SYSTEMS), students or {}
        self.exclude_seen = exclude_seen
        if every < 0:
            raise ConfigError(f"probe.every is {every}, expected epochs between two probes, or 0 for none")
        self.every, self.during = every, during or list(self.tasks)
        if unknown := sorted(set(self.during) - set(self.tasks)):
            raise ConfigError(f"probe.during names {unknown[0]}; probe.tasks has: {', '.join(self.tasks) or 'none'}")

    def prepare(self, parts: Sequence[CorpusColumns], settings: Settings | None = None) -> None:
        """Embed every task's items; see :func:`distill.evaluation.prepared.prepare`.

        Raises:
            ConfigError: when there is no task, a task or split does not fit the run, or two systems share a name.
        """
        teachers = {name for part in parts for name in part.teachers}
        if taken := sorted((teachers & {*SYSTEMS, *self.students}) | (self.students.keys() & set(SYSTEMS))):
            raise ConfigError(f"two systems are called {taken[0]}: give the teacher's column, or the student, another name")
        if not self.tasks:
            raise ConfigError(
                "no task to probe: name some under probe.tasks in the configuration, as configs/mol.yaml does"
            )
        if idle := [split for split in self.splits if not any(task.offers(split) for task in self.tasks.values())]:
            raise ConfigError(f"probe.splits names {idle[0]}, which none of the tasks {', '.join(self.tasks)} offers")
        self.prepared = prepare(self.tasks, parts, self.systems, self.students, settings)
        probed = {name for each in self.prepared.values() for name in each.teachers}
        read = {each.task.modality for each in self.prepared.values()}
        mine = {name for part in parts if part.corpus.modality in read for name in part.teachers}
        self.left_out = sorted(mine - probed) if {"teachers", "concatenated", "pca"} & set(self.systems) else []

    def run(self, students: Students, device: str, quiet: bool = False, keep: Path | None = None) -> list[Record]:
        """Probe every system on every task; :meth:`prepare` comes first.

        Args:
            students: the trained one, and optionally the ``untrained`` and the ``pretrained`` one.
            device: where they run.
            quiet: show no progress.
            keep: a folder for what every system predicted of every test row, and for a map of the first task's items.

        Returns:
            A record per system, task, split and seed; seeds that give the rows of an earlier one have none.
        """
        reductions = self._reductions(students)
        embedded = {
            name: each.embed(self.systems, students, reductions[each.task.modality], device)
            for name, each in self.prepared.items()
        }
        work = [
            (name, split, seed, parts)
            for name, task in self.tasks.items()
            for split in self.splits
            if task.offers(split)
            for seed, parts in self._parts(task, split, embedded[name])
        ]
        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                found = pool.map(lambda at: list(self._probe(at[0], at[1], at[2], at[3], embedded[at[0]], keep)), work)
                records = [record for each in track(found, "probing", len(work), disable=quiet) for record in each]
        finally:
            torch.set_num_threads(threads)
        if not records:
            raise ConfigError("no task could be scored: the test rows of every split are too few or of one class")
        if keep:
            self._map(embedded, records, keep)
        return records

    def costs(self, students: Students, device: str) -> dict[str, Cost]:
        """Width, parameters and speed of every system."""
        of_modality: dict[str, Prepared] = {each.task.modality: each for each in reversed(self.prepared.values())}
        found = [each.costs(self.systems, students, device) for each in of_modality.values()]
        out: dict[str, Cost] = {}
        for name, cost in (each for costs in found for each in costs.items()):
            out[name] = (
                cost if name not in out else Cost(out[name].dim, out[name].parameters, None)
            )  # of several modalities
        return out

    def _reductions(self, students: Students) -> dict[str, Reduction | None]:
        """Modality -> principal components of its teachers, as wide as the student."""
        dim = max((each.dim for each in students.values()), default=0)
        wanted = "pca" in self.systems and dim
        first = {each.task.modality: each for each in reversed(self.prepared.values())}
        return {modality: each.reduction(dim) if wanted else None for modality, each in first.items()}

    def _map(self, embedded: dict[str, Embedded], records: Sequence[Record], keep: Path) -> None:
        """Two dimensions of the first task's items: by the student, untrained, the best teacher, and all of them."""
        scores: dict[str, list[float]] = {}
        for record in records:
            if record.kind == "teachers":
                scores.setdefault(record.system, []).append(record.score)
        best = max(scores, key=lambda each: float(np.mean(scores[each])), default="")
        drawn = (name for name, each in embedded.items() if isinstance(each.keys[0], str) and len(each.keys) > 3)
        if name := next(drawn, None):
            systems = embedded[name].systems
            chosen = {each: systems[each][1] for each in ("student", "untrained", best, "concatenated") if each in systems}
            plane = on_a_plane(embedded[name].labels, chosen)
            np.savez_compressed(keep / MAP, task=name, kind=self.tasks[name].kind, **plane)  # type: ignore[arg-type]

    def _parts(self, task: Task, split: str, embedded: Embedded) -> list[tuple[int, Parts]]:
        """Rows for training, validation and test of every seed, but of those that only repeat another."""
        number = np.full(len(embedded.split), -1)  # of what a system cannot read
        number[embedded.places] = np.arange(len(embedded.places))
        made = {seed: task.split(split, seed, embedded.split) for seed in self.seeds}
        found = {
            seed: cast(Parts, tuple(number[part][number[part] >= 0] for part in parts)) for seed, parts in made.items()
        }
        if self.unseen:  # the test rows stay unseen: validation rows are in their place
            found = {seed: _without_test(*parts, seed) for seed, parts in found.items()}
        return list(
            {tuple(part.tobytes() for part in parts): (seed, parts) for seed, parts in reversed(found.items())}.values()
        )[::-1]

    def _probe(
        self, name: str, split: str, seed: int, parts: Parts, embedded: Embedded, keep: Path | None
    ) -> Iterator[Record]:
        task, (keys, labels, systems, *_) = self.tasks[name], embedded
        probes = task.probes or [PROBES[task.kind]()]
        known = self.prepared[name].seen
        seen = np.array([not known.isdisjoint([key] if isinstance(key, str) else key) for key in keys])[parts[2]]
        if self.exclude_seen:
            parts = (*parts[:2], parts[2][~seen])
        for probe in probes:
            if not min(len(part) for part in (parts if probe.fits else parts[2:])):
                log.warning("task %s, %s split, seed %d: a part of the split is empty, left out", name, split, seed)
                continue
            label = name if len(probes) == 1 else f"{name} {probe.name}"
            found = {system: _score(probe, x, labels, *parts) for system, (_, x) in systems.items()}
            if np.isnan([score for score, _ in found.values()]).any():
                log.warning("task %s, %s split, seed %d: the test rows cannot be scored, left out", name, split, seed)
                continue
            for system, (score, _) in found.items():
                kind = systems[system][0]
                facts = label, task.provenance, split, seed, probe.metric, score, len(parts[2]), int(seen.sum())
                yield Record(system, kind, *facts)
            if keep:
                rows = dict(zip(("train", "valid", "test"), parts, strict=True))
                predicted = {f"predicted/{system}": each for system, (_, each) in found.items()}
                (keep / PREDICTIONS).mkdir(exist_ok=True)
                items = np.frombuffer(json.dumps(keys).encode(), np.uint8)  # text of any length
                path = keep / PREDICTIONS / f"{_plain(label)}-{split}-{seed}.npz"
                np.savez_compressed(path, items=items, labels=labels, **rows, **predicted)  # type: ignore[arg-type]


def _score(probe: Probe, x: Array, labels: Array, train: Array, valid: Array, test: Array) -> tuple[float, Array]:
    """The score on the test rows, averaged over the labels that can be scored, and what was predicted of each row."""
    probe = copy.copy(probe).fit(x[train], labels[train], x[valid], labels[valid])  # other threads fit the same probe
    scores = probe.score(x[test], labels[test])[probe.metric]
    return (float("nan") if np.isnan(scores).all() else float(np.nanmean(scores))), probe.predicted


def _without_test(train: Array, valid: Array, test: Array, seed: int) -> Parts:
    """A tenth of the training rows to choose on, and the validation rows to score on."""
    shuffled = np.random.default_rng(seed).permutation(train)
    cut = len(train) // 10
    return shuffled[cut:], shuffled[:cut], valid


def _plain(name: str) -> str:
    """A file's name of a task's; two names never share one."""
    plain = re.sub(r"[^\w.-]+", "-", name)
    return plain if plain == name else f"{plain}-{crc32(name.encode()):08x}"
