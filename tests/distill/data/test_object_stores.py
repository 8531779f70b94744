"""Training from an object store: the options of a run, and a real server that answers as S3 does."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from cache_tools import CacheError, ConfigError, MoleculeGraph, RdkitSamples, Settings, build
from cache_tools.cli.push import push
from cache_tools.teachers.molecule import MorganCounts
from distill.data.module import DistillData
from distill.heads import MseHead
from distill.students.molecule import GraphStudent
from distill.training.distiller import Distiller

ROWS = 30  # of a shard
BLOCKS = {"batch_size": 20, "held_out": 30, "block_rows": ROWS, "window_blocks": 2, "held_out_blocks": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """600 molecules in 20 shards."""
    teachers = {"counts": MorganCounts(2048)}  # large enough to be mapped
    settings = Settings(shard_rows=ROWS, workers=1)
    return build(
        tmp_path_factory.mktemp("c"), "mol", RdkitSamples(limit=600), teachers, {"graph": MoleculeGraph()}, settings
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The options of a store that speaks S3's protocol, with a bucket."""
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file, pytest.MonkeyPatch.context() as patch:
        start = [sys.executable, "-c", "from moto.server import main; main(['-p', '0'])"]
        process = subprocess.Popen(start, stderr=file)
        try:
            while not (address := re.search(r"http://127[\d.:]+", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(key, "testing")
            fsspec.filesystem("s3", endpoint_url=address[0]).mkdir("bucket")
            yield {"endpoint_url": address[0]}
        finally:
            process.kill()
            process.wait()


class Diary(Callback):
    """Keeps the loss of every step, and kills its own process before one."""

    def __init__(self, path: Path, kill_at: int = -1):
        self.path, self.kill_at = path, kill_at

    def on_train_batch_start(self, trainer, module, batch, number):
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        taken = sum(path.stat().st_size for path in self.path.parent.rglob("*.h5"))
        with open(self.path, "a") as file:
            file.write(json.dumps([trainer.global_step, batch.rows.tolist(), outputs["loss"].item(), taken]) + "\n")


def fit(place: str | Path, folder: Path, kill_at: int = -1, **options) -> None:
    folder.mkdir(exist_ok=True)
    data = DistillData(place, **BLOCKS, **options)
    torch.manual_seed(0)
    model = Distiller(data.statistics, GraphStudent(layers=1, width=8, dim=8), head=MseHead)
    saved = folder / "last.ckpt"
    keeper = ModelCheckpoint(folder, save_last=True, every_n_train_steps=10, save_top_k=0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[Diary(folder / "diary.jsonl", kill_at), keeper],
        num_sanity_val_steps=0,
        **quiet,
    )
    trainer.fit(model, data, ckpt_path=saved if saved.exists() else None)


def diary(folder: Path) -> dict[int, list]:
    """Step -> rows and loss; a step that was made twice came to the same."""
    steps: dict[int, list] = {}
    for step, *rest, _ in map(json.loads, (folder / "diary.jsonl").read_text().splitlines()):
        assert steps.setdefault(step, rest) == rest
    return steps


def most(folder: Path) -> int:
    """The most bytes of shards at the end of a step."""
    return max(json.loads(line)[-1] for line in (folder / "diary.jsonl").read_text().splitlines())


def test_a_run_from_s3_that_is_killed_ends_as_an_undisturbed_local_one(corpus, server, tmp_path):
    push(corpus, "s3://bucket/cache/mol", server)
    options = {"local": tmp_path / "s3", "local_limit": "0.1MB", "storage_options": server}
    total = sum(path.stat().st_size for path in corpus.rglob("[ti]*/*/*.h5"))
    with pytest.raises(ConfigError, match="expected at least ([0-9,]+)") as refused:
        DistillData("s3://bucket/cache/mol", **BLOCKS, **options)
    needed = int(re.search("at least ([0-9,]+)", str(refused.value))[1].replace(",", ""))
    assert needed < total / 2, "the limit bites"
    options["local_limit"] = f"{needed}B"
    child = multiprocessing.get_context("fork").Process(
        target=fit, args=("s3://bucket/cache/mol", tmp_path / "s3", 43), kwargs=options
    )
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    fit("s3://bucket/cache/mol", tmp_path / "s3", **options)
    fit(corpus, tmp_path / "whole")
    assert len(diary(tmp_path / "whole")) == 2 * 28
    assert diary(tmp_path / "s3") == diary(tmp_path / "whole")
    assert most(tmp_path / "s3") <= needed
    assert not list((tmp_path / "s3").rglob("*.tmp"))


@pytest.fixture
def bucket(corpus) -> str:
    """The corpus in the memory of this process."""
    fsspec.filesystem("memory").store.clear()
    push(corpus, "memory://bucket/mol")
    return "memory://bucket/mol"


def loader(place: str | Path, rank: int = 0, ranks: int = 1, **options):
    data = DistillData(place, **BLOCKS | options)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0))))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, fit_loop=loop, training=True, current_epoch=0)
    return data.train_dataloader()


