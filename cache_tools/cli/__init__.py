"""``distill-cache build | list | verify | import | export | sample``."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cache_tools.building import column as run
from cache_tools.building import corpus as corpus_build
from cache_tools.building import launch
from cache_tools.cli.sample import sample
from cache_tools.cli.transfer import export, import_
from cache_tools.console import start_console
from cache_tools.corpora.base import Corpus
from cache_tools.errors import CacheError, QuorumError
from cache_tools.format import store
from cache_tools.format.verify import column_faults, corpus_faults
from cache_tools.inputs import Featuriser
from cache_tools.teachers.base import Teacher


def build(
    corpus: Corpus,
    teachers: dict[str, Teacher],
    inputs: dict[str, Featuriser],
    cache: Path = Path("cache"),
    name: str = "mol",
    settings: run.Settings = run.Settings(),  # noqa: B008 - frozen
    devices: int = 1,
    rank: int | None = None,
    world: int | None = None,
) -> None:
    """Run every teacher and featuriser once over a corpus; what is there already is not made again.

    Many processes and machines can work on one cache: each takes shards that nobody has. Under torchrun, srun and SLURM
    arrays ``rank`` and ``world`` are known.

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
    """
    here = launch.place(rank, world)
    if devices != 1 and here.world == 1:
        here = launch.Place(0, devices)
        share = settings.workers or max(1, (os.cpu_count() or 1) // max(1, devices))
        settings = replace(settings, workers=share)
        with launch.writers(devices, sys.argv[1:], share):
            corpus_build.build(cache, name, corpus, teachers, inputs, settings, here)
    else:
        corpus_build.build(cache, name, corpus, teachers, inputs, settings, here)
    if here.rank == 0:
        list_(cache)


def list_(cache: Path = Path("cache")) -> None:
    """Show every column of a cache.

    Args:
        cache: the cache's folder.
    """
    table = Table(title=f"cache {cache}", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("corpus", "column"):
        table.add_column(heading, overflow="fold")
    for heading in ("rows", "valid", "dim", "dtype", "size", "state"):
        table.add_column(heading, justify="left" if heading in ("dtype", "state") else "right", no_wrap=True)
    for folder in _corpora(cache):
        of_task = folder.parent.name == run.TASKS
        table.add_section()
        name = store.read_corpus(folder).source if of_task else str(folder.relative_to(cache))
        for path in store.list_columns(folder):
            manifest = store.read_manifest(path / store.MANIFEST)
            shards = store.listed_shards(path).values()
            table.add_row(
                name,
                path.name,
                f"{manifest['rows']:,}",
                f"{sum(shard['valid'] for shard in shards):,}",
                str(manifest.get("dim", "ragged")),
                "bits" if manifest["kind"] == "bits" else manifest.get("dtype", ""),
                decimal(sum(shard["bytes"] for shard in shards)),
                store.state(path),
            )
            name = ""  # said once
    Console().print(table)


def verify(cache: Path = Path("cache")) -> None:
    """Check every file of a cache against its manifest: sizes, headers and SHA-256.

    Args:
        cache: the cache's folder.
    """
    faults: list[str] = []
    for folder in _corpora(cache):
        faults += corpus_faults(folder)
        fingerprint = store.read_corpus(folder).fingerprint
        for path in store.list_columns(folder):
            faults += column_faults(path, fingerprint)
    if faults:
        raise CacheError("\n".join(faults))
    Console().print(f"{cache}: every shard is as it was written")


def _corpora(cache: Path) -> list[Path]:
    if not (found := store.corpora(cache)):
        raise CacheError(f"no corpus in {cache.absolute()}: build one first, for instance `make cache TEACHERS=mol`")
    return found


class _Parser(jsonargparse.ArgumentParser):
    """Lets ``--check`` stand for ``--check true``."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        action = super().add_argument(*args, **kwargs)
        if kwargs.get("type") is bool:
            action.nargs, action.const = "?", True
        return action


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``distill-cache``."""
    start_console()
    try:
        jsonargparse.auto_cli(
            {
                "build": build,
                "list": list_,
                "verify": verify,
                "import": import_,
                "export": export,
                "sample": sample,
            },
            args=arguments,
            prog="distill-cache",
            as_positional=False,
            parser_class=_Parser,
        )
    except QuorumError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: finished shards are kept, the same command goes on from there")


if __name__ == "__main__":
    main()
