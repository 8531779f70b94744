import copy
import itertools
import json
import multiprocessing
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache_tools import Column, open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import add_column, build
from cache_tools.cli import main as distill_cache
from cache_tools.cli.transfer import export
from cache_tools.corpora.base import Items
from cache_tools.errors import CacheError, ConfigError
from cache_tools.format.store import read_manifest
from cache_tools.inputs import MoleculeGraph
from cache_tools.teachers.molecule import Maccs, MorganBits, MorganCounts
from distill.data.module import CorpusSource, DistillData
from distill.heads import MseHead
from distill.students.molecule import GraphStudent
from distill.training.distiller import Distiller
from online import OnlineData


@pytest.fixture(scope="module")
def two(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two corpora: one knows counts, maccs and morgan, the other maccs alone."""
    items = Items(["C" * n + "O" for n in range(1, 60)] + ["broken"], "molecule")
    settings = Settings(shard_rows=16, workers=1)
    other = build(tmp_path_factory.mktemp("other"), "c", items, {"maccs": Maccs()}, {"graph": MoleculeGraph()}, settings)
    return [cache / "mol", other]


def mixed(two: list[Path], **options) -> DistillData:
    corpora = [CorpusSource(two[0], weight=1.0), CorpusSource(two[1], weight=1.0)]
    return DistillData(corpora=corpora, batch_size=32, held_out=10, **options)


@pytest.mark.parametrize("manifests", ["of this version", "of version 0.1"])
def test_what_no_build_made_teaches_only_when_it_is_named(tmp_path, caplog, manifests):
    items = Items(["C" * n + "O" for n in range(1, 60)], "molecule")
    corpus = build(tmp_path, "c", items, {"maccs": Maccs()}, {"graph": MoleculeGraph()}, Settings(workers=1))
    export(corpus / "teachers" / "maccs", tmp_path / "maccs.npy")
    distill_cache(["import", "--corpus", str(corpus), "--name", "again", "--embeddings", str(tmp_path / "maccs.npy")])
    if manifests == "of this version":
        add_column(corpus, "letters", MorganBits(16), Settings(workers=1))
    else:
        for path in corpus.glob("teachers/*/manifest.json"):
            path.write_text(json.dumps(read_manifest(path) | {"made_by": None}).replace('"made_by": null, ', ""))
            assert "made_by" not in path.read_text()
    caplog.clear()
    assert list(DistillData(corpus, batch_size=20, held_out=10).statistics) == ["maccs"]
    others = "again, letters" if manifests == "of this version" else "again"
    (line,) = [record.message for record in caplog.records if record.name == "distill.data.columns"]
    assert line == f"{corpus}: not made by a build, so a teacher only when data.teachers names it: {others}"
    named = DistillData(corpus, teachers=["again", "maccs"], batch_size=20, held_out=10)
    assert list(named.statistics) == ["again", "maccs"]
    shutil.rmtree(corpus / "teachers" / "maccs")
    with pytest.raises(CacheError, match=f"no teacher column that a build made: .*; it has: {others}"):
        DistillData(corpus, batch_size=20, held_out=10)


def test_rows_that_a_teacher_has_not_seen_are_masked(two):
    batch = next(iter(mixed(two).train_dataloader()))
    assert set(batch.corpora.tolist()) == {0, 1}
    assert torch.equal(batch.valid["counts"], batch.corpora == 0)
    assert batch.valid["maccs"].all()
    assert not batch.targets["counts"][batch.corpora == 1].any()
    assert len(batch.inputs["graph"]["atoms"].counts) == len(batch.rows) == len(batch.targets["maccs"])
    mine = batch.corpora == 1
    carbons = batch.inputs["graph"]["atoms"].counts[mine]
    assert torch.equal(carbons, batch.rows[mine] + 2), "inputs and rows stay aligned through the mixture"


def test_a_loss_does_not_depend_on_what_stands_in_masked_rows(two):
    data = mixed(two)
    torch.manual_seed(0)
    model = Distiller(data.statistics, GraphStudent(layers=1, width=8, dim=8)).eval()
    batch = next(iter(data.train_dataloader()))
    losses, valid, _, _ = model.losses(batch)
    expected = model.objective(losses, valid, model.weights)
    batch.targets["counts"][batch.corpora == 1] = torch.nan
    losses, valid, _, _ = model.losses(batch)
    assert torch.equal(model.objective(losses, valid, model.weights), expected)


def test_a_mixture_trains(two, trainer):
    data = mixed(two)
    fitting = trainer(max_epochs=2)
    student = GraphStudent(layers=1, width=16, dim=16)
    model = Distiller(data.statistics, student, head=MseHead, student_lr=3e-3, head_lr=3e-3)
    before = fitting.validate(model, data, verbose=False)[0]["val/loss"]
    fitting.fit(model, data)
    assert fitting.validate(model, data, verbose=False)[0]["val/loss"] < before


def test_live_teachers_say_what_the_cache_holds(two):
    corpora = [CorpusSource(each) for each in two]
    batch = next(iter(DistillData(corpora=corpora, batch_size=40, held_out=10).train_dataloader()))
    live = copy.deepcopy(batch)
    live.targets = {name: torch.zeros_like(target) for name, target in live.targets.items()}
    live = OnlineData(corpora=corpora, batch_size=40, held_out=10).on_after_batch_transfer(live, 0)
    assert batch.targets["maccs"].any()
    for name, target in batch.targets.items():
        torch.testing.assert_close(live.targets[name].float(), target.float(), rtol=1e-3, atol=1e-6)  # stored in float16


def test_statistics_of_a_teacher_are_merged_over_corpora(two):
    data = mixed(two)
    trained = [source.training(np.arange(len(source))) for source in data.sources]
    rows = torch.cat(
        [
            part.teachers["maccs"].rows(rows[rows < (600, 59)[k]]).double()
            for k, (part, rows) in enumerate(zip(data.corpora, trained, strict=True))
        ]
    )
    torch.testing.assert_close(torch.from_numpy(data.statistics["maccs"].mean), rows.mean(0))
    torch.testing.assert_close(torch.from_numpy(data.statistics["maccs"].var), rows.var(0, correction=0))
    assert list(data.statistics) == ["counts", "maccs", "morgan"]


def test_one_name_for_two_teachers_is_refused(two, tmp_path):
    items = Items(["CCO", "CCN", "CCC"], "molecule")
    other = build(tmp_path, "c", items, {"morgan": MorganBits(128)}, {"graph": MoleculeGraph()})
    with pytest.raises(CacheError, match="made by different teachers: give one another name"):
        DistillData(corpora=[CorpusSource(two[0]), CorpusSource(other)], batch_size=1, held_out=1)


def test_weights_and_names_are_checked(two):
    with pytest.raises(ConfigError, match="the weight of .* is -1, expected a finite number above 0"):
        DistillData(corpora=[CorpusSource(two[0], weight=-1)], batch_size=8, held_out=8)
    with pytest.raises(ConfigError, match="name teachers inside each of data.corpora"):
        DistillData(corpora=[CorpusSource(two[0])], teachers=["maccs"])
    with pytest.raises(ConfigError, match="data.block_rows is -1, expected at least 0"):
        DistillData(two[0], block_rows=-1)


@pytest.mark.parametrize("options", [{}, {"block_rows": 64, "window_blocks": 2}])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_rows_of_the_order_whoever_gathers_them(two, options, workers):
    data = mixed(two, num_workers=workers, **options)
    loader = data.train_dataloader()
    batches = list(itertools.islice(loader, 12))
    assert len(batches) == 12
    for batch, step in zip(batches, loader.batch_sampler, strict=False):
        for number, rows in enumerate(step.rows):
            kept = rows[data.corpora[number].inputs.valid(rows).numpy()]
            assert batch.rows[batch.corpora == number].tolist() == kept.tolist()
            expected = data.corpora[number].teachers["maccs"].rows(kept)
            assert torch.equal(batch.targets["maccs"][batch.corpora == number], expected)


def test_an_error_in_the_gathering_thread_reaches_the_training(tmp_path):
    folder = build(
        tmp_path,
        "c",
        Items(["C" * n for n in range(1, 50)], "molecule"),
        {"counts": MorganCounts(32)},
        {"graph": MoleculeGraph()},
    )
    data = DistillData(folder, batch_size=8, held_out=8)
    (folder / "inputs" / "graph" / "00000.h5").unlink()
    with pytest.raises(CacheError, match="missing: run the build again"):
        list(data.train_dataloader())


def test_block_shuffle_lets_go_of_what_it_has_read(two, monkeypatch):
    released = []
    monkeypatch.setattr(Column, "release", lambda column: released.append(column.name))
    data = DistillData(two[1], batch_size=2, held_out=8, block_rows=4, window_blocks=2)
    list(data.train_dataloader())
    assert released == ["graph", "maccs"] * 7, "60 rows are 15 blocks in 8 windows"


def test_rows_are_right_again_after_letting_go(two):
    for name in ("maccs", "graph"):
        column = open_column(two[1] / ("inputs" if name == "graph" else "teachers") / name)
        rows = torch.tensor([40, 3, 58, 17, 3])
        before = column.rows(rows)
        column.release()
        torch.testing.assert_close(column.rows(rows), before, rtol=0, atol=0)


def test_threads_that_read_and_let_go_at_once_get_the_right_rows(two):
    for name in ("teachers/maccs", "inputs/graph"):
        column = open_column(two[1] / name)
        rows = torch.arange(59)
        expected = open_column(two[1] / name).rows(rows)
        over = threading.Event()

        def let_go(column=column, over=over) -> None:
            while not over.is_set():
                column.release()

        thread = threading.Thread(target=let_go)
        thread.start()
        try:
            for _ in range(300):
                torch.testing.assert_close(column.rows(rows), expected, rtol=0, atol=0)
        finally:
            over.set()
            thread.join()


def test_a_forked_child_reads_although_the_parent_used_many_threads(cache):
    column = open_column(cache / "mol" / "teachers" / "counts")
    rows = torch.randint(600, (20_000,))
    expected = column.rows(rows).double().sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(column.rows(rows).numpy().astype("f8").sum()))
    child.start()
    assert queue.get(timeout=30) == pytest.approx(expected)
    child.join()


def test_row_numbers_are_whole_numbers(two):
    column = open_column(two[1] / "teachers" / "maccs")
    for wrong in (
        torch.zeros(60, dtype=torch.bool),
        torch.tensor([1.5]),
        torch.tensor(3),
        torch.zeros(2, 2, dtype=torch.long),
    ):
        with pytest.raises(TypeError, match=r"expected row numbers of shape \(batch,\)"):
            column.rows(wrong)
    assert len(column.rows([])) == 0


def test_what_does_not_divide_among_processes_is_refused(two):
    data = DistillData(two[0], batch_size=9, held_out=1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)
    with pytest.raises(ConfigError, match="data.batch_size is 9, expected a multiple of the 2 processes"):
        data.train_dataloader()
    data.batch_size = 8
    with pytest.raises(ConfigError, match="data.held_out is 1, expected one row for each of the 2 processes"):
        data.val_dataloader()


def test_hundreds_of_mapped_shards_need_no_file_descriptors(tmp_path):
    items = Items(["C" * n for n in range(1, 101)], "molecule")
    folder = build(tmp_path, "c", items, {"maccs": Maccs()}, {"graph": MoleculeGraph()}, Settings(shard_rows=1, workers=1))
    before = len(os.listdir("/proc/self/fd"))
    data = DistillData(folder, batch_size=8, held_out=8)
    column = data.corpora[0].teachers["maccs"]
    column.rows(torch.arange(100))
    data.corpora[0].inputs.rows(torch.arange(100))
    assert not column._stacks["embedding"].missing
    assert len(os.listdir("/proc/self/fd")) <= before + 5
