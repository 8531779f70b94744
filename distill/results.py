"""What `distill test` leaves of a run in RUN/probes, what is read again for a report, and what a report leaves."""

import csv
import json
import logging
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cache_tools.errors import ConfigError
from cache_tools.producer import libraries
from distill.data import Part
from distill.evaluate import Record, as_json
from distill.systems import SYSTEMS, Cost

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


def about(checkpoint: str, device: str, parts: Sequence[Part], left_out: Sequence[str] = ()) -> dict[str, Any]:
    """How results are made, here and now; ``left_out`` are teachers that could not embed the tasks."""
    corpora = {
        str(part.columns.corpus): {
            "rows": part.corpus.rows,
            "fingerprint": part.corpus.fingerprint,
            "teachers": {name: column.manifest["producer"]["fingerprint"] for name, column in part.teachers.items()},
        }
        for part in parts
    }
    accelerator = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "checkpoint": checkpoint,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["distill", *sys.argv[1:]]),
        "device": f"{device} ({accelerator}), {torch.get_num_threads()} threads",
        "versions": {"quorum-distill": version("quorum-distill"), "python": platform.python_version(), **libraries()},
        "corpora": corpora,
        "left_out": list(left_out),
    }


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


def metrics(run: Path) -> list[dict[str, str]]:
    """What a run logged, also before it was killed; where it did steps twice, those that it went on from."""
    earlier = sorted(run.glob("metrics-*.csv"), key=lambda path: int(path.stem.rpartition("-")[2]))
    rows: list[dict[str, str]] = []
    for path in [*earlier, run / "metrics.csv"]:
        if path.is_file():
            with open(path, newline="") as file:
                more = list(csv.DictReader(file))
            first = min((int(row["step"]) for row in more), default=0)
            rows = [row for row in rows if int(row["step"]) < first] + more
    return rows


def seconds(run: Path) -> float | None:
    """From a fit's start to the last figure that it logged, also before it was killed; None when it logged none.

    Of steps that a run did twice, those that it went on from count.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]

    total, last = 0.0, math.inf
    for path in sorted(run.glob("events.out.tfevents.*"), reverse=True):
        (begun, _), *logged = [(event.wall_time, event.step) for event in EventFileLoader(str(path)).Load()] or [(0.0, 0)]
        total += max((time for time, step in logged if step < last), default=begun) - begun
        last = min([last, *(step for _, step in logged)])
    return total if last < math.inf else None
