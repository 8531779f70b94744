"""Find out which of several writers this process is, and start more writers on this machine."""

import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from cache_tools.errors import ConfigError
from cache_tools.machine import threads

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Writer ``rank`` of ``world`` writers; ``local`` is its number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0


def place(rank: int | None = None, world: int | None = None, environment: Mapping[str, str] = os.environ) -> Place:
    """This writer's place, from arguments or from the variables that torchrun, srun or a SLURM array set.

    Example:
        >>> place(environment={"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
        Place(rank=3, world=8, local=1)
        >>> place(environment={"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "4"})
        Place(rank=2, world=4, local=0)

    Raises:
        ConfigError: when one of ``rank`` and ``world`` is missing, the rank is not below the world, or a variable is no
            whole number.
    """

    def number(name: str, default: int) -> int:
        value = environment.get(name) or str(default)
        if not re.fullmatch("-?[0-9]{1,9}", value):
            raise ConfigError(
                f"{name}={value} in the environment: expected a whole number; unset it, or give --rank and --world"
            )
        return int(value)

    local = number("LOCAL_RANK", number("SLURM_LOCALID", 0))
    source = f"--rank {rank} --world {world}"
    unnamed = rank is None and world is None
    if unnamed and "WORLD_SIZE" in environment:
        rank, world = number("RANK", 0), number("WORLD_SIZE", 1)
        source = f"RANK={rank} WORLD_SIZE={world}"
    elif unnamed:
        tasks, task = number("SLURM_NTASKS", 1), number("SLURM_PROCID", 0)
        step, first = number("SLURM_ARRAY_TASK_STEP", 1), number("SLURM_ARRAY_TASK_MIN", 0)
        index = (number("SLURM_ARRAY_TASK_ID", first) - first) // step  # 0 outside an array
        rank, world = index * tasks + task, number("SLURM_ARRAY_TASK_COUNT", 1) * tasks
        source = f"SLURM's task {rank} of {world}"
    if rank is None or world is None or not 0 <= rank < world:
        raise ConfigError(f"{source}: expected both, with 0 <= rank < world")
    return Place(rank, world, local)


def choose_device(device: str, local: int = 0) -> str:
    """The device's name; ``auto`` becomes the GPU with this writer's number, or ``cpu`` without GPUs."""
    if device != "auto":
        return device
    import torch

    return f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


@contextmanager
def writers(devices: int, arguments: list[str], workers: int) -> Iterator[None]:
    """Start ``devices - 1`` more processes of this command, which share its cores; on leaving, wait for them.

    The other processes make the shards of one that dies, so only time is lost.

    Args:
        devices: processes in all; each takes the GPU of its number when there are GPUs.
        arguments: of this command; the others get the same ones.
        workers: processes that each may start for producers whose time goes into Python.

    Raises:
        ConfigError: when ``devices`` is below 1.
    """
    if devices < 1:
        raise ConfigError(f"--devices is {devices}, expected at least 1")
    import torch

    share = threads(devices)
    torch.set_num_threads(share)
    command = [sys.executable, "-m", "cache_tools.cli", *arguments, "--devices", "1", "--world", str(devices)]
    command += ["--settings.workers", str(workers)]
    others: list[subprocess.Popen[bytes]] = []
    for local in range(1, devices):
        environment = os.environ | {"OMP_NUM_THREADS": str(share), "LOCAL_RANK": str(local)}
        others.append(subprocess.Popen([*command, "--rank", str(local)], env=environment))
        threading.Thread(target=others[-1].wait, daemon=True).start()  # without a wait, a dead one counts as running
    finished = False
    try:
        yield
        finished = True
    finally:
        for process in others:
            if not finished:
                process.terminate()
        for local, process in enumerate(others, 1):
            if process.wait():
                log.warning("writer %d ended with %d; the others made its shards", local, process.returncode)
