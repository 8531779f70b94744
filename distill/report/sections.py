"""The sections of a report: is the student better than the teacher that one would use, on which tasks, how certainly."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.records import Cost, Record, Results, merged, save_scores
from distill.report import figures, page
from distill.report.page import Block, Fold, Plot, Plots, Table
from distill.report.scores import Scores
from distill.report.tables import duel_table, interval, score_table
from distill.run_folder import MAP

SHOWN = 4  # students whose curves, conflicts and maps are drawn

EVERY = "every"  # kind of split: the mean over the splits that a task has, and over seeds

BASELINES = {"teachers": "the best single teacher", "pretrained": "its own beginning", "untrained": "random weights"}

MEASURES = {"r2": "R2 of each teacher", "cosine": "Cosine with each teacher", "nats": "Nats per dimension of each teacher"}

DUEL = "Mean difference over tasks with a 95 % bootstrap interval over tasks"

WON = " and seeds. A task is won where the difference's t-interval over seeds is above zero, lost where below, else tied"


def write(
    folder: Path, title: str, runs: Mapping[str, Sequence[Results]], origin: str, extra: Sequence[Block] = ()
) -> dict[str, Scores]:
    """Write the report of one student or several.

    Args:
        folder: gets report.html, report.md, figures, and every score in scores.csv.
        title: of the page.
        runs: name of a student -> its runs, of one seed or several.
        origin: how it was made.
        extra: more sections, before what was run.

    Returns:
        The scores of each split.
    """
    records, warnings = merged(runs)
    by_split = comparable_scores(records)
    first = {name: group[0] for name, group in runs.items()}
    costs: dict[str, Cost] = {}
    for results in (results for group in runs.values() for results in group):
        costs = {**results.costs, **costs}  # what several runs measured, by the first of them
    costs |= {name: results.costs["student"] for name, results in first.items() if "student" in results.costs}
    blocks: list[Block] = [origin, *answers(by_split)]
    left_out = {name for group in runs.values() for results in group for name in results.about.get("left_out", ())}
    if left_out:
        names = ", ".join(sorted(left_out))
        blocks.append(f"Not probed, nor among the concatenated: {names}, imported without the tasks' items.")
    if warnings:
        blocks.append(Fold(f"{len(warnings)} warnings: where the runs do not agree", "\n".join(warnings)))
    for split, scores in by_split.items():
        blocks += split_section(split, scores)
    blocks += [*_costs(by_split, costs), *_training(first), *_conflicts(first), *_maps(first), *extra, *_origins(first)]
    page.write(folder, title, blocks)
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


def answers(by_split: Mapping[str, Scores]) -> list[str]:
    """The answer of each kind of split."""
    return [f"{split.capitalize()} split: {answer(scores)}" for split, scores in by_split.items()]


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


def split_section(split: str, scores: Scores) -> list[Block]:
    """The section of one kind of split: scores, ranks, and systems compared pair by pair."""
    name, several = f"{split.capitalize()} split", scores.several
    averaged = scores.split == EVERY or scores.seeds == [-1]  # the seed of scores that were kept as means over seeds
    seeds = "seeds averaged" if averaged else f"{len(scores.seeds)} seed{'s' if several else ''}"
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
    blocks: list[Block] = [f"## {name}, {seeds}", score_table(scores), Plots(plots)]
    duels = duel_table(scores)
    return [*blocks, f"{DUEL}{WON if several else ''}.", duels] if duels.rows else blocks


def _costs(by_split: Mapping[str, Scores], costs: Mapping[str, Cost]) -> list[Block]:
    split, scores = next(iter(by_split.items()))
    by_system = {system: costs[system] for system in scores.systems if system in costs}
    if not by_system:
        return []
    rows = [
        [system, f"{cost.dim:,}", _number(cost.parameters), _number(cost.per_second)] for system, cost in by_system.items()
    ]
    drawn = {
        "parameters": figures.cost(scores, costs, "parameters", "parameters of its networks"),
        "speed": figures.cost(scores, costs, "per_second", "raw items embedded per second"),
    }
    caption = f"Mean score, {split} split, against"
    plots = [Plot(f"cost-{name}", f"{caption} {name}", figure) for name, figure in drawn.items() if figure]
    note = "Items per second: from the raw item, on the machine named below, as busy as it was; -: no network, or unknown."
    return ["## What it costs", Table(["system", "dim", "parameters", "items/s"], rows, note), Plots(plots)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _training(runs: Mapping[str, Results]) -> list[Block]:
    """Curves of each student's run, and how well its heads predict each teacher at the end."""
    logged = {name: results.run.metrics() for name, results in runs.items()}
    validated = {name: [row for row in rows if row.get("val/loss")] for name, rows in logged.items()}
    last = {name: rows[-1] for name, rows in validated.items() if rows}
    columns = {
        (name, measure): by_teacher
        for name, row in last.items()
        for measure in MEASURES
        if (by_teacher := _by_teacher(row, measure))
    }
    if not columns:
        return []
    plots: list[Plot] = []
    for name in list(last)[:SHOWN]:
        drawn = {"loss": ("Loss", figures.losses(logged[name]))}
        for measure, label in MEASURES.items():
            keys = {f"{measure}/{teacher}": teacher for teacher in columns.get((name, measure), {})}
            drawn[measure] = f"{label}, on held-out rows", figures.curves(logged[name], keys, label)
        file, prefix = (name, f"{name}: ") if len(runs) > 1 else ("student", "")
        plots += [
            Plot(f"training-{file}-{measure}", f"{prefix}{caption}, by step", figure)
            for measure, (caption, figure) in drawn.items()
            if figure
        ]
    head = ["teacher", *(measure if len(last) == 1 else f"{name}\n{measure}" for name, measure in columns)]
    teachers = dict.fromkeys(teacher for by_teacher in columns.values() for teacher in by_teacher)
    rows = [[teacher, *(by_teacher.get(teacher, "-") for by_teacher in columns.values())] for teacher in teachers]
    note = "At the end of training, first seed, on held-out rows: how much of each teacher the student's embedding holds."
    return ["## Training", Table(head, rows, note), Plots(plots)]


