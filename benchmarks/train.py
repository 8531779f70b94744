"""Training: what teachers cost beside the student alone, ranks beside threads, a cache beside live teachers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from PIL import Image

from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.base import Items
from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.inputs import MoleculeGraph, Pixels
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.gnn import PretrainedGnn
from distill.data.module import DistillData
from distill.heads import GaussianHead
from distill.students.base import Student
from distill.students.image import ImageStudent
from distill.students.molecule import GraphStudent
from distill.training.distiller import Distiller
from measure import Row
from online import OnlineData

WIDTHS = (300, 300, 300, 300, 300, 512, 217, 167)  # those of mol-pretrained, descriptors and MACCS
SKIP = 3  # steps before the clock starts
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
    """Seconds of the steps after the first ones, and the share of them that the host waited for data."""

    seconds = waited = 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == SKIP:
            _wait()
            self.start, self.before = time.perf_counter(), len(trainer.profiler.recorded_durations[WAITING])

    def on_train_end(self, trainer, pl_module):
        _wait()
        self.seconds = time.perf_counter() - self.start
        self.waited = sum(trainer.profiler.recorded_durations[WAITING][self.before :]) / self.seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fit(
    data: DistillData, student: Student, kind: type[Distiller] = Distiller, steps: int = 12, **options
) -> tuple[float, float]:
    """Seconds per step of a real fit, and the share of them that the host waited for data."""
    torch.manual_seed(0)
    clock = Clock()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    limits = {"max_steps": steps, "limit_val_batches": 0, "gradient_clip_val": 1.0, "use_distributed_sampler": False}
    trainer = Trainer(callbacks=[clock], profiler=Silent(), **limits, **quiet, **options)
    trainer.fit(kind(data.statistics, student, GaussianHead), data)
    return clock.seconds / (steps - SKIP), clock.waited


def beside(ours: Callable[[], float], peer: Callable[[], float], turns: int, target: str = "") -> Row:
    """Median seconds per step of both, and the median over turns of peer / ours."""
    pairs = [(ours(), peer()) for _ in range(turns)]
    mine, theirs = (float(np.median(column)) for column in zip(*pairs, strict=True))
    return Row(f"{mine * 1e3:.1f} ms", f"{theirs * 1e3:.1f} ms", float(np.median([b / a for a, b in pairs])), target)


def molecules(folder: Path, rows: int) -> Path:
    teachers = {f"t{number}": Molecules(dim) for number, dim in enumerate(WIDTHS)}
    return build(folder, "molecules", RdkitSamples(limit=rows), teachers, {"graph": MoleculeGraph()}, Settings(workers=1))


def heads_on_a_cpu(folder: Path) -> dict[str, Row]:
    corpus = molecules(folder, 6000)

    def step(kind: type[Distiller]) -> float:
        return fit(DistillData(corpus, batch_size=256), GraphStudent(5, 300), kind, accelerator="cpu")[0]

    name = "training with 8 teachers against the student alone: GINE 5 x 300, batch 256, CPU"
    return {name: beside(lambda: step(Distiller), lambda: step(Alone), 5, ">= 0.85")}


def heads_on_a_gpu(folder: Path) -> dict[str, Row]:
    """The same on a GPU, and what the GPU waits for data at most: what the host waits."""
    graphs = molecules(folder / "gpu", 15_000)
    random, pictures = np.random.default_rng(0), []
    for _ in range(1536):
        file = BytesIO()
        Image.fromarray(random.integers(0, 256, (28, 28, 3), np.uint8)).resize((224, 224)).save(file, "PNG")
        pictures.append(file.getvalue())
    teachers = {f"t{number}": Images(dim) for number, dim in enumerate(WIDTHS)}
    images = build(folder, "images", Items(pictures, "image"), teachers, {"pixels": Pixels(224)}, Settings(workers=8))
    cases = {
        "ViT-S/16, 224 px, bf16, batch 256": (
            lambda: DistillData(images, batch_size=256, held_out=64),
            lambda: ImageStudent("vit_small_patch16_224", pretrained=False),
            ">= 0.95",
        ),
        "GINE 10 x 512, bf16, batch 2048": (
            lambda: DistillData(graphs, batch_size=2048, held_out=64),
            lambda: GraphStudent(10, 512),
            ">= 0.85",
        ),
    }
    rows = {}
    for name, (data, student, target) in cases.items():
        waits = []

        def step(kind: type[Distiller], data=data, student=student, waits=waits) -> float:
            seconds, waited = fit(
                data(), student(), kind, 63, accelerator="gpu", devices=1, precision="bf16-mixed", max_epochs=-1
            )
            waits += [waited] * (kind is Distiller)
            return seconds

        rows[f"training with 8 teachers against the student alone: {name}, GPU"] = beside(
            lambda step=step: step(Distiller), lambda step=step: step(Alone), 3, target
        )
        rows[f"share of the time that the host waits for data: {name}, GPU"] = Row(
            "", "", float(np.median(waits)), "< 0.03"
        )
    return rows


def online(folder: Path, weights: Path) -> dict[str, Row]:
    """Epoch time with live teachers over that with cached ones: four pretrained networks, one small student."""
    teachers = {name: PretrainedGnn(str(weights / f"{name}.safetensors")) for name in GNNS}
    settings = Settings(workers=1)
    corpus = build(folder, "online", RdkitSamples(limit=3000), teachers, {"graph": MoleculeGraph()}, settings)

    def step(kind: type[DistillData]) -> float:
        return fit(kind(corpus, batch_size=128), GraphStudent(3, 128), steps=9, accelerator="auto", devices=1)[0]

    name = "cached teachers against live ones: 4 pretrained GNNs, GINE 3 x 128, batch 128"
    return {name: beside(lambda: step(DistillData), lambda: step(OnlineData), 3, ">= 5")}


def ranks(folder: Path) -> dict[str, Row]:
    """Two gloo processes of one thread each against one process of two threads: the same global batches."""
    corpus = molecules(folder / "ranks", 6000)

    def step(devices: int) -> float:
        threads = {"OMP_NUM_THREADS": str(2 // devices)}
        command = [sys.executable, __file__, str(corpus), str(devices)]
        done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout.splitlines()[-1]))

    name = "2 gloo ranks against 1 process with 2 threads: GINE 5 x 300, batch 256"
    return {name: beside(lambda: step(2), lambda: step(1), 3, ">= 0.9")}


def everything(folder: Path) -> dict[str, Row]:
    rows = heads_on_a_cpu(folder) | ranks(folder)
    weights = Path(os.environ.get("WEIGHTS", Path(__file__).parents[2] / "shared" / "weights" / "mol"))
    if (weights / f"{GNNS[0]}.safetensors").is_file():
        rows |= online(folder, weights)
    return rows | (heads_on_a_gpu(folder) if torch.cuda.is_available() else {})


def one_rank(corpus: Path, devices: int) -> None:
    """What :func:`ranks` starts."""
    options = {"devices": devices, "strategy": "ddp"} if devices > 1 else {"devices": 1}
    seconds, _ = fit(DistillData(corpus, batch_size=256), GraphStudent(5, 300), accelerator="cpu", **options)
    print(json.dumps(seconds))


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]), int(sys.argv[2]))
