"""Exact statistics of a column, merged shard by shard."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDING = 1e-10  # of the mean's square, or of all squares: what a subtraction leaves below it may be rounding alone


@dataclass(frozen=True)
class Statistics:
    """Count, mean (dim,) and variance (dim,) over a column's valid rows, in float64."""

    count: int
    mean: np.ndarray[Any, Any]
    var: np.ndarray[Any, Any]

    @classmethod
    def of(cls, rows: np.ndarray[Any, Any]) -> "Statistics":
        """Statistics of ``rows`` (rows, dim)."""
        if not len(rows):
            return cls(0, np.zeros(rows.shape[1]), np.zeros(rows.shape[1]))
        return cls(len(rows), rows.mean(0, dtype=np.float64), rows.var(0, dtype=np.float64))

    def merge(self, other: "Statistics") -> "Statistics":
        """Statistics of both sets of rows together (Chan et al., 1979)."""
        count = self.count + other.count
        if count == 0 or other.count == 0:
            return self
        if self.count == 0:
            return other
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        squares = self.var * self.count + other.var * other.count + delta**2 * (self.count * other.count / count)
        return Statistics(count, mean, squares / count)

    def without(self, part: "Statistics") -> "Statistics":
        """Statistics of all other rows, where those of ``part`` are among these: :meth:`merge` undone.

        Of a dimension that varies in the rows of ``part`` alone, the subtraction leaves nothing, or rounding, whose inverse
        would scale these rows up by 1e8: then the variance is that of all rows. It is not 0, since heads of earlier runs
        predict this dimension.
        """
        count = self.count - part.count
        if not count:
            return Statistics.of(np.empty((0, len(self.mean))))
        mean = self.mean + (self.mean - part.mean) * (part.count / count)
        delta = part.mean - mean
        whole = self.var * self.count
        squares = whole - part.var * part.count - delta**2 * (count * part.count / self.count)
        # what is small beside the mean counts as constant anyway
        lost = (squares > ROUNDING * count * mean**2 + 1e-30 * count) & (squares < ROUNDING * whole)
        return Statistics(count, mean, np.where(lost, self.var, squares.clip(0) / count))

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean.tolist(), "var": self.var.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Statistics":
        return cls(content["count"], np.asarray(content["mean"]), np.asarray(content["var"]))
