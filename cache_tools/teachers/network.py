"""Run a frozen torch network: in half precision where that agrees with float32, in batches that fit into the GPU."""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools.hub import content_only
from cache_tools.machine import bf16_instructions
from cache_tools.teachers.base import Tunable

log = logging.getLogger(__name__)


TextPooling = Literal["cls", "mean", "last"]

Precision = Literal["auto", "float32", "bfloat16", "float16"]

LEAST = 0.999  # the smallest cosine to float32 that half precision may have on the first batch


class Network:
    """Runs a frozen network in evaluation mode.

    Args:
        name: for messages.
        module: the network.
        device: where it runs.
        precision: ``auto`` is bfloat16 where the processor has instructions for it, on a GPU float16 where it has none, and
            else float32. Half precision is autocast. The first batch is also run in float32: when a row's cosine is below
            0.999, a warning says so and float32 is used.
        rows: at most so many at a time on a CPU, whose caches are small.
    """

    def __init__(self, name: str, module: nn.Module, device: str, precision: Precision, rows: int | None = None):
        self.name, self.device = name, torch.device(device)
        self.module = module.eval().requires_grad_(False).to(self.device)
        self.module.to(memory_format=torch.channels_last)  # with it, convolutions on a CPU run twice as fast
        self.half = self._half(precision)
        self._checked = self.half is None
        self._most = rows if self.device.type == "cpu" else None  # the most rows at a time

    def modules(self) -> Iterator[nn.Module]:
        """The network and all modules inside it."""
        return self.module.modules()

    def _half(self, precision: Precision) -> torch.dtype | None:
        if precision != "auto":
            return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
        if self.device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if self.device.type == "cpu" and bf16_instructions() else None

    def __call__(self, encode: Callable[[Any], Tensor], rows: Sequence[Any], collate: Callable[[Any], Any]) -> Tensor:
        """Embeddings (batch, dim), float32, of prepared rows.

        Args:
            encode: runs the network on one batch, on the device.
            rows: prepared items.
            collate: makes a batch, a tensor or a mapping of tensors, of some of them.

        Raises:
            torch.OutOfMemoryError: when not even one row fits.
        """
        parts: list[Tensor] = []
        done = 0
        while done < len(rows):
            chunk = rows[done : done + (self._most or len(rows))]
            try:
                parts.append(self._run(encode, collate(chunk)))
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                self._most = len(chunk) // 2
                torch.cuda.empty_cache()
                log.info(
                    "%s: %d rows do not fit into the GPU's memory, now %d at a time", self.name, len(chunk), self._most
                )
                continue
            done += len(chunk)
        return torch.cat(parts)

    def forward(self, encode: Callable[[Any], Tensor], rows: Sequence[Any], collate: Callable[[Any], Any]) -> Tensor:
        """The same embeddings with gradients, in float32 and in one batch."""
        return encode(_move(collate(rows), self.device))

    @torch.inference_mode()
    def _run(self, encode: Callable[[Any], Tensor], batch: Any) -> Tensor:
        moved = _move(batch, self.device)
        if not self._checked:
            self._compare(encode, moved)
            self._checked = True  # after it: a batch that does not fit is compared again, halved
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            return encode(moved).float()

    def _compare(self, encode: Callable[[Any], Tensor], batch: Any) -> None:
        exact = encode(batch).float()
        with torch.autocast(self.device.type, self.half):
            cosine = F.cosine_similarity(encode(batch).float(), exact).min().item()
        if not cosine >= LEAST:  # a NaN is not
            log.warning("%s: %s has cosine %.5f to float32, below %s: float32 is used", self.name, self.half, cosine, LEAST)
            self.half = None


class TorchTeacher(Tunable):
    """A teacher that is one torch network. Subclasses load it, and say how items become a batch and a batch embeddings."""

    network: Network
    precision: Precision

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Any:
        """Prepared items as the network's input: a tensor, or a mapping of tensors."""

    @abstractmethod
    def encode(self, batch: Any) -> Tensor:
        """The embeddings (batch, dim) of what :meth:`collate` made, on the network's device."""

    def embed(self, items: Sequence[Any]) -> Any:
        return self.network(self.encode, items, self.collate)

    @property
    def module(self) -> nn.Module:
        return self.network.module

    def forward(self, items: Sequence[Any]) -> Tensor:
        return self.network.forward(self.encode, items, self.collate)

    def fingerprint(self) -> dict[str, Any]:
        return content_only(super().fingerprint()) | {"weights_sha256": weights_sha256(self.module)}


def _move(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return batch  # the library moves it itself


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of the names and values of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pool_tokens(hidden: Tensor, mask: Tensor, pooling: TextPooling) -> Tensor:
    """One embedding a text, (batch, width).

    Args:
        hidden: the network's output for each token, (batch, tokens, width).
        mask: 0 for padding, else 1, (batch, tokens); padding may stand on either side.
        pooling: which tokens count.
    """
    if pooling == "mean":
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)
    place = mask.argmax(1) if pooling == "cls" else mask.cumsum(1).argmax(1)  # (batch,)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), place]
