"""Tables: no row is lost, no cell that is no text becomes one, and nothing is read without a bound."""

import datetime
import gzip
import json
import logging
import os
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from cache_tools import read_table
from cache_tools.corpora import tables
from cache_tools.corpora.molecule import MAX_SMILES, SmilesFile
from cache_tools.corpora.text import MAX_TEXT, TextDataset, TextFile
from cache_tools.errors import CorpusError


def write(path, content):
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def rows(**changed):
    """Twenty lines ``text N,N``, some replaced: ``row_3='"open,3'``."""
    return "".join(changed.get(f"row_{n}", f"text {n},{n}") + "\n" for n in range(20))


# ------------------------------------------------------------------------------------------------ quotes in csv


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"row_5": '"open,5'}, 7),  # never closes
        ({"row_5": '"open,5', "row_13": '"open,13'}, 7),  # the second quote closes the first
        ({"row_5": '"open,5', "row_13": 'close",13'}, 7),  # as if one text had nine lines
        ({"row_5": '"open,5', "row_13": '"quoted, and sound",13'}, 7),
        ({"row_5": '"text" five,5'}, 7),  # other characters after a quoted cell
        ({"row_19": '"open,19'}, 21),
    ],
    ids=str,
)
def test_a_stray_quote_in_a_csv_is_refused_with_its_line(tmp_path, name, changed, line):
    path = write(tmp_path / name, "text,label\n" + rows(**changed))
    with pytest.raises(CorpusError, match=rf"{name} line {line}: .*quote.*double it"):
        TextFile(path).read()


def test_the_header_of_a_csv_can_have_a_stray_quote_too(tmp_path):
    with pytest.raises(CorpusError, match="t.csv line 1: .*quote"):
        TextFile(write(tmp_path / "t.csv", 'text,"label\n' + rows())).read()


def test_a_quote_inside_a_cell_without_quotes_is_a_character(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\n" + rows(row_5='a 5" disk,5', row_13='an 8" disk,13'))
    texts = TextFile(path).read()[1]
    assert len(texts) == 20
    assert (texts[5], texts[13]) == (b'a 5" disk', b'an 8" disk')


@pytest.mark.parametrize(
    "text",
    [
        "Dear John,\nthank you.\n\nYours, truly, Ann",
        "first, line\nsecond line",
        'a "quoted"\nword',
        "Roses are red,\nViolets are blue,\nSugar is sweet,\nAnd so are you",
        "\n",
        "ends with a break\r\n",
    ],
)
def test_a_quoted_text_keeps_its_line_breaks(tmp_path, text):
    quoted = '"' + text.replace('"', '""') + '"'
    path = write(tmp_path / "t.csv", "text,label\n" + rows(row_5=f"{quoted},5"))
    assert [row["text"] for row in read_table(path, ["text"])] == [text if n == 5 else f"text {n}" for n in range(20)]


def test_the_line_of_a_bad_row_is_where_the_row_begins(tmp_path):
    path = write(tmp_path / "t.csv", 'text,label\n"two\nlines",0\na,1,2\n')
    with pytest.raises(CorpusError, match="t.csv line 4: more cells than the header has columns"):
        list(read_table(path, ["text"]))


def test_a_line_break_inside_a_smiles_is_a_lost_row(tmp_path):
    with pytest.raises(CorpusError, match="m.csv row 2: .*'CCC.nCCCC' has a line break"):
        SmilesFile(write(tmp_path / "m.csv", 'smiles\nCC\n"CCC\nCCCC"\nC\n')).read()


# ---------------------------------------------------------------------------------------- cells that are no text

NO_TEXT = [["a", "b"], {"a": "b"}, [{"role": "user", "content": "hello"}]]


def write_cells(path, cells, column="text"):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({column: cells, "id": list("abcdefgh")[: len(cells)]}), path)
        return path
    return write(path, "".join(json.dumps({column: cell, "id": "abcdefgh"[n]}) + "\n" for n, cell in enumerate(cells)))


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet"])
@pytest.mark.parametrize("cell", NO_TEXT, ids=str)
def test_a_cell_that_is_no_text_is_refused_with_its_place(tmp_path, name, cell):
    path = write_cells(tmp_path / name, [None, cell])
    with pytest.raises(CorpusError, match=rf"{name} (line|row) 2, column text: expected a text or a number, found"):
        TextFile(path).read()
    with pytest.raises(CorpusError, match=rf"{name} (line|row) 2, column smiles: .*found"):
        SmilesFile(write_cells(tmp_path / name, [None, cell], "smiles")).read()
    with pytest.raises(CorpusError, match=rf"{name} (line|row) 1, column key: .*found"):
        TextFile(write_cells(tmp_path / name, [cell], "key"), text="id", id="key").read()


