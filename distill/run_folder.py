"""The folder of a run: the one place that spells where its checkpoints, configuration, metrics and probes are."""

import csv
import errno
import fcntl
import json
import logging
import math
import re
from contextlib import suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import IO, Any
from zlib import crc32

import numpy as np
import yaml

from cache_tools import CORPUS, ConfigError, read_configurations, read_corpus, refuse_remote_code, write_file

TERMINATED = 143  # the status of a command that a SIGTERM stopped

MAP = "map.npz"  # among the probes: two dimensions of the embeddings of one task

log = logging.getLogger(__name__)


class RunFolder:
    """A run's folder.

    Args:
        path: the folder; it need not be there yet.
        probes: where its probes are written; ``probes`` in it when not given.

    Attributes:
        path: the folder.
        config: ``config.yaml``, the whole configuration of the fit.
        checkpoints: ``checkpoints/`` with ``best.ckpt`` and ``last.ckpt``.
        start: ``checkpoints/start.ckpt``, the weights that a fit began with, if they were not random.
        average: ``checkpoints/average.ckpt``, weights between these and the best ones, of ``distill average``.
        finished: the last file that a fit writes; it is there when the last step was done, and not while the fit goes on.
        conflict: ``conflict.csv``, cosines of the teachers' gradients.
        probes: ``probes/``, the results and the report of ``distill test``.
        results: ``probes/results.json``, every score and cost.
        export: ``export/``, the student as :func:`distill.load_student` loads it.

    Example:
        >>> RunFolder(Path("runs/mol")).best.as_posix()
        'runs/mol/checkpoints/best.ckpt'
        >>> RunFolder.of_checkpoint(Path("/runs/mol/checkpoints/last.ckpt")).config.as_posix()
        '/runs/mol/config.yaml'
    """

    def __init__(self, path: Path, probes: Path | None = None):
        self.path = path
        self.config, self.checkpoints = path / "config.yaml", path / "checkpoints"
        self.best, self.last = self.checkpoints / "best.ckpt", self.checkpoints / "last.ckpt"
        self.start, self.average = self.checkpoints / "start.ckpt", self.checkpoints / "average.ckpt"
        self.finished = path / "finished"
        self.conflict, self.probes, self.export = path / "conflict.csv", probes or path / "probes", path / "export"
        self.results = self.probes / "results.json"

    def __repr__(self) -> str:
        fitted = "finished" if self.finished.is_file() else "not finished" if self.config.is_file() else "not begun"
        return f"<RunFolder {self.path}: {fitted}{', probed' if self.results.is_file() else ''}>"

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> "RunFolder":
        """The run whose ``checkpoints`` folder holds ``checkpoint``."""
        return cls(checkpoint.absolute().parent.parent)

    @cached_property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.absolute().name

    @classmethod
    def claim(cls, wanted: Path) -> "RunFolder":
        """Make the folder of a new run: ``wanted``, or ``wanted-2``, ``wanted-3`` ...; no two fits get the same one."""
        wanted.parent.mkdir(parents=True, exist_ok=True)
        folder, number = wanted, 1
        while True:
            with suppress(FileExistsError):
                folder.mkdir()
                return cls(folder)
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")

    def configuration(self, trust_remote_code: bool = False) -> dict[str, Any]:
        """What ``config.yaml`` says; ``probe.trust_remote_code`` is false, since each command must say it itself.

        Args:
            trust_remote_code: the present command allows the classes in it to run Python code that comes with a model.

        Raises:
            ConfigError: when it is no YAML, or no mapping.
            CacheError: when a class in it would run a model's own code, and the command does not allow it.
        """
        content = self._content()
        if isinstance(probe := content.get("probe"), dict):
            probe["trust_remote_code"] = False
        if not trust_remote_code:
            refuse_remote_code(content, self.config)
        return content

    def _content(self) -> dict[str, Any]:
        list(read_configurations(["--config", str(self.config)]))  # tells what is no YAML, with its line
        content = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            found = type(content).__name__
            raise ConfigError(f"{self.config}: expected the keys of a fit, found {found}: restore the file of that run")
        return content

    def modalities(self) -> list[str]:
        """What the items of its corpora are; empty where they cannot be found any more."""
        data = self._content().get("data") or {}
        folders = [Path(corpus["path"]) for corpus in data.get("corpora") or []] or [Path(data.get("corpus") or "")]
        return [read_corpus(folder).modality for folder in folders if (folder / CORPUS).is_file()]

    def lock(self) -> IO[str]:
        """Keep other fits from writing this run, until the file is closed or the process ends.

        Raises:
            ConfigError: when another fit is writing it.
        """
        file = open(self.path / ".lock", "w")  # noqa: SIM115 - the caller keeps it open
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(
                    f"another fit is writing {self.path}: wait for its end or stop it, then run the same command again"
                ) from None
            log.warning("%s cannot be locked (%s): let no other fit write this run", self.path, error.strerror)
        for path in self.checkpoints.glob(".*.tmp"):  # of a fit that was killed
            path.unlink(missing_ok=True)
        return file

    def publish_probes(self, complete: Path) -> None:
        """Move a complete folder of probes to its place, and earlier ones away; the last of several tests wins."""
        earlier, attempts = complete.with_name("earlier"), count()
        while complete.exists():
            with suppress(FileNotFoundError):
                self.probes.rename(f"{earlier}-{next(attempts)}")
            try:
                complete.rename(self.probes)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another test was faster
                    raise

    def finish(self, epoch: int, step: int) -> None:
        """State that the fit is finished, and where it ended."""
        write_file(self.finished, json.dumps({"epoch": epoch, "step": step}) + "\n")

    def keep_metrics(self) -> None:
        """Move the ``metrics.csv`` of a run that goes on out of the way: to ``metrics-1.csv``, ``metrics-2.csv`` ..."""
        with suppress(FileNotFoundError):  # there is none, or another rank did it
            count = len(list(self.path.glob("metrics-*.csv")))
            (self.path / "metrics.csv").rename(self.path / f"metrics-{1 + count}.csv")

    def metrics(self) -> list[dict[str, str]]:
        """What the run logged, before it was killed too; of steps that it did twice, those that it went on from."""
        earlier = sorted(self.path.glob("metrics-*.csv"), key=lambda path: int(path.stem.rpartition("-")[2]))
        rows: list[dict[str, str]] = []
        for path in [*earlier, self.path / "metrics.csv"]:
            if path.is_file():
                more = _read_log(path)
                first = min((int(row["step"]) for row in more), default=0)
                rows = [row for row in rows if int(row["step"]) < first] + more
        return rows

    def seconds(self) -> float | None:
        """From the fit's start to the last figure that it logged; None when it logged none.

        Time before a kill counts; of steps that the run did twice, those that it went on from count.
        """
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]

        total, last = 0.0, math.inf
        for path in sorted(self.path.glob("events.out.tfevents.*"), reverse=True):
            events = [(event.wall_time, event.step) for event in EventFileLoader(str(path)).Load()]
            (begun, _), *logged = events or [(0.0, 0)]
            total += max((time for time, step in logged if step < last), default=begun) - begun
            last = min([last, *(step for _, step in logged)])
        return total if last < math.inf else None

    def last_conflict(self) -> tuple[int, list[str], np.ndarray[Any, Any]] | None:
        """Step, teachers and cosines (teachers, teachers) of the last measurement of conflict; None when there is none."""
        if not self.conflict.is_file():
            return None
        if not (rows := _read_log(self.conflict)):
            return None
        rows = [row for row in rows if row["step"] == rows[-1]["step"]]
        teachers = list(dict.fromkeys(row["teacher_a"] for row in rows))
        rows = rows[-(len(teachers) ** 2) :]  # a run that went on did the step twice
        values = np.array([float(row["cosine"]) for row in rows]).reshape(len(teachers), len(teachers))
        return int(rows[-1]["step"]), teachers, values


