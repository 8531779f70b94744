"""Items as people hold them in Python (text, paths, images, arrays), as the bytes that a corpus stores."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from cache_tools.errors import BadItem


def item_bytes(item: Any, modality: str) -> bytes:
    """An item as a corpus holds it.

    Args:
        item: bytes as they are; a SMILES or a text as ``str``; an image as a path, a PIL image, or an array (height, width,
            3) or (height, width), uint8.
        modality: ``molecule``, ``text`` or ``image``.

    Raises:
        BadItem: when it is nothing of this modality.

    >>> item_bytes("CCO", "molecule")
    b'CCO'
    """
    if isinstance(item, bytes):
        return item
    if modality == "image":
        return _image_bytes(item)
    if not isinstance(item, str):
        raise BadItem(f"a {modality} is a str, found {type(item).__name__}")
    return item.encode(errors="surrogatepass")


def _image_bytes(item: Any) -> bytes:
    from PIL import Image, ImageOps

    try:
        if isinstance(item, str | Path):
            return Path(item).read_bytes()
        if not isinstance(item, Image.Image):
            array = np.asarray(item)
            if array.dtype != np.uint8 or array.ndim not in (2, 3):
                raise BadItem(f"an image is uint8 (height, width, 3), found {array.dtype} {array.shape}")
            item = Image.fromarray(array)
        image, file = ImageOps.exif_transpose(item), io.BytesIO()
        image = image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else image  # a PNG knows the others
        image.save(file, "PNG", compress_level=0)
        return file.getvalue()
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise BadItem(f"no image that can be read: {error}") from None
