"""What each teacher adds to a student: alone, when it is left out, and as its Shapley value.

The teachers play a game: some of them are worth the score of the student that they taught, none of them that of the
untrained student. Shapley values share out what all of them gain (L. S. Shapley, A value for n-person games, 1953). Of many
teachers they are estimated from random orders (Castro, Gómez and Tejada, Computers & Operations Research 36, 2009).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any, Literal

import numpy as np

from cache_tools import ConfigError
from distill.records import Record
from distill.report.scores import Scores, half_width, mean_of_known

Array = np.ndarray[Any, Any]

Subset = frozenset[str]

Subsets = Literal["leave-one-out", "all"] | int


@dataclass(frozen=True)
class Gain:
    """A difference of mean scores, averaged over seeds.

    Attributes:
        mean: of the seeds.
        seeds: half of its 95 % t-interval over them; None of one seed.
        orders: half of its 95 % t-interval over the sampled orders of the teachers; None where all subsets were measured.
    """

    mean: float
    seeds: float | None
    orders: float | None = None

    def __str__(self) -> str:
        seeds = "" if self.seeds is None else f" ± {self.seeds:.3f}"
        return f"{self.mean:+.3f}{seeds}" + ("" if self.orders is None else f" (± {self.orders:.3f})")


@dataclass(frozen=True)
class Share:
    """A teacher's part; what was not measured is None.

    Attributes:
        alone: what its student gains over the untrained one.
        left_out: what the student of all teachers has over that of all others.
        shapley: its Shapley value.
    """

    alone: Gain | None
    left_out: Gain | None
    shapley: Gain | None


@dataclass(frozen=True)
class Attribution:
    """Which teacher brought how much of a method's score on one kind of split.

    Attributes:
        method: of the study.
        split: kind of split.
        tasks: that the scores are means of.
        seeds: measured.
        subsets: of the teachers, measured.
        orders: sampled, of which Shapley values are estimates; 0 when they are exact.
        untrained: score of the untrained student.
        gain: what the student of all teachers has over it.
        teachers: name -> its share.
    """

    method: str
    split: str
    tasks: int
    seeds: int
    subsets: int
    orders: int
    untrained: float
    gain: Gain
    teachers: dict[str, Share]


def choose(teachers: Sequence[str], subsets: Subsets) -> list[Subset]:
    """The subsets to measure, all teachers first.

    Args:
        teachers: two or more.
        subsets: ``leave-one-out``: all teachers, and all but each. ``all``: every subset. A number: these of leave-one-out,
            and those that come up when the teachers join one by one, in so many random orders.

    Raises:
        ConfigError: for fewer than two teachers, one named twice, or a number of orders below one.

    Example:
        >>> [sorted(each) for each in choose(["a", "b", "c"], "leave-one-out")]
        [['a', 'b', 'c'], ['b', 'c'], ['a', 'c'], ['a', 'b']]
    """
    everyone, sizes = frozenset(teachers), range(1, len(teachers))
    if len(everyone) < 2 or len(everyone) < len(teachers):
        raise ConfigError(f"teachers is {list(teachers)}, expected two or more, each named once")
    if isinstance(subsets, int) and subsets < 1:
        raise ConfigError(f"subsets is {subsets}, expected leave-one-out, all, or a number of random orders above 0")
    found = [everyone, *(everyone - {each} for each in teachers)]
    if subsets == "all":
        found += [frozenset(each) for size in sizes for each in combinations(teachers, size)]
    elif isinstance(subsets, int):
        found += [frozenset(order[:size]) for order in draw(teachers, subsets) for size in sizes]
    return list(dict.fromkeys(found))


def draw(teachers: Sequence[str], count: int) -> list[list[str]]:
    """``count`` random orders of the teachers, the same ones each time; a higher ``count`` only adds some."""
    random = np.random.default_rng(0)
    return [random.permutation(teachers).tolist() for _ in range(count)]


def shapley(values: Mapping[Subset, Array], teacher: str) -> Array:
    """The exact Shapley value of ``teacher``.

    Args:
        values: every subset of the teachers, the empty one too -> what it is worth, (seeds,).
        teacher: one of them.

    Returns:
        (seeds,)

    Example:
        >>> one = {"": 0.0, "a": 1.0, "b": 1.0, "ab": 1.0}  # b knows what a knows
        >>> shapley({frozenset(names): np.array([worth]) for names, worth in one.items()}, "a")
        array([0.5])
    """
    count = max(map(len, values))
    others = [subset for subset in values if teacher not in subset]
    weights = [factorial(len(each)) * factorial(count - len(each) - 1) / factorial(count) for each in others]
    return np.tensordot(weights, [values[each | {teacher}] - values[each] for each in others], 1)


def joining(values: Mapping[Subset, Array], orders: Iterable[Sequence[str]], teacher: str) -> Array:
    """What ``teacher`` adds when it joins those before it, (orders, seeds); the mean over all orders is its Shapley value.

    Args:
        values: subset -> what it is worth, (seeds,); the empty one, and all that come up in an order.
        orders: of all teachers.
        teacher: one of them.
    """
    before = [frozenset(order[: order.index(teacher)]) for order in orders]
    return np.array([values[each | {teacher}] - values[each] for each in before])


def attribute(
    records: Iterable[Record], systems: Mapping[Subset, str], method: str, split: str, orders: Sequence[Sequence[str]] = ()
) -> Attribution:
    """Attribute a method's score on one kind of split to its teachers.

    Args:
        records: of the untrained student and of those of all subsets.
        systems: subset of the teachers -> the system that they taught, all teachers first.
        method: its name.
        split: kind of split.
        orders: that were sampled.
    """
    scores = Scores(records, split)
    chosen = scores.values[[scores.systems.index(name) for name in ("untrained", *systems.values())]]
    known = np.isfinite(chosen).all(0)  # (tasks, seeds), what all of them were scored on
    means = mean_of_known(np.where(known, chosen, np.nan).swapaxes(1, 2))[:, known.any(0)]  # (systems, seeds)
    values = dict(zip([frozenset(), *systems], means, strict=True))
    everyone = next(iter(systems))
    exact = len(values) == 2 ** len(everyone)

    def gain(more: Subset, less: Subset) -> Gain | None:
        return _gain(values[more] - values[less]) if more in values and less in values else None

    def fair(teacher: str) -> Gain | None:
        if exact:
            return _gain(shapley(values, teacher))
        added = joining(values, orders, teacher)  # (orders, seeds)
        return _gain(added.mean(0), added.mean(1)) if orders else None

    shares = {
        each: Share(gain(frozenset([each]), frozenset()), gain(everyone, everyone - {each}), fair(each))
        for each in sorted(everyone)
    }
    facts = int(known.any(1).sum()), means.shape[1], len(systems), 0 if exact else len(orders)
    whole = _gain(means[1] - means[0])
    return Attribution(method, split, *facts, float(means[0].mean()), whole, shares)


def _gain(by_seed: Array, by_order: Array | None = None) -> Gain:
    halves = [None if each is None or len(each) < 2 else float(half_width(each)) for each in (by_seed, by_order)]
    return Gain(float(by_seed.mean()), *halves)


def table(found: Attribution) -> tuple[list[str], list[list[str]]]:
    """Column headings, and a line per teacher, who brought most first; the last line is all teachers together."""
    every = {
        "alone": {name: share.alone for name, share in found.teachers.items()},
        "left out": {name: share.left_out for name, share in found.teachers.items()},
        "Shapley value": {name: share.shapley for name, share in found.teachers.items()},
    }
    columns = {heading: column for heading, column in every.items() if any(column.values())}
    *_, last = columns.values()
    order = sorted(last, key=lambda name: -(each.mean if (each := last[name]) else np.inf))
    lines = [[name, *(str(column[name] or "-") for column in columns.values())] for name in order]
    total = ["" if heading == "left out" else str(found.gain) for heading in columns]
    return ["teacher", *columns], [*lines, ["all teachers", *total]]


def caption(found: Attribution) -> str:
    """How to read :func:`table`."""
    seeds = f"over {found.seeds} seeds, ± half of the 95 % t-interval" if found.seeds > 1 else "of one seed"
    parts = [
        f"Differences of the mean score over {found.tasks} tasks, {seeds}; {found.subsets} subsets of teachers.",
        f"Alone: its student less the untrained one, which has {found.untrained:.3f}.",
        "Left out: the student of all teachers less that of all others.",
        "Shapley values share out the gain of all teachers."
        if any(each.shapley for each in found.teachers.values())
        else "",
        f"They are estimated from {found.orders} random orders; in brackets, half of the 95 % t-interval over these."
        if found.orders
        else "",
    ]
    return " ".join(part for part in parts if part)
