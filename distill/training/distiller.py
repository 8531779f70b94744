"""The Distiller: a student and a head per teacher, trained jointly; the heads are dropped afterwards."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cache_tools import ConfigError, Statistics
from distill.data.batch import Batch
from distill.data.columns import Sampled
from distill.heads import MseDensityHead
from distill.heads.base import DensityHead, Head, MlpHead, Surroundings, outputs
from distill.objectives import Objective, Relative, WeightedSum
from distill.students.base import Student
from distill.targets import Normaliser, Raw, Standardise
from distill.targets.marginal import ROWS, MarginalMixture
from distill.training.guard import Guard, step_facts
from distill.training.metrics import TeacherMetrics


def _rows(name: str, statistics: Statistics, count: int) -> Tensor:
    """At most ``count`` embeddings of a teacher, spread over its rows."""
    if not isinstance(statistics, Sampled):
        raise ConfigError(f"the head of teacher {name} needs rows of it: give the model the statistics of a DistillData")
    return statistics.rows(count)


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

    Raises:
        ConfigError: when ``heads`` names a teacher that is not there, when a teacher is constant, and when an objective
            divides losses that can be negative.
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
    ):
        super().__init__()
        if spike < 0:
            raise ConfigError(f"model.spike is {spike}, expected a number of mean deviations, or 0")
        if compile and activation_checkpointing:
            raise ConfigError("model.compile and model.activation_checkpointing do not go together: leave one out")
        if unknown := sorted(set(heads or {}) - set(statistics)):
            raise ConfigError(f"model.heads names {', '.join(unknown)}; the teachers are: {', '.join(statistics)}")
        self.student, self.objective = student, objective or WeightedSum()
        self.teachers = list(statistics)
        self.objective.attach(self.teachers)
        self.normalisers, self.heads, self.metrics = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for name, known in statistics.items():
            self._add_teacher(name, known, (heads or {}).get(name, head), normaliser, marginal_modes)
        signed = [name for name in self.teachers if self._head(name).signed]
        if isinstance(self.objective, Relative) and signed:
            raise ConfigError(
                f"{type(self.objective).__name__} divides losses, and that of teacher {signed[0]}, of a "
                f"{type(self._head(signed[0])).__name__}, can be negative: take heads whose losses never are, as MseHead"
            )
        weights = [
            student.dim / self._normaliser(name).dim if self._head(name).sums_dimensions else 1.0 for name in statistics
        ]
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        # what the cache decides, as banks of its rows, is the same in every process: DDP need not send it in every step
        saved = self.state_dict().keys()
        fixed = [name for name, _ in self.named_buffers() if name.startswith("normalisers.") or name not in saved]
        self._ddp_params_and_buffers_to_ignore = fixed
        self.student_lr, self.head_lr = student_lr, head_lr
        self.weight_decay, self.warmup, self.spike, self.compiled = weight_decay, warmup, spike, compile
        self.together = [] if compile else self._groups()
        self.ladder = any(self._head(name).ladder for name in statistics)
        if activation_checkpointing:
            student.checkpoint_activations()

    def _add_teacher(
        self,
        name: str,
        statistics: Statistics,
        head: Callable[[int, int], Head],
        normaliser: Callable[[Statistics], Normaliser],
        modes: int,
    ) -> None:
        normal = normaliser(statistics)
        if not normal.dim:
            raise ConfigError(
                f"teacher {name} is constant over the corpus and teaches nothing: leave it out of data.teachers"
            )
        built = head(self.student.dim, normal.dim)
        if built.raw_targets:
            normal = Raw(statistics)
            built = head(self.student.dim, normal.dim)
        widths = self.student.widths if built.ladder else [self.student.dim]
        known = Surroundings(widths, lambda count: normal(_rows(name, statistics, count)))
        built.attach(known)
        mixed = modes > 1 and isinstance(built, DensityHead) and not built.raw_targets
        marginal = MarginalMixture.fitted(known.rows(ROWS), modes) if mixed else None
        self.normalisers[name], self.heads[name], self.metrics[name] = normal, built, TeacherMetrics(normal.dim, marginal)

    def _groups(self) -> list[list[str]]:
        """Teachers whose heads have hidden layers of equal shapes."""
        groups: dict[Any, list[str]] = {}
        for name, head in self.heads.items():
            if isinstance(head, MlpHead) and type(head).forward is MlpHead.forward and not head.ladder | head.pairs_rows:
                groups.setdefault(str(list(head.mlp.children())[:-1]), []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        weights = self.weights
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.weights = weights.to(self.weights.device)  # no rounding of them under bf16-true
        return self

    def _head(self, name: str) -> Head:
        return cast(Head, self.heads[name])

    def _normaliser(self, name: str) -> Normaliser:
        return cast(Normaliser, self.normalisers[name])

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """The student's embedding, (batch, dim), of rows of its input columns."""
        out: Tensor = self.student(inputs)
        return out

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Losses (teachers, batch), validity (teachers, batch), what the heads read of the student, and their targets.

        They read its embedding, (batch, dim); where a head has a ladder, those after every block side by side, the
        embedding last.
        """
        student = torch.cat(self.student.all_embeddings(batch.inputs), 1) if self.ladder else self(batch.inputs)
        targets = {name: self._normaliser(name)(batch.targets[name]) for name in self.teachers}
        # products of this size are launched together on a GPU; a CPU is busy with each one, and pays for stacking
        groups = self.together if student.device.type != "cpu" else []
        with self._heads_precision(student):
            losses = self._head_losses(student, targets, batch.valid, groups)
        return losses, torch.stack([batch.valid[name] for name in self.teachers]), student, targets

    def _head_losses(
        self, student: Tensor, targets: Mapping[str, Tensor], valid: Mapping[str, Tensor], groups: list[list[str]]
    ) -> Tensor:
        """Losses (teachers, batch); the heads of a group are computed together."""
        found: dict[str, Tensor] = {}
        for names in groups:
            heads = [cast(MlpHead, self.heads[name]) for name in names]
            each = zip(names, heads, outputs(heads, self.seen_by(names[0], student)), strict=True)
            found |= {name: head.loss(out, targets[name]) for name, head, out in each}
        for name in [name for name in self.teachers if name not in found]:
            seen, target, ok = self.seen_by(name, student), targets[name], valid[name]
            if self._head(name).pairs_rows:
                loss = 0 * seen.float().sum(-1)  # without a valid row, too, it has a gradient: DDP waits for one
                found[name] = loss.masked_scatter(ok, self._head(name)(seen[ok], target[ok])) if ok.any() else loss
            else:
                found[name] = self._head(name)(seen, target)
        return torch.stack([found[name] for name in self.teachers])

    def seen_by(self, name: str, student: Tensor) -> Tensor:
        """What a teacher's head reads, of what :meth:`losses` gave."""
        return student if self._head(name).ladder else student[:, -self.student.dim :]

    @staticmethod
    def _heads_precision(student: Tensor) -> AbstractContextManager[Any]:
        """Under ``bf16-true`` the heads keep float32 parameters, and multiply as under ``bf16-mixed``."""
        half = student.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(student.device.type, student.dtype) if half else nullcontext()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        losses, valid, _, _ = self.losses(batch)
        facts = step_facts(losses.detach(), valid, batch)
        if self.trainer.world_size > 1:
            facts = facts.of_all_ranks()
        loss = self.objective(losses, valid, self.weights)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch.rows))
        return {"loss": loss, "facts": facts.table}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses, valid, student, targets = self.losses(batch)
        for row, name in enumerate(self.teachers):
            ok = valid[row]
            metrics = cast(TeacherMetrics, self.metrics[name])
            with self._heads_precision(student):
                seen, target = self.seen_by(name, student)[ok], targets[name][ok]
                metrics.update(self._head(name), self._normaliser(name), losses[row][ok], seen, target)

    def on_validation_epoch_end(self) -> None:
        every = [cast(TeacherMetrics, self.metrics[name]) for name in self.teachers]
        means = torch.stack([metrics.mean_loss() for metrics in every]).unsqueeze(1)  # (teachers, 1), of all ranks
        self.log("val/loss", self.objective(means, torch.ones_like(means, dtype=torch.bool), self.weights))
        for name, metrics in zip(self.teachers, every, strict=True):
            for figure, value in metrics.named(self._head(name)).items():
                self.log(f"{figure}/{name}", value, prog_bar=figure in ("r2", "cosine"))
            metrics.reset()

    # held-out rows of the corpus; the probes run beside them, as a callback
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
            nn.utils.clip_grad_norm_(self.student.parameters(), gradient_clip_val)

    def configure_callbacks(self) -> list[Callback]:
        return [Guard(self.teachers, self.spike)]

    def on_fit_start(self) -> None:
        for module in [self.student, *self.heads.values()] if self.compiled else []:
            module.compile()

    def configure_optimizers(self) -> Any:
        """AdamW with a group for the student and one for the heads; linear warm-up, then a cosine to zero."""
        groups = [
            {"params": list(self.student.parameters()), "lr": self.student_lr, "name": "student"},
            {"params": [*self.heads.parameters(), *self.objective.parameters()], "lr": self.head_lr, "name": "heads"},
        ]
        # a fused step undoes a gradient scaler's factor itself, after the clipping, which must not see it
        fused = self.trainer.precision != "16-mixed"
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=fused)
        taken = {id(each) for group in optimizer.param_groups for each in group["params"]}
        left = [name for name, each in self.named_parameters() if each.requires_grad and id(each) not in taken]
        assert not left, f"no optimiser trains {left}"
        steps = int(self.trainer.estimated_stepping_batches)
        rising = max(1, round(self.warmup * steps))

        def factor(step: int) -> float:
            progress = (step - rising) / max(1, steps - rising)
            return (step + 1) / rising if step < rising else 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]
