"""The Distiller: a student and a head per teacher, trained jointly; the heads are dropped afterwards."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cache_tools import ConfigError, Statistics
from distill.data.batch import Batch
from distill.heads import Head, HeadBank, MseDensityHead
from distill.objectives import Objective, Relative, WeightedSum
from distill.students.base import Student
from distill.students.rows import RowTable
from distill.targets import Normaliser, Standardise
from distill.training.guard import Guard, step_facts
from distill.training.metrics import TeacherMetrics
from distill.training.observer import LossObserver, StepLosses
from distill.training.rows import RowAdamW, clip


class Distiller(LightningModule):
    """One student under a head per teacher (arXiv 2510.18680).

    Args:
        statistics: teacher -> statistics of its embeddings; linked from the data, so nobody types a dimension.
        student: the encoder that is kept.
        head: (student_dim, teacher_dim) -> head, for every teacher without one of its own.
        heads: teacher -> a head of its own.
        normaliser: statistics -> normaliser of a teacher's embeddings.
        objective: from the losses of all teachers to one scalar.
        student_lr: learning rate of the student.
        head_lr: learning rate of the heads.
        weight_decay: of both.
        warmup: share of the steps over which learning rates rise; then they fall as a cosine.
        spike: stop when a teacher's loss is so many mean deviations above its running mean; 0: only when it is not finite.
        marginal_modes: Gaussians in the mixture that nats are counted from, fitted to rows of the cache; 1: the
            Gaussian of the cache's own statistics.
        compile: student and heads by ``torch.compile``.
        activation_checkpointing: compute the student's inner activations again in the backward pass rather than keep them.
        dims: also train these prefixes of the embedding, ascending lengths such as ``[64, 128]``, so that its first numbers
            are an embedding of their own (arXiv 2205.13147). Held-out figures are those of the whole embedding.

    Raises:
        ConfigError: when ``heads`` names a teacher that is not there, when a teacher is constant, when an objective
            divides losses that can be negative, and when ``dims`` are no such lengths or a head cannot read a prefix.
    """

    weights: Tensor

    def __init__(
        self,
        statistics: dict[str, Statistics],
        student: Student,
        head: Callable[[int, int], Head] = MseDensityHead,
        heads: dict[str, Callable[[int, int], Head]] | None = None,
        normaliser: Callable[[Statistics], Normaliser] = Standardise,
        objective: Objective | None = None,
        student_lr: float = 1e-4,
        head_lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        spike: float = 1000.0,
        marginal_modes: int = 1,
        compile: bool = False,
        activation_checkpointing: bool = False,
        dims: list[int] | None = None,
    ):
        super().__init__()
        if spike < 0:
            raise ConfigError(f"model.spike is {spike}, expected a number of mean deviations, or 0")
        if compile and activation_checkpointing:
            raise ConfigError("model.compile and model.activation_checkpointing do not go together: leave one out")
        self.student, self.objective, self.teachers = student, objective or WeightedSum(), list(statistics)
        self.objective.attach(self.teachers)
        self.bank = HeadBank(student, statistics, head, heads or {}, normaliser, grouped=not compile, dims=dims or [])
        self._check_signs()
        self.normalisers, self.heads, self.prefixes = self.bank.normalisers, self.bank.heads, self.bank.prefixes
        self.metrics = nn.ModuleDict(
            {
                name: TeacherMetrics.of(self.bank.head(name), self.bank.normaliser(name), known, marginal_modes)
                for name, known in statistics.items()
            }
        )
        self.register_buffer("weights", self.bank.weights, persistent=False)
        # what the cache decides, as banks of its rows, is the same in every process: DDP need not send it in every step
        saved = self.state_dict().keys()
        fixed = [name for name, _ in self.named_buffers() if name.startswith("normalisers.") or name not in saved]
        self._ddp_params_and_buffers_to_ignore = fixed
        self.student_lr, self.head_lr = student_lr, head_lr
        self.weight_decay, self.warmup, self.spike, self.compiled = weight_decay, warmup, spike, compile
        self.observers: list[LossObserver] = []
        if activation_checkpointing:
            student.checkpoint_activations()

    def _check_signs(self) -> None:
        for name in self.teachers if isinstance(self.objective, Relative) else []:
            if (head := self.bank.head(name)).signed:
                raise ConfigError(
                    f"{type(self.objective).__name__} divides losses, and that of teacher {name}, of a "
                    f"{type(head).__name__}, can be negative: take heads whose losses never are, as MseHead"
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        weights = self.weights
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.weights = weights.to(self.weights.device)  # bf16-true must not round them
        return self

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """The student's embedding, (batch, dim), of rows of its input columns."""
        out: Tensor = self.student(inputs)
        return out

    def losses(self, batch: Batch) -> StepLosses:
        """The losses of all teachers for the rows of a batch; outside of training those of the whole embedding."""
        student = torch.cat(self.student.all_embeddings(batch.inputs), 1) if self.bank.ladder else self(batch.inputs)
        targets = self.bank.targets(batch.targets)
        if not self.training:
            targets = {name: self._within(name, target, batch.valid[name]) for name, target in targets.items()}
        losses = self.bank(student, targets, batch.valid, prefixes=self.training)
        return StepLosses(losses, torch.stack([batch.valid[name] for name in self.teachers]), student, targets)

    def _within(self, name: str, target: Tensor, valid: Tensor) -> Tensor:
        """Held-out targets of a teacher, as its figures count them."""
        return cast(TeacherMetrics, self.metrics[name]).within(
            self.bank.head(name), self.bank.normaliser(name), target, valid
        )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        step = self.losses(batch)
        for observer in self.observers:
            observer.on_losses(self.trainer, self, step)
        facts = step_facts(step.losses.detach(), step.valid, batch)
        if self.trainer.world_size > 1:
            facts = facts.of_all_ranks()
        loss = self.objective(step.losses, step.valid, self.weights)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:  # the steps that loggers write: each `log` is 0.5 ms
            self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch.rows))
        return {"loss": loss, "facts": facts.table}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses, valid, student, targets = self.losses(batch)
        with self.bank.precision(student):
            for name, loss, rows in zip(self.teachers, losses, valid, strict=True):
                head, normaliser = self.bank.head(name), self.bank.normaliser(name)
                seen, target = self.bank.read_by(name, student)[rows], targets[name][rows]
                cast(TeacherMetrics, self.metrics[name]).update(head, normaliser, loss[rows], seen, target)

    def on_validation_epoch_end(self) -> None:
        metrics = {name: cast(TeacherMetrics, each) for name, each in self.metrics.items()}
        means = torch.stack([each.mean_loss() for each in metrics.values()]).unsqueeze(1)  # (teachers, 1), of all ranks
        self.log("val/loss", self.objective(means, torch.ones_like(means, dtype=torch.bool), self.weights))
        for name, each in metrics.items():
            for figure, value in each.named(self.bank.head(name)).items():
                self.log(f"{figure}/{name}", value, prog_bar=figure in ("r2", "cosine"))
            each.reset()

    # held-out rows of the corpus; a callback runs the probes
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the student's gradient alone, as the paper does."""
        if gradient_clip_val:
            clip(list(self.student.parameters()), gradient_clip_val)

    def configure_callbacks(self) -> list[Callback]:
        return [Guard(self.teachers, self.spike)]

    def on_fit_start(self) -> None:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        self.observers = [each for each in callbacks if isinstance(each, LossObserver)]
        if not self.trainer.ckpt_path:
            self._begin()
        heads = [self.heads, *self.prefixes.children()]
        for module in [self.student, *(head for each in heads for head in each.children())] if self.compiled else []:
            module.compile()

    def _begin(self) -> None:
        """Let students take the weights that they begin with from the corpora that they read."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        samples = {corpus.inputs.name: corpus.sample for corpus in data.corpora} if data else {}
        for part in self.student.modules():
            if isinstance(part, Student) and (sample := samples.get(getattr(part, "input", ""))):
                part.begin(sample)

    def configure_optimizers(self) -> Any:
        """AdamW with groups for the student, the heads, and tables by rows; linear warm-up, then a cosine to zero."""
        tables = [module.weight for module in self.student.modules() if isinstance(module, RowTable)]
        by_rows = {id(table) for table in tables}
        whole = [parameter for parameter in self.student.parameters() if id(parameter) not in by_rows]
        heads = [each for part in (self.heads, self.prefixes, self.objective) for each in part.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": whole, "lr": self.student_lr, "name": "student"},
            {"params": heads, "lr": self.head_lr, "name": "heads"},
        ]
        if tables:  # runs without a table go on with the groups that their checkpoints have
            groups.append({"params": tables, "lr": self.student_lr, "name": "tables", "rows": True})
        # a fused step undoes a gradient scaler's factor itself, after the clipping, which must not see it
        fused = self.trainer.precision != "16-mixed"
        optimizer = RowAdamW(groups, weight_decay=self.weight_decay, fused=fused)
        optimised = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        left = [name for name, each in self.named_parameters() if each.requires_grad and id(each) not in optimised]
        assert not left, f"no optimiser trains {left}"
        factor = warmup_cosine(int(self.trainer.estimated_stepping_batches), self.warmup)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]


def warmup_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Step -> factor of the learning rate: a linear rise over the share ``warmup`` of all ``steps``, a cosine to zero."""
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        progress = (step - rising) / max(1, steps - rising)
        return (step + 1) / rising if step < rising else 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
