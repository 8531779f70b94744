"""``distill export | predict``: a trained student as a folder that needs nothing else, or as a column of a cache."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from cache_tools import (
    Build,
    ConfigError,
    Featuriser,
    Settings,
    TokenIds,
    as_json,
    check_name,
    class_path,
    finish,
    libraries,
    locate,
    read_corpus,
    require_same,
)
from distill.data.columns import CorpusColumns, featuriser_of
from distill.data.module import DistillData
from distill.export import card
from distill.export.formats import PROGRAM, SENTENCES, _write_program, _write_sentences
from distill.export.student import CONFIG, FORMAT_VERSION, HERE, WEIGHTS, StudentTeacher, TeacherSpace, read_config
from distill.heads import Head
from distill.students.base import Student
from distill.students.image import ImageStudent
from distill.students.mixed import MixedStudent
from distill.students.text import TextStudent
from distill.targets import Normaliser, Raw, Standardise
from distill.training.distiller import Distiller

log = logging.getLogger(__name__)


def export(
    out: Path, ckpt_path: Path, heads: bool = False, program: bool = False, sentence_transformers: bool = False
) -> None:
    """Write a student to a folder that ``distill.load_student`` loads anywhere; run it where the training ran.

    Args:
        out: the folder; must be new or empty.
        ckpt_path: RUN/checkpoints/best.ckpt; by default that of the newest run.
        heads: also the teachers' heads, so that the student can emit their raw embeddings.
        program: also model.pt2, by torch.export, for students of texts or images.
        sentence_transformers: also a folder that SentenceTransformer loads, for a student of texts.

    Raises:
        ConfigError: when ``out`` is taken, the checkpoint and its run do not fit together, or the student has no such form.
        CacheError: when the cache of the run is gone.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out.absolute()} is there already: choose another --out, or move it away")
    config, data, model, checkpoint = open_run(ckpt_path, heads)
    student = model.student.eval()
    inputs = _inputs(data.corpora)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export", dir=out.absolute().parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        spec = config["model"]["student"]
        spec = {**spec, "init_args": self_contained(student, spec.get("init_args") or {}, folder / "network")}
        spaces = _spaces(model, data) if heads else nn.ModuleDict()
        written = {
            "format_version": FORMAT_VERSION,
            "dim": student.dim,
            "student": spec,
            "inputs": {name: _input_spec(each, folder / "inputs" / name) for name, each in inputs.items()},
            "teachers": {
                name: _head_spec(config["model"], name, cast(TeacherSpace, each)) for name, each in spaces.items()
            },
            "weights_sha256": _write_weights(nn.ModuleDict({"student": student, "teachers": spaces}), folder / WEIGHTS),
            "checkpoint": {"sha256": _sha256(ckpt_path), "epoch": checkpoint["epoch"], "step": checkpoint["global_step"]},
            "libraries": libraries(),
        }
        text = json.dumps(_portable(as_json(written), folder), indent=1)
        (folder / CONFIG).write_text(text + "\n")
        if program:
            _write_program(student, inputs, folder / PROGRAM)
        if sentence_transformers:
            _write_sentences(student, inputs, folder / SENTENCES)
        card.write(folder, out.name, ckpt_path, config, data.corpora, json.loads(text))
        folder.rename(out)
    log.info("written: %s; `distill.load_student(%r).embed([...])` anywhere, how is in its README.md", out, str(out))


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
        student: a folder that ``distill export`` made, instead.
        settings: batch size, device, type on disk.

    Raises:
        ConfigError: when both or none of ``ckpt_path`` and ``student`` are given, or the student does not read this corpus.
        CacheError: when there is no such corpus, or the column was made by something else.
    """
    if (student is None) == (ckpt_path is None):
        raise ConfigError(
            "expected one of --ckpt_path and --student: a checkpoint of a run, or a folder of `distill export`"
        )
    check_name(name)
    manifest = read_corpus(corpus)
    if ckpt_path is not None:
        student = export_of(ckpt_path)
    assert student is not None
    several = len(read_config(student)["inputs"]) > 1
    teacher = StudentTeacher(student.resolve(), manifest.modality if several else None)
    if teacher.modality != manifest.modality:
        raise ConfigError(f"{student} reads {teacher.modality}s, the corpus {corpus} holds {manifest.modality}s")
    finish([Build(corpus, manifest, "teachers", name, teacher, settings)])


def export_of(checkpoint: Path) -> Path:
    """The export beside a checkpoint, made when it is not there."""
    folder = checkpoint.absolute().parents[1] / "export"
    if not folder.exists():
        export(folder, checkpoint)
    elif read_config(folder).get("checkpoint", {}).get("sha256") != _sha256(checkpoint):
        raise ConfigError(
            f"{folder} is of another checkpoint than {checkpoint}: delete it, or name an export with --student"
        )
    return folder


def open_run(checkpoint: Path, heads: bool) -> tuple[dict[str, Any], DistillData, Distiller, dict[str, Any]]:
    """The configuration, data, model and checkpoint of a run; the model has the checkpoint's student, perhaps its heads.

    Raises:
        ConfigError: when the run's files are missing or do not fit together.
    """
    if not checkpoint.is_file():
        raise ConfigError(
            f"no checkpoint at {checkpoint.absolute()}: expected RUN/checkpoints/best.ckpt of a `distill fit`"
        )
    path = checkpoint.absolute().parents[1] / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"no {path}: a checkpoint must lie in its run's folder, as RUN/checkpoints/best.ckpt")
    config = yaml.safe_load(path.read_text())
    data, model = rebuild_run(config, path)
    try:
        read = torch.load(checkpoint, map_location="cpu", weights_only=True)
        read["state_dict"].keys()
    except Exception as error:  # torch, zip and pickle have a kind each
        why = str(error).splitlines()[0][:200]
        raise ConfigError(f"{checkpoint} is no checkpoint of `distill fit`, or is damaged: {why}") from None
    for name in ("student", "heads", "normalisers") if heads else ("student",):
        state = {
            key.removeprefix(f"{name}."): each for key, each in read["state_dict"].items() if key.startswith(f"{name}.")
        }
        try:
            model.get_submodule(name).load_state_dict(state)
        except RuntimeError as error:
            raise ConfigError(f"{checkpoint} does not fit {path}: {' '.join(str(error).split())[:300]}") from None
    return config, data, model, read


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
        made = parser.instantiate(parser.parse_object({key: deepcopy(config[key]) for key in ("data", "model")}))
    except (ArgumentError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no configuration of this version: {' '.join(str(error).split())}") from None
    return made.data, made.model


def _inputs(parts: list[CorpusColumns]) -> dict[str, Featuriser]:
    """Input column -> its featuriser, loaded.

    Raises:
        ConfigError: when two corpora have different columns of one name.
        CacheError: when a tokenizer is not the one that the column was made with.
    """
    inputs: dict[str, Featuriser] = {}
    for part in parts:
        name, fingerprint = part.inputs.name, part.inputs.manifest["producer"]["fingerprint"]
        if name not in inputs:
            inputs[name] = featuriser_of(part.inputs)
            inputs[name].load("cpu")
        if fingerprint != as_json(inputs[name].fingerprint()):
            require_same(part.inputs.path, fingerprint, as_json(inputs[name].fingerprint()))
    return inputs


def self_contained(student: Student, init_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Arguments that build the same network from ``folder`` alone, where what it needs is written; no weights are fetched.

    A student of one's own keeps its arguments as they are.
    """
    if isinstance(student, MixedStudent):
        encoders = {
            name: {**spec, "init_args": self_contained(cast(Student, each), spec.get("init_args") or {}, folder / name)}
            for (name, spec), each in zip(init_args["encoders"].items(), student.encoders.values(), strict=True)
        }
        return {**init_args, "encoders": encoders}
    if isinstance(student, TextStudent):
        student.network.config.save_pretrained(folder)
        return {**init_args, "model": str(folder), "pretrained": False, "config": None}
    if isinstance(student, ImageStudent):
        model = _image_model(init_args, folder)
        return {**init_args, "model": model, "pretrained": False, "weights": None}
    return dict(init_args)


