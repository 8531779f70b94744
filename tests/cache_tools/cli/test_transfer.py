import csv
import gzip
import json
import os
import shutil

import datasets
import h5py
import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
from safetensors.numpy import save_file

from cache_tools import cli, open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build, store_corpus
from cache_tools.cli.check import verify
from cache_tools.cli.sample import sample
from cache_tools.cli.transfer import export, import_
from cache_tools.corpora.base import Corpus, Items
from cache_tools.corpora.molecule import RdkitSamples, SmilesFile
from cache_tools.errors import CacheError, QuorumError, TeacherError
from cache_tools.format import files, shard, store
from cache_tools.format.verify import column_faults
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.molecule import Maccs

IDS = ["one", "zwei", "トロワ", "fo\nur", 'f,i"ve', " six ", "0007"]
ROWS = np.arange(14, dtype=np.float32).reshape(7, 2) / 4
SHUFFLED = [3, 0, 6, 2, 5, 1, 4]


class Named(Corpus):
    modality = "text"
    source = "named"

    def __init__(self, ids: list[str] = IDS):
        self.ids = ids

    def pairs(self):
        return ((identity, b"item of " + identity.encode()) for identity in self.ids)


class Wide(Teacher):
    """Rows that cannot be embedded, and values beyond float16."""

    modality = "text"
    dim = 3

    def prepare(self, item):
        text = super().prepare(item)
        return text if "w" not in text else super().prepare(b"")

    def embed(self, items):
        return np.array([[len(item) * 1e5, 1 / 3, 0.0] for item in items])


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "cache" / "c"
    store_corpus(folder, Named(), shard_rows=3)
    return folder


def write_npy(path, ids, rows):
    np.save(path.with_suffix(".npy"), rows)
    np.save(path.with_suffix(".ids.npy"), np.array(ids))
    return path.with_suffix(".npy")


def write_safetensors(path, ids, rows):
    save_file({"embedding": rows, "other": rows[:1]}, path.with_suffix(".safetensors"))
    np.save(path.with_suffix(".ids.npy"), np.array([each.encode() for each in ids]))
    return path.with_suffix(".safetensors")


def write_parquet(path, ids, rows):
    table = pyarrow.table({"id": ids, "embedding": list(rows), "more": ids})
    pyarrow.parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=2)
    return path.with_suffix(".parquet")


def write_hdf5(path, ids, rows):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("embedding", data=rows, chunks=(2, 1), compression="gzip")
        file.create_dataset("id", data=ids)
    return path.with_suffix(".h5")


def write_arrow(path, ids, rows):
    pyarrow.feather.write_feather(pyarrow.table({"id": ids, "embedding": list(rows)}), path.with_suffix(".feather"))
    return path.with_suffix(".feather")


def write_dataset(path, ids, rows):
    content = {"id": ids, "embedding": rows.tolist()}
    datasets.Dataset.from_dict(content).save_to_disk(path, num_shards=2)
    return path


WRITERS = [write_npy, write_safetensors, write_parquet, write_hdf5, write_arrow, write_dataset]


@pytest.mark.parametrize("write", WRITERS)
def test_rows_are_joined_by_id_whatever_their_order(corpus, tmp_path, write):
    ids = [IDS[each] for each in SHUFFLED]
    import_(corpus, "a", write(tmp_path / "e", ids, ROWS[SHUFFLED]))
    column = open_column(corpus / "teachers" / "a")
    np.testing.assert_array_equal(column.rows(torch.arange(7)), ROWS)
    assert column.valid(torch.arange(7)).all()
    assert column_faults(column.path, store.read_corpus(corpus).fingerprint) == []


