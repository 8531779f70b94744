"""``distill-cache list | verify``: show what a cache holds, and compare its files with its manifests."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cache_tools.errors import CacheError
from cache_tools.format import store
from cache_tools.format.verify import cache_faults

RECIPES = {"molecule": "mol", "text": "text", "image": "vision"}  # a configuration of a fit, by what the corpus holds


def list_(cache: Path = Path("cache")) -> None:
    """Show every column of a cache.

    Args:
        cache: the cache's folder.
    """
    show(cache)


def show(cache: Path, corpus: str | None = None) -> None:
    """Show every column of a cache, and the next command: for ``corpus``, or the first one."""
    table = Table(title=f"cache {cache}", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("corpus", "column"):
        table.add_column(heading, overflow="fold")
    for heading in ("rows", "valid", "dim", "dtype", "size", "state"):
        table.add_column(heading, justify="left" if heading in ("dtype", "state") else "right", no_wrap=True)
    for folder in _corpora(cache):
        of_task = folder.parent.name == store.TASKS
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
            name = ""  # the first row of a corpus names it
    Console().print(table)
    _tell_next(cache, corpus)


def _tell_next(cache: Path, corpus: str | None = None) -> None:
    folders = [cache / corpus] if corpus else [folder for folder in _corpora(cache) if folder.parent.name != store.TASKS]
    first = next(iter(folders), None)
    if first:
        recipe = RECIPES.get(store.read_corpus(first).modality, "FILE")
        Console().print(f"next: distill fit --config {recipe} --data.corpus {first}", soft_wrap=True, highlight=False)


def verify(cache: Path = Path("cache")) -> None:
    """Check every byte of a cache, and its manifests against themselves, their shards and their corpora.

    Args:
        cache: the cache's folder.
    """
    faults = list(cache_faults(cache))
    if faults:
        raise CacheError("\n".join(faults))
    _corpora(cache)
    Console().print(f"{cache}: every shard is as it was written", soft_wrap=True)
    _tell_next(cache)


def _corpora(cache: Path) -> list[Path]:
    if folders := store.corpora(cache):
        return folders
    raise CacheError(f"no corpus in {cache.absolute()}: build one first, for instance `distill-cache build --config mol`")
