"""Random crops and mirror images of the student's input, on its device, a whole batch at once."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# odd numbers of splitmix64 (Steele et al., OOPSLA 2014) and xxHash, as int64
ROW, CORPUS = -7046029254386353131, -4417276706812531889
ROUNDS = ((30, -4658895280553007687), (27, -7723592293110705685))


def is_image(rows: Any) -> bool:
    """Whether a student's input is images, (batch, height, width, 3)."""
    return isinstance(rows, Tensor) and rows.ndim == 4


def alternately_mirrored(rows: Tensor, corpora: Tensor, seed: int, epoch: int) -> Tensor:
    """Which images to mirror: in the first epoch those that a coin for each image chooses, then the others, in turns.

    So in any two consecutive epochs an image is seen once as it is and once mirrored (alternating flip of airbench,
    arXiv 2404.00498, section 3.6). The coin is a hash of the arguments alone: it is the same on every rank, and after a
    restart.

    Args:
        rows: of the images in their corpus, (batch,), int64.
        corpora: number of each row's corpus, (batch,), int64.
        seed: of the run.
        epoch: number of the epoch, from 0.

    Returns:
        (batch,), bool.

    Example:
        >>> rows, corpora = torch.arange(6), torch.zeros(6, dtype=torch.int64)
        >>> first, second = (alternately_mirrored(rows, corpora, seed=0, epoch=epoch) for epoch in (0, 1))
        >>> torch.equal(first, ~second)
        True
    """
    x = rows * ROW + corpora * CORPUS + int(np.random.SeedSequence(seed).generate_state(1)[0])
    for shift, factor in ROUNDS:
        x = (x ^ (x >> shift)) * factor  # beyond 64 bits it wraps
    return (x < 0) ^ (epoch % 2 == 1)


def crop_and_mirror(pixels: Tensor, mirrored: Tensor, padding: float = 0.125) -> Tensor:
    """Shift each image at random by up to ``padding`` of its side, edges repeated, and mirror some.

    Args:
        pixels: (batch, height, width, 3).
        mirrored: which ones, (batch,), bool.
        padding: share of the side.
    """
    batch, height, width, _ = pixels.shape
    along = [_shifted(size, batch, round(padding * size), pixels.device) for size in (height, width)]
    columns = torch.where(mirrored[:, None], along[1].flip(1), along[1])  # (batch, width)
    images = torch.arange(batch, device=pixels.device)[:, None, None]
    return pixels[images, along[0][:, :, None], columns[:, None, :]]


def _shifted(size: int, batch: int, most: int, device: torch.device) -> Tensor:
    shift = torch.randint(-most, most + 1, (batch, 1), device=device)
    return (torch.arange(size, device=device) + shift).clamp(0, size - 1)  # (batch, size)
