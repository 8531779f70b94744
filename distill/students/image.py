"""Students of images."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cache_tools import ConfigError, QuorumError, TeacherError, drop_last_linear, first_line, locate, missing, read_state
from distill.students.base import Student

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which most backbones were trained with


class _PixelStudent(Student):
    """Reads (batch, height, width, 3), uint8; channels are standardised by ImageNet's mean and deviation."""

    input = "pixels"
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std), persistent=False)

    def _scaled(self, pixels: Tensor) -> Tensor:
        scaled = ((pixels - self.mean) / self.std).permute(0, 3, 1, 2)  # (batch, 3, height, width), channels last in memory
        # on a CPU the gradient of a channels-last convolution of fewer than 8 channels writes beyond its end (torch 2.15)
        return scaled if scaled.is_cuda else scaled.contiguous()


class SmallResNet(_PixelStudent):
    """A residual network for images of about 32 pixels: three stages, each half as large and twice as wide as the last.

    Args:
        blocks: of two convolutions in each stage.
        width: channels of the first stage.
        dim: of the embedding; four times the width when not given.
    """

    def __init__(self, blocks: int = 2, width: int = 32, dim: int | None = None):
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.dim, self.inner = dim or widths[-1], widths[:-1]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        before = [width, *widths]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *[
                    _Residual(before[stage] if not each else wide, wide, 2 if stage and not each else 1)
                    for each in range(blocks)
                ]
            )
            for stage, wide in enumerate(widths)
        )
        self.project = nn.Identity() if self.dim == widths[-1] else nn.Linear(widths[-1], self.dim)

    @property
    def widths(self) -> list[int]:
        return [*self.inner, self.dim]

    def embeddings(self, rows: Tensor) -> list[Tensor]:
        x, out = self.stem(self._scaled(rows)), []
        for stage in self.stages:
            x = stage(x)  # (batch, width, height, width)
            out.append(x.mean((2, 3)))
        return [*out[:-1], self.project(out[-1])]


class _Residual(nn.Module):
    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        same = before == width and stride == 1
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.shortcut(x))


