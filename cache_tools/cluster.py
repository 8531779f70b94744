"""Run functions as tasks of a Ray cluster: a build's shards, a study's runs.

Ray places tasks and notices that a node died. What a task makes on disk is published whole, by the first that finishes it,
so that a task may run twice: a process that its dead node left behind does no harm.
"""

import logging
import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from types import ModuleType
from typing import Any, Self, TypeVar

from cache_tools.errors import ConfigError, QuorumError, above_zero
from cache_tools.interrupt import PARENT
from cache_tools.machine import cores

PENDING = 1000  # tasks that Ray knows of at a time
TRIES = 3  # of a task that ends its process: a lack of memory, or an item that no library survives
SAY = 60.0  # seconds without a running task, after which the user is told why

log = logging.getLogger(__name__)

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Resources:
    """What a task needs of a node.

    Args:
        cpus: cores, which are also the task's threads.
        gpus: below 1 for tasks that share one.

    Raises:
        ConfigError: when there are no cores, or fewer than 0 GPUs.
    """

    cpus: int = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        above_zero("a task", cpus=self.cpus, gpus=self.gpus or 1)


class Cluster:
    """A connection to a Ray cluster; use as a context manager.

    Args:
        address: ``local`` starts a cluster on this machine, ``auto`` finds the one that this machine belongs to,
            ``HOST:PORT`` is that of a head node.
        resources: what a task needs.

    Raises:
        ConfigError: when Ray is not installed, or there is no cluster.
    """

    def __init__(self, address: str, resources: Resources = Resources()):
        self.address, self.resources = address, resources
        self._ray = _import_ray()
        self._alive: set[str] = set()
        self._lost = 0  # nodes that died since the start

    def __enter__(self) -> Self:
        own = {"num_cpus": cores(), "include_dashboard": False} if self.address == "local" else {}
        host, colon, port = self.address.rpartition(":")
        try:
            if colon and "/" not in host:  # Ray itself would knock for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            self._ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"no Ray cluster at {self.address} ({error}): start one with `ray start --head`, or take --ray local"
            ) from None
        self._look()
        count = sum(node["Alive"] for node in self._ray.nodes())
        log.info("Ray: %d nodes with %g CPUs and %g GPUs", count, self._total("CPU"), self._total("GPU"))
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def call(self, function: Callable[[Argument], Result], argument: Argument, name: Callable[[Argument], str]) -> Result:
        """``function(argument)``, on some node; see :meth:`each`."""
        (result,) = self.each(function, [argument], name)
        return result

    def each(
        self,
        function: Callable[[Argument], Result],
        arguments: Iterable[Argument],
        name: Callable[[Argument], str],
    ) -> Iterator[Result]:
        """The result of ``function`` for each of ``arguments``, as they end.

        A task whose node died runs again, for ever. Any other end of its process counts: it is tried three times.

        Args:
            function: as Ray can send it: of a module that all nodes have.
            arguments: likewise.
            name: of a task, for messages.

        Raises:
            QuorumError: what the function raised, with the task's name, or that no try of a task succeeded.
        """
        needs = {"num_cpus": self.resources.cpus, "num_gpus": self.resources.gpus}
        # Ray would end a process with a GPU after each task, and the teacher that it loaded with it: max_calls=0
        task = self._ray.remote(max_retries=0, max_calls=0, scheduling_strategy="SPREAD", **needs)(_run)
        waiting, again = iter(arguments), deque[Argument]()
        running: dict[Any, tuple[Argument, int]] = {}  # and how many nodes were lost when it began
        ended, begun = Counter[str](), dict[str, int]()
        last = time.monotonic()
        while True:
            for argument in [*again, *islice(waiting, max(0, PENDING - len(running) - len(again)))]:
                call = self._ray.cloudpickle.dumps((function, argument))
                running[task.remote(call, self.resources.cpus, os.getcwd(), sys.path)] = argument, self._lost
            again.clear()
            if not running:
                return
            done, _ = self._ray.wait(list(running), timeout=1.0)
            self._look()
            if not done and time.monotonic() - last > SAY:
                last = time.monotonic()
                self._explain()
            for reference in done:
                (argument, lost), last = running.pop(reference), time.monotonic()
                try:
                    result = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as error:  # of the program itself
                    error.add_note(f"in {name(argument)}")
                    raise
                except self._ray.exceptions.RayError as error:
                    ended[name(argument)] += 1
                    lost = self._lost - begun.setdefault(name(argument), lost)
                    self._require_another_try(name(argument), ended[name(argument)], lost, error)
                    again.append(argument)
                    continue
                if isinstance(result, QuorumError):
                    raise type(result)(f"{name(argument)}: {result}")
                yield result

    @staticmethod
    def _require_another_try(name: str, ended: int, lost: int, error: Exception) -> None:
        """Give up a task that ended its process three times more often than nodes were lost since it began."""
        if ended - lost >= TRIES:
            raise QuorumError(
                f"{name}: its process ended {ended} times, the last time with: {str(error).splitlines()[0]}. If memory is "
                "short, give a task more cores (--ray_resources.cpus), so that fewer run on a node; else one of its items "
                "ends the process"
            )
        log.warning("%s: its process ended, it starts again", name)

    def _look(self) -> None:
        """Say which nodes died since the last look."""
        alive = {node["NodeID"]: node["NodeManagerHostname"] for node in self._ray.nodes() if node["Alive"]}
        for node in self._alive - alive.keys():
            self._lost += 1
            log.warning("node %s lost, its tasks go to others", node[:8])
        self._alive = set(alive)

    def _total(self, resource: str) -> float:
        return float(sum(node["Resources"].get(resource, 0) for node in self._ray.nodes() if node["Alive"]))

    def _explain(self) -> None:
        """Say why no task ended for a while, where no node can ever run one."""
        wanted = {"CPU": float(self.resources.cpus), "GPU": float(self.resources.gpus)}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(key, 0.0) >= amount for key, amount in wanted.items()) for node in nodes):
            return
        log.warning(
            "waiting: a task needs %g CPUs and %g GPUs of one node, the cluster's nodes have: %s",
            *wanted.values(),
            "; ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes) or "there are none",
        )


def _run(call: bytes, cpus: int, folder: str, paths: list[str]) -> Any:
    """In a task's process: an error of ours is a value, since Ray would put a traceback into its text.

    Args:
        call: the function and its argument, pickled, since their modules may lie in ``paths``.
        cpus: threads.
        folder: to work in.
        paths: where the driver finds modules.
    """
    import torch

    torch.set_num_threads(cpus)
    os.environ[PARENT] = str(os.getpid())  # commands that it starts end with it
    sys.path += [path for path in paths if path not in sys.path]
    try:
        os.chdir(folder)
        function, argument = import_module("ray").cloudpickle.loads(call)  # Ray's own message, of our driver
        return function(argument)
    except ModuleNotFoundError as error:
        return ConfigError(f"{socket.gethostname()}: {error}: all nodes need the packages of the command's machine")
    except FileNotFoundError:
        if os.path.isdir(folder):
            raise
        return ConfigError(f"{socket.gethostname()} has no folder {folder}: the nodes share the folder of the command")
    except QuorumError as error:
        return error


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("a Ray cluster needs Ray: pip install 'quorum-distill[ray]'") from None
    module: ModuleType = ray
    return module
