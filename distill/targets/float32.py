"""A base class of modules that stay in float32, whatever the precision of the student."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class Float32(nn.Module):
    """A module whose parameters and buffers keep their type under ``.to(dtype)``, which ``bf16-true`` calls.

    They still move to any device. Densities and the statistics of a teacher need float32: with the 8 bits of bfloat16 a
    mean of 100 is off by 0.4.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def exact(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            return out if out.dtype == tensor.dtype else torch.as_tensor(tensor.data, device=out.device)

        super()._apply(exact, recurse)  # type: ignore[no-untyped-call]
        return self
