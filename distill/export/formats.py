"""Other formats of an exported student: a torch.export program, ONNX, a sentence-transformers folder."""

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from cache_tools import ConfigError, Featuriser, TokenIds, class_path
from distill.students.base import Student, Traceable
from distill.students.text import TextStudent

Array = np.ndarray[Any, Any]

PROGRAM, SENTENCES = "model.pt2", "sentence-transformers"
ONNX, ONNX_INT8 = "model.onnx", "model-int8.onnx"

# operations whose weights become int8; convolutions of images would be 9 times as slow in onnxruntime, and far from exact
ROUNDED = ["MatMul", "Gemm", "Gather"]

LARGEST_DIFFERENCE = 1e-4  # of an ONNX embedding in float32, as a share of the largest number

RUNS = 5  # whose fastest one is the time of a batch


class OnnxFile(NamedTuple):
    """A file in ONNX, its size and speed, and how near its embeddings are to the student's.

    Attributes:
        name: of the file.
        megabytes: its size.
        per_second: items of a batch that onnxruntime embeds per second of the clock, as they are prepared.
        difference: the largest one of any number, as a share of the largest number.
        cosine: the lowest one with the student's embedding of the same item.
    """

    name: str
    megabytes: float
    per_second: float
    difference: float
    cosine: float


def write_program(student: Student, inputs: Mapping[str, Featuriser], path: Path) -> None:
    """Write the network as torch.export traced it, on the CPU; the size of a batch and of a text is free.

    Args:
        student: in evaluation mode.
        inputs: input column -> its featuriser.
        path: of the program.

    Raises:
        ConfigError: when the student has no such form.
    """
    torch.export.save(_program(_traceable("--program", student, inputs)), path)


def _traceable(option: str, student: Student, inputs: Mapping[str, Featuriser]) -> Traceable:
    """The student as torch.export can trace it.

    Raises:
        ConfigError: when it has no such form.
    """
    if (traceable := student.traceable(next(iter(inputs.values())))) is None:
        raise ConfigError(
            f"{option} is for students of texts, images or molecules that read one of these by a class of this package; "
            f"{class_path(student)} reads {', '.join(inputs)}: leave {option} out"
        )
    return traceable


def _program(traceable: Traceable) -> ExportedProgram:
    with torch.no_grad():
        module, shapes = traceable.module.eval(), traceable.dynamic_shapes
        return torch.export.export(module, traceable.inputs, dynamic_shapes=shapes, strict=False)


def write_onnx(student: Student, inputs: Mapping[str, Featuriser], rows: Mapping[str, Any], folder: Path) -> list[OnnxFile]:
    """Write the network in ONNX, in float32 and with weights in int8, and compare both with the student in onnxruntime.

    Args:
        student: in evaluation mode.
        inputs: input column -> its featuriser.
        rows: input column -> a batch of its rows.
        folder: gets model.onnx and model-int8.onnx, and the code that prepares their inputs where there is such code.

    Raises:
        ConfigError: when the student has no such form, a library is missing, or ONNX computes something else.
    """
    try:
        from onnxruntime import InferenceSession
        from onnxruntime.quantization import quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process
        from onnxscript import opset18 as onnx
    except ImportError as error:
        raise ConfigError(f"--onnx needs libraries ({error}): pip install 'quorum-distill[onnx]'") from None
    traceable = _traceable("--onnx", student, inputs)
    with _without_warnings():
        torch.onnx.export(
            _program(traceable),
            f=folder / ONNX,
            dynamo=True,
            external_data=False,
            verbose=False,
            custom_translation_table={torch.ops.aten.index_add.default: _index_add(onnx)},
        )
        quant_pre_process(folder / ONNX, folder / ONNX_INT8, skip_symbolic_shape=True)
        quantize_dynamic(folder / ONNX_INT8, folder / ONNX_INT8, ROUNDED, per_channel=True)
    if standalone := inputs[student.input].standalone:
        shutil.copyfile(standalone, folder / standalone.name)
    arrays = [tensor.numpy() for tensor in traceable.tensors(rows[student.input])]
    with torch.no_grad():
        wanted = student(rows).numpy()
    files = [_compared(InferenceSession(folder / name), folder / name, arrays, wanted) for name in (ONNX, ONNX_INT8)]
    if not files[0].difference <= LARGEST_DIFFERENCE:
        raise ConfigError(
            f"{ONNX} differs from the student by {files[0].difference:.2g} of its largest number: leave --onnx out"
        )
    return files