def _read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a csv that a fit writes line by line; a last line that was cut, as by a kill, is left out.

    Raises:
        ConfigError: when another row has too few or too many cells, or no step.
    """
    text = path.read_text(errors="replace")
    lines = text.splitlines()
    if text and not text.endswith("\n"):
        log.warning("%s: line %d was cut off while it was written, it is left out", path, len(lines))
        lines.pop()
    rows = []
    for row in (reader := csv.DictReader(lines)):
        if None in row or None in row.values() or not (row.get("step") or "").isdecimal():
            raise ConfigError(
                f"{path}, line {reader.line_num}: expected the columns {', '.join(reader.fieldnames or [])}, with a whole "
                f"number as step, found {lines[reader.line_num - 1][:80]!r}: restore the file, or remove that line"
            )
        rows.append(row)
    return rows


def safe_name(name: str) -> str:
    """A file name for any name, such as a task's; different names never share one.

    >>> safe_name("tox21"), safe_name("tox21 linear")
    ('tox21', 'tox21-linear-402a404d')
    """
    plain = re.sub(r"[^\w.-]+", "-", name)
    return plain if plain == name else f"{plain}-{crc32(name.encode()):08x}"


def newest_run(named: Path | None = None, modality: str | None = None) -> RunFolder:
    """The finished run whose best checkpoint is the newest; an interrupted one only where none is finished.

    Args:
        named: only ``named``, ``named-2``, ``named-3`` ... count; all runs below ``runs/`` when not given.
        modality: only runs on items of this modality count.

    Raises:
        ConfigError: when none of them has a best checkpoint.
    """
    if named:
        its_own = re.compile(re.escape(named.name) + r"(-\d+)*")
        folders = [path for path in named.parent.glob("*") if its_own.fullmatch(path.name)]
    else:
        folders = [path.parents[1] for path in Path("runs").glob("**/checkpoints/best.ckpt")]
    runs = [run for run in map(RunFolder, folders) if run.best.is_file()]
    runs = [run for run in runs if modality in (None, *run.modalities())]
    if not runs:
        of = f" on {modality}s" if modality else ""
        raise ConfigError(
            f"no finished run{of} at {named or 'runs/'}: train one with `distill fit --config configs/mol.yaml`"
        )
    chosen = max(runs, key=lambda run: (run.finished.is_file(), run.best.stat().st_mtime))
    interrupted = "" if chosen.finished.is_file() else ", which is not finished"
    log.info("the newest run: %s%s", chosen.path, interrupted)
    return chosen
