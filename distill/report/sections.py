"""The report of runs: the verdict, scores, costs, and what each run kept."""

import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from distill.records import MARGIN, RECALL, Cost, Record, Results, merged, name_of, save_scores
from distill.report import figures, page
from distill.report.answer import Answer, answers, students_table, verdict_table
from distill.report.page import Plot, Table
from distill.report.scores import Scores, comparable_scores
from distill.report.tables import score_table
from distill.run_folder import MAP

log = logging.getLogger(__name__)

SHOWN = 4  # students whose curves, conflicts and maps are drawn

FLOORED = "floored"  # of what a run logged

NOTES = {
    FLOORED: "floored: dimensions in which held-out values lie beyond all rows to train on; such values count as the mean.",
    RECALL: f"{RECALL}: of the ten held-out items nearest to an item by the teacher's embedding, the share that the "
    "student's prediction of this embedding finds in the teacher's index.",
}

MEASURES = {"r2": "R2 of each teacher", "cosine": "cosine with each teacher", "nats": "nats per dimension of each teacher"}


class Summary(NamedTuple):
    """What a report says first: its verdicts, one for each group of tasks, and the scores of each kind of split."""

    answers: list[Answer]
    by_split: dict[str, Scores]


def write(
    folder: Path,
    title: str,
    runs: Mapping[str, Sequence[Results]],
    origin: str,
    template: str = "report/runs.md.jinja",
    **values: Any,
) -> Summary:
    """Write the report of one student or several.

    Args:
        folder: gets report.html, report.md, figures, and every score in scores.csv.
        title: of the page.
        runs: name of a student -> its runs, of one seed or several.
        origin: how it was made.
        template: of the report; one that extends the default has more sections, and needs more ``values``.
        values: see there.

    Returns:
        The verdicts, and the scores of each split.
    """
    records, warnings = merged(runs)
    first = {name: group[0] for name, group in runs.items()}
    everything = [results for group in runs.values() for results in group]
    costs: dict[str, Cost] = {}
    for results in everything:
        costs = {**results.costs, **costs}  # what several runs measured, by the first of them
    for name, results in first.items():
        own = (system for system in results.costs if system.partition("[:")[0] == "student")
        costs |= {name_of(system, name): results.costs[system] for system in own}
    left_out = sorted({name for results in everything for name in results.about.get("left_out", ())})
    values |= {"origin": origin, "left_out": left_out, "warnings": warnings, "first": first, "costs": costs}
    return write_scores(folder, template, title, records, **values)


def write_scores(
    folder: Path,
    template: str,
    title: str,
    records: Sequence[Record],
    costs: Mapping[str, Cost] | None = None,
    margin: float = MARGIN,
    **values: Any,
) -> Summary:
    """Write a report by a template that extends report.md.jinja, and its scores.csv.

    Args:
        folder: gets them.
        template: of the report.
        title: of the page.
        records: all scores.
        costs: of the systems, where known.
        margin: a student that is lower by less is equal.
        values: what the template needs.
    """
    summary = summarise(records, costs, margin)
    functions = {function.__name__: function for function in FUNCTIONS}
    page.write(folder, template, title, costs=costs or {}, **summary._asdict(), **functions, **values)
    save_scores(folder, records)
    return summary


def summarise(records: Sequence[Record], costs: Mapping[str, Cost] | None = None, margin: float = MARGIN) -> Summary:
    """The verdicts, and the scores of each split; arguments as of :func:`write_scores`."""
    by_split = comparable_scores(records)
    return Summary(answers(records, by_split, costs, margin), by_split)


def split_plots(split: str, scores: Scores) -> list[Plot]:
    """Scores of one kind of split, and the ranks on several tasks."""
    name, several = scores.title, scores.several
    bars = f"{name}: mean score{', its 95 % interval over seeds' if several else ''}; dots are tasks"
    ranks = f"{name}: rank of each system on each task{', mean over seeds' if several else ''}; 1 is best"
    plots = [Plot(f"scores-{split}", bars, figures.bars(scores))]
    if len(scores.tasks) > 1:
        plots.append(Plot(f"ranks-{split}", ranks, figures.ranks(scores)))
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


def cost_plots(answers: Sequence[Answer], costs: Mapping[str, Cost]) -> list[Plot]:
    """The mean score of every system, each task once, against what it costs."""
    plots = []
    for each in answers:
        tasks = f", {each.scores.group}" if each.scores.group else ""
        seconds = {name: 1 / cost.per_second for name, cost in costs.items() if cost.per_second}
        parameters = {name: float(cost.parameters) for name, cost in costs.items() if cost.parameters}
        drawn = {
            "seconds per item": figures.cost(each.scores, seconds, "CPU seconds per item, from the raw item"),
            "parameters": figures.cost(each.scores, parameters, "parameters of its networks"),
        }
        caption = "Mean score over tasks against {}; no system on the line is beaten in both" + tasks
        plots += [Plot(f"cost-{of}{tasks}", caption.format(of), figure) for of, figure in drawn.items() if figure]
    return plots


def training_table(runs: Mapping[str, Results]) -> Table:
    """How well each student's heads predict each teacher at the end of its run."""
    last = {name: validations[-1] for name, results in runs.items() if (validations := _validations(results))}
    columns = {(name, measure): _by_teacher(row, measure) for name, row in last.items() for measure in (*MEASURES, FLOORED)}
    columns |= {(name, RECALL): _searches(results) for name, results in runs.items()}
    columns = {column: by_teacher for column, by_teacher in columns.items() if by_teacher}
    one = len({name for name, _ in columns}) == 1
    head = ["teacher", *(measure if one else f"{name}\n{measure}" for name, measure in columns)]
    teachers = dict.fromkeys(teacher for by_teacher in columns.values() for teacher in by_teacher)
    rows = [[teacher, *(by_teacher.get(teacher, "-") for by_teacher in columns.values())] for teacher in teachers]
    measures = {measure for _, measure in columns}
    return Table(head, rows, " ".join(note for measure, note in NOTES.items() if measure in measures))


def _searches(results: Results) -> dict[str, str]:
    """Teacher -> how well the student searches its index."""
    return {teacher: f"{found[RECALL]:.3f}" for teacher, found in results.about.get("search", {}).items()}


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
    verdict_table,
    students_table,
    score_table,
    split_plots,
    cost_table,
    cost_plots,
    training_table,
    training_plots,
    conflict_plots,
    map_plots,
    teacher_table,
)  # that templates call
