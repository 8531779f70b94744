"""What a student is judged beside: other students, its teachers put together and made as narrow; and what each costs."""

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from cache_tools import Build, Column, Settings, Teacher, read_corpus, rebuild
from distill.data.columns import featuriser_of
from distill.export.student import CONFIG, StudentTeacher, instance, read_config
from distill.records import System
from distill.students.base import Student

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

MAP_ROWS = 1000

CLIP = 10.0  # standard deviations


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
    return Build(folder, read_corpus(folder), "teachers", name, teacher, settings or Settings())


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
