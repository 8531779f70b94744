import csv
import gzip
import io
import json
import logging
import os
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from cache_tools import open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build, store_corpus
from cache_tools.corpora.base import Corpus, Items
from cache_tools.corpora.image import ImageDataset, ImageFolder
from cache_tools.corpora.text import TextDataset, TextFile
from cache_tools.errors import BadItem, CorpusError
from cache_tools.format import store
from cache_tools.format.verify import corpus_faults
from cache_tools.inputs import Pixels
from cache_tools.items import image as images

QUIET = Settings(workers=1)
ARCHIVES = ("i.zip", "i.tar", "i.tar.gz", "i.tgz")
RED, BLUE = (250, 10, 20), (20, 10, 250)


@cache
def encoded(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@cache
def photos() -> dict[str, bytes]:
    """Sorted as text; as paths ``cat/`` would come before ``cat-2/``."""
    kinds = {"cat-2/a.jpg": "JPEG", "cat/a.jpg": "JPEG", "cat/b.PNG": "PNG", "cat/c.webp": "WEBP", "dog/a.jpeg": "JPEG"}
    return {name: encoded(seed, kind) for seed, (name, kind) in enumerate(kinds.items())}


def make(path, files):
    """A folder, zip or tar with ``files``, in their order."""
    if ".zip" in path.name:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif ".t" in path.name:
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


def pixels(folder, row=None):
    column = open_column(folder / "inputs" / "pixels")
    rows = column.rows(torch.arange(len(column)) if row is None else torch.tensor([row]))
    return rows["pixels"].values.numpy()


def masked(folder, name="inputs/pixels"):
    """Ids that ``skipped.csv`` lists, which must be those that the column masks."""
    column, path = open_column(folder / name), folder / name / "skipped.csv"
    with open(path, newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert [int(row["row"]) for row in listed] == (~column.valid(torch.arange(len(column)))).nonzero().flatten().tolist()
    assert all(row["reason"] for row in listed)
    return [row["id"] for row in listed]


# -------------------------------------------------------------------------------------------------- image files


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_folder_and_an_archive_of_it_are_one_corpus(tmp_path, name):
    of_folder = ImageFolder(make(tmp_path / "i", photos() | {"notes.txt": b"x", "cat/._a.jpg": b"shadow"})).read()
    assert of_folder[:2] == (list(photos()), list(photos().values()))
    assert ImageFolder(make(tmp_path / name, photos() | {"notes.txt": b"x"})).read() == of_folder


def test_a_tar_keeps_its_own_order_and_its_ids_lose_the_dot(tmp_path):
    backwards = {f"./{name}": photos()[name] for name in reversed(photos())}
    assert ImageFolder(make(tmp_path / "i.tar", backwards)).read()[0] == list(reversed(photos()))


@pytest.mark.parametrize("name", ["i", *ARCHIVES])
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"include": "cat/*"}, ["cat/a.jpg", "cat/b.PNG", "cat/c.webp"]),
        ({"include": "*.jpeg"}, ["dog/a.jpeg"]),
        ({"per_folder": 1}, ["cat-2/a.jpg", "cat/a.jpg", "dog/a.jpeg"]),
        ({"limit": 2}, ["cat-2/a.jpg", "cat/a.jpg"]),
        ({"include": "cat/*", "per_folder": 2, "limit": 5}, ["cat/a.jpg", "cat/b.PNG"]),
        ({"per_folder": 1, "limit": 2}, ["cat-2/a.jpg", "cat/a.jpg"]),
    ],
)
def test_include_per_folder_and_limit_choose(tmp_path, name, choice, expected):
    corpus = ImageFolder(make(tmp_path / name, photos()), **choice)
    assert corpus.names() == expected
    assert corpus.read()[1] == [photos()[each] for each in expected]


def test_a_folder_with_an_image_s_name_is_no_image(tmp_path):
    (tmp_path / "d.jpg").mkdir()
    make(tmp_path, {"d.jpg/a.png": encoded()})
    assert ImageFolder(tmp_path).read()[0] == ["d.jpg/a.png"]


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    make(tmp_path, {"a.png": encoded()})
    (tmp_path / "b.png").symlink_to("gone")
    with pytest.raises(CorpusError, match="b.png cannot be read"):
        ImageFolder(tmp_path).read()


