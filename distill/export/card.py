"""The model card of an exported student: what it learnt from, how well, and how to use it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cache_tools import Column, TeacherError, locate
from distill.data.columns import CorpusColumns
from distill.records import FILE, FOLDER, Results
from distill.report import figures, page
from distill.report import sections as report
from distill.report.scores import Scores
from distill.report.tables import score_table
from distill.run_folder import RunFolder

ITEMS = {
    "molecule": '["CCO", "c1ccccc1"]',
    "text": '["a cat on a mat", "a dog in the fog"]',
    "image": '[Image.new("RGB", (64, 64)), Image.new("RGB", (80, 60), "red")]',
}

UNKNOWN = "unknown, see the model's page"


def write(
    folder: Path,
    name: str,
    checkpoint: Path,
    config: Mapping[str, Any],
    parts: list[CorpusColumns],
    exported: Mapping[str, Any],
) -> None:
    """Write README.md with its plots into an export.

    Args:
        folder: of the export as it is being made; its files are listed.
        name: that the folder will have.
        checkpoint: RUN/checkpoints/best.ckpt.
        config: of the run.
        parts: the corpora that it read.
        exported: the export's config.json.
    """
    run = checkpoint.absolute().parents[1]
    modalities = list(dict.fromkeys(each["modality"] for each in exported["inputs"].values()))
    front = {"library_name": "quorum-distill", "license": "unknown", "pipeline_tag": "feature-extraction"}
    head = yaml.safe_dump({**front, "tags": ["embeddings", "multi-teacher-distillation", *modalities]}, sort_keys=False)
    sections = [
        f"---\n{head}---\n\n# {name}",
        f"An encoder of {' and '.join(f'{each}s' for each in modalities)}, {exported['dim']} wide, distilled by "
        "quorum-distill ([arXiv 2510.18680](https://arxiv.org/abs/2510.18680)) from the teachers below.",
        _usage(name, modalities, exported),
        _teachers(parts),
        _corpora(parts),
        _training(folder, run, config, exported["checkpoint"], {name for part in parts for name in part.teachers}),
        _probes(folder, run, checkpoint),
        "## Licence\n\nNone is stated for this student. Before you pass it on, look at the licences of its teachers' "
        "weights and of its corpus.",
    ]
    (folder / "README.md").write_text("\n\n".join(each for each in sections if each) + "\n")


def _usage(name: str, modalities: list[str], exported: Mapping[str, Any]) -> str:
    several = len(modalities) > 1
    lines = ["from PIL import Image", ""] if "image" in modalities else []
    lines += ["import distill", "", f"student = distill.load_student({name!r})  # the path of this folder"]
    for each in modalities:
        named = f", modality={each!r}" if several else ""
        lines.append(f"embedded = student.embed({ITEMS[each]}{named})  # (2, {exported['dim']})")
    for teacher, spec in list(exported["teachers"].items())[:1]:
        lines.append(f"raw = student.teacher_space({ITEMS[modalities[-1]]}, {teacher!r}{named})  # (2, {spec['dim']})")
    text = "## Use\n\n```python\n" + "\n".join(lines) + "\n```"
    if "image" in modalities:
        text += "\n\nAn image is a path, the bytes of a file, a PIL image or a uint8 array (height, width, 3)."
    module = exported["student"]["class_path"].rpartition(".")[0]
    if not module.startswith("distill."):
        text += f"\n\nThe student's class is in the module `{module}`, which must be importable."
    return text


def _teachers(parts: list[CorpusColumns]) -> str:
    columns = {name: column for part in reversed(parts) for name, column in part.teachers.items()}
    lines = [_row("teacher", "class", "dim", "model", "revision", "SHA-256 of weights", "licence"), _row(*["---"] * 7)]
    lines += [_teacher(name, column) for name, column in columns.items()]
    return "## Teachers\n\n" + "\n".join(lines)


def _teacher(name: str, column: Column) -> str:
    made = column.manifest["producer"]
    known = made["init_args"]
    model = next((str(known[key]) for key in ("model", "weights", "embeddings", "export") if known.get(key)), "")
    sha = made["fingerprint"].get("weights_sha256", "")
    revision = known.get("revision") or ("not pinned" if model and "revision" in known else "")
    licence = _licence(model, known.get("revision")) if model else "no weights"
    shown = Path(model).name if Path(model).is_absolute() else model  # where a file lay helps nobody else
    return _row(name, f"`{made['class_path']}`", column.dim, shown, revision, sha[:16], licence)


def _licence(model: str, revision: str | None) -> str:
    """What the model's own card says, where there is a copy of it on this machine."""
    try:
        place = Path(locate(model))
    except TeacherError:
        return UNKNOWN
    path: Any = (place if place.is_dir() else place.parent) / "README.md"
    if not place.exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(model, "README.md", revision=revision)
        except HFValidationError:
            return UNKNOWN
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return UNKNOWN
    front = re.match(r"---\n(.*?)\n---", Path(path).read_text(errors="replace"), re.DOTALL)
    stated = re.search(r"^license:\s*(\S+)", front[1], re.MULTILINE) if front else None
    return stated[1] if stated else UNKNOWN


