"""What each teacher adds to a student: alone, when it is left out, and as its Shapley value.

The teachers are the players of a game. A subset of them is worth the score of the student that it taught; the empty subset
is worth the score of the untrained student. Shapley values divide the gain of all teachers among them (L. S. Shapley, A
value for n-person games, 1953). For many teachers they are estimated from random orders (Castro, Gómez and Tejada,
Computers & Operations Research 36, 2009).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any, Literal

import numpy as np

from cache_tools import ConfigError
from distill.records import Record
from distill.report.page import Table
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
    """What one teacher contributes; None where it was not measured.

    Attributes:
        alone: its student's score less that of the untrained student.
        left_out: the score of the student of all teachers less that of the student of all others.
        shapley: its Shapley value.
    """

    alone: Gain | None
    left_out: Gain | None
    shapley: Gain | None


@dataclass(frozen=True)
class Attribution:
    """How much of a method's score on one kind of split each teacher contributes.

    Attributes:
        method: of the study.
        split: kind of split.
        tasks: number of tasks that the scores are means of.
        seeds: number of seeds measured.
        subsets: number of subsets of the teachers measured.
        orders: number of random orders that Shapley values are estimated from; 0 when they are exact.
        untrained: score of the untrained student.
        gain: score of the student of all teachers less that of the untrained student.
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
        subsets: ``leave-one-out``: all teachers, and all but each. ``all``: every subset. A number: those of
            leave-one-out, and those that arise when the teachers join one by one, in so many random orders.

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
    chosen = [everyone, *(everyone - {teacher} for teacher in teachers)]
    if subsets == "all":
        chosen += [frozenset(names) for size in sizes for names in combinations(teachers, size)]
    elif isinstance(subsets, int):
        chosen += [frozenset(order[:size]) for order in draw(teachers, subsets) for size in sizes]
    return list(dict.fromkeys(chosen))


def draw(teachers: Sequence[str], count: int) -> list[list[str]]:
    """``count`` random orders of the teachers, always the same ones; a higher ``count`` only adds orders."""
    random = np.random.default_rng(0)
    return [random.permutation(teachers).tolist() for _ in range(count)]


def shapley(values: Mapping[Subset, Array], teacher: str) -> Array:
    """The exact Shapley value of ``teacher``.

    Args:
        values: every subset of the teachers, the empty one too -> its score, (seeds,).
        teacher: one of them.

    Returns:
        (seeds,)

    Example:
        >>> scores = {"": 0.0, "a": 1.0, "b": 1.0, "ab": 1.0}  # b knows what a knows
        >>> shapley({frozenset(names): np.array([score]) for names, score in scores.items()}, "a")
        array([0.5])
    """
    count = max(map(len, values))
    others = [subset for subset in values if teacher not in subset]
    weights = [factorial(len(subset)) * factorial(count - len(subset) - 1) / factorial(count) for subset in others]
    return np.tensordot(weights, [values[subset | {teacher}] - values[subset] for subset in others], 1)


def joining(values: Mapping[Subset, Array], orders: Iterable[Sequence[str]], teacher: str) -> Array:
    """What ``teacher`` adds when it joins the teachers before it; the mean over all orders is its Shapley value.

    Args:
        values: subset -> its score, (seeds,); the empty one, and all that arise in an order.
        orders: of all teachers.
        teacher: one of them.

    Returns:
        (orders, seeds)
    """
    earlier = [frozenset(order[: order.index(teacher)]) for order in orders]
    return np.array([values[subset | {teacher}] - values[subset] for subset in earlier])


def attribute(
    records: Iterable[Record], systems: Mapping[Subset, str], method: str, split: str, orders: Sequence[Sequence[str]] = ()
) -> Attribution:
    """Attribute a method's score on one kind of split to its teachers.

    Args:
        records: of the untrained student and of those of all subsets.
        systems: subset of the teachers -> the system that they taught, all teachers first.
        method: its name.
        split: kind of split.
        orders: random orders of the teachers, to estimate Shapley values from when not every subset was measured.
    """
    scores = Scores(records, split)
    chosen = scores.values[[scores.systems.index(name) for name in ("untrained", *systems.values())]]
    measured = np.isfinite(chosen).all(0)  # (tasks, seeds), where every one of them has a score
    means = mean_of_known(np.where(measured, chosen, np.nan).swapaxes(1, 2))[:, measured.any(0)]  # (systems, seeds)
    values = dict(zip([frozenset(), *systems], means, strict=True))
    everyone = next(iter(systems))
    exact = len(values) == 2 ** len(everyone)

    def gain(more: Subset, less: Subset) -> Gain | None:
        return _gain(values[more] - values[less]) if more in values and less in values else None

    def shapley_value(teacher: str) -> Gain | None:
        if exact:
            return _gain(shapley(values, teacher))
        added = joining(values, orders, teacher)  # (orders, seeds)
        return _gain(added.mean(0), added.mean(1)) if orders else None

    shares = {
        name: Share(gain(frozenset([name]), frozenset()), gain(everyone, everyone - {name}), shapley_value(name))
        for name in sorted(everyone)
    }
    counts = int(measured.any(1).sum()), means.shape[1], len(systems), 0 if exact else len(orders)
    return Attribution(method, split, *counts, float(means[0].mean()), _gain(means[1] - means[0]), shares)


def _gain(by_seed: Array, by_order: Array | None = None) -> Gain:
    halves = [None if values is None or len(values) < 2 else float(half_width(values)) for values in (by_seed, by_order)]
    return Gain(float(by_seed.mean()), *halves)


def table(attribution: Attribution) -> Table:
    """A line per teacher, who contributes most first; the last line is all teachers together."""
    shares = attribution.teachers
    columns = {
        "alone": {name: share.alone for name, share in shares.items()},
        "left out": {name: share.left_out for name, share in shares.items()},
        "Shapley value": {name: share.shapley for name, share in shares.items()},
    }
    columns = {heading: column for heading, column in columns.items() if any(column.values())}
    *_, last = columns.values()
    order = sorted(shares, key=lambda name: -(share.mean if (share := last[name]) else np.inf))
    lines = [[name, *(str(column[name] or "-") for column in columns.values())] for name in order]
    total = ["" if heading == "left out" else str(attribution.gain) for heading in columns]
    return Table(["teacher", *columns], [*lines, ["all teachers", *total]])
