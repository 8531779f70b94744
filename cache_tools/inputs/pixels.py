"""Square images, as pixels or as JPEG."""

from typing import Any

import numpy as np

from cache_tools.format.packing import Ragged
from cache_tools.inputs.base import Featuriser


class _Square(Featuriser):
    """An image as a square: scaled until it covers the square, then cut to its middle."""

    modality = "image"
    python_bound = True

    def __init__(self, size: int):
        self.size = size

    def prepare(self, item: bytes) -> Any:
        from cache_tools.items.image import decode_image, square

        return square(decode_image(item), self.size)


class Pixels(_Square):
    """An image as a square of RGB pixels from 0 to 255; a student gets (batch, size, size, 3), uint8.

    Args:
        size: pixels along each side.
    """

    def __init__(self, size: int = 224):
        super().__init__(size)
        self.fields = {"pixels": ("uint8", (size, size, 3))}  # type: ignore[misc]  # a fact of the instance here

    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        return {"pixels": np.asarray(item)[None]}  # (1, size, size, 3)

    def unpack(self, rows: dict[str, Ragged]) -> Any:
        return rows["pixels"].values  # one element a row


class EncodedImage(_Square):
    """The same square as JPEG: a tenth of the size on disk, decoded for each batch; ``data.num_workers`` shares the work.

    Args:
        size: pixels along each side.
        quality: of the JPEG, up to 95; the student's pixels differ a little from those that the teachers saw.
    """

    fields = {"image": ("uint8", ())}

    def __init__(self, size: int = 224, quality: int = 90):
        super().__init__(size)
        self.quality = quality

    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        from cache_tools.items.image import encode

        return {"image": np.frombuffer(encode(item, self.quality), np.uint8)}

    def unpack(self, rows: dict[str, Ragged]) -> Any:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        files = rows["image"].values.split(rows["image"].counts.tolist())
        decoded = [decode_jpeg(file, ImageReadMode.RGB) for file in files]  # (3, size, size) each
        return torch.stack(decoded).permute(0, 2, 3, 1)
