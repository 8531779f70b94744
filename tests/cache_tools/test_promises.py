"""The thirteen promises of the cache format: real processes, real signals, real files."""

import ast
import contextlib
import csv
import importlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cache_tools import aligned, claims, launch, open_column, shard, store
from cache_tools.build import build
from cache_tools.columns import Featuriser, MoleculeGraph, Pixels
from cache_tools.corpus import Corpus, Items
from cache_tools.errors import BadItem, CacheError, TeacherError
from cache_tools.images import decode
from cache_tools.run import Settings
from cache_tools.teacher import Teacher
from cache_tools.teachers.molecule import MorganBits
from cache_tools.verify import column_faults, corpus_faults

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
QUIET = Settings(workers=1)


class Pairs(Corpus):
    """Ids and raw items as given."""

    source = "test"

    def __init__(self, given: dict[str, bytes], modality: str = "text"):
        self.given, self.modality = given, modality

    def pairs(self):
        yield from self.given.items()


class Given(Teacher):
    """Embeds item "n" as row n of ``values``; a row that is not ``usable`` is a bad item."""

    modality = "text"

    def __init__(self, dim: int = 1):
        self.dim = dim
        self.calls = 0

    def knows(self, values, usable=None):
        self.values, self.usable = values, np.ones(len(values), bool) if usable is None else usable
        return self

    def prepare(self, item):
        if not self.usable[int(item)]:
            raise BadItem("not usable")
        return int(item)

    def embed(self, items):
        self.calls += 1
        return self.values[items]


class GivenBits(Given):
    binary = True


def numbers(count: int) -> Items:
    return Items([str(number) for number in range(count)], "text")


def faults(folder: Path) -> list[str]:
    fingerprint = store.read_corpus(folder).fingerprint
    columns = [fault for path in store.list_columns(folder) for fault in column_faults(path, fingerprint)]
    return corpus_faults(folder) + columns


def litter(folder: Path) -> list[str]:
    """Temporary files, claims and notes."""
    kept = re.compile(r"\d{5}\.h5|manifest\.json|corpus\.json|skipped\.csv")
    return [path.name for path in folder.rglob("*") if path.is_file() and not kept.fullmatch(path.name)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.h5")}


class Nursery:
    """Starts processes that have everything imported, in milliseconds."""

    def __init__(self, folder: Path):
        command = [sys.executable, str(HERE / "children.py"), str(folder)]
        self.log = open(folder / "log", "w")  # noqa: SIM115 - until close
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=ROOT
        )
        assert self.server.stdout.readline() == "ready\n", (folder / "log").read_text()

    def _ask(self, *words) -> int:
        self.server.stdin.write(json.dumps(words, default=str) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, function: str, *arguments) -> int:
        return self._ask(function, *arguments)

    def wait(self, process: int) -> int:
        return self._ask("wait", process)

    def run(self, function: str, *arguments) -> None:
        assert self.wait(self.start(function, *arguments)) == 0, Path(self.log.name).read_text()[-2000:]

    def kill(self, process: int) -> int:
        """The exit code, -9 unless it had ended before."""
        os.kill(process, signal.SIGKILL)  # a process that nobody waited for yet keeps its number
        return self.wait(process)

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture
def children(monkeypatch):
    """The module of the children, importable here and in what `multiprocessing` starts."""
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module("children")


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    """A corpus folder of one's own to damage."""
    return Path(shutil.copytree(cache / "mol", tmp_path / "cache" / "mol"))


