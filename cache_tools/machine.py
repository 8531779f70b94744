"""What the machine gives this process: cores, how OpenMP's threads wait for each other, fast arithmetic, who else runs."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")

SPINS = "1000"  # turns of a waiting thread before it sleeps, about 0.03 ms; libgomp's own number is 300,000

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # variables that say how threads wait

_GIVEN = os.environ.get("OMP_NUM_THREADS")  # what the user said, before `prepare_openmp`


def affinity() -> int:
    """The number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """How many processors' time the control groups of this process allow, of version 1 or 2; infinity without a limit.

    Args:
        cgroups: where control groups are mounted.
        own: the file that names those of this process.
    """
    lines = own.read_text().splitlines() if own.is_file() else []
    limits = [float("inf")]
    for _, controllers, path in (line.split(":", 2) for line in lines):
        mounts = {cgroups / name for name in (controllers, "cpu")} if "cpu" in controllers.split(",") else set()
        for mount in mounts if controllers else {cgroups, cgroups / "unified"}:
            group = mount / path.lstrip("/")
            limits += [limit for folder in (group, *group.parents) for limit in _limits(folder)]
    return min(limits)


def _limits(group: Path) -> Iterator[float]:
    """The limit in the files of one control group, if it has one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        paths = [group / name for name in names]
        words = " ".join(path.read_text() for path in paths if path.is_file()).split()
        if len(words) == 2 and words[0].isdigit():  # "max" and -1 are no limit
            yield int(words[0]) / int(words[1])


def cores() -> int:
    """The number of cores that this process can keep busy: its affinity, or less where its control group has a quota."""
    return max(1, int(min(affinity(), quota())))


def threads(processes: int = 1) -> int:
    """Threads for each of so many processes that share the cores of this one; a user's ``OMP_NUM_THREADS`` wins."""
    given = _GIVEN or ""
    return int(given) if given.isdigit() and int(given) else max(1, cores() // processes)


def others_running(load: Path = Path("/proc/loadavg"), looks: int = 3) -> int:
    """How many other threads of the machine run or wait for a processor: the fewest of some looks, 5 ms apart."""
    if not load.is_file():
        return 0
    seen = []
    for look in range(looks):
        time.sleep(0.005 * bool(look))
        seen.append(int(load.read_text().split()[3].partition("/")[0]) - 1)  # this thread runs, too
    return max(0, min(seen))


def prepare_openmp(
    environment: MutableMapping[str, str] = os.environ,
    usable: Callable[[], int] = cores,
    running: Callable[[], int] = others_running,
) -> None:
    """Set OpenMP's number of threads and how long they wait awake; call it before torch is imported.

    libgomp follows the affinity, but no quota. A thread that waits for another spins for some milliseconds, which is fast
    on a quiet machine. On a busy one it takes the processor from the thread that it waits for: a fit of small networks is
    then 20 to 50 times slower. So threads that do not all have a core of their own soon sleep. Results do not depend on
    this. A user's own variables win.

    Args:
        environment: the variables of this process.
        usable: the number of cores that it can keep busy.
        running: the number of other threads that want to run.
    """
    if "torch" in sys.modules:  # it has read them
        return
    count = usable()
    limited = count < affinity()
    if limited:
        environment.setdefault("OMP_NUM_THREADS", str(count))
    alone = environment.get("OMP_NUM_THREADS", str(count)) == "1"
    if alone or any(name in environment for name in WAITING):
        return
    if limited or running() > (os.cpu_count() or 1) - count:
        environment["GOMP_SPINCOUNT"] = SPINS


def bf16_instructions(facts: Path = Path("/proc/cpuinfo")) -> str:
    """The instructions by which this processor computes in bfloat16, such as ``avx512_bf16``; empty without any.

    Args:
        facts: the file in which Linux describes the processors.
    """
    if not facts.is_file():
        return ""
    with open(facts) as lines:
        flags = next((line for line in lines if re.match("flags|Features", line)), "").split()
    return next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in flags), "")


def flush_denormals() -> None:
    """Let the processor take numbers below 1e-38 for zero: some processors compute with them 20 times slower.

    A thread hands the setting on to threads that it starts, but not to those that it has started, and a new process does
    not have it. So call this at the start of a process, before OpenMP has threads.
    """
    import torch

    torch.set_flush_denormal(True)


def running(process: int) -> bool:
    """Whether a process of this machine is running; one that ended, and that its parent did not wait for, is not."""
    try:
        os.kill(process, 0)  # signal 0 only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, and belongs to another user
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # macOS has none
        return True
    return state[:1] not in (["Z"], ["X"])
