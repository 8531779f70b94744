"""Image corpora: links are followed, what is left out is counted, bombs cost no memory, metadata never hide pixels."""

import gzip
import io
import logging
import os
import socket
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cache_tools.corpora import image as reader
from cache_tools.corpora.idx import IdxImages
from cache_tools.corpora.image import ImageDataset, ImageFolder
from cache_tools.errors import BadItem, CorpusError
from cache_tools.items.image import ENDINGS, FORMATS, decode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(kind="PNG", **arguments):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **arguments)
    return file.getvalue()


def names(path, **choice):
    return ImageFolder(path, **choice).names()


@pytest.fixture
def classes(tmp_path):
    """Three classes of three images; two classes lie elsewhere."""
    for folder in ("images/ant", "store/bee", "store/cat"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(3):
            (tmp_path / folder / f"{number}.png").write_bytes(f"{folder} {number}".encode())
    for name in ("bee", "cat"):
        (tmp_path / "images" / name).symlink_to(tmp_path / "store" / name)
    return tmp_path / "images"


NINE = [f"{folder}/{number}.png" for folder in ("ant", "bee", "cat") for number in range(3)]


# --------------------------------------------------------------------------------------------------------- links


def test_linked_class_folders_and_files_are_read(classes, tmp_path):
    assert names(classes) == NINE
    (tmp_path / "other").symlink_to(classes)
    assert names(tmp_path / "other") == NINE
    (classes / "ant" / "3.png").symlink_to(tmp_path / "store" / "cat" / "2.png")
    assert dict(ImageFolder(classes).pairs())["ant/3.png"] == b"store/cat 2"


def test_links_in_a_circle_end_and_are_named(classes, caplog):
    (classes / "ant" / "up").symlink_to("..")
    (classes / "self").symlink_to("self")
    (classes / "unmounted").symlink_to("/nowhere/at/all")
    with caplog.at_level(logging.WARNING):
        assert names(classes) == [*NINE[:3], *NINE[3:]]
    assert "3 files left out (3 links and special files), for instance 'ant/up'" in caplog.text


def test_an_image_that_links_nowhere_or_to_itself_is_refused(classes):
    (classes / "ant" / "x.png").symlink_to("x.png")
    with pytest.raises(CorpusError, match="x.png cannot be read .*: mend or remove it"):
        ImageFolder(classes).read()


@pytest.mark.parametrize("kind", ["", "gz", "xz"])
def test_links_in_a_tar_are_followed(tmp_path, kind, caplog):
    with tarfile.open(tmp_path / "i.tar", f"w:{kind}") as archive:
        for name, target, type_ in [
            ("a/first.png", "../z/last.png", tarfile.SYMTYPE),
            ("z/last.png", None, tarfile.REGTYPE),
            ("a/hard.png", "z/last.png", tarfile.LNKTYPE),
            ("a/again.png", "first.png", tarfile.SYMTYPE),
            ("a/nowhere.png", "gone.png", tarfile.SYMTYPE),
            ("a/circle.png", "circle.png", tarfile.SYMTYPE),
            ("b", "a", tarfile.SYMTYPE),
            ("c", None, tarfile.DIRTYPE),
            ("folder.png", "c", tarfile.SYMTYPE),
            ("p.png", None, tarfile.FIFOTYPE),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = type_, target or ""
            content = b"the image" if name == "z/last.png" else b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with caplog.at_level(logging.WARNING):
        items = dict(ImageFolder(tmp_path / "i.tar").pairs())
    linked = ["a/first.png", "z/last.png", "a/hard.png", "a/again.png"]
    masked = ["a/nowhere.png", "a/circle.png", "folder.png"]
    assert items == dict.fromkeys(linked, b"the image") | dict.fromkeys(masked, b"")
    assert "2 files left out (2 links and special files), for instance 'b'" in caplog.text


def test_links_in_a_zip_are_followed(tmp_path, caplog):
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("z/last.png", b"the image")
        links = {"a/1.png": "../z/last.png", "a/2.png": "1.png", "a/no.png": "gone.png", "a/o.png": "o.png", "b": "a"}
        for name, target in links.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, target)
    with caplog.at_level(logging.WARNING):
        items = dict(ImageFolder(tmp_path / "i.zip").pairs())
    assert items == dict.fromkeys(["a/1.png", "a/2.png", "z/last.png"], b"the image") | {"a/no.png": b"", "a/o.png": b""}
    assert "1 files left out (1 links and special files), for instance 'b'" in caplog.text


# ----------------------------------------------------------------------------------- what is read, and what is not


def fill(path, files):
    """A folder, a zip or a tar."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("place", ["i", "i.zip", "i.tar"])
def test_every_ending_of_a_format_that_is_decoded_is_read(tmp_path, place):
    files = {f"{number}{ending}": b"x" for number, ending in enumerate(ENDINGS)} | {"UPPER.TIF": b"x"}
    assert sorted(names(fill(tmp_path / place, files))) == sorted(files)
    for kind in FORMATS:
        assert np.asarray(decode_image(encoded(kind))).shape == (20, 30, 3)
        assert any(Image.registered_extensions().get(ending) == kind for ending in ENDINGS)


@pytest.mark.parametrize("place", ["i", "i.zip", "i.tar"])
def test_what_is_left_out_is_counted_and_named_once(tmp_path, place, caplog):
    left_out = {"a/x.heic": b"", "a/y.heic": b"", "LICENSE": b"", "a/._0.png": b"", "a/data.csv": b""}
    path = fill(tmp_path / place, {"a/0.png": b"0", "b/0.png": b"1"} | left_out)
    with caplog.at_level(logging.WARNING):
        ImageFolder(path).scan()
        assert ImageFolder(path).read()[0] == ["a/0.png", "b/0.png"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{path}: 5 files left out (2 .heic, ")
    for part in ("1 .csv", "1 ._*", "1 without an ending", "for instance 'a/x.heic'", ".png", ".tiff"):
        assert part in message
    caplog.clear()
    assert names(path, include="b/*") == ["b/0.png"]  # what was not asked for is not left out
    assert names(path, limit=1) == ["a/0.png"]
    assert not [record for record in caplog.records if "b/" in record.getMessage()]


def test_a_corpus_of_version_0_1_keeps_its_fingerprint(tmp_path):
    files = {"a.png": b"one", "sub/b.JPG": b"two", "sub/c.webp": b"three", "sub/notes.txt": b"x", "sub/._b.jpg": b"y"}
    fingerprint = "0557ab9deef83fd1466747829bd14382f89a01048b82b487a3e9a3f9193c7142"  # as version 0.1 gave it
    for place in ("i", "i.zip", "i.tar"):
        assert ImageFolder(fill(tmp_path / place, files)).read()[2] == fingerprint


# --------------------------------------------------------------------------------------- pipes, devices and bombs


def test_pipes_devices_and_sockets_are_left_out_at_once(tmp_path, caplog):
    fill(tmp_path / "i", {"a.png": b"image"})
    os.mkfifo(tmp_path / "i" / "b.png")
    (tmp_path / "i" / "c.png").symlink_to("/dev/zero")
    (tmp_path / "i" / "d.png").symlink_to("b.png")
    with socket.socket(socket.AF_UNIX) as listener, caplog.at_level(logging.WARNING):
        listener.bind(os.path.relpath(tmp_path / "i" / "e.png"))  # a socket's path must be short
        assert ImageFolder(tmp_path / "i").read()[:2] == (["a.png"], [b"image"])
    assert "4 files left out (4 links and special files), for instance 'b.png'" in caplog.text
    with pytest.raises(CorpusError, match="no folder or file"):
        ImageFolder(tmp_path / "i" / "b.png").read()


def test_a_data_set_that_names_a_pipe_or_a_device_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", "/dev/zero"):
        with pytest.raises(CorpusError, match="is no regular file"):
            ImageDataset("none").encoded({"bytes": None, "path": str(path)})


def bounded(read, memory=350e6, seconds=30):
    """What ``read`` gives, in bounded memory and time."""
    tracemalloc.start()
    begin = time.monotonic()
    try:
        result = read()
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    assert time.monotonic() - begin < seconds
    return result


MEBIBYTE = bytes(1 << 20)


def bomb(path, mebibytes):
    """One image that unpacks to so many mebibytes."""
    if path.suffix == ".zip":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("a.png", "w", force_zip64=True) as file,
        ):
            for _ in range(mebibytes):
                file.write(MEBIBYTE)
    else:
        with gzip.open(path, "wb", 1) as file:
            member = tarfile.TarInfo("a.png")
            member.size = mebibytes << 20
            file.write(member.tobuf())
            for _ in range(mebibytes):
                file.write(MEBIBYTE)
            file.write(bytes(1024))
    return path


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb_that_states_a_small_size_is_refused_where_it_would_be_unpacked_whole(tmp_path, how):
    path = tmp_path / "i.zip"
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("a.png", bytes(60 << 20))
        archive.infolist()[0].file_size = 100
    with pytest.raises(
        CorpusError, match=r"i.zip: a.png cannot be read \(bzip2 and LZMA .* unpack the archive and give its"
    ):
        bounded(lambda: list(ImageFolder(path).pairs()), 20e6)


def test_a_bomb_that_states_a_small_size_is_masked_in_bounded_memory(tmp_path):
    path = tmp_path / "i.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(60 << 20))
        archive.infolist()[0].file_size = 100
    ((_, item),) = bounded(lambda: list(ImageFolder(path).pairs()), 20e6)
    with pytest.raises(BadItem):
        decode_image(item)


@pytest.mark.parametrize("name", ["i.zip", "i.tar.gz"])
def test_a_bomb_in_an_archive_is_masked_in_bounded_memory(tmp_path, name, monkeypatch):
    monkeypatch.setattr(reader, "MAX_BYTES", 1 << 22)
    path = bomb(tmp_path / name, 60)
    assert path.stat().st_size < 1e6
    ((identity, item),) = bounded(lambda: list(ImageFolder(path).pairs()), 20e6)
    assert identity == "a.png"
    assert len(item) <= 4096
    with pytest.raises(BadItem):
        decode_image(item)


def test_a_file_of_a_terabyte_is_masked_in_bounded_memory(tmp_path):
    (tmp_path / "a.bmp").write_bytes(encoded("BMP"))
    os.truncate(tmp_path / "a.bmp", 1 << 40)
    ((_, item),) = bounded(lambda: list(ImageFolder(tmp_path).pairs()), 850e6)
    assert len(item) == 4096


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_an_endless_header_of_a_tar_is_refused_in_bounded_memory(tmp_path, kind):
    member = tarfile.TarInfo("header")
    member.type, member.size = kind, 1 << 30
    with gzip.open(tmp_path / "i.tar.gz", "wb", 1) as file:
        first = tarfile.TarInfo("a.png")
        file.write(first.tobuf() + member.tobuf())
        for _ in range(200):
            file.write(MEBIBYTE)
    with pytest.raises(CorpusError, match="i.tar.gz is damaged or cut short .a header of 1,073,741,824 bytes"):
        bounded(lambda: names(tmp_path / "i.tar.gz"), 50e6)


@pytest.mark.parametrize("name", ["i-idx3-ubyte", "i-idx3-ubyte.gz"])
def test_an_idx_file_that_promises_too_much_or_holds_too_much_is_refused(tmp_path, name):
    head = struct.pack(">BBBB", 0, 0, 8, 3)
    for lengths, mebibytes in [((2**32 - 1,) * 3, 1), ((1, 2, 3), 200)]:
        with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wb") as file:
            file.write(head + struct.pack(">III", *lengths))
            for _ in range(mebibytes):
                file.write(MEBIBYTE)
        with pytest.raises(CorpusError, match="is no IDX file of 3 axes of bytes, or it is cut short, or longer than"):
            bounded(lambda: IdxImages([tmp_path / name]).names(), 10e6)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(CorpusError, match="is no regular file"):
        IdxImages([tmp_path / name]).names()


# ------------------------------------------------------------------------------------------------------- metadata


def exif(*entries):
    """EXIF data with the orientation 6 (turned by a quarter) and ``(tag, type, count, value)``."""
    directory, values = b"", b""
    tags = sorted([(0x112, 3, 1, struct.pack("<H", 6)), *entries])
    for tag, type_, count, value in tags:
        at = struct.pack("<I", 8 + 2 + 12 * len(tags) + 4 + len(values))
        directory += struct.pack("<HHI", tag, type_, count) + (value.ljust(4, b"\0") if len(value) <= 4 else at)
        values += value if len(value) > 4 else b""
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + values


BROKEN = {
    "resolution as text": (0x11A, 2, 6, b"seven\0"),
    "resolution NaN": (0x11A, 12, 1, struct.pack("<d", float("nan"))),
    "resolution infinite": (0x11A, 12, 1, struct.pack("<d", float("inf"))),
    "resolution 1/0": (0x11A, 5, 1, struct.pack("<II", 1, 0)),
    "a directory outside": (0x8769, 4, 1, struct.pack("<I", 1 << 30)),
    "a circle of directories": (0x8769, 4, 1, struct.pack("<I", 8)),
    "texts as numbers": (0x10F, 5, 1, struct.pack("<II", 1, 1)),
}


@pytest.mark.filterwarnings("ignore:.*(EXIF|Tag data)")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("broken", list(BROKEN))
def test_broken_exif_data_never_hide_the_pixels_nor_the_orientation(kind, broken):
    arguments = {"lossless": True} if kind == "WEBP" else {}
    upright = np.asarray(decode_image(encoded(kind, **arguments)))
    found = np.asarray(decode_image(encoded(kind, exif=exif(BROKEN[broken]), **arguments)))
    assert (found == np.rot90(upright, -1)).all()


@pytest.mark.filterwarnings("ignore:.*(EXIF|Tag data)", "ignore:Metadata Warning", "ignore:Truncated File")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_no_damage_to_exif_data_hides_the_pixels(kind):
    random = np.random.default_rng(0)
    whole = exif(*[BROKEN["resolution 1/0"], BROKEN["a directory outside"], BROKEN["texts as numbers"]])
    for _ in range(150):
        data = bytearray(whole)
        for at in random.integers(6, len(data), 4):
            data[at] = random.integers(256)
        assert sorted(decode_image(encoded(kind, exif=bytes(data))).size) == [20, 30]


def text_of(how):
    info, text = PngInfo(), "x" * 2_000_000
    if how == "iTXt":
        info.add_itxt("comment", text, zip=True)
    elif how == "after the pixels":
        info.add(b"zTXt", b"comment\0\0" + zlib.compress(text.encode()), True)
    else:
        info.add_text("comment", text, zip=how == "zTXt")
    return info


@pytest.mark.parametrize("how", ["zTXt", "iTXt", "tEXt", "after the pixels"])
def test_long_texts_in_a_png_never_hide_the_pixels(how):
    assert (np.asarray(decode_image(encoded(pnginfo=text_of(how)))) == PIXELS).all()
    turned = encoded(pnginfo=text_of(how), exif=exif())
    assert (np.asarray(decode_image(turned)) == np.rot90(PIXELS, -1)).all()


def test_a_damaged_profile_and_a_damaged_text_of_a_png_never_hide_the_pixels():
    whole = encoded(pnginfo=text_of("tEXt"), icc_profile=b"no profile" * 300_000)
    assert (np.asarray(decode_image(whole)) == PIXELS).all()
    assert (np.asarray(decode_image(whole.replace(b"xxxx", b"xxxy", 1))) == PIXELS).all()  # its checksum is wrong now


def test_a_png_with_long_texts_and_damaged_pixels_is_still_refused():
    whole = encoded(pnginfo=text_of("zTXt"))
    for at in (whole.index(b"IDAT") + 40, whole.index(b"IHDR") + 6):
        damaged = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        with pytest.raises(BadItem):
            decode_image(damaged)


def test_a_tiff_is_read_where_its_range_is_known():
    grey = Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
    file = io.BytesIO()
    grey.save(file, "TIFF")
    assert (np.asarray(decode_image(file.getvalue()))[..., 0] == np.arange(256).reshape(16, 16)).all()
    for mode in ("F", "I"):
        file = io.BytesIO()
        Image.fromarray(PIXELS).convert("L").convert(mode).save(file, "TIFF")
        with pytest.raises(BadItem, match=f"pixels of 32 bits .mode {mode}. have no known range, expected up to 16 bits"):
            decode_image(file.getvalue())
    first = Image.fromarray(PIXELS)
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=[Image.new("RGB", (5, 5))], compression="tiff_lzw")
    assert (np.asarray(decode_image(file.getvalue())) == PIXELS).all()