def command_line(*arguments, before: str = "") -> subprocess.CompletedProcess:
    """The real `distill-cache`; ``before`` is run first."""
    start = ["-c", f"{before}; from cache_tools.cli import main; main()"] if before else ["-m", "cache_tools.cli"]
    return subprocess.run([sys.executable, *start, *map(str, arguments)], capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------ 1: a shard that exists is whole


def test_promise_01_a_writer_killed_at_any_moment_leaves_only_whole_shards(nursery, tmp_path):
    work = 500, 20  # molecules, rows of a shard
    started = time.monotonic()
    nursery.run("build_molecules", tmp_path / "reference", *work)
    whole_run = time.monotonic() - started
    reference = contents(tmp_path / "reference" / "mol")
    assert len(reference) == 3 * 25, "items, a teacher, an input"
    draw = random.Random(0)
    delays = [whole_run * 0.6 * (step + draw.random()) / 20 for step in range(20)]
    draw.shuffle(delays)
    attempt, killed_at = 0, []
    for delay in delays:
        folder = tmp_path / str(attempt) / "mol"
        writer = nursery.start("build_molecules", folder.parent, *work)
        time.sleep(delay)
        code = nursery.kill(writer)
        found = contents(folder)
        killed_at.append(len(found))
        wrong = [name for name, content in found.items() if content != reference[name]]
        assert not wrong, f"killed after {delay:.3f} s"
        for path in folder.rglob("*.h5"):
            shard.map_shard(path)
        if code == 0 or len(found) == len(reference):
            attempt += 1
    assert sum(0 < count < len(reference) for count in killed_at) >= 10, (
        f"kills that land elsewhere say little: {killed_at}"
    )
    for number in {attempt, max(0, attempt - 1)}:
        nursery.run("build_molecules", tmp_path / str(number), *work)
        folder = tmp_path / str(number) / "mol"
        assert (faults(folder), litter(folder)) == ([], [])
        assert contents(folder) == reference


def test_promise_01_what_a_killed_writer_left_behind_a_finished_column_is_removed(tmp_path):
    folder = build(tmp_path, "c", numbers(4), {"a": Given().knows(np.ones((4, 1)))}, {}, QUIET)
    path = folder / "teachers" / "a"
    dead = subprocess.Popen(["true"])
    dead.wait()
    (path / f".manifest.json.1.{socket.gethostname()}.{dead.pid}.tmp").touch()
    (path / ".00000.claim").write_text(f"{socket.gethostname()} {dead.pid}")
    (path / "00000.json").write_text("{}")
    build(tmp_path, "c", numbers(4), {"a": Given().knows(np.ones((4, 1)))}, {}, QUIET)
    assert litter(folder) == []


def test_promise_01_items_of_a_killed_run_with_another_corpus_or_shard_size_are_not_kept(tmp_path):
    store_old = build(tmp_path, "c", numbers(10), {}, {}, Settings(workers=1, shard_rows=4))
    (store_old / store.CORPUS).unlink()  # as if it was killed before the last word
    values = np.arange(10.0)[:, None]
    folder = build(tmp_path, "c", numbers(10), {"a": Given().knows(values)}, {}, Settings(workers=1, shard_rows=6))
    assert open_column(folder / "teachers" / "a").rows(torch.arange(10)).tolist() == values.tolist()
    assert faults(folder) == []


# ----------------------------------------------------------------------------------- 2: running again continues


class Configured(Given):
    """All that a fingerprint can hold."""

    def __init__(self, revision: str = "a", size: int = 224, weights: Path | None = None):
        super().__init__()
        self.weights = weights

    def embed(self, items):
        self.calls += 1
        return np.array([[float(item)] for item in items])

    def prepare(self, item):
        return int(item)

    def fingerprint(self):
        return {**super().fingerprint(), "weights": shard.sha256(self.weights)}


def test_promise_02_running_again_calls_no_teacher_for_shards_that_are_there(tmp_path):
    sizes = Settings(workers=1, shard_rows=4)
    first = Given().knows(np.ones((22, 1)))
    folder = build(tmp_path, "c", numbers(22), {"a": first}, {}, sizes)
    for number in (1, 4):
        (folder / "teachers" / "a" / f"0000{number}.h5").unlink()
    again, third = Given().knows(np.ones((22, 1))), Given().knows(np.ones((22, 1)))
    build(tmp_path, "c", numbers(22), {"a": again}, {}, sizes)
    build(tmp_path, "c", numbers(22), {"a": third}, {}, sizes)
    assert (first.calls, again.calls, third.calls) == (6, 2, 0)


@pytest.mark.parametrize("field", ["revision", "size", "weights", "dtype", "corpus"])
def test_promise_02_a_change_is_refused_by_the_name_of_its_field(tmp_path, field):
    weights = tmp_path / "weights"
    weights.write_text("old")
    build(tmp_path, "c", numbers(3), {"a": Configured(weights=weights)}, {}, QUIET)
    changed, corpus, how = {"weights": weights}, numbers(3), QUIET
    if field == "weights":
        weights.write_text("new")
    elif field == "dtype":
        how = Settings(workers=1, dtype="int8")
    elif field == "corpus":
        corpus = numbers(4)
    else:
        changed[field] = {"revision": "b", "size": 256}[field]
    before = contents(tmp_path)
    message = "holds another corpus" if field == "corpus" else f"was made with {field} = .*, now it is"
    with pytest.raises(CacheError, match=message):
        build(tmp_path, "c", corpus, {"a": Configured(**changed)}, {}, how)
    assert contents(tmp_path) == before


def test_promise_02_a_column_of_a_corpus_that_was_stored_anew_in_another_way_is_refused(tmp_path):
    teacher = Given().knows(np.ones((8, 1)))
    folder = build(tmp_path, "c", numbers(8), {"a": teacher}, {}, Settings(workers=1, shard_rows=4))
    (folder / store.CORPUS).unlink()
    with pytest.raises(CacheError, match="was made with shard_rows = 4, now it is 8"):
        build(tmp_path, "c", numbers(8), {"a": teacher}, {}, Settings(workers=1, shard_rows=8))


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
        return decode(item)

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
    "a tiff": encoded("red", "TIFF"),
    "green": encoded("green", "WEBP"),
}
BAD_IMAGES = {
    "no image": "no image that can be read, expected JPEG, PNG, WEBP, GIF, BMP",
    "cut short": "damaged",
    "bomb": "more than 90,000,000 pixels",
    "smaller bomb": "10000 x 10000 pixels, at most 90,000,000",
    "nothing": "no image",
    "cut short png": "damaged",
    "a tiff": "no image that can be read",
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
    assert (decode(encoded("red", "JPEG")).size, decode(encoded("red", "JPEG", exif=exif)).size) == ((20, 30), (30, 20))


# --------------------------------------------------------------------------------------- 6: damage has a name


def swap(one: Path, other: Path) -> None:
    assert one.stat().st_size == other.stat().st_size
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_promise_06_verify_names_every_damaged_shard_and_no_row_of_it_is_read(tmp_path):
    teachers = {name: Given(3).knows(np.full((80, 3), 0.5)) for name in "abcde"}
    folder = build(tmp_path, "c", numbers(80), teachers, {}, Settings(workers=1, shard_rows=16))
    assert faults(folder) == []
    columns = folder / "teachers"
    missing, cut, nothing, flipped, left, right = (
        columns / name for name in ("a/00001.h5", "b/00002.h5", "c/00000.h5", "d/00003.h5", "e/00001.h5", "e/00002.h5")
    )
    missing.unlink()
    os.truncate(cut, cut.stat().st_size - 1)
    os.truncate(nothing, 0)
    swap(left, right)
    content = bytearray(flipped.read_bytes())
    offset = shard.read_header(flipped).fields["embedding"][0]
    content[offset + 5] ^= 0x10
    flipped.write_bytes(content)
    item = folder / "items" / "00004.h5"
    item.write_bytes(item.read_bytes()[:-8])

    said = command_line("verify", "--cache", tmp_path)
    assert said.returncode not in (0, None)
    lines = said.stderr.replace("error: ", "").strip().splitlines()
    expected = {
        missing: "is missing",
        cut: "its manifest says",
        nothing: "has 0 bytes",
        left: "header says shard 2, expected 1",
        right: "header says shard 1, expected 2",
        flipped: "SHA-256 differs",
        item: "its manifest says",
    }
    assert len(lines) == len(expected), said.stderr
    for path, words in expected.items():
        assert any(str(path) in line and words in line for line in lines), path

    for path in (missing, cut, nothing, left, right):
        row = torch.tensor([16 * int(path.stem)])
        with pytest.raises(CacheError, match=expected[path]):
            open_column(path.parent).rows(row)
        with pytest.raises(CacheError):
            open_column(path.parent, check_hashes=True)
    assert open_column(flipped.parent).rows(torch.tensor([48])).shape == (1, 3), "opening checks sizes and headers"
    with pytest.raises(CacheError, match="00003.h5: bytes changed"):
        open_column(flipped.parent, check_hashes=True)


def test_promise_06_a_shard_of_another_column_is_refused(copy):
    shutil.copy(copy / "teachers" / "maccs" / "00000.h5", copy / "teachers" / "morgan" / "00000.h5")
    path = copy / "teachers" / "morgan" / store.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["bytes"] = (path.parent / "00000.h5").stat().st_size
    path.write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match="header says producer"):
        open_column(path.parent).rows(torch.tensor([0]))


