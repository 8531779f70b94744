"""From the results of runs to a report: is the student better than the teacher that one would use, on what, how sure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.records import Cost, Record, Results, merged, save_scores
from distill.report import figures, page
from distill.report.page import Block, Fold, Heading, Plot, Plots, Table, Text
from distill.report.scores import Duel, Scores
from distill.report.tables import duel_table, score_table
from distill.run_folder import MAP, RunFolder

SHOWN = 4  # students whose curves and maps are drawn

AGAINST = {"teachers": "the best single teacher", "pretrained": "its own beginning", "untrained": "random weights"}

TOLD = {"r2": "R2 of each teacher", "cosine": "cosine with each teacher", "nats": "nats per dimension of each teacher"}

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
    records, notes = merged(runs)
    by_split = alike(records)
    costs: dict[str, Cost] = {}
    for results in (each for group in runs.values() for each in group):
        costs = {**results.costs, **costs}  # what several runs measured, by the first of them
    costs |= {name: group[0].costs["student"] for name, group in runs.items() if "student" in group[0].costs}
    blocks: list[Block] = [Text(origin)]
    blocks += [Text(f"{split.capitalize()} split: {answer(scores)}") for split, scores in by_split.items()]
    left = sorted({name for group in runs.values() for each in group for name in each.about.get("left_out", ())})
    if left:
        blocks.append(
            Text(f"Not probed, nor among the concatenated: {', '.join(left)}, imported without the tasks' items.")
        )
    if notes:
        blocks.append(Fold(f"{len(notes)} warnings: where the runs do not agree", "\n".join(notes)))
    for split, scores in by_split.items():
        blocks += of_split(split, scores)
    blocks += [*_costs(by_split, costs), *_training(runs), *_conflicts(runs), *_maps(runs), *extra, *_origins(runs)]
    page.write(folder, title, blocks)
    save_scores(folder, records)
    return by_split


def alike(records: Sequence[Record]) -> dict[str, Scores]:
    """Scores by split, and by which systems were measured: means and ranks are over tasks that all of them have."""
    systems: dict[tuple[str, str], set[str]] = {}
    for record in records:
        systems.setdefault((record.split, record.task), set()).add(record.system)
    out = {}
    for split in dict.fromkeys(split for split, _ in systems):
        groups: dict[frozenset[str], list[str]] = {}
        for (where, task), measured in systems.items():
            if where == split:
                groups.setdefault(frozenset(measured), []).append(task)
        for tasks in groups.values():
            more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
            name = split if len(groups) == 1 else f"{split}, {tasks[0]}{more}"
            out[name] = Scores([record for record in records if record.task in tasks], split)
    return out


def answer(scores: Scores) -> str:
    """One paragraph: the best student against the best teacher, the untrained one, and all teachers together."""
    rows: dict[str, list[int]] = {}
    for row, system in enumerate(scores.systems):
        rows.setdefault(scores.kinds[system], []).append(row)
    if "student" not in rows:
        return "no student was probed."
    one, mean, half = rows["student"][0], scores.mean(), scores.half_width()
    spread = "" if np.isnan(half[one]) else f" ± {half[one]:.3f}"
    name, count = f"`{scores.systems[one]}`", len(rows["student"])
    named = f"the best of {count} students by these very scores, {name}," if count > 1 else name
    told = [f"{named} has a mean of {mean[one]:.3f}{spread} over {len(scores.tasks)} tasks."]
    for kind, what in AGAINST.items():
        if kind in rows:
            other = rows[kind][0]
            duel = scores.against(one, other)
            counts = f"; tasks won {duel.won}, tied {duel.tied}, lost {duel.lost}" if scores.several else ""
            told.append(
                f"Against {what}, `{scores.systems[other]}` ({mean[other]:.3f}): {duel.difference:+.3f} "
                f"(95 % {_interval(duel)}){counts}."
            )
    if "concatenated" in rows and np.isfinite(share := scores.kept()[one]):
        told.append(f"It keeps {share:.0%} of what the teachers concatenated score.")
    return " ".join(told)


def _interval(duel: Duel) -> str:
    return "unknown" if np.isnan(duel.low) else f"{duel.low:+.3f} to {duel.high:+.3f}"


def of_split(split: str, scores: Scores, made: str | None = None) -> list[Block]:
    """The section of one kind of split: scores, ranks, pair by pair; ``made`` says how, where that is not by seeds."""
    name = f"{split.capitalize()} split"
    told = f"{name}: mean score{', its 95 % interval over seeds' if scores.several else ''}; dots are tasks"
    plots = [Plot(f"scores-{split}", told, figures.bars(scores))]
    told = f"{name}: rank of each system on each task{', mean over seeds' if scores.several else ''}; 1 is best"
    plots.append(Plot(f"ranks-{split}", told, figures.ranks(scores)))
    if len(scores.systems) > 2 and len(scores.tasks) > 1:
        test = f"Nemenyi's test (5 %, {len(scores.tasks)} tasks)"
        told = f"{name}: mean ranks over tasks; a bar joins systems that {test} does not tell apart"
        plots.append(Plot(f"critical-{split}", told, figures.critical_difference(scores)))
    made = made or f"{len(scores.seeds)} seed{'s' if scores.several else ''}"
    blocks: list[Block] = [Heading(f"{name}, {made}"), score_table(scores), Plots(plots)]
    duels = duel_table(scores)
    return [*blocks, Text(f"{DUEL}{WON if scores.several else ''}."), duels] if duels.rows else blocks


def _costs(by_split: Mapping[str, Scores], costs: Mapping[str, Cost]) -> list[Block]:
    split, scores = next(iter(by_split.items()))
    rows = [
        [system, f"{costs[system].dim:,}", _number(costs[system].parameters), _number(costs[system].per_second)]
        for system in scores.systems
        if system in costs
    ]
    if not rows:
        return []
    drawn = {
        "parameters": figures.cost(scores, costs, "parameters", "parameters of its networks"),
        "speed": figures.cost(scores, costs, "per_second", "raw items embedded per second"),
    }
    plots = [
        Plot(f"cost-{name}", f"Mean score, {split} split, against {name}", each) for name, each in drawn.items() if each
    ]
    note = "Items per second: from the raw item, on the machine named below, as busy as it was; -: no network, or unknown."
    return [Heading("What it costs"), Table(["system", "dim", "parameters", "items/s"], rows, note), Plots(plots)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _training(runs: Mapping[str, Sequence[Results]]) -> list[Block]:
    """Curves of the first seed, and what the heads tell of each teacher in the end."""
    logged = {name: RunFolder(group[0].run).metrics() for name, group in runs.items()}
    last = {name: held[-1] for name, rows in logged.items() if (held := [row for row in rows if row.get("val/loss")])}
    plots = [
        plot for name in list(last)[:SHOWN] for plot in _curves("" if len(runs) == 1 else name, logged[name], last[name])
    ]
    columns = [(name, kind) for name, row in last.items() for kind in TOLD if _figures(row, kind)]
    if not columns:
        return []
    head = ["teacher", *(kind if len(last) == 1 else f"{name}\n{kind}" for name, kind in columns)]
    teachers = dict.fromkeys(teacher for name, kind in columns for teacher in _figures(last[name], kind))
    rows = [[teacher, *(_figures(last[name], kind).get(teacher, "-") for name, kind in columns)] for teacher in teachers]
    note = "At the end of training, first seed, on held-out rows: how much of each teacher the student's embedding holds."
    return [Heading("Training"), Table(head, rows, note), Plots(plots)]


def _figures(row: Mapping[str, str], kind: str) -> dict[str, str]:
    """Teacher -> one logged figure of it."""
    found = {key.partition("/")[2]: value for key, value in row.items() if key.startswith(f"{kind}/") and value}
    return {teacher: f"{float(value):.3f}" for teacher, value in found.items()}


def _curves(name: str, rows: Sequence[Mapping[str, str]], last: Mapping[str, str]) -> list[Plot]:
    plots = [("loss", "loss", figures.losses(rows))]
    for kind, label in TOLD.items():
        keys = {f"{kind}/{teacher}": teacher for teacher in _figures(last, kind)}
        plots.append((kind, f"{label}, on held-out rows", figures.curves(rows, keys, label)))
    named = f"{name}: " if name else ""
    return [
        Plot(f"training-{name or 'student'}-{kind}", f"{named}{told}, by step", each) for kind, told, each in plots if each
    ]


def _conflicts(runs: Mapping[str, Sequence[Results]]) -> list[Block]:
    plots: list[Plot] = []
    for name, group in list(runs.items())[:SHOWN]:
        if found := RunFolder(group[0].run).last_conflict():
            step, teachers, cosines = found
            plots.append(Plot(f"conflict-{name}", f"{name}: step {step}", figures.conflicts(teachers, cosines)))
    told = (
        "Cosines of the gradients of the teachers' losses at the student's embedding, one training batch, last measured: "
        "1 where two teachers pull it the same way, below 0 where what helps one hurts the other."
    )
    return [Heading("Conflicts of the teachers"), Text(told), Plots(plots)] if plots else []


def _maps(runs: Mapping[str, Sequence[Results]]) -> list[Block]:
    plots: list[Plot] = []
    for name, group in list(runs.items())[:SHOWN]:
        path = group[0].folder / MAP
        if not path.is_file():
            continue
        with np.load(path) as drawn:
            task, kind = str(drawn["task"]), str(drawn["kind"])
            others = [key for key in drawn.files if key not in ("task", "kind", "labels", "student")] if not plots else []
            for system in [each for each in ("student", *others) if each in drawn.files]:
                shown = name if system == "student" else system
                told = f"{shown}: items of {task}"
                plots.append(Plot(f"map-{shown}", told, figures.plane(drawn[system], drawn["labels"], kind)))
    if not plots:
        return []
    told = "Two dimensions of each embedding by t-SNE, up to 1,000 items of one task, coloured by its first label."
    return [Heading("Maps of the embeddings"), Text(told), Plots(plots)]


def _origins(runs: Mapping[str, Sequence[Results]]) -> list[Block]:
    blocks: list[Block] = [Heading("What was run")]
    about = next(iter(runs.values()))[0].about
    blocks += [Text(f"{key.capitalize()}: `{about[key]}`") for key in ("made", "device", "command") if key in about]
    if "versions" in about:
        blocks.append(Text("Versions: " + ", ".join(f"{name} {each}" for name, each in about["versions"].items())))
    for place, corpus in about.get("corpora", {}).items():
        rows = [
            [name, str(each["class_path"]), str(each.get("weights_sha256", ""))[:16]]
            for name, each in corpus["teachers"].items()
        ]
        note = f"`{place}`: {corpus['rows']:,} rows, fingerprint `{corpus['fingerprint'][:16]}`"
        blocks.append(Table(["teacher", "class", "SHA-256 of weights"], rows, note))
    paths = {name: group[0].run / "config.yaml" for name, group in runs.items()}
    return blocks + [
        Fold(f"Configuration of {name} ({path})", path.read_text()) for name, path in paths.items() if path.is_file()
    ]
