import gzip
import logging

import pytest

from cache_tools.corpora.base import Items
from cache_tools.corpora.molecule import RdkitSamples, SmilesFile
from cache_tools.errors import CorpusError


@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz", "m.smi", "m.txt", "m.smi.gz"])
def test_every_kind_of_file_gives_the_same_molecules(tmp_path, name):
    text = "CCO ethanol\nc1ccccc1 benzene\n" if ".csv" not in name else "name,smiles\nethanol,CCO\nbenzene,c1ccccc1\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    ids, items, fingerprint = SmilesFile(tmp_path / name).read()
    assert items == [b"CCO", b"c1ccccc1"]
    assert (ids, items, fingerprint) == Items(["CCO", "c1ccccc1"], "molecule").read()


def test_ids_come_from_a_column_or_from_the_content(tmp_path):
    (tmp_path / "m.csv").write_text("key,SMI\na,CCO\nb,CCN\n")
    assert SmilesFile(tmp_path / "m.csv", smiles="SMI", id="key").read()[0] == ["a", "b"]
    hashed = SmilesFile(tmp_path / "m.csv", smiles="SMI").read()[0]
    assert hashed == SmilesFile(tmp_path / "m.csv", smiles="SMI").read()[0]
    assert len(set(hashed)) == 2


def test_duplicates_are_dropped_and_reported(caplog):
    with caplog.at_level(logging.WARNING):
        _, items, _ = Items(["CCO", "CCN", "CCO"], "molecule").read()
    assert items == [b"CCO", b"CCN"]
    assert "1 duplicates dropped" in caplog.text


def test_the_fingerprint_changes_with_items_and_order():
    prints = {Items(items, "text").read()[2] for items in (["a", "b"], ["b", "a"], ["a", "c"], ["ab"], ["a", "b", "c"])}
    assert len(prints) == 5


def test_one_id_for_two_items_is_an_error(tmp_path):
    (tmp_path / "m.csv").write_text("key,smiles\na,CCO\na,CCN\n")
    with pytest.raises(CorpusError, match="give every row its own id"):
        SmilesFile(tmp_path / "m.csv", id="key").read()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no.csv", None, "no file .*no.csv: check the path"),
        ("m.csv", "smi,y\nC,1\n", "no column smiles; its columns are: smi, y"),
        ("m.csv", "smiles\n", "holds no rows"),
        ("m.csv", "", "m.csv is empty: expected a header with column smiles"),
        ("m.smi", "", "holds no rows"),
        ("m.xlsx", "x", "expected a name ending in .csv, .jsonl, .parquet, .smi, .txt"),
    ],
)
def test_bad_files_say_what_to_do(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(CorpusError, match=message):
        SmilesFile(tmp_path / name).read()


def test_rdkit_ships_fifteen_thousand_molecules():
    ids, _, _ = RdkitSamples().read()
    assert len(ids) > 14_000
    assert len(RdkitSamples(limit=100).read()[0]) == 100


def test_what_excel_writes_is_read(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfsmiles,y\r\nCCO,1\r\nCCN\r\n")
    assert SmilesFile(tmp_path / "m.csv").read()[1] == [b"CCO", b"CCN"]
    (tmp_path / "latin.csv").write_bytes("smiles,y\nCCO,caf\xe9\n".encode("latin-1"))
    with pytest.raises(CorpusError, match="latin.csv is not UTF-8"):
        SmilesFile(tmp_path / "latin.csv").read()
