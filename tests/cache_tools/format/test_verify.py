"""``verify`` finds whatever changed in a cache: shards, manifests, lists of masked rows."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache_tools import open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.base import Items
from cache_tools.errors import BadItem, CacheError
from cache_tools.format import store
from cache_tools.format.verify import cache_faults, corpus_faults
from cache_tools.inputs.base import Featuriser
from cache_tools.teachers.base import Teacher

ITEMS = [str(number) if number % 4 else f"bad {number}" for number in range(1, 14)]


class Numbers(Teacher):
    modality = "text"
    dim = 3

    def prepare(self, item):
        if not item.isdigit():
            raise BadItem("no number")
        return int(item)

    def embed(self, items):
        return np.array([[item, item / 7, 1] for item in items])


class Digits(Featuriser):
    modality = "text"
    fields = {"digits": ("int16", ())}

    def featurise(self, item):
        return {"digits": np.frombuffer(item.encode(), np.uint8)}


def make(cache: Path, **columns: str) -> Path:
    """A cache of 13 texts in shards of 5, of which each column of numbers masks three."""
    corpus, one = Items(ITEMS, "text"), Settings(workers=1, shard_rows=5)
    folder = build(cache, "c", corpus, {"numbers": Numbers()}, {"digits": Digits()}, one)
    return build(cache, "c", corpus, {"small": Numbers()}, {}, Settings(workers=1, shard_rows=5, dtype="int8")) and folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made")).parent


@pytest.fixture
def cache(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "cache"))


def old(path: Path, **changes) -> None:
    """Rewrite a manifest as version 0.1 did, without a hash, with ``changes``."""
    content = json.loads(path.read_text())
    content.pop(store.HASH)
    path.write_text(json.dumps(content | changes, indent=1))


def test_a_sound_cache_has_no_faults_with_hashes_of_its_manifests_and_without(cache):
    manifests = [*cache.rglob(store.MANIFEST), *cache.rglob(store.CORPUS)]
    assert len(manifests) == 4
    assert all(store.HASH in json.loads(path.read_text()) for path in manifests)
    assert list(cache_faults(cache)) == []
    for path in manifests:
        old(path)
    assert list(cache_faults(cache)) == []


def test_no_flipped_bit_of_any_file_is_silent(cache):
    shutil.rmtree(cache / "c/teachers/small")  # one column of each kind is enough
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".h5", ".json", ".csv"}
    draw, silent = random.Random(0), []
    for number in range(200):
        path = files[number % len(files)]
        sound = path.read_bytes()
        damaged, place, bit = bytearray(sound), draw.randrange(len(sound)), draw.randrange(8)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        if next(cache_faults(cache), None) is None:
            silent.append((path, place, bit))
        path.write_bytes(sound)
    assert silent == []
    assert list(cache_faults(cache)) == []


COLUMN, CORPUS = f"c/teachers/numbers/{store.MANIFEST}", f"c/{store.CORPUS}"


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (COLUMN, {"shards": []}, "lists 0 shards, expected 3 for 13 rows in shards of 5"),
        (COLUMN, {"shards": slice(2)}, "lists 2 shards, expected 3"),
        (COLUMN, {"shards": slice(2), "rows": 10}, "10 rows in shards of 5, its corpus has 13 in shards of 5"),
        (COLUMN, {"rows": 12}, "shard 2 has 3 rows, expected 2 of 12 in shards of 5"),
        (COLUMN, {"statistics": {"count": 10, "mean": [1.0, 2, 3], "var": [1, 1, 1]}}, "statistics are not those of its"),
        (COLUMN, {"valid": 5}, "valid of shard 0 is 5, the shard has 4"),
        (COLUMN, {"dtype of a shard": "float32"}, "dtype of shard 0 is float32, the shard has float16"),
        (COLUMN, {"dim": 4}, "mean has 3 numbers, expected 4"),
        (COLUMN, {"corpus_fingerprint": "0"}, "was made from another corpus"),
        (COLUMN, {"finished": False}, "run the same build again"),
        (CORPUS, {"shards": slice(2)}, "lists 2 shards, expected 3"),
        (CORPUS, {"shards": slice(2), "rows": 10}, "its rows are not those of its fingerprint"),
        (CORPUS, {"views": 2}, None),
        (COLUMN, {"requested_dtype": "float32"}, None),
    ],
)
def test_a_manifest_that_was_changed_is_found_also_one_without_a_hash(cache, file, change, words, hashed):
    path = cache / file
    content = json.loads(path.read_text())
    if isinstance(change.get("shards"), slice):
        change = change | {"shards": content["shards"][change["shards"]]}
    for key, of_shard in (("valid", "valid"), ("dtype of a shard", "dtype")):
        if key in change:
            first, *others = content["shards"]
            change = {"shards": [first | {of_shard: change[key]}, *others]}
    if not hashed:
        content.pop(store.HASH)
    path.write_text(json.dumps(content | change, indent=1))
    faults = "\n".join(cache_faults(cache))
    assert str(path if file == CORPUS else path.parent) in faults or (words is None and not hashed)
    assert words is None or words in faults
    if hashed and change.keys() & {"views", "requested_dtype", "statistics", "valid"}:
        assert f"{path}: bytes changed since it was written" in faults


def test_a_manifest_that_lost_the_name_of_its_hash_is_found(cache):
    for path in (cache / COLUMN, cache / CORPUS):
        sound = path.read_text()
        path.write_text(sound.replace(store.HASH, "manifest_sha257"))
        assert len(list(cache_faults(cache))) == 1
        path.write_text(sound)


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "unneeded"])
def test_a_list_of_masked_rows_that_is_not_the_shards_is_found_and_a_build_writes_it_anew(cache, damage):
    folder = cache / "c"
    path = folder / ("inputs/digits" if damage == "unneeded" else "teachers/numbers") / "skipped.csv"
    sound = path.read_bytes() if damage != "unneeded" else b""
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"changed": sound.replace(b"no number", b"a number", 1), "cut": sound[:20]}.get(damage, b"row\n"))
    [fault] = cache_faults(cache)
    assert f"{path} is not the list" in fault
    path.unlink(missing_ok=True)
    make(cache)
    assert list(cache_faults(cache)) == []
    assert (path.read_bytes() if path.exists() else b"") == sound


@pytest.mark.parametrize("file", [COLUMN, CORPUS])
@pytest.mark.parametrize("damage", ["loop", "nowhere", "folder", "device", "missing"])
def test_a_manifest_that_is_no_file_any_more_is_found_and_a_build_mends_what_it_safely_can(cache, file, damage):
    path = cache / file
    path.unlink()
    if damage == "loop":
        path.symlink_to(path.name)
    elif damage == "nowhere":
        path.symlink_to("nowhere")
    elif damage == "folder":
        path.mkdir()
    elif damage == "device":
        path.symlink_to("/dev/zero")
    faults = "\n".join(cache_faults(cache))
    words = {
        "loop": "circle",
        "nowhere": "is a link to a file that is missing",
        "folder": "is a folder",
        "device": "is a device",
    }
    assert str(path.parent) in faults
    assert words.get(damage, f"no {path.name}") in faults
    if damage != "missing":
        with pytest.raises(CacheError, match=words[damage]):
            make(cache)
        path.rmdir() if damage == "folder" else path.unlink()
    make(cache)
    assert list(cache_faults(cache)) == []


def test_a_fault_of_one_corpus_does_not_hide_those_of_the_next(cache, tmp_path):
    build(cache, "d", Items(["1", "2"], "text"), {"numbers": Numbers()}, {}, Settings(workers=1))
    (cache / CORPUS).write_text("{")
    (cache / "d/teachers/numbers" / store.MANIFEST).write_text("[]")
    (cache / "d/items/00000.h5").unlink()
    faults = list(cache_faults(cache))
    assert [any(words in fault for fault in faults) for words in ("is not JSON", "is no manifest", "is missing")] == [
        True
    ] * 3


def test_a_corpus_behind_a_link_is_verified_and_a_circle_of_links_ends(cache, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "c").symlink_to(cache / "c")
    (cache / "c" / "again").symlink_to(cache)
    assert store.corpora(tmp_path / "linked") == [tmp_path / "linked" / "c"]
    (cache / "c/items/00001.h5").unlink()
    fault, *_ = cache_faults(tmp_path / "linked")
    assert f"{tmp_path}/linked/c/items/00001.h5 is missing" in fault


def test_items_that_are_not_the_fingerprints_are_found(cache, tmp_path):
    other = build(tmp_path / "other", "c", Items(ITEMS[::-1], "text"), {}, {}, Settings(workers=1, shard_rows=5))
    fingerprint = store.read_corpus(other).fingerprint
    old(cache / CORPUS, fingerprint=fingerprint)
    assert any("header says corpus_fingerprint" in fault for fault in corpus_faults(cache / "c"))


def test_opening_with_hashes_checks_the_manifests_own(cache):
    path = cache / COLUMN
    path.write_text(path.read_text().replace('"class_path": "', '"class_path": "x'))
    assert len(open_column(path.parent)) == 13
    with pytest.raises(CacheError, match="bytes changed since it was written"):
        open_column(path.parent, check_hashes=True)