@pytest.mark.parametrize("write", WRITERS)
def test_rows_without_an_embedding_are_masked_and_listed_and_ids_of_others_counted(corpus, tmp_path, caplog, write):
    caplog.set_level("INFO")
    file = write(tmp_path / "e", [IDS[6], "stranger", IDS[1]], ROWS[[6, 0, 1]])
    import_(corpus, "a", file)
    column = open_column(corpus / "teachers" / "a")
    assert column.valid(torch.arange(7)).tolist() == [False, True, False, False, False, False, True]
    with open(column.path / "skipped.csv", encoding="utf-8", newline="") as listed:
        skipped = list(csv.DictReader(listed))
    assert [row["id"] for row in skipped] == [IDS[0], *IDS[2:6]]
    assert skipped[0]["reason"] == f"no embedding for this id in {file}"
    assert "a: 2 of 7 rows have an embedding, the others are listed in" in caplog.text
    assert "a: 1 of the file's 3 ids are not in the corpus" in caplog.text


def test_a_memory_map_of_bare_numbers_is_read_when_its_row_is_described(corpus, tmp_path):
    np.memmap(tmp_path / "e.bin", "float16", "w+", shape=(7, 2))[:] = ROWS
    (tmp_path / "e.ids.txt").write_text("\n".join(identity.replace("\n", " ") for identity in IDS))
    import_(corpus, "a", tmp_path / "e.bin", raw_dim=2, raw_dtype="float16")
    column = open_column(corpus / "teachers" / "a")
    known = [row for row in range(7) if row != 3]  # an id of two lines cannot stand in a text file
    np.testing.assert_array_equal(column.rows(torch.tensor(known)), ROWS[known])
    sample(column.path, check=True)
    with pytest.raises(CacheError, match=r"e.bin has 28 bytes, expected whole rows of 5 float32, 20 bytes each"):
        import_(corpus, "b", tmp_path / "e.bin", raw_dim=5)
    with pytest.raises(CacheError, match=r"e.bin has 14 rows, .*e.ids.txt has 7 ids"):
        import_(corpus, "b", tmp_path / "e.bin", raw_dim=1, raw_dtype="float16")
    with pytest.raises(CacheError, match=r"of bare numbers, also give --raw_dim"):
        import_(corpus, "b", tmp_path / "e.bin")


def test_what_mteb_cached_is_joined_by_the_hash_of_each_text(tmp_path):
    from mteb.models.cache_wrappers.cache_backends.numpy_cache import NumpyCache

    cache = NumpyCache(tmp_path / "mteb", initial_vectors=9)
    cache.add([{"text": f"item of {identity}"} for identity in IDS[:5]], ROWS[:5])
    cache.save()
    store_corpus(tmp_path / "c", Named(), 3)
    with pytest.raises(CacheError, match=r"with --key sha256, 5 rows would match"):
        import_(tmp_path / "c", "a", tmp_path / "mteb")
    import_(tmp_path / "c", "a", tmp_path / "mteb", key="sha256")
    column = open_column(tmp_path / "c" / "teachers" / "a")
    assert column.valid(torch.arange(7)).tolist() == [True] * 5 + [False] * 2
    np.testing.assert_array_equal(column.rows(torch.arange(5)), ROWS[:5])
    sample(column.path, check=True)
    cache.add([{"text": "another"}], ROWS[:1])
    cache.save()
    with pytest.raises(CacheError, match="was made with embeddings = "):
        import_(tmp_path / "c", "a", tmp_path / "mteb", key="sha256")


def test_what_tokenlearn_wrote_is_joined_by_text(corpus, tmp_path):
    """As its featurize writes: the numbers of files are not in the order of their names."""
    folder = tmp_path / "features"
    folder.mkdir()
    for number, rows in ((32, [0, 1]), (64, [2, 3]), (128, [4, 5, 6])):
        (folder / f"feature_{number}.json").write_text(json.dumps([f"item of {IDS[row]}" for row in rows], indent=4))
        np.save(folder / f"feature_{number}.npy", list(ROWS[rows]))
    import_(corpus, "a", folder, key="item")
    np.testing.assert_array_equal(open_column(corpus / "teachers" / "a").rows(torch.arange(7)), ROWS)


def test_a_folder_without_embeddings_says_what_is_read(corpus, tmp_path):
    with pytest.raises(CacheError, match=r"holds no embeddings: expected a data set of the library datasets, .arrow or"):
        import_(corpus, "a", tmp_path)
    (tmp_path / "e.lance" / "_versions").mkdir(parents=True)
    with pytest.raises(CacheError, match=r"is a Lance data set, .*write a file first: pyarrow.parquet.write_table\("):
        import_(corpus, "a", tmp_path / "e.lance")


