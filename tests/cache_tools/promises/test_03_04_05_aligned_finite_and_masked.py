"""Promises 3 to 5: rows are aligned by id, finite, and masked where the item is bad."""

import csv
import io
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers import QUIET, Given, GivenBits, Pairs, faults, litter, numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cache_tools import aligned, open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.base import Items
from cache_tools.errors import CacheError, TeacherError
from cache_tools.format import store
from cache_tools.inputs import Featuriser, MoleculeGraph, Pixels
from cache_tools.items.image import decode_image
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.molecule import MorganBits

# --------------------------------------------------------------------------------------- 3: rows are aligned by id


def test_promise_03_columns_of_another_corpus_are_refused(tmp_path):
    one, other = (
        build(tmp_path, name, Items(texts, "text"), {"a": Given().knows(np.ones((3, 1)))}, {}, QUIET)
        for name, texts in (("one", ["0", "1", "2"]), ("other", ["0", "2", "1"]))  # the same items in another order
    )
    assert len(aligned(one, ["teachers/a"])) == 3
    with pytest.raises(CacheError, match="made from another corpus"):
        aligned(one, [other / "teachers" / "a"])
    shutil.copytree(other / "teachers" / "a", one / "teachers" / "b")
    with pytest.raises(CacheError, match="made from another corpus"):
        aligned(one, ["teachers/b"])
    assert "made from another corpus" in faults(one)[0]
    shutil.copy(other / "teachers" / "a" / "00000.h5", one / "teachers" / "a" / "00000.h5")
    with pytest.raises(CacheError, match="header says corpus_fingerprint"):
        open_column(one / "teachers" / "a").rows(torch.tensor([0]))


# ---------------------------------------------------------------------------------------- 4: no NaN, no infinity


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_promise_04_what_is_not_finite_is_refused_with_its_id_and_nothing_written(tmp_path, value, dtype):
    values = np.ones((9, 2))
    values[7, 1] = value
    corpus = Pairs({f"id {number}": str(number).encode() for number in range(9)})
    with pytest.raises(TeacherError, match="id 'id 7' has a NaN or an infinity; nothing written"):
        build(tmp_path, "c", corpus, {"a": Given(2).knows(values)}, {}, Settings(workers=1, dtype=dtype, batch_size=4))
    assert [path.name for path in (tmp_path / "c" / "teachers" / "a").iterdir()] == ["manifest.json"]


class Halves(Featuriser):
    modality = "text"
    fields = {"numbers": ("float16", ())}

    def featurise(self, item):
        return {"numbers": np.array([1.0, float(item)])}


@pytest.mark.parametrize("bad", ["nan", "1e9"])
def test_promise_04_a_students_input_that_is_not_finite_is_refused_with_its_id(tmp_path, bad):
    corpus = Pairs({"a": b"1", "b": bad.encode()})
    with pytest.raises(TeacherError, match="numbers of id 'b' has a NaN or an infinity"):
        build(tmp_path, "c", corpus, {}, {"a": Halves()}, QUIET)
    assert [path.name for path in (tmp_path / "c" / "inputs" / "a").iterdir()] == ["manifest.json"]


def test_promise_04_one_shard_beyond_float16_widens_the_column(tmp_path):
    values = np.linspace(0, 1, 12)[:, None].astype(np.float32)
    values[5] = 70_000.5
    folder = build(tmp_path, "c", numbers(12), {"a": Given().knows(values)}, {}, Settings(workers=1, shard_rows=4))
    column = open_column(folder / "teachers" / "a")
    assert [each["dtype"] for each in column.shards] == ["float16", "float32", "float16"]
    rows = column.rows(torch.tensor([0, 5, 6, 11]))
    assert rows.dtype == column.dtype == torch.float32
    assert rows[[1, 2]].tolist() == values[[5, 6]].tolist()
    assert rows[3].item() == np.float16(values[11]).item()
    assert column.rows(torch.tensor([0])).dtype == torch.float32, "of a narrow shard alone"
    assert faults(folder) == []


