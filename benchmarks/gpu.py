"""Measure the rows that need a GPU, in six minutes at most: `python benchmarks/gpu.py [FILE]`.

Needed are torch, lightning, h5py, jsonargparse, timm and rdkit, with what they bring: no data, no weights, no network. The
rows of GINE need torch_geometric, and are left out without it. All columns are synthetic. Each row is printed as soon as it
was measured, and written to FILE as JSON. Without FILE it is $OUT/gpu.json, or gpu.json in the present folder. A row that
fails stops no other. A row that would begin too late is left out, and a line says so.

These rows have not been run on a GPU yet. On a bare machine, with the wheels of packages that it lacks in a folder:

    pip install --no-index --no-deps --target site WHEELS/*.whl
    PYTHONPATH=site:. PYTHONUNBUFFERED=1 timeout 420 python benchmarks/gpu.py gpu.json
"""

import io
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image
from safetensors.torch import save_file
from torch.autograd import DeviceType

from cache_tools import Corpus, Items, Pixels, Settings, build, start_console
from cache_tools.teachers.backbones import create_timm
from cache_tools.teachers.image import TimmTeacher
from distill.data.batch import to_device
from distill.data.columns import open_corpus
from distill.data.module import DistillData
from distill.heads import GaussianHead
from distill.students.base import Student
from distill.students.image import ImageStudent
from distill.training.distiller import Distiller
from measure import Benchmark, LeftOut, Row, Setup, benchmark, beside, compare, met, run_all, seconds
from train import WIDTHS, Alone, Images, fit, graph_student, molecules

LIMIT = 360.0  # seconds of all rows together

LONGEST = 60.0  # of one benchmark: none begins with less than this left

FIT = {"seconds": 6}  # a fit stops after so long, whatever it did

COMPILED = {"seconds": 45}  # the first steps compile

PRECISION = "bf16-mixed"


class NoisePixels(Pixels):
    """Pixels drawn with the item, a number, as the seed: nothing is decoded, so that a column is made in seconds."""

    def prepare(self, item):
        return int(item)

    def featurise(self, item):
        return {"pixels": np.random.default_rng(item).integers(0, 256, (1, self.size, self.size, 3), np.uint8)}


class Photographs(Corpus):
    """JPEG images of noise, each one several times under its own ids.

    Args:
        rows: of the corpus.
        size: pixels along each side.
    """

    modality, source = "image", "noise"

    def __init__(self, rows: int, size: int):
        random, self.count, self.images = np.random.default_rng(0), rows, []
        for _ in range(min(rows, 512)):
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (28, 28, 3), np.uint8)).resize((size, size)).save(file, "JPEG")
            self.images.append(file.getvalue())

    def pairs(self):
        return ((str(row), self.images[row % len(self.images)]) for row in range(self.count))


class Busy(Callback):
    """Seconds of each step in which the device computes: the union of the times of its kernels.

    Args:
        first: steps before it begins.
    """

    seconds = 0.0

    def __init__(self, first: int):
        self.first = first

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.first:
            self.profile = torch.profiler.profile()
            self.profile.__enter__()

    def on_train_end(self, trainer, pl_module):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.profile.__exit__(None, None, None)
        device = DeviceType.CUDA if torch.cuda.is_available() else DeviceType.CPU
        events = [each for each in self.profile.events() if each.device_type == device and not each.is_user_annotation]
        spans = [each.time_range for each in events]
        busy = union((span.start, span.end) for span in spans)
        self.seconds = busy / 1e6 / (trainer.global_step - self.first)  # the profiler counts microseconds


