import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cache_tools import open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build, store_corpus
from cache_tools.corpora.base import Items
from cache_tools.errors import CacheError
from cache_tools.format import shard, store
from cache_tools.format.statistics import Statistics
from cache_tools.format.verify import column_faults, corpus_faults
from cache_tools.teachers.base import Teacher


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    """A corpus folder of one's own to damage."""
    return Path(shutil.copytree(cache / "mol", tmp_path / "mol"))


def faults(folder: Path) -> list[str]:
    fingerprint = store.read_corpus(folder).fingerprint
    return [fault for path in store.list_columns(folder) for fault in column_faults(path, fingerprint)] + corpus_faults(
        folder
    )


def test_a_sound_cache_has_no_faults(cache):
    assert faults(cache / "mol") == []


@given(
    data=st.data(), rows=st.integers(1, 9), dim=st.integers(1, 5), dtype=st.sampled_from(["float16", "float32", "uint8"])
)
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_mapped_back(tmp_path_factory, data, rows, dim, dtype):
    array = data.draw(arrays.arrays(dtype, (rows, dim)))
    folder = tmp_path_factory.mktemp("shard")
    facts = shard.write_shard(folder, 3, {"a/b": array}, {"first_row": 7})
    mapped, attributes = shard.map_shard(folder / facts["file"])
    np.testing.assert_array_equal(mapped["a/b"], array)
    assert attributes["first_row"] == 7
    assert [path.name for path in folder.iterdir()] == ["00003.h5"]


def test_a_shard_has_the_hash_that_was_taken_while_it_was_written(tmp_path):
    large = np.random.default_rng(0).integers(0, 255, (300, 700, 2)).astype(np.uint8)  # begins at a page, after a gap
    written = {
        "valid": np.ones(3, np.uint8),
        "graph/values": large,
        "graph/offsets": np.arange(9)[::2],  # not contiguous in memory
        "tokens/values": np.empty((0, 3), np.int32),
        "embedding": np.asfortranarray(large[:, :, 0].astype(np.float16)),
        "ids": np.frombuffer(b"read-only", np.uint8),
    }
    facts = shard.write_shard(tmp_path, 0, written, {"text": "an attribute", "rows": 3})
    assert facts == shard.facts(tmp_path / "00000.h5")
    with h5py.File(tmp_path / "00000.h5") as file:
        for name, array in written.items():
            np.testing.assert_array_equal(file[name], array, err_msg=name)
            assert file[name].dtype == array.dtype


class Numbers(Teacher):
    """The number in a text."""

    modality = "text"
    dim = 1

    def embed(self, items):
        return np.array([[float(item.split()[1])] for item in items])


def test_rows_come_in_the_order_asked_for_across_shards(tmp_path):
    items = [f"item {number}" for number in range(23)]
    manifest = store_corpus(tmp_path / "c", Items(items, "text"), shard_rows=5)
    assert manifest.shard_count == 5
    read = [item.decode() for number in range(5) for item in store.read_items(tmp_path / "c", number)[1]]
    assert read == items
    folder = build(tmp_path, "c", Items(items, "text"), {"n": Numbers()}, {}, Settings(shard_rows=5, workers=1))
    column, wanted = open_column(folder / "teachers" / "n"), [22, 0, 13, 5, 4, 13, 9, 10]
    assert len(column.shards) == 5
    assert column.rows(torch.tensor(wanted))[:, 0].tolist() == wanted


def test_one_item_is_read_by_its_row(tmp_path):
    items = [f"item {number}" for number in range(23)]
    folder = tmp_path / "c"
    store_corpus(folder, Items(items, "text"), shard_rows=5)
    ids = [identity for number in range(5) for identity in store.read_items(folder, number)[0]]
    assert [store.read_item(folder, row) for row in range(23)] == [
        (identity, item.encode()) for identity, item in zip(ids, items, strict=True)
    ]


def test_a_column_of_many_shards_equals_a_column_of_one(tmp_path):
    from cache_tools.corpora.molecule import RdkitSamples
    from cache_tools.inputs import MoleculeGraph
    from cache_tools.teachers.molecule import MorganBits, MorganCounts

    columns = {}
    for shard_rows in (16, 1000):
        folder = build(
            tmp_path / str(shard_rows),
            "c",
            RdkitSamples(limit=70),
            {"bits": MorganBits(100), "counts": MorganCounts(64)},
            {"graph": MoleculeGraph()},
            Settings(shard_rows=shard_rows, workers=1),
        )
        columns[shard_rows] = {path.name: open_column(path) for path in store.list_columns(folder)}
    indices = torch.tensor([69, 0, 17, 16, 15, 17, 40])
    many, one = columns[16], columns[1000]
    for name in ("bits", "counts"):
        assert len(many[name].shards) == 5
        assert torch.equal(many[name].rows(indices), one[name].rows(indices))
        np.testing.assert_allclose(many[name].statistics.mean, one[name].statistics.mean, rtol=1e-12)
        np.testing.assert_allclose(many[name].statistics.var, one[name].statistics.var, rtol=1e-10, atol=1e-14)
    for field, ragged in one["graph"].rows(indices).items():
        assert torch.equal(many["graph"].rows(indices)[field].values, ragged.values)
        assert torch.equal(many["graph"].rows(indices)[field].counts, ragged.counts)