# --------------------------------------------------------------------------------- 5: a bad item is masked and listed


def png(width: int, height: int) -> bytes:
    """A black 1-bit image, made row by row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def encoded(colour: str, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 60, (30, 20, 3), dtype=np.uint8)
    picture = Image.fromarray(np.asarray(Image.new("RGB", (20, 30), colour)) // 2 + noise)
    picture.save(file, form, **options)
    return file.getvalue()


class MeanColour(Teacher):
    modality = "image"
    dim = 3

    def prepare(self, item):
        return decode_image(item)

    def embed(self, items):
        return np.stack([np.asarray(item).mean((0, 1)) for item in items])


class Lengths(Teacher):
    modality = "text"
    dim = 1

    def embed(self, items):
        return np.array([[len(item)] for item in items])


IMAGES = {
    "red": encoded("red"),
    "no image": b"hello",
    "blue": encoded("blue", "JPEG"),
    "cut short": encoded("red", "JPEG")[:-200],
    "bomb": png(20_000, 10_000),
    "smaller bomb": png(10_000, 10_000),
    "nothing": b"",
    "cut short png": encoded("blue")[:500],
    "an icon": encoded("red", "ICO"),
    "green": encoded("green", "WEBP"),
}
BAD_IMAGES = {
    "no image": "no image that can be read, expected JPEG, PNG, WEBP, GIF, BMP, TIFF",
    "cut short": "damaged",
    "bomb": "more than 90,000,000 pixels",
    "smaller bomb": "10000 x 10000 pixels, at most 90,000,000",
    "nothing": "no image",
    "cut short png": "damaged",
    "an icon": "no image that can be read",
}
MOLECULES = {"ethanol": b"CCO", "broken": b"C1CC", "empty": b"", "benzene": b"c1ccccc1", "latin": b"C\xe9"}
BAD_MOLECULES = {"broken": "cannot parse", "empty": "without atoms", "latin": "codec can't decode"}
TEXTS = {"one": b"one", "blank": b" \n", "empty": b"", "three": b"three", "latin": b"caf\xe9"}
BAD_TEXTS = {"blank": "empty", "empty": "empty", "latin": "codec can't decode"}


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own, of the smaller bomb
@pytest.mark.parametrize("shard_rows", [3, 100])
@pytest.mark.parametrize(
    ("modality", "items", "bad", "teacher", "inputs"),
    [
        ("image", IMAGES, BAD_IMAGES, MeanColour(), {"pixels": Pixels(8)}),
        ("molecule", MOLECULES, BAD_MOLECULES, MorganBits(64), {"graph": MoleculeGraph()}),
        ("text", TEXTS, BAD_TEXTS, Lengths(), {}),
    ],
)
def test_promise_05_a_bad_item_is_masked_and_listed_and_the_others_stay_aligned(
    tmp_path, modality, items, bad, teacher, inputs, shard_rows
):
    how = Settings(workers=1, shard_rows=shard_rows)
    folder = build(tmp_path, "c", Pairs(items, modality), {"teacher": teacher}, inputs, how)
    for path in store.list_columns(folder):
        listed = {
            row["id"]: (int(row["row"]), row["reason"])
            for row in csv.DictReader(io.StringIO((path / "skipped.csv").read_text()))
        }
        assert listed.keys() == bad.keys()
        for identity, reason in bad.items():
            assert listed[identity][0] == list(items).index(identity)
            assert reason in listed[identity][1]
        column = open_column(path)
        assert column.valid(torch.arange(len(items))).tolist() == [identity not in bad for identity in items]
    good = [row for row, identity in enumerate(items) if identity not in bad]
    alone = teacher.embed([teacher.prepare(list(items.values())[row]) for row in good])
    rows = open_column(folder / "teachers" / "teacher").rows(torch.tensor(good))
    np.testing.assert_allclose(rows, alone, rtol=1e-3)
    for name, featuriser in inputs.items():
        read = open_column(folder / "inputs" / name).rows(torch.tensor(good))
        made = [featuriser.featurise(featuriser.prepare(list(items.values())[row])) for row in good]
        for field, values in read.items():
            np.testing.assert_array_equal(values.values, np.concatenate([each[field] for each in made]))


def test_promise_05_a_bomb_costs_no_memory(nursery, tmp_path):
    for name in ("bomb", "smaller bomb"):
        assert len(IMAGES[name]) < 50_000
        (tmp_path / name).write_bytes(IMAGES[name])
        nursery.run("memory_of_decoding", tmp_path / name, tmp_path / "grown")
        assert int((tmp_path / "grown").read_text()) < 10e6, "decoded it takes 100 to 600 MB"


def test_promise_05_an_image_is_turned_as_its_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert (decode_image(encoded("red", "JPEG")).size, decode_image(encoded("red", "JPEG", exif=exif)).size) == (
        (20, 30),
        (30, 20),
    )


# ------------------------------------------------------------------------------------- all of it, on drawn numbers


@st.composite
def drawn(draw):
    rows, dim = draw(st.integers(1, 24)), draw(st.integers(1, 11))
    dtype = draw(st.sampled_from(["float16", "float32", "int8", "bits"]))
    numbers = st.integers(0, 1) if dtype == "bits" else st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    values = draw(arrays.arrays(np.float32, (rows, dim), elements=numbers))
    if dtype != "bits" and draw(st.booleans()):  # numbers like an embedding's; hypothesis likes them simple or extreme
        scale = 10.0 ** draw(st.integers(-6, 6))
        values = np.random.default_rng(draw(st.integers(0, 99))).normal(0, scale, (rows, dim)).astype(np.float32)
    usable = draw(arrays.arrays(bool, rows).filter(lambda mask: mask.any()))
    wanted = draw(st.lists(st.integers(0, rows - 1), max_size=40))
    return dtype, values, usable, wanted, draw(st.integers(-(-rows // 4), rows + 2))


@given(case=drawn())
@settings(max_examples=50, deadline=None)
def test_what_is_built_is_read_back(tmp_path_factory, case):
    dtype, values, usable, wanted, shard_rows = case
    rows, dim = values.shape
    teacher = (GivenBits if dtype == "bits" else Given)(dim).knows(values, usable)
    how = Settings(workers=1, shard_rows=shard_rows, dtype="float16" if dtype == "bits" else dtype)
    folder = build(tmp_path_factory.mktemp("drawn"), "c", numbers(rows), {"a": teacher}, {}, how)
    column = open_column(folder / "teachers" / "a")
    assert (faults(folder), litter(folder)) == ([], [])
    assert len(column.shards) == -(-rows // shard_rows)
    assert column.valid(torch.tensor(wanted, dtype=torch.long)).tolist() == usable[wanted].tolist()

    expected, within = values.copy(), np.zeros_like(values)
    for first in range(0, rows, shard_rows):
        chunk = slice(first, first + shard_rows)
        good = expected[chunk][usable[chunk]]
        if dtype == "float16" and np.abs(good).max(initial=0) <= np.finfo(np.float16).max:
            expected[chunk] = expected[chunk].clip(-65504, 65504).astype(np.float16)
        if dtype == "int8" and len(good):
            within[chunk] = (good.max(0) - good.min(0)) / 254 * 0.501  # half of one of 254 steps
    within += np.abs(values) * 1e-6 if dtype == "int8" else 0
    everything = column.rows(torch.arange(rows)).float().numpy()
    assert (np.abs(everything - expected) <= within)[usable].all()
    assert np.array_equal(column.rows(torch.tensor(wanted, dtype=torch.long)).float().numpy(), everything[wanted])
    if dtype != "int8":
        assert not everything[~usable].any(), "a masked row is zeros"

    kept = everything[usable].astype(np.float64)
    size = np.abs(kept).max(initial=1)
    assert column.statistics.count == usable.sum()
    np.testing.assert_allclose(column.statistics.mean, kept.mean(0), rtol=1e-9, atol=1e-12 * size)
    np.testing.assert_allclose(column.statistics.var, kept.var(0), rtol=1e-9, atol=1e-12 * size**2)