@pytest.mark.parametrize("name", ["e.ids.txt", "e.ids.txt.gz", "other.csv", "other.csv.gz"])
def test_ids_can_be_text(corpus, tmp_path, name):
    np.save(tmp_path / "e.npy", ROWS[[2, 5, 6]])
    text = "\r\n".join(["id,n", *(f"{IDS[each]},0" for each in (2, 5, 6))][0 if "csv" in name else 1 :])
    text = text if "csv" in name else text.replace(",0", "") + "\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    import_(corpus, "a", tmp_path / "e.npy", None if "ids" in name else tmp_path / name)
    column = open_column(corpus / "teachers" / "a")
    assert np.flatnonzero(column.valid(torch.arange(7))).tolist() == [2, 5, 6]
    np.testing.assert_array_equal(column.rows(torch.tensor([2, 5, 6])), ROWS[[2, 5, 6]])


def test_whole_numbers_are_ids_too(tmp_path):
    store_corpus(tmp_path / "c", Named(["10", "11"]), 10)
    import_(tmp_path / "c", "a", write_npy(tmp_path / "e", [11, 10], ROWS[:2]))
    assert open_column(tmp_path / "c" / "teachers" / "a").rows(torch.tensor([1, 0])).tolist() == ROWS[:2].tolist()


def test_fields_can_have_other_names(corpus, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"name": IDS, "vector": list(ROWS)}), tmp_path / "e.parquet")
    import_(corpus, "a", tmp_path / "e.parquet", embedding_field="vector", id_field="name")
    np.testing.assert_array_equal(open_column(corpus / "teachers" / "a").rows(torch.arange(7)), ROWS)
    with pytest.raises(CacheError, match=r"has no column embedding; it has: name, vector"):
        import_(corpus, "b", tmp_path / "e.parquet")


def test_bfloat16_is_read(corpus, tmp_path):
    from safetensors.torch import save_file

    save_file({"embedding": torch.from_numpy(ROWS).bfloat16()}, tmp_path / "e.safetensors")
    np.save(tmp_path / "ids.npy", np.array(IDS))
    import_(corpus, "a", tmp_path / "e.safetensors", tmp_path / "ids.npy")
    np.testing.assert_array_equal(open_column(corpus / "teachers" / "a").rows(torch.arange(7)), ROWS)


def test_an_id_that_repeats_with_the_same_embedding_counts_once(corpus, tmp_path, caplog):
    again = [*range(7), 4, 4]
    import_(corpus, "a", write_npy(tmp_path / "e", [IDS[each] for each in again], ROWS[again]))
    assert "2 rows repeat an id and are equal, for instance 'f,i\"ve'" in caplog.text
    np.testing.assert_array_equal(open_column(corpus / "teachers" / "a").rows(torch.arange(7)), ROWS)


def test_an_id_with_two_embeddings_is_refused(corpus, tmp_path):
    file = write_npy(tmp_path / "e", ["one", "zwei", "one", "one"], ROWS[:4])
    with pytest.raises(CacheError, match=r"1 ids stand for different embeddings, for instance 'one': keep one row"):
        import_(corpus, "a", file)
    assert not (corpus / "teachers").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_nan_names_its_id(corpus, tmp_path, bad):
    rows = ROWS.astype(np.float64)
    rows[4, 1] = bad  # in the second shard
    with pytest.raises(TeacherError, match="the embedding of id 'f,i\"ve' has a NaN or an infinity; nothing written"):
        import_(corpus, "a", write_npy(tmp_path / "e", IDS, rows))
    import_(corpus, "a", write_npy(tmp_path / "e", IDS, ROWS))  # nothing is in the way of the file that was mended
    assert open_column(corpus / "teachers" / "a").valid(torch.arange(7)).all()


