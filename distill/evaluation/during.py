"""Probes during a fit, so that the kept checkpoint can be the one with the best downstream score."""

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from distill.evaluation.protocol import Evaluation
from distill.training.precision import as_trained


class ProbeDuring(Callback):
    """Logs ``probe/TASK`` and ``probe/mean`` of the student every ``every`` epochs.

    Scores are of the tasks' validation rows: the checkpoint is chosen by them, and `distill test` then uses other rows.
    Rank zero probes; the other ranks wait for its scores.

    Args:
        evaluation: the run's; its tasks ``during``, its first split and its first seed are used.
    """

    def __init__(self, evaluation: Evaluation):
        tasks = {name: evaluation.tasks[name] for name in evaluation.during}
        self.every = evaluation.every
        self.evaluation = Evaluation(
            tasks,
            splits=evaluation.splits[:1],
            seeds=evaluation.seeds[:1],
            systems=["student"],
            score_on="validation",
            trust_remote_code=evaluation.trust_remote_code,
            cache=evaluation.cache,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self.evaluation.prepare(trainer.datamodule.corpora)  # type: ignore[attr-defined]
        trainer.strategy.barrier()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or (trainer.current_epoch + 1) % self.every:
            return
        scores: dict[str, float] = {}
        if trainer.is_global_zero:
            with as_trained(trainer):
                records = self.evaluation.run({"student": pl_module.student}, str(trainer.strategy.root_device), quiet=True)  # type: ignore[dict-item]
            scores = {record.task: record.score for record in records}
            scores["mean"] = float(np.mean(list(scores.values())))
        for name, score in trainer.strategy.broadcast(scores).items():
            pl_module.log(f"probe/{name}", score, prog_bar=name == "mean")
