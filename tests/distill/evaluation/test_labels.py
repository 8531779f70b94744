"""Labels in tables: what is a class, what is a value, and what is refused, of csv, jsonl and parquet files."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_tools.errors import CorpusError
from distill.evaluation.suites import suite
from distill.evaluation.tasks import ImageTask, MoleculeTask, TextPairTask, TextTask
from distill.evaluation.tasks import tables as task_tables


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")
    return path


def texts(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {row}", "label": label} for row, label in enumerate(labels)]


TYPED = ["t.jsonl", "t.parquet"]

NAN = float("nan")


@pytest.fixture(autouse=True)
def heard(caplog):
    """Warnings are given once in a process: each test hears its own."""
    task_tables._warn.cache_clear()
    caplog.set_level(logging.WARNING)


@pytest.mark.parametrize("name", ["t.csv", *TYPED])
@pytest.mark.parametrize("kind", ["multiclass", "clustering"])
def test_a_whole_number_is_one_class_however_it_is_written(tmp_path, name, kind, caplog):
    written = ["1", "1.0", " 1 ", "01", "1e0", "2", "2.00", "10", "10.", "-0"] if name != "t.parquet" else [1.0, 2.0, 1.0]
    wanted = [1, 1, 1, 1, 1, 3, 3, 2, 2, 0] if name != "t.parquet" else [0, 1, 0]  # classes in the order of their names
    assert TextTask(table(tmp_path / name, texts(written)), kind=kind).load()[1][:, 0].tolist() == wanted
    assert name == "t.parquet" or not caplog.records


def test_numbers_and_their_texts_are_one_class_in_jsonl(tmp_path):
    rows = texts([1, "1", 1.0, "1.0", 0, 0.0, "0", "zero", "zero"])
    assert TextTask(table(tmp_path / "t.jsonl", rows)).load()[1][:, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 2, 2]


def test_long_numbers_stay_apart(tmp_path):
    rows = texts(["9007199254740993", "9007199254740992", "9007199254740993", "9007199254740992"])
    assert TextTask(table(tmp_path / "t.csv", rows)).load()[1][:, 0].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("name", TYPED)
@pytest.mark.parametrize("cell", [[1, 2], {"name": "x"}])
def test_a_label_that_is_no_text_or_number_is_refused_with_file_and_row(tmp_path, name, cell):
    rows = texts([cell, cell])
    place = (
        rf"t\.{name[2:]} {'row' if name == 't.parquet' else 'line'} 1, column (label|score): expected a text or a number"
    )
    with pytest.raises(CorpusError, match=place):
        TextTask(table(tmp_path / name, rows)).load()
    pairs = [{"text1": "a", "text2": "b", "score": cell}]
    with pytest.raises(CorpusError, match=place):
        TextPairTask(table(tmp_path / name, pairs)).load()
    molecules = table(tmp_path / name, [{"smiles": "C", "y": cell}])
    for targets in (["y"], None):
        with pytest.raises(CorpusError, match=rf"t\.{name[2:]} (row|line) 1.*y"):
            MoleculeTask(molecules, "regression", targets).load()


@pytest.mark.parametrize(
    ("name", "cell"),
    [("t.csv", "NaN"), ("t.csv", ""), ("t.csv", " "), *((name, cell) for name in TYPED for cell in (NAN, None))],
)
def test_a_missing_label_is_no_class(tmp_path, name, cell):
    others = ["1", "0"] if isinstance(cell, str) else [1.0, 0.0]
    path = table(tmp_path / name, texts([*others, "" if name == "t.csv" and cell is None else cell, *others]))
    where = {"t.csv": "line 4", "t.jsonl": "line 3", "t.parquet": "row 3"}[name]
    with pytest.raises(CorpusError, match=f"{name} {where}: no label in column"):
        TextTask(path).load()


@pytest.mark.parametrize("name", ["t.csv", *TYPED])
@pytest.mark.parametrize("kind", ["multiclass", "clustering"])
def test_many_fractional_numbers_are_refused_as_classes_and_their_kind_is_named(tmp_path, name, kind):
    scores = np.random.default_rng(0).normal(size=30).round(3).tolist()
    path = table(tmp_path / name, texts(scores))
    found = rf"{name}: column label has 30 different numbers in 30 rows, such as .*values, not classes.*kind: regression"
    with pytest.raises(CorpusError, match=found):
        TextTask(path, kind=kind).load()
    assert TextTask(path, kind="regression").load()[1][:, 0].tolist() == scores


def test_few_fractional_numbers_are_classes_with_one_warning(tmp_path, caplog):
    task = TextTask(table(tmp_path / "t.csv", texts([0.5, 1, 1.5, 0.50] * 3)))
    assert task.load()[1][:, 0].tolist() == task.load()[1][:, 0].tolist() == [0, 1, 2, 0] * 3
    (warning,) = caplog.messages
    assert (
        "3 different numbers in 12 rows, such as 0.5: each is a class; if they are values, take kind: regression" in warning
    )


def test_a_class_in_every_row_is_doubted(tmp_path, caplog):
    TextTask(table(tmp_path / "t.csv", texts([f"id{row}" for row in range(9)]))).load()
    assert "column label has 9 classes in 9 rows: does it name classes?" in caplog.text


def test_a_suites_table_of_values_is_refused_too(tmp_path):
    table(tmp_path / "ratings.parquet", texts((np.arange(50) / 7).tolist()))
    with pytest.raises(CorpusError, match=r"ratings\.parquet: column label has 50 different numbers"):
        suite("text-folder", tmp_path)["ratings"].load()


@pytest.mark.parametrize("name", TYPED)
def test_split_names_that_are_missing_in_all_rows_are_no_split(tmp_path, name):
    rows = [row | {"split": NAN} for row in texts(["a", "b"] * 10)]
    task = TextTask(table(tmp_path / name, rows))
    keys, _ = task.load()
    assert sorted(map(len, task.split("own", 0, keys))) == [2, 2, 16]


@pytest.mark.parametrize("task", [TextTask, TextPairTask])
def test_a_split_column_that_a_configuration_names_must_be_there(tmp_path, task):
    row = {"text": "a", "label": "x", "text1": "a", "text2": "b", "score": 1, "split": "test"}
    with pytest.raises(CorpusError, match="no column fold; its columns are: text, label"):
        task(table(tmp_path / "t.csv", [row]), split="fold").load()


def test_a_label_that_only_later_rows_have_is_a_label(tmp_path):
    rows = [{"smiles": "C", "a": 1}, {"smiles": "CC", "b": 2.5}, {"smiles": "CCC", "a": NAN, "b": None}]
    labels = MoleculeTask(table(tmp_path / "t.jsonl", rows), "regression").load()[1]
    np.testing.assert_array_equal(labels, [[1, np.nan], [np.nan, 2.5], [np.nan, np.nan]])


@pytest.mark.parametrize(("name", "where"), [("t.csv", "line 4"), ("t.jsonl", "line 3"), ("t.parquet", "row 3")])
def test_a_bad_label_is_found_by_file_and_row(tmp_path, name, where):
    rows = [{"smiles": "C", "y": "0"}, {"smiles": "CC", "y": "1"}, {"smiles": "CCC", "y": "1_0"}]
    with pytest.raises(CorpusError, match=rf"{name} {where}: y is '1_0', expected a finite number or nothing"):
        MoleculeTask(table(tmp_path / name, rows), "regression").load()


def test_a_folder_is_a_class_by_its_very_name(tmp_path):
    from PIL import Image

    for label in ("nan", "1", "01"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / label / "a.png")
    keys, labels = ImageTask(tmp_path).load()
    assert [key.split("/")[0] for key in keys] == ["01", "1", "nan"]
    assert labels[:, 0].tolist() == [0, 1, 2]
