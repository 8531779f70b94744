"""The Teacher contract: a frozen encoder that turns items into embeddings."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from cache_tools.producer import Producer


class Teacher(Producer):
    """A frozen encoder. Subclass it in any importable module and name the class in YAML.

    Example:
        >>> import numpy as np
        >>> class Length(Teacher):
        ...     modality = "text"
        ...     dim = 1
        ...     def embed(self, items):
        ...         return np.array([[len(item)] for item in items], dtype=np.float32)
        >>> Length().embed(["ab", "c"]).tolist()
        [[2.0], [1.0]]

    Class attributes:
        binary: embeddings are 0 or 1; the cache packs eight to a byte.
        live: it can embed items that it has never seen; embeddings imported from a file cannot.
    """

    dim: int
    binary: ClassVar[bool] = False
    live: ClassVar[bool] = True

    @abstractmethod
    def embed(self, items: Sequence[Any]) -> np.ndarray[Any, Any]:
        """Embed prepared items.

        Args:
            items: what :meth:`prepare` gave back, (batch,).

        Returns:
            Finite floats (batch, dim), or 0 and 1 for a binary teacher.
        """


class Tunable(Teacher):
    """A teacher that is a torch network, which `distill specialise` can tune on the labels of a task."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The network, once the teacher is loaded."""

    @abstractmethod
    def forward(self, items: Sequence[Any]) -> Tensor:
        """What :meth:`embed` gives, (batch, dim) in float32, with gradients to :attr:`module`, in the mode it is in.

        Args:
            items: what :meth:`prepare` gave back, (batch,).
        """
