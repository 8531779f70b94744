"""L-BFGS for a batch of smooth convex losses: each problem has a step length of its own."""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

HALVINGS = 12  # of a step; where none descends, float32 has no digits left


def minimise(loss: Loss, start: Tensor, worst: Tensor, tolerance: float, steps: int = 500, memory: int = 10) -> Tensor:
    """The variables that minimise each problem's loss, (problems, variables). A finished problem costs no more time.

    Scale the variables so that the curvature is about one: half the squared gradient then estimates the decrease that
    remains. Nocedal and Wright, Numerical Optimization, algorithm 7.5, with only Armijo's condition: losses are convex.

    Args:
        loss: maps variables (which, variables) and the numbers of their problems (which,) to values and gradients.
        start: (problems, variables).
        worst: a value of each problem's loss, (problems,).
        tolerance: stop when the decrease that remains is this share of the decrease from ``worst``.
        steps: the maximum.
        memory: how many of the last steps estimate the curvature.

    >>> least = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> worst = least.square().sum(1)
    >>> minimise(lambda x, which: ((x - least[which]).square().sum(1), 2 * (x - least[which])), 0 * least, worst, 1e-9)
    tensor([[1., 2.],
            [3., 4.]])
    """
    found, which, at = start.clone(), torch.arange(len(start), device=start.device), start
    value, slope = loss(at, which)
    stuck = torch.zeros_like(which, dtype=torch.bool)
    past: list[tuple[Tensor, Tensor, Tensor]] = []  # moves, changes of the gradient, one over their products
    for _ in range(steps):
        enough = tolerance * (worst[which] - value) + 1e-10 * value.abs()
        going = (slope.square().sum(1) / 2 > enough) & ~stuck
        if not going.all():
            found[which] = at
            which, at, value, slope = which[going], at[going], value[going], slope[going]
            past = [(move[going], change[going], curve[going]) for move, change, curve in past]
        if not len(which):
            break
        direction, size = _newton(slope, past), torch.ones_like(at[:, :1])
        for _ in range(HALVINGS):
            new = at - size * direction
            new_value, new_slope = loss(new, which)
            descent = 1e-4 * size[:, 0] * (direction * slope).sum(1)
            stuck = ~(new_value <= value - descent + 1e-7 * value.abs())  # the last term is float32's noise
            if not stuck.any():
                break
            size = torch.where(stuck.unsqueeze(1), size / 2, size)
        move, change = new - at, new_slope - slope
        product = (move * change).sum(1, keepdim=True)
        past = [*past[1 - memory :], (move, change, torch.where(product > 0, 1 / product, 0))]
        at, value, slope = torch.where(stuck.unsqueeze(1), at, new), new_value, new_slope
    found[which] = at
    return found


def _newton(slope: Tensor, past: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The gradient times the inverse curvature, estimated from the last steps, (problems, variables): algorithm 7.4."""
    out, shares = slope, []
    for move, change, curve in reversed(past):
        shares.append(curve * (move * out).sum(1, keepdim=True))
        out = out - shares[-1] * change
    if past:
        _, change, curve = past[-1]
        out = out * torch.where(curve > 0, 1 / (curve * change.square().sum(1, keepdim=True)), 1)
    for (move, change, curve), share in zip(past, reversed(shares), strict=True):
        out = out + move * (share - curve * (change * out).sum(1, keepdim=True))
    return out
