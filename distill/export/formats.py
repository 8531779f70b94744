"""Other formats of an exported student: a torch.export program, a sentence-transformers folder."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from cache_tools import ConfigError, Featuriser, TokenIds, class_path
from distill.students.base import Student
from distill.students.text import TextStudent

PROGRAM, SENTENCES = "model.pt2", "sentence-transformers"


def write_program(student: Student, inputs: Mapping[str, Featuriser], path: Path) -> None:
    """Write the network as torch.export traced it, on the CPU; the size of a batch and of a text is free.

    Args:
        student: in evaluation mode.
        inputs: input column -> its featuriser.
        path: of the program.

    Raises:
        ConfigError: when the student has no such form.
    """
    traceable = student.traceable(next(iter(inputs.values())))
    if traceable is None:
        raise ConfigError(
            f"--program is for students of texts or of images; {class_path(student)} reads {', '.join(inputs)}"
        )
    module = traceable.module.eval()
    with torch.no_grad():
        program = torch.export.export(module, traceable.inputs, dynamic_shapes=traceable.dynamic_shapes, strict=False)
        torch.export.save(program, path)


def write_sentences(student: Student, inputs: Mapping[str, Featuriser], folder: Path) -> None:
    """Write the folder that SentenceTransformer loads: network, pooling and, where the student has one, its linear map.

    Args:
        student: a student of texts.
        inputs: input column -> its featuriser.
        folder: does not exist yet.

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
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