def fetched(folder: Path) -> set[int]:
    """The shards of the teacher that a local folder holds."""
    return {int(path.stem) for path in folder.glob("*/teachers/counts/*.h5")}


def test_a_node_downloads_its_part_alone(bucket, tmp_path):
    """Of 20 shards: its 10, one that both share, and the 2 of rows held out."""
    nodes = [tmp_path / str(node) for node in range(2)]
    batches = [list(loader(bucket, node, 2, groups=2, local=place)) for node, place in enumerate(nodes)]
    assert [len(each) for each in batches] == [28, 28]
    assert all(len(fetched(place)) <= 10 + 1 + 2 for place in nodes)
    assert set.union(*map(fetched, nodes)) == set(range(20))
    rows = [{row for batch in each for row in batch.rows.tolist()} for each in batches]
    assert max(rows[0]) < min(rows[1])
    whole = tmp_path / "whole"
    list(loader(bucket, 0, 2, local=whole))
    assert fetched(whole) == set(range(20)), "without groups a node needs them all"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_local_corpus_whoever_gathers_them(corpus, bucket, tmp_path, workers):
    place = corpus.as_uri() if workers else bucket  # a worker process does not see this one's memory
    remote = loader(place, local=tmp_path, local_limit="1.3MB", num_workers=workers)
    for mine, theirs in zip(loader(corpus), remote, strict=True):
        assert torch.equal(mine.rows, theirs.rows)
        assert torch.equal(mine.targets["counts"], theirs.targets["counts"])
        assert torch.equal(mine.inputs["graph"]["atoms"].values, theirs.inputs["graph"]["atoms"].values)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_rows": 0}, "data.block_rows is 0, expected a multiple of the 30 rows of a shard"),
        ({"block_rows": 45}, "data.block_rows is 45, expected a multiple of the 30 rows of a shard"),
        ({"held_out": 31}, "data.held_out 31 is more than half of 60 rows: raise data.held_out_blocks"),
        ({"local_limit": "12"}, "data.local_limit is 12, expected a size such as 200GB"),
        ({"local": None}, "memory://bucket/mol is in an object store: name a folder .* in data.local"),
        ({"storage_options": {"client": {"token": "x"}}}, "a credential stands in"),
        ({"groups": 2}, "data.groups is 2, expected a divisor of the 1 processes"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(bucket, tmp_path, options, words):
    with pytest.raises((ConfigError, CacheError), match=words):
        loader(bucket, **{"local": tmp_path, **options})


def test_blocks_of_rows_held_out_need_blocks(corpus):
    with pytest.raises(ConfigError, match="data.held_out_blocks is 2, but data.block_rows is 0"):
        loader(corpus, block_rows=0)


def test_a_run_does_not_go_on_with_other_groups(corpus):
    data, other = DistillData(corpus, **BLOCKS), DistillData(corpus, **BLOCKS, groups=2)
    other.trainer = SimpleNamespace(global_rank=0, world_size=2, state=SimpleNamespace(fn="fit"))
    with pytest.raises(ConfigError, match="the checkpoint's batches come from .*'groups': 2"):
        other.load_state_dict(data.state_dict())
