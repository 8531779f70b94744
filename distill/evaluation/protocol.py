"""Probe a student on tasks that it never saw, beside its teachers, all of them together, its untrained self, and others."""

import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from rich.progress import track

from cache_tools import ConfigError, Settings
from distill.data.columns import CorpusColumns
from distill.evaluation.baselines import calibrated, check_exports, on_a_plane
from distill.evaluation.prepared import Embedded, Prepared, Reduction, Students, prepare, width_of
from distill.evaluation.probes import PROBES, Probe
from distill.evaluation.suites import suite
from distill.evaluation.tasks.base import Array, Task
from distill.records import RENAMED, SYSTEMS, Cost, Record, System
from distill.run_folder import MAP, safe_name

log = logging.getLogger(__name__)


PREDICTIONS = "predictions"


class Parts(NamedTuple):
    """Row numbers for training, validation and test."""

    train: Array
    valid: Array
    test: Array


class Evaluation:
    """The protocol: which tasks, splits, seeds and systems.

    Args:
        tasks: name -> task.
        suites: more tasks: name of a suite -> folder of its files, see :func:`distill.evaluation.suites.suite`.
        splits: kinds of split; molecules offer ``random`` and ``scaffold``, texts and images ``own``, and ``5-shot`` or
            another number.
        seeds: one split each.
        systems: what to compare: the ``student``; the same student ``untrained``, with random weights and batch norms
            that saw rows of the corpus, and at its ``start``, if its fit began with other weights; its ``teachers``;
            their embeddings ``concatenated``; the ``pca`` of these to the student's width, learnt from the corpus; of
            molecules, ``fingerprints`` (Morgan counts and RDKit's descriptors), and the ``student+fingerprints`` side by
            side; of texts, the ``tokens``' vectors in the student's table, weighted by their rarity.
        students: more of them: name -> a folder of ``distill export``.
        every: also probe the student during a fit, every so many epochs, by the first split and seed; 0: never.
        during: the tasks to probe then; all of them when not given.
        exclude_seen: leave out test rows whose item also stands in the corpus (a pair: one of its items); they are counted
            in any case.
        score_on: rows that are scored: those of the ``test``, or those of the ``validation``, with a tenth of the training
            rows in the place of the latter; the test rows then stay unseen.
        trust_remote_code: let the teachers whose manifests say so run Python code that comes with their models on the items
            of tasks; only for models whose code you have read. A run does not keep this: each command says it again.
        cache: a folder for the embeddings of the tasks' items; by default ``tasks`` beside the corpus's columns.

    Raises:
        ConfigError: when ``during`` names an unknown task, or a suite's folder holds none of its files.
    """

    def __init__(
        self,
        tasks: dict[str, Task] | None = None,
        suites: dict[str, Path] | None = None,
        splits: list[str] | None = None,
        seeds: list[int] | None = None,
        systems: list[System | Literal["pretrained"]] | None = None,
        students: dict[str, Path] | None = None,
        every: int = 0,
        during: list[str] | None = None,
        exclude_seen: bool = False,
        score_on: Literal["test", "validation"] = "test",
        trust_remote_code: bool = False,
        cache: Path | None = None,
    ):
        self.tasks, self.splits = dict(tasks or {}), splits or ["random"]
        for name, folder in (suites or {}).items():
            added = suite(name, folder)
            if twice := sorted(added.keys() & self.tasks.keys()):
                raise ConfigError(f"two tasks are called {twice[0]}, one of them of the suite {name}: rename the other")
            self.tasks |= added
        self.seeds = [0, 1, 2, 3, 4] if seeds is None else seeds
        if not self.seeds or min(self.seeds) < 0:
            raise ConfigError(f"probe.seeds is {self.seeds}, expected one seed or more, none below 0")
        self.systems = [RENAMED.get(name, cast(System, name)) for name in systems or SYSTEMS]
        self.students = students or {}
        self.exclude_seen, self.score_on, self.trust_remote_code = exclude_seen, score_on, trust_remote_code
        self.cache = Path(cache) if cache else None
        if every < 0:
            raise ConfigError(f"probe.every is {every}, expected epochs between two probes, or 0 for none")
        self.every, self.during = every, during or list(self.tasks)
        if unknown := sorted(set(self.during) - set(self.tasks)):
            raise ConfigError(f"probe.during names {unknown[0]}; probe.tasks has: {', '.join(self.tasks) or 'none'}")

    def prepare(self, corpora: Sequence[CorpusColumns], settings: Settings | None = None) -> None:
        """Embed every task's items; see :func:`distill.evaluation.prepared.prepare`.

        Args:
            corpora: those of the run; a task uses the columns of the first one of its modality.
            settings: how to run the teachers.

        Raises:
            ConfigError: when there is no task, a task or split does not fit the run, two systems share a name, or one of
                ``students`` is no export.
        """
        self.check_names(corpora)
        check_exports(self.students)
        if not self.tasks:
            raise ConfigError(
                "no task to probe: name some under probe.tasks in the configuration, as configs/mol.yaml does"
            )
        if idle := [split for split in self.splits if not any(task.offers(split) for task in self.tasks.values())]:
            raise ConfigError(f"probe.splits names {idle[0]}, which none of the tasks {', '.join(self.tasks)} offers")
        self.corpora, self.prepared = corpora, dict[str, Prepared]()
        for modality in dict.fromkeys(task.modality for task in self.tasks.values()):
            tasks = {name: task for name, task in self.tasks.items() if task.modality == modality}
            fitting = [corpus for corpus in corpora if corpus.corpus.modality == modality]
            if not fitting:
                raise ConfigError(f"task {next(iter(tasks))} has {modality}s, the run has no corpus of them: leave it out")
            self.prepared |= prepare(
                tasks, fitting, self.systems, self.students, settings, self.trust_remote_code, self.cache
            )
        probed = {name for task in self.prepared.values() for name in task.teachers}
        wanted = {name for task in self.prepared.values() for corpus in task.corpora for name in corpus.teachers}
        self.left_out = sorted(wanted - probed) if {"teachers", "concatenated", "pca"} & set(self.systems) else []

    def check_names(self, corpora: Sequence[CorpusColumns]) -> None:
        """Refuse a teacher or another student that has the name of a system.

        Raises:
            ConfigError: when one has.
        """
        teachers = {name for corpus in corpora for name in corpus.teachers}
        if taken := sorted((teachers & {*SYSTEMS, *self.students}) | (self.students.keys() & set(SYSTEMS))):
            raise ConfigError(
                f"two systems are called {taken[0]}: give the teacher's column, or the student, another name; these are "
                f"taken: {', '.join(SYSTEMS)}"
            )

    def run(self, students: Students, device: str, quiet: bool = False, keep: Path | None = None) -> list[Record]:
        """Probe every system on every task; :meth:`prepare` comes first.

        Args:
            students: the trained one, and optionally what :func:`distill.evaluation.baselines.undistilled` gives.
            device: where they run.
            quiet: show no progress.
            keep: a folder for the predictions of every system for every test row, and for a map of the first task's items.

        Returns:
            A record per system, task, split and seed; seeds that give the rows of an earlier one have none.
        """
        if "untrained" in students.keys() & set(self.systems):
            students = {**students, "untrained": calibrated(students["untrained"], self.corpora, device)}
        reductions = self._reductions(students)
        embedded = {
            name: task.embed(self.systems, students, reductions[task.task.modality], device)
            for name, task in self.prepared.items()
        }
        work = [
            (name, split, seed, parts, embedded[name], keep)
            for name, task in self.tasks.items()
            for split in self.splits
            if task.offers(split)
            for seed, parts in self._parts(task, split, embedded[name])
        ]
        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                groups = pool.map(lambda item: list(self._probe(*item)), work)
                records = [record for group in track(groups, "probing", len(work), disable=quiet) for record in group]
        finally:
            torch.set_num_threads(threads)
        if not records:
            raise ConfigError("no task could be scored: the test rows of every split are too few or of one class")
        if keep:
            self._map(embedded, records, keep)
        return records

    def costs(self, students: Students, device: str) -> dict[str, Cost]:
        """Width, parameters and speed of every system."""
        costs: dict[str, Cost] = {}
        for task in self._first_of_modality().values():
            for name, cost in task.costs(self.systems, students, device).items():
                # one speed does not describe a system that reads several modalities
                costs[name] = Cost(costs[name].dim, costs[name].parameters, None) if name in costs else cost
        return costs

    def _first_of_modality(self) -> dict[str, Prepared]:
        """Modality -> the first task of it."""
        return {task.task.modality: task for task in reversed(self.prepared.values())}

    def _reductions(self, students: Students) -> dict[str, Reduction | None]:
        """Modality -> principal components of its teachers, as wide as the student."""
        dim = width_of(students)
        wanted = "pca" in self.systems and dim
        return {name: task.reduction(dim) if wanted else None for name, task in self._first_of_modality().items()}

    def _map(self, embedded: Mapping[str, Embedded], records: Sequence[Record], keep: Path) -> None:
        """Two dimensions of the first task's items: by the student, untrained, the best teacher, and all of them."""
        scores: dict[str, list[float]] = {}
        for record in records:
            if record.kind == "teachers":
                scores.setdefault(record.system, []).append(record.score)
        best = max(scores, key=lambda name: float(np.mean(scores[name])), default="")
        drawable = (name for name, task in embedded.items() if isinstance(task.keys[0], str) and len(task.keys) > 3)
        if name := next(drawable, None):
            systems = embedded[name].systems
            shown = [system for system in ("student", "untrained", best, "concatenated") if system in systems]
            plane = on_a_plane(embedded[name].labels, {system: systems[system][1] for system in shown})
            np.savez_compressed(keep / MAP, task=name, kind=self.tasks[name].kind, **plane)  # type: ignore[arg-type]

    def _parts(self, task: Task, split: str, embedded: Embedded) -> Iterator[tuple[int, Parts]]:
        """Rows for training, validation and test of every seed, except seeds that repeat an earlier one."""
        number = np.full(len(embedded.split), -1)  # -1: a system cannot read the row
        number[embedded.places] = np.arange(len(embedded.places))
        earlier: set[tuple[bytes, ...]] = set()
        for seed in self.seeds:
            rows = (number[part] for part in task.split(split, seed, embedded.split))
            parts = Parts(*(part[part >= 0] for part in rows))
            if self.score_on == "validation":
                parts = _without_test(parts, seed)
            content = tuple(part.tobytes() for part in parts)
            if content not in earlier:
                yield seed, parts
            earlier.add(content)

    def _probe(
        self, name: str, split: str, seed: int, parts: Parts, embedded: Embedded, keep: Path | None
    ) -> Iterator[Record]:
        task, (keys, labels, systems, *_) = self.tasks[name], embedded
        probes = task.probes or [PROBES[task.kind]()]
        in_corpus = self.prepared[name].seen
        seen = np.array([not in_corpus.isdisjoint([key] if isinstance(key, str) else key) for key in keys])[parts.test]
        if self.exclude_seen:
            parts = parts._replace(test=parts.test[~seen])
        for probe in probes:
            where = f"task {name}, {split} split, seed {seed}"
            if not min(len(part) for part in (parts if probe.fits else parts[2:])):
                log.warning("%s: a part of the split is empty, left out", where)
                continue
            results = {system: _score(probe, x, labels, parts) for system, (_, x) in systems.items()}
            if np.isnan([score for score, _ in results.values()]).any():
                log.warning("%s: the test rows cannot be scored, left out", where)
                continue
            label = name if len(probes) == 1 else f"{name} {probe.name}"
            for system, (score, _) in results.items():
                facts = label, task.provenance, split, seed, probe.metric, score, len(parts.test), int(seen.sum())
                yield Record(system, systems[system][0], *facts)
            if keep:
                predicted = {f"predicted/{system}": values for system, (_, values) in results.items()}
                (keep / PREDICTIONS).mkdir(exist_ok=True)
                items = np.frombuffer(json.dumps(keys).encode(), np.uint8)  # text of any length
                path = keep / PREDICTIONS / f"{safe_name(label)}-{split}-{seed}.npz"
                np.savez_compressed(path, items=items, labels=labels, **parts._asdict(), **predicted)  # type: ignore[arg-type]


def _score(probe: Probe, x: Array, labels: Array, parts: Parts) -> tuple[float, Array]:
    """The score on the test rows, averaged over the labels that can be scored, and the prediction for each row."""
    train, valid, test = parts
    probe = copy.copy(probe).fit(x[train], labels[train], x[valid], labels[valid])  # other threads fit the same probe
    scores = probe.score(x[test], labels[test])[probe.metric]
    return (float("nan") if np.isnan(scores).all() else float(np.nanmean(scores))), probe.predicted


def _without_test(parts: Parts, seed: int) -> Parts:
    """A tenth of the training rows to choose on, and the validation rows to score on."""
    shuffled = np.random.default_rng(seed).permutation(parts.train)
    cut = len(shuffled) // 10
    return Parts(shuffled[cut:], shuffled[:cut], parts.valid)
