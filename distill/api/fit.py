"""Fit a student in one call, go on with a run, and evaluate it: the commands ``distill fit`` and ``test`` in Python."""

import json
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer

from cache_tools import (
    CORPUS,
    ConfigError,
    Featuriser,
    InterruptibleCall,
    Settings,
    Teacher,
    as_corpus,
    as_json,
    build,
    list_columns,
    sha256,
    start_logging,
)
from distill.api.recipes import chosen_group, instantiated, recipe_of, words_of
from distill.cli.fit import run_command
from distill.evaluation.tasks.base import Task
from distill.export.folder import Dtype, read_config
from distill.export.student import ExportedStudent
from distill.export.write import export, export_of
from distill.records import Record, Results
from distill.report.sections import summarise
from distill.run_folder import RunFolder
from distill.students.base import Student

Teachers = str | Sequence[str] | Mapping[str, Teacher] | None


class FittedStudent(ExportedStudent):
    """The student of a run, from its best checkpoint; it is exported to ``RUN/export`` first.

    Args:
        run: the run's folder.
        device: as for :func:`distill.load_student`.

    Attributes:
        run: the run's folder: checkpoints, configuration, metrics, probes.

    Raises:
        ConfigError: when the run has no checkpoint yet.
    """

    def __init__(self, run: str | Path, device: str | None = None):
        self.run = RunFolder(Path(run))
        export = self.run.export
        if export.is_dir() and read_config(export).get("checkpoint", {}).get("sha256") != sha256(self.run.best):
            shutil.rmtree(export)  # of a checkpoint before the run went on
        super().__init__(export_of(self.run.best), device)

    def export(
        self,
        out: str | Path,
        *,
        heads: bool = False,
        program: bool = False,
        sentence_transformers: bool = False,
        onnx: bool = False,
        dtype: Dtype = "float32",
        licence: str | None = None,
    ) -> None:
        """Write the student to a folder that needs nothing else, in further formats: ``distill export``.

        Args:
            out: the folder; must be new or empty.
            heads: also the teachers' heads.
            program: also model.pt2, by torch.export.
            sentence_transformers: SentenceTransformer can load the folder, too.
            onnx: also model.onnx and model-int8.onnx.
            dtype: of the weights in the file.
            licence: for its card.

        Raises:
            ConfigError: when ``out`` is taken, or the student has no such form.
        """
        export(Path(out), self.run.best, heads, program, sentence_transformers, onnx, dtype, licence)

    @property
    def records(self) -> list[Record]:
        """Every score of the last :func:`distill.evaluate` or ``distill test`` of the run.

        Raises:
            ConfigError: when there was none.
        """
        return Results.load(self.run.path).records

    @property
    def verdict(self) -> str:
        """Whether the student beats its teachers, in words, as the report says it.

        Raises:
            ConfigError: when the run was not evaluated.
        """
        results = Results.load(self.run.path)
        return " ".join(map(str, summarise(results.records, results.costs, results.about.get("margin", 0.01)).answers))


def fit(
    items: Any,
    student: str | Path | Student,
    teachers: Teachers = None,
    *,
    inputs: Mapping[str, Featuriser] | None = None,
    column: str | None = None,
    id: str | None = None,
    epochs: int | None = None,
    out: str | Path | None = None,
    cache: str | Path = "cache",
    settings: Settings | None = None,
    options: Mapping[str, Any] | None = None,
) -> FittedStudent:
    """Build what the teachers say of the items, and train a student on it: ``distill-cache build`` and ``distill fit``.

    A second call builds only what is missing. The run's folder is that of the command line: ``distill test --run RUN``,
    ``distill export`` and the rest work on it.

    Args:
        items: a table (its path, or a data frame), a list of SMILES, texts or images, a folder of images, a corpus; or the
            folder of a corpus in a cache, whose columns are used as they are.
        student: the name of a recipe, such as ``mol-tiny``; a configuration (YAML); or a new student, whose class and
            arguments count, as in YAML.
        teachers: the name of a group of `configs/cache`, or names of teachers in them; objects by name; by default the
            recipe's group. Of a corpus in a cache: names of its columns, by default all that builds made.
        inputs: the columns that the student reads, by name; those of the teachers' group when not given.
        column: of a table: the one of the items; ``smiles``, ``text`` or ``path`` when not given.
        id: of a table: the one of ids.
        epochs: to train; as the recipe says when not given.
        out: the run's folder; one that is there already is kept, and another number is appended.
        cache: the folder of the cache; a corpus in it is named for the file or modality and its content.
        settings: how teachers run.
        options: other keys of ``distill fit``, for instance ``{"data.batch_size": 64}``.

    Returns:
        The student, ready to embed; ``run`` is its folder.

    Raises:
        ConfigError: when a name is unknown, or the arguments do not go together.
        CorpusError: when items cannot be read.
    """
    start_logging()
    recipe = recipe_of(student)
    content = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}
    if isinstance(items, str | Path) and (Path(items) / CORPUS).is_file():
        corpus, names = Path(items), [teachers] if isinstance(teachers, str) else list(teachers) if teachers else None
    else:
        corpus, names = _built(items, *_producers(teachers, inputs, recipe), column, id, Path(cache), settings)
    overlay: dict[str, Any] = {"data": {"corpus": str(corpus), "teachers": names}, "model": {}}
    if heads := (content.get("model") or {}).get("heads"):
        present = names or [path.name for path in list_columns(corpus)]
        overlay["model"]["heads"] = {name: head for name, head in heads.items() if name in present}
    if inputs:
        overlay["data"]["input"] = next(iter(inputs))
    if isinstance(student, Student):
        overlay["model"]["student"] = as_json({"student": student})["student"]
    chosen = dict(options or {}) | ({"trainer.max_epochs": epochs} if epochs else {}) | ({"run": out} if out else {})
    return _fitted(["--config", str(recipe), "--config", json.dumps(overlay), *words_of(chosen)])


