"""Load the folder of an exported student and embed raw items with it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from cache_tools import (
    Backbone,
    CacheError,
    ConfigError,
    CorpusError,
    Featuriser,
    Network,
    Pipeline,
    Ragged,
    Teacher,
    choose_device,
    column_of,
    flush_denormals,
    import_class,
    is_table,
    item_bytes,
    rebuild,
    refuse_remote_code,
    weights_sha256,
)
from distill.data.batch import to_device
from distill.export.folder import CONFIG, HERE, WEIGHTS, find, push_to_hub, read_config, replaced
from distill.export.spaces import TeacherSpace
from distill.export.weights import no_larger_than, read_weights, require_widths
from distill.heads import Head
from distill.students.base import Student

ON_CPU, ON_GPU = 32, 512  # rows of a batch; a GPU's are halved until they fit

AHEAD = 16  # batches of texts that are prepared together, so that those of like length share one

Row = dict[str, np.ndarray[Any, Any]]  # what a featuriser makes of an item


class ExportedStudent:
    """A student that reads SMILES, texts or images; see :func:`load_student`.

    Attributes:
        dim: width of its embedding.
        dims: lengths of the prefixes of its embedding that are embeddings of their own; empty where none was trained.
        modalities: what it reads.
        teachers: those whose raw embedding it can give; none when it was exported without heads.
    """

    def __init__(self, folder: Path, device: str | None = None):
        self.folder, self.config = folder, read_config(folder)
        self.inputs = {name: _featuriser(spec, folder) for name, spec in self.config["inputs"].items()}
        self.modalities = list(dict.fromkeys(featuriser.modality for featuriser in self.inputs.values()))
        flush_denormals()
        student, spaces = _modules(folder, self.config)
        self.teachers, self.dim = list(spaces), student.dim
        self.dims: list[int] = list(self.config.get("dims", ()))
        mixed = self.config.get("precision") == "bf16-mixed"  # as it was trained and probed, where this is fast
        self.network = Network(str(folder), student, choose_device(device or "auto"), "auto" if mixed else "float32")
        self.rows = ON_CPU if self.network.device.type == "cpu" else ON_GPU
        self.spaces = spaces.eval().requires_grad_(False).to(self.network.device)

    @property
    def backbone(self) -> nn.Module:
        """The network of timm, torchvision or transformers in a student of images, to go on with it in that library.

        It has no map to ``dim``, and reads standardised images: ``student.network.module.backbone`` knows mean and size.

        Raises:
            ConfigError: when the student is built of none.
        """
        if not isinstance(backbone := getattr(self.network.module, "backbone", None), Backbone):
            raise ConfigError(f"{self!r} is no network of timm, torchvision or transformers: only an ImageStudent is one")
        network: nn.Module = backbone.network
        return network

    def __repr__(self) -> str:
        network, reads = type(self.network.module), " and ".join(f"{modality}s" for modality in self.modalities)
        size = sum(parameter.numel() for parameter in self.network.module.parameters())
        told = f"{reads} to {self.dim} numbers, {network.__name__}, {size:,} parameters, on {self.network.device}"
        return f"<{type(self).__name__} {self.folder}: {told}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return load_student, (self.folder, str(self.network.device))

    def __sklearn_clone__(self) -> Self:
        return self  # it is frozen, so that clones of a pipeline can share it

    @overload
    def embed(
        self,
        items: Iterable[Any],
        modality: str | None = ...,
        batch_size: int | None = ...,
        bad: Literal["error", "nan"] = ...,
        column: str | None = ...,
        output: Literal["torch"] = ...,
        dim: int | None = ...,
    ) -> Tensor: ...

    @overload
    def embed(
        self,
        items: Iterable[Any],
        modality: str | None = ...,
        batch_size: int | None = ...,
        bad: Literal["error", "nan"] = ...,
        column: str | None = ...,
        *,
        output: Literal["numpy", "pandas"],
        dim: int | None = ...,
    ) -> Any: ...

    def embed(
        self,
        items: Iterable[Any],
        modality: str | None = None,
        batch_size: int | None = None,
        bad: Literal["error", "nan"] = "error",
        column: str | None = None,
        output: Literal["torch", "numpy", "pandas"] = "torch",
        dim: int | None = None,
    ) -> Any:
        """The embedding of every item, (items, dim), float32, on the CPU.

        Args:
            items: SMILES; texts; or images: paths, bytes of an image file, PIL images, uint8 arrays (height, width, 3). Any
                iterable of them, such as a Series or a generator; or a data frame.
            modality: what they are, for a student that reads several.
            batch_size: items at a time; halved where they do not fit into a GPU.
            bad: an item that cannot be used is an ``error``, or a row of ``nan``.
            column: of a data frame; ``smiles``, ``text`` or ``path`` when not given.
            output: a ``torch`` tensor, a ``numpy`` array, or a data frame of ``pandas``, with the index of ``items``.
            dim: only the first ``dim`` numbers, one of ``dims``; the whole embedding when not given.

        Raises:
            CorpusError: on an item that cannot be used, with its index and the reason; when a data frame lacks the column.
            ConfigError: when the student does not read this modality, or has no prefix of this length.
        """
        width = self.width(dim)
        if bad not in ("error", "nan") or (batch_size is not None and batch_size < 1):
            raise ConfigError(f"expected bad to be error or nan, and batch_size above 0; found {bad!r} and {batch_size}")
        index = getattr(items, "index", None) if hasattr(items, "iloc") else None  # of pandas
        if is_table(items):
            items = items[column_of(items, self.inputs[self.column(modality)].modality, column)]  # type: ignore[index]
        table = len(getattr(items, "shape", ())) == 2  # an array, or one grey image
        if table or isinstance(items, str | bytes | Path | Mapping) or not isinstance(items, Iterable):
            raise ConfigError(f"expected a list of items, found one {type(items).__name__}: write [item], or name a column")
        out = self._embed(list(items), modality, batch_size, bad)[:, :width]
        if output == "pandas":
            from pandas import DataFrame  # type: ignore[import-untyped]

            return DataFrame(out.numpy(), index, [f"embedding_{number}" for number in range(width)])
        return out if output == "torch" else out.numpy()

    def width(self, dim: int | None) -> int:
        """How wide an embedding is of which ``dim`` numbers are wanted; the whole one when None.

        Raises:
            ConfigError: when no prefix of this length was trained.
        """
        if dim not in (None, *(trained := [*self.dims, self.dim])):
            expected = " or ".join(map(str, trained))
            raise ConfigError(f"dim is {dim}, expected {expected}: {self.folder} was fitted for no other (model.dims)")
        return dim or self.dim

    def _embed(self, items: list[Any], modality: str | None, batch_size: int | None, bad: str) -> Tensor:
        reader = _Reader(self, modality, batch_size)
        out = torch.full((len(items), self.dim), torch.nan)
        size = (batch_size or self.rows) * (AHEAD if self.inputs[reader.input].padded else 1)
        starts = range(0, len(items), size)
        with Pipeline(reader, 0) as pipeline:
            for start, result in zip(starts, pipeline([items[start : start + size] for start in starts]), strict=True):
                if result.bad and bad == "error":
                    first = min(result.bad)
                    shown = repr(items[start + first])[:60]
                    raise CorpusError(
                        f"item {start + first} of {len(items)}, {shown}, cannot be embedded: {result.bad[first]}; "
                        'leave it out, or ask for a row of NaN: embed(..., bad="nan")'
                    )
                if result.good:
                    out[start + torch.tensor(result.good)] = torch.from_numpy(result.values)
        return out

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Upload the export to the Hugging Face hub; see :func:`distill.export.folder.push_to_hub`.

        Args:
            name: ``user/name``, made when it is not there; ``load_student(name)`` loads it.
            private: a new one is seen by its owner alone.

        Raises:
            ConfigError: when the hub refuses it.
        """
        return push_to_hub(self.folder, name, private)

    def teacher_space(self, items: Iterable[Any], teacher: str, **options: Any) -> Tensor:
        """What a teacher's raw embedding of every item would be, (items, teacher_dim), as the student predicts it.

        Args:
            items: as for :meth:`embed`.
            teacher: one of ``teachers``.
            options: ``modality``, ``batch_size``, ``bad`` and ``column`` as for :meth:`embed`.

        Raises:
            ConfigError: when the export holds no head of this teacher, and for ``dim``: heads read the whole embedding.
        """
        if "dim" in options:
            raise ConfigError("the head of a teacher reads the whole embedding: leave dim out")
        if teacher not in self.teachers:
            heads = ", ".join(self.teachers) or "none: export with `--heads true`"
            raise ConfigError(f"{self.folder} has no head of a teacher {teacher!r}; it has: {heads}")
        space, embedded = self.spaces[teacher], self.embed(items, **options)
        with torch.inference_mode():
            parts = [space(chunk.to(self.network.device)).float().cpu() for chunk in embedded.split(ON_GPU)]
        return torch.cat(parts).masked_fill(embedded.isnan().any(1, keepdim=True), torch.nan)

    def column(self, modality: str | None = None) -> str:
        """The name of the input that reads ``modality``, or of the only one.

        Raises:
            ConfigError: when there is none, or a choice.
        """
        return _choose(self.config, modality, self.folder)

    def prepare(self, item: bytes, column: str) -> Row:
        """What the input ``column`` would hold of a raw item.

        Raises:
            BadItem: when the item cannot be used.
        """
        return self.inputs[column].process_item(item)

    def embed_rows(self, rows: Sequence[Row], column: str, batch_size: int | None = None) -> Tensor:
        """The embedding of prepared rows, (rows, dim), on the CPU; rows of similar length share a batch."""
        padded, order = self.inputs[column].padded, list(range(len(rows)))
        if padded:
            order.sort(key=lambda row: -len(rows[row][padded]))
        size = batch_size or self.rows
        chunks = [[rows[row] for row in order[start : start + size]] for start in range(0, len(rows), size)]
        collate = partial(self._collate, column)
        embedded = torch.cat([self.network(self._encode, chunk, collate).cpu() for chunk in chunks])
        return embedded[torch.tensor(order).argsort()]

    def _collate(self, column: str, rows: Sequence[Row]) -> tuple[dict[str, Any]]:
        fields = {}
        for name, (dtype, _) in self.inputs[column].fields.items():
            counts = [len(row[name]) for row in rows]
            values = np.concatenate([row[name] for row in rows]).astype(dtype, copy=False)
            fields[name] = Ragged(torch.from_numpy(values), torch.tensor(counts), max(counts))
        return (to_device({column: self.inputs[column].unpack(fields)}, self.network.device),)

    def _encode(self, batch: tuple[dict[str, Any]]) -> Tensor:
        embedded: Tensor = self.network.module(batch[0])
        return embedded