@pytest.mark.parametrize("name", ["i", *ARCHIVES])
def test_any_name_is_an_id(tmp_path, name):
    names = ['a\nb,"c".png', "日本/é.png", "a#0 [b].png"]
    files = {each: encoded(seed) for seed, each in enumerate(sorted(names))} | {"empty\n.png": b""}
    if name != "i.zip":  # its names are UTF-8 or cp437
        files[os.fsdecode(b"\xffcaf\xe9.png")] = encoded(9)
    folder = build(tmp_path, "c", ImageFolder(make(tmp_path / name, files)), {}, {"pixels": Pixels(8)}, QUIET)
    ids, _ = store.read_items(folder, 0)
    assert set(ids) == {*names, "empty\n.png", *(["\\xffcaf\\xe9.png"] if name != "i.zip" else [])}
    assert masked(folder) == ["empty\n.png"]


# ------------------------------------------------------------------------------------------------------ decoding


def halves(mode="RGB"):
    """Left red, right blue."""
    image = Image.new("RGB", (16, 16), RED)
    image.paste(BLUE, (8, 0, 16, 16))
    return image.quantize(4) if mode == "P" else image.convert(mode)


def saved(image, kind, **arguments):
    file = io.BytesIO()
    image.save(file, kind, **arguments)
    return file.getvalue()


def of_column(tmp_path, item):
    folder = build(tmp_path, "c", ImageFolder(make(tmp_path / "i", {"a.png": item})), {}, {"pixels": Pixels(16)}, QUIET)
    return pixels(folder)[0].astype(int)  # (16, 16, 3)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("CMYK", "JPEG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("P", "GIF"),
        ("RGB", "TIFF"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, kind):
    found = of_column(tmp_path, saved(halves(mode), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.abs(found[:, 2] - RED).max() < 30 and np.abs(found[:, 13] - BLUE).max() < 30


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_stays_grey(tmp_path, mode):
    grey = Image.new("L", (16, 16), 255)
    grey.paste(0, (8, 0, 16, 16))
    found = of_column(tmp_path, saved(grey.convert(mode), "PNG"))
    assert (found == np.where(np.arange(16) < 8, 255, 0)[None, :, None]).all()


def test_grey_of_16_bits_is_scaled_not_cut_off(tmp_path):
    found = of_column(tmp_path, saved(Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)), "PNG"))
    assert (found == np.arange(256).reshape(16, 16, 1)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "where"), [(1, "left"), (2, "right"), (3, "right"), (6, "top"), (7, "bottom"), (8, "bottom")]
)
def test_an_image_is_turned_as_its_exif_says(tmp_path, kind, orientation, where):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = of_column(tmp_path, saved(halves(), kind, exif=exif))
    at = {"left": (8, 2), "right": (8, 13), "top": (2, 8), "bottom": (13, 8)}[where]
    assert np.abs(found[at] - RED).max() < 30
    assert np.abs(found[15 - at[0], 15 - at[1]] - BLUE).max() < 40


def test_the_middle_of_a_long_image_is_kept(tmp_path):
    image = Image.new("RGB", (48, 16), BLUE)
    image.paste(RED, (16, 0, 32, 16))
    assert (of_column(tmp_path, saved(image, "PNG")) == RED).all()