def test_opening_reads_no_shard_and_pickles_without_rows(cache, copy):
    (copy / "teachers" / "counts" / "00000.h5").unlink()
    assert len(open_column(copy / "teachers" / "counts")) == 600
    column = open_column(cache / "mol" / "teachers" / "counts")
    column.rows(torch.tensor([1, 2]))
    assert len(pickle.dumps(column)) < 20_000
    assert pickle.loads(pickle.dumps(column)).rows(torch.tensor([3])).shape == (1, 128)


def test_a_row_beyond_the_end_is_refused(cache):
    column = open_column(cache / "mol" / "inputs" / "graph")
    with pytest.raises(IndexError, match="rows 0 to 599"):
        column.rows(torch.tensor([600]))


@given(parts=st.lists(st.integers(0, 7), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(deadline=None)
def test_statistics_merge_exactly(parts, seed):
    rows = np.random.default_rng(seed).normal(100, 3, (sum(parts), 3))
    total = Statistics(0, np.zeros(0), np.zeros(0))
    for part in np.split(rows, np.cumsum(parts)[:-1]):
        total = total.merge(Statistics.of(part))
    assert total.count == len(rows)
    if len(rows):
        np.testing.assert_allclose(total.mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(total.var, rows.var(0), rtol=1e-9, atol=1e-12)
    first = total.without(Statistics.of(rows[parts[0] :]))
    assert first.count == parts[0]
    if parts[0]:
        np.testing.assert_allclose(first.mean, rows[: parts[0]].mean(0), rtol=1e-12)
        np.testing.assert_allclose(first.var, rows[: parts[0]].var(0), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("constant", [0.0, 3.1, -500.0])
def test_a_dimension_that_varies_in_the_removed_rows_alone_has_no_variance_or_that_of_all_rows(constant):
    random = np.random.default_rng(0)
    rows = np.full((20_000, 32), constant, np.float32)
    removed = random.permutation(len(rows))[:200]
    rows[removed] = random.standard_normal((200, 32))
    total = Statistics.of(rows[:1])
    for part in np.array_split(rows[1:], 7):
        total = total.merge(Statistics.of(part))
    left = total.without(Statistics.of(rows[removed]))
    np.testing.assert_allclose(left.mean, np.full(32, np.float32(constant)), rtol=1e-9, atol=1e-12)
    varies = left.var > 1e-10 * left.mean**2  # what a normaliser takes for a variance
    assert left.var[varies].tolist() == total.var[varies].tolist(), "never rounding, whose inverse is 1e8"


@pytest.mark.parametrize("removed", [10, 10_000, 19_990])
def test_statistics_without_some_rows_are_those_of_the_others_however_small_the_deviation(removed):
    rows = (1000 + 0.01 * np.random.default_rng(0).standard_normal((20_000, 8))).astype(np.float32)
    left = Statistics.of(rows).without(Statistics.of(rows[:removed]))
    expected = rows[removed:].astype(np.float64)
    np.testing.assert_allclose(left.mean, expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(left.var, expected.var(0), rtol=1e-6)


def test_a_flipped_bit_is_found(copy):
    file = copy / "teachers" / "counts" / "00000.h5"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    assert len(faults(copy)) == 1
    assert "SHA-256" in faults(copy)[0]


def test_a_truncated_and_a_missing_shard_are_found(copy):
    file = copy / "teachers" / "counts" / "00000.h5"
    file.write_bytes(file.read_bytes()[:-10])
    (copy / "teachers" / "maccs" / "00000.h5").unlink()
    assert len(faults(copy)) == 2
    with pytest.raises(CacheError, match="its manifest says"):
        open_column(copy / "teachers" / "counts").rows(torch.tensor([0]))
    with pytest.raises(CacheError, match="missing"):
        open_column(copy / "teachers" / "maccs").rows(torch.tensor([0]))


def test_links_to_elsewhere_are_refused(tmp_path):
    with h5py.File(tmp_path / "00000.h5", "w") as file:
        file["embedding"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(CacheError, match="link to elsewhere"):
        shard.map_shard(tmp_path / "00000.h5")
    with h5py.File(tmp_path / "00001.h5", "w") as file:
        file.create_dataset("embedding", (10,), "u1", external=[("/etc/passwd", 0, 10)])
    with pytest.raises(CacheError, match="not contiguous data inside"):
        shard.map_shard(tmp_path / "00001.h5")


def test_a_newer_format_is_refused(copy):
    path = copy / "teachers" / "counts" / store.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(CacheError, match="upgrade"):
        open_column(path.parent)


def test_an_unfinished_column_is_refused(copy):
    path = copy / "teachers" / "counts" / store.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False, "shards": []}))
    with pytest.raises(CacheError, match="0 of 600 rows.*run the same build again"):
        open_column(path.parent)


def test_a_row_cannot_be_changed_through_the_map(copy):
    column = open_column(copy / "teachers" / "counts")
    column.rows(torch.tensor([0])).fill_(9)
    column._shard(0)["embedding"].fill(9)
    assert column_faults(column.path, column.corpus_fingerprint) == []
