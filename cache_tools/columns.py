"""Student inputs as columns: what a student reads is made once, like an embedding, but with rows of different lengths."""

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from cache_tools.errors import BadItem
from cache_tools.producer import Producer
from cache_tools.store import Ragged


class Featuriser(Producer):
    """Turns one item into named arrays; rows may differ in length.

    Class attributes:
        fields: name -> (dtype on disk, shape of one element).
        padded: the field whose rows a student pads to the longest of a batch, so that rows of like length go together.
    """

    fields: ClassVar[dict[str, tuple[str, tuple[int, ...]]]]
    padded: ClassVar[str | None] = None

    @abstractmethod
    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        """One prepared item as ``field -> (length, *shape)``.

        Raises:
            BadItem: when the item cannot be expressed.
        """

    def unpack(self, rows: dict[str, Ragged]) -> Any:
        """What a student gets of rows that were read back: by default their fields as they are."""
        return rows


class MoleculeGraph(Featuriser):
    """The molecular graph of a SMILES with all atom and bond columns of ``torch_geometric.utils.smiles``.

    Fields: ``atoms`` (atoms, 9), ``edges`` (bonds, 2) as source and target atom, ``bonds`` (bonds, 3). Every chemical
    bond stands in both directions.
    """

    modality = "molecule"
    python_bound = True
    fields = {"atoms": ("uint8", (9,)), "edges": ("int16", (2,)), "bonds": ("uint8", (3,))}

    def prepare(self, item: bytes) -> Any:
        from cache_tools.molecules import parse_smiles

        return parse_smiles(item)

    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        from torch_geometric.utils.smiles import from_rdmol

        try:
            data = from_rdmol(item)
        except ValueError as error:  # an atom or bond outside the tables of torch_geometric
            raise BadItem(f"no feature for this atom or bond: {error}") from None
        if len(data.x) > np.iinfo(np.int16).max:
            raise BadItem(f"{len(data.x)} atoms, at most {np.iinfo(np.int16).max} are supported")
        return {"atoms": data.x.numpy(), "edges": data.edge_index.T.numpy(), "bonds": data.edge_attr.numpy()}


class _Square(Featuriser):
    """An image as a square: scaled until it covers the square, then cut to its middle."""

    modality = "image"
    python_bound = True

    def __init__(self, size: int):
        self.size = size

    def prepare(self, item: bytes) -> Any:
        from cache_tools.images import decode, square

        return square(decode(item), self.size)


class Pixels(_Square):
    """An image as a square of RGB pixels, from 0 to 255; a student gets (batch, size, size, 3), uint8.

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
    """The same square as JPEG: a tenth of the size on disk, decoded for each batch (``data.num_workers`` shares the work).

    Args:
        size: pixels along each side.
        quality: of the JPEG, up to 95; the student's pixels differ a little from those that the teachers saw.
    """

    fields = {"image": ("uint8", ())}

    def __init__(self, size: int = 224, quality: int = 90):
        super().__init__(size)
        self.quality = quality

    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        from cache_tools.images import encode

        return {"image": np.frombuffer(encode(item, self.quality), np.uint8)}

    def unpack(self, rows: dict[str, Ragged]) -> Any:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        files = rows["image"].values.split(rows["image"].counts.tolist())
        decoded = [decode_jpeg(file, ImageReadMode.RGB) for file in files]  # (3, size, size) each
        return torch.stack(decoded).permute(0, 2, 3, 1)


class TokenIds(Featuriser):
    """A text as the token ids of a transformers tokenizer, special tokens included.

    Field: ``tokens`` (tokens,).

    Args:
        tokenizer: a hub name, a folder with the tokenizer's files, or ``package:NAME/FOLDER``.
        max_length: a longer text is cut to so many tokens.
        revision: the hub revision to pin.

    Raises:
        TeacherError: when there is no such tokenizer.
    """

    modality = "text"
    python_bound = True
    fields = {"tokens": ("int32", ())}
    padded = "tokens"

    def __init__(self, tokenizer: str, max_length: int = 128, revision: str | None = None):
        self.tokenizer, self.max_length, self.revision = tokenizer, max_length, revision

    def load(self, device: str) -> None:
        from cache_tools.hub import load_tokenizer

        self.split = load_tokenizer(self.tokenizer, self.revision)
        self.split("", truncation=True, max_length=self.max_length)  # set once: a thread cannot while others read

    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        ids = self.split(item, truncation=True, max_length=self.max_length)["input_ids"]
        return {"tokens": np.array(ids, np.int32)}

    def fingerprint(self) -> dict[str, Any]:
        from cache_tools.hub import WHERE, tokenizer_sha256

        known = {key: value for key, value in super().fingerprint().items() if key not in WHERE}
        return known | {"tokenizer_sha256": tokenizer_sha256(self.split)}
