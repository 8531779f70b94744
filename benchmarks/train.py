"""Training: what teachers cost beside the student alone, ranks beside threads, a cache beside live teachers.

`python benchmarks/train.py CORPUS DEVICES SIZE` fits with so many devices and prints the seconds of a step: :func:`ranks`
starts it in processes of its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import SimpleProfiler

from cache_tools import Featuriser, Items, MoleculeGraph, RdkitSamples, Settings, Teacher, build
from cache_tools.teachers.gnn import PretrainedGnn
from distill.data.module import DistillData
from distill.heads import GaussianHead, Head, MseDensityHead
from distill.students.base import Student
from distill.training.distiller import Distiller
from distill.training.precision import AUTO, HALF, choose_precision
from measure import Row, Setup, benchmark, beside, needed
from online import OnlineData

WIDTHS = (128, 256, 300, 300, 512, 512, 768, 1024)  # 3,800 together
TEXT_WIDTHS = (256, 384, 384)
VOCABULARY = 30_522  # BERT's
WAITING = "[_TrainingEpochLoop].train_dataloader_next"
GNNS = ("gcn_contextpred", "gcn_supervised", "graphsage_contextpred", "graphsage_supervised")


class Noise(Teacher):
    """Random embeddings: training costs the same whatever they say."""

    def __init__(self, dim: int):
        self.dim = dim

    def prepare(self, item):
        return item

    def embed(self, items):
        return np.random.default_rng(len(items[0])).normal(size=(len(items), self.dim)).astype(np.float32)


class Molecules(Noise):
    modality = "molecule"


class Images(Noise):
    modality = "image"


class Texts(Noise):
    modality = "text"


class Tokens(Featuriser):
    """Tokens of a text that is a number: 8 to 40 of them, whose frequencies follow Zipf's law."""

    modality = "text"
    fields: ClassVar = {"tokens": ("int32", ())}
    padded = "tokens"

    def featurise(self, item):
        random = np.random.default_rng(int(item))
        return {"tokens": random.zipf(1.2, random.integers(8, 41)).clip(0, VOCABULARY - 1).astype(np.int32)}


class Alone(Distiller):
    """The same student, the same loader, no head: what training costs at least."""

    def training_step(self, batch, batch_idx):
        facts = torch.zeros(6, len(self.teachers), device=self.device)
        return {"loss": self(batch.inputs).float().square().mean(), "facts": facts}


class Silent(SimpleProfiler):
    """Keeps durations, prints none."""

    def describe(self) -> None:
        pass


class Clock(Callback):
    """Seconds of the steps after the first ones, and the share of them that the host waited for data.

    Args:
        first: steps before the clock starts.
    """

    seconds = waited = 0.0

    def __init__(self, first: int):
        self.first = first

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.first:
            _wait()
            self.start, self.waits = time.perf_counter(), len(trainer.profiler.recorded_durations[WAITING])

    def on_train_end(self, trainer, pl_module):
        _wait()
        self.seconds = time.perf_counter() - self.start
        self.waited = sum(trainer.profiler.recorded_durations[WAITING][self.waits :]) / self.seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fit(
    setup: Setup,
    data: DistillData,
    student: Student,
    kind: Callable[..., Distiller] = Distiller,
    steps: int = 12,
    also: Sequence[Callback] = (),
    head: Callable[..., Head] = GaussianHead,
    **options,
) -> tuple[float, float]:
    """Seconds per step of a real fit, and the share of them that the host waited for data."""
    torch.manual_seed(0)
    steps, first = setup.size(steps, 3), setup.size(3, 1)
    clock = Clock(first)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    limits = {"max_steps": steps, "limit_val_batches": 0, "gradient_clip_val": 1.0, "use_distributed_sampler": False}
    trainer = Trainer(callbacks=[clock, *also], profiler=Silent(), **limits, **quiet, **options)
    trainer.fit(kind(data.statistics, student, head), data)
    return clock.seconds / (trainer.global_step - first), clock.waited


def molecules(setup: Setup, name: str, rows: int) -> Path:
    teachers = {f"t{number}": Molecules(dim) for number, dim in enumerate(WIDTHS)}
    corpus = RdkitSamples(limit=setup.size(rows, 200))
    return build(setup.folder, name, corpus, teachers, {"graph": MoleculeGraph()}, Settings(workers=1))


