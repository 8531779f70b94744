"""The Student contract: the encoder that is trained and kept."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cache_tools import ConfigError, EncodedImage, Featuriser, Pixels, Recorded

# what these arguments are of a random start
RANDOM: Mapping[str, Any] = {"pretrained": False, "weights": None, "start": None}

LARGEST = 65_536  # rows of a batch, and tokens of a text, that a traced program accepts


class Traceable(NamedTuple):
    """What torch.export needs to trace a student.

    Attributes:
        module: the network as a function of tensors.
        inputs: one example of each tensor.
        dynamic_shapes: for each tensor, the axes whose size is free, as torch.export takes them.
        tensors: from rows of the student's column, as :meth:`Student.embeddings` takes them, to the same tensors.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    dynamic_shapes: tuple[dict[int, Any], ...]
    tensors: Callable[[Any], tuple[Tensor, ...]]


class Student(Recorded, nn.Module, ABC):
    """An encoder that reads one input column of the cache. Subclass it in any importable module and name it in YAML.

    Class attributes:
        input: the column that it reads.

    Attributes:
        dim: width of its embedding.
        gains_from_bf16: whether bfloat16 makes it much faster, by measurement; ``trainer.precision: auto`` asks for it.
    """

    input: ClassVar[str]
    dim: int
    gains_from_bf16: bool = True

    @property
    def widths(self) -> list[int]:
        """The width of each embedding that :meth:`embeddings` gives.

        Raises:
            ConfigError: when this student does not say; then it cannot have heads with a ladder of projectors.
        """
        raise ConfigError(f"{type(self).__name__} does not say how wide its blocks are: give it `widths`")

    @abstractmethod
    def embeddings(self, rows: Any) -> list[Tensor]:
        """An embedding (batch, width) after each block; the last one, (batch, dim), is the student's embedding.

        Args:
            rows: a batch of its column, as the column's featuriser unpacks it.
        """

    def begin(self, sample: Callable[[int], Any]) -> None:
        """Set the weights that a new fit begins with, where they depend on the corpus; a continued fit does not call it.

        Args:
            sample: a number -> at most that many rows of its column, as :meth:`embeddings` takes them.
        """

    def checkpoint_activations(self) -> None:
        """Compute inner activations again in the backward pass from now on: less memory, more time.

        Raises:
            ConfigError: when this student cannot do this.
        """
        raise ConfigError(f"{type(self).__name__} cannot compute its activations again: leave activation_checkpointing out")

    def reads(self, column: str) -> bool:
        """Whether it reads the input column of this name."""
        return column == self.input

    def encode(self, rows: Any) -> Tensor:
        """The student's embedding of rows of its column, (batch, dim)."""
        return self.embeddings(rows)[-1]

    def all_embeddings(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The same as :meth:`embeddings`, but for the argument of :meth:`forward`."""
        return self.embeddings(self._mine(inputs))

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """The student's embedding, (batch, dim).

        Args:
            inputs: input column -> rows, as :class:`distill.data.batch.Batch` has them.

        Raises:
            ConfigError: when the student's column is missing.
        """
        return self.encode(self._mine(inputs))

    def portable(self, init_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Arguments that build the same network from ``folder`` alone; the weights come from elsewhere.

        A student whose arguments name no file or model needs no more than this method: it returns them as they are.

        Args:
            init_args: the arguments that this student was built with.
            folder: does not exist yet; a subclass writes the files that its arguments need there.
        """
        return dict(init_args)

    def random_start(self, init_args: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that build the same network with random weights; they equal ``init_args`` if it begins with such.

        Arguments called ``pretrained``, ``weights`` and ``start`` name other weights; a student with others overrides this.

        Args:
            init_args: the arguments that this student was built with.
        """
        return {**init_args, **{key: value for key, value in RANDOM.items() if init_args.get(key)}}

    def token_table(self) -> Tensor | None:
        """The vector of each token, (vocabulary, width), before any context; None when the student has no such table."""
        return None

    def traceable(self, featuriser: Featuriser) -> Traceable | None:
        """This student as torch.export can trace it, or None when it has no such form.

        Every student that reads pixels has one: it takes ``pixels`` (batch, size, size, 3), uint8.

        Args:
            featuriser: makes the column that the student reads.
        """
        if not isinstance(featuriser, Pixels | EncodedImage):
            return None
        from torch.export import Dim

        pixels = torch.zeros(2, featuriser.size, featuriser.size, 3, dtype=torch.uint8)
        return Traceable(_Encoder(self), (pixels,), ({0: Dim("batch", min=1, max=LARGEST)},), lambda rows: (rows,))

    def _mine(self, inputs: Mapping[str, Any]) -> Any:
        if self.input not in inputs:
            raise ConfigError(
                f"{type(self).__name__} reads the input column {self.input}, the data gives {', '.join(inputs)}: "
                f"set data.input to {self.input}, or choose another student"
            )
        return inputs[self.input]


class _Encoder(nn.Module):
    """A student as a function of one tensor, its column's rows."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student

    def forward(self, rows: Tensor) -> Tensor:
        return self.student.encode(rows)


def recomputed(module: nn.Module, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``block(*inputs)``, a part of ``module``, whose activations the backward pass computes again.

    The batch norms count a batch once only: they ignore it when it is computed again.
    """

    @contextmanager
    def frozen_norms() -> Iterator[None]:
        norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:  # torch raises an exception to leave as soon as it has the activations that it needs
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    out: Tensor = checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_norms()))
    return out
