"""Other formats of an exported student: a torch.export program, ONNX, a sentence-transformers folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils.rnn import pad_sequence

from cache_tools import ConfigError, Featuriser, Ragged, TokenIds, class_path
from distill.students.base import Student
from distill.students.text import TextStudent

PROGRAM, SENTENCES = "model.pt2", "sentence-transformers"
ONNX, ONNX_INT8 = "model.onnx", "model-int8.onnx"

LARGEST_DIFFERENCE = 1e-4  # of an ONNX embedding in float32, as a share of the largest number


class OnnxFile(NamedTuple):
    """A file in ONNX, its size, and how near its embeddings are to the student's.

    Attributes:
        name: of the file.
        megabytes: its size.
        difference: the largest one of any number, as a share of the largest number.
        cosine: the lowest one with the student's embedding of the same item.
    """

    name: str
    megabytes: float
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
    torch.export.save(_traced("--program", student, inputs), path)


def _traced(option: str, student: Student, inputs: Mapping[str, Featuriser]) -> ExportedProgram:
    """The network as torch.export traces it.

    Raises:
        ConfigError: when the student has no such form.
    """
    traceable = student.traceable(next(iter(inputs.values())))
    if traceable is None:
        raise ConfigError(
            f"{option} is for students of texts or of images; {class_path(student)} reads {', '.join(inputs)}"
        )
    with torch.no_grad():
        module, shapes = traceable.module.eval(), traceable.dynamic_shapes
        return torch.export.export(module, traceable.inputs, dynamic_shapes=shapes, strict=False)


def write_onnx(student: Student, inputs: Mapping[str, Featuriser], rows: Mapping[str, Any], folder: Path) -> list[OnnxFile]:
    """Write the network in ONNX, in float32 and with weights in int8, and compare both with the student in onnxruntime.

    Args:
        student: in evaluation mode.
        inputs: input column -> its featuriser.
        rows: input column -> a batch of its rows.
        folder: gets model.onnx and model-int8.onnx.

    Raises:
        ConfigError: when the student has no such form, a library is missing, or ONNX computes something else.
    """
    try:
        import onnxscript  # noqa: F401 - torch.onnx imports it too late for a message of ours
        from onnxruntime import InferenceSession
        from onnxruntime.quantization import quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ConfigError(f"--onnx needs libraries ({error}): pip install 'quorum-distill[onnx]'") from None
    program = _traced("--onnx", student, inputs)
    torch.onnx.export(program, f=folder / ONNX, dynamo=True, external_data=False, verbose=False)
    quant_pre_process(folder / ONNX, folder / ONNX_INT8, skip_symbolic_shape=True)
    quantize_dynamic(folder / ONNX_INT8, folder / ONNX_INT8)
    given = _tensors(rows[student.input])
    with torch.no_grad():
        wanted = program.module()(*given)
    files = []
    for name in (ONNX, ONNX_INT8):
        session = InferenceSession(folder / name)
        names = [argument.name for argument in session.get_inputs()]
        (values,) = session.run(None, {key: value.numpy() for key, value in zip(names, given, strict=True)})
        found = torch.from_numpy(values)
        difference = float((found - wanted).abs().max() / wanted.abs().max())
        cosine = float(torch.cosine_similarity(found, wanted).min())
        files.append(OnnxFile(name, (folder / name).stat().st_size / 1e6, difference, cosine))
    if not files[0].difference <= LARGEST_DIFFERENCE:
        raise ConfigError(
            f"{ONNX} differs from the student by {files[0].difference:.2g} of its largest number: leave --onnx out"
        )
    return files


def _tensors(rows: Any) -> tuple[Tensor, ...]:
    """Rows of a column as a traced program takes them: pixels; or ids and a mask that is 0 for padding."""
    if isinstance(rows, Tensor):
        return (rows,)
    tokens: Ragged = rows["tokens"]
    ids = pad_sequence(tokens.values.long().split(tokens.counts.tolist()), batch_first=True)  # (batch, tokens)
    return ids, (torch.arange(ids.shape[1]) < tokens.counts.unsqueeze(1)).long()


def write_sentences(student: Student, inputs: Mapping[str, Featuriser], folder: Path) -> None:
    """Make an export a folder that SentenceTransformer loads: network, pooling and, where there is one, the linear map.

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
        from sentence_transformers.models import Dense, Pooling, Transformer
    except ImportError:
        raise ConfigError("--sentence_transformers needs that library: pip install 'quorum-distill[text]'") from None
    with TemporaryDirectory() as network:
        student.network.save_pretrained(network)
        featuriser.split.pad_token = featuriser.split.pad_token or featuriser.split.eos_token
        featuriser.split.save_pretrained(network)
        modules = [Transformer(network, max_seq_length=featuriser.max_length)]
    width = student.network.config.hidden_size
    modules.append(Pooling(width, "lasttoken" if student.pooling == "last" else student.pooling))
    if isinstance(student.project, nn.Linear):
        dense = Dense(width, student.dim, activation_function=nn.Identity())
        dense.linear.load_state_dict(student.project.state_dict())
        modules.append(dense)
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / SENTENCES), create_model_card=False)
    parts = json.loads((folder / SENTENCES / "modules.json").read_text())
    places = [{**part, "path": f"{SENTENCES}/{part['path']}".rstrip("/")} for part in parts]
    (folder / "modules.json").write_text(json.dumps(places, indent=1) + "\n")