def damaged() -> dict[str, bytes]:
    flipped = bytearray(encoded(3))
    flipped[len(flipped) // 2] ^= 0xFF
    return {
        "cut.jpg": encoded(1, "JPEG", (64, 64))[:-400],
        "cut.png": encoded(1)[:-200],
        "cut.webp": encoded(1, "WEBP")[:-100],
        "empty.jpg": b"",
        "flipped.png": bytes(flipped),
        "head.jpg": encoded(1, "JPEG")[:10],
        "text.png": b"<html>404</html>",
        "icon.png": saved(halves(), "ICO"),
    }


@pytest.mark.parametrize("name", ["i", "i.zip", "i.tar.gz"])
def test_damaged_images_are_masked_and_listed(tmp_path, name):
    files = dict(sorted((photos() | damaged()).items()))
    folder = build(tmp_path, "c", ImageFolder(make(tmp_path / name, files)), {}, {"pixels": Pixels(16)}, QUIET)
    assert masked(folder) == sorted(damaged())
    assert len(pixels(folder)) == len(photos())


def test_no_damage_to_a_byte_gets_past_decode():
    random = np.random.default_rng(0)
    for kind in images.FORMATS:
        whole, refused = encoded(5, kind), 0
        for _ in range(60):
            item = bytearray(whole)
            for at in random.integers(0, min(len(item), 300), 3):
                item[at] = random.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert images.decode_image(bytes(item)).mode == "RGB"
                except BadItem as error:
                    assert str(error)
                    refused += 1
        assert refused, f"no {kind} was damaged enough to be refused"


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_of_a_zip_is_masked_and_listed(tmp_path, how):
    with zipfile.ZipFile(tmp_path / "i.zip", "w", how) as archive:
        archive.writestr("a.png", encoded(1))
        archive.writestr("b.png", encoded(2))
    content = bytearray((tmp_path / "i.zip").read_bytes())
    content[36:76] = b"\xff" * 40  # where a.png begins
    (tmp_path / "i.zip").write_bytes(content)
    folder = build(tmp_path, "c", ImageFolder(tmp_path / "i.zip"), {}, {"pixels": Pixels(8)}, QUIET)
    assert masked(folder) == ["a.png"]


def test_an_image_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 16)
    corpus = ImageFolder(make(tmp_path / "i", {"bomb.png": encoded(1, "PNG", (25, 16)), "fits.png": encoded(2)}))
    assert masked(build(tmp_path, "c", corpus, {}, {"pixels": Pixels(8)}, QUIET)) == ["bomb.png"]
    with pytest.raises(BadItem, match="24 x 17 pixels, at most 384 are decoded"):
        images.decode_image(promising(24, 17))  # whose pixels are not even there


def promising(width, height):
    """A PNG whose header, which is whole, says so."""
    header = encoded(1)[12:16] + struct.pack(">II", width, height) + encoded(1)[24:29]
    return encoded(1)[:12] + header + struct.pack(">I", zlib.crc32(header)) + encoded(1)[33:]


@pytest.mark.parametrize("side", [9_480, 9_490, 60_000, (1 << 31) - 1])
def test_a_header_that_promises_too_much_is_refused(side):
    with warnings.catch_warnings(), pytest.raises(BadItem):
        warnings.simplefilter("ignore")
        images.decode_image(promising(side, side))


# ----------------------------------------------------------------------------------------------- what is no corpus


def cut(content, share):
    return content[: int(len(content) * share)]


def overwritten(content, share):
    at = int(len(content) * share)
    return content[:at] + b"\xff" * 300 + content[at + 300 :]


def no_directory(content):
    return content.replace(b"PK\1\2", b"XX\1\2")


def encrypted(content):
    content, at = bytearray(content), content.index(b"PK\1\2")
    content[6] |= 1
    content[at + 8] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "no folder or file .*none: expected a folder, zip or tar of images"),
        ("empty", {}, "empty holds no rows: expected at least one image"),
        ("i.zip", {}, "holds no rows"),
        ("i.tar", {}, "holds no rows"),
        ("i.tar", {"a.txt": b"x"}, "holds no rows"),
        ("i.zip", b"some text", "expected a folder, a zip or a tar of images; it is none, or it is damaged"),
        ("i.tar", b"", "expected a folder, a zip or a tar of images; it is none, or it is damaged"),
    ],
)
def test_what_is_no_corpus_of_images_says_what_is_expected(tmp_path, name, content, message):
    if content == {} and "." not in name:
        (tmp_path / name).mkdir()
    elif isinstance(content, dict):
        make(tmp_path / name, content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        ImageFolder(tmp_path / name).read()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:-30], "or it is damaged"),
        (no_directory, "damaged"),
        (encrypted, "a.jpg cannot be read .*encrypted.*: unpack the archive and give its folder"),
    ],
)
def test_a_zip_that_cannot_be_read_says_what_to_do(tmp_path, spoil, message):
    path = make(tmp_path / "i.zip", photos())
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CorpusError, match=message):
        ImageFolder(path).read()


