"""The Student contract: the one encoder that is kept."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from cache_tools.errors import ConfigError


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
    def embeddings(self, rows: Any) -> list[Tensor]:
        """An embedding (batch, width) after each block; the last one, (batch, dim), is the student's.

        Args:
            rows: what the column's featuriser unpacks.
        """

    def encode(self, rows: Any) -> Tensor:
        """The student's embedding of rows of its column, (batch, dim)."""
        return self.embeddings(rows)[-1]

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """The student's embedding, (batch, dim).

        Args:
            inputs: input column -> rows, as :class:`distill.data.Batch` has them.

        Raises:
            ConfigError: when the student's column is not among them.
        """
        if self.input not in inputs:
            raise ConfigError(
                f"{type(self).__name__} reads the input column {self.input}, the data gives {', '.join(inputs)}: "
                f"set data.input to {self.input}, or take another student"
            )
        return self.encode(inputs[self.input])