def test_a_cell_of_a_data_set_that_is_no_text_is_refused_with_its_place(tmp_path):
    datasets = pytest.importorskip("datasets")
    for number, cell in enumerate(NO_TEXT):
        datasets.Dataset.from_dict({"text": [None, cell], "id": ["a", "b"]}).save_to_disk(tmp_path / str(number))
        with pytest.raises(CorpusError, match="row 2, column text: expected a text or a number, found"):
            TextDataset(str(tmp_path / str(number))).read()
        with pytest.raises(CorpusError, match="row 2, column text: expected a text or a number, found"):
            TextDataset(str(tmp_path / str(number)), column="id", ids="text").read()


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_nothing_and_nan_are_empty_cells(tmp_path, name):
    path = write_cells(tmp_path / name, [1.5, None, float("nan")])
    assert [row["text"] for row in read_table(path, ["text"])] == ["1.5", "", ""]
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": [1.5, None, float("nan")], "n": [7, 0, 1]}).save_to_disk(tmp_path / "d")
    assert [item for _, item in TextDataset(str(tmp_path / "d")).pairs()] == [b"1.5", b"", b""]
    assert [item for _, item in TextDataset(str(tmp_path / "d"), column="n").pairs()] == [b"7", b"0", b"1"]
    assert next(TextDataset(str(tmp_path / "d"), column="n", ids="text", rows=1).pairs()) == ("1.5", b"7")


def test_numbers_and_dates_are_ids(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"text": ["a", "b"], "n": [1, 2], "day": [datetime.date(2026, 1, 2), None]}), tmp_path / "t.parquet"
    )
    assert TextFile(tmp_path / "t.parquet", id="n").read()[0] == ["1", "2"]
    assert TextFile(tmp_path / "t.parquet", id="day").read()[0][0] == "2026-01-02"


def test_columns_that_nobody_reads_may_hold_anything(tmp_path):
    for name in ("t.jsonl", "t.parquet"):
        path = write_cells(tmp_path / name, NO_TEXT[:1] * 2, "messages")
        assert [row["id"] for row in read_table(path, ["id"])] == ["a", "b"]
        assert list(next(iter(read_table(path, [])))) == ["messages", "id"]


# ------------------------------------------------------------------------------- encodings, headers, empty files


@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.jsonl", "t.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32", "utf-32-le"])
def test_utf_16_is_refused_with_and_without_its_mark(tmp_path, name, encoding):
    content = '{"text": "a"}\n' if "jsonl" in name else "text\nabc\n"
    with pytest.raises(CorpusError, match=f"{name}.*save it as UTF-8"):
        TextFile(write(tmp_path / name, content.encode(encoding))).read()


def test_a_nul_far_down_is_refused_with_its_line(tmp_path):
    with pytest.raises(CorpusError, match="t.csv line 7 holds a NUL character"):
        TextFile(write(tmp_path / "t.csv", "text,label\n" + rows(row_5="te\0xt,5"))).read()
    with pytest.raises(CorpusError, match="m.smi line 2 holds a NUL character"):
        SmilesFile(write(tmp_path / "m.smi", "C\nC\0\n")).read()


@pytest.mark.parametrize("name", ["m.smi", "m.txt", "m.smi.gz"])
@pytest.mark.parametrize("header", ["smiles zinc_id", "SMILES\tID", "canonical_smiles"])
def test_the_header_of_a_file_of_smiles_is_no_molecule(tmp_path, name, header, caplog):
    path = write(tmp_path / name, f"# made by hand\n{header}\nCCO ZINC1\nC ZINC2\n")
    with caplog.at_level(logging.INFO):
        corpus = SmilesFile(path)
        assert corpus.read()[1] == [b"CCO", b"C"]
    said = [record.getMessage() for record in caplog.records if "header" in record.getMessage()]
    assert said == [f"{path}: the header line {header!r} was left out"]
    assert SmilesFile(path, limit=1).read()[1] == [b"CCO"]


def test_a_later_line_is_never_taken_for_a_header(tmp_path):
    assert len(SmilesFile(write(tmp_path / "m.smi", "CCO\nsmiles\n")).read()[1]) == 2
    assert len(SmilesFile(write(tmp_path / "m.smi", "CCO smiles of ethanol\n")).read()[1]) == 1


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_csv_is_called_empty(tmp_path, content):
    with pytest.raises(CorpusError, match="t.csv is empty: expected a header"):
        TextFile(write(tmp_path / "t.csv", content)).read()