@pytest.mark.parametrize("kind", ["", ":gz", ":bz2", ":xz"])
@pytest.mark.parametrize("spoil", [cut, overwritten])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.8])
def test_a_damaged_tar_never_passes_for_a_short_one(tmp_path, kind, spoil, share):
    with tarfile.open(tmp_path / "i.tar", f"w{kind}") as archive:
        for seed in range(6):
            member = tarfile.TarInfo(f"{seed}.png")
            member.size = len(encoded(seed, "PNG", (60, 60)))
            archive.addfile(member, io.BytesIO(encoded(seed, "PNG", (60, 60))))
    content = (tmp_path / "i.tar").read_bytes()
    (tmp_path / "i.tar").write_bytes(spoil(content, share))
    try:
        ids = ImageFolder(tmp_path / "i.tar").read()[0]
    except CorpusError as error:
        assert "damaged" in str(error)
    else:  # a plain tar has no checksum of its data: the image is damaged, and decoding says so
        assert (kind, spoil) == ("", overwritten)
        assert len(ids) == 6


@pytest.mark.parametrize("where", ["header", "in header"])
def test_a_tar_that_ends_or_breaks_at_a_header_is_refused(tmp_path, where):
    path = make(tmp_path / "i.tar", photos())
    with tarfile.open(path) as archive:
        at = archive.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[at + 5] ^= 0xFF
    path.write_bytes(content[:at] if where == "header" else content)
    with pytest.raises(CorpusError, match="i.tar is damaged or cut short"):
        ImageFolder(path).read()


def test_a_tar_that_holds_a_zip_is_a_tar(tmp_path):
    inner = make(tmp_path / "inner.zip", {"inner.png": encoded(9)}).read_bytes()
    assert ImageFolder(make(tmp_path / "i.tar", photos() | {"z.zip": inner})).names() == list(photos())


# ----------------------------------------------------------------------------------------------------------- texts

TEXTS = ["first, with a comma", 'second "quoted"', "dritter: größer", "四番目", "fifth", "sixth"]
TEXT_FILES = ("t.txt", "t.csv", "t.jsonl", "t.parquet", "t.txt.gz", "t.csv.gz", "t.jsonl.gz")


def text_file(path, texts=TEXTS, ids=None):
    rows = [{"text": text, "n": 1} | ({"id": ids[row]} if ids else {}) for row, text in enumerate(texts)]
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
        return path
    file = io.StringIO()
    if ".csv" in path.name:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    else:
        file.write("\n\n".join(json.dumps(row) for row in rows) if ".jsonl" in path.name else "\n\n".join(texts) + "\n")
    content = file.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", TEXT_FILES)
def test_every_kind_of_file_gives_the_same_texts(tmp_path, name):
    assert TextFile(text_file(tmp_path / name)).read() == Items(TEXTS, "text").read()


@pytest.mark.parametrize("name", TEXT_FILES)
@pytest.mark.parametrize(
    ("choice", "rows"),
    [({"every": 2}, [0, 2, 4]), ({"every": 4}, [0, 4]), ({"limit": 2}, [0, 1]), ({"every": 2, "limit": 2}, [0, 2])],
)
def test_every_and_limit_choose(tmp_path, name, choice, rows):
    items = TextFile(text_file(tmp_path / name), **choice).read()[1]
    assert items == [TEXTS[row].encode() for row in rows]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize("given", [list("abcdef"), list(range(6))])
def test_a_column_names_the_texts(tmp_path, name, given):
    assert TextFile(text_file(tmp_path / name, ids=given), id="id").read()[0] == [str(each) for each in given]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_long_text_is_no_damage(tmp_path, name):
    assert TextFile(text_file(tmp_path / name, ["x" * 200_000])).read()[1] == [b"x" * 200_000]


