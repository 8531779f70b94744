"""The verdict: a student beats another system over tasks, equals it, is below it, or the tasks leave that unresolved.

Each task counts once: its scores are averaged over splits, folds, seeds and labels before two systems are compared. The
limits of the mean difference are for other tasks of the same kind. Each limit is that of the t-interval or of the
studentised bootstrap over tasks (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5), whichever is
further out: the first is too narrow where a few tasks differ much more than the others, the second where differences have
heavy tails, and the bootstrap of percentiles is far too narrow for five to twenty tasks.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from distill.records import MARGIN, Kind
from distill.report.scores import Scores, mean_of_known

Array = np.ndarray[Any, Any]

Word = Literal["beats", "equal", "below", "unresolved"]

BEST_TEACHER = "best-teacher"

BASELINES: dict[Kind, str] = {  # kind of system -> the name of the comparison with it
    "teachers": BEST_TEACHER,
    "concatenated": "concatenated",
    "pca": "pca",
    "fingerprints": "fingerprints",
    "tokens": "tokens",
    "untrained": "untrained",
    "start": "start",
}

ERROR = 0.025  # of one limit: two of them make an interval of 95 %

POWER = 0.8  # chance that so many tasks as are named resolve a comparison

WIDEST = 2  # times as far as the limit of the t-interval; of few tasks, resamples of nearly equal ones have no bound

MOST = 10_000  # tasks that are looked at when their number is asked for

RESAMPLES = 5000


class Verdict(NamedTuple):
    """A student against another system.

    Attributes:
        student: its name.
        baseline: name of the comparison: ``best-teacher``, another kind of system, or the name of a student.
        other: the system that it is compared with.
        word: what came out.
        difference: mean over tasks of the student's score less the other's.
        low: lower limit of it; minus infinity for a single task.
        high: upper limit of it.
        tasks: their number.
        needed: about how many tasks would resolve it; None where it is resolved, or where more than 10,000 would.
    """

    student: str
    baseline: str
    other: str
    word: Word
    difference: float
    low: float
    high: float
    tasks: int
    needed: int | None


def word_of(low: float, high: float, margin: float = MARGIN) -> Word:
    """The one word for a difference that lies between two limits.

    Args:
        low: lower limit of the student's score less the other's.
        high: upper limit.
        margin: a student that is lower by less than this is equal: a test of non-inferiority.

    Example:
        >>> word_of(0.001, 0.03), word_of(-0.006, 0.014), word_of(-0.05, -0.02), word_of(-0.05, 0.02)
        ('beats', 'equal', 'below', 'unresolved')
    """
    if low > 0:
        return "beats"
    if low > -margin:
        return "equal"
    return "below" if high < 0 else "unresolved"


def limits(differences: Array, error: float = ERROR, together: int = 1) -> tuple[Array, Array]:
    """Lower and upper limit of the mean over tasks.

    Args:
        differences: of each task, (..., tasks).
        error: share of draws of tasks in which the mean over all possible tasks lies beyond one limit.
        together: of so many upper limits the ``error`` is that of any of them (Bonferroni).

    Returns:
        Both limits, (...); infinite for a single task.
    """
    tasks, mean = differences.shape[-1], differences.mean(-1)
    if tasks < 2:
        return np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    centred = differences - mean[..., None]
    centred = np.where(np.abs(centred) < 1e-12, 0, centred)  # the digits of rounding
    counts = _resamples(tasks)
    moved = centred @ counts.T / tasks  # (..., resamples): mean of a resample less the mean
    variance = (centred**2 @ counts.T / tasks - moved**2).clip(0)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of one task only
        t = np.nan_to_num(moved / np.sqrt(variance / (tasks - 1)), posinf=np.inf, neginf=-np.inf)
    scale = centred.std(-1, ddof=1) / np.sqrt(tasks)
    below, above = (
        np.clip(np.quantile(drawn, 1 - share, axis=-1, method="nearest"), normal, WIDEST * normal) * scale
        for drawn, share in ((t, error), (-t, error / together))
        for normal in (stats.t.ppf(1 - share, tasks - 1),)
    )
    return mean - below, mean + above


@cache
def _resamples(tasks: int) -> Array:
    """How often each task is drawn in each resample, always the same ones, (resamples, tasks)."""
    return np.random.default_rng(0).multinomial(tasks, np.full(tasks, 1 / tasks), RESAMPLES).astype(float)


def tasks_needed(differences: Array, margin: float = MARGIN, error: float = ERROR) -> int | None:
    """About how many tasks would resolve a comparison, in four of five draws, if mean and spread stayed.

    Args:
        differences: of each task, (tasks,).
        margin: as in :func:`word_of`.
        error: as in :func:`limits`.

    Returns:
        The number, above that of ``differences``; None if more than 10,000 would be needed, or if it is unknown.
    """
    if len(differences) < 2:
        return None
    spread, reach = differences.std(ddof=1), max(differences.mean() + margin, -differences.mean())  # to the nearest limit
    normal = ((stats.norm.ppf(1 - error) + stats.norm.ppf(POWER)) * spread) ** 2  # tasks, times the square of the reach
    if normal > MOST * reach**2:
        return None
    least = max(len(differences) + 1, int(normal / reach**2))
    counts = np.arange(least, least + 50)  # few more than by the normal distribution
    quantiles = stats.t.ppf(1 - error, counts - 1) + stats.t.ppf(POWER, counts - 1)
    return int(counts[np.argmax(quantiles * spread / np.sqrt(counts) <= reach)])


def verdicts(scores: Scores, margin: float = MARGIN) -> dict[str, list[Verdict]]:
    """Every student against the baselines and the other students.

    With several students, the limits of one hold for all of them at the same time (Bonferroni), since whoever reads them
    picks a student by these very scores.

    Args:
        scores: one per system and task, as :func:`distill.report.scores.mean_per_task` gives them.
        margin: as in :func:`word_of`.

    Returns:
        Name of a student -> its verdicts; the student with the best mean first.
    """
    students = [scores.systems[row] for row in scores.of_kind("student")]
    return {
        student: [
            verdict(scores, student, name, rows, margin, ERROR / len(students))
            for name, rows in _compared_with(scores, student).items()
        ]
        for student in students
    }


def _compared_with(scores: Scores, student: str) -> dict[str, list[int]]:
    """Name of a comparison -> the systems' rows; a baseline that belongs to one of several students is named after it."""
    found = {}
    for kind, name in BASELINES.items():
        rows = scores.of_kind(kind)
        if kind != "teachers":
            rows = [row for row in rows if scores.systems[row] in (kind, f"{student} {kind}")]
        if rows:
            found[name] = rows
    others = {scores.systems[row]: [row] for row in scores.of_kind("student", "other")}
    return found | {name: rows for name, rows in others.items() if name != student}


def verdict(
    scores: Scores, student: str, baseline: str, rows: Sequence[int], margin: float = MARGIN, error: float = ERROR
) -> Verdict:
    """A student against the best of one or several systems.

    The best one is that with the best mean. It was chosen by these very scores, so with several systems the limits are
    those of the difference to the one that is best over all possible tasks, whichever that is: the lower limit is the
    least of all systems', the upper one the least of all systems' after Bonferroni.

    Args:
        scores: one per system and task.
        student: its name.
        baseline: name of the comparison.
        rows: of the systems to compare with.
        margin: as in :func:`word_of`.
        error: as in :func:`limits`.
    """
    means = mean_of_known(scores.values)  # (systems, tasks)
    differences = means[scores.systems.index(student)] - means[list(rows)]  # (rows, tasks)
    best = int(np.argmin(differences.mean(1)))
    low, high = (float(each.min()) for each in limits(differences, error, len(rows)))
    word = word_of(low, high, margin)
    needed = tasks_needed(differences[best], margin, error) if word == "unresolved" else None
    difference, other = float(differences[best].mean()), scores.systems[rows[best]]
    return Verdict(student, baseline, other, word, difference, low, high, len(scores.tasks), needed)
