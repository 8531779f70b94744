"""Scores and costs of systems: records, the results of one probed run, and the scores.csv of a report."""

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from cache_tools import ConfigError, write_file
from distill.run_folder import RunFolder

System = Literal[
    "student",
    "prefixes",
    "untrained",
    "start",
    "teachers",
    "concatenated",
    "pca",
    "fingerprints",
    "student+fingerprints",
    "tokens",
]

Kind = System | Literal["other"]

SYSTEMS: tuple[System, ...] = get_args(System)

OF_A_STUDENT = ("prefixes", "untrained", "start", "student+fingerprints", "tokens")  # another student has another one

RENAMED: dict[str, System] = {"pretrained": "start"}  # names of version 0.1

MARGIN = 0.01  # of score: a student that is lower by less is called equal

RECALL = "recall@10"  # of a search of a teacher's index

SCORES = "scores.csv"  # in the folder of a report

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What a system needs: its ``parameters`` (None without a network), and raw items embedded per second."""

    dim: int
    parameters: int | None
    per_second: float | None

    @classmethod
    def of_all(cls, costs: Sequence["Cost"]) -> "Cost":
        """The cost of several systems that all embed every item, their embeddings side by side."""
        dim = sum(cost.dim for cost in costs)
        speeds = [cost.per_second for cost in costs]
        if None in speeds:  # one could not be loaded
            return cls(dim, None, None)
        parameters = [cost.parameters for cost in costs if cost.parameters is not None]
        return cls(dim, sum(parameters) if parameters else None, 1 / sum(1 / cast(float, speed) for speed in speeds))


@dataclass(frozen=True)
class Record:
    """One score: a system on a task, one split and seed, averaged over the task's labels."""

    system: str
    kind: Kind
    task: str
    provenance: str
    split: str
    seed: int
    metric: str
    score: float
    test_rows: int
    seen_rows: int = 0  # test rows that also stand in the corpus, whether the test used them or left them out
    folds: int = 1  # the score is their mean
    probe: str = ""  # its name
    beside: dict[str, float] = field(default_factory=dict)  # further scores, by name

    def __post_init__(self) -> None:
        """Refuse values of another type, as a damaged file may hold them; read the names of version 0.1."""
        types: dict[Any, Any] = {int: int, float: float | int, dict[str, float]: dict}
        for each in fields(self):
            value, expected = getattr(self, each.name), types.get(each.type, str)
            if not isinstance(value, expected):
                raise TypeError(f"{each.name} is {value!r}")
        object.__setattr__(self, "system", RENAMED.get(self.system, self.system))
        object.__setattr__(self, "kind", RENAMED.get(self.kind, self.kind))