@pytest.mark.parametrize("name", ["t.txt.gz", "t.csv.gz", "t.jsonl.gz"])
@pytest.mark.parametrize("spoil", ["cut", "overwritten", "checksum", "no gzip"])
def test_a_damaged_gzip_says_to_fetch_it_again(tmp_path, name, spoil):
    content = text_file(tmp_path / name, [f"text {n}" for n in range(500)]).read_bytes()
    content = {
        "cut": content[: len(content) // 2],
        "overwritten": content[:12] + b"\xff" * 20 + content[32:],
        "checksum": content[:-8] + bytes(4) + content[-4:],
        "no gzip": b"text",
    }[spoil]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=f"{name} is damaged or cut short .*: fetch or write it again"):
        TextFile(tmp_path / name).read()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"text": "a"}\n{"text": ', "t.jsonl line 2 is not JSON"),
        ("t.jsonl", b"[" * 100_000, "t.jsonl line 1 is not JSON"),
        ("t.jsonl", b'{"text": "a"}\n["b"]', 'line 2: expected an object, found \\["b"\\]'),
        ("t.jsonl", b'{"text": "a"}\n{"txt": "b"}', "line 2: no column text; its columns are: txt"),
        ("t.jsonl", b'{"text": "caf\xe9"}', "is not UTF-8 .*: save it as UTF-8"),
        ("t.txt", b"caf\xe9", "is not UTF-8 .*: save it as UTF-8"),
        ("t.csv", b"text\ncaf\xe9\n", "is not UTF-8 .*: save it as UTF-8"),
        ("t.csv", b"txt,n\na,1\n", "no column text; its columns are: txt, n"),
        ("t.csv", b"text,n\na,b,1\n", "line 2: more cells than the header has columns"),
        ("t.csv", b"", "t.csv is empty: expected a header with column text"),
        ("t.txt", b"\n \n", "holds no rows: expected at least one text"),
        ("t.parquet", b"no parquet", "t.parquet is no parquet file that can be read"),
        ("t.docx", b"PK", "expected a name ending in"),
        ("none.txt", None, "no file .*none.txt: check the path"),
        ("none.parquet", None, "no file .*none.parquet: check the path"),
    ],
)
def test_bad_files_of_texts_say_what_to_do(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        TextFile(tmp_path / name).read()


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "cut emoji \\ud83d"}\n')
    assert TextFile(tmp_path / "t.jsonl").read()[1] == [b"cut emoji ?"]


