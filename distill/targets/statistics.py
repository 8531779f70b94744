"""Statistics of a teacher's embeddings, with a sample of the rows behind them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cache_tools import ConfigError, Statistics


@dataclass(frozen=True)
class TeacherStatistics(Statistics):
    """Count, mean and variance over a teacher's rows to train on, and a way to read some of these rows.

    Args:
        rows: a number -> at most that many embeddings, (rows, teacher_dim), float32, spread evenly over the rows to train
            on. Every process and every run gets the same ones.
    """

    rows: Callable[[int], Tensor]


def sample(statistics: Statistics, count: int, reader: str) -> Tensor:
    """At most ``count`` embeddings of a teacher, (rows, teacher_dim), float32.

    Args:
        statistics: the teacher's.
        count: rows.
        reader: what needs the rows, for the error message.

    Raises:
        ConfigError: when ``statistics`` come without rows.
    """
    if not isinstance(statistics, TeacherStatistics):
        raise ConfigError(f"{reader} needs rows of the teacher: take the statistics of a DistillData")
    return statistics.rows(count)
