"""The model card of an exported student: what it learnt from, how well, and how to use it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cache_tools import Column, TeacherError, locate
from distill.data.columns import CorpusColumns
from distill.export.formats import OnnxFile
from distill.records import MARGIN, Results
from distill.report import figures
from distill.report.answer import verdict_table
from distill.report.page import plain
from distill.report.sections import summarise
from distill.report.tables import score_table
from distill.run_folder import RunFolder

TEMPLATE = Path(__file__).with_name("card.md.jinja")

UNKNOWN = "unknown, see the model's page"

CHOSEN = ("student", "head", "heads", "dims", "normaliser", "objective")  # of a run's configuration, shown in the card


class HeldOut(NamedTuple):
    """How well the heads predicted each teacher on held-out rows, at the last validation before the checkpoint.

    Attributes:
        step: of the validation.
        loss: of all teachers.
        figures: names of what was measured, for instance ``r2``.
        rows: a teacher's name, and its value of each figure; empty where it has none.
    """

    step: str
    loss: str
    figures: list[str]
    rows: list[list[str]]


class Probes(NamedTuple):
    """What probes found, in Markdown.

    Attributes:
        answers: the verdict, in words; several where tasks are of several modalities.
        per_second: items that the student embeds per second of CPU time, where that was measured.
        verdicts: a table of each.
        tables: title, the table of scores, and the file of its plot.
    """

    answers: list[str]
    per_second: float | None
    verdicts: list[str]
    tables: list[tuple[str, str, str]]


def write(
    folder: Path,
    name: str,
    checkpoint: Path,
    config: Mapping[str, Any],
    corpora: list[CorpusColumns],
    exported: Mapping[str, Any],
    licence: str | None = None,
    kept: tuple[str, float] | None = None,
    onnx: Sequence[OnnxFile] = (),
) -> dict[str, Any]:
    """Write README.md with its plots into an export.

    Args:
        folder: of the export while it is being made.
        name: that the folder will have.
        checkpoint: RUN/checkpoints/best.ckpt.
        config: of the run.
        corpora: those that the run read.
        exported: the export's config.json.
        licence: of the student; None when none is stated.
        kept: the type of rounded weights, and the lowest cosine of an embedding with that before; None without rounding.
        onnx: the files in ONNX.

    Returns:
        What a list of students shows of it: ``licence``, ``per_second`` and ``verdicts``.
    """
    from huggingface_hub import ModelCard, ModelCardData

    run, at = RunFolder.of_checkpoint(checkpoint), exported["checkpoint"]
    modalities = list(dict.fromkeys(column["modality"] for column in exported["inputs"].values()))
    columns = {name: column for corpus in reversed(corpora) for name, column in corpus.teachers.items()}
    rows = run.metrics()
    held_out = _held_out(rows, at["step"], columns.keys())
    if held_out and (curves := figures.losses(rows)):
        curves.savefig(folder / "training.png", dpi=130)
    data = ModelCardData(
        library_name="quorum-distill",
        license=licence or "unknown",
        pipeline_tag="feature-extraction",
        tags=["embeddings", "multi-teacher-distillation", *modalities],
    )
    probes = _probes(folder, run, checkpoint)
    ModelCard.from_template(
        data,
        str(TEMPLATE),
        name=name,
        literal=partial(json.dumps, ensure_ascii=False),
        title=plain(name),
        modalities=modalities,
        dim=exported["dim"],
        dims=exported.get("dims", []),
        spaces=[(teacher, spec["dim"]) for teacher, spec in exported["teachers"].items()],
        module=exported["student"]["class_path"].rpartition(".")[0],
        teachers=[_teacher(*item) for item in columns.items()],
        corpora=[_corpus(corpus) for corpus in corpora],
        epoch=at["epoch"],
        step=at["step"],
        configuration=yaml.safe_dump({key: v for key in CHOSEN if (v := config["model"].get(key))}, sort_keys=False),
        held_out=held_out,
        probes=probes,
        licence=licence,
        kept=kept,
        onnx=onnx,
    ).save(folder / "README.md")
    found = {"per_second": probes.per_second, "verdicts": probes.answers} if probes else {}
    return {"licence": licence} | found


def _teacher(name: str, column: Column) -> list[str]:
    """A line of the table of teachers."""
    producer = column.manifest["producer"]
    init_args = producer["init_args"]
    model = next((str(init_args[key]) for key in ("model", "weights", "embeddings", "export") if init_args.get(key)), "")
    sha = producer["fingerprint"].get("weights_sha256", "")
    revision = init_args.get("revision") or ("not pinned" if model and "revision" in init_args else "")
    licence = _licence(model, init_args.get("revision")) if model else "no weights"
    return _cells(name, f"`{producer['class_path']}`", column.dim, _short(model), revision, sha[:16], licence)


def _corpus(corpus: CorpusColumns) -> list[str]:
    """A line of the table of corpora."""
    facts, name = corpus.corpus, corpus.columns.corpus.name
    return _cells(name, facts.modality, f"{facts.rows:,}", _short(facts.source), facts.fingerprint[:16], corpus.inputs.name)


def _short(place: str) -> str:
    """The name of a file instead of its absolute path: where it lay helps nobody else."""
    return Path(place).name if Path(place).is_absolute() else place


def _cells(*values: object) -> list[str]:
    """A line of a table in Markdown: a name can become no tag and no link."""
    return [str(plain(value)) for value in values]


def _licence(model: str, revision: str | None) -> str:
    """The licence in the model's own card, or in the file of its weights, where there is a copy of it on this machine."""
    from huggingface_hub import metadata_load, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from safetensors import SafetensorError

    try:
        place = Path(locate(model))
        if place.suffix == ".safetensors" and place.is_file() and (stated := _stated(place)):
            return stated
        if place.exists():
            path: Any = (place if place.is_dir() else place.parent) / "README.md"
        else:
            path = try_to_load_from_cache(model, "README.md", revision=revision)
        front = metadata_load(path) if isinstance(path, str | Path) and Path(path).is_file() else None
    except (TeacherError, HFValidationError, SafetensorError, ValueError, yaml.YAMLError):
        return UNKNOWN
    return str((front or {}).get("license") or UNKNOWN)


