"""Read and write the weights of an export, and keep the network that is built for them about as large as they are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cache_tools import ConfigError, read_safetensors, sha256
from distill.export.folder import Dtype

SCALE = ".scale"  # ends the name of a tensor's scales, one per row

TIMES = (
    4  # a class may build so many times the parameters that it keeps, for instance a tower of texts beside one of images
)
TENSORS, NUMBERS = 1_000, 100_000_000  # and so many more, for instance a classifier of a thousand classes


def read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of an export, those of float16 and int8 as float32.

    Args:
        path: of its safetensors file.
        digest: SHA-256 that the file must have.

    Raises:
        ConfigError: when the file is missing, no regular file, or damaged.
    """
    if not path.is_file():  # a pipe would never end, nor would /dev/zero
        raise ConfigError(f"cannot read {path}, expected a file: copy the whole folder, or export again")
    try:
        actual = sha256(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): copy the whole folder, or export again") from None
    if actual != digest:
        raise ConfigError(f"{path} is damaged: its SHA-256 is not that of config.json: copy it again, or export again")
    return _unpacked(read_safetensors(path)[0])


def write_weights(modules: nn.Module, path: Path, dtype: Dtype) -> str:
    """Write the weights as :func:`read_weights` reads them; gives the file's SHA-256.

    Args:
        modules: their state is written.
        path: of the safetensors file.
        dtype: of matrices and kernels; see :func:`round_weights`.
    """
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().clone().contiguous() for name, value in modules.state_dict().items()}
    for name in [name for name, value in state.items() if _rounded(value)]:
        state |= {f"{name}{end}": part for end, part in _packed(state[name], dtype).items()}
    save_file(state, path, {"format": "pt"})
    return sha256(path)


def round_weights(modules: nn.Module, dtype: Dtype) -> None:
    """Round matrices and kernels as ``dtype`` stores them. Vectors, as of norms, are few numbers and stay as they are.

    Args:
        modules: are changed.
        dtype: ``float16``, or ``int8``: each row has a factor, so that its largest number is 127.

    Raises:
        ConfigError: when a number is beyond those of float16.
    """
    for name, value in modules.state_dict().items():  # shares its memory with the modules
        if _rounded(value):
            rounded = _unpacked({name + end: part for end, part in _packed(value, dtype).items()})[name]
            if not rounded.isfinite().all():
                raise ConfigError(f"the weights {name} hold numbers beyond float16: export them with --dtype float32")
            value.copy_(rounded)


def _rounded(value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() > 1


def _packed(value: Tensor, dtype: Dtype) -> dict[str, Tensor]:
    """End of a name -> tensor, as they are stored."""
    if dtype != "int8":
        return {"": value.to(getattr(torch, dtype))}
    scale = value.abs().amax(tuple(range(1, value.dim())), keepdim=True) / 127  # (rows, 1, ...)
    return {"": (value / scale.clamp_min(torch.finfo().tiny)).round().to(torch.int8), SCALE: scale}


def _unpacked(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in float32, without their scales."""
    tensors = {name: value.float() if value.dtype == torch.float16 else value for name, value in stored.items()}
    for name in [name for name in tensors if name.removesuffix(SCALE) != name and name.removesuffix(SCALE) in tensors]:
        tensors[name.removesuffix(SCALE)] = tensors[name.removesuffix(SCALE)] * tensors.pop(name)
    return tensors


def require_widths(weights: Mapping[str, Tensor], teacher: str, spec: Mapping[str, Any], path: Path) -> None:
    """Check that a teacher's raw space is as wide as its constants among the weights.

    Args:
        weights: all tensors of the export.
        teacher: its name.
        spec: its ``dim`` and ``targets``, the widths of its embedding and of its target.
        path: the file that says so, for messages.

    Raises:
        ConfigError: when they have other widths.
    """
    widths = [len(weights.get(f"teachers.{teacher}.{constant}", ())) for constant in ("mean", "places")]
    if widths != (said := [spec["dim"], spec["targets"]]):
        raise ConfigError(
            f"{path} gives teacher {teacher} the dim and targets {said}, its weights have {widths}: it was changed; export "
            "the student again"
        )


@contextmanager
def no_larger_than(weights: Mapping[str, Tensor], path: Path) -> Iterator[None]:
    """A context in which modules are built for ``weights``: one that grows far beyond them is stopped early.

    A parameter is counted before it is filled, so memory is not used for it.

    Args:
        weights: the tensors that the modules will get.
        path: the file that says what to build, for messages.

    Raises:
        ConfigError: when the modules are far larger than the weights, or cannot be built at all.
    """
    limits = TIMES * len(weights) + TENSORS, TIMES * sum(tensor.numel() for tensor in weights.values()) + NUMBERS
    tensors = numbers = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal tensors, numbers
        tensors, numbers = tensors + 1, numbers + parameter.numel()
        if tensors > limits[0] or numbers > limits[1]:
            raise ConfigError(
                f"{path} describes a network of more than {tensors - 1:,} tensors and {numbers - parameter.numel():,} "
                f"numbers, its weights have {len(weights):,} tensors: it was changed; export the student again"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError) as error:  # what torch raises of impossible sizes
        raise ConfigError(f"{path} describes no network that can be built: {' '.join(str(error).split())[:300]}") from None
    finally:
        hook.remove()
