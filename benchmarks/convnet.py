"""Teachers that read the workplace's safetensors files of small convolutional networks.

These are MobileNets, Tiny Darknet and ResNets for CIFAR. They are no part of the package: a configuration names them, for
instance ``class_path: convnet.MobileNet``, when this folder is in PYTHONPATH.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools.errors import TeacherError
from cache_tools.hub import read_safetensors, weights_file
from cache_tools.items.image import square
from cache_tools.teachers.image import NetworkTeacher
from cache_tools.teachers.network import Precision

State = dict[str, Tensor]


class SquareTeacher(NetworkTeacher):
    """A network that reads a square of pixels, each channel as ``(value / 255 - mean) / std``.

    Args:
        weights: a safetensors file; environment variables are expanded.
        precision: see :class:`cache_tools.teachers.network.Network`.

    Raises:
        TeacherError: when the file is missing or holds another network.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(self, weights: str, precision: Precision = "auto"):
        self.weights = self.init_args["weights"] = str(weights_file(weights))
        self.precision, self.transform = precision, self._standardise

    def load(self, device: str) -> None:
        file = Path(self.weights)
        state, facts = read_safetensors(file)
        try:
            module = self.build(state, facts)
        except (KeyError, RuntimeError, ValueError) as error:
            name = type(self).__name__
            raise TeacherError(f"{file} holds no network that {name} reads ({type(error).__name__}: {error})") from None
        self._start(file.stem, module, device, (self.size, self.size))

    def build(self, state: State, facts: dict[str, str]) -> nn.Module:
        """The network with its weights, from a file's tensors and metadata; sets ``size``."""
        raise NotImplementedError

    def _standardise(self, image: Any) -> Tensor:
        pixels = np.asarray(square(image, self.size, bilinear=True), np.float32) / 255  # (size, size, 3)
        scaled = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))

    def preprocessing(self) -> str:
        return f"square of {self.size}, bilinear, mean {self.mean}, std {self.std}"


class MobileNet(SquareTeacher):
    """MobileNet v1 or v2 converted from TensorFlow Lite, BatchNorm folded; the last average pool is the embedding.

    The file's metadata lists the operations. Padding is TensorFlow's ``SAME``: an odd pixel goes right or below.
    """

    mean, std = (0.5,) * 3, (0.5,) * 3

    def build(self, state: State, facts: dict[str, str]) -> nn.Module:
        graph = json.loads(facts["graph"])
        self.size = int(graph["input"][1])
        return _Graph(graph["ops"], state)


class _Graph(nn.Module):
    """A list of convolutions, additions and one average pool, executed in order."""

    def __init__(self, operations: list[dict[str, Any]], state: State):
        super().__init__()
        end = [operation["op"] for operation in operations].index("AVERAGE_POOL_2D")
        self.operations = operations[:end]
        used = {operation["param"] for operation in self.operations if "param" in operation}
        kept = {name: value.float() for name, value in state.items() if name.split(".")[0] in used}
        self.values = nn.ParameterDict({name.replace(".", "_"): nn.Parameter(value) for name, value in kept.items()})

    def forward(self, pixels: Tensor) -> Tensor:
        outputs = {"input": pixels}
        for operation in self.operations:
            first, *other = (outputs[name] for name in operation["in"])
            out = first + other[0] if operation["op"] == "ADD" else self._convolve(first, operation)
            out = out.clamp(0, 6) if operation["act"] == RELU6 else out
            outputs[operation["out"]] = out
        return out.mean((2, 3))  # (batch, dim)

    def _convolve(self, x: Tensor, operation: dict[str, Any]) -> Tensor:
        weight, bias = (self.values[f"{operation['param']}_{part}"] for part in ("weight", "bias"))
        stride = operation["stride"][0]
        groups = x.shape[1] if operation["op"] == "DEPTHWISE_CONV_2D" else 1
        return F.conv2d(_same(x, weight.shape[-1], stride), weight, bias, stride, groups=groups)


RELU6 = 3  # TensorFlow Lite's number of the activation


def _same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's SAME padding of (batch, channels, height, width)."""
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
    top, left = (pixels // 2 for pixels in total)
    return F.pad(x, (left, total[1] - left, top, total[0] - top))


class TinyDarknet(SquareTeacher):
    """Tiny Darknet; the embedding is the input of its last convolution, averaged over the image."""

    size, mean, std = 224, (0.0,) * 3, (1.0,) * 3

    def build(self, state: State, facts: dict[str, str]) -> nn.Module:
        layers: list[nn.Module] = []
        for kind, name, kernel, _, epsilon in json.loads(facts["arch"])["layers"]:
            if name == "conv2d_16":  # the classifier
                break
            if kind == "Conv2D":
                weight = state[f"{name}.kernel"].float()
                outputs, inputs = weight.shape[:2]
                layers.append(_filled(nn.Conv2d(inputs, outputs, kernel, padding="same", bias=False), weight=weight))
            elif kind == "BatchNormalization":
                names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
                values = {ours: state[f"{name}.{theirs}"].float() for ours, theirs in names.items()}
                layers.append(_filled(nn.BatchNorm2d(len(values["weight"]), epsilon), **values))
            elif kind == "LeakyReLU":
                layers.append(nn.LeakyReLU(0.1))
            elif kind == "MaxPooling2D":
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _filled(module: nn.Module, **values: Tensor) -> nn.Module:
    module.load_state_dict(values, strict=False)
    return module


class CifarResNet(SquareTeacher):
    """The ResNets of He et al. (CVPR 2016, section 4.2) for 32 pixels, shortcuts without parameters (option A)."""

    size, mean, std = 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def build(self, state: State, facts: dict[str, str]) -> nn.Module:
        network = _CifarResNet((int(facts["depth"]) - 2) // 6)
        network.load_state_dict({name: value for name, value in state.items() if not name.startswith("linear")})
        return network


class _CifarResNet(nn.Module):
    def __init__(self, blocks: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(_Block(channels, width), *[_Block(width, width) for _ in range(blocks - 1)])
            for channels, width in ((16, 16), (16, 32), (32, 64))
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(pixels)))
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
        return x.mean((2, 3))  # (batch, 64)


class _Block(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.stride = 1 if channels == width else 2
        self.added = width - channels
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, self.stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        half = self.added // 2
        shortcut = F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(out + shortcut)
