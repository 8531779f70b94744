"""The Student contract: the one encoder that is kept."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn


class Student(nn.Module, ABC):
    """An encoder that reads one input column of the cache. Subclass it in any importable module and name it in YAML.

    Class attributes:
        input: the column that it reads.

    Attributes:
        dim: width of its embedding.
    """

    input: ClassVar[str]
    dim: int

    @abstractmethod
    def embeddings(self, inputs: Any) -> list[Tensor]:
        """An embedding (batch, width) after each block; the last one, (batch, dim), is the student's."""

    def forward(self, inputs: Any) -> Tensor:
        """The student's embedding, (batch, dim)."""
        return self.embeddings(inputs)[-1]
