"""`distill embed`: every row of a file with all its columns, whole or not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache_tools import ConfigError, CorpusError, RdkitSamples
from distill import embed, load_student

FOLDER = Path(__file__).parents[2] / "fixtures" / "v01" / "student"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    smiles = [item.decode() for item in RdkitSamples(limit=1500).read()[1]][:1300]  # three batches
    smiles[7] = "no molecule"
    return pd.DataFrame({"number": range(1300), "smiles": smiles, "name": [f"a, {row}" for row in range(1300)]})


@pytest.fixture(scope="module")
def expected(table):
    return load_student(FOLDER, "cpu").embed(table, bad="nan", output="numpy")


@pytest.fixture(scope="module")
def place(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    table.to_csv(folder / "x.csv", index=False)
    table.to_csv(folder / "x.csv.gz", index=False)
    table.to_json(folder / "x.jsonl", orient="records", lines=True)
    table.to_parquet(folder / "x.parquet")
    (folder / "x.smi").write_text(
        "".join(f"{row.smiles.replace(' ', '')} {row.name}\n" for row in table.itertuples(index=False))
    )
    return folder


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.jsonl", "x.parquet", "x.smi"])
def test_every_format_keeps_rows_columns_and_the_reason_of_a_bad_row(place, table, expected, name):
    out = place / f"{name}-out.parquet"
    embed(FOLDER, place / name, out, device="cpu")
    found = pd.read_parquet(out)
    assert found["embedding_error"].notna().to_numpy().nonzero()[0].tolist() == [7]
    assert found["embedding"][7] is None
    assert np.allclose(np.stack(found["embedding"].drop(7)), np.delete(expected, 7, 0), atol=1e-5)
    assert found["name"].tolist() == table["name"].tolist()
    if name != "x.smi":
        assert list(found.columns) == ["number", "smiles", "name", "embedding_error", "embedding"]
        assert found["number"].astype(int).tolist() == list(range(1300))
    if name == "x.parquet":
        assert found["number"].dtype == np.int64, "parquet keeps its types"


def test_the_header_and_comments_of_a_smi_file_are_no_rows_as_in_a_corpus(tmp_path):
    (tmp_path / "x.smi").write_text("smiles zinc_id\n# two\nCCO first one\n\nCCN\n")
    embed(FOLDER, tmp_path / "x.smi", tmp_path / "y.csv", device="cpu")
    found = pd.read_csv(tmp_path / "y.csv", keep_default_na=False)
    assert found[["smiles", "name", "embedding_error"]].to_numpy().tolist() == [["CCO", "first one", ""], ["CCN", "", ""]]


def test_csv_and_npy_hold_the_same_numbers(place, table, expected):
    for ending in ("csv", "npy"):
        embed(FOLDER, place / "x.csv", place / f"out.{ending}", device="cpu")
    assert np.allclose(np.load(place / "out.npy"), expected, atol=1e-5, equal_nan=True)
    found = pd.read_csv(place / "out.csv")
    assert found["name"].tolist() == table["name"].tolist()
    assert np.allclose(found.filter(regex=r"embedding_\d").to_numpy(), expected, atol=1e-4, equal_nan=True)


def test_several_processes_give_the_rows_in_their_order(place, expected):
    embed(FOLDER, place / "x.csv", place / "two.npy", workers=2, device="cpu")
    assert np.allclose(np.load(place / "two.npy"), expected, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "x.csv is empty: expected a header with column smiles"),
        ("smiles\n", {}, "x.csv holds no rows: expected at least one molecule"),
        ("smi\nC\n", {}, "no column smiles; its columns are: smi"),
        ("smiles,embedding\nC,1\n", {}, "the input has a column embedding, as the output will: rename it"),
        ("smiles\nC\n", {"out": "x.csv"}, "expected a name that ends in .parquet or .csv or .npy, of no file"),
        ("smiles\nC\n", {"out": "y.txt"}, "expected a name that ends in"),
        ("smiles\nC\n", {"modality": "text"}, "there is no modality 'text', the student reads: molecule"),
    ],
)
def test_what_cannot_be_embedded_is_told_and_nothing_is_left(tmp_path, text, options, message):
    (tmp_path / "x.csv").write_text(text)
    out = tmp_path / options.pop("out", "y.parquet")
    with pytest.raises((ConfigError, CorpusError), match=message):
        embed(FOLDER, tmp_path / "x.csv", out, device="cpu", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_a_ctrl_c_leaves_nothing_half_written(place, tmp_path):
    (tmp_path / "x.smi").write_text("CCO\n" * 2_000_000)
    words = ["--student", str(FOLDER), "--input", "x.smi", "--out", "y.csv", "--device", "cpu"]
    command = [sys.executable, "-m", "distill.cli", "embed", *words]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not (written := list(tmp_path.glob(".embed*/y.csv"))) or written[0].stat().st_size < 10_000:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in shown) == (130, False), shown
    assert [path.name for path in tmp_path.iterdir()] == ["x.smi"]