def test_without_a_match_the_other_key_is_suggested_and_nothing_is_left(corpus, tmp_path):
    file = write_npy(tmp_path / "e", ["item of one", "item of zwei"], ROWS[:2])
    with pytest.raises(CacheError, match=r"begins with 'item of one': .* with --key item, 2 rows would match"):
        import_(corpus, "a", file)
    assert not (corpus / "teachers").exists()
    import_(corpus, "a", file, key="item")
    assert open_column(corpus / "teachers" / "a").valid(torch.arange(7)).tolist() == [True] * 2 + [False] * 5
    with pytest.raises(CacheError, match=r"no item of .* with --key id, 7 rows would match"):
        import_(corpus, "b", write_npy(tmp_path / "f", IDS, ROWS), key="item")


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        (IDS, ROWS[:3], r"e.npy has 3 rows, .*e.ids.npy has 7 ids"),
        (IDS, ROWS[:, 0], r"expected embeddings as numbers of shape \(rows, dim\), found shape \(7,\), type float32"),
        (IDS, np.array([IDS]), r"found shape \(1, 7\), type <U6"),
        ([[1.0], [2.0]], ROWS[:2], r"ids as texts or whole numbers of shape \(rows,\), found shape \(2, 1\), type float64"),
    ],
)
def test_wrong_shapes_are_refused_with_both_numbers(corpus, tmp_path, ids, rows, message):
    with pytest.raises(CacheError, match=message):
        import_(corpus, "a", write_npy(tmp_path / "e", ids, rows))


def test_files_that_cannot_be_read_say_why(corpus, tmp_path):
    file = write_npy(tmp_path / "e", IDS, ROWS)
    for name in ("e.npz", "e.csv"):
        with pytest.raises(CacheError, match=r"must end in .npy, .parquet, .arrow, .feather, .h5, .hdf5, .safetensors"):
            import_(corpus, "a", tmp_path / name)
    with pytest.raises(CacheError, match=r"no file .*f.npy: expected embeddings there"):
        import_(corpus, "a", tmp_path / "f.npy")
    (tmp_path / "e.ids.txt").write_text("x")
    with pytest.raises(CacheError, match=r"there is e.ids.txt and e.ids.npy: name the file of ids with --ids"):
        import_(corpus, "a", file)
    with pytest.raises(CacheError, match=r"called '../a'"):
        import_(corpus, "../a", file)
    np.save(tmp_path / "o.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(CacheError, match=r"cannot read embeddings from .*Python objects"):
        import_(corpus, "a", tmp_path / "o.npy")
    for ending in ("npy", "parquet", "arrow", "feather", "h5", "safetensors"):
        (tmp_path / f"g.{ending}").write_bytes(b"garbage" * 9)
        with pytest.raises(CacheError, match=rf"g.{ending}"):
            import_(corpus, "a", tmp_path / f"g.{ending}")
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}), tmp_path / "r.parquet")
    with pytest.raises(CacheError, match=r"lists of embedding have lengths \[1, 2\], expected one and the same"):
        import_(corpus, "a", tmp_path / "r.parquet")
    assert not (corpus / "teachers").exists()


def test_hdf5_that_points_elsewhere_is_refused(corpus, tmp_path):
    write_hdf5(tmp_path / "secret", IDS, ROWS)
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["embedding"] = h5py.ExternalLink("secret.h5", "embedding")
        file["id"] = IDS
    with pytest.raises(CacheError, match="embedding is a link to elsewhere"):
        import_(corpus, "a", tmp_path / "e.h5")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("embedding", (7, 2), "f4", external=[(str(tmp_path / "secret.h5"), 0, 56)])
        file["id"] = IDS
    with pytest.raises(CacheError, match="embedding points outside the file"):
        import_(corpus, "a", tmp_path / "f.h5")


