"""What a student is judged beside: other students, its teachers put together and made as narrow; and what each costs."""

import copy
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import nn

from cache_tools import store
from cache_tools.columns import Featuriser
from cache_tools.errors import QuorumError
from cache_tools.network import Network
from cache_tools.producer import rebuild
from cache_tools.reader import Column
from cache_tools.run import Build, Settings
from cache_tools.teacher import Teacher
from distill.data import featuriser_of
from distill.exported import CONFIG, ExportedStudent, StudentTeacher, instance, read_config
from distill.student import Student

log = logging.getLogger(__name__)

System = Literal["student", "untrained", "pretrained", "teachers", "concatenated", "pca"]
Kind = System | Literal["other"]
SYSTEMS: tuple[System, ...] = get_args(System)
Array = np.ndarray[Any, Any]
BATCH = 64  # items of a batch whose time is taken
ENOUGH = 0.5  # seconds
MAP_ROWS = 1000
CLIP = 10.0  # standard deviations


# --------------------------------------------------------------------------------------------------- embeddings


def embed(student: Student, inputs: Column, rows: torch.Tensor, device: str, batch: int = 512) -> Array:
    """The student's embeddings (rows, dim) of ``rows`` of an input column, in evaluation mode, float32."""
    student, featuriser = student.to(device).eval(), featuriser_of(inputs)
    order = torch.arange(len(rows))
    if featuriser.padded:  # rows of like length go together
        order = torch.from_numpy(np.argsort(inputs.counts(featuriser.padded, rows), kind="stable"))
    out = torch.empty(len(rows), student.dim)
    with torch.inference_mode():
        for chunk in order.split(batch):
            read = featuriser.unpack(inputs.rows(rows[chunk]))
            out[chunk] = student(move({inputs.name: read}, device)).float().cpu()
    return np.asarray(out)


def move(inputs: Any, device: str) -> Any:
    """A student's input on another device."""
    from lightning.pytorch.utilities import move_data_to_device

    return move_data_to_device(inputs, torch.device(device))


def is_live(column: Column) -> bool:
    """Whether the teacher of a column can embed items that it has never seen."""
    teacher = rebuild(column.manifest["producer"], Teacher)
    return isinstance(teacher, Teacher) and teacher.live


def other_student(place: Path, modality: str) -> tuple[str, Teacher] | None:
    """A student from elsewhere as a producer of columns, with a name for its column; None when it reads other modalities.

    Args:
        place: a folder that ``distill export`` made.
        modality: of the tasks.

    Raises:
        ConfigError: when there is no such export.
    """
    folder = place.resolve()
    inputs = read_config(folder)["inputs"]
    if modality not in [each["modality"] for each in inputs.values()]:
        return None
    column = f"student-{hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()[:12]}"
    return column, StudentTeacher(folder, modality if len(inputs) > 1 else None)


def before(student: Student, spec: Mapping[str, Any]) -> dict[System, Student]:
    """The student as it is before it is distilled: ``untrained``, of random weights, and ``pretrained`` if it had others.

    Args:
        student: as ``spec`` builds it.
        spec: ``class_path`` and ``init_args``.
    """
    random = _without_weights(spec)
    if random == spec:
        return {"untrained": copy.deepcopy(student)}
    made = instance(Student, Student, random, Path("model.student"))
    return {"untrained": cast(Student, made), "pretrained": copy.deepcopy(student)}


def _without_weights(spec: Any) -> Any:
    """The same arguments, also of encoders inside a student, but no weights to begin with."""
    if not isinstance(spec, Mapping):
        return spec
    out = {key: _without_weights(value) for key, value in spec.items()}
    if spec.get("config") is None:  # with one the network is new, whatever `pretrained` says
        out |= {key: nothing for key, nothing in (("pretrained", False), ("weights", None)) if spec.get(key)}
    return out


def add_column(folder: Path, name: str, teacher: Teacher, settings: Settings | None) -> Build:
    """What makes a teacher's column of a stored corpus."""
    return Build(folder, store.read_corpus(folder), "teachers", name, teacher, settings or Settings())


