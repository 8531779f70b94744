"""Representation consolidation (arXiv 2107.08039): the head of a teacher whose embedding is a classifier's logits.

The weight of the generalist teacher is a share of :class:`distill.objectives.WeightedSum`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cache_tools import above_zero
from distill.heads.regression import MseHead


class KlHead(MseHead):
    """``T^2 KL(softmax(t / T) || softmax(prediction / T))`` of logits (Hinton et al., 2015).

    A single logit is read as that of one class against its opposite.

    Args:
        temperature: T.
        layers: hidden layers; none when not given, as in the paper.

    Raises:
        ConfigError: when ``temperature`` is not above 0.
    """

    sums_dimensions = False
    raw_targets = True
    scale_free = True  # a constant added to every logit changes no class

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
        predicted, wanted = self._log_softmax(out.float()), self._log_softmax(target.float())
        return self.temperature**2 * F.kl_div(predicted, wanted, reduction="none", log_target=True).sum(-1)

    def _log_softmax(self, logits: Tensor) -> Tensor:
        if logits.shape[-1] == 1:
            logits = torch.cat([logits, torch.zeros_like(logits)], -1)
        return (logits / self.temperature).log_softmax(-1)
