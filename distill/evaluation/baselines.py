"""Baselines beside a student: itself before distillation, other students, and its teachers put together."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from cache_tools import Column, ConfigError, Ragged, Teacher, as_json, import_class
from distill.data.batch import to_device
from distill.data.columns import CorpusColumns, drawn, featuriser_of
from distill.export.folder import CONFIG, find, read_config
from distill.export.student import StudentTeacher, instance
from distill.records import System
from distill.students.base import Student

Array = np.ndarray[Any, Any]

MAP_ROWS = 1000

CLIP = 10.0  # standard deviations

COUNTED_ROWS = 20_000  # of the corpora together, for the frequencies of tokens

COMMON = 1e-3  # a token of this probability weighs half

FINGERPRINTS = ("cache_tools.teachers.molecule.MorganCounts", "cache_tools.teachers.molecule.RdkitDescriptors")


BESIDE: System = "student+fingerprints"

PARTS: tuple[System, ...] = ("student", "fingerprints")  # of that system

MADE_OF: Mapping[System, Sequence[System]] = {BESIDE: PARTS, "prefixes": ["student"]}


def with_parts(systems: Sequence[System]) -> set[System]:
    """The systems, and those that are needed to make them."""
    return {*systems, *chain.from_iterable(MADE_OF.get(system, ()) for system in systems)}


def embed(students: Sequence[Student], inputs: Column, rows: torch.Tensor, device: str, batch: int = 512) -> list[Array]:
    """Each student's embeddings (rows, dim) of ``rows`` of an input column, in evaluation mode, float32."""
    students, featuriser = [student.to(device).eval() for student in students], featuriser_of(inputs)
    order = torch.arange(len(rows))
    if featuriser.padded:  # rows of similar length share a batch
        order = torch.from_numpy(np.argsort(inputs.counts(featuriser.padded, rows), kind="stable"))
    out = [torch.empty(len(rows), student.dim) for student in students]
    with torch.inference_mode():
        for chunk in order.split(batch) if students else ():
            read = to_device({inputs.name: featuriser.unpack(inputs.rows(rows[chunk]))}, device)
            for student, embedded in zip(students, out, strict=True):
                embedded[chunk] = student(read).float().cpu()
    return [np.asarray(embedded) for embedded in out]


def check_exports(students: Mapping[str, Path]) -> None:
    """Refuse a student of ``probe.students`` that is not the folder of an export.

    Args:
        students: name -> place.

    Raises:
        ConfigError: when a place is a file, such as a checkpoint, or there is no export; it names the next command.
    """
    for name, place in students.items():
        if place.is_file():
            raise ConfigError(
                f"probe.students.{name} is the file {place}, expected the folder of an export: make one with "
                f"`distill export --ckpt_path {place}` and name that folder"
            )
        read_config(find(place))


def other_student(place: Path, modality: str) -> tuple[str, Teacher] | None:
    """Another student as a producer of columns, with a name for its column; None when it reads other modalities.

    Args:
        place: the folder of an export, or the name of a released student.
        modality: of the tasks.

    Raises:
        ConfigError: when there is no such export.
    """
    folder = find(place).resolve()
    inputs = read_config(folder)["inputs"]
    if modality not in [spec["modality"] for spec in inputs.values()]:
        return None
    column = f"student-{hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()[:12]}"
    return column, StudentTeacher(folder, modality if len(inputs) > 1 else None)


def fingerprints(corpora: Sequence[CorpusColumns]) -> list[tuple[str, Teacher]]:
    """The producers of the system ``fingerprints``, with names for their columns; none for texts and images.

    Args:
        corpora: of one modality; a teacher of theirs that is equal to a producer lends its column.
    """
    teachers = {name: column for corpus in corpora for name, column in corpus.teachers.items()}
    named = []
    for path in FINGERPRINTS if corpora[0].corpus.modality == "molecule" else ():
        producer = import_class(path, Teacher)()
        facts = as_json(producer.fingerprint())
        equal = (name for name, column in teachers.items() if column.manifest["producer"]["fingerprint"] == facts)
        named.append((next(equal, f"fingerprints-{path.rpartition('.')[2]}"), producer))
    return named