def principal(columns: Sequence[Column], dim: int, rows: int = 10_000) -> Callable[[Array], Array]:
    """A map from teachers' embeddings side by side, (rows, sum of dims), to their ``dim`` principal components.

    Every dimension is standardised first. Both are learnt from rows of the corpus, never from a task.

    Args:
        columns: of one corpus.
        dim: components; fewer when the teachers have fewer dimensions together.
        rows: of the corpus, drawn at random.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    count = len(columns[0])
    drawn = torch.from_numpy(np.random.default_rng(0).choice(count, min(count, 4 * rows), replace=False))
    known = drawn[torch.stack([column.valid(drawn) for column in columns]).all(0)][:rows]
    x = np.concatenate([np.asarray(column.rows(known).float()) for column in columns], 1)
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


# -------------------------------------------------------------------------------------------------------- cost


@dataclass(frozen=True)
class Cost:
    """What a system needs: its ``parameters`` (None without a network), and raw items embedded per second."""

    dim: int
    parameters: int | None
    per_second: float | None

    @classmethod
    def of_all(cls, dim: int, costs: Sequence["Cost"]) -> "Cost":
        """Of several systems that all embed every item."""
        speeds = [cost.per_second for cost in costs]
        if None in speeds:  # one could not be loaded
            return cls(dim, None, None)
        known = [cost.parameters for cost in costs if cost.parameters is not None]
        return cls(dim, sum(known) if known else None, 1 / sum(1 / cast(float, speed) for speed in speeds))


def cost_of_student(student: Student, folder: Path, inputs: Column, device: str) -> Cost:
    """Measured on items of the corpus at ``folder``, their preparation included."""
    featuriser = featuriser_of(inputs)
    featuriser.load("cpu")

    def run(rows: torch.Tensor, items: Sequence[bytes]) -> None:
        for item in items:
            featuriser.featurise(featuriser.prepare(item))
        embed(student, inputs, rows, device, BATCH)

    return Cost(student.dim, _parameters(student), _per_second(folder, inputs, featuriser, run))


def cost_of_teacher(column: Column, device: str) -> Cost:
    """The same of a column's teacher; without a speed when it cannot be loaded here."""
    teacher = cast(Teacher, rebuild(column.manifest["producer"], Teacher))

    def run(rows: torch.Tensor, items: Sequence[bytes]) -> None:
        made = [teacher.prepare(item) for item in items]
        for start in range(0, len(made), BATCH):
            teacher.embed(made[start : start + BATCH])

    try:
        teacher.load(device)
        return Cost(column.dim, _parameters(teacher), _per_second(column.path.parents[1], column, teacher, run))
    except QuorumError as error:
        log.warning("no parameters and speed of %s: %s", column.name, error)
        return Cost(column.dim, None, None)


def _per_second(
    folder: Path, column: Column, producer: Teacher | Featuriser, run: Callable[[torch.Tensor, Sequence[bytes]], None]
) -> float:
    """Items per second; as many as take half a second, or all of a shard."""
    ids, items = store.read_items(folder, 0)
    known = torch.arange(len(ids))
    known = known[column.valid(known)]
    raw = [ids[row].encode() if producer.by_id else items[row] for row in known.tolist()]
    run(known[:2], raw[:2])  # the first call allocates
    count = min(8, len(raw))
    while True:
        begin = time.perf_counter()
        run(known[:count], raw[:count])
        took = time.perf_counter() - begin
        if took > ENOUGH or count == len(raw):
            return count / took
        count = min(len(raw), count * max(2, int(0.8 * ENOUGH / took)))


def _parameters(owner: object) -> int | None:
    """Numbers in the networks that an object holds; None when it holds none."""
    found = {id(each): each.numel() for module in _modules(owner) for each in module.parameters()}
    return sum(found.values()) if found else None


def _modules(owner: object) -> Iterator[nn.Module]:
    if isinstance(owner, nn.Module):
        yield owner
    elif isinstance(owner, Network):
        yield owner.module
    elif isinstance(owner, ExportedStudent):
        yield owner.network.module
    elif isinstance(owner, Teacher):
        for value in vars(owner).values():
            yield from _modules(value)