def graph_student(setup: Setup, layers: int, width: int) -> Student:
    from distill.students.molecule import GraphStudent  # here: benchmarks of images need no torch_geometric

    return GraphStudent(setup.size(layers, 2), setup.size(width, 16))


@benchmark("training with 8 teachers against the student alone: GINE 5 x 300, batch 256, CPU")
def heads_on_a_cpu(setup: Setup) -> Iterator[Row]:
    """In the precision that `distill fit` takes, both sides."""
    corpus = molecules(setup, "train", 6000)

    def step(kind: type[Distiller]) -> float:
        data, student = DistillData(corpus, batch_size=setup.size(256, 32)), graph_student(setup, 5, 300)
        precision, _ = choose_precision(AUTO, student, "cpu", None)
        return fit(setup, data, student, kind, accelerator="cpu", precision=precision)[0]

    yield beside(lambda: step(Distiller), lambda: step(Alone), setup.size(5, 1), ">= 0.93")


@benchmark(
    "training with 3 teachers against the student alone: static text student, 30,522 x 256, batch 256, CPU",
    "the same with linear heads of squared error, in bf16",
)
def heads_on_a_static_student(setup: Setup) -> Iterator[Row]:
    from distill.students.text import StaticStudent

    items = Items([str(number) for number in range(setup.size(20_000, 200))], "text")
    teachers = {f"t{number}": Texts(dim) for number, dim in enumerate(TEXT_WIDTHS)}
    corpus = build(setup.folder, "texts", items, teachers, {"tokens": Tokens()}, Settings(workers=1))

    def step(kind: type[Distiller], **options) -> float:
        data = DistillData(corpus, batch_size=setup.size(256, 32))
        student = StaticStudent(VOCABULARY, setup.size(256, 16))
        return fit(setup, data, student, kind, 70, accelerator="cpu", **options)[0]

    linear = {"head": partial(MseDensityHead, layers=0), "precision": HALF}
    for options in ({}, linear):
        yield beside(partial(step, Distiller, **options), partial(step, Alone, **options), setup.size(5, 1), ">= 0.8")


@benchmark("cached teachers against live ones: 4 pretrained GNNs, GINE 3 x 128, batch 128")
def online(setup: Setup) -> Iterator[Row]:
    """Epoch time with live teachers over that with cached ones: four pretrained networks, one small student."""
    weights = needed("WEIGHTS", *(f"mol/{name}.safetensors" for name in GNNS))
    teachers = {path.stem: PretrainedGnn(str(path)) for path in weights}
    corpus = RdkitSamples(limit=setup.size(3000, 100))
    path = build(setup.folder, "online", corpus, teachers, {"graph": MoleculeGraph()}, Settings(workers=1))

    def step(kind: type[DistillData]) -> float:
        data = kind(path, batch_size=setup.size(128, 16))
        return fit(setup, data, graph_student(setup, 3, 128), steps=9, accelerator="auto", devices=1)[0]

    yield beside(lambda: step(DistillData), lambda: step(OnlineData), setup.size(3, 1), ">= 5")


@benchmark("2 gloo ranks against 1 process with 2 threads: GINE 5 x 300, batch 256")
def ranks(setup: Setup) -> Iterator[Row]:
    """Two gloo processes of one thread each against one process of two threads: the same global batches."""
    corpus = molecules(setup, "train", 6000)

    def step(devices: int) -> float:
        threads = {"OMP_NUM_THREADS": str(2 // devices)}
        command = [sys.executable, __file__, str(corpus), str(devices), "tiny" if setup.tiny else "real"]
        done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        return float(json.loads(done.stdout.splitlines()[-1]))

    yield beside(lambda: step(2), lambda: step(1), setup.size(3, 1), ">= 0.9")


def one_rank(setup: Setup, corpus: Path, devices: int) -> None:
    """What :func:`ranks` starts."""
    options = {"devices": devices, "strategy": "ddp"} if devices > 1 else {"devices": 1}
    data = DistillData(corpus, batch_size=setup.size(256, 32))
    seconds, _ = fit(setup, data, graph_student(setup, 5, 300), accelerator="cpu", **options)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # two ranks that print at once mix their lines
        print(json.dumps(seconds))


BENCHMARKS = (heads_on_a_cpu, heads_on_a_static_student, ranks, online)


if __name__ == "__main__":
    one_rank(Setup(Path(), tiny=sys.argv[3] == "tiny"), Path(sys.argv[1]), int(sys.argv[2]))
