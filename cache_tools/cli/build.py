"""``distill-cache build``: run every teacher and featuriser once over a corpus."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from cache_tools.building import launch
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build as build_corpus
from cache_tools.cli.check import show
from cache_tools.cluster import Cluster, Resources
from cache_tools.corpora.base import Corpus
from cache_tools.inputs.base import Featuriser
from cache_tools.machine import cores
from cache_tools.teachers.base import Teacher


def build(
    corpus: Corpus,
    teachers: dict[str, Teacher],
    inputs: dict[str, Featuriser],
    cache: Path = Path("cache"),
    name: str = "mol",
    settings: Settings = Settings(),  # noqa: B008 - frozen
    devices: int = 1,
    rank: int | None = None,
    world: int | None = None,
    ray: str | None = None,
    ray_resources: Resources = Resources(),  # noqa: B008 - frozen
) -> None:
    """Run every teacher and featuriser once over a corpus; finished columns are not made again.

    Many processes and machines can work on one cache: each takes shards that no other writer has. Under torchrun, srun and
    SLURM arrays ``rank`` and ``world`` are known.

    Args:
        corpus: the items.
        teachers: column name -> teacher.
        inputs: column name -> featuriser of a student's input.
        cache: the cache's folder.
        name: the corpus's folder inside the cache.
        settings: batch size, device, worker processes, type on disk.
        devices: processes on this machine, one per GPU.
        rank: which writer this is ...
        world: ... of how many.
        ray: let a Ray cluster make the shards: ``local`` starts one on this machine, ``auto`` finds the one that this
            machine belongs to, ``HOST:PORT`` is that of a head node.
        ray_resources: what Ray keeps for one shard.
    """
    if ray is not None:
        with Cluster(ray, ray_resources) as cluster:
            build_corpus(cache, name, corpus, teachers, inputs, settings, cluster=cluster)
        show(cache, name)
        return
    here = launch.place(rank, world)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE") or max(1, devices))  # torchrun's writers on this machine, or our own
    settings = replace(settings, workers=max(1, (settings.workers or cores()) // beside))
    if devices != 1 and here.world == 1:
        here = launch.Place(0, devices)
        with launch.writers(devices, sys.argv[1:], settings.workers):
            build_corpus(cache, name, corpus, teachers, inputs, settings, here)
    else:
        build_corpus(cache, name, corpus, teachers, inputs, settings, here)
    if here.rank == 0:
        show(cache, name)
