"""Check a cache against its manifests: sizes, headers and SHA-256 of every shard."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheError
from cache_tools.format import store
from cache_tools.format.shard import file_name


def corpus_faults(folder: Path) -> list[str]:
    """Everything that is wrong with the items of the corpus at ``folder``; empty when nothing is wrong."""
    manifest = store.read_corpus(folder)
    expected = {"corpus_fingerprint": manifest.fingerprint}
    return list(_faults(folder / "items", dict(enumerate(manifest.shards)), expected))


def column_faults(path: Path, fingerprint: str) -> list[str]:
    """Everything that is wrong with the column at ``path`` of the corpus with ``fingerprint``."""
    manifest = store.read_manifest(path / store.MANIFEST)
    faults = []
    if manifest["corpus_fingerprint"] != fingerprint:
        faults.append(f"{path} was made from another corpus: delete it and build again")
    if not manifest["finished"]:
        faults.append(f"{path} is {store.state(path)}: run the same build again")
    return faults + list(_faults(path, store.listed_shards(path), store.identity_of(manifest)))


def _faults(folder: Path, shards: Mapping[int, Mapping[str, Any]], expected: Mapping[str, Any]) -> Iterator[str]:
    for number, shard in shards.items():
        path = folder / file_name(number)
        try:
            store.checked_header(path, shard["bytes"], number, expected)
            store.check_hash(path, shard)
        except CacheError as error:
            yield str(error)