def test_binary_columns_of_parquet_are_read_as_utf8(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {"text": pyarrow.array(["größer".encode()]), "picture": pyarrow.array([b"\xff\xd8"])}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    assert TextFile(tmp_path / "t.parquet").read()[1] == ["größer".encode()]
    with pytest.raises(CorpusError, match="is not UTF-8"):
        TextFile(tmp_path / "t.parquet", text="picture").read()


# ------------------------------------------------------------------------------------------- data sets of the hub


def save(path, columns, images=()):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict(columns)
    for column in images:
        dataset = dataset.cast_column(column, datasets.Image())
    dataset.save_to_disk(path)
    return str(path)


def test_a_saved_data_set_of_texts_is_a_corpus(tmp_path):
    place = save(tmp_path / "d", {"text": TEXTS, "key": list(range(6))})
    assert TextDataset(place).read() == Items(TEXTS, "text").read()
    assert TextDataset(place, ids="key", rows=2).read()[0] == ["0", "1"]
    assert TextDataset(place, column="key").read()[1] == [b"%d" % n for n in range(6)]


def test_images_of_a_data_set_come_as_they_were_encoded(tmp_path):
    rows = [{"bytes": photos()[name], "path": name} for name in photos()]
    place = save(tmp_path / "d", {"image": rows, "name": list(photos())}, ["image"])
    assert ImageDataset(place, ids="name").read()[:2] == (list(photos()), list(photos().values()))
    assert ImageDataset(place, rows=1).read()[1] == [rows[0]["bytes"]]


def test_a_data_set_s_missing_image_is_masked_and_its_missing_id_is_a_hash(tmp_path):
    rows = [{"bytes": encoded(1), "path": None}, None]
    place = save(tmp_path / "d", {"image": rows, "name": [None, "gone"]}, ["image"])
    folder = build(tmp_path, "c", ImageDataset(place, ids="name"), {}, {"pixels": Pixels(8)}, QUIET)
    assert masked(folder) == ["gone"]
    assert store.read_items(folder, 0)[0][0] == ImageDataset(place, rows=1).read()[0][0]


def test_a_column_that_holds_no_images_is_named(tmp_path):
    with pytest.raises(CorpusError, match="row 1, column n: expected an image, found int"):
        ImageDataset(save(tmp_path / "d", {"n": [1, 2]}), column="n").read()


def test_a_missing_split_or_column_names_what_is_there(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": TEXTS, "label": [0] * 6})
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(tmp_path / "d")
    assert TextDataset(str(tmp_path / "d"), split="test").read()[1] == [TEXTS[1].encode()]
    with pytest.raises(CorpusError, match="has no split 'dev'; it has: train, test"):
        TextDataset(str(tmp_path / "d"), split="dev").read()
    with pytest.raises(CorpusError, match="no column txt; its columns are: text, label"):
        TextDataset(str(tmp_path / "d"), column="txt").read()
    with pytest.raises(CorpusError, match="no column image; its columns are: text, label"):
        ImageDataset(str(tmp_path / "d")).read()


def test_a_data_set_that_is_not_there_names_two_ways(monkeypatch):
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # without a network this takes 25 s else
    with pytest.raises(CorpusError, match="'nobody/nothing'.* Two ways: give a corpus of your own .*, or load it once"):
        TextDataset("nobody/nothing").read()


@pytest.mark.parametrize("spoil", ["empty", "cut", "gone", "no data set"])
def test_a_damaged_data_set_is_said_to_be_damaged(tmp_path, spoil):
    place = save(tmp_path / "d", {"text": TEXTS})
    (arrow,) = (tmp_path / "d").glob("*.arrow")
    if spoil in ("gone", "no data set"):
        arrow.unlink()
    else:
        arrow.write_bytes(arrow.read_bytes()[: 0 if spoil == "empty" else -100])
    if spoil == "no data set":
        (tmp_path / "d" / "state.json").unlink()
    with pytest.raises(CorpusError, match=f"{place} .*damaged"):
        TextDataset(place).read()


# ------------------------------------------------------------------------------------------------- every corpus


@pytest.mark.parametrize("name", ["i", "i.zip", "i.tar"])
def test_an_image_that_is_twice_in_an_archive_is_kept_under_both_names(tmp_path, name):
    files = {"a.png": encoded(1), "b.png": encoded(1)}
    assert ImageFolder(make(tmp_path / name, files)).read()[0] == ["a.png", "b.png"]


def test_duplicates_are_dropped_once_with_one_warning(tmp_path, caplog):
    text_file(tmp_path / "t.csv", ["a", "b", "a", "a"])
    with caplog.at_level(logging.WARNING):
        folder = build(tmp_path, "c", TextFile(tmp_path / "t.csv"), {}, {}, QUIET)
    assert store.read_items(folder, 0)[1] == [b"a", b"b"]
    assert [record.getMessage().split(": ")[1].split(",")[0] for record in caplog.records] == ["2 duplicates dropped"]


class Restless(Corpus):
    """Other rows each time that it is read."""

    modality = "text"
    source = "restless"

    def __init__(self, *runs):
        self.runs = iter(runs)

    def pairs(self):
        return ((f"{row}", item.encode()) for row, item in enumerate(next(self.runs)))


@pytest.mark.parametrize("now", ["abc", "abcde", "abcx", "bacd", "xbcd"])
def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path, now):
    with pytest.raises(CorpusError, match="restless changed while it was read: build again when it is at rest"):
        store_corpus(tmp_path / "c", Restless("abcd", now), 2)
    assert not (tmp_path / "c" / "corpus.json").exists()
    store_corpus(tmp_path / "c", Restless("abcd", "abcd"), 2)  # nothing of the other is left
    assert [store.read_items(tmp_path / "c", number)[1] for number in (0, 1)] == [[b"a", b"b"], [b"c", b"d"]]
    assert corpus_faults(tmp_path / "c") == []


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    make(tmp_path / "i", {"a.png": encoded(1)})
    corpus = ImageFolder(tmp_path / "i")
    scanned = corpus.scan()
    make(tmp_path / "i", {"a.png": encoded(2)})
    monkeypatch.setattr(corpus, "scan", lambda: scanned)
    with pytest.raises(CorpusError, match="changed while it was read"):
        store_corpus(tmp_path / "c", corpus, 10)


class Large(Corpus):
    """200 MB, one by one."""

    modality = "text"
    source = "large"

    def pairs(self):
        return ((f"{row}", row.to_bytes(2, "big") * 500_000) for row in range(200))


def test_a_corpus_is_never_in_memory_as_a_whole(tmp_path):
    tracemalloc.start()
    try:
        manifest = store_corpus(tmp_path / "c", Large(), 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (manifest.rows, manifest.shard_count) == (200, 20)
    assert peak < 60e6