def test_promise_06_no_flipped_byte_of_a_header_hangs_or_crashes_the_reader(tmp_path):
    arrays = {"embedding": np.ones((5, 3), np.float32), "valid": np.ones(5, np.uint8), "g/values": np.arange(9)}
    expected = {"corpus_fingerprint": "ab", "producer": "cd"}
    shard.write_shard(tmp_path, 0, arrays, {**expected, "shard": 0})
    path, draw = tmp_path / "00000.h5", random.Random(0)
    sound, refused = path.read_bytes(), 0
    for _ in range(400):
        damaged = bytearray(sound)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            shard.map_shard(path, store.checked_header(path, len(sound), 0, expected))
        except CacheError:
            refused += 1
    assert refused > 200


# --------------------------------------------------------------------------------------------------- 7: a full disk


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a file system is not permitted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_promise_07_a_full_disk_is_said_in_words_and_leaves_no_half_shard(small_disk, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "corpus: {class_path: cache_tools.corpus.RdkitSamples, init_args: {limit: 2000}}\n"
        "teachers: {counts: {class_path: cache_tools.teachers.molecule.MorganCounts, init_args: {dim: 1000}}}\n"
        "inputs: {}\nsettings: {shard_rows: 200, workers: 1}\n"
    )
    arguments = "build", "--config", config, "--cache", small_disk
    path = small_disk / "mol" / "teachers" / "counts"

    refused = command_line(*arguments)
    assert refused.returncode not in (0, None)
    assert re.search(r"no space left for \S*counts \([\d,]+ bytes free, [\d,]+ needed\): free some space", refused.stderr)
    assert "Traceback" not in refused.stderr
    assert [each.name for each in path.iterdir()] == ["manifest.json"], "refused before the first shard"

    lie = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12)"
    full = command_line(*arguments, before=lie)
    assert full.returncode not in (0, None)
    assert re.search(r"no space left .*the disk filled up while writing", full.stderr.replace("\n", " "))
    assert "Traceback" not in full.stderr
    made = sorted(path.glob("*.h5"))
    assert 1 <= len(made) < 10, "the disk was to fill up halfway"
    for each in made:
        assert shard.map_shard(each)[0]["embedding"].shape == (200, 1000)
    assert not list(small_disk.rglob("*.tmp")) + list(small_disk.rglob(".*.claim"))

    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    before = {each: each.stat().st_mtime_ns for each in made}
    assert command_line(*arguments).returncode == 0
    assert {each: each.stat().st_mtime_ns for each in made} == before, "finished shards are kept"
    assert (faults(small_disk / "mol"), litter(small_disk / "mol")) == ([], [])