def _image_model(init_args: Mapping[str, Any], folder: Path) -> str:
    """The name of a backbone without its weights."""
    model: str = init_args["model"]
    if init_args.get("library") == "transformers":
        from transformers import AutoConfig, AutoImageProcessor

        for each in (AutoConfig, AutoImageProcessor):
            each.from_pretrained(locate(model)).save_pretrained(folder)
        return str(folder)
    source, _, place = locate(model).partition(":")
    if place and init_args.get("library", "timm") == "timm":  # local-dir: or hf-hub:, not one of timm's own
        from huggingface_hub import hf_hub_download

        name, _, revision = place.partition("@")
        local = source == "local-dir"
        folder.mkdir(parents=True)
        path = Path(place) / CONFIG if local else hf_hub_download(name, CONFIG, revision=revision or None)
        shutil.copyfile(path, folder / CONFIG)
        return f"local-dir:{folder}"
    return model


def _input_spec(featuriser: Featuriser, folder: Path) -> dict[str, Any]:
    """How an input column is made, from the export alone."""
    init_args = dict(featuriser.init_args)
    if isinstance(featuriser, TokenIds):
        featuriser.split.save_pretrained(folder)
        init_args |= {"tokenizer": str(folder), "revision": None}
    return {"class_path": class_path(featuriser), "init_args": init_args, "modality": featuriser.modality}


