"""The ranks of a fit on several nodes, which need share no disk: rank zero decides, and all compare what they train on."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch.distributed.rendezvous import rendezvous

from cache_tools import ConfigError
from distill.data.module import DistillData
from distill.run_folder import RunFolder

log = logging.getLogger(__name__)

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # launchers set some; 0 in rank zero

SHARED = ("model", "trainer", "checkpoint_every", "monitor", "conflict")  # keys that decide what a step does
OF_A_NODE = ("trainer.default_root_dir",)


def is_rank_zero() -> bool:
    """Whether this process is rank zero, as its launcher says; the only one that needs the run's folder."""
    return not any(int(os.environ.get(name, "0")) for name in RANKS)


def place(run: Path, environment: Mapping[str, str]) -> tuple[Path, str | None]:
    """The folder that a run is to have, and the checkpoint that it continues from.

    Under SLURM the folder is named for the job. A job that SLURM or torchrun restarted continues in the folder that it had:
    the newest of ``run``, ``run-2``, ``run-3`` ... with a checkpoint.
    """
    if job := environment.get("SLURM_JOB_ID"):
        run = run.with_name(f"{run.name}-{job}")
    if not any(int(environment.get(f"{launcher}_RESTART_COUNT", 0)) for launcher in ("SLURM", "TORCHELASTIC")):
        return run, None
    folder, number, continued = RunFolder(run), 1, None
    while folder.path.exists():
        continued = str(folder.last) if folder.last.is_file() else continued
        number += 1
        folder = RunFolder(run.with_name(f"{run.name}-{number}"))
    if not continued and is_rank_zero():
        log.warning("the job was started again, and %s has no checkpoint on this node: it begins at step 0", run)
    return run, continued


def follow_rank_zero(trainer: Trainer, checkpoint: str | None, facts: Mapping[str, str]) -> str | None:
    """The checkpoint that rank zero continues from, after all ranks have compared what they train on.

    Ranks that this command itself starts have its machine and its words: they are not asked.

    Args:
        trainer: of the fit that is about to begin.
        checkpoint: what this rank would continue from.
        facts: what must be the same on all ranks.

    Raises:
        ConfigError: on every rank, when they are not.
    """
    strategy = trainer.strategy
    started_here = isinstance(strategy, ParallelStrategy) and isinstance(strategy.cluster_environment, LightningEnvironment)
    if trainer.world_size == 1 or started_here:
        return checkpoint
    _connect(strategy)
    everybody: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everybody, (socket.gethostname(), dict(facts)))
    (host, expected), *others = everybody
    for rank, (other, found) in enumerate(others, 1):
        for key in [*expected, *found]:
            if expected.get(key) != found.get(key):
                raise ConfigError(
                    f"the ranks do not train on the same: {key} is {expected.get(key, 'missing')} on rank 0 ({host}) and "
                    f"{found.get(key, 'missing')} on rank {rank} ({other}): give all nodes one configuration, and copies "
                    "of one cache"
                )
    first: str | None = strategy.broadcast(checkpoint)
    return first


def _connect(strategy: Strategy) -> None:
    """Connect the ranks; Lightning finds them connected later.

    torchrun keeps the store of its first attempt, with addresses of processes that ended: later ones meet under own keys.
    """
    attempt, device = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), strategy.root_device
    if attempt != "0" and not torch.distributed.is_initialized():
        store, rank, ranks = next(rendezvous("env://"))
        torch.distributed.init_process_group(
            torch.distributed.get_default_backend_for_device(device),
            store=torch.distributed.PrefixStore(f"attempt {attempt}", store),  # type: ignore[attr-defined]
            rank=rank,
            world_size=ranks,
            device_id=None if device.type == "cpu" else device,
        )
    strategy.setup_environment()


def facts_of(config: Mapping[str, Any], data: DistillData, precision: str) -> dict[str, str]:
    """What a step depends on, in a few words each: keys of the configuration, batches, corpora and columns.

    Args:
        config: of the fit.
        data: its rows.
        precision: that the fit computes in.
    """
    shared = {key: config[key] for key in SHARED}
    facts = {key: words for key, words in _flat("", shared) if key not in OF_A_NODE}
    facts |= {"the precision": precision, "the order of rows": str(data.state_dict()["order"])}
    for number, part in enumerate(data.corpora, 1):
        facts[f"corpus {number}"] = f"{part.corpus.fingerprint[:16]} ({part.corpus.rows} rows)"
        for name, column in part.columns.columns.items():
            shards = "".join(shard["sha256"] for shard in column.manifest["shards"])
            maker = sha256(str(column.manifest["producer"]["fingerprint"]).encode()).hexdigest()[:8]
            content = sha256(shards.encode()).hexdigest()[:8]
            facts[f"column {name} of corpus {number}"] = f"made by {maker}, with the content {content},"
    return facts


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """``a.b`` -> words, of nested mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, str(value)
