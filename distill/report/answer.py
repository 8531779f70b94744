"""The verdict in words: what a report, a terminal and a model card say first, its tables, and what a script may require."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cache_tools import ConfigError
from distill.records import MARGIN, Cost, Record
from distill.report.page import Table
from distill.report.scores import Scores, scores_per_task
from distill.report.verdict import BASELINES, BEST_TEACHER, MOST, Verdict, verdicts

VERBS = {"beats": "beats", "equal": "is equal to", "below": "is below", "unresolved": "is unresolved against"}

DESCRIBED = {  # name of a comparison -> the other system
    BEST_TEACHER: "the best teacher, `{}`,",
    "concatenated": "the teachers concatenated",
    "pca": "their PCA",
    "fingerprints": "fingerprints",
    "tokens": "the token table",
    "untrained": "the untrained student",
    "start": "its own start",
}

MEETS = {"beats": ("beats",), "equal": ("equal", "beats")}  # what may be required -> the words that satisfy it

MANY = 6  # students; above it each is shown against the baselines only


@dataclass(frozen=True)
class Answer:
    """The verdicts on tasks that all of their systems have.

    Args:
        scores: one per system and task.
        by_split: kind of split -> system -> its mean score, as the tables have it; empty if there is only one kind.
        verdicts: of each student, the best one first.
        costs: of the systems, where known.
        margin: a student that is lower by less is equal.
    """

    scores: Scores
    by_split: Mapping[str, Mapping[str, float]]
    verdicts: Mapping[str, Sequence[Verdict]]
    costs: Mapping[str, Cost]
    margin: float

    @property
    def best(self) -> Sequence[Verdict]:
        """Those of the student with the best mean."""
        return next(iter(self.verdicts.values()), [])

    def __str__(self) -> str:
        """Two sentences: against the best teacher with figures and speed, and against the other baselines."""
        where = f"{self.scores.group}: " if self.scores.group else ""
        if not self.best:
            return f"{where}no student was compared with another system."
        student, count = self.best[0].student, len(self.verdicts)
        name = f"`{student}`" if count == 1 else f"`{student}`, the best of {count} students by these scores,"
        first, *rest = [verdict for verdict in self.best if verdict.baseline in DESCRIBED] or self.best[:1]
        by_word: dict[str, list[str]] = {word: [] for word in VERBS}
        for verdict in rest:
            needed = f" ({_needed(verdict)} needed)" if verdict.word == "unresolved" else ""
            by_word[verdict.word].append(_described(verdict) + needed)
        clauses = [f"it {VERBS[word]} {_listed(others)}" for word, others in by_word.items() if others]
        return f"{where}{name} {self.sentence(first)}" + (f" Also, {'; '.join(clauses)}." if clauses else "")

    def sentence(self, verdict: Verdict) -> str:
        """What one verdict says, after the student's name: with figures, speed and the tasks that would resolve it."""
        tasks = f"on {verdict.tasks} task{'s' if verdict.tasks != 1 else ''}"
        figures = ", ".join(filter(None, [f"{verdict.difference:+.3f}", interval(verdict)]))
        speed = f", {words}" if (words := speed_words(self.ratio(verdict))) else ""
        needed = f": {_needed(verdict)} would resolve it" if verdict.word == "unresolved" else ""
        return f"{VERBS[verdict.word]} {_described(verdict)} {tasks} ({figures}){speed}{needed}."

    def ratio(self, verdict: Verdict) -> float | None:
        """How many times faster the student is than the other system; None where a speed is unknown."""
        speeds = [self.costs[name].per_second for name in (verdict.student, verdict.other) if name in self.costs]
        return speeds[0] / speeds[1] if len(speeds) == 2 and speeds[0] and speeds[1] else None


def answers(
    records: Sequence[Record],
    by_split: Mapping[str, Scores],
    costs: Mapping[str, Cost] | None = None,
    margin: float = MARGIN,
) -> list[Answer]:
    """The verdicts of a report; several where runs were probed on different tasks, or tasks have several modalities.

    Args:
        records: all of the report.
        by_split: the same, as its tables show them.
        costs: of the systems.
        margin: as in :func:`distill.report.verdict.word_of`.
    """
    groups, found = scores_per_task(records), []
    for scores in groups.values():
        shown = [of for of in by_split.values() if {*of.tasks} <= {*scores.tasks} and {*of.systems} == {*scores.systems}]
        means = {of.split: dict(zip(of.systems, of.mean().tolist(), strict=True)) for of in shown if len(shown) > 1}
        found.append(Answer(scores, means, verdicts(scores, margin), costs or {}, margin))
    return found