class ImageStudent(_PixelStudent):
    """Any backbone of timm, torchvision or transformers.

    Args:
        model: its name in that library; or a folder: ``local-dir:FOLDER`` of timm, that of ``save_pretrained``.
        library: which one.
        pretrained: begin with pretrained weights rather than random ones.
        weights: a file with the network's state to begin with, for timm and torchvision.
        dim: of the embedding, by a linear map; the backbone's width when not given.
        size: pixels along each side, where a backbone of random weights shall have another size than its own (timm).

    Raises:
        ConfigError: when there is no such model.
        TeacherError: when its weights cannot be had.
    """

    def __init__(
        self,
        model: str,
        library: Literal["timm", "torchvision", "transformers"] = "timm",
        pretrained: bool = True,
        weights: str | None = None,
        dim: int | None = None,
        size: int | None = None,
    ):
        if size and library != "timm":
            raise ConfigError(f"size is for timm's networks: leave it out with {library}")
        build = {"timm": _Timm, "torchvision": _Torchvision, "transformers": _Transformers}[library]
        try:
            backbone = build(locate(model), pretrained, locate(weights) if weights else None, size)
        except QuorumError:
            raise
        except Exception as error:  # each library has its own
            if weights:
                raise TeacherError(f"{weights} does not fit {model}, or cannot be read: {first_line(error)}") from None
            raise missing(model, error, "a weights file, or a folder of that model") from None
        super().__init__(backbone.mean, backbone.std)
        self.backbone = backbone
        self.dim = dim or backbone.width
        self.project = nn.Identity() if self.dim == backbone.width else nn.Linear(backbone.width, self.dim)

    def checkpoint_activations(self) -> None:
        network = getattr(self.backbone, "network", None)
        if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in self.modules()):
            raise ConfigError("batch norms would take in each batch twice here: leave activation_checkpointing out")
        enable = getattr(network, "set_grad_checkpointing", getattr(network, "gradient_checkpointing_enable", None))
        if enable is None:
            super().checkpoint_activations()
        else:
            enable()

    def portable(self, init_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        model = _description(init_args["model"], init_args.get("library", "timm"), folder)
        return {**init_args, "model": model, "pretrained": False, "weights": None}

    @property
    def widths(self) -> list[int]:
        training, side = self.training, self.backbone.size
        with torch.no_grad():  # in evaluation mode: batch norms take in nothing
            found = self.eval().embeddings(torch.zeros(1, side, side, 3, dtype=torch.uint8))
        self.train(training)
        return [each.shape[1] for each in found]

    def embeddings(self, rows: Tensor) -> list[Tensor]:
        *inner, last = self.backbone(self._scaled(rows))
        return [*inner, self.project(last)]


class _Backbone(nn.Module):
    """Gives one embedding (batch, width) after each stage, the last one being the network's own."""

    width: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    size = 224  # pixels along each side of an image that it can read


class _Timm(_Backbone):
    def __init__(self, model: str, pretrained: bool, weights: str | None, size: int | None):
        super().__init__()
        options: dict[str, Any] = {"img_size": size} if size else {}
        overlay = {"file": weights} if weights else None
        network = self._create(model, pretrained or bool(weights), overlay, options)
        self.mean, self.std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
        self.width = getattr(network, "head_hidden_size", None) or network.num_features
        self.size = size or network.pretrained_cfg["input_size"][-1]
        self.network: Any = network

    @staticmethod
    def _create(model: str, pretrained: bool, overlay: Any, options: dict[str, Any]) -> Any:
        import timm

        try:
            return timm.create_model(model, pretrained, pretrained_cfg_overlay=overlay, num_classes=0, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            raise ConfigError(f"{model} takes images of any size: leave size out") from None

    def forward(self, pixels: Tensor) -> list[Tensor]:
        if not hasattr(self.network, "forward_intermediates"):
            return [self.network(pixels)]
        last, inner = self.network.forward_intermediates(pixels, norm=False, output_fmt="NCHW")
        return [*(each.mean((2, 3)) for each in inner[:-1]), self.network.forward_head(last)]


class _Torchvision(_Backbone):
    def __init__(self, model: str, pretrained: bool, weights: str | None, size: int | None):
        from torchvision import models

        super().__init__()
        self.network = models.get_model(model, weights="DEFAULT" if pretrained and not weights else None)
        if weights:
            self.network.load_state_dict(read_state(weights))
        self.width = drop_last_linear(model, self.network)
        if getattr(self.network, "aux_logits", False):  # GoogLeNet and Inception give tuples in training
            self.network.aux_logits = False
            for name in {"aux1", "aux2", "AuxLogits"} & {name for name, _ in self.network.named_children()}:
                setattr(self.network, name, None)
        self.inner: list[Tensor] = []
        self.places = (1, 2) if isinstance(self.network, models.SwinTransformer) else (2, 3)  # channels last or first
        features = getattr(self.network, "features", None)
        for stage in features if isinstance(features, nn.Sequential) else self.network.children():
            stage.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            self.inner.append(output.mean(self.places))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        self.inner.clear()
        last = self.network(pixels)
        inner = list(self.inner)
        self.inner.clear()
        return [*inner, last]


class _Transformers(_Backbone):
    def __init__(self, model: str, pretrained: bool, weights: str | None, size: int | None):
        from transformers import AutoImageProcessor, AutoModel

        super().__init__()
        if weights:
            raise ConfigError(f"{model}: transformers reads weights from the model's folder: leave weights out")
        network = (AutoModel.from_pretrained if pretrained else _random)(model)
        self.network = getattr(network, "vision_model", network)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not name.endswith("mask_token"))  # no pixels are masked: DDP would wait for it
        processor = AutoImageProcessor.from_pretrained(model)
        self.mean, self.std = tuple(processor.image_mean), tuple(processor.image_std)
        config = self.network.config
        self.size = getattr(config, "image_size", self.size)
        self.width = config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        out = self.network(pixel_values=pixels, output_hidden_states=True)
        inner = [each.mean((2, 3) if each.ndim == 4 else 1) for each in out.hidden_states[1:-1]]
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            last = out.last_hidden_state
            pooled = last.mean((2, 3)) if last.ndim == 4 else last[:, 0]
        return [*inner, pooled.flatten(1)]


def _description(model: str, library: str, folder: Path) -> str:
    """The name of a backbone without its weights; what it needs is written to ``folder``."""
    if library == "transformers":
        from transformers import AutoConfig, AutoImageProcessor

        for part in (AutoConfig, AutoImageProcessor):
            part.from_pretrained(locate(model)).save_pretrained(folder)
        return str(folder)
    source, _, place = locate(model).partition(":")
    if place and library == "timm":  # local-dir: or hf-hub:, not one of timm's own
        from huggingface_hub import hf_hub_download

        name, _, revision = place.partition("@")
        config = "config.json"
        folder.mkdir(parents=True)
        path = Path(place) / config if source == "local-dir" else hf_hub_download(name, config, revision=revision or None)
        shutil.copyfile(path, folder / config)
        return f"local-dir:{folder}"
    return model


def _random(model: str) -> Any:
    from transformers import AutoConfig, AutoModel

    return AutoModel.from_config(AutoConfig.from_pretrained(model))