def test_importing_again_makes_nothing_and_another_file_is_refused(corpus, tmp_path):
    file = write_npy(tmp_path / "e", IDS, ROWS)
    import_(corpus, "a", file)
    before = {path: path.stat().st_mtime_ns for path in (corpus / "teachers" / "a").iterdir()}
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(file, moved)
    shutil.copy(file.with_suffix(".ids.npy"), moved)
    import_(corpus, "a", moved / "e.npy")
    assert {path: path.stat().st_mtime_ns for path in (corpus / "teachers" / "a").iterdir()} == before
    with pytest.raises(CacheError, match="was made with embeddings = "):
        import_(corpus, "a", write_npy(tmp_path / "e", IDS, ROWS + 1))


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_a_column_survives_export_and_import(tmp_path, ending, dtype):
    settings = Settings(workers=1, shard_rows=3, dtype=dtype)
    folder = build(tmp_path, "c", Named(), {"a": Wide()}, {}, settings)
    column = open_column(folder / "teachers" / "a")
    assert column.valid(torch.arange(7)).tolist() == [True, False, *[True] * 5]
    export(column.path, tmp_path / f"e{ending}")
    import_(folder, "b", tmp_path / f"e{ending}", dtype="float32")
    back = open_column(folder / "teachers" / "b")
    valid = column.valid(torch.arange(7))
    assert torch.equal(back.valid(torch.arange(7)), valid)
    assert torch.equal(back.rows(torch.arange(7)[valid]), column.rows(torch.arange(7)[valid]).float())


@pytest.mark.parametrize("name", ["maccs", "counts"])
@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_columns_of_real_molecules_survive_with_the_default_type(cache, tmp_path, name, ending):
    shutil.copytree(cache, tmp_path / "cache")
    folder, rows = tmp_path / "cache" / "mol", torch.arange(600)
    export(folder / "teachers" / name, tmp_path / f"e{ending}")
    import_(folder, "back", tmp_path / f"e{ending}")
    column, back = open_column(folder / "teachers" / name), open_column(folder / "teachers" / "back")
    assert torch.equal(back.rows(rows), column.rows(rows).to(back.dtype))
    assert torch.equal(back.valid(rows), column.valid(rows))


def test_bits_are_exported_as_bytes_and_masked_rows_left_out(tmp_path):
    items = Items(["CCO", "not a molecule", "CCN"], "molecule")
    folder = build(tmp_path, "c", items, {"maccs": Maccs()}, {}, Settings(workers=1))
    export(folder / "teachers" / "maccs", tmp_path / "e.npy")
    rows, ids = np.load(tmp_path / "e.npy", allow_pickle=False), np.load(tmp_path / "e.ids.npy", allow_pickle=False)
    assert (rows.dtype, rows.shape) == (np.uint8, (2, Maccs().dim))
    np.testing.assert_array_equal(rows, open_column(folder / "teachers" / "maccs").rows(torch.tensor([0, 2])))
    assert ids.tolist() == [items.read()[0][0], items.read()[0][2]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "e.ids.npy", "e.npy"], "no temporary file is left"