class StudentTeacher(Teacher):
    """An exported student as a teacher of the next one.

    Args:
        export: the folder that ``distill export`` made, or the name of a released student.
        of: the modality that it embeds, for a student that reads several.

    Raises:
        ConfigError: when there is no such export, or it is damaged.
    """

    def __init__(self, export: Path, of: str | None = None):
        self.export, self.of = Path(export), of

    @cached_property
    def modality(self) -> str:  # type: ignore[override]  # known when the export is read
        config = read_config(find(self.export))
        return str(config["inputs"][_choose(config, self.of, self.export)]["modality"])

    def load(self, device: str) -> None:
        self.student = load_student(self.export, device)
        self.input, self.dim = self.student.column(self.of), self.student.dim

    def prepare(self, item: bytes) -> Any:
        return self.student.prepare(item, self.input)

    def embed(self, items: Sequence[Any]) -> Any:
        return self.student.embed_rows(items, self.input)

    def reads(self) -> Featuriser:
        return self.student.inputs[self.input]

    def modules(self) -> Iterator[nn.Module]:
        return self.student.network.modules()

    def fingerprint(self) -> dict[str, Any]:
        fields = {key: value for key, value in super().fingerprint().items() if key != "export"}
        return fields | {
            "student": self.student.config["student"],
            "weights_sha256": weights_sha256(self.student.network.module),
            "input": self.student.inputs[self.input].fingerprint(),
        }