@dataclass(frozen=True)
class Results:
    """Scores and costs of one probed run.

    Args:
        run: the run's folder.
        records: the scores.
        costs: the cost of every system.
        about: how they were measured: checkpoint, time, command, device, versions, and the fingerprints of the corpora.
    """

    run: RunFolder
    records: list[Record]
    costs: dict[str, Cost]
    about: dict[str, Any]

    def save(self) -> None:
        """Write results.json."""
        costs = {name: asdict(cost) for name, cost in self.costs.items()}
        content = {**self.about, "costs": costs, "records": [asdict(record) for record in self.records]}
        write_file(self.run.results, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Read the results of the run in ``folder``.

        Raises:
            ConfigError: when the run was not probed.
        """
        run = RunFolder(folder)
        if not run.results.is_file():
            raise ConfigError(f"no {run.results}: probe the run first with `distill test --run {folder}`")
        try:
            about = json.loads(run.results.read_text())
            records = [Record(**record) for record in about.pop("records")]
            costs = {RENAMED.get(name, name): Cost(**cost) for name, cost in about.pop("costs", {}).items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"{run.results} does not have this version's format ({error!r})"
            raise ConfigError(f"{reason}: probe the run again with `distill test --run {folder}`") from None
        if not records:
            raise ConfigError(f"{run.results} holds no score: probe the run again with `distill test --run {folder}`")
        return cls(run, records, costs, about)

    def of_seed(self, seed: int, seeds: Iterable[int]) -> "Results":
        """As one of several fits on the same splits: scores of systems that depend on no fit are those of every seed."""
        own = ("student", *OF_A_STUDENT)
        records = [
            replace(record, seed=each) for record in self.records for each in ([seed] if record.kind in own else seeds)
        ]
        return replace(self, records=records)


def prefix(dim: int) -> str:
    """The name of a system: the first ``dim`` numbers of the student's embedding.

    >>> prefix(64)
    'student[:64]'
    """
    return f"student[:{dim}]"


def name_of(system: str, student: str) -> str:
    """The name of a student, or of a prefix of its embedding, among several students.

    >>> name_of("student", "mol"), name_of("student[:64]", "mol")
    ('mol', 'mol[:64]')
    """
    _, bracket, length = system.partition("[:")
    return student + bracket + length


def save_scores(folder: Path, records: Sequence[Record]) -> None:
    """Write every score of a report to its scores.csv, with a column per field of a record."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [each.name for each in fields(Record)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) | {"beside": json.dumps(record.beside)} for record in records)
    write_file(folder / SCORES, text.getvalue())


def read_scores(folder: Path) -> list[Record]:
    """Read the scores.csv of a report.

    Raises:
        ConfigError: when there is none, or it does not have this version's format.
    """
    path = folder / SCORES
    if not path.is_file():
        raise ConfigError(f"no {path}: expected the folder of a report that `distill study` or `distill compare` wrote")
    types: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(("seed", "test_rows", "seen_rows", "folds"), int),
        "score": float,
        "beside": json.loads,
    }
    try:
        text = path.read_text()
        if text and not text.endswith("\n"):
            raise ValueError("its last line is cut short")
        table = csv.DictReader(io.StringIO(text))
        rows = [{name: types.get(name, str)(value) for name, value in row.items()} for row in table]
        records = [Record(**row) for row in rows]
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise ConfigError(
            f"{path} does not have this version's format ({error!r}): have the report written again"
        ) from None
    if not records:
        raise ConfigError(f"{path} holds no score: have the report written again")
    return records


def merged(runs: Mapping[str, Sequence[Results]]) -> tuple[list[Record], list[str]]:
    """Records of all runs under the names of their students; a score that several runs measured is taken once.

    Args:
        runs: name of a student -> its runs, of one seed or several.

    Returns:
        The records, and a warning for each disagreement between runs.

    Raises:
        ConfigError: when a student would have the name of another system.
    """
    measured = [(name, results, record) for name, group in runs.items() for results in group for record in results.records]
    others = {record.system for _, _, record in measured if record.kind != "student"}
    if taken := sorted((others | {*SYSTEMS} - {"student"}) & runs.keys()):
        raise ConfigError(f"a student is called {taken[0]}, as another system is: rename its run or method")
    several = len({name for name, _, record in measured if record.kind in OF_A_STUDENT}) > 1
    kept: dict[tuple[str, str, str, int], Record] = {}
    tested: dict[tuple[str, str, int], int] = {}
    warnings: list[str] = []
    unequal: dict[str, dict[str, None]] = {}  # what differs -> the runs, in order
    for name, results, record in measured:
        rows = tested.setdefault((record.task, record.split, record.seed), record.test_rows)
        if rows != record.test_rows:
            words = f"{record.task}, {record.split} split: tested on {record.test_rows} rows, another run on {rows}"
            unequal.setdefault(words, {})[str(results.run.path)] = None
        if record.kind in ("student", "prefixes"):
            system = name_of(record.system, name)
        else:  # each of several students has its own beginnings
            system = f"{name} {record.kind}" if several and record.kind in OF_A_STUDENT else record.system
        first = kept.setdefault((system, record.task, record.split, record.seed), replace(record, system=system))
        if abs(first.score - record.score) > 1e-3:
            scores = f"has {first.score:.4f} in one run and {record.score:.4f} in {results.run.path}"
            warnings.append(f"{system} on {record.task} {scores}")
    warnings = [f"{words}: {', '.join(runs)}" for words, runs in unequal.items()] + list(dict.fromkeys(warnings))
    for warning in warnings:
        log.warning(warning)
    return list(kept.values()), warnings
