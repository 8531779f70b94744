"""Probe a student on tasks that it never saw, beside its teachers, all of them together, its untrained self, and others."""

import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from rich.progress import track
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cache_tools import MESSAGES, ConfigError, Settings, shows_bars
from distill.data.columns import CorpusColumns
from distill.evaluation.baselines import check_exports, on_a_plane
from distill.evaluation.parts import Parts, offers, parts_of
from distill.evaluation.prepared import Embedded, Prepared, Reduction, Students, prepare, width_of
from distill.evaluation.probes import PROBES, Probe
from distill.evaluation.probes.base import _mean_of_finite
from distill.evaluation.suites import suite
from distill.evaluation.tasks.base import Array, Task
from distill.records import RENAMED, SYSTEMS, Cost, Record, System
from distill.run_folder import MAP, safe_name
from distill.training.calibration import calibrated

log = logging.getLogger(__name__)


PREDICTIONS = "predictions"


class Evaluation:
    """The protocol: which tasks, splits, seeds and systems.

    Args:
        tasks: name -> task.
        suites: more tasks: name of a suite -> folder of its files, see :func:`distill.evaluation.suites.suite`.
        splits: kinds of split; molecules offer ``random`` and ``scaffold``, texts and images ``own``, and ``5-shot`` or
            another number; all tasks ``100-rows`` or another number: so many training rows.
        seeds: one split each; 0 to 4 when not given, with folds 0 alone.
        folds: cut the rows into so many folds instead: each is the test rows once, and the score is the mean over folds. A
            data set's own test rows stay what they are. 0: one split of 80, 10 and 10 %.
        probes: kind of task -> its probes, for tasks that name none; by default a linear one of embeddings with labels.
        systems: what to compare: the ``student``; its ``prefixes``, if the fit trained some (``model.dims``); the same
            student ``untrained``, with random weights and batch norms that saw rows of the corpus, and at its ``start``, if
            its fit began with other weights; its ``teachers``; their embeddings ``concatenated``; the ``pca`` of these to
            the student's width, learnt from the corpus; of molecules, ``fingerprints`` (Morgan counts and RDKit's
            descriptors), and the ``student+fingerprints`` side by side; of texts, the ``tokens``' vectors in the student's
            table, weighted by their rarity.
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
        folds: int = 0,
        probes: dict[str, list[Probe]] | None = None,
    ):
        self.tasks, self.splits = dict(tasks or {}), splits or ["random"]
        for name, folder in (suites or {}).items():
            added = suite(name, folder)
            if twice := sorted(added.keys() & self.tasks.keys()):
                raise ConfigError(f"two tasks are called {twice[0]}, one of them of the suite {name}: rename the other")
            self.tasks |= added
        self.seeds = ([0] if folds else [0, 1, 2, 3, 4]) if seeds is None else seeds
        if not self.seeds or min(self.seeds) < 0:
            raise ConfigError(f"probe.seeds is {self.seeds}, expected one seed or more, none below 0")
        self.systems = [RENAMED.get(name, cast(System, name)) for name in systems or SYSTEMS]
        self.students = students or {}
        self.exclude_seen, self.score_on, self.trust_remote_code = exclude_seen, score_on, trust_remote_code
        self.cache = Path(cache) if cache else None
        if every < 0:
            raise ConfigError(f"probe.every is {every}, expected epochs between two probes, or 0 for none")
        self.every, self.during = every, during or list(self.tasks)
        self.folds, self.probes = folds, probes or {}
        self._check_folds()
        if unknown := sorted(self.probes.keys() - PROBES.keys()):
            raise ConfigError(f"probe.probes names the kind {unknown[0]}; there are: {', '.join(PROBES)}")
        if unknown := sorted(set(self.during) - set(self.tasks)):
            raise ConfigError(f"probe.during names {unknown[0]}; probe.tasks has: {', '.join(self.tasks) or 'none'}")

    def _check_folds(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"probe.folds is {self.folds}, expected 2 or more, or 0 for one split")
        choosing = f"probe.every {self.every}" if self.every else "probe.score_on validation"
        if self.folds and (self.every or self.score_on == "validation"):
            raise ConfigError(
                f"probe.folds {self.folds} with {choosing}: every row is a test row of one fold, so none is left to choose "
                "a checkpoint by: take one of the two"
            )

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
        if idle := [split for split in self.splits if not any(offers(task, split) for task in self.tasks.values())]:
            raise ConfigError(f"probe.splits names {idle[0]}, which none of the tasks {', '.join(self.tasks)} offers")
        for name, task in self.tasks.items():
            if not any(offers(task, split) for split in self.splits):
                named = " and no split ".join(self.splits)
                log.warning("task %s is left out, it has no split %s: add one that it has to probe.splits", name, named)
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

    def check_paths(self) -> None:
        """Refuse a task whose file or folder is missing, before a fit whose student it is to probe.

        Raises:
            ConfigError: naming the task and the path.
        """
        for name, task in self.tasks.items():
            if (place := task.place()) and not place.exists():
                raise ConfigError(f"no file or folder {place.absolute()}: mend the path of probe.tasks.{name}")

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

    def run(
        self,
        students: Students,
        device: str,
        quiet: bool = False,
        keep: Path | None = None,
        dims: Sequence[int] = (),
    ) -> list[Record]:
        """Probe every system on every task; :meth:`prepare` comes first.

        Args:
            students: the trained one, and optionally what :func:`distill.evaluation.baselines.undistilled` gives.
            device: where they run.
            quiet: show no progress.
            keep: a folder for the predictions of every system for every test row, and for a map of the first task's items.
            dims: lengths of the prefixes of the student's embedding that were trained.

        Returns:
            A record per system, task, split and seed; seeds that give the rows of an earlier one have none.
        """
        if "untrained" in students.keys() & set(self.systems):
            students = {**students, "untrained": calibrated(students["untrained"], self.corpora, device)}
        reductions = self._reductions(students)
        embedded = {
            name: task.embed(self.systems, students, reductions[task.task.modality], device, dims)
            for name, task in self.prepared.items()
        }
        work = [
            (name, split, seed, parts, embedded[name], keep)
            for name, task in self.tasks.items()
            for split in self.splits
            if offers(task, split)
            for seed, parts in self._parts(task, split, embedded[name])
        ]
        threads = torch.get_num_threads()
        try:
            one = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
            with threadpool_limits(1), one as pool:  # NumPy's threads, and torch's
                groups = pool.map(lambda item: list(self._probe(*item)), work)
                shown = track(groups, "probing", len(work), console=MESSAGES, disable=quiet or not shows_bars(MESSAGES))
                records = [record for group in shown for record in group]
        finally:
            torch.set_num_threads(threads)
        if not records:
            raise ConfigError("no task could be scored: the test rows of every split are too few or of one class")
        if keep:
            self._map(embedded, records, keep)
        return records

    def costs(self, students: Students, device: str, dims: Sequence[int] = ()) -> dict[str, Cost]:
        """Width, parameters and speed of every system; arguments as of :meth:`run`."""
        costs: dict[str, Cost] = {}
        for task in self._first_of_modality().values():
            for name, cost in task.costs(self.systems, students, device, dims).items():
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

    def _parts(self, task: Task, split: str, embedded: Embedded) -> Iterator[tuple[int, list[Parts]]]:
        """Rows of every seed, except seeds that repeat an earlier one: of one split, or of each fold."""
        number = np.full(len(embedded.split), -1)  # -1: a system cannot read the row
        number[embedded.places] = np.arange(len(embedded.places))
        earlier: set[tuple[bytes, ...]] = set()
        for seed in self.seeds:
            whole = parts_of(task, split, seed, embedded.split, self.folds, self.score_on == "validation")
            parts = [
                Parts(number[rows][number[rows] >= 0], fold[number[rows] >= 0], number[test][number[test] >= 0])
                for rows, fold, test in whole
            ]
            content = tuple(array.tobytes() for part in parts for array in part)
            if content not in earlier:
                yield seed, parts
            earlier.add(content)

    def _probe(
        self, name: str, split: str, seed: int, parts: list[Parts], embedded: Embedded, keep: Path | None
    ) -> Iterator[Record]:
        task, systems = self.tasks[name], embedded.systems
        probes = task.probes or self.probes.get(task.kind) or [PROBES[task.kind]()]
        in_corpus = self.prepared[name].seen
        seen = np.array([not in_corpus.isdisjoint([key] if isinstance(key, str) else key) for key in embedded.keys])
        tested = _tested(parts)
        if self.exclude_seen:
            parts = [part._replace(test=part.test[~seen[part.test]]) for part in parts]
        for probe in probes:
            where = f"{split} split, seed {seed}"
            if not parts or not all(_usable(probe, part) for part in parts):
                log.warning("task %s, %s: a part of the split is empty, left out", name, where)
                continue
            results = {system: _score(probe, x, embedded, parts) for system, (_, x) in systems.items()}
            ending = f" {probe.name}" if len(probes) > 1 else ""
            for title, columns in _counted(name, task).items():
                scores = {
                    system: {of: _mean(by[columns]) for of, by in found.items()} for system, (found, _) in results.items()
                }
                if np.isnan([of[probe.metric] for of in scores.values()]).any():
                    log.warning("task %s, %s: the test rows cannot be scored, left out", title, where)
                    continue
                known = np.asarray(np.isfinite(embedded.labels[:, columns]).any(1))
                rows = int(known[_tested(parts)].sum()), int((seen[tested] & known[tested]).sum())
                for system, of in scores.items():
                    facts = f"{title}{ending}", task.provenance, split, seed, probe.metric, of.pop(probe.metric), *rows
                    beside = {kind: value for kind, value in of.items() if np.isfinite(value)}
                    yield Record(system, systems[system][0], *facts, len(parts), probe.name, beside)
            if keep:
                predicted = {f"predicted/{system}": values for system, (_, values) in results.items()}
                (keep / PREDICTIONS).mkdir(exist_ok=True)
                items = np.frombuffer(json.dumps(embedded.keys).encode(), np.uint8)  # text of any length
                path = keep / PREDICTIONS / f"{safe_name(name + ending)}-{split}-{seed}.npz"
                kept = _kept(parts)
                np.savez_compressed(path, items=items, labels=embedded.labels, **kept, **predicted)  # type: ignore[arg-type]


def _usable(probe: Probe, part: Parts) -> bool:
    """Whether there are rows to fit on, to choose by and to score."""
    fits = part.fold.size and part.fold.max() >= 0 and (part.fold != part.fold.max()).any()
    return bool(len(part.test) and (fits or not probe.fits))


def _tested(parts: Sequence[Parts]) -> Array:
    """The test rows of all parts."""
    return np.concatenate([part.test for part in parts]) if parts else np.zeros(0, int)


def _counted(name: str, task: Task) -> dict[str, Any]:
    """Name of each task that a data set counts as -> its columns of labels."""
    return {f"{name} {label}": [column] for column, label in enumerate(task.apart())} or {name: slice(None)}


def _score(probe: Probe, x: Array, embedded: Embedded, parts: Sequence[Parts]) -> tuple[dict[str, Array], Array]:
    """Scores of the test rows, and of those with a mark; and the prediction for each test row, fold after fold.

    A score is the mean over folds for each label, (labels,); NaN where none can be scored.
    """
    labels = embedded.labels
    found: dict[str, list[Array]] = {}
    predicted = []
    for rows, fold, test in parts:
        fitted = copy.deepcopy(probe).fit(x[rows], labels[rows], fold)  # other threads fit the same probe
        for mark, marked in embedded.marks.items():
            chosen = test[marked[test]]
            for name, values in fitted.score(x[chosen], labels[chosen]).items() if len(chosen) else ():
                found.setdefault(f"{name} {mark}", []).append(values)
        for name, values in fitted.score(x[test], labels[test]).items():
            found.setdefault(name, []).append(values)
        predicted.append(fitted.predicted)
    return {name: _mean_of_finite(np.stack(values)) for name, values in found.items()}, np.concatenate(predicted)


def _mean(scores: Array) -> float:
    return float("nan") if np.isnan(scores).all() else float(np.nanmean(scores))


def _kept(parts: Sequence[Parts]) -> dict[str, Array]:
    """Arrays of the row numbers: of one split ``train``, ``valid`` and ``test``; of folds all test rows in one, too."""
    if len(parts) == 1:
        rows, fold, test = parts[0]
        one = fold.max(initial=0) == 0
        cut = {"train": rows[fold < 0], "valid": rows[fold >= 0]} if one else {"train": rows, "inner": fold}
        return {**cut, "test": test}
    arrays = {
        f"{name}/{number}": array
        for number, (rows, fold, test) in enumerate(parts)
        for name, array in (("train", rows), ("inner", fold), ("test", test))
    }
    return {**arrays, "test": np.concatenate([part.test for part in parts])}