def test_export_refuses_what_it_cannot_do(cache, tmp_path):
    column = cache / "mol" / "teachers" / "maccs"
    (tmp_path / "e.ids.npy").write_bytes(b"mine")
    with pytest.raises(CacheError, match=r"e.ids.npy would be overwritten: move that away"):
        export(column, tmp_path / "e.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["e.ids.npy"]
    with pytest.raises(CacheError, match=r"must end in .npy or .parquet"):
        export(column, tmp_path / "e.csv")
    with pytest.raises(CacheError, match="no folder"):
        export(column, tmp_path / "nowhere" / "e.npy")
    with pytest.raises(CacheError, match="rows of different lengths; only columns of teachers"):
        export(cache / "mol" / "inputs" / "graph", tmp_path / "g.npy")


def test_a_column_beside_another_corpus_is_not_exported(cache, tmp_path):
    store_corpus(tmp_path / "c", Named(), 10)
    shutil.copytree(cache / "mol" / "teachers", tmp_path / "c" / "teachers")
    with pytest.raises(CacheError, match="was made from another corpus"):
        export(tmp_path / "c" / "teachers" / "maccs", tmp_path / "e.npy")
    with pytest.raises(CacheError, match="was made from another corpus"):
        sample(tmp_path / "c" / "teachers" / "maccs")


@pytest.mark.workplace
def test_embeddings_that_somebody_else_made_are_joined_by_smiles(shared, tmp_path):
    """The first 50,000 molecules, embedded by a chemical language model; ids are the SMILES."""
    files = shared / "data" / "mol" / "embeddings"
    store_corpus(tmp_path / "mol", SmilesFile(shared / "data" / "mol" / "corpus.csv.gz", limit=3000), 1024)
    with pytest.raises(CacheError, match="with --key item, 3000 rows would match"):
        import_(tmp_path / "mol", "lstm", files / "lstm_chem.npy")
    import_(tmp_path / "mol", "lstm", files / "lstm_chem.npy", key="item")
    column = open_column(tmp_path / "mol" / "teachers" / "lstm")
    expected = np.load(files / "lstm_chem.npy", mmap_mode="r", allow_pickle=False)[:3000]  # in the corpus's order
    np.testing.assert_array_equal(column.rows(torch.arange(3000)), expected)
    sample(column.path, rows=20, check=True)


# ------------------------------------------------------------------------------------------------------- sample


@pytest.fixture
def maccs(tmp_path):
    settings = Settings(workers=1, shard_rows=20, dtype="float32")
    return build(tmp_path, "mol", RdkitSamples(limit=50), {"maccs": Maccs()}, {}, settings) / "teachers" / "maccs"


def tamper(column, change):
    """Change the first shard's stored rows, with a manifest that fits."""
    arrays, header = shard.map_shard(column / "00000.h5")
    change(arrays["embedding"])
    (column / "00000.h5").unlink()
    facts = shard.write_shard(column, 0, arrays, header)
    manifest = store.read_manifest(column / store.MANIFEST)
    manifest["shards"][0] |= facts
    files.write_json(column / store.MANIFEST, manifest)


def test_the_live_teacher_gives_what_is_stored(maccs, capsys):
    sample(maccs, rows=50, check=True)
    shown = capsys.readouterr().out
    assert "50 rows embedded again: cosine at least 1.000000, median 1.000000" in shown
    assert "50 of 50 rows" in shown


def test_rows_that_were_tampered_with_are_found(maccs, capsys):
    tamper(maccs, lambda embedding: embedding.__setitem__(7, ~embedding[7]))
    identity = store.read_items(maccs.parent.parent, 0)[0][7]
    with pytest.raises(CacheError, match=rf"the row of id '{identity}' has cosine 0.00\d+ to what the teacher gives now"):
        sample(maccs, rows=50, check=True)
    assert "median 1.000000" in capsys.readouterr().out


def test_another_live_teacher_is_refused(corpus, tmp_path):
    file = write_npy(tmp_path / "e", IDS, ROWS)
    import_(corpus, "a", file)
    write_npy(tmp_path / "e", IDS, ROWS + 1)
    with pytest.raises(CacheError, match="was made with embeddings = '.*', now it is '.*': give"):
        sample(corpus / "teachers" / "a", check=True)


def test_rows_of_zeros_and_masked_rows_pass(corpus, tmp_path, capsys):
    import_(corpus, "a", write_npy(tmp_path / "e", IDS[:3], ROWS[:3] * [[0], [1], [1]]))
    sample(corpus / "teachers" / "a", check=True)
    assert "3 rows embedded again: cosine at least 1.000000" in capsys.readouterr().out


def test_a_check_ends_with_the_command_that_comes_next(maccs, capsys):
    sample(maccs, rows=2)
    assert f"next: distill-cache sample --column {maccs} --check" in capsys.readouterr().out
    verify(maccs.parents[2])
    assert f"next: distill fit --config mol --data.corpus {maccs.parents[1]}" in capsys.readouterr().out


def test_a_sample_is_the_same_for_the_same_seed(maccs, capsys):
    shown = []
    for seed in (0, 0, 1):
        sample(maccs, rows=3, seed=seed)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]


def test_brackets_and_control_characters_are_shown_as_they_are(tmp_path, capsys):
    store_corpus(tmp_path / "c", Named(["[bold]x[/bold]", "a\x1b[31m"]), 10)
    import_(tmp_path / "c", "a", write_npy(tmp_path / "e", ["[bold]x[/bold]", "a\x1b[31m"], ROWS[:2]))
    capsys.readouterr()
    sample(tmp_path / "c" / "teachers" / "a")
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]" in shown
    assert "\x1b" not in shown