def _corpora(parts: list[CorpusColumns]) -> str:
    lines = [_row("corpus", "modality", "rows", "source", "fingerprint", "input"), _row(*["---"] * 6)]
    for part in parts:
        about, name = part.corpus, part.columns.corpus.name
        lines.append(_row(name, about.modality, f"{about.rows:,}", about.source, about.fingerprint[:16], part.inputs.name))
    return "## Corpora\n\n" + "\n".join(lines)


def _training(folder: Path, run: Path, config: Mapping[str, Any], checkpoint: Mapping[str, Any], teachers: set[str]) -> str:
    chosen = {key: config["model"].get(key) for key in ("student", "head", "heads", "normaliser", "objective")}
    shown = yaml.safe_dump({key: value for key, value in chosen.items() if value}, sort_keys=False)
    text = f"## Training\n\nEpoch {checkpoint['epoch']}, step {checkpoint['step']}.\n\n```yaml\n{shown}```"
    rows = RunFolder(run).metrics()
    held = [row for row in rows if row.get("val/loss") and int(row["step"]) <= checkpoint["step"]]
    if not held:
        return text
    told: dict[str, dict[str, str]] = {}  # teacher -> figure -> value
    for key, value in held[-1].items():
        figure, _, teacher = key.partition("/")
        if value and teacher in teachers:
            told.setdefault(teacher, {})[figure] = f"{float(value):.4g}"
    names = sorted({figure for each in told.values() for figure in each})
    lines = [_row("teacher", *names), _row("---", *["---:"] * len(names))]
    lines += [_row(teacher, *(each.get(name, "") for name in names)) for teacher, each in told.items()]
    if drawn := figures.losses(rows):
        drawn.savefig(folder / "training.png", dpi=130)
    loss = f"Held-out rows at step {held[-1]['step']}: loss {float(held[-1]['val/loss']):.4g}."
    return "\n\n".join([text, loss, "\n".join(lines), "![losses](training.png)"])


def _probes(folder: Path, run: Path, checkpoint: Path) -> str:
    if not (run / FOLDER / FILE).is_file():
        return ""
    results = Results.load(run)
    if Path(results.about["checkpoint"]).name != checkpoint.name:
        return ""
    parts = ["## Probes\n\nProbes of the frozen embedding, made by `distill test`."]
    for split in dict.fromkeys(record.split for record in results.records):
        scores = Scores(results.records, split)
        figures.bars(scores).savefig(folder / f"probes-{split}.png", dpi=130)
        parts.append(f"{split.capitalize()} split: {report.answer(scores)}")
        parts.append(page.markdown([score_table(scores)]))
        parts.append(f"![mean scores](probes-{split}.png)")
    return "\n\n".join(parts)


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(each).replace('|', chr(92) + '|') for each in cells)} |"
