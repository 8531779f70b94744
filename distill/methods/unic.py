"""UNIC's teacher dropping (arXiv 2408.05088). Its ladder of projectors and its loss are ``MixHead(ladder=True)``."""

from typing import Literal

import torch
from torch import Tensor

from cache_tools.errors import ConfigError
from distill.objective import WeightedSum, mean_of_all_ranks


class TeacherDropping(WeightedSum):
    """In training every row keeps the teacher of its largest loss, and drops each other one at random.

    Args:
        drop: probability; UNIC takes 0.25 for two teachers and 0.5 for four.
        divide_by: ``pairs``: the sum is divided by the (row, teacher) pairs that the whole batch keeps, as in the published
            code; ``row``: by those that each row keeps, and then by the rows.
        shares: as of :class:`distill.objective.WeightedSum`.

    Raises:
        ConfigError: when ``drop`` is not between 0 and 1.
    """

    def __init__(
        self,
        drop: float = 0.5,
        divide_by: Literal["pairs", "row"] = "pairs",
        shares: dict[str, float] | None = None,
    ):
        super().__init__(shares)
        if not 0 <= drop <= 1:
            raise ConfigError(f"drop is {drop}, expected a probability between 0 and 1")
        self.drop, self.divide_by = drop, divide_by

    def forward(self, losses: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
        if not self.training:
            return super().forward(losses, valid, weights) / valid.any(1).sum().clamp_min(1)
        weighted = torch.where(valid, losses * self.weighted(weights).unsqueeze(1), -torch.inf)  # (teachers, batch)
        largest = weighted.argmax(0, keepdim=True)
        kept = torch.rand_like(weighted) >= self.drop
        kept = kept.scatter(0, largest, True) & valid
        each = torch.where(kept, weighted, 0.0)
        if self.divide_by == "pairs":
            return mean_of_all_ranks(each.sum(), kept.sum())
        rows = each.sum(0) / kept.sum(0).clamp_min(1)  # (batch,)
        return mean_of_all_ranks(rows.sum(), valid.any(0).sum())
