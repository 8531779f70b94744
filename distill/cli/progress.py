"""Show how far a fit is: one bar for all epochs with the time left, and a line of figures after each validation."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cache_tools import MESSAGES, shows_bars

log = logging.getLogger(__name__)

FEW_STEPS = 100
TOO_FEW = "a student hardly learns from so few; lower data.batch_size, raise trainer.max_epochs, or build a larger corpus"


class FitProgress(ProgressBar):
    """A bar on a terminal or in a notebook, and a line after each validation, which a log file has, too.

    Lightning's own bars are one for each epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None

    def disable(self) -> None:
        pass  # as Lightning asks on other ranks: only rank zero shows anything

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        if trainer.is_global_zero and steps < FEW_STEPS:
            log.warning("all epochs together are only %d steps: %s", steps, TOO_FEW)
        if not (trainer.is_global_zero and shows_bars(MESSAGES)):
            return
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}")
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=MESSAGES, transient=True)
        total = int(steps) if math.isfinite(steps) else None
        self._task = self._bar.add_task("fit", total=total, completed=trainer.global_step, speed="")
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._bar and trainer.global_step % 10 == 0:
            speed = self._bar.tasks[0].speed
            shown = f"{speed:,.1f} steps/s" if speed else ""
            self._bar.update(self._task, completed=trainer.global_step, speed=shown, description=_epoch(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            log.info("%s: %s", _epoch(trainer), figures(trainer.callback_metrics))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()


def _epoch(trainer: Trainer) -> str:
    last = trainer.max_epochs or -1
    return f"epoch {trainer.current_epoch + 1}" + (f" of {last}" if last > 0 else "")


def figures(metrics: Mapping[str, Any]) -> str:
    """What a validation found, in one line: the loss, and the mean and the worst teacher of each other figure.

    Args:
        metrics: name -> value, as ``r2/maccs``.

    >>> figures({"val/loss": 1.25, "r2/maccs": 0.75, "r2/counts": 0.25, "cosine/e5": 0.5, "probe/mean": 0.625})
    'loss 1.25, r2 0.500 (worst: counts 0.250), cosine 0.500, probe 0.625'
    """
    parts = [f"loss {float(metrics['val/loss']):.5g}"]
    for kind in ("r2", "cosine"):
        of_kind = [name for name in metrics if name.startswith(f"{kind}/")]
        if values := {name.partition("/")[2]: float(metrics[name]) for name in of_kind}:
            worst = min(values, key=lambda teacher: values[teacher])
            beside = f" (worst: {worst} {values[worst]:.3f})" if len(values) > 1 else ""
            parts.append(f"{kind} {sum(values.values()) / len(values):.3f}{beside}")
    if "probe/mean" in metrics:
        parts.append(f"probe {float(metrics['probe/mean']):.3f}")
    return ", ".join(parts)
