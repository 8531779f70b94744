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

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # of files of these formats
MAX_PIXELS = 90_000_000

UPRIGHT = {  # EXIF's number of an orientation -> the method of Pillow that undoes it
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
ORIENTATION = 0x0112

DAMAGED = (  # what Pillow's decoders and its readers of metadata raise
    *(OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, AttributeError, ArithmeticError),
    *(struct.error, zlib.error),
)


def decode_image(item: bytes) -> "Image.Image":
    """The RGB image in ``item``, turned as its EXIF orientation says; metadata that cannot be read are ignored.

    Args:
        item: an encoded image file: JPEG, PNG, WebP, GIF (its first frame), BMP or TIFF (its first page, up to 16 bits).

    Raises:
        BadItem: when it is no such image, is damaged or cut short, or has more than ``MAX_PIXELS`` pixels; the header
            tells their number before any pixel is decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        try:
            return _decode(item)
        except DAMAGED:
            if not item.startswith(PNG):
                raise
            return _decode(_without_metadata(item))
    except Image.DecompressionBombError:
        raise BadItem(f"an image of more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise BadItem(f"no image that can be read, expected {', '.join(FORMATS)}") from None
    except DAMAGED as error:
        raise BadItem(f"a damaged image: {error}") from None


def _decode(item: bytes) -> "Image.Image":
    from PIL import Image

    image: Image.Image = Image.open(io.BytesIO(item), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise BadItem(f"an image of {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are decoded")
    image.load()
    if image.mode in ("F", "I") and image.format == "TIFF":
        raise BadItem(f"pixels of 32 bits (mode {image.mode}) have no known range, expected up to 16 bits")
    image = _upright(image)
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow would clip all values above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    try:
        method = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except DAMAGED:
        return image
    return image.transpose(Image.Transpose[method]) if method else image


PNG = b"\x89PNG\r\n\x1a\n"


def _without_metadata(png: bytes) -> bytes:
    """A PNG without texts and colour profiles, of which Pillow accepts 1 MB, and only undamaged ones."""
    kept, at = [PNG], len(PNG)
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")  # length, type, content, checksum
        kind = png[at + 4 : at + 8]
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf"):  # upper case: without it no pixel can be decoded
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


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
