"""A frozen torch network: half precision where it agrees with float32, batches cut until they fit into the GPU."""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools.hub import content_only
from cache_tools.teachers.base import Tunable

log = logging.getLogger(__name__)


TextPooling = Literal["cls", "mean", "last"]

Precision = Literal["auto", "float32", "bfloat16", "float16"]

LEAST = 0.999  # cosine to float32 that half precision must keep on the first batch


class Network:
    """Runs a frozen network in evaluation mode.

    Args:
        name: for messages.
        module: the network.
        device: where it runs.
        precision: ``auto`` takes bfloat16 (or float16, where the GPU has no bfloat16) on a GPU and float32 on a CPU. Half
            precision is autocast, and the first batch is also run in float32: where a row's cosine falls below 0.999, a
            warning says so and float32 stays.
        rows: at a time on a CPU, whose caches are small.
    """

    def __init__(self, name: str, module: nn.Module, device: str, precision: Precision, rows: int | None = None):
        self.name, self.device = name, torch.device(device)
        self.module = module.eval().requires_grad_(False).to(self.device)
        self.half = self._half(precision)
        self._checked = self.half is None
        self._most = rows if self.device.type == "cpu" else None  # rows that fit

    def modules(self) -> Iterator[nn.Module]:
        """The network and all modules inside it."""
        return self.module.modules()

    def _half(self, precision: Precision) -> torch.dtype | None:
        if precision == "float32" or (precision == "auto" and self.device.type != "cuda"):
            return None
        if precision == "auto":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]

    def __call__(self, encode: Callable[[Any], Tensor], rows: Sequence[Any], collate: Callable[[Any], Any]) -> Tensor:
        """Embeddings (batch, dim), float32, of prepared rows.

        Args:
            encode: runs the network on one collated batch on the device.
            rows: prepared items.
            collate: from some of them to a tensor, or a mapping of tensors.

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
                    "%s: %d rows do not fit into the GPU's memory, going on with %d", self.name, len(chunk), self._most
                )
                continue
            done += len(chunk)
        return torch.cat(parts)

    def forward(self, encode: Callable[[Any], Tensor], rows: Sequence[Any], collate: Callable[[Any], Any]) -> Tensor:
        """The same with gradients, in float32 and in one piece."""
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
            log.warning("%s: %s has cosine %.5f to float32, below %s: float32 it is", self.name, self.half, cosine, LEAST)
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
    return batch  # a library that moves what it reads


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names and values of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pool_tokens(hidden: Tensor, mask: Tensor, pooling: TextPooling) -> Tensor:
    """One embedding a text, (batch, width).

    Args:
        hidden: of each token, (batch, tokens, width).
        mask: 1 where a token is no padding, (batch, tokens); padding may stand on either side.
        pooling: which tokens count.
    """
    if pooling == "mean":
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)
    place = mask.argmax(1) if pooling == "cls" else mask.cumsum(1).argmax(1)  # (batch,)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), place]