def _index_add(onnx: Any) -> Callable[..., Any]:
    """``index_add`` in the operations ``onnx``.

    Of its own accord torch takes ScatterND. Its threads in onnxruntime overwrite each other's sums where an index comes
    more than once (microsoft/onnxruntime issue 18048), so that the same input has other embeddings in every run.
    """

    def index_add(self, dim: int, index, source, alpha: float = 1.0):  # type: ignore[no-untyped-def] # read as ONNX's types
        along = onnx.Constant(value_ints=[-1 if axis == dim else 1 for axis in range(len(source.shape))])
        places = onnx.Expand(onnx.Reshape(index, along), onnx.Shape(source))
        return onnx.ScatterElements(self, places, source, axis=dim, reduction="add")

    return index_add


@contextmanager
def _without_warnings() -> Iterator[None]:
    """A context without the messages on parts that ONNX's exporter and quantiser leave as they are."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _compared(session: Any, path: Path, arrays: Sequence[Array], wanted: Array) -> OnnxFile:
    """What a file costs, and how near its embeddings are to ``wanted`` (batch, dim)."""
    given = {argument.name: array for argument, array in zip(session.get_inputs(), arrays, strict=True)}
    times, differences = [], []
    for _ in range(RUNS):
        begin = time.perf_counter()
        (found,) = session.run(None, given)
        times.append(time.perf_counter() - begin)
        differences.append(np.abs(found - wanted).max() / np.abs(wanted).max())
    cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    megabytes = path.stat().st_size / 1e6
    return OnnxFile(path.name, megabytes, len(wanted) / min(times), float(max(differences)), float(cosines.min()))


def write_sentences(student: Student, inputs: Mapping[str, Featuriser], folder: Path) -> None:
    """Make an export a folder that SentenceTransformer loads: network, pooling and, where there are, linear map and norm.

    Args:
        student: a student of texts.
        inputs: input column -> its featuriser.
        folder: of the export; the modules come into a folder of their own, and ``modules.json`` names them there.

    Raises:
        ConfigError: when the student reads no texts, or sentence-transformers is not installed.
    """
    (featuriser,) = inputs.values() if len(inputs) == 1 else [None]
    if not isinstance(student, TextStudent) or not isinstance(featuriser, TokenIds):
        raise ConfigError(
            f"--sentence_transformers is for a TextStudent that reads TokenIds; this is {class_path(student)}"
        )
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
    except ImportError:
        raise ConfigError("--sentence_transformers needs that library: pip install 'quorum-distill[text]'") from None
    with TemporaryDirectory() as network:
        student.whole_network().save_pretrained(network)
        featuriser.split.pad_token = featuriser.split.pad_token or featuriser.split.eos_token
        featuriser.split.save_pretrained(network)
        modules = [Transformer(network, max_seq_length=featuriser.max_length)]
    width = student.network.config.hidden_size
    modules.append(Pooling(width, "lasttoken" if student.pooling == "last" else student.pooling))
    if isinstance(student.project, nn.Linear):
        dense = Dense(width, student.dim, activation_function=nn.Identity())
        dense.linear.load_state_dict(student.project.state_dict())
        modules.append(dense)
    if student.unit:
        modules.append(Normalize())
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / SENTENCES), create_model_card=False)
    parts = json.loads((folder / SENTENCES / "modules.json").read_text())
    places = [{**part, "path": f"{SENTENCES}/{part['path']}".rstrip("/")} for part in parts]
    (folder / "modules.json").write_text(json.dumps(places, indent=1) + "\n")