def test_promise_07_a_disk_too_full_for_a_claim_is_said_in_words_too(small_disk):
    folder = build(small_disk, "c", numbers(4), {}, {}, QUIET)
    teacher = Given().knows(np.ones((4, 1)))
    build(small_disk, "c", numbers(4), {"a": teacher}, {}, QUIET)
    (folder / "teachers" / "a" / "00000.h5").unlink()
    with pytest.MonkeyPatch.context() as patch, open(small_disk / "filler", "wb") as filler:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12))
        with contextlib.suppress(OSError):
            while True:
                os.write(filler.fileno(), bytes(4096))
        with pytest.raises(CacheError, match="the disk filled up while writing"):
            build(small_disk, "c", numbers(4), {"a": teacher}, {}, QUIET)
    (small_disk / "filler").unlink()
    build(small_disk, "c", numbers(4), {"a": teacher}, {}, QUIET)
    assert (faults(folder), litter(folder)) == ([], [])


# --------------------------------------------------------------------------------------- 8: only plain local HDF5


def plain_column(tmp_path: Path, dtype: str = "float16") -> Path:
    how = Settings(workers=1, dtype=dtype)
    teacher = Given(3).knows(np.arange(12.0).reshape(4, 3))
    return build(tmp_path, "c", numbers(4), {"a": teacher}, {}, how) / "teachers" / "a"


def external_link(file):
    file["embedding"] = h5py.ExternalLink("/etc/passwd", "/")


def link_to_a_sound_file(file):
    with h5py.File(Path(file.filename).with_name("other"), "w") as other:
        other["embedding"] = np.ones((4, 3), np.float16)
    file["embedding"] = h5py.ExternalLink("other", "embedding")


def soft_link(file):
    file["embedding"] = h5py.SoftLink("/valid")


def external_storage(file):
    file.create_dataset("embedding", (4, 3), "f2", external=[("/etc/passwd", 0, 24)])


