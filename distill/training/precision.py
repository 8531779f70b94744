"""The precision of a run: bfloat16 where both its student and its processor gain by it, and the same to the run's end."""

import logging
import os
from contextlib import AbstractContextManager
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from torch import nn

from cache_tools import bf16_instructions, threads
from distill.run_folder import RunFolder
from distill.students.base import Student

log = logging.getLogger(__name__)

Asked = str | int | None  # as Lightning's trainer takes it; None is 32-true

AUTO, FULL, HALF = "auto", "32-true", "bf16-mixed"


class RunTrainer(Trainer):
    """Lightning's trainer. Its ranks share the cores that this process may use, and the command line takes ``auto``.

    Args:
        precision: ``auto``, which :func:`choose_precision` turns into another one first; or one of Lightning's.
        options: see Lightning.
    """

    def __init__(self, *, precision: Asked = AUTO, **options: Any):
        super().__init__(precision=precision, **options)  # type: ignore[arg-type]  # Lightning checks it
        if self.num_devices > 1 and isinstance(self.accelerator, CPUAccelerator):
            share = threads(self.num_devices)
            os.environ["OMP_NUM_THREADS"] = str(share)  # for the other ranks
            torch.set_num_threads(share)


def choose_precision(asked: Asked, student: Student, accelerator: str, run: RunFolder | None) -> tuple[Asked, str]:
    """The precision that a command takes, and the reason in words.

    Args:
        asked: what the configuration says.
        student: of the run.
        accelerator: what the configuration says, such as ``auto`` or ``cpu``.
        run: the run that the command continues or tests; None for a new one.
    """
    gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    by = "a GPU with bfloat16" if gpu and torch.cuda.is_bf16_supported() else "" if gpu else bf16_instructions()
    if run and run.config.is_file():
        began = (yaml.safe_load(run.config.read_text()).get("trainer") or {}).get("precision") or FULL
        if asked == AUTO:
            return began, "as this run began" + _slow(began, by)
        if str(asked or FULL) != str(began):
            log.warning("%s was trained in %s, this command computes in %s: figures will differ", run.path, began, asked)
    if asked != AUTO:
        return asked, "as the configuration says" + _slow(asked, by)
    if not by:
        return FULL, "this processor has no instructions for bfloat16"
    if not student.gains_from_bf16:
        return FULL, f"this {type(student).__name__} gains little from bfloat16"
    if not gpu and any(map(_depthwise, student.modules())):  # a step is 1.1 to 2 times as fast in float32
        return FULL, "on a CPU the gradient of its depthwise convolutions is slow in bfloat16"
    return HALF, f"this machine computes it fast: {by}"


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _slow(precision: Asked, by: str) -> str:
    return "; slow, since this processor has no instructions for it" if "bf16" in str(precision) and not by else ""


def as_trained(trainer: Trainer) -> AbstractContextManager[Any]:
    """Autocast as in the steps of a fit, for a student that embeds rows outside of them."""
    half = {HALF: torch.bfloat16, "16-mixed": torch.float16}.get(str(trainer.precision))
    return torch.autocast(trainer.strategy.root_device.type, half, enabled=half is not None)