def _by_teacher(row: Mapping[str, str], measure: str) -> dict[str, str]:
    """Teacher -> its logged value of one measure."""
    keys = [key for key, value in row.items() if key.startswith(f"{measure}/") and value]
    return {key.partition("/")[2]: f"{float(row[key]):.3f}" for key in keys}


def _conflicts(runs: Mapping[str, Results]) -> list[Block]:
    plots: list[Plot] = []
    for name, results in list(runs.items())[:SHOWN]:
        if measured := results.run.last_conflict():
            step, teachers, cosines = measured
            plots.append(Plot(f"conflict-{name}", f"{name}: step {step}", figures.conflicts(teachers, cosines)))
    text = (
        "Cosines of the gradients of the teachers' losses at the student's embedding, for one training batch, as last "
        "measured. At 1 two teachers pull the embedding the same way; below 0 what helps one teacher hurts the other."
    )
    return ["## Conflicts of the teachers", text, Plots(plots)] if plots else []


def _maps(runs: Mapping[str, Results]) -> list[Block]:
    plots: list[Plot] = []
    for name, results in list(runs.items())[:SHOWN]:
        path = results.run.probes / MAP
        if not path.is_file():
            continue
        with np.load(path) as maps:
            task, labels, kind = str(maps["task"]), maps["labels"], str(maps["kind"])
            systems = [key for key in maps.files if key not in ("task", "kind", "labels", "student")]
            for system in ["student", *([] if plots else systems)]:  # other systems by the first run alone
                if system in maps.files:
                    shown = name if system == "student" else system
                    figure = figures.plane(maps[system], labels, kind)
                    plots.append(Plot(f"map-{shown}", f"{shown}: items of {task}", figure))
    text = "Two dimensions of each embedding by t-SNE, up to 1,000 items of one task, coloured by their first label."
    return ["## Maps of the embeddings", text, Plots(plots)] if plots else []


def _origins(runs: Mapping[str, Results]) -> list[Block]:
    blocks: list[Block] = ["## What was run"]
    about = next(iter(runs.values())).about
    blocks += [f"{key.capitalize()}: `{about[key]}`" for key in ("made", "device", "command") if key in about]
    if "versions" in about:
        blocks.append("Versions: " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    for place, corpus in about.get("corpora", {}).items():
        rows = [
            [name, str(teacher["class_path"]), str(teacher.get("weights_sha256", ""))[:16]]
            for name, teacher in corpus["teachers"].items()
        ]
        note = f"`{place}`: {corpus['rows']:,} rows, fingerprint `{corpus['fingerprint'][:16]}`"
        blocks.append(Table(["teacher", "class", "SHA-256 of weights"], rows, note))
    configs = {name: results.run.config for name, results in runs.items()}
    return blocks + [
        Fold(f"Configuration of {name} ({path})", path.read_text()) for name, path in configs.items() if path.is_file()
    ]
