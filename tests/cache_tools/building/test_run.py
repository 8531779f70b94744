import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_tools import open_column
from cache_tools.building import launch
from cache_tools.building.column import Settings
from cache_tools.building.corpus import add_column, build, build_like
from cache_tools.corpora.base import Items
from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.errors import BadItem, CacheError, TeacherError
from cache_tools.format import files, shard, store
from cache_tools.format.verify import column_faults, corpus_faults
from cache_tools.inputs import Featuriser, MoleculeGraph
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.molecule import Maccs, MorganBits

QUIET = Settings(workers=1)


class Lengths(Teacher):
    """Counts its calls."""

    modality = "text"
    dim = 2

    def __init__(self, factor: float = 1.0):
        self.factor = factor
        self.calls = 0

    def embed(self, items):
        self.calls += 1
        return np.array([[len(item) * self.factor, 1.0] for item in items])


def corpus(count: int = 10) -> Items:
    return Items(["x" * n for n in range(1, count + 1)], "text")


def test_running_again_makes_only_what_is_missing(tmp_path):
    first = Lengths()
    build(tmp_path, "c", corpus(), {"a": first}, {}, QUIET)
    again, new = Lengths(), Lengths(2.0)
    build(tmp_path, "c", corpus(), {"a": again, "b": new}, {}, QUIET)
    assert (first.calls, again.calls, new.calls) == (1, 0, 1)


def test_a_lost_shard_is_made_again_and_only_that(tmp_path):
    settings = Settings(workers=1, shard_rows=4)
    folder = build(tmp_path, "c", corpus(), {"a": Lengths()}, {}, settings)
    before = files.sha256(folder / "teachers" / "a" / "00001.h5")
    (folder / "teachers" / "a" / "00001.h5").unlink()
    teacher = Lengths()
    build(tmp_path, "c", corpus(), {"a": teacher}, {}, settings)
    assert teacher.calls == 1
    assert files.sha256(folder / "teachers" / "a" / "00001.h5") == before
    assert column_faults(folder / "teachers" / "a", store.read_corpus(folder).fingerprint) == []


class Letters(Featuriser):
    modality = "text"
    fields = {"letters": ("uint8", ())}

    def featurise(self, item):
        if "?" in item:
            raise BadItem("a question")
        return {"letters": np.frombuffer(item.encode(), np.uint8)}


class LetterMean(Teacher):
    """Reads what :class:`Letters` makes, and counts how often it has to make that itself."""

    modality = "text"
    dim = 1

    def __init__(self):
        self.made = 0

    def reads(self):
        return Letters()

    def process_item(self, item):
        self.made += 1
        return Letters().process_item(item)

    def embed(self, items):
        return np.array([[item["letters"].mean()] for item in items])


def test_what_a_column_of_the_corpus_holds_is_not_made_again_for_a_teacher_that_reads_it(tmp_path):
    texts = Items([f"a text {number}{'?' * (number % 4 == 1)}" for number in range(11)], "text")
    settings, folders = Settings(workers=1, batch_size=2, shard_rows=4), {}
    for name, inputs in (("alone", {}), ("beside", {"letters": Letters()})):
        teacher = LetterMean()
        folders[name] = build(tmp_path, name, texts, {"mean": teacher}, inputs, settings) / "teachers" / "mean"
        assert teacher.made == (len(texts.items) if name == "alone" else 3), "those that the column lacks, for the reason"
    for file in ("00000.h5", "00001.h5", "00002.h5", "skipped.csv", "manifest.json"):
        assert (folders["alone"] / file).read_bytes() == (folders["beside"] / file).read_bytes()


def test_another_teacher_under_the_same_name_is_refused(tmp_path):
    build(tmp_path, "c", corpus(), {"a": Lengths(1.0)}, {}, QUIET)
    with pytest.raises(CacheError, match=r"was made with factor = 1.0, now it is 2.0: give the new one another name"):
        build(tmp_path, "c", corpus(), {"a": Lengths(2.0)}, {}, QUIET)


def test_another_corpus_under_the_same_name_is_refused(tmp_path):
    build(tmp_path, "c", corpus(), {}, {}, QUIET)
    with pytest.raises(CacheError, match="holds another corpus"):
        build(tmp_path, "c", corpus(11), {}, {}, QUIET)