class TokenMean(Student):
    """A static student of texts that nothing was trained for: the mean of its tokens' vectors, weighted by rarity.

    A token of probability p weighs a / (a + p): Arora et al., A simple but tough-to-beat baseline for sentence embeddings,
    ICLR 2017.

    Args:
        input: the column that it reads.
        table: a vector for each token, (vocabulary, dim).
        counts: how often each token stands in the corpus, (vocabulary,).
    """

    def __init__(self, input: str, table: torch.Tensor, counts: torch.Tensor):
        super().__init__()
        self.input, self.dim = input, table.shape[1]  # type: ignore[misc] # of the student beside it
        weights = COMMON / (COMMON + counts / counts.sum().clamp_min(1))
        self.bag = nn.EmbeddingBag.from_pretrained(weights.unsqueeze(1) * table.detach().float())

    def embeddings(self, rows: Mapping[str, Ragged]) -> list[torch.Tensor]:
        tokens = rows["tokens"]
        return [self.bag(tokens.values.long(), tokens.counts.cumsum(0) - tokens.counts)]


def _token_mean(student: Student, corpora: Sequence[CorpusColumns]) -> TokenMean | None:
    """The system ``tokens``: by the token table of a student, with the frequencies of rows of the corpora that it reads."""
    read = [corpus for corpus in corpora if corpus.inputs.name == getattr(student, "input", None)]
    if not read or (table := student.token_table()) is None:
        return None
    counts = torch.zeros(len(table))
    for corpus in read:
        rows = corpus.inputs.rows(drawn([corpus.inputs], COUNTED_ROWS // len(read)))
        counts += torch.bincount(corpus.featuriser.unpack(rows)["tokens"].values.long(), minlength=len(table))
    return TokenMean(student.input, table, counts)


def starts_at_random(student: Student, spec: Mapping[str, Any]) -> bool:
    """Whether a student as ``spec`` (``class_path`` and ``init_args``) builds it has random weights."""
    init_args = spec.get("init_args") or {}
    return student.random_start(init_args) == init_args


def undistilled(
    student: Student,
    spec: Mapping[str, Any],
    corpora: Sequence[CorpusColumns] = (),
    saved: Mapping[str, torch.Tensor] | None = None,
) -> dict[System, Student]:
    """What a student was before distillation: ``untrained``; its ``start``, if that was not random; and its ``tokens``.

    Args:
        student: as ``spec`` builds it.
        spec: ``class_path`` and ``init_args``.
        corpora: those of the run, which say how frequent each token is.
        saved: the weights that the fit began with; those that ``spec`` gives when not given.
    """
    start = copy.deepcopy(student)
    if saved:
        start.load_state_dict(saved)
    out: dict[System, Student] = {"untrained": start}
    if not starts_at_random(student, spec):
        random = {**spec, "init_args": student.random_start(spec.get("init_args") or {})}
        untrained = cast(Student, instance(Student, Student, random, Path("model.student")))
        out = {"untrained": untrained, "start": start}
    tokens = _token_mean(start, corpora)
    return out | ({"tokens": tokens} if tokens else {})


def principal(columns: Sequence[Column], dim: int, rows: int = 10_000) -> Callable[[Array], Array]:
    """A map from concatenated teacher embeddings, (rows, sum of dims), to their ``dim`` principal components.

    Every dimension is standardised first. Both steps learn from rows of the corpus, never from a task.

    Args:
        columns: of one corpus.
        dim: components; fewer when the teachers have fewer dimensions together.
        rows: of the corpus, drawn at random.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    valid = drawn(columns, rows)
    x = np.concatenate([np.asarray(column.rows(valid).float()) for column in columns], 1)
    clip = FunctionTransformer(np.clip, kw_args={"a_min": -CLIP, "a_max": CLIP})  # as the probes do
    fitted = make_pipeline(StandardScaler(), clip, PCA(min(dim, *x.shape), random_state=0)).fit(x)
    return cast(Callable[[Array], Array], fitted.transform)


def on_a_plane(labels: Array, systems: Mapping[str, Array]) -> dict[str, Array]:
    """Two dimensions of each system's embeddings, (rows, 2), by t-SNE of rows drawn at random; and their ``labels``."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    drawn = np.random.default_rng(0).permutation(len(labels))[:MAP_ROWS]
    out = {"labels": labels[drawn, 0]}
    for name, x in systems.items():
        scaled = StandardScaler().fit_transform(x[drawn])
        narrow = PCA(min(50, *scaled.shape), random_state=0).fit_transform(scaled)
        out[name] = TSNE(perplexity=min(30, (len(drawn) - 1) / 3), random_state=0).fit_transform(narrow)
    return out
