"""Promises 8 to 10: only plain local HDF5, no pickle, names are numbers."""

import ast
import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import QUIET, ROOT, Given, Pairs, edited, litter, numbers, plain_column

from cache_tools import open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.errors import CacheError
from cache_tools.format import shard, store
from cache_tools.format.verify import column_faults
from cache_tools.teachers.molecule import HfMolecule
from cache_tools.teachers.text import HfTextTeacher, SentenceTransformerTeacher

# --------------------------------------------------------------------------------------- 8: only plain local HDF5

ONES = np.ones((4, 3), np.float16)  # what a sound file has


def put(value):
    return lambda file: file.__setitem__("embedding", value)


def made(*arguments, **how):
    return lambda file: file.create_dataset("embedding", *arguments, **how)


def link_to_a_sound_file(file):
    with h5py.File(Path(file.filename).with_name("other"), "w") as other:
        other["embedding"] = ONES
    file["embedding"] = h5py.ExternalLink("other", "embedding")


def virtual_data(file):
    layout = h5py.VirtualLayout((4, 3), "f2")
    layout[:] = h5py.VirtualSource("/etc/passwd", "embedding", (4, 3), "f2")
    file.create_virtual_dataset("embedding", layout)


def compact_storage(file):
    kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    kind.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((4, 3))
    h5py.h5d.create(file.id, b"embedding", h5py.h5t.IEEE_F16LE, space, kind)


def a_group_that_contains_itself(file):
    group = file.create_group("embedding")
    group["again"] = group


def a_type_without_a_name(file):
    h5py.h5d.create(file.id, b"embedding", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((4, 3)))


HOSTILE = {
    "external_link": (put(h5py.ExternalLink("/etc/passwd", "/")), "link to elsewhere"),
    "link_to_a_sound_file": (link_to_a_sound_file, "link to elsewhere"),
    "soft_link": (put(h5py.SoftLink("/valid")), "link to elsewhere"),
    "external_storage": (made((4, 3), "f2", external=[("/etc/passwd", 0, 24)]), "not contiguous data inside the file"),
    "virtual_data": (virtual_data, "not contiguous data inside the file"),
    "chunks": (made(data=ONES, chunks=(2, 3)), "not contiguous"),
    "compression": (made(data=ONES, compression="gzip"), "not contiguous"),
    "compact_storage": (compact_storage, "not contiguous"),
    "a_group_that_contains_itself": (a_group_that_contains_itself, "nested too deep"),
    "text": (made((4, 3), h5py.string_dtype()), "has type object, expected this machine's numbers"),
    "short_text": (made((4, 3), "S2"), "expected this machine's numbers"),
    "the_other_byte_order": (made(data=ONES.astype(">f2")), "expected this machine's numbers"),
    "a_type_without_a_name": (a_type_without_a_name, "not readable HDF5"),
    "references": (made((4, 3), h5py.ref_dtype), "expected this machine's numbers"),
    "nothing": (put(h5py.Empty("f2")), "not contiguous|is null"),
    "another_rank": (put(ONES.ravel()), r"is float16 \(12,\), expected float16 \(4, 3\)"),
    "another_width": (put(np.ones((4, 4), np.float16)), r"is float16 \(4, 4\), expected"),
    "fewer_rows": (put(ONES[:3]), r"is float16 \(3, 3\), expected"),
    "wider_numbers": (put(np.full((4, 3), 1e9, np.float32)), "is float32 .*, expected float16"),
    "whole_numbers": (put(ONES.astype(np.int8)), "is int8 .*, expected float16"),
    "sixteen_gigabytes": (made((4, 2_000_000_000), "f2"), "claims bytes beyond the end"),
    "more_than_can_be_counted": (made((2**33, 2**28), "f2"), "claims bytes beyond the end"),
    "no_data_set": (lambda file: None, "no data set embedding"),
}


@pytest.mark.parametrize(("forge", "message"), HOSTILE.values(), ids=HOSTILE)
def test_promise_08_a_file_that_is_not_plain_is_refused(tmp_path, forge, message):
    path = plain_column(tmp_path)
    _, header = shard.map_shard(path / "00000.h5")
    with h5py.File(path / "00000.h5", "w", libver="latest") as file:
        file["valid"] = np.ones(4, np.uint8)
        file.attrs.update(header)
        forge(file)
    with edited(path / store.MANIFEST) as manifest:
        manifest["shards"][0]["bytes"] = (path / "00000.h5").stat().st_size  # the forger forges that too
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
    with edited(path / store.MANIFEST) as manifest:
        manifest["shards"][0] |= facts
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
    for file in (path / store.MANIFEST, tmp_path / "c" / store.CORPUS):
        with edited(file) as manifest:
            manifest["shards"][0]["file"] = name
    calls = (open_column, path), (column_faults, path, ""), (build, tmp_path, "c", numbers(4), {}, {}, QUIET)
    for function, *arguments in calls:
        with pytest.raises(CacheError, match="as shard 0, expected 00000.h5"):
            function(*arguments)
    assert victim.read_text() == "root"


# ----------------------------------------------------------------------------------------------------- 9: no pickle


UNSAFE = {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}


# what a user wrote into a teacher's arguments or gave to the present command
ASKED = ("False", "self.trust_remote_code", "evaluation.trust_remote_code", "trust_remote_code")


def forbidden(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] != ["UnpicklingError"]:
            names = [str(node.module)]
        found += [f"import {name}" for name in names if name.split(".")[0] in UNSAFE]
        if isinstance(node, ast.Call):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            called = ast.unparse(node.func)
            if called == "torch.load" and options.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
            if options.get("allow_pickle", "False") != "False" or options.get("trust_remote_code", "False") not in ASKED:
                found.append(ast.unparse(node))
    return found


def test_promise_09_no_pickle_is_read_and_no_remote_code_trusted():
    files = [path for package in ("cache_tools", "distill") for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 30
    assert {str(path): bad for path in files if (bad := forbidden(ast.parse(path.read_text())))} == {}
    for teacher in (HfTextTeacher, HfMolecule, SentenceTransformerTeacher):
        assert teacher("any").init_args["trust_remote_code"] is False


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
    assert litter(folder) == [], "names are numbers"
