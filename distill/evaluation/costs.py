"""What a system costs: width, parameters, and items embedded per second of CPU time."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cache_tools import Column, Featuriser, QuorumError, Teacher, read_items, rebuild
from distill.data.columns import featuriser_of
from distill.evaluation.baselines import embed
from distill.records import Cost
from distill.students.base import Student

log = logging.getLogger(__name__)

BATCH = 64  # items of a batch whose time is taken

ENOUGH = 0.5  # seconds


def cost_of_student(student: Student, folder: Path, inputs: Column, device: str) -> Cost:
    """Measured on items of the corpus at ``folder``, their preparation included."""
    featuriser = featuriser_of(inputs)
    featuriser.load("cpu")

    def run(rows: torch.Tensor, items: Sequence[bytes]) -> None:
        for item in items:
            featuriser.featurise(featuriser.prepare(item))
        embed([student], inputs, rows, device, BATCH)

    return Cost(student.dim, _parameters(student), _per_second(folder, inputs, featuriser, run, device))


def cost_of_teacher(column: Column, device: str, trust_remote_code: bool = False) -> Cost:
    """The same of a column's teacher; without a speed when it cannot be loaded here."""
    teacher = rebuild(column.manifest["producer"], Teacher, column.path, trust_remote_code=trust_remote_code)

    def run(rows: torch.Tensor, items: Sequence[bytes]) -> None:
        prepared = [teacher.prepare(item) for item in items]
        with torch.autocast(torch.device(device).type, enabled=False):  # a teacher has a precision of its own
            for start in range(0, len(prepared), BATCH):
                teacher.embed(prepared[start : start + BATCH])

    try:
        teacher.load(device)
        return Cost(column.dim, _parameters(teacher), _per_second(column.path.parents[1], column, teacher, run, device))
    except QuorumError as error:
        log.warning("no parameters and speed of %s: %s", column.name, error)
        return Cost(column.dim, None, None)


def _per_second(
    folder: Path,
    column: Column,
    producer: Teacher | Featuriser,
    run: Callable[[torch.Tensor, Sequence[bytes]], None],
    device: str,
) -> float:
    """Items per second, timed on as many as take half a second, or all of a shard.

    On a CPU these are seconds of all cores together, which other programs on the machine do not change much; on a GPU,
    seconds of the clock.
    """
    clock = time.process_time if torch.device(device).type == "cpu" else time.perf_counter
    ids, items = read_items(folder, 0)
    valid = torch.arange(len(ids))
    valid = valid[column.valid(valid)]
    raw = [ids[row].encode() if producer.by_id else items[row] for row in valid.tolist()]
    run(valid[:2], raw[:2])  # the first call allocates
    count = min(8, len(raw))
    while True:
        begin = clock()
        run(valid[:count], raw[:count])
        took = clock() - begin
        if took > ENOUGH or count == len(raw):
            return count / took
        count = min(len(raw), count * max(2, int(0.8 * ENOUGH / took)))


def _parameters(system: Student | Teacher) -> int | None:
    """Numbers in the networks of a student or teacher, each counted once; None without a network."""
    sizes = {id(weight): weight.numel() for module in system.modules() for weight in module.parameters()}
    return sum(sizes.values()) if sizes else None
