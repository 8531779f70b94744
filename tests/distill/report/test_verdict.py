"""The verdict: right at its level where the truth is known, and one number per task."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from distill.records import Record
from distill.report.scores import EVERY, Scores, scores_per_task
from distill.report.verdict import ERROR, Word, limits, tasks_needed, verdict, verdicts, word_of

BASE = Record("student", "student", "t1", "measured", "random", 0, "r2", 0.5, 10)

DRAWS = {  # differences of tasks, of mean 1
    "normal": lambda random, shape: random.normal(1, 1, shape),
    "heavy tails": lambda random, shape: random.standard_t(3, shape) + 1,
    "skewed": lambda random, shape: random.exponential(1, shape),
}


def scores(**systems: np.ndarray) -> Scores:
    """One score per system and task; names of teachers begin with t, all others are students."""
    records = [
        replace(
            BASE, system=name, kind="teachers" if name[0] == "t" else "student", task=f"{task}", split=EVERY, score=value
        )
        for name, values in systems.items()
        for task, value in enumerate(values)
    ]
    return Scores(records, EVERY)


def is_true(word: Word, difference: float) -> bool:
    """Whether a word says nothing wrong of the true difference."""
    return {"beats": difference > 0, "equal": difference > -0.01, "below": difference < 0, "unresolved": True}[word]


@pytest.mark.parametrize("tasks", [5, 12, 30])
@pytest.mark.parametrize("name", DRAWS)
def test_the_interval_covers_the_true_difference_as_often_as_it_says(name, tasks):
    drawn = DRAWS[name](np.random.default_rng(0), (2000, tasks))
    low, high = limits(drawn)
    assert np.mean((low <= 1) & (high >= 1)) >= (0.92 if name == "skewed" else 0.94)
    resampled = np.random.default_rng(1).integers(tasks, size=(500, tasks))
    plain = [np.percentile(values[resampled].mean(1), [2.5, 97.5]) for values in drawn[:300]]
    if tasks == 5:
        assert np.mean([low <= 1 <= high for low, high in plain]) < 0.9, "the bootstrap of percentiles would do"


def fitted(random: np.random.Generator, gain: float) -> tuple[float, float]:
    """R2 on test rows of least squares on 20 columns, and on these with ten more; both kinds bear on the labels."""
    x = random.normal(size=(400, 30))
    weights = np.concatenate([random.normal(size=20), random.normal(size=10) * gain * random.uniform(0.5, 1.5)])
    y = x @ weights + random.normal(size=400) * 4
    train, test = slice(0, 250), slice(250, 400)

    def r2(columns: int) -> float:
        solved = np.linalg.lstsq(x[train, :columns], y[train], rcond=None)[0]
        return float(1 - ((y[test] - x[test, :columns] @ solved) ** 2).sum() / ((y[test] - y[test].mean()) ** 2).sum())

    return r2(20), r2(30)


@pytest.mark.parametrize(("gain", "tasks", "expected"), [(0.6, 12, "beats"), (0.3, 12, None), (0.0, 20, "below")])
def test_the_verdict_on_ten_more_columns_is_right_in_94_of_100_draws(gain, tasks, expected):
    random = np.random.default_rng(7)
    pairs = np.array([fitted(random, gain) for _ in range(100 * tasks)])
    truth = float(np.mean(pairs[:, 1] - pairs[:, 0]))
    words: Counter[Word] = Counter()
    for drawn in pairs.reshape(100, tasks, 2):
        found = scores(less=drawn[:, 0], more=drawn[:, 1])
        forth, back = (
            verdict(found, one, other, [found.systems.index(other)]) for one, other in (("more", "less"), ("less", "more"))
        )
        assert forth.difference == pytest.approx(-back.difference)
        if forth.word == "beats":
            assert back.word == "below" or back.low > -0.01
        words[forth.word] += 1
    wrong = sum(count for word, count in words.items() if not is_true(word, truth))
    assert wrong <= 6, (words, truth)
    if expected:
        assert words[expected] >= 94, (words, truth)


def test_a_student_as_good_as_eight_equal_teachers_is_rarely_called_better_or_worse():
    random, words = np.random.default_rng(3), Counter()
    for _ in range(300):
        values = random.normal(0, 0.02, (9, 12))
        found = scores(student=values[0], **{f"t{k}": each for k, each in enumerate(values[1:])})
        (against,) = verdicts(found)["student"]
        assert against.low <= against.difference <= against.high
        assert against.other == found.systems[found.of_kind("teachers")[0]], "the best one is that of the table"
        words[against.word] += 1
    assert words["beats"] <= 8
    assert words["below"] <= 8
    naive = [stats.ttest_1samp(random.normal(0, 0.02, 12) - best, 0).pvalue < 0.05 for best in _best_of_eight(random)]
    assert np.mean(naive) > 0.1, "the choice of the teacher would not matter"


def _best_of_eight(random: np.random.Generator) -> list[np.ndarray]:
    teachers = random.normal(0, 0.02, (300, 8, 12))
    return [of[of.mean(1).argmax()] for of in teachers]


def test_the_best_of_eight_equal_students_rarely_beats_an_equal_teacher():
    random, beaten = np.random.default_rng(4), 0
    for _ in range(100):
        values = random.normal(0, 0.02, (9, 12))
        found = scores(t=values[0], **{f"s{k}": each for k, each in enumerate(values[1:])})
        best = found.systems[found.of_kind("student")[0]]
        against = verdict(found, best, "best-teacher", found.of_kind("teachers"), error=ERROR / 8)
        if not beaten:
            assert verdicts(found)[best][0] == against, "this is the level that a report uses"
        beaten += against.word == "beats"
    assert beaten <= 6


def test_as_many_tasks_as_are_named_resolve_it_in_four_of_five_draws():
    random = np.random.default_rng(5)
    for mean, spread in ((0.01, 0.03), (-0.02, 0.04), (0.0, 0.02)):
        pilot = random.normal(size=6)
        pilot = mean + spread * (pilot - pilot.mean()) / pilot.std(ddof=1)
        needed = tasks_needed(pilot)
        found = zip(*limits(random.normal(mean, spread, (300, needed))), strict=True)
        resolved = [word_of(low, high) != "unresolved" for low, high in found]
        assert 0.7 < np.mean(resolved) < 0.92, (mean, spread, needed)


def test_methods_that_are_close_need_as_many_tasks_as_published_spreads_say():
    pattern = np.array([-1.0, -1, 1, 1])
    for spread, least, most in ((0.011, 9, 13), (0.020, 31, 36)):  # a normal test of .01 takes 9.5 and 31.4
        assert least <= tasks_needed(-0.01 + spread * pattern / pattern.std(ddof=1), margin=0) <= most


def test_two_splits_and_many_seeds_of_a_task_are_one_number():
    random = np.random.default_rng(0)
    once = [
        replace(BASE, system=system, kind=kind, task=f"t{task}", score=random.normal())
        for task, (system, kind) in product(range(6), (("student", "student"), ("a", "teachers")))
    ]
    often = [replace(each, split=split, seed=seed) for each in once for split in ("random", "own") for seed in range(5)]
    (one,), (many,) = (scores_per_task(records).values() for records in (once, often))
    first, second = (verdicts(found)["student"][0] for found in (one, many))
    np.testing.assert_allclose([first.low, first.high, first.tasks], [second.low, second.high, second.tasks])


def test_of_one_task_nothing_is_resolved_and_of_equal_scores_everything():
    (of_one,) = verdicts(scores(student=np.array([0.9]), t=np.array([0.1])))["student"]
    assert (of_one.word, of_one.needed, of_one.tasks) == ("unresolved", None, 1)
    (of_same,) = verdicts(scores(student=np.full(3, 0.5), t=np.full(3, 0.5)))["student"]
    assert (of_same.word, of_same.low, of_same.high) == ("equal", 0, 0)


def test_a_wider_margin_calls_more_equal():
    values = np.random.default_rng(0).normal(-0.02, 0.02, 10)
    found = scores(student=values, t=np.zeros(10))
    assert verdict(found, "student", "t", [found.systems.index("t")]).word == "below"
    assert verdict(found, "student", "t", [found.systems.index("t")], margin=0.05).word == "equal"
