"""AdamW whose tables move row by row, so that a large vocabulary costs what a batch reads of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class RowAdamW(torch.optim.AdamW):
    """AdamW; in groups with ``rows`` set, each row of a table (rows, width) has an AdamW of its own.

    A row moves in the steps whose gradient reaches it. Its momenta, its count of steps and its weight decay belong to these
    steps alone: a row that no batch reads stays as it is, and a rare one is not worn away between its uses. PyTorch's AdamW
    instead reads and writes the whole table in every step, and moves all of it.

    Args:
        groups: as of :class:`torch.optim.AdamW`, some with ``"rows": True``.
        options: of :class:`torch.optim.AdamW`.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any):
        super().__init__(groups, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter with a gradient; ``closure`` computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"] if group.get("rows") else []:
                if table.grad is not None:
                    self._step_rows(group, table, *touched(table))
                    table.grad = None  # AdamW leaves it out
        super().step()
        return loss

    def _step_rows(self, group: dict[str, Any], table: Tensor, rows: Tensor, gradient: Tensor) -> None:
        """Move ``rows`` (touched,) of a table by their ``gradient`` (touched, width)."""
        state, (first, second) = self.state[table], group["betas"]
        if not state:
            state |= {"step": table.new_zeros(len(table), 1, dtype=torch.float32)}
            state |= {key: torch.zeros_like(table) for key in ("exp_avg", "exp_avg_sq")}
        step = state["step"][rows] + 1  # (touched, 1)
        mean = state["exp_avg"][rows].lerp_(gradient, 1 - first)  # (touched, width)
        square = state["exp_avg_sq"][rows].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        for key, value in (("step", step), ("exp_avg", mean), ("exp_avg_sq", square)):
            state[key].index_copy_(0, rows, value)
        # in float64: 1 - 0.999 in float32 is wrong by 5e-5
        size = (group["lr"] / (1 - first ** step.double())).to(table.dtype)  # (touched, 1)
        bias = (1 - second ** step.double()).sqrt_().to(table.dtype)
        deviation = square.sqrt_().div_(bias).add_(group["eps"])  # (touched, width)
        moved = table[rows].mul_(1 - group["lr"] * group["weight_decay"]).sub_(mean.div_(deviation).mul_(size))
        table.index_copy_(0, rows, moved)


def touched(table: nn.Parameter) -> tuple[Tensor, Tensor]:
    """The rows that a gradient reaches, (touched,), and the gradient of these, (touched, width)."""
    gradient = table.grad
    assert gradient is not None
    if gradient.is_sparse:
        table.grad = gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    rows = gradient.any(1).nonzero().squeeze(1)
    return rows, gradient[rows]


def clip(parameters: list[nn.Parameter], largest: float) -> None:
    """Scale the gradients so that their norm over all ``parameters`` is at most ``largest``."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None:
            gradients.append(touched(parameter)[1] if parameter.grad.is_sparse else parameter.grad)
    if gradients:
        norm = nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp_max(1.0))
