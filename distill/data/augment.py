"""Random crops and mirror images of the student's input, on its device, a whole batch at once."""

from typing import Any

import torch
from torch import Tensor


def is_image(rows: Any) -> bool:
    """Whether a student's input is images, (batch, height, width, 3)."""
    return isinstance(rows, Tensor) and rows.ndim == 4


def crop_and_mirror(pixels: Tensor, padding: float = 0.125) -> Tensor:
    """Shift each image at random by up to ``padding`` of its side, edges repeated, and mirror half of them.

    Args:
        pixels: (batch, height, width, 3).
        padding: share of the side.
    """
    batch, height, width, _ = pixels.shape
    along = [_shifted(size, batch, round(padding * size), pixels.device) for size in (height, width)]
    mirrored = torch.rand(batch, 1, device=pixels.device) < 0.5
    columns = torch.where(mirrored, along[1].flip(1), along[1])  # (batch, width)
    images = torch.arange(batch, device=pixels.device)[:, None, None]
    return pixels[images, along[0][:, :, None], columns[:, None, :]]


def _shifted(size: int, batch: int, most: int, device: torch.device) -> Tensor:
    shift = torch.randint(-most, most + 1, (batch, 1), device=device)
    return (torch.arange(size, device=device) + shift).clamp(0, size - 1)  # (batch, size)
