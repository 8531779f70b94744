"""``distill average``: a student between the weights that its fit began with and those that it ended with."""

import io
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cache_tools import ConfigError, choose_device, write_file
from distill.export.write import open_run
from distill.run_folder import RunFolder, newest_run
from distill.training.calibration import calibrated
from distill.training.checkpoint import read_checkpoint

log = logging.getLogger(__name__)

STUDENT = "student."

TRAINING = ("optimizer_states", "lr_schedulers")  # they belong to the weights at the end; no fit goes on from an average


def average(run: Path | None = None, share: float = 0.5) -> None:
    """Write RUN/checkpoints/average.ckpt: the best checkpoint, its student averaged with the one that the fit began with.

    A student that begins with pretrained weights forgets some of what its corpus does not show; weights between both keep
    more of it (WiSE-FT, arXiv 2109.01903). ``distill test`` and ``distill export`` take the file by --ckpt_path. Batch
    norms get the statistics of 2,048 rows of the run's corpora, since their averages are wrong. Heads stay as they are.

    Args:
        run: the run's folder; by default that of the newest run.
        share: of the trained weights, above 0 and at most 1. Choose it by validation rows, never by test rows:
            ``distill test --ckpt_path RUN/checkpoints/average.ckpt --probe.score_on validation``.

    Raises:
        ConfigError: for another share; when the run began with random weights; when a checkpoint is missing or damaged.
        CacheError: when a student has batch norms, and the cache of its run is gone.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}, expected a number above 0, and at most 1")
    folder = RunFolder(run) if run else newest_run()
    best = read_checkpoint(folder.best)
    if not folder.start.is_file():
        raise ConfigError(
            f"no {folder.start}: only a student that began with pretrained weights, or with those of a teacher, can be "
            "averaged with its start"
        )
    start, state = read_checkpoint(folder.start)["state_dict"], best["state_dict"]
    state |= {
        name: torch.lerp(start[name], value, share)
        for name, value in state.items()
        if name.startswith(STUDENT) and value.is_floating_point()
    }
    if any(name.startswith(STUDENT) and name.endswith("running_mean") for name in state):
        state |= _calibrated(folder.best, state)
    content, weights = io.BytesIO(), {name: value for name, value in best.items() if name not in TRAINING}
    torch.save({**weights, "state_dict": state}, content)
    write_file(folder.average, content.getvalue())
    log.info("written: %s", folder.average)


def _calibrated(checkpoint: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The student's part of ``state`` with batch norms that saw rows of the corpora of the checkpoint's run."""
    _, data, model, _ = open_run(checkpoint, heads=False)
    model.student.load_state_dict({name.removeprefix(STUDENT): x for name, x in state.items() if name.startswith(STUDENT)})
    student = calibrated(model.student, data.corpora, choose_device("auto"))
    return {STUDENT + name: value.cpu() for name, value in student.state_dict().items()}
