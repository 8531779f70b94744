"""What `distill test` leaves of a run in RUN/probes, what is read again for a report, and what a report leaves."""

import csv
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from cache_tools import ConfigError

System = Literal["student", "untrained", "pretrained", "teachers", "concatenated", "pca"]

Kind = System | Literal["other"]

SYSTEMS: tuple[System, ...] = get_args(System)


@dataclass(frozen=True)
class Cost:
    """What a system needs: its ``parameters`` (None without a network), and raw items embedded per second."""

    dim: int
    parameters: int | None
    per_second: float | None

    @classmethod
    def of_all(cls, dim: int, costs: Sequence["Cost"]) -> "Cost":
        """Of several systems that all embed every item."""
        speeds = [cost.per_second for cost in costs]
        if None in speeds:  # one could not be loaded
            return cls(dim, None, None)
        known = [cost.parameters for cost in costs if cost.parameters is not None]
        return cls(dim, sum(known) if known else None, 1 / sum(1 / cast(float, speed) for speed in speeds))


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
    seen_rows: int = 0  # test rows that also stand in the corpus, among test_rows or left out of them


def as_json(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Records as plain dictionaries."""
    return [asdict(record) for record in records]


log = logging.getLogger(__name__)


FOLDER, FILE, SCORES = "probes", "results.json", "scores.csv"


@dataclass(frozen=True)
class Results:
    """One run's probes.

    Args:
        folder: where they are, RUN/probes.
        records: the scores.
        costs: of every system.
        about: how they were made: checkpoint, time, command, device, versions, and the fingerprints of what was read.
    """

    folder: Path
    records: list[Record]
    costs: dict[str, Cost]
    about: dict[str, Any]

    @property
    def run(self) -> Path:
        """The run's folder, with its configuration and what it logged."""
        return self.folder.parent

    def save(self) -> None:
        """Write results.json."""
        path = self.folder / FILE
        costs = {name: asdict(cost) for name, cost in self.costs.items()}
        path.write_text(json.dumps({**self.about, "costs": costs, "records": as_json(self.records)}, indent=1) + "\n")

    @classmethod
    def load(cls, run: Path) -> "Results":
        """Read them again.

        Raises:
            ConfigError: when the run was not probed.
        """
        path = run / FOLDER / FILE
        if not path.is_file():
            raise ConfigError(f"no {path}: probe the run first with `distill test --run {run}`")
        try:
            found = json.loads(path.read_text())
            records = [Record(**each) for each in found.pop("records")]
            costs = {name: Cost(**each) for name, each in found.pop("costs", {}).items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path} is not as this version writes it ({error!r}): probe the run again with `distill test --run {run}`"
            ) from None
        if not records:
            raise ConfigError(f"{path} holds no score: probe the run again with `distill test --run {run}`")
        return cls(path.parent, records, costs, found)


def save_scores(folder: Path, records: Sequence[Record]) -> None:
    """Write every score of a report to its scores.csv, a column per field of a record."""
    part = folder / f".{SCORES}"
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Record)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(as_json(records))
    part.replace(folder / SCORES)


def read_scores(folder: Path) -> list[Record]:
    """Read them again.

    Raises:
        ConfigError: when there are none, or not as this version writes them.
    """
    path = folder / SCORES
    if not path.is_file():
        raise ConfigError(f"no {path}: expected the folder of a report that `distill study` or `distill compare` wrote")
    kinds: dict[str, Callable[[str], Any]] = {"seed": int, "score": float, "test_rows": int, "seen_rows": int}
    try:
        with open(path, newline="") as file:
            rows = [{name: kinds.get(name, str)(value) for name, value in row.items()} for row in csv.DictReader(file)]
        records = [Record(**row) for row in rows]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not as this version writes it ({error!r}): have the report written again") from None
    if not records:
        raise ConfigError(f"{path} holds no score: have the report written again")
    return records


def merged(runs: Mapping[str, Sequence[Results]]) -> tuple[list[Record], list[str]]:
    """Records of all runs under the names of their students; what several runs measured alike is taken once.

    Args:
        runs: name of a student -> its runs, of one seed or several.

    Returns:
        The records, and warnings: where runs do not agree.

    Raises:
        ConfigError: when a student would have the name of another system.
    """
    every = {
        record.system for group in runs.values() for each in group for record in each.records if record.kind != "student"
    }
    if taken := sorted((every | {*SYSTEMS} - {"student"}) & runs.keys()):
        raise ConfigError(f"a student is called {taken[0]}, as another system is: rename its run or method")
    notes: list[str] = []
    several = (
        len({name for name, group in runs.items() if any(r.kind == "untrained" for x in group for r in x.records)}) > 1
    )
    kept: dict[tuple[str, str, str, int], Record] = {}
    tested: dict[tuple[str, str, int], int] = {}
    for name, group in runs.items():
        for results in group:
            for each in results.records:
                record = each
                if each.kind == "student":
                    record = replace(each, system=name)
                elif several and each.kind in ("untrained", "pretrained"):
                    record = replace(each, system=f"{name} {each.kind}")
                rows = tested.setdefault((each.task, each.split, each.seed), each.test_rows)
                if rows != each.test_rows:
                    where = f"{each.task}, {each.split} split, seed {each.seed}"
                    notes.append(f"{where}: {results.run} tested on {each.test_rows} rows, another run on {rows}")
                first = kept.setdefault((record.system, record.task, record.split, record.seed), record)
                if abs(first.score - record.score) > 1e-3:
                    what = f"{record.system} on {record.task} has {first.score:.4f} in one run"
                    notes.append(f"{what} and {record.score:.4f} in {results.run}")
    notes = list(dict.fromkeys(notes))
    for note in notes:
        log.warning(note)
    return list(kept.values()), notes
