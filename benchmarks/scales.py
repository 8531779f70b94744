"""Measure the medians and scales of descriptors on RDKit's sample molecules: the .json files of cache_tools/teachers.

``python benchmarks/scales.py > cache_tools/teachers/mordred_descriptors.json`` takes 5 CPU minutes.
"""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.errors import BadItem
from cache_tools.items.molecule import parse_smiles
from cache_tools.teachers.molecule import mordred_calculator, raw_mordred

EVERY = 5  # one molecule of so many


def molecules() -> Iterator[Any]:
    """Every fifth sample molecule that RDKit can parse."""
    for item in RdkitSamples().read()[1][::EVERY]:
        with suppress(BadItem):
            yield parse_smiles(item)


def scales(values: np.ndarray) -> np.ndarray:
    """Median, and interquartile range or, where that is zero, standard deviation or 1, of each column: (columns, 2).

    Args:
        values: (rows, columns); NaN where one is missing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns of which every row is missing
        median, low, high = np.nan_to_num([np.nanmedian(values, 0), *np.nanpercentile(values, [25, 75], axis=0)])
        deviation = np.nan_to_num(np.nanstd(values, 0))
    spread = np.where(high > low, high - low, deviation)
    return np.stack([median, np.where(spread > 1e-12, spread, 1.0)], 1)


if __name__ == "__main__":
    calculator = mordred_calculator()
    rows = scales(raw_mordred(list(molecules()), calculator)).tolist()
    lines = [
        f"{json.dumps(str(each))}: [{median:.6g}, {scale:.6g}]"
        for each, (median, scale) in zip(calculator.descriptors, rows, strict=True)
    ]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