def virtual_data(file):
    layout = h5py.VirtualLayout((4, 3), "f2")
    layout[:] = h5py.VirtualSource("/etc/passwd", "embedding", (4, 3), "f2")
    file.create_virtual_dataset("embedding", layout)


def chunks(file):
    file.create_dataset("embedding", data=np.ones((4, 3), np.float16), chunks=(2, 3))


def compression(file):
    file.create_dataset("embedding", data=np.ones((4, 3), np.float16), compression="gzip")


def compact_storage(file):
    kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    kind.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((4, 3))
    h5py.h5d.create(file.id, b"embedding", h5py.h5t.IEEE_F16LE, space, kind)


def a_group_that_contains_itself(file):
    group = file.create_group("embedding")
    group["again"] = group


def text(file):
    file.create_dataset("embedding", (4, 3), h5py.string_dtype())


def short_text(file):
    file.create_dataset("embedding", (4, 3), "S2")


def the_other_byte_order(file):
    file.create_dataset("embedding", data=np.ones((4, 3), ">f2"))


def a_type_without_a_name(file):
    h5py.h5d.create(file.id, b"embedding", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((4, 3)))


def references(file):
    file.create_dataset("embedding", (4, 3), h5py.ref_dtype)


def nothing(file):
    file["embedding"] = h5py.Empty("f2")


def another_rank(file):
    file["embedding"] = np.ones(12, np.float16)


def another_width(file):
    file["embedding"] = np.ones((4, 4), np.float16)


def fewer_rows(file):
    file["embedding"] = np.ones((3, 3), np.float16)


def wider_numbers(file):
    file["embedding"] = np.full((4, 3), 1e9, np.float32)


def whole_numbers(file):
    file["embedding"] = np.ones((4, 3), np.int8)


def sixteen_gigabytes(file):
    file.create_dataset("embedding", (4, 2_000_000_000), "f2")


def more_than_can_be_counted(file):
    file.create_dataset("embedding", (2**33, 2**28), "f2")


def no_data_set(file):
    pass


HOSTILE = [
    (external_link, "link to elsewhere"),
    (link_to_a_sound_file, "link to elsewhere"),
    (soft_link, "link to elsewhere"),
    (external_storage, "not contiguous data inside the file"),
    (virtual_data, "not contiguous data inside the file"),
    (chunks, "not contiguous"),
    (compression, "not contiguous"),
    (compact_storage, "not contiguous"),
    (a_group_that_contains_itself, "nested too deep"),
    (text, "has type object, expected this machine's numbers"),
    (short_text, "expected this machine's numbers"),
    (the_other_byte_order, "expected this machine's numbers"),
    (a_type_without_a_name, "not readable HDF5"),
    (references, "expected this machine's numbers"),
    (nothing, "not contiguous|is null"),
    (another_rank, r"is float16 \(12,\), expected float16 \(4, 3\)"),
    (another_width, r"is float16 \(4, 4\), expected"),
    (fewer_rows, r"is float16 \(3, 3\), expected"),
    (wider_numbers, "is float32 .*, expected float16"),
    (whole_numbers, "is int8 .*, expected float16"),
    (sixteen_gigabytes, "claims bytes beyond the end"),
    (more_than_can_be_counted, "claims bytes beyond the end"),
    (no_data_set, "no data set embedding"),
]


@pytest.mark.parametrize(("forge", "message"), HOSTILE, ids=[forge.__name__ for forge, _ in HOSTILE])
def test_promise_08_a_file_that_is_not_plain_is_refused(tmp_path, forge, message):
    path = plain_column(tmp_path)
    _, header = shard.map_shard(path / "00000.h5")
    with h5py.File(path / "00000.h5", "w", libver="latest") as file:
        file["valid"] = np.ones(4, np.uint8)
        file.attrs.update(header)
        forge(file)
    manifest = json.loads((path / store.MANIFEST).read_text())
    manifest["shards"][0]["bytes"] = (path / "00000.h5").stat().st_size  # the forger forges that too
    (path / store.MANIFEST).write_text(json.dumps(manifest))
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(CacheError, match=message):
            open_column(path).rows(torch.tensor([0]))


