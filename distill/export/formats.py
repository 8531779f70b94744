"""Other formats of an exported student: a torch.export program, a sentence-transformers folder."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from cache_tools import ConfigError, EncodedImage, Featuriser, Pixels, TokenIds, class_path, pool
from distill.students.base import Student
from distill.students.text import TextStudent

PROGRAM, SENTENCES = "model.pt2", "sentence-transformers"


class TextProgram(nn.Module):
    """A text student on padded tensors."""

    def __init__(self, student: TextStudent):
        super().__init__()
        self.network, self.project, self.pooling = student.network, student.project, student.pooling

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (batch, dim) of token ids and a mask that is 1 where they are no padding, both (batch, tokens)."""
        hidden = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        embedded: Tensor = self.project(pool(hidden, mask, self.pooling))
        return embedded


class ImageProgram(nn.Module):
    """An image student on pixels."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings (batch, dim) of ``pixels`` (batch, height, width, 3), uint8."""
        return self.student.encode(pixels)


def _write_program(student: Student, inputs: Mapping[str, Featuriser], path: Path) -> None:
    """``model.pt2``: the network as torch.export traced it, on the CPU; the size of a batch and of a text is free."""
    from torch.export import Dim, save
    from torch.export import export as trace

    featuriser, batch = next(iter(inputs.values())), Dim("batch", min=1, max=65_536)
    module: nn.Module
    given: tuple[Tensor, ...]
    shapes: tuple[dict[int, Any], ...]
    if isinstance(student, TextStudent):
        tokens = Dim("tokens", min=1, max=min(student.longest or 65_536, 65_536))
        ids = torch.full((2, 7), student.vocabulary - 1)
        module, given, shapes = TextProgram(student), (ids, torch.ones_like(ids)), ({0: batch, 1: tokens},) * 2
    elif isinstance(featuriser, Pixels | EncodedImage) and len(inputs) == 1:
        pixels = torch.zeros(2, featuriser.size, featuriser.size, 3, dtype=torch.uint8)
        module, given, shapes = ImageProgram(student), (pixels,), ({0: batch},)
    else:
        raise ConfigError(
            f"--program is for students of texts or of images; {class_path(student)} reads {', '.join(inputs)}"
        )
    with torch.no_grad():
        save(trace(module.eval(), given, dynamic_shapes=shapes, strict=False), path)


def _write_sentences(student: Student, inputs: Mapping[str, Featuriser], folder: Path) -> None:
    """The folder that SentenceTransformer loads: network, pooling and, where the student has one, its linear map."""
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
