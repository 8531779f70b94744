"""One run of a study: fitted and probed in processes of its own; trials choose its learning rate."""

import fcntl
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from cache_tools import INTERRUPTED, ConfigError, QuorumError
from distill.run_folder import TERMINATED, RunFolder

log = logging.getLogger(__name__)


class ProcessError(QuorumError):
    """A process that ended by itself, with an error."""


@dataclass(frozen=True)
class Sweep:
    """Trials of a learning rate, the same for every method.

    Args:
        keys: of the configuration; all of them are set to the value under trial.
        values: to try.
        epochs: of a trial; below 1: that share of one epoch's batches.

    Raises:
        ConfigError: when there is nothing to try.
    """

    keys: list[str]
    values: list[float]
    epochs: float = 1

    def __post_init__(self) -> None:
        valid = 0 < self.epochs < 1 or (self.epochs >= 1 and float(self.epochs).is_integer())
        if not (self.keys and self.values and valid) or len(set(self.values)) < len(self.values):
            raise ConfigError(
                f"sweep is {self}, expected keys, values that differ, and epochs: a whole number, or a share below 1"
            )

    def options(self, value: float) -> list[str]:
        """Words of the command line that set every key to ``value``."""
        return [word for key in self.keys for word in (f"--{key}", repr(value))]