def _stated(weights: Path) -> str:
    """The licence, and what the weights come from, in the metadata of their file; empty where it says none."""
    from safetensors import safe_open

    with safe_open(weights, "numpy") as file:
        facts = file.metadata() or {}
    licence, source = facts.get("licence") or facts.get("license") or "", facts.get("source")
    return f"{licence} ({source})" if licence and source else licence


def _held_out(rows: list[dict[str, str]], step: int, teachers: Iterable[str]) -> HeldOut | None:
    """The last validation up to ``step`` among what a run logged; None when there is none."""
    validations = [row for row in rows if row.get("val/loss") and int(row["step"]) <= step]
    if not validations:
        return None
    last = validations[-1]
    by_teacher: dict[str, dict[str, str]] = {}  # teacher -> figure -> value
    for key, value in last.items():
        figure, _, teacher = key.partition("/")
        if value and teacher in teachers:
            by_teacher.setdefault(teacher, {})[figure] = f"{float(value):.4g}"
    names = sorted({figure for values in by_teacher.values() for figure in values})
    lines = [_cells(teacher, *(values.get(name, "") for name in names)) for teacher, values in by_teacher.items()]
    return HeldOut(last["step"], f"{float(last['val/loss']):.4g}", names, lines)


def _probes(folder: Path, run: RunFolder, checkpoint: Path) -> Probes | None:
    """What the probes of this checkpoint found, with a plot of each table in ``folder``; None without such probes."""
    if not run.results.is_file():
        return None
    results = Results.load(run.path)
    if Path(results.about.get("checkpoint", "")).name != checkpoint.name:
        return None
    found, tables = summarise(results.records, results.costs, results.about.get("margin", MARGIN)), []
    for number, scores in enumerate(found.by_split.values()):
        plot = f"probes-{scores.split}{f'-{number}' if scores.group else ''}.png"
        figures.bars(scores).savefig(folder / plot, dpi=130)
        tables.append((str(plain(scores.title)), str(score_table(scores).markdown()), plot))
    verdicts = [str(verdict_table(each).markdown()) for each in found.answers if each.best]
    per_second = results.costs["student"].per_second if "student" in results.costs else None
    return Probes([str(plain(each)) for each in found.answers], per_second, verdicts, tables)
