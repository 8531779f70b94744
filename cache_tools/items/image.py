"""Decode, crop and encode images."""

import hashlib
import io
import math
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cache_tools.errors import BadItem

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 90_000_000


def decode_image(item: bytes) -> "Image.Image":
    """The RGB image in ``item``, turned as its EXIF orientation says.

    Args:
        item: an encoded image file: JPEG, PNG, WebP, GIF (its first frame) or BMP.

    Raises:
        BadItem: when it is no such image, is damaged or cut short, or has more than ``MAX_PIXELS`` pixels; the header
            tells their number before any pixel is decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(io.BytesIO(item), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadItem(f"an image of {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are decoded")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey: Pillow would clip all values above 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")
    except Image.DecompressionBombError:
        raise BadItem(f"an image of more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise BadItem(f"no image that can be read, expected {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, struct.error, zlib.error) as error:
        raise BadItem(f"a damaged image: {error}") from None  # Pillow's decoders raise many kinds


def square(image: "Image.Image", size: int, bilinear: bool = False) -> "Image.Image":
    """The image scaled until it covers a square of ``size`` pixels a side, then cut to its middle."""
    from PIL import Image, ImageOps

    method = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), method)


class Crop(NamedTuple):
    """A rectangle of an image in pixels, and whether it is mirrored left to right."""

    left: int
    top: int
    right: int
    bottom: int
    mirrored: bool = False

    @classmethod
    def middle(cls, size: tuple[int, int]) -> "Crop":
        """The largest square in the middle of an image of ``size`` (width, height)."""
        side = min(size)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        return cls(left, top, left + side, top + side)

    def __str__(self) -> str:
        return f"{self.left},{self.top},{self.right},{self.bottom}" + (",mirrored" if self.mirrored else "")


def random_crop(size: tuple[int, int], least: float, key: tuple[object, ...]) -> Crop:
    """A random crop that covers at least ``least`` of the area, 3:4 to 4:3 in shape; half of the crops are mirrored.

    Args:
        size: (width, height).
        least: share of the area, from 0 to 1.
        key: decides the crop; equal keys give equal crops in every process.
    """
    seed = hashlib.sha256(repr(key).encode()).digest()
    random = np.random.default_rng(np.frombuffer(seed, np.uint32))
    area = size[0] * size[1] * random.uniform(least, 1)
    shape = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))  # width / height
    width = int(np.clip(round(np.sqrt(area * shape)), 1, size[0]))
    height = int(np.clip(round(np.sqrt(area / shape)), 1, size[1]))
    needed = least * size[0] * size[1]  # a long image limits one side of the shape: then the other side grows
    width = min(size[0], max(width, math.ceil(needed / height)))
    height = min(size[1], max(height, math.ceil(needed / width)))
    left, top = int(random.integers(size[0] - width + 1)), int(random.integers(size[1] - height + 1))
    return Crop(left, top, left + width, top + height, bool(random.integers(2)))


def cut_out(image: "Image.Image", crop: Crop, size: int) -> bytes:
    """A crop scaled to ``size`` pixels a side, as JPEG of high quality."""
    from PIL import Image, ImageOps

    part = image.resize((size, size), Image.Resampling.BICUBIC, box=crop[:4], reducing_gap=2.0)
    return encode(ImageOps.mirror(part) if crop.mirrored else part)


def encode(image: "Image.Image", quality: int = 95) -> bytes:
    """An image as JPEG with colours at full resolution."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