def resume(run: str | Path, epochs: int | None = None) -> FittedStudent:
    """Go on with a fit that was stopped, here or on the command line, or train a finished one for more epochs.

    Args:
        run: the run's folder.
        epochs: that it has at its end; as it was begun when not given.

    Raises:
        ConfigError: when the run has no checkpoint.
    """
    start_logging()
    folder = RunFolder(Path(run))
    more = words_of({"trainer.max_epochs": epochs} if epochs else {})
    return _fitted(["--config", str(folder.config), "--ckpt_path", str(folder.last), *more])


def evaluate(
    student: FittedStudent | str | Path,
    tasks: Mapping[str, Task] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Record]:
    """Probe a student on tasks beside its teachers, and write the report: ``distill test``.

    Args:
        student: of a run, or the run's folder.
        tasks: name -> task; those of the run's configuration when not given.
        options: other keys of ``distill test``, for instance ``{"probe.seeds": [0]}``.

    Returns:
        Every score; ``student.verdict`` says what they mean, and RUN/probes/report.html shows them.

    Raises:
        ConfigError: when a task does not fit the run.
    """
    start_logging()
    run = student.run if isinstance(student, FittedStudent) else RunFolder(Path(student))
    _run(["test", "--run", str(run.path), *words_of(options or {})], tasks)
    return Results.load(run.path).records


def _producers(
    teachers: Teachers, inputs: Mapping[str, Featuriser] | None, recipe: Path
) -> tuple[Mapping[str, Teacher], Mapping[str, Featuriser]]:
    """The teachers and inputs that are to be built."""
    if not isinstance(teachers, Mapping):
        made, read = instantiated(chosen_group(teachers, recipe))
        return made, inputs or read
    return teachers, inputs or instantiated(chosen_group(None, recipe)._replace(teachers={}))[1]


def _built(
    items: Any,
    teachers: Mapping[str, Teacher],
    inputs: Mapping[str, Featuriser],
    column: str | None,
    id: str | None,
    cache: Path,
    settings: Settings | None,
) -> tuple[Path, list[str]]:
    """Build the columns of items; the corpus's folder in the cache, named for its origin and content, and the teachers."""
    corpus = as_corpus(items, next(iter(teachers.values())).modality, column, id)
    origin = Path(items).stem if isinstance(items, str | Path) else corpus.modality
    name = f"{re.sub(r'[^A-Za-z0-9]+', '-', origin).strip('-') or corpus.modality}-{corpus.scan()[1][:8]}"
    return build(cache, name, corpus, teachers, inputs, settings), list(teachers)


def _fitted(words: Sequence[str]) -> FittedStudent:
    return FittedStudent(_run(["fit", *words]).default_root_dir)


def _run(words: Sequence[str], tasks: Mapping[str, Task] | None = None) -> Trainer:
    """Run a command here; what ends a command is raised.

    Raises:
        ConfigError: for a wrong key.
        KeyboardInterrupt: after a Ctrl-C, of which Lightning makes a SystemExit.
    """
    main = threading.current_thread() is threading.main_thread()
    try:
        with InterruptibleCall() if main else nullcontext():
            return run_command(words, tasks, exit_on_error=False)
    except ArgumentError as error:
        raise ConfigError(str(error)) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