@pytest.mark.parametrize("size", [0, 1, 2, None])
def test_promise_08_an_int8_shard_needs_a_scale_for_every_dimension(tmp_path, size):
    path = plain_column(tmp_path, "int8")
    mapped, header = shard.map_shard(path / "00000.h5")
    there = {name: np.array(array) for name, array in mapped.items()}
    (path / "00000.h5").unlink()
    del there["scale"]
    facts = shard.write_shard(path, 0, there if size is None else there | {"scale": np.ones(size, np.float32)}, header)
    manifest = json.loads((path / store.MANIFEST).read_text())
    manifest["shards"][0] |= facts
    (path / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match="no data set scale" if size is None else "scale is float32"):
        open_column(path).rows(torch.tensor([0]))


def test_promise_08_an_attribute_of_another_kind_is_refused(tmp_path):
    path = plain_column(tmp_path)
    with h5py.File(path / "00000.h5", "r+") as file:
        file.attrs["shard"] = np.zeros(3)
    with pytest.raises(CacheError, match="header says shard"):
        store.checked_header(path / "00000.h5", None, 0, {})


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "00001.h5", None, 3])
def test_promise_08_a_manifest_that_names_another_file_is_refused(tmp_path, name):
    victim = tmp_path / "etc" / "passwd"
    victim.parent.mkdir()
    victim.write_text("root")
    path = plain_column(tmp_path)
    for manifest in (path / store.MANIFEST, tmp_path / "c" / store.CORPUS):
        content = json.loads(manifest.read_text())
        content["shards"][0]["file"] = name
        manifest.write_text(json.dumps(content))
    with pytest.raises(CacheError, match="as shard 0, expected 00000.h5"):
        open_column(path)
    with pytest.raises(CacheError, match="as shard 0, expected 00000.h5"):
        column_faults(path, "")
    with pytest.raises(CacheError, match="as shard 0, expected 00000.h5"):
        build(tmp_path, "c", numbers(4), {}, {}, QUIET)
    assert victim.read_text() == "root"


# ----------------------------------------------------------------------------------------------------- 9: no pickle


