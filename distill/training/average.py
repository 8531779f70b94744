"""``distill average``: a student between the weights that its fit began with and those that it ended with."""

import io
import logging
from pathlib import Path

import torch

from cache_tools import ConfigError, write_file
from distill.run_folder import RunFolder, newest_run
from distill.training.checkpoint import read_checkpoint

log = logging.getLogger(__name__)

STUDENT = "student."

TRAINING = ("optimizer_states", "lr_schedulers")  # they belong to the weights at the end; no fit goes on from an average


def average(run: Path | None = None, share: float = 0.5) -> None:
    """Write RUN/checkpoints/average.ckpt: the best checkpoint, its student averaged with the one that the fit began with.

    A student that begins with pretrained weights forgets some of what its corpus does not show; weights between both keep
    more of it (WiSE-FT, arXiv 2109.01903). ``distill test`` and ``distill export`` take the file by --ckpt_path. Heads stay
    as they are.

    Args:
        run: the run's folder; by default that of the newest run.
        share: of the trained weights, above 0 and at most 1. Choose it by validation rows, never by test rows:
            ``distill test --ckpt_path RUN/checkpoints/average.ckpt --probe.score_on validation``.

    Raises:
        ConfigError: for another share; when the run began with random weights, or its student has batch norms; when a
            checkpoint is missing or damaged.
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
    if any(name.startswith(STUDENT) and name.endswith("running_mean") for name in state):
        raise ConfigError(
            f"the student of {folder.path} has batch norms, and averaged weights need other statistics than averaged ones: "
            "export its best checkpoint instead"
        )
    averaged = {
        name: torch.lerp(start[name], value, share)
        for name, value in state.items()
        if name.startswith(STUDENT) and value.is_floating_point()
    }
    content, weights = io.BytesIO(), {name: value for name, value in best.items() if name not in TRAINING}
    torch.save({**weights, "state_dict": {**state, **averaged}}, content)
    write_file(folder.average, content.getvalue())
    log.info("written: %s", folder.average)
