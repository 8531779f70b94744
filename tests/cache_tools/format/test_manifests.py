"""A manifest whose keys are missing, of another type or of an impossible size is refused in words, by every command."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache_tools import aligned, open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.cli.check import list_, verify
from cache_tools.corpora.base import Items
from cache_tools.errors import CacheError
from cache_tools.format import store
from cache_tools.inputs.base import Featuriser
from cache_tools.teachers.base import Teacher

TEXTS, HOW = Items([str(number) for number in range(7)], "text"), Settings(workers=1, shard_rows=4)


class Numbers(Teacher):
    modality = "text"
    dim = 2

    def embed(self, items):
        return np.array([[int(item), 1] for item in items])


class Digits(Featuriser):
    modality = "text"
    fields = {"digits": ("int16", ())}

    def featurise(self, item):
        return {"digits": np.arange(int(item))}


def make(cache: Path) -> Path:
    return build(cache, "c", TEXTS, {"a": Numbers()}, {"b": Digits()}, HOW)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made")).parent


@pytest.fixture
def cache(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "cache"))


def read(cache: Path) -> None:
    together = aligned(cache / "c", ["teachers/a", "inputs/b"])
    together.rows(np.arange(len(together)))
    together.valid(np.arange(len(together)))
    store.read_item(cache / "c", 6)


def read_alone(cache: Path) -> None:
    for name in ("teachers/a", "inputs/b"):
        open_column(cache / "c" / name).rows(np.arange(7))


COMMANDS = [read, read_alone, list_, verify, make]
MANIFESTS = [f"c/teachers/a/{store.MANIFEST}", f"c/inputs/b/{store.MANIFEST}", f"c/{store.CORPUS}"]
WRONG = [None, -1, 0, 1.5, "x", "", [], {}, True, 2**70, float("nan"), [[0]], 10**15]


def refusals(cache: Path) -> list[str]:
    """What every command says; any other error than a CacheError ends the test."""
    said = []
    for command in COMMANDS:
        try:
            command(cache)
        except CacheError as error:
            said.append(str(error))
        except IndexError as error:  # the rows that this test asks for
            assert re.search(r"rows 0 to -?\d+ exist", str(error))
    return said


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"a":' * 200_000, "{", "", "null", "[]", "\x00", "\udcff", '"x"', "9" * 5000]
)
@pytest.mark.parametrize("file", MANIFESTS[1:])
def test_what_is_no_json_object_is_refused_in_words(cache, file, content):
    (cache / file).write_bytes(content.encode(errors="surrogateescape"))
    said = refusals(cache)
    assert len(said) >= 3
    assert all(str(cache / file) in line or "were not checked" in line for line in said)
    assert any("is not JSON" in line or "is no manifest" in line for line in said)


@pytest.mark.parametrize(
    ("file", "key", "value", "words"),
    [
        (0, "shard_rows", 0, "shard_rows is 0, expected a whole number above 0"),
        (2, "shard_rows", 0, "shard_rows is 0, expected a whole number above 0"),
        (0, "shard_rows", "4", "shard_rows is '4', expected a whole number above 0"),
        (0, "rows", 7.0, "rows is 7.0, expected a whole number"),
        (2, "rows", None, "rows is None, expected a whole number"),
        (0, "dim", True, "dim is True, expected a whole number above 0"),
        (0, "kind", "sparse", "kind is 'sparse', expected dense, bits or ragged"),
        (0, "producer", [], "producer is [], expected a mapping"),
        (
            0,
            "statistics",
            {"count": 7, "mean": [1, "a"], "var": [0, 0]},
            "statistics: mean is [1, 'a'], expected finite numbers",
        ),
        (0, "dtype", "object", "dtype is 'object', expected float16, float32, int8 or uint8"),
        (1, "fields", {"digits": ["object"]}, "expected name -> [type of its numbers, sizes ...]"),
        (1, "finished", "yes", "finished is 'yes', expected true or false"),
        (2, "shards", {}, "shards is {}, expected a list"),
        (2, "shards", [None, None], "it lists None as shard 0, expected 00000.h5"),
        (2, "colour", "red", "colour is no key of a corpus"),
    ],
)
def test_the_key_is_named_with_what_was_expected_and_what_to_do(cache, file, key, value, words):
    path = cache / MANIFESTS[file]
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: value}))
    for command in COMMANDS if file < 2 else (read, verify, make):
        with pytest.raises(CacheError, match=re.escape(words)) as caught:
            command(cache)
        assert f"{path}: " in str(caught.value)
        assert "delete this file and run the same build again" in str(caught.value)
    if value is not None and key != "colour":
        del content[key]
        path.write_text(json.dumps(content))
        with pytest.raises(CacheError, match=f"{key} is (missing|None), expected"):
            read(cache)


def places(value: object, place: tuple = ()) -> list[tuple]:
    """Every place in JSON content."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(deeper for key, child in inner for deeper in places(child, (*place, key)))]


def test_no_wrong_value_at_any_place_ends_in_a_traceback_or_takes_the_process_down(made, tmp_path):
    draw, refused = random.Random(0), 0
    for number in range(60):
        cache = Path(shutil.copytree(made, tmp_path / str(number)))
        path = cache / draw.choice(MANIFESTS)
        content = json.loads(path.read_text())
        content.pop(store.HASH)
        *outer, last = draw.choice(places(content)[1:])
        holder = content
        for key in outer:
            holder = holder[key]
        if draw.random() < 0.2 and isinstance(holder, dict):
            del holder[last]
        else:
            holder[last] = draw.choice(WRONG)
        path.write_text(json.dumps(content))
        refused += bool(refusals(cache))
        shutil.rmtree(cache)
    assert refused > 30
