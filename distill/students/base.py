"""The Student contract: the one encoder that is kept."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cache_tools import ConfigError


class Student(nn.Module, ABC):
    """An encoder that reads one input column of the cache. Subclass it in any importable module and name it in YAML.

    Class attributes:
        input: the column that it reads.

    Attributes:
        dim: width of its embedding.
    """

    input: ClassVar[str]
    dim: int

    @property
    def widths(self) -> list[int]:
        """Of what :meth:`embeddings` gives after each block.

        Raises:
            ConfigError: when this student does not say; a ladder of projectors then cannot stand on it.
        """
        raise ConfigError(f"{type(self).__name__} does not say how wide its blocks are: give it `widths`")

    @abstractmethod
    def embeddings(self, rows: Any) -> list[Tensor]:
        """An embedding (batch, width) after each block; the last one, (batch, dim), is the student's.

        Args:
            rows: what the column's featuriser unpacks.
        """

    def checkpoint_activations(self) -> None:
        """From now on compute inner activations again in the backward pass: less memory, more time.

        Raises:
            ConfigError: when this student cannot.
        """
        raise ConfigError(f"{type(self).__name__} cannot compute its activations again: leave activation_checkpointing out")

    def encode(self, rows: Any) -> Tensor:
        """The student's embedding of rows of its column, (batch, dim)."""
        return self.embeddings(rows)[-1]

    def all_embeddings(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """As :meth:`embeddings`, of what :meth:`forward` takes."""
        return self.embeddings(self._mine(inputs))

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """The student's embedding, (batch, dim).

        Args:
            inputs: input column -> rows, as :class:`distill.data.batch.Batch` has them.

        Raises:
            ConfigError: when the student's column is not among them.
        """
        return self.encode(self._mine(inputs))

    def _mine(self, inputs: Mapping[str, Any]) -> Any:
        if self.input not in inputs:
            raise ConfigError(
                f"{type(self).__name__} reads the input column {self.input}, the data gives {', '.join(inputs)}: "
                f"set data.input to {self.input}, or take another student"
            )
        return inputs[self.input]


def recomputed(module: nn.Module, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``block(*inputs)``, a part of ``module``, whose activations the backward pass computes again.

    Batch norms take in a batch once, not again with it.
    """

    @contextmanager
    def still() -> Iterator[None]:
        norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:  # torch leaves by an exception as soon as it has what it needs
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    out: Tensor = checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), still()))
    return out