def verdict_table(answer: Answer) -> Table:
    """The best student against the baselines and the other students, with figures."""
    rows = [
        [
            f"{verdict.other} (best teacher)" if verdict.baseline == BEST_TEACHER else verdict.other,
            verdict.word,
            f"{verdict.difference:+.3f}",
            interval(verdict) or "-",
            *(f"{means[verdict.student] - means[verdict.other]:+.3f}" for means in answer.by_split.values()),
            speed_words(answer.ratio(verdict)).removesuffix(" to compute"),
            _needed(verdict) if verdict.word == "unresolved" else "",
        ]
        for verdict in answer.best
    ]
    head = [f"{answer.best[0].student}\nagainst", "verdict", "difference", "95 %", *answer.by_split]
    head += ["to compute", "to resolve it"]
    filled = [number for number, column in enumerate(zip(*rows, strict=True)) if any(column)]
    count, students = len(answer.scores.tasks), len(answer.verdicts)
    together = f" and hold for all {students} students at the same time" if students > 1 else ""
    note = (
        f"Mean differences over {count} tasks; the scores of a task are averaged over its splits and seeds first. "
        f"Intervals are over tasks{together}. beats: the whole interval is above 0. equal: it is above "
        f"-{answer.margin:g}. below: it is below 0. The best teacher has the best mean over these tasks; its interval "
        "allows for this choice."
    )
    return Table([head[number] for number in filled], [[row[number] for number in filled] for row in rows], note)


def students_table(answer: Answer) -> Table:
    """Each of several students against the baselines, and if they are not many against each other."""
    few = len(answer.verdicts) <= MANY
    every = [
        verdict for of_student in answer.verdicts.values() for verdict in of_student if few or verdict.baseline in DESCRIBED
    ]
    order = [*DESCRIBED, *answer.verdicts, *answer.scores.systems]  # also exported students, which are in the last alone
    columns = sorted({verdict.baseline for verdict in every}, key=order.index)
    between = "\n" if few else " "  # many columns are narrow
    cells = {(each.student, each.baseline): f"{each.word}{between}{each.difference:+.3f}" for each in every}
    rows = [[student, *(cells.get((student, column), "") for column in columns)] for student in answer.verdicts]
    return Table(["student", *columns], rows if len(rows) > 1 else [])


def interval(verdict: Verdict) -> str:
    """Both limits of the difference; empty where there are none."""
    return "" if verdict.tasks < 2 else f"{verdict.low:+.3f} to {verdict.high:+.3f}"


def speed_words(ratio: float | None) -> str:
    """How much faster or slower the student is; empty where that is unknown."""
    if ratio is None:
        return ""
    if 0.9 < ratio < 1.1:
        return "as fast to compute"
    times = float(f"{max(ratio, 1 / ratio):.2g}")
    return f"{times:,g} times {'faster' if ratio > 1 else 'slower'} to compute"


def check_requirements(requirements: Iterable[str]) -> None:
    """Refuse what no verdict can be.

    Raises:
        ConfigError: what was expected.
    """
    for requirement in requirements:
        if not re.fullmatch(rf"({'|'.join(MEETS)}):.+", requirement):
            raise ConfigError(
                f"require is {requirement!r}, expected beats:NAME or equal:NAME; NAME is one of "
                f"{', '.join(BASELINES.values())}, or the name of another student"
            )


def unmet(requirements: Iterable[str], found: Sequence[Answer]) -> list[str]:
    """A sentence for each requirement that the best student does not meet.

    Args:
        requirements: as ``beats:best-teacher``, or ``equal:concatenated``, which a student that beats it meets, too.
        found: the verdicts; on all groups of tasks the requirement must be met.
    """
    sentences = []
    for requirement in requirements:
        word, _, baseline = requirement.partition(":")
        if not found:
            sentences.append(f"{requirement} is not met: no task was scored for all systems")
        for answer in found:
            by_baseline = {verdict.baseline: verdict for verdict in answer.best}
            if not (verdict := by_baseline.get(baseline)):
                names = _listed([*by_baseline]) or "nothing"
                sentences.append(f"{requirement} is not met: the student was compared with {names}")
            elif verdict.word not in MEETS[word]:
                sentences.append(f"{requirement} is not met: `{verdict.student}` {answer.sentence(verdict)}")
    return sentences


def _described(verdict: Verdict) -> str:
    return DESCRIBED.get(verdict.baseline, "`{}`").format(verdict.other)


def _needed(verdict: Verdict) -> str:
    """How many tasks would resolve what is unresolved."""
    if verdict.needed:
        return f"about {verdict.needed:,} tasks"
    return f"more than {MOST:,} tasks" if verdict.tasks > 1 else "more tasks"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
