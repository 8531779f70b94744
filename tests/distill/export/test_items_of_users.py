"""What an exported student takes for a list of items: what people hold in Python."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from cache_tools.errors import ConfigError, CorpusError
from distill import load_student

SMILES = ["CCO", "c1ccccc1", "CC(=O)O", "CCN"]


@pytest.fixture(scope="module")
def student():
    return load_student(Path(__file__).parents[2] / "fixtures" / "v01" / "student", "cpu")


def column() -> pd.Series:
    return pd.Series(SMILES, index=[7, 3, 3, 0])


@pytest.mark.parametrize(
    "items",
    [tuple(SMILES), iter(SMILES), (each for each in SMILES), dict.fromkeys(SMILES).keys(), np.array(SMILES), column()],
    ids=lambda items: type(items).__name__,
)
def test_any_iterable_of_items_is_embedded_in_its_order(student, items):
    assert student.embed(items, batch_size=3).equal(student.embed(SMILES, batch_size=3))


@pytest.mark.parametrize("items", [column(), np.array(SMILES, object)], ids=["series", "array"])
def test_a_bad_item_is_named_by_its_place_whatever_the_index(student, items):
    items[0 if isinstance(items, np.ndarray) else 7] = float("nan")
    with pytest.raises(CorpusError, match=r"item 0 of 4, nan, cannot be embedded: a molecule is a str, found float; leave"):
        student.embed(items)
    found = student.embed(items, bad="nan").isnan().all(1)
    assert found.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "items",
    [np.array([SMILES]), {"smiles": SMILES}, 3, None, "CCO"],
    ids=lambda items: type(items).__name__,
)
def test_a_table_or_one_item_is_refused_in_words(student, items):
    with pytest.raises(
        ConfigError, match=rf"a list of items, found one {type(items).__name__}: write \[item\], or name a column"
    ):
        student.embed(items)


def test_a_data_frame_gives_its_column_and_its_index(student):
    table = pd.DataFrame({"value": range(4), "smiles": SMILES, "other": SMILES[::-1]}, index=["d", "c", "b", "a"])
    expected = student.embed(SMILES)
    assert student.embed(table).equal(expected)
    assert student.embed(pl.from_pandas(table)).equal(expected)
    found = student.embed(table, column="other", output="pandas")
    assert found.index.tolist() == ["d", "c", "b", "a"]
    assert np.array_equal(found.to_numpy(), expected.flip(0).numpy())
    assert table.join(student.embed(table, output="pandas")).shape == (4, 3 + 16)
    assert np.array_equal(student.embed(SMILES, output="numpy"), expected.numpy())
    with pytest.raises(CorpusError, match="the table has no column smiles; its columns are: value"):
        student.embed(table[["value"]])