class Run:
    """One student; each stage is a process of its own and is skipped when its result is there.

    Args:
        method: of the study.
        label: says which ``teachers``; empty when they are those of ``configs``.
        folder: where the run is written.
        configs: configuration files, the later ones win.
        seed: of training.
        probed: systems to probe.
        teachers: the only ones that it learns from; those of ``configs`` when not given.
        splits: the seed of the tasks' splits; ``seed`` when not given.

    Attributes:
        system: its name in the report.
        outcome: the file that exists when nothing is left to do.
        trials: made before it; the best one's learning rate is its own.
    """

    threads = 1  # that a process may use
    stopped = False  # whether the study was interrupted, and with it its processes

    def __init__(
        self,
        method: str,
        label: str,
        folder: Path,
        configs: Sequence[Path],
        seed: int,
        probed: Sequence[str],
        teachers: Sequence[str] | None = None,
        splits: int | None = None,
    ):
        self.method, self.folder, self.configs, self.seed = method, RunFolder(folder), configs, seed
        self.probed, self.teachers, self.splits = probed, teachers, seed if splits is None else splits
        self.system = f"{method}, {label}" if label else method
        self.name, self.outcome = f"{self.system}, seed {seed}", self.folder.results
        self.trials: list[Trial] = []

    @property
    def corpus(self) -> str | None:
        """The corpus that it is to be fitted on, where its configurations name one."""
        corpus: str | None = self._configured("data", "corpus")
        return corpus

    def _contents(self) -> list[dict[str, Any]]:
        return [yaml.safe_load(path.read_text()) or {} for path in self.configs]

    def _configured(self, group: str, key: str) -> Any:
        """The value in the last configuration that has ``group.key``; None when none has it."""
        groups = [content[group] for content in self._contents() if isinstance(content.get(group), dict)]
        return next((values[key] for values in reversed(groups) if key in values), None)

    def options(self) -> list[str]:
        """Words of the command line that configurations do not say.

        Raises:
            QuorumError: when no trial has a loss.
        """
        return best_trial(self.trials).chosen if self.trials else []

    def fit(self) -> None:
        """Train, or continue from the last checkpoint.

        Raises:
            ConfigError: when the folder holds a run with other teachers.
            QuorumError: when it failed.
        """
        with self._locked_log() as output:
            self._fit(output)

    def _fit(self, output: IO[str]) -> None:
        self._require_same_configuration()
        folder = self.folder
        if self.teachers and folder.config.exists():
            self._require_same_teachers(yaml.safe_load(folder.config.read_text())["data"]["teachers"] or [])
        # a process with nothing to do costs seconds; outcomes without checkpoints were copied, or are those of trials
        if folder.finished.exists() or (self.outcome.exists() and not folder.last.exists()):
            return
        if folder.last.exists():
            self._distill(output, "fit", "--config", str(folder.config), "--ckpt_path", str(folder.last))
        else:
            shutil.rmtree(folder.path, ignore_errors=True)  # it was killed before its first checkpoint
            configs = [word for path in (*self.configs, *self._only_teachers()) for word in ("--config", str(path))]
            options = ["--run", str(folder.path), "--seed_everything", str(self.seed), *self.options()]
            self._distill(output, "fit", *configs, *options)
        if not folder.finished.exists():
            raise QuorumError(f"{self.name}: its fit ended before its last step, see the end of {output.name}")

    def test(self) -> None:
        """Probe on the splits.

        Raises:
            QuorumError: when it failed.
        """
        with self._locked_log() as output:
            if not self._is_probed():
                options = ["--probe.seeds", f"[{self.splits}]", "--probe.systems", f"[{','.join(self.probed)}]"]
                self._distill(output, "test", "--ckpt_path", str(self.folder.best), *options)

    def _is_probed(self) -> bool:
        """Whether there are results, and none of a checkpoint from before the fit went on."""
        if not (self.outcome.exists() and self.folder.best.exists()):
            return self.outcome.exists()
        return self.outcome.stat().st_mtime >= self.folder.best.stat().st_mtime

    def _require_same_configuration(self) -> None:
        """Refuse to continue a run that another configuration began."""
        options = self.options()
        wanted = json.dumps([self._contents(), self.seed, *([options] if options else [])], default=str)
        path = self._beside(".made.json")
        if path.is_file() and self.folder.path.is_dir() and path.read_text() != wanted:
            raise ConfigError(
                f"{self.folder.path} was made by another content of {', '.join(map(str, self.configs))}"
                f"{', or with another learning rate' if options else ''}: give the study another folder under `runs`, or "
                "remove this one"
            )
        path.write_text(wanted)

    def _require_same_teachers(self, teachers: Sequence[str]) -> None:
        if set(teachers) != set(self.teachers or []):
            raise ConfigError(
                f"{self.folder.path} has a run with the teachers {', '.join(teachers)}, the study asks for "
                f"{', '.join(self.teachers or [])}: give the study another folder under `runs`, or remove this one"
            )

    def _only_teachers(self) -> list[Path]:
        """Write a configuration beside the run: its teachers, and no heads but theirs."""
        if not self.teachers:
            return []
        heads = self._configured("model", "heads") or {}
        kept = {name: head for name, head in heads.items() if name in self.teachers}
        content = {"data": {"teachers": list(self.teachers)}} | ({"model": {"heads": kept}} if heads else {})
        path = self._beside(".yaml")
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return [path]

    def _beside(self, ending: str) -> Path:
        return self.folder.path.with_name(self.folder.path.name + ending)

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self._beside(".log")

    @contextmanager
    def _locked_log(self) -> Iterator[IO[str]]:
        """Open the run's log; waits for the process of a killed study that still writes the run."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a") as file:  # a process that inherits the file keeps the lock
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: waits for another process that is at it, see %s", self.name, self.log)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _distill(self, output: IO[str], *arguments: str) -> None:
        log.info("%s: distill %s", self.name, arguments[0])
        # with SLURM's variables a process would name its folder for the job, and take the number of tasks for ranks
        variables = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        command = [sys.executable, "-m", "distill.cli", *arguments]
        if self._configured("probe", "trust_remote_code") is True:  # the user named these files; a run's own says false
            command += ["--probe.trust_remote_code", "true"]
        if code := subprocess.run(command, stdout=output, stderr=output, env=variables, check=False).returncode:
            kind = QuorumError if self.stopped or code < 0 or code in (INTERRUPTED, TERMINATED) else ProcessError
            raise kind(f"{self.name}: `distill {' '.join(arguments)}` failed, see the end of {output.name}")


class Trial(Run):
    """One value of a sweep, fitted as a run is; its loss is kept in its folder, its checkpoints are not.

    Args:
        run: the first one of a method: its configurations, seed and teachers are those of the trial.
        sweep: of the study.
        value: one of the sweep's.

    Attributes:
        chosen: words of the command line that a run takes from its best trial.
    """

    def __init__(self, run: Run, sweep: Sweep, value: float):
        folder = run.folder.path.parent / "trials" / f"{run.method}-{value!r}"  # beside runs, whose names end with a seed
        super().__init__(run.method, f"trial of {value!r}", folder, run.configs, run.seed, [], run.teachers)
        self.value, self.outcome = value, folder / "trial.json"
        self.keys, self.epochs, self.chosen = sweep.keys, sweep.epochs, sweep.options(value)

    def options(self) -> list[str]:
        """The value under trial, and what makes a trial of a run."""
        share = ["--trainer.limit_train_batches", str(self.epochs)] if self.epochs < 1 else []
        epochs = ["--trainer.max_epochs", str(max(1, int(self.epochs))), *share]
        return [*epochs, "--monitor", "val/loss", "--probe.every", "0", *self.chosen]

    def fit(self) -> None:
        """Train, and keep the loss; that of a trial that failed is infinite.

        Raises:
            ConfigError: when the folder holds what another configuration made.
            QuorumError: when it was stopped.
        """
        with self._locked_log() as output:
            try:
                self._fit(output)
            except ProcessError as error:
                log.warning("%s", error)
                self._keep(math.inf)
            if not self.outcome.exists():
                losses = [float(row["val/loss"]) for row in self.folder.metrics() if row.get("val/loss")]
                self._keep(losses[-1] if losses else math.inf)
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
            self.folder.finished.unlink(missing_ok=True)

    def _keep(self, loss: float) -> None:
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.outcome.write_text(json.dumps({"value": self.value, "val/loss": loss if math.isfinite(loss) else None}))

    @property
    def loss(self) -> float:
        """On held-out rows at its end; infinite when it failed, is not finite, or is not made."""
        loss = json.loads(self.outcome.read_text())["val/loss"] if self.outcome.is_file() else None
        return math.inf if loss is None else float(loss)


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial with the least loss.

    Raises:
        QuorumError: when none of them has one.
    """
    best = min(trials, key=lambda trial: trial.loss)
    if math.isinf(best.loss):
        raise QuorumError(f"every trial of {best.method} failed, see the end of {best.log}")
    return best


def discard_failed(trials: Sequence[Trial]) -> None:
    """Have trials made again when all of them failed: the cause may have been repaired."""
    if all(trial.outcome.is_file() and math.isinf(trial.loss) for trial in trials):
        for trial in trials:
            trial.outcome.unlink(missing_ok=True)