class _Reader(StudentTeacher):
    """The same student for items as people have them: text, paths, images, arrays."""

    def __init__(self, student: ExportedStudent, of: str | None, batch_size: int | None):
        super().__init__(student.folder, of)
        self.student, self.batch_size = student, batch_size
        self.input, self.dim = student.column(of), student.dim

    def prepare(self, item: Any) -> Any:
        return super().prepare(item_bytes(item, self.student.inputs[self.input].modality))

    def embed(self, items: Sequence[Any]) -> Any:
        return self.student.embed_rows(items, self.input, self.batch_size)


def load_student(folder: str | Path, device: str | None = None) -> ExportedStudent:
    """Load a student from the folder that ``distill export`` made; nothing else is needed, and nothing is unpickled.

    Args:
        folder: of the export; or the name of a released student, as ``distill students`` lists them; or ``user/name`` of an
            export on the Hugging Face hub.
        device: ``cpu``, ``cuda``, ...; by default the GPU when there is one.

    Raises:
        ConfigError: when the export is missing, damaged, of another format, or of a class that cannot be imported.
    """
    try:
        return ExportedStudent(find(folder), device)
    except (AttributeError, KeyError, TypeError) as error:  # valid JSON of another shape
        again = "it was changed by hand; export the student again"
        raise ConfigError(f"{find(folder) / CONFIG} is not as `distill export` writes it ({error!r}): {again}") from None