def forbidden(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        found += [f"import {name}" for name in names if name.split(".")[0] in UNSAFE]
        if isinstance(node, ast.Call):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            called = ast.unparse(node.func)
            if called == "torch.load" and options.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
            if options.get("allow_pickle", "False") != "False" or options.get("trust_remote_code", "False") != "False":
                found.append(ast.unparse(node))
    return found


UNSAFE = {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}


def test_promise_09_no_pickle_is_read_and_no_remote_code_trusted():
    files = [path for package in ("cache_tools", "distill") for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 30
    assert {str(path): bad for path in files if (bad := forbidden(ast.parse(path.read_text())))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_promise_09_the_scan_finds_what_it_looks_for(code):
    assert len(forbidden(ast.parse(code))) == 1


# ------------------------------------------------------------------------------------------ 10: names are numbers


def test_promise_10_ids_never_become_paths(tmp_path):
    ids = [
        "../../up",
        "/etc/passwd",
        "two\nlines",
        "a\r\nb",
        "nul\0nul",
        "🧪 étude",
        "x" * 10_240,
        "..",
        ",\"'",
        " ",
        "a/b",
    ]
    items = {identity: b"1" if row % 3 else b"0" for row, identity in enumerate(ids)}
    usable = np.array([False, True])
    teacher = Given().knows(np.array([[0.0], [5.0]]), usable)
    cache = tmp_path / "deep" / "cache"
    folder = build(cache, "c", Pairs(items), {"a": teacher}, {}, Settings(workers=1, shard_rows=4))
    read = [store.read_items(folder, number) for number in range(3)]
    assert [identity for ids_, _ in read for identity in ids_] == ids
    assert [item for _, items_ in read for item in items_] == list(items.values())
    with open(folder / "teachers" / "a" / "skipped.csv", newline="", encoding="utf-8") as file:
        listed = list(csv.reader(file))[1:]
    assert [row[1] for row in listed] == [identity for identity in ids if items[identity] == b"0"]
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    assert outside == []
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert all(re.fullmatch(r"[0-9]{5}\.h5|manifest\.json|corpus\.json|skipped\.csv", name) for name in names), names


# -------------------------------------------------------------------------------------------- 11: many writers


def test_promise_11_of_two_writers_of_one_shard_one_wins(nursery, tmp_path):
    rounds = 40
    for number in range(rounds):
        (tmp_path / str(number)).mkdir()
    writers = [nursery.start("write_rounds", tmp_path, rounds, me, 3 - me) for me in (1, 2)]
    assert [nursery.wait(writer) for writer in writers] == [0, 0]
    winners = set()
    for number in range(rounds):
        here = tmp_path / str(number)
        mapped, header = shard.map_shard(here / "00007.h5")
        assert (mapped["embedding"] == header["writer"]).all()
        winners.add(header["writer"])
        for me in (1, 2):
            assert json.loads((here / f"facts {me}.json").read_text())["sha256"] == shard.sha256(here / "00007.h5")
        assert not list(here.glob(".*")), "no temporary file"
    assert winners <= {1, 2}


def test_promise_11_four_processes_make_every_shard_once_and_the_same_column(nursery, tmp_path):
    nursery.run("build_texts", tmp_path / "one", tmp_path / "calls of one")
    writers = [nursery.start("build_texts", tmp_path / "four", tmp_path / "calls", 0.03, rank, 4) for rank in range(4)]
    assert [nursery.wait(writer) for writer in writers] == [0] * 4
    calls = (tmp_path / "calls").read_text().split()
    assert sorted(calls) == sorted((tmp_path / "calls of one").read_text().split())
    assert len(set(calls)) == 12
    one, four = (tmp_path / name / "texts" for name in ("one", "four"))
    assert contents(one) == contents(four)
    manifests = [json.loads((folder / "teachers" / "logged" / store.MANIFEST).read_text()) for folder in (one, four)]
    assert manifests[0] == manifests[1], "shards, hashes, and statistics to the last digit"
    assert (faults(four), litter(four)) == ([], [])


def wait_for(what, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_promise_11_the_shard_of_a_killed_writer_is_taken_over(nursery, tmp_path):
    writer = nursery.start("build_texts", tmp_path / "cache", tmp_path / "slow", 60.0)
    wait_for((tmp_path / "slow").exists)  # it is at work on a shard
    folder = tmp_path / "cache" / "texts"
    assert [path.name for path in folder.rglob(".*.claim")] == [".00000.claim"]
    assert nursery.kill(writer) == -signal.SIGKILL
    started = time.monotonic()
    nursery.run("build_texts", tmp_path / "cache", tmp_path / "calls", 0.0)
    assert time.monotonic() - started < 10, "without waiting for a sign of life"
    assert len((tmp_path / "calls").read_text().split()) == 12
    assert (faults(folder), litter(folder)) == ([], [])


@pytest.mark.parametrize(
    ("text", "silent", "taken"),
    [
        ("another-host 1", claims.STALE + 60, True),
        ("another-host 1", claims.STALE - 60, False),
        (f"{socket.gethostname()} {os.getppid()}", 1, False),
        (f"{socket.gethostname()} {os.getppid()}", claims.STALE + 60, True),  # its number is another program's by now
        (f"{socket.gethostname()} 4194399", 1, True),  # no such process
        ("", claims.UNSIGNED + 1, True),  # killed between making and signing it
        ("", 0, False),
    ],
)
def test_promise_11_only_the_claim_of_a_dead_writer_is_taken_over(tmp_path, text, silent, taken):
    path = tmp_path / ".00003.claim"
    path.write_text(text)
    os.utime(path, (time.time() - silent,) * 2)
    with claims.Claims(tmp_path) as mine:
        assert mine.take(3) is taken
        assert path.read_text() == (mine.me if taken else text)
    assert path.exists() is not taken, "one's own claims are given back, others' never"
    assert not list(tmp_path.glob("*.tmp"))


def test_promise_11_a_writer_that_this_command_started_does_not_count_as_alive_when_it_died(monkeypatch):
    started = []

    def start(command, **options):
        started.append(real([sys.executable, "-c", "raise SystemExit(3)"], **options))
        return started[-1]

    real = subprocess.Popen
    monkeypatch.setattr(launch.subprocess, "Popen", start)
    with launch.writers(2, [], 1):
        wait_for(lambda: not shard.running(started[0].pid))


# ------------------------------------------------------------------------------------------------- 12: reading


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_promise_12_every_way_to_start_a_process_reads_the_same_rows(cache, children, method):
    indices = [599, 0, 17, 300, 17]
    columns = [open_column(cache / "mol" / "teachers" / name) for name in ("counts", "morgan")]
    here = [column.rows(torch.tensor(indices)).tolist() for column in columns]  # mapped before the process starts
    with multiprocessing.get_context(method).Pool(1) as pool:
        for column, expected in zip(columns, here, strict=True):
            passed, opened = pool.apply_async(children.rows_of, (column, indices)).get(timeout=60)
            assert passed == opened == expected


def test_promise_12_opening_reads_the_manifest_only_whatever_the_rows(tmp_path):
    path = plain_column(tmp_path)
    manifest = json.loads((path / store.MANIFEST).read_text())
    rows, per_shard = 10_000_000, store.SHARD_ROWS
    one = manifest["shards"][0]
    sizes = [min(per_shard, rows - first) for first in range(0, rows, per_shard)]
    assert len(sizes) == 153
    shards = [one | {"file": shard.file_name(n), "rows": size, "valid": size} for n, size in enumerate(sizes)]
    manifest |= {"rows": rows, "shard_rows": per_shard, "shards": shards}
    (path / store.MANIFEST).write_text(json.dumps(manifest))
    (path / "00000.h5").unlink()
    opened: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, what: opened.append(str(what[0])) if event == "open" and watching else None)
    started = time.monotonic()
    column = open_column(path)
    took = time.monotonic() - started
    watching.clear()
    assert (len(column), opened) == (rows, [str(path / store.MANIFEST)])
    assert took < 0.5
    assert column.valid(torch.tensor([rows - 1])).tolist() == [True]
    with pytest.raises(CacheError, match="00152.h5 is missing"):
        column.rows(torch.tensor([rows - 1]))


# ------------------------------------------------------------------------------------------------- 13: versions


@pytest.mark.parametrize("which", ["column", "corpus", "shard", "items"])
def test_promise_13_a_newer_format_is_refused_in_words(copy, which):
    path = copy / "teachers" / "counts"
    if which in ("column", "corpus"):
        manifest = path / store.MANIFEST if which == "column" else copy / store.CORPUS
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 2}))
    else:
        with h5py.File((path if which == "shard" else copy / "items") / "00000.h5", "r+") as file:
            file.attrs.modify("format_version", 2)
    with pytest.raises(CacheError, match="has format version 2, this version reads 1: upgrade"):
        if which == "items":
            store.read_items(copy, 0)
        else:
            aligned(copy, [path]).rows(torch.tensor([0]))


