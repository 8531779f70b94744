"""``distill specialise``: tune a teacher's network on the labels of a task; its logits can then be a column of a cache."""

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm

from cache_tools import (
    BadItem,
    ConfigError,
    Teacher,
    TrainingError,
    Tunable,
    as_tunable,
    choose_device,
    class_path,
    teacher_facts,
    write_specialist,
)
from distill.evaluation.probes import PROBES, TRAINED, LinearProbe
from distill.evaluation.tasks.base import Array, Task, distinct

log = logging.getLogger(__name__)


KINDS = ("classification", "multiclass")  # of tasks that give logits

SPLITS = ("own", "scaffold")  # the first that a task offers is its default

PARTS = ("training", "validation", "test")

LEAST = 10  # training rows

CHOOSE = 0.1  # share of the training rows that choose the frozen classifier's regularisation

RISE = 0.1  # share of the steps over which the learning rate rises

CLIP = 1.0  # largest norm of the gradient

NARROW = 0.01  # of the widest dimension's deviation: GAT's 300 differ by a factor of two million


def specialise(
    teacher: Teacher,
    task: Task,
    out: Path,
    split: str | None = None,
    epochs: int = 10,
    lr: float = 1e-4,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Tune a teacher's network on a classification task, and keep the epoch that is best on the validation rows.

    A linear classifier is fitted on the frozen network's embeddings first; then it and the whole network are tuned from
    there (Kumar et al., ICLR 2022). The frozen network stays where no epoch is better.

    Args:
        teacher: whose network is tuned.
        task: with a class for each item (``multiclass``), or with labels of 0 and 1, perhaps missing (``classification``).
        out: the safetensors file for :class:`cache_tools.teachers.specialist.Specialist`.
        split: of the task; by default its own, or else by scaffold.
        epochs: over the training rows.
        lr: the highest learning rate of AdamW; it rises, then falls.
        batch_size: rows of a step.
        seed: of the split, and of the order of rows.
        device: auto (a GPU when there is one), cpu, cuda, ...

    Raises:
        TeacherError: when the teacher has no network, or cannot be loaded.
        ConfigError: when the task is of another modality or kind, or has too few rows.
        TrainingError: when the loss is not finite.
    """
    chosen = as_tunable(teacher)
    split = split or next((name for name in SPLITS if task.offers(name)), SPLITS[0])
    check(chosen, task, out, epochs, batch_size)
    torch.manual_seed(seed)
    chosen.load(choose_device(device))
    facts = teacher_facts(chosen)
    data = read(chosen, task)
    parts = divide(data, task, split, seed)
    specialist = TunedClassifier(chosen, data, task.kind, parts, batch_size, seed)
    metric, frozen = specialist.probe.metric, specialist.scores()
    best = specialist.tune(epochs, lr)
    tuned = specialist.scores()
    facts |= {"task": class_path(task), "split": split, "logits": str(len(specialist.bias)), "metric": metric}
    facts |= {"frozen_score": f"{frozen[-1]:.4f}", "score": f"{tuned[-1]:.4f}", "epoch": str(best), "seed": str(seed)}
    write_specialist(out, chosen.module.state_dict(), specialist.classifier(), facts)
    shown = Table("classifier on", *(f"{part} ({len(rows)})" for part, rows in zip(PARTS, parts, strict=True)))
    shown.title = f"{metric}, {split} split"
    for name, scores in (("the frozen network", frozen), (f"the tuned one, epoch {best} of {epochs}", tuned)):
        shown.add_row(name, *(f"{score:.3f}" for score in scores))
    Console().print(shown)
    Console().print(f"written: {out}", soft_wrap=True)


def check(teacher: Tunable, task: Task, out: Path, epochs: int, batch_size: int) -> None:
    """Refuse what cannot be tuned, before anything is loaded.

    Raises:
        ConfigError: with what was expected.
    """
    if teacher.modality != task.modality:
        raise ConfigError(f"{class_path(teacher)} reads {teacher.modality}s, the task has {task.modality}s: change one")
    if task.kind not in KINDS:
        raise ConfigError(f"the task is of kind {task.kind}; a specialist's logits need one of: {', '.join(KINDS)}")
    if out.suffix != ".safetensors" or out.is_dir():
        raise ConfigError(f"out is {out}, expected a file with the ending .safetensors")
    if epochs < 0 or batch_size < 1:
        raise ConfigError(f"epochs {epochs}, batch_size {batch_size}: expected at least 0 and at least 1")


@dataclass(frozen=True)
class Examples:
    """What the teacher can read of a task: a key and an item a row, and labels (rows, labels)."""

    keys: list[str]
    items: list[bytes]
    labels: Array


def read(teacher: Tunable, task: Task) -> Examples:
    """A task's rows; those that the teacher cannot read are left out with a warning."""
    keys, labels = task.load()
    content = dict(zip(distinct(keys), (item for _, item in task.corpus("").rows()), strict=True))
    bad: dict[str, str] = {}
    for key, item in content.items():
        try:
            teacher.prepare(item)
        except (BadItem, UnicodeDecodeError) as error:
            bad[key] = str(error)
    if bad:
        first = next(iter(bad))
        log.warning("%d items are left out; the teacher cannot read them, for instance %s: %s", len(bad), first, bad[first])
    kept = [row for row, key in enumerate(keys) if key not in bad]
    names = [str(keys[row]) for row in kept]
    return Examples(names, [content[name] for name in names], labels[kept])


def divide(data: Examples, task: Task, split: str, seed: int) -> tuple[Array, Array, Array]:
    """Row numbers for training, validation and test.

    Raises:
        ConfigError: when the task has no such split, or a part too few rows.
    """
    if not task.offers(split):
        raise ConfigError(f"the task has no split {split!r}: name one that it has with --split, such as own or random")
    train, valid, test = task.split(split, seed, data.keys)
    if len(train) < LEAST or not len(valid) or not len(test):
        counts = ", ".join(f"{len(rows)} {part}" for rows, part in zip((train, valid, test), PARTS, strict=True))
        raise ConfigError(f"the {split} split has {counts} rows; expected {LEAST} training rows and one of each other")
    taught = data.labels[train]
    if task.kind == "multiclass":
        if lacking := np.setdiff1d(data.labels, taught).astype(int).tolist():
            raise ConfigError(f"no training row of class {lacking[0]}: take another split or seed, or more rows")
        differ = len(np.unique(taught)) > 1
    else:
        differ = (np.nanmin(taught, 0, initial=1) < np.nanmax(taught, 0, initial=0)).any()
    if not differ:
        raise ConfigError(f"all {len(train)} training rows have one label: there is nothing to tell apart")
    return train, valid, test


class TunedClassifier(nn.Module):
    """A network and a linear classifier on top of it, on the rows of a task.

    The classifier is the house's linear probe, on standardised dimensions. It leaves out the narrowest dimensions: a step
    that hardly moves one of those would move its standardised value by hundreds of deviations.

    Args:
        teacher: loaded; its network is tuned in place.
        data: the rows.
        kind: of the labels.
        parts: row numbers for training, validation and test.
        size: rows of a step.
        seed: of the order.
    """

    shift: Tensor  # (dim,)
    scale: Tensor  # (dim,)

    def __init__(self, teacher: Tunable, data: Examples, kind: str, parts: Sequence[Array], size: int, seed: int):
        super().__init__()
        self.teacher, self.data, self.kind, self.parts, self.size = teacher, data, kind, parts, size
        self.network, self.random = teacher.module, np.random.default_rng(seed)
        probe = PROBES[kind]()
        assert isinstance(probe, LinearProbe)
        self.probe = probe
        x, y = np.asarray(self._over(self._embed, parts[0]).cpu()), data.labels[parts[0]]
        x[:, (spread := x.std(0)) < NARROW * spread.max()] = 0.0  # a constant, which the probe leaves out
        fold = np.full(len(x), TRAINED)
        fold[self.random.permutation(len(x))[: round(CHOOSE * len(x))]] = 0
        probe.fit(x, y, fold)
        device = next(teacher.module.parameters()).device
        self.register_buffer("shift", torch.as_tensor(probe.shift, dtype=torch.float32, device=device))
        self.register_buffer("scale", torch.as_tensor(probe.scale, dtype=torch.float32, device=device))
        bias, weight = probe.weights.float().to(device).split([1, x.shape[1]], 1)  # (logits, 1), (logits, dim)
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.squeeze(1).clone())

    def forward(self, rows: Array) -> Tensor:
        """Logits (rows, logits), with gradients."""
        return F.linear((self._embed(rows) - self.shift) * self.scale, self.weight, self.bias)

    def classifier(self) -> dict[str, Tensor]:
        """Weight (logits, dim) and bias (logits,) of the classifier of embeddings that are not standardised."""
        weight = self.weight.detach() * self.scale
        return {"weight": weight, "bias": self.bias.detach() - weight @ self.shift}

    def tune(self, epochs: int, lr: float) -> int:
        """Tune all weights, go back to the best epoch, and return its number; 0 is the frozen network.

        Raises:
            TrainingError: when the loss is not finite.
        """
        train, valid, _ = self.parts
        steps = epochs * len(self._batches(train))
        optimiser = torch.optim.AdamW(self.requires_grad_(True).parameters(), lr)
        rise = min(max(RISE, 2 / max(steps, 1)), 0.9)  # of less than two steps it divides by zero
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, max(steps, 1), pct_start=rise)
        best, best_epoch, best_state = self._judge(valid), 0, deepcopy(self.state_dict())
        for epoch in range(1, epochs + 1):
            self.train()
            total = 0.0
            for rows in self._batches(self.random.permutation(train)):
                loss = self._loss(self(rows), rows)
                if not loss.isfinite():
                    raise TrainingError(f"epoch {epoch}: the loss is {loss.item()}, expected a finite one: lower lr, {lr}")
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters(), CLIP)
                optimiser.step()
                schedule.step()
                total += loss.item() * len(rows)
            score = self._judge(valid)
            log.info("epoch %d: loss %.4f, validation %s %.4f", epoch, total / len(train), self.probe.metric, score[0])
            if np.nan_to_num(score).tolist() > np.nan_to_num(best).tolist():  # NaN: labels of one kind alone
                best, best_epoch, best_state = score, epoch, deepcopy(self.state_dict())
        self.load_state_dict(best_state)
        self.requires_grad_(False).eval()
        return best_epoch

    def train(self, mode: bool = True) -> Self:
        """As usual, but batch norms keep their statistics: the classifier was fitted on embeddings made with these."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def scores(self) -> list[float]:
        """The score of the training, the validation and the test rows."""
        return [self._judge(rows)[0] for rows in self.parts]

    def _judge(self, rows: Array) -> tuple[float, float]:
        """The score; and minus the loss, which decides between equal scores."""
        logits = self._over(self, rows)
        by_label = self.probe.judge(np.asarray(logits.cpu()), self.data.labels[rows])[1][self.probe.metric]
        score = float(np.mean(by_label[np.isfinite(by_label)])) if np.isfinite(by_label).any() else float("nan")
        return score, -self._loss(logits, rows).item()

    def _loss(self, logits: Tensor, rows: Array) -> Tensor:
        labels = torch.as_tensor(self.data.labels[rows], device=logits.device)
        if self.kind == "multiclass":
            return F.cross_entropy(logits, labels[:, 0].long())
        known = labels.isfinite()
        losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num().float(), reduction="none")
        return torch.where(known, losses, 0.0).sum() / known.sum().clamp_min(1)

    def _embed(self, rows: Array) -> Tensor:
        return self.teacher.forward([self.teacher.prepare(self.data.items[row]) for row in rows])

    def _over(self, function: Callable[[Array], Tensor], rows: Array) -> Tensor:
        """What ``function`` gives of many rows, (rows, ...), by the network as it is used."""
        self.eval()
        with torch.no_grad():
            return torch.cat([function(batch) for batch in self._batches(rows)])

    def _batches(self, rows: Array) -> list[Array]:
        """Batches of similar size, so that no step is of one row or two."""
        return np.array_split(rows, -(-len(rows) // self.size))
