"""The report of runs: is the student better than the teacher that one would use, on which tasks, how certainly."""

import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from distill.records import Cost, Record, Results, merged, save_scores
from distill.report import figures, page
from distill.report.page import Plot, Table
from distill.report.scores import Scores
from distill.report.tables import duel_table, interval, score_table
from distill.run_folder import MAP

log = logging.getLogger(__name__)

SHOWN = 4  # students whose curves, conflicts and maps are drawn

BASELINES = {"teachers": "the best single teacher", "start": "its own start", "untrained": "random weights"}

FLOORED = "floored"  # of what a run logged

MEASURES = {"r2": "R2 of each teacher", "cosine": "cosine with each teacher", "nats": "nats per dimension of each teacher"}


def write(
    folder: Path,
    title: str,
    runs: Mapping[str, Sequence[Results]],
    origin: str,
    template: str = "report/runs.md.jinja",
    **values: Any,
) -> dict[str, Scores]:
    """Write the report of one student or several.

    Args:
        folder: gets report.html, report.md, figures, and every score in scores.csv.
        title: of the page.
        runs: name of a student -> its runs, of one seed or several.
        origin: how it was made.
        template: of the report; one that extends the default has more sections, and needs more ``values``.
        values: see there.

    Returns:
        The scores of each split.
    """
    records, warnings = merged(runs)
    first = {name: group[0] for name, group in runs.items()}
    everything = [results for group in runs.values() for results in group]
    costs: dict[str, Cost] = {}
    for results in everything:
        costs = {**results.costs, **costs}  # what several runs measured, by the first of them
    costs |= {name: results.costs["student"] for name, results in first.items() if "student" in results.costs}
    left_out = sorted({name for results in everything for name in results.about.get("left_out", ())})
    values |= {"origin": origin, "left_out": left_out, "warnings": warnings, "first": first, "costs": costs}
    return write_scores(folder, template, title, records, **values)


def write_scores(folder: Path, template: str, title: str, records: Sequence[Record], **values: Any) -> dict[str, Scores]:
    """Write a report by a template that extends report.md.jinja, and its scores.csv; gives the scores of each split."""
    by_split = comparable_scores(records)
    functions = {function.__name__: function for function in FUNCTIONS}
    page.write(folder, template, title, by_split=by_split, **functions, **values)
    save_scores(folder, records)
    return by_split


def comparable_scores(records: Sequence[Record]) -> dict[str, Scores]:
    """Scores by kind of split, and by the systems measured: means and ranks are over tasks that all systems have."""
    systems: dict[tuple[str, str], set[str]] = {}
    for record in records:
        systems.setdefault((record.split, record.task), set()).add(record.system)
    groups: dict[str, dict[frozenset[str], list[str]]] = {}  # split -> systems -> tasks
    for (split, task), measured in systems.items():
        groups.setdefault(split, {}).setdefault(frozenset(measured), []).append(task)
    comparable = {}
    for split, by_systems in groups.items():
        for tasks in by_systems.values():
            more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
            name = split if len(by_systems) == 1 else f"{split}, {tasks[0]}{more}"
            comparable[name] = Scores([record for record in records if record.task in tasks], split)
    return comparable


def answer(scores: Scores) -> str:
    """One paragraph: the best student against the best teacher, the untrained one, and all teachers together."""
    students, mean = scores.of_kind("student"), scores.mean()
    if not students:
        return "no student was probed."
    best, half = students[0], scores.half_width()
    spread = "" if np.isnan(half[best]) else f" ± {half[best]:.3f}"
    name = f"`{scores.systems[best]}`"
    if len(students) > 1:
        name = f"the best of {len(students)} students by these very scores, {name},"
    sentences = [f"{name} has a mean of {mean[best]:.3f}{spread} over {len(scores.tasks)} tasks."]
    for kind, baseline in BASELINES.items():
        for other in scores.of_kind(kind)[:1]:
            duel = scores.against(best, other)
            counts = f"; tasks won {duel.won}, tied {duel.tied}, lost {duel.lost}" if scores.several else ""
            sentences.append(
                f"Against {baseline}, `{scores.systems[other]}` ({mean[other]:.3f}): {duel.difference:+.3f} "
                f"(95 % {interval(duel) or 'unknown'}){counts}."
            )
    if np.isfinite(share := scores.kept()[best]):
        sentences.append(f"It keeps {share:.0%} of what the teachers concatenated score.")
    return " ".join(sentences)


def split_plots(split: str, scores: Scores) -> list[Plot]:
    """Scores and ranks of one kind of split, and which systems differ."""
    name, several = f"{split.capitalize()} split", scores.several
    bars = f"{name}: mean score{', its 95 % interval over seeds' if several else ''}; dots are tasks"
    ranks = f"{name}: rank of each system on each task{', mean over seeds' if several else ''}; 1 is best"
    plots = [
        Plot(f"scores-{split}", bars, figures.bars(scores)),
        Plot(f"ranks-{split}", ranks, figures.ranks(scores)),
    ]
    if len(scores.systems) > 2 and len(scores.tasks) > 1:
        test = f"Nemenyi's test (5 %, {len(scores.tasks)} tasks)"
        caption = f"{name}: mean ranks over tasks; a bar joins systems that {test} does not tell apart"
        plots.append(Plot(f"critical-{split}", caption, figures.critical_difference(scores)))
    return plots