def test_promise_13_a_cache_of_version_1_is_read():
    """Made by ``tests/fixtures/make_v1.py``."""
    folder = ROOT / "tests" / "fixtures" / "v1" / "mol"
    every = torch.arange(12)
    atoms = torch.tensor([1, 2, 3, 6, 3, 0, 4, 2, 3, 6, 3, 4])  # 0: masked
    expected = torch.stack([atoms, atoms / 4, -atoms], 1)
    valid = atoms > 0
    columns = {path.name: open_column(path, check_hashes=True) for path in store.list_columns(folder)}
    assert set(columns) == {"float16", "float32", "int8", "bits", "graph"}
    for column in columns.values():
        assert column.valid(every).tolist() == valid.tolist()
    for name in ("float16", "float32"):
        assert columns[name].rows(every).dtype == getattr(torch, name)
        assert torch.equal(columns[name].rows(every).float(), expected)
    torch.testing.assert_close(columns["int8"].rows(every)[valid], expected[valid], rtol=0, atol=5 / 254)
    np.testing.assert_allclose(columns["float32"].statistics.mean, [37 / 11, 37 / 44, -37 / 11], rtol=1e-12)
    bits = columns["bits"].rows(torch.tensor([2, 5, 11])).tolist()
    assert ["".join(map(str, row)) for row in bits] == [
        "00000010000110100100",
        "00000000000000000000",
        "01000000000000010101",
    ]
    graph = columns["graph"].rows(torch.tensor([2, 5, 7]))  # CCO, masked, C#N
    assert graph["atoms"].counts.tolist() == [3, 0, 2]
    assert graph["atoms"].values[:, 0].tolist() == [6, 6, 8, 6, 7]
    assert graph["edges"].values.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [0, 1], [1, 0]]
    ids, items = store.read_items(folder, 0)
    assert (items[2], items[5], ids[5]) == (b"CCO", b"no molecule", "e3211b37e1d360cf")
    assert faults(folder) == []


# ------------------------------------------------------------------------------------- all of it, on drawn numbers


@st.composite
def drawn(draw):
    rows, dim = draw(st.integers(1, 24)), draw(st.integers(1, 11))
    dtype = draw(st.sampled_from(["float16", "float32", "int8", "bits"]))
    numbers = st.integers(0, 1) if dtype == "bits" else st.floats(-1e6, 1e6, width=32)
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
