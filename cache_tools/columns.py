"""Student inputs as columns: what a student reads is made once, like an embedding, but with rows of different lengths."""

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from cache_tools.errors import BadItem
from cache_tools.producer import Producer


class Featuriser(Producer):
    """Turns one item into named arrays; rows may differ in length.

    Class attributes:
        fields: name -> (dtype on disk, shape of one element).
    """

    fields: ClassVar[dict[str, tuple[str, tuple[int, ...]]]]

    @abstractmethod
    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        """One prepared item as ``field -> (length, *shape)``.

        Raises:
            BadItem: when the item cannot be expressed.
        """


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


class Pixels(Featuriser):
    """An image as a square of RGB pixels: scaled until it covers the square, then cut to its middle.

    Field: ``pixels`` (1, size, size, 3), red, green and blue from 0 to 255.

    Args:
        size: pixels along each side.
    """

    modality = "image"
    python_bound = True

    def __init__(self, size: int = 224):
        self.size = size
        self.fields = {"pixels": ("uint8", (size, size, 3))}  # type: ignore[misc]  # a fact of the instance here

    def prepare(self, item: bytes) -> Any:
        from cache_tools.images import decode

        return decode(item)

    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        from PIL import Image, ImageOps

        square = ImageOps.fit(item, (self.size, self.size), Image.Resampling.BICUBIC)
        return {"pixels": np.asarray(square)[None]}  # (1, size, size, 3)