def cost_table(scores: Scores, costs: Mapping[str, Cost]) -> Table:
    """The dimension, parameters and speed of every system."""
    by_system = {system: costs[system] for system in scores.systems if system in costs}
    rows = [
        [
            system,
            f"{cost.dim:,}",
            *("-" if value is None else f"{value:,.0f}" for value in (cost.parameters, cost.per_second)),
        ]
        for system, cost in by_system.items()
    ]
    return Table(["system", "dim", "parameters", "items/s"], rows)


def cost_plots(split: str, scores: Scores, costs: Mapping[str, Cost]) -> list[Plot]:
    """The mean score of every system against what it costs."""
    drawn = {
        "parameters": figures.cost(scores, costs, "parameters", "parameters of its networks"),
        "speed": figures.cost(scores, costs, "per_second", "raw items embedded per second"),
    }
    caption = f"Mean score, {split} split, against"
    return [Plot(f"cost-{name}", f"{caption} {name}", figure) for name, figure in drawn.items() if figure]


def training_table(runs: Mapping[str, Results]) -> Table:
    """How well each student's heads predict each teacher at the end of its run."""
    last = {name: validations[-1] for name, results in runs.items() if (validations := _validations(results))}
    columns = {(name, measure): _by_teacher(row, measure) for name, row in last.items() for measure in (*MEASURES, FLOORED)}
    columns = {column: by_teacher for column, by_teacher in columns.items() if by_teacher}
    head = ["teacher", *(measure if len(last) == 1 else f"{name}\n{measure}" for name, measure in columns)]
    teachers = dict.fromkeys(teacher for by_teacher in columns.values() for teacher in by_teacher)
    rows = [[teacher, *(by_teacher.get(teacher, "-") for by_teacher in columns.values())] for teacher in teachers]
    note = "floored: dimensions in which held-out values lie beyond all rows to train on; such values count as the mean."
    return Table(head, rows, note if any(measure == FLOORED for _, measure in columns) else "")


def training_plots(runs: Mapping[str, Results]) -> list[Plot]:
    """Curves of each student's run."""
    plots: list[Plot] = []
    for name in [name for name, results in runs.items() if _validations(results)][:SHOWN]:
        rows, last = runs[name].run.metrics(), _validations(runs[name])[-1]
        drawn = {"loss": ("loss", figures.losses(rows))}
        for measure, label in MEASURES.items():
            keys = {f"{measure}/{teacher}": teacher for teacher in _by_teacher(last, measure)}
            drawn[measure] = f"{label}, on held-out rows", figures.curves(rows, keys, label)
        for measure, (caption, figure) in drawn.items():
            if figure and len(runs) == 1:
                plots.append(Plot(f"training-student-{measure}", f"{caption.capitalize()}, by step", figure))
            elif figure:
                plots.append(Plot(f"training-{name}-{measure}", f"{name}: {caption}, by step", figure))
    return plots


def _validations(results: Results) -> list[dict[str, str]]:
    return [row for row in results.run.metrics() if row.get("val/loss")]


def _by_teacher(row: Mapping[str, str], measure: str) -> dict[str, str]:
    """Teacher -> its logged value of one measure."""
    keys = [key for key, value in row.items() if key.startswith(f"{measure}/") and value]
    digits = 0 if measure == FLOORED else 3
    return {key.partition("/")[2]: f"{float(row[key]):.{digits}f}" for key in keys}


def conflict_plots(runs: Mapping[str, Results]) -> list[Plot]:
    """Cosines of the teachers' gradients, as each run measured them last."""
    plots = []
    for name, results in list(runs.items())[:SHOWN]:
        if measured := results.run.last_conflict():
            step, teachers, cosines = measured
            plots.append(Plot(f"conflict-{name}", f"{name}: step {step}", figures.conflicts(teachers, cosines)))
    return plots


def map_plots(runs: Mapping[str, Results]) -> list[Plot]:
    """Embeddings of one task in two dimensions: every student's, and the other systems' by the first run."""
    plots: list[Plot] = []
    for name, results in list(runs.items())[:SHOWN]:
        maps = _map(results.run.probes / MAP)
        systems = [key for key in maps if key not in ("task", "kind", "labels", "student")]
        for system in ["student", *([] if plots else systems)]:
            if system in maps:
                shown = name if system == "student" else system
                figure = figures.plane(maps[system], maps["labels"], str(maps["kind"]))
                plots.append(Plot(f"map-{shown}", f"{shown}: items of {maps['task']}", figure))
    return plots


def _map(path: Path) -> dict[str, Any]:
    """What a test kept to draw; nothing when there is no file, or it was cut short."""
    try:
        with np.load(path) as maps:
            return {key: maps[key] for key in ("task", "kind", "labels", *maps.files)}
    except FileNotFoundError:
        return {}
    except (ValueError, OSError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        log.warning("%s is damaged (%s), its map is left out: probe the run again with `distill test`", path, error)
        return {}


def teacher_table(corpus: Mapping[str, Any]) -> Table:
    """The teachers of a corpus, as the results of a run name them."""
    teachers = corpus["teachers"].items()
    rows = [[name, str(teacher["class_path"]), str(teacher.get("weights_sha256", ""))[:16]] for name, teacher in teachers]
    return Table(["teacher", "class", "SHA-256 of weights"], rows)


FUNCTIONS = (
    answer,
    score_table,
    duel_table,
    split_plots,
    cost_table,
    cost_plots,
    training_table,
    training_plots,
    conflict_plots,
    map_plots,
    teacher_table,
)  # that templates call
