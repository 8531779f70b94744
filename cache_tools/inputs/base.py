"""The Featuriser contract: from one item to the named arrays that a student reads."""

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from cache_tools.format.store import Ragged
from cache_tools.producer import Producer


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
