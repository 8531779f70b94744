"""Representation consolidation (arXiv 2107.08039): columns of logits under a divergence of softened classes.

The generalist's weight is a share of :class:`distill.objectives.WeightedSum`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cache_tools import above_zero
from distill.heads.regression import MseHead


class KlHead(MseHead):
    """``T^2 KL(softmax(t / T) || softmax(prediction / T))`` of logits (Hinton et al., 2015).

    One logit alone is that of a class and its opposite.

    Args:
        student_dim: width of s.
        teacher_dim: classes.
        temperature: T.
        layers: hidden layers; none when not given, as in the paper.

    Raises:
        ConfigError: when ``temperature`` is not above 0.
    """

    sums_dimensions = False
    raw_targets = True
    scale_free = True  # one more on every logit is the same classes

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        temperature: float = 2.0,
        layers: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(student_dim, teacher_dim, layers or 0, **kwargs)
        above_zero("a KlHead", temperature=temperature)
        self.temperature = temperature

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        mine, theirs = (self._log_classes(each.float()) for each in (out, target))
        return self.temperature**2 * F.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)

    def _log_classes(self, logits: Tensor) -> Tensor:
        if logits.shape[-1] == 1:
            logits = torch.cat([logits, torch.zeros_like(logits)], -1)
        return (logits / self.temperature).log_softmax(-1)
