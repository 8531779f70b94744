"""Image decoding that every image reader shares."""

import io
import struct
import zlib
from typing import TYPE_CHECKING

from cache_tools.errors import BadItem

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 90_000_000


def decode(item: bytes) -> "Image.Image":
    """The RGB image in ``item``, turned as its EXIF orientation says.

    Args:
        item: an encoded image file: JPEG, PNG, WebP, GIF (its first frame) or BMP.

    Raises:
        BadItem: when it is no such image, is damaged or cut short, or has more than ``MAX_PIXELS`` pixels; these are
            counted from its header, before any is decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(io.BytesIO(item), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadItem(f"an image of {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are decoded")
        return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError:
        raise BadItem(f"an image of more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise BadItem(f"no image that can be read, expected {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, struct.error, zlib.error) as error:
        raise BadItem(f"a damaged image: {error}") from None  # Pillow's decoders raise what they come across