def test_a_teacher_of_another_modality_is_refused(tmp_path):
    with pytest.raises(CacheError, match="reads molecules, the corpus .* holds texts"):
        build(tmp_path, "c", corpus(), {"a": Maccs()}, {}, QUIET)


@pytest.mark.parametrize(
    ("embedding", "message"),
    [([[1.0, np.nan]], "NaN or an infinity; nothing written"), ([[1.0]], r"shape \(1, 1\), expected \(1, 2\)")],
)
def test_a_bad_embedding_stops_the_build_and_leaves_no_shard(tmp_path, embedding, message):
    class Bad(Lengths):
        def embed(self, items):
            return np.array(embedding)

    with pytest.raises(TeacherError, match=message):
        build(tmp_path, "c", Items(["x"], "text"), {"a": Bad()}, {}, QUIET)
    assert [path.name for path in (tmp_path / "c" / "teachers" / "a").iterdir()] == ["manifest.json"], "no shard, no claim"


def test_inputs_are_finished_before_the_first_teacher_begins(tmp_path):
    class Failing(Maccs):
        def embed(self, items):
            raise TeacherError("no such weights")

    with pytest.raises(TeacherError, match="no such weights"):
        build(tmp_path, "mol", RdkitSamples(limit=20), {"a": Failing()}, {"graph": MoleculeGraph()}, Settings(workers=1))
    assert len(open_column(tmp_path / "mol" / "inputs" / "graph")) == 20


def test_values_beyond_float16_are_kept_in_float32(tmp_path):
    folder = build(tmp_path, "c", corpus(), {"a": Lengths(1e5)}, {}, QUIET)
    column = open_column(folder / "teachers" / "a")
    assert column.dtype == torch.float32
    assert column.rows(torch.tensor([9])).tolist() == [[1e6, 1.0]]


def test_a_broken_smiles_is_masked_and_listed(tmp_path):
    items = Items(["CCO", "not a molecule", "CCN"], "molecule")
    folder = build(tmp_path, "c", items, {"maccs": Maccs()}, {"graph": MoleculeGraph()}, QUIET)
    for path in store.list_columns(folder):
        column = open_column(path)
        assert column.valid(torch.arange(3)).tolist() == [True, False, True]
        listed = list(csv.DictReader((path / "skipped.csv").read_text().splitlines()))
        assert [(row["row"], row["id"]) for row in listed] == [("1", items.read()[0][1])]
    assert open_column(folder / "teachers" / "maccs").statistics.count == 2


def test_a_corpus_without_a_usable_row_is_an_error(tmp_path):
    with pytest.raises(CacheError, match="not one row could be embedded"):
        build(tmp_path, "c", Items(["nothing"], "molecule"), {"maccs": Maccs()}, {}, QUIET)


def test_worker_processes_give_the_same_column(cache, tmp_path):
    folder = build(tmp_path, "mol", RdkitSamples(limit=600), {"maccs": Maccs()}, {}, Settings(batch_size=50, workers=2))
    one = cache / "mol" / "teachers" / "maccs" / "00000.h5"
    assert np.array_equal(
        shard.map_shard(folder / "teachers" / "maccs" / "00000.h5")[0]["embedding"], shard.map_shard(one)[0]["embedding"]
    )


def test_build_like_embeds_other_items_with_the_same_producers(cache, tmp_path):
    columns = [cache / "mol" / "teachers" / "morgan", cache / "mol" / "inputs" / "graph"]
    [folder] = build_like(columns, tmp_path, [Items(["CCO", "CCCl"], "molecule")], QUIET)
    teacher = MorganBits(256)
    expected = teacher.embed([teacher.prepare(b"CCO"), teacher.prepare(b"CCCl")])
    np.testing.assert_array_equal(open_column(folder / "teachers" / "morgan").rows(torch.arange(2)), expected)


