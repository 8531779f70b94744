"""``distill export | predict``: a trained student as a folder that needs nothing else, or as a column of a cache."""

import errno
import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from cache_tools import (
    ConfigError,
    Featuriser,
    Settings,
    add_column,
    as_json,
    check_column_name,
    class_path,
    library_versions,
    read_corpus,
    require_same,
    sha256,
)
from distill.data.columns import CorpusColumns
from distill.data.module import DistillData
from distill.export import card
from distill.export.folder import CONFIG, FORMAT_VERSION, HERE, WEIGHTS, Dtype, find, read_config, replaced
from distill.export.formats import PROGRAM, write_onnx, write_program, write_sentences
from distill.export.spaces import TeacherSpace, teacher_spaces
from distill.export.student import StudentTeacher
from distill.export.weights import round_weights, write_weights
from distill.run_folder import RunFolder, newest_run
from distill.students.base import Student
from distill.training.checkpoint import read_checkpoint
from distill.training.distiller import Distiller

log = logging.getLogger(__name__)

_TAKEN = "{} is there already: choose another --out, or move it away"


def export(
    out: Path,
    ckpt_path: Path | None = None,
    heads: bool = False,
    program: bool = False,
    sentence_transformers: bool = False,
    onnx: bool = False,
    dtype: Dtype = "float32",
    licence: str | None = None,
) -> None:
    """Write a student to a folder that ``distill.load_student`` loads anywhere; run it where the training ran.

    Args:
        out: the folder; must be new or empty.
        ckpt_path: RUN/checkpoints/best.ckpt; by default that of the newest run.
        heads: also the teachers' heads, so that the student can emit their raw embeddings.
        program: also model.pt2, by torch.export, for students of one modality.
        sentence_transformers: SentenceTransformer can load the folder, too, for a student of texts.
        onnx: also model.onnx and model-int8.onnx, for students of one modality; the card says how near they are, and how
            fast. For molecules also featurise.py, which makes their inputs of SMILES by RDKit and numpy.
        dtype: of matrices and kernels in the file, which are read as float32 again; the card says how much they changed.
            int8 has a factor per row.
        licence: of the student, for its card, such as apache-2.0.

    Raises:
        ConfigError: when ``out`` is taken, the checkpoint and its run do not fit together, the student has no such form, or
            its weights do not fit into float16.
        CacheError: when the cache of the run is gone.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(_TAKEN.format(out.absolute()))
    ckpt_path = ckpt_path or newest_run().best
    config, data, model, checkpoint = open_run(ckpt_path, heads)
    student = model.student.eval()
    inputs, spaces = _inputs(data.corpora), _spaces(model, data) if heads else {}
    modules = nn.ModuleDict({"student": student, "teachers": nn.ModuleDict(spaces)})
    kept = None if dtype == "float32" else (dtype, _round(modules, data, dtype))
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export", dir=out.absolute().parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        content = _content(folder, config, student, inputs, spaces) | {
            "weights_sha256": write_weights(modules, folder / WEIGHTS, dtype),
            "checkpoint": {"sha256": sha256(ckpt_path), "epoch": checkpoint["epoch"], "step": checkpoint["global_step"]},
            "libraries": library_versions(),
        }
        exported = replaced(as_json(content), str(folder), HERE)  # so that the export may lie anywhere
        if program:
            write_program(student, inputs, folder / PROGRAM)
        if sentence_transformers:
            write_sentences(student, inputs, folder)
        files = write_onnx(student, inputs, next(iter(data.val_dataloader())).inputs, folder) if onnx else []
        exported["facts"] = card.write(folder, out.name, ckpt_path, config, data.corpora, exported, licence, kept, files)
        (folder / CONFIG).write_text(json.dumps(exported, indent=1) + "\n")
        try:
            folder.rename(out)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise ConfigError(_TAKEN.format(out.absolute())) from None  # by another export, in the meantime
    log.info("written: %s; use it anywhere: `distill.load_student(%r).embed([...])`, see its README.md", out, str(out))


def _content(
    folder: Path,
    config: Mapping[str, Any],
    student: Student,
    inputs: Mapping[str, Featuriser],
    spaces: Mapping[str, TeacherSpace],
) -> dict[str, Any]:
    """What config.json says of the student, its inputs and its heads; the files that these need are written."""
    spec, own_heads = config["model"]["student"], config["model"].get("heads") or {}
    return {
        "format_version": FORMAT_VERSION,
        "dim": student.dim,
        **({"dims": dims} if (dims := config["model"].get("dims")) else {}),
        "student": {**spec, "init_args": student.portable(spec.get("init_args") or {}, folder / "network")},
        "inputs": {name: _input_spec(featuriser, folder / "inputs" / name) for name, featuriser in inputs.items()},
        "teachers": {
            name: {
                "dim": len(space.mean),
                "targets": len(space.gain),
                **({"matrix": True} if space.gain.dim() > 1 else {}),
                "head": own_heads.get(name) or config["model"]["head"],
            }
            for name, space in spaces.items()
        },
        "precision": config.get("trainer", {}).get("precision") or "32-true",  # of the run; None in version 0.1
    }


def predict(
    corpus: Path,
    name: str = "student",
    ckpt_path: Path | None = None,
    student: Path | None = None,
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> None:
    """Embed a corpus of a cache into a teacher's column, so that a student can be the next teacher.

    Args:
        corpus: the corpus's folder in the cache, for instance cache/mol.
        name: of the new column.
        ckpt_path: RUN/checkpoints/best.ckpt, by default that of the newest run; it is exported to RUN/export first.
        student: a folder that ``distill export`` made, or the name of a released student, instead.
        settings: batch size, device, type on disk.

    Raises:
        ConfigError: when both ``ckpt_path`` and ``student`` are given, or the student does not read this corpus.
        CacheError: when there is no such corpus, or the column was made by something else.
    """
    if student and ckpt_path:
        raise ConfigError(
            "expected one of --ckpt_path and --student: a checkpoint of a run, or a folder of `distill export`"
        )
    check_column_name(name)
    manifest = read_corpus(corpus)
    folder = find(student) if student else export_of(ckpt_path or newest_run(modality=manifest.modality).best)
    several = len(read_config(folder)["inputs"]) > 1
    teacher = StudentTeacher(folder.resolve(), manifest.modality if several else None)
    if teacher.modality != manifest.modality:
        raise ConfigError(f"{folder} reads {teacher.modality}s, the corpus {corpus} holds {manifest.modality}s")
    add_column(corpus, name, teacher, settings)


def export_of(checkpoint: Path) -> Path:
    """The export in a checkpoint's run, made when it is not there.

    Raises:
        ConfigError: when it is of another checkpoint.
    """
    folder = RunFolder.of_checkpoint(checkpoint).export
    if not folder.exists():
        try:
            export(folder, checkpoint)
        except ConfigError:
            if not folder.exists():  # not even by another command, in the meantime
                raise
    if read_config(folder).get("checkpoint", {}).get("sha256") != sha256(checkpoint):
        raise ConfigError(
            f"{folder} is of another checkpoint than {checkpoint}: delete it, or name an export with --student"
        )
    return folder


def open_run(checkpoint: Path, heads: bool) -> tuple[dict[str, Any], DistillData, Distiller, dict[str, Any]]:
    """The configuration, data, model and checkpoint of a run; the model has the checkpoint's student.

    Args:
        checkpoint: RUN/checkpoints/best.ckpt.
        heads: the model also has the checkpoint's heads and normalisers.

    Raises:
        ConfigError: when the run's files are missing or do not fit together.
        CacheError: when its configuration would let a model run its own code, which no export may.
    """
    content = read_checkpoint(checkpoint)
    run = RunFolder.of_checkpoint(checkpoint)
    if not run.config.is_file():
        raise ConfigError(f"no {run.config}: a checkpoint must lie in its run's folder, as RUN/checkpoints/best.ckpt")
    config = run.configuration()
    data, model = rebuild_run(config, run.config)
    for name in ("student", "heads", "normalisers") if heads else ("student",):
        state = content["state_dict"].items()
        part = {key.removeprefix(f"{name}."): value for key, value in state if key.startswith(f"{name}.")}
        try:
            model.get_submodule(name).load_state_dict(part)
        except RuntimeError as error:
            raise ConfigError(f"{checkpoint} does not fit {run.config}: {' '.join(str(error).split())[:300]}") from None
    return config, data, model, content


def rebuild_run(config: Mapping[str, Any], path: Path) -> tuple[DistillData, Distiller]:
    """Data and model as ``distill fit`` made them of the configuration at ``path``.

    Raises:
        ConfigError: when it does not fit this version.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DistillData, "data")
    parser.add_class_arguments(Distiller, "model")
    parser.link_arguments("data.statistics", "model.statistics", apply_on="instantiate")
    try:
        run = parser.instantiate(parser.parse_object({key: deepcopy(config[key]) for key in ("data", "model")}))
    except (ArgumentError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no configuration of this version: {' '.join(str(error).split())}") from None
    return run.data, run.model


def _inputs(corpora: list[CorpusColumns]) -> dict[str, Featuriser]:
    """Input column -> its featuriser, loaded.

    Raises:
        CacheError: when two corpora have different columns of one name, or a tokenizer is not the one that made the column.
    """
    inputs: dict[str, Featuriser] = {}
    for corpus in corpora:
        column = corpus.inputs
        if column.name not in inputs:
            inputs[column.name] = corpus.featuriser
            corpus.featuriser.load("cpu")
        require_same(column.path, column.manifest["producer"]["fingerprint"], as_json(inputs[column.name].fingerprint()))
    return inputs


def _input_spec(featuriser: Featuriser, folder: Path) -> dict[str, Any]:
    """How an input column is made, from the export alone."""
    return {
        "class_path": class_path(featuriser),
        "init_args": featuriser.portable(folder),
        "modality": featuriser.modality,
    }


def _spaces(model: Distiller, data: DistillData) -> dict[str, TeacherSpace]:
    """Teacher -> its head and the way back to its raw embedding.

    Raises:
        ConfigError: when no head can emit one.
    """
    spaces, reasons = teacher_spaces(model.bank, data.statistics)
    for name, reason in reasons.items():
        log.warning("teacher %s: no head is exported, %s", name, reason)
    if not spaces:
        raise ConfigError("no head of this run can emit a teacher's raw embedding: leave --heads out")
    return spaces


def _round(modules: nn.ModuleDict, data: DistillData, dtype: Dtype) -> float:
    """Round the weights; gives the lowest cosine of an embedding before and after, over some held-out rows."""
    inputs = next(iter(data.val_dataloader())).inputs
    with torch.inference_mode():
        before = modules["student"](inputs)
        round_weights(modules, dtype)
        return float(torch.cosine_similarity(before, modules["student"](inputs)).min())
