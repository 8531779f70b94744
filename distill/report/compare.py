"""One report of several runs, of several studies, or of the scores that one study kept."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache_tools import ConfigError
from distill.records import MARGIN, Record, Results, read_scores
from distill.report import sections
from distill.report.answer import Answer
from distill.report.page import Table
from distill.report.scores import EVERY, Scores, mean_per_task
from distill.report.sections import Summary
from distill.report.tables import print_scores


def compare_runs(runs: Sequence[Path], out: Path, margin: float = MARGIN, student: str | None = None) -> list[Answer]:
    """Put the probes of several runs into one report.

    Args:
        runs: folders of runs that `distill test` probed, by the same tasks, splits and seeds.
        out: a folder for report.html, report.md, scores.csv and figures.
        margin: a student that is lower by less than this is equal.
        student: a name for the one student of which the runs are fits with several seeds; each run is a student when not
            given.

    Returns:
        The verdicts.

    Raises:
        ConfigError: when a run was not probed, or two runs have one name; with ``student``, when a run was probed on the
            splits of several seeds.
    """
    if student is not None:
        fits = [_on_one_split(run).of_seed(seed, range(len(runs))) for seed, run in enumerate(runs)]
        origin = f"Fits with several seeds: {', '.join(map(str, runs))}."
        return _print(sections.write(out, f"{student}, {len(runs)} seeds", {student: fits}, origin, margin=margin), out)
    names = [run.absolute().name for run in runs]
    if name := _repeated(names):
        raise ConfigError(f"two runs are called {name}: rename a folder")
    results = {name: [Results.load(run)] for name, run in zip(names, runs, strict=True)}
    title = f"{len(runs)} runs compared" if len(runs) > 1 else f"Run {names[0]}"
    origin = f"Runs: {', '.join(map(str, runs))}."
    return _print(sections.write(out, title, results, origin, margin=margin), out)


def _on_one_split(run: Path) -> Results:
    results = Results.load(run)
    if len(seeds := {record.seed for record in results.records}) > 1:
        raise ConfigError(
            f"{run} was probed on the splits of seeds {sorted(seeds)}: expected one, `distill test --probe.seeds '[0]'`"
        )
    return results


def compare_studies(studies: Sequence[Path], out: Path, margin: float = MARGIN) -> list[Answer]:
    """Put the methods of several studies, of other teachers and tasks each, into one report.

    Systems are those that all studies have by the same name; ranks are over the tasks of all, each once:
    seeds of one task are no tasks of their own (Demšar, JMLR 2006, section 3.2). Of one study alone the report has all
    that its scores give, by kind of split and seed.

    Args:
        studies: folders of the reports of `distill study`, of which scores.csv is read.
        out: a folder for report.html, report.md, scores.csv and figures.
        margin: a student that is lower by less than this is equal.

    Returns:
        The verdicts.

    Raises:
        ConfigError: when a folder has no scores, two have one name or a task of one name, or no method is in all.
    """
    if _repeated(study.name for study in studies):
        raise ConfigError(f"two of {', '.join(map(str, studies))} have one name: rename a folder")
    by_study = {study.name: read_scores(study) for study in studies}
    if len(studies) > 1:
        by_study = {name: mean_per_task(records) for name, records in by_study.items()}
    systems = {name: dict.fromkeys(record.system for record in records) for name, records in by_study.items()}
    shared = set.intersection(*map(set, systems.values()))
    by_study = {name: [record for record in records if record.system in shared] for name, records in by_study.items()}
    if not any(record.kind == "student" for records in by_study.values() for record in records):
        raise ConfigError(f"no method stands in all of {', '.join(map(str, studies))}")
    if task := _repeated(task for records in by_study.values() for task in {record.task for record in records}):
        raise ConfigError(f"two studies have a task {task}: rename one in its configuration")
    left_out = {name: rest for name, of in systems.items() if (rest := [system for system in of if system not in shared])}
    records = [record for records in by_study.values() for record in records]
    title = f"{len(studies)} studies together" if len(studies) > 1 else f"Study {studies[0].name}"
    values: dict[str, Any] = {"studies": studies, "by_study": by_study, "left_out": left_out, "study_means": study_means}
    return _print(sections.write_scores(out, "report/studies.md.jinja", title, records, margin=margin, **values), out)


def _print(summary: Summary, out: Path) -> list[Answer]:
    print_scores(*summary, f"{out}/report.html, report.md")
    return summary.answers


def _repeated(names: Iterable[str]) -> str | None:
    """A name that is there more than once."""
    return next((name for name, count in sorted(Counter(names).items()) if count > 1), None)


def study_means(by_study: Mapping[str, Sequence[Record]]) -> Table:
    """Every system's mean over the tasks of each study; best first by its mean over the tasks of all."""
    scores = {name: Scores(records, EVERY) for name, records in by_study.items()}
    means = [dict(zip(of.systems, of.mean().tolist(), strict=True)) for of in scores.values()]
    overall = Scores([record for records in by_study.values() for record in records], EVERY)
    rows = [[system, *(f"{mean[system]:.3f}" for mean in means)] for system in overall.systems]
    counts = ", ".join(f"{name} {len(of.tasks)}" for name, of in scores.items())
    students = frozenset(of.systems[row] for of in scores.values() for row in of.of_kind("student"))
    return Table(["system", *scores], rows, f"Tasks: {counts}.", students)