def test_a_killed_build_goes_on_and_leaves_no_bad_shard(tmp_path):
    """kill -9 of the real command, then the same command again."""
    config = tmp_path / "c.yaml"
    config.write_text(
        "corpus: {class_path: cache_tools.corpora.molecule.RdkitSamples, init_args: {limit: 4000}}\n"
        "teachers: {pairs: {class_path: cache_tools.teachers.molecule.AtomPairs}}\ninputs: {}\n"
        "settings: {shard_rows: 100, workers: 1, batch_size: 50}\n"
    )
    command = [
        sys.executable,
        "-m",
        "cache_tools.cli",
        "build",
        "--config",
        str(config),
        "--cache",
        str(tmp_path / "cache"),
    ]
    folder = tmp_path / "cache" / "mol" / "teachers" / "pairs"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.h5"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*.h5")}
    assert 5 <= len(done) < 40, "killed too early or too late to mean anything"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished shard was made again"
    assert column_faults(folder, store.read_corpus(tmp_path / "cache" / "mol").fingerprint) == []
    assert not list(Path(folder).glob("*.tmp"))


def test_a_lost_shard_of_the_corpus_is_written_again(tmp_path):
    folder = build(tmp_path, "c", corpus(), {"a": Lengths()}, {}, QUIET)
    (folder / "items" / "00000.h5").unlink()
    build(tmp_path, "c", corpus(), {"a": Lengths()}, {}, QUIET)
    assert corpus_faults(folder) == []


class Weighted(Lengths):
    """A teacher whose weights lie in a file."""

    def __init__(self, weights: Path):
        super().__init__()
        self.weights = weights

    def fingerprint(self):
        return {"weights": Path(self.weights).read_text()}


def test_a_task_is_never_embedded_by_a_teacher_that_changed(tmp_path):
    weights = tmp_path / "weights.txt"
    weights.write_text("old")
    settings = Settings(workers=1, dtype="float32")
    columns = store.list_columns(build(tmp_path, "c", corpus(), {"a": Weighted(weights)}, {}, settings))
    [folder] = build_like(columns, tmp_path / "tasks", [corpus(3)], QUIET)
    assert open_column(folder / "teachers" / "a").dtype == torch.float32, "as the corpus's column"
    weights.unlink()
    build_like(columns, tmp_path / "tasks", [corpus(3)], QUIET)  # what is there needs no teacher
    weights.write_text("new")
    with pytest.raises(CacheError, match="was made with weights = 'old', now it is 'new'"):
        build_like(columns, tmp_path / "tasks", [corpus(4)], QUIET)


def test_one_more_column_of_a_stored_corpus_equals_one_of_the_build(tmp_path):
    folder = build(tmp_path, "c", corpus(), {"a": Lengths()}, {}, QUIET)
    path = add_column(folder, "b", Lengths(), QUIET)
    assert path == folder / "teachers" / "b"
    assert (path / "00000.h5").read_bytes() == (folder / "teachers" / "a" / "00000.h5").read_bytes()
    with pytest.raises(CacheError, match="reads molecules, the corpus .* holds texts"):
        add_column(folder, "c", Maccs(), QUIET)
    with pytest.raises(CacheError, match="cannot be called '../a'"):
        add_column(folder, "../a", Lengths(), QUIET)


def test_a_column_in_the_folder_of_another_kind_is_refused(tmp_path):
    folder = build(tmp_path, "c", Items(["CCO"], "molecule"), {"maccs": Maccs()}, {}, QUIET)
    (folder / "inputs").mkdir()
    (folder / "teachers" / "maccs").rename(folder / "inputs" / "maccs")
    with pytest.raises(CacheError, match="Maccs makes columns of teachers, not of inputs"):
        build_like(store.list_columns(folder), tmp_path / "tasks", [Items(["CCN"], "molecule")], QUIET)


def test_an_error_stops_the_writers_that_this_command_started(monkeypatch):
    started, popen = [], subprocess.Popen

    def start(command, **options):
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    monkeypatch.setattr(launch.subprocess, "Popen", start)
    with pytest.raises(RuntimeError, match="the first writer failed"), launch.writers(3, [], 1):
        raise RuntimeError("the first writer failed")
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2


def test_a_column_needs_a_plain_name(tmp_path):
    with pytest.raises(CacheError, match="cannot be called '../a'"):
        build(tmp_path, "c", corpus(), {"../a": Lengths()}, {}, QUIET)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", ".hidden"])
def test_a_corpus_never_leaves_its_cache_by_its_name(name, tmp_path):
    with pytest.raises(CacheError, match="cannot be called"):
        build(tmp_path / "cache", name, Items(["CCO"], "molecule"), {}, {})
    assert not list(tmp_path.rglob("*")), "nothing was written"