def test_the_command_line_knows_them(maccs, tmp_path, monkeypatch, capsys):
    def command(*words):
        monkeypatch.setattr("sys.argv", ["distill-cache", *map(str, words)])
        cli.main()

    command("export", "--column", maccs, "--to", tmp_path / "e.npy")
    command("import", "--corpus", maccs.parent.parent, "--name", "back", "--embeddings", tmp_path / "e.npy")
    command("sample", "--column", maccs.parent / "back", "--rows", 4, "--check", "true")
    assert "4 rows embedded again" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .*e.ids.npy and .*e.npy would be overwritten"):
        command("export", "--column", maccs, "--to", tmp_path / "e.npy")


def test_a_file_that_is_replaced_while_it_is_read_is_refused(corpus, tmp_path, monkeypatch):
    file = write_npy(tmp_path / "e", IDS, ROWS)

    def replaced(*arguments):
        write_npy(tmp_path / "new", IDS, ROWS + 1).replace(file)
        return 7, 7

    monkeypatch.setattr("cache_tools.cli.transfer._matches", replaced)
    with pytest.raises(CacheError, match="changed while it was read: import it again"):
        import_(corpus, "a", file)
    assert not (corpus / "teachers" / "a").exists()


def test_importing_another_file_under_a_name_that_is_taken_loses_nothing(corpus, tmp_path):
    import_(corpus, "a", write_npy(tmp_path / "e", IDS, ROWS))
    with pytest.raises(CacheError, match="give the new one another name"):
        import_(corpus, "a", write_npy(tmp_path / "f", IDS, ROWS + 1))
    np.testing.assert_array_equal(open_column(corpus / "teachers" / "a").rows(torch.arange(7)), ROWS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.csv", 'id,n\n"open,1\n' + "b,2\n" * 5 + '"close,7\n', "i.csv line 2: a stray quote"),
        ("i.csv", "id,n\na\0b,1\n", "i.csv line 2 holds a NUL character"),
        ("i.csv", "", "i.csv is empty: expected a header with column id"),
        ("i.txt", "one\nzw\0ei\n", "i.txt line 2 holds a NUL character"),
        ("i.txt.gz", "x" * 17_000_000, "i.txt.gz line 1 has more than 16,777,216 characters"),
    ],
)
def test_ids_that_would_be_lost_are_refused_with_their_line(corpus, tmp_path, name, content, message):
    file = write_npy(tmp_path / "e", IDS, ROWS)
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    with pytest.raises(QuorumError, match=message):
        import_(corpus, "a", file, tmp_path / name)
    assert not (corpus / "teachers").exists()


def test_blank_lines_at_the_end_of_a_file_of_ids_are_no_ids(corpus, tmp_path):
    (tmp_path / "i.txt").write_text("one\nzwei\n\n\n")
    import_(corpus, "a", write_npy(tmp_path / "e", IDS[:2], ROWS[:2]), tmp_path / "i.txt")
    assert open_column(corpus / "teachers" / "a").valid(torch.arange(7)).tolist() == [True, True, *[False] * 5]


@pytest.mark.parametrize(
    "ids", [[{"a": 1}] * 7, [1.0, float("nan"), *range(5)], [True] * 7], ids=["objects", "NaN", "truth"]
)
def test_ids_that_are_no_texts_or_whole_numbers_are_refused_with_their_row(corpus, tmp_path, ids):
    file = write_parquet(tmp_path / "e", ids, ROWS)
    with pytest.raises(CacheError, match=r"e.parquet row 1: expected an id as text or whole number, found"):
        import_(corpus, "a", file)


def test_a_pipe_in_the_place_of_a_file_of_ids_or_embeddings_is_refused_at_once(corpus, tmp_path):
    file = write_npy(tmp_path / "e", IDS, ROWS)
    for name in ("p.txt", "p.npy"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(CacheError, match=f"no file .*{name}: expected ids there"):
            import_(corpus, "a", file, tmp_path / name)
    with pytest.raises(CacheError, match="no file .*p.npy: expected embeddings there"):
        import_(corpus, "a", tmp_path / "p.npy", tmp_path / "e.ids.npy")