# ------------------------------------------------------------------------------------------------------- bounds


def read_text(path):
    return lambda: TextFile(path).read()


@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.jsonl", "t.txt.gz", "t.csv.gz", "t.jsonl.gz"])
def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path, name):
    path = tmp_path / name
    start = {"txt": b"a\n", "csv": b"text\na\n", "jsonl": b'{"text": "a"}\n{"text": "'}[name.split(".")[1]]
    with gzip.open(path, "wb", 1) if name.endswith("gz") else open(path, "wb") as file:
        file.write(start)
        for _ in range(200):
            file.write(b"x" * (1 << 20))
    assert_refused_in_bounds(read_text(path), f"{name} line [23] has more than 16,777,216 characters")


def assert_refused_in_bounds(read, message):
    tracemalloc.start()
    try:
        with pytest.raises(CorpusError, match=message):
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 160e6


def test_a_quote_that_never_closes_is_refused_in_bounded_memory(tmp_path):
    with gzip.open(tmp_path / "t.csv.gz", "wb", 1) as file:
        file.write(b'text,label\n"open,1\n')
        for _ in range(200):
            file.write((b"x" * 1023 + b"\n") * 1024)
    assert_refused_in_bounds(read_text(tmp_path / "t.csv.gz"), "t.csv.gz line 2: .*quote")


@pytest.mark.parametrize("name", ["m.csv.gz", "m.smi", "m.jsonl", "m.parquet"])
def test_a_smiles_beyond_every_molecule_is_refused(tmp_path, name):
    long = "C" * (MAX_SMILES + 1)
    if name == "m.parquet":
        path = write_cells(tmp_path / name, ["C", long], "smiles")
    else:
        start = {"csv": "smiles\nC\n", "smi": "C\n", "jsonl": '{"smiles": "C"}\n'}[name.split(".")[1]]
        path = write(tmp_path / name, start + (json.dumps({"smiles": long}) if "json" in name else long) + "\n")
    with pytest.raises(CorpusError, match=f"{name} row 2: a SMILES of 100,001 characters, at most 100,000"):
        SmilesFile(path).read()


@pytest.mark.parametrize("name", ["t.txt", "t.csv.gz", "t.jsonl", "t.parquet"])
def test_a_text_beyond_every_book_is_refused_with_its_row(tmp_path, name):
    long = "x" * (MAX_TEXT + 1)
    if name == "t.parquet":
        path = write_cells(tmp_path / name, ["a", long])
    else:
        start = {"csv": "text\na\n", "txt": "a\n", "jsonl": '{"text": "a"}\n'}[name.split(".")[1]]
        path = write(tmp_path / name, start + (json.dumps({"text": long}) if "json" in name else long) + "\n")
    with pytest.raises(CorpusError, match=f"{name} row 2: a text of 5,000,001 characters, at most 5,000,000 are read"):
        TextFile(path).read()
    assert TextFile(path, limit=1).read()[1] == [b"a"]


def test_a_long_cell_of_parquet_and_of_a_data_set_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("datasets").Dataset.from_dict({"text": ["x" * (MAX_TEXT + 1)]}).save_to_disk(tmp_path / "d")
    with pytest.raises(CorpusError, match="row 1, column text: a text of 5,000,001 characters, at most 5,000,000"):
        TextDataset(str(tmp_path / "d")).read()
    monkeypatch.setattr(tables, "MAX_LINE", 1000)
    path = write_cells(tmp_path / "t.parquet", ["a", "x" * 1001])
    with pytest.raises(CorpusError, match="t.parquet row 2, column text: 1,001 characters, at most 1,000"):
        TextFile(path).read()


@pytest.mark.parametrize("name", ["t.csv", "t.txt", "t.jsonl", "t.parquet"])
def test_a_pipe_or_folder_in_the_place_of_a_table_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(CorpusError, match=f"{name} is no regular file but a folder, pipe or device"):
        TextFile(tmp_path / name).read()
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(CorpusError, match="is no regular file"):
        TextFile(tmp_path / name).read()


def test_ids_of_sound_files_are_as_they_were(tmp_path):
    path = write(tmp_path / "t.csv", 'text,id\r\n"a, ""b""\nc",1\r\nplain,2\r\nlast\r\n')
    assert list(TextFile(path, id="id").pairs()) == [("1", b'a, "b"\nc'), ("2", b"plain"), ("", b"last")]
    assert np.all([row["text"] for row in read_table(path, ["text"])] == np.array(['a, "b"\nc', "plain", "last"]))