def union(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, -np.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def needs_a_gpu(setup: Setup) -> None:
    """A tiny run takes any device.

    Raises:
        LeftOut: without a GPU.
    """
    if not (setup.tiny or torch.cuda.is_available()):
        raise LeftOut("needs a GPU")


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def options(bound: dict[str, int] = FIT, precision: str = PRECISION) -> dict:
    return {"accelerator": "auto", "devices": 1, "max_epochs": -1, "precision": precision, "max_time": bound}


def pictures(setup: Setup) -> Path:
    """A corpus of pixels of noise and 8 teachers; made once in a folder."""
    corpus = Items([str(number).encode() for number in range(setup.size(6144, 80))], "image")
    teachers = {f"t{number}": Images(dim) for number, dim in enumerate(WIDTHS)}
    inputs = {"pixels": NoisePixels(setup.size(224, 32))}
    return build(setup.folder, "pixels", corpus, teachers, inputs, Settings(workers=1))


def vision_student(setup: Setup) -> ImageStudent:
    return ImageStudent("test_vit" if setup.tiny else "vit_small_patch16_224", pretrained=False)


def on_a_gpu(
    name: str, corpus: Callable[[Setup], Path], student: Callable[[Setup], Student], batch: int, target: str
) -> Benchmark:
    """What 8 teachers cost beside the student alone, and who waits for whom."""

    @benchmark(
        f"training with 8 teachers against the student alone: {name}, GPU",
        f"training with 8 teachers against 1: {name}, GPU",
        f"share of the time that the host waits for data: {name}, GPU",
        f"share of the time that the GPU is idle: {name}, GPU",
        f"rows/s that the CPU reads against rows/s that the GPU takes: {name}, GPU",
    )
    def rows(setup: Setup) -> Iterator[Row]:
        needs_a_gpu(setup)
        path, size, waits, steps = corpus(setup), setup.size(batch, 16), [], []

        def data(teachers: list[str] | None = None) -> DistillData:
            return DistillData(path, teachers=teachers, batch_size=size, held_out=setup.size(64, 16))

        def step(kind: type[Distiller] = Distiller, teachers: list[str] | None = None) -> float:
            taken, waited = fit(setup, data(teachers), student(setup), kind, 63, **options())
            if kind is Distiller and not teachers:
                waits.append(waited)
                steps.append(taken)
            return taken

        turns = setup.size(2, 1)
        yield beside(step, lambda: step(Alone), turns, target)
        yield beside(step, lambda: step(teachers=["t0"]), 1)
        yield Row("", "", float(np.median(waits)), "< 0.03")
        busy = Busy(setup.size(3, 1))
        fit(setup, data(), student(setup), steps=setup.size(23, 3), also=[busy], **options())
        taken = float(np.median(steps))
        shown = f"{taken * 1e3:.1f} ms a step", f"{busy.seconds * 1e3:.1f} ms busy"
        yield Row(*shown, max(0.0, 1 - busy.seconds / taken), "< 0.05")
        loader, count = data().train_dataloader(), setup.size(40, 3)
        read = size * count / seconds(lambda: [None for _ in islice(epochs(loader), count)])
        yield Row(f"{read:,.0f} rows/s", f"{size / busy.seconds:,.0f} rows/s", read * busy.seconds / size, ">= 1.5")

    return rows


def epochs(loader: Iterable) -> Iterator:
    """The batches of a loader, epoch after epoch."""
    while True:
        yield from loader


def graphs(setup: Setup) -> Path:
    """A corpus of molecular graphs and 8 teachers.

    Raises:
        LeftOut: without the library of the student of graphs.
    """
    if find_spec("torch_geometric") is None:
        raise LeftOut("needs torch_geometric")
    return molecules(setup, "graphs", 15_000)


images_on_a_gpu = on_a_gpu("ViT-S/16, 224 px, bf16, batch 256", pictures, vision_student, 256, ">= 0.95")
graphs_on_a_gpu = on_a_gpu(
    "GINE 10 x 512, bf16, batch 2048",
    graphs,
    lambda setup: graph_student(setup, 10, 512),
    2048,
    ">= 0.85",
)


@benchmark(
    "training in bf16 against float32: ViT-S/16, 224 px, 8 teachers, GPU",
    "training with torch.compile against eager: ViT-S/16, 224 px, bf16, 8 teachers, GPU",
)
def ways_to_compute(setup: Setup) -> Iterator[Row]:
    needs_a_gpu(setup)
    path = pictures(setup)

    def step(bound: dict[str, int] = FIT, precision: str = PRECISION, **ways) -> float:
        data = DistillData(path, batch_size=setup.size(256, 16), held_out=setup.size(64, 16))
        kind = partial(Distiller, **ways)
        return fit(setup, data, vision_student(setup), kind, 63, **options(bound, precision))[0]

    yield beside(step, lambda: step(precision="32-true"), 1, ">= 2")
    yield beside(lambda: step(COMPILED, compile=not setup.tiny), step, 1)  # a CPU may lack a compiler


@benchmark("heads of 8 teachers, forward and backward, in bf16 against float32: batch 2048, GPU")
def heads_in_bf16(setup: Setup) -> Iterator[Row]:
    """Heads stay in float32: what that costs."""
    needs_a_gpu(setup)
    corpus = open_corpus(pictures(setup), None)
    rows = torch.arange(setup.size(2048, 16))
    batch = to_device(corpus.read(rows), device())
    data = DistillData(corpus.columns.corpus, batch_size=len(rows), held_out=setup.size(64, 16))
    model = Distiller(data.statistics, vision_student(setup), GaussianHead).to(device())
    targets = model.bank.targets(batch.targets)
    seen = torch.randn(len(rows), model.student.dim, device=device(), requires_grad=True)
    in_float32 = model.bank.precision

    def passes(precision: Callable) -> None:
        model.bank.precision = precision
        for _ in range(setup.size(20, 1)):
            model.bank(seen, targets, batch.valid).mean().backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    in_bf16 = partial(torch.autocast, device(), torch.bfloat16)
    yield compare(lambda: passes(lambda _: in_bf16()), lambda: passes(in_float32), setup.size(3, 1))


@benchmark(
    "a teacher on the GPU in precision auto against float32: ViT-S/16, 224 px",
    "cache build with a teacher on the GPU against the bare loop: ViT-S/16, 224 px",
    "the same against its network alone, images ready in memory",
)
def teacher_on_a_gpu(setup: Setup) -> Iterator[Row]:
    needs_a_gpu(setup)
    model, weights = "test_vit" if setup.tiny else "vit_small_patch16_224", setup.folder / "vit.safetensors"
    torch.manual_seed(0)
    save_file(create_timm(model, pretrained=False).state_dict(), weights)
    corpus, size = Photographs(setup.size(16_384, 12), setup.size(224, 32)), setup.size(256, 4)
    teachers = {name: TimmTeacher(model, str(weights), precision=name) for name in ("auto", "float32")}
    for teacher in teachers.values():
        teacher.load(device())
    items = corpus.images[: 2 * size]
    ready = [teachers["auto"].prepare(item) for item in items]

    def alone(name: str) -> float:
        """Seconds for a row that is ready in memory."""
        starts = [*range(0, len(ready), size)] * setup.size(8, 1)
        return seconds(lambda: [teachers[name].embed(ready[at : at + size]) for at in starts]) / (len(starts) * size)

    def bare() -> float:
        def loop() -> None:
            for at in range(0, len(items), size):
                teachers["auto"].embed([teachers["auto"].prepare(item) for item in items[at : at + size]])

        return seconds(loop) / len(items)

    yield beside(lambda: alone("auto"), lambda: alone("float32"), setup.size(3, 1), ">= 2")
    settings = Settings(workers=setup.size(12, 1), batch_size=size, device=device())
    named = {"vit": TimmTeacher(model, str(weights))}
    taken = seconds(lambda: build(setup.folder, "vit", corpus, named, {}, settings)) / corpus.count
    yield beside(lambda: taken, bare, 1, ">= 0.95")
    yield beside(lambda: taken, lambda: alone("auto"), 1)


BENCHMARKS = (images_on_a_gpu, graphs_on_a_gpu, teacher_on_a_gpu, heads_in_bf16, ways_to_compute)


def within(limit: float, file: Path, benchmarks: Iterable[Benchmark]) -> Iterator[Benchmark]:
    """The same benchmarks, which write each row to ``file``.

    Those that would begin when less than :data:`LONGEST` is left of ``limit`` seconds are left out.
    """
    begin, table = time.perf_counter(), {}
    about = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", "torch": torch.__version__}

    def bounded(each: Benchmark, setup: Setup) -> Iterator[Row]:
        if (taken := time.perf_counter() - begin) > limit - LONGEST:
            raise LeftOut(f"{taken:.0f} of {limit:.0f} seconds are over")
        for name, row in each.run(setup):
            table[name] = row._asdict() | {"met": met(row)}
            file.write_text(json.dumps({**about, "seconds": time.perf_counter() - begin, "rows": table}, indent=1) + "\n")
            yield row

    for each in benchmarks:
        yield each._replace(rows=partial(bounded, each))


def main(arguments: list[str], tiny: bool = False) -> bool:
    """Run all rows; whether none of them failed."""
    start_console()
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.disable(logging.INFO)  # one table, and warnings
    file = Path(arguments[0]) if arguments else Path(os.environ.get("OUT", ".")) / "gpu.json"
    with tempfile.TemporaryDirectory() as folder:
        return run_all(within(LIMIT, file, BENCHMARKS), Setup(Path(folder), tiny), None)


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