def _spaces(model: Distiller, data: DistillData) -> nn.ModuleDict:
    """Teacher -> its head and the way back to its raw embedding.

    Raises:
        ConfigError: when no head can emit one.
    """
    spaces = nn.ModuleDict()
    for name in model.teachers:
        head, normaliser = cast(Head, model.heads[name]), cast(Normaliser, model.normalisers[name])
        predicts = type(head).predict is not Head.predict and not head.scale_free and not head.ladder
        if not predicts or not isinstance(normaliser, Raw | Standardise):
            why = f"{class_path(normaliser)} has no way back" if predicts else "its head predicts none from it alone"
            log.warning("teacher %s: no head is exported, %s", name, why)
            continue
        space = TeacherSpace(head, len(data.statistics[name].mean), normaliser.dim)
        if isinstance(normaliser, Standardise):
            space.mean = torch.from_numpy(data.statistics[name].mean).float()
            space.mean[normaliser.kept] = normaliser.shift
            space.places, space.gain = normaliser.kept, normaliser.scale.reciprocal()
        spaces[name] = space
    if not spaces:
        raise ConfigError("no head of this run can emit a teacher's raw embedding: leave --heads out")
    return spaces


def _head_spec(model: Mapping[str, Any], name: str, space: TeacherSpace) -> dict[str, Any]:
    spec = (model.get("heads") or {}).get(name) or model["head"]
    return {"dim": len(space.mean), "targets": len(space.gain), "head": spec}


def _write_weights(modules: nn.Module, path: Path) -> str:
    from safetensors.torch import save

    state = {name: value.detach().cpu().clone().contiguous() for name, value in modules.state_dict().items()}
    path.write_bytes(save(state, {"format": "pt"}))
    return _sha256(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _portable(content: Any, folder: Path) -> Any:
    """``content`` with paths below ``folder`` made independent of where the export lies."""
    if isinstance(content, dict):
        return {key: _portable(value, folder) for key, value in content.items()}
    if isinstance(content, list):
        return [_portable(value, folder) for value in content]
    return content.replace(str(folder), HERE) if isinstance(content, str) else content