def instance(kind: Any, base: type, spec: Any, where: Path) -> Any:
    """The object that a ``class_path`` with ``init_args`` stands for; only subclasses of ``base`` are ever called.

    Args:
        kind: how they are called: ``base`` itself, or a callable that gives one.
        base: what the class must be.
        spec: ``class_path`` and ``init_args``.
        where: the file that says so.

    Raises:
        ConfigError: when the class is gone, is no ``base``, or does not take these arguments.
    """
    try:
        import_class(spec["class_path"], base)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--object", type=kind)
        return parser.instantiate(parser.parse_object({"object": spec})).object
    except (CacheError, ArgumentError, KeyError, TypeError) as error:
        named = spec["class_path"] if isinstance(spec, dict) and "class_path" in spec else spec
        raise ConfigError(
            f"{where}: cannot make {named} ({' '.join(str(error).split())[:300]}): export the student again; a class of "
            "your own must be importable here as in the training"
        ) from None


def _choose(config: Mapping[str, Any], modality: str | None, folder: Path) -> str:
    """The input of an export that reads ``modality``, which may also be its own name; without one, the only input."""
    inputs: dict[str, str] = {name: spec["modality"] for name, spec in config["inputs"].items()}
    fitting = [name for name, reads in inputs.items() if modality in (None, reads, name)]
    if len(fitting) != 1:
        asked = f"there is no modality {modality!r}" if modality else "a modality must be named"
        raise ConfigError(f"{folder}: {asked}, the student reads: {', '.join(inputs.values())}")
    return fitting[0]


def _featuriser(spec: Mapping[str, Any], folder: Path) -> Featuriser:
    featuriser = rebuild(replaced(spec, HERE, str(folder)), Featuriser)
    featuriser.load("cpu")
    return featuriser


def _modules(folder: Path, config: Mapping[str, Any]) -> tuple[Student, nn.ModuleDict]:
    """The student and its teachers' spaces with their weights."""
    path, source = folder / WEIGHTS, folder / CONFIG
    refuse_remote_code(config, source)
    weights = read_weights(path, config["weights_sha256"])
    spaces = nn.ModuleDict()
    with no_larger_than(weights, source):
        student: Student = instance(Student, Student, replaced(config["student"], HERE, str(folder)), source)
        for name, spec in config["teachers"].items():
            head = instance(Callable[[int, int], Head], Head, spec["head"], source)
            require_widths(weights, name, spec, source)
            head_of, matrix = head(student.dim, spec["targets"]), bool(spec.get("matrix"))
            spaces[name] = TeacherSpace(head_of, spec["dim"], spec["targets"], matrix)
    try:
        nn.ModuleDict({"student": student, "teachers": spaces}).load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit the student of {CONFIG}: {' '.join(str(error).split())[:300]}") from None
    return student, spaces
