"""Check a cache against its manifests: sizes, headers and SHA-256 of every shard."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cache_tools import store
from cache_tools.errors import CacheError


def corpus_faults(folder: Path) -> list[str]:
    """Everything that is wrong with the items of the corpus at ``folder``; empty when all is well."""
    manifest = store.read_corpus(folder)
    expected = {"corpus_fingerprint": manifest.fingerprint}
    return list(_faults(folder / "items", manifest.shards, expected))


def column_faults(path: Path, fingerprint: str) -> list[str]:
    """Everything that is wrong with the column at ``path`` of the corpus with ``fingerprint``."""
    manifest = store.read_manifest(path / store.MANIFEST)
    faults = []
    if manifest["corpus_fingerprint"] != fingerprint:
        faults.append(f"{path} was made from another corpus: delete it and build again")
    if not manifest["finished"]:
        faults.append(f"{path} is unfinished: {store.state(manifest)}; run the same build again")
    expected = {"corpus_fingerprint": manifest["corpus_fingerprint"], "producer": store.producer_key(manifest["producer"])}
    return faults + list(_faults(path, manifest["shards"], expected))


def _faults(folder: Path, shards: Iterable[Mapping[str, Any]], expected: Mapping[str, Any]) -> Iterator[str]:
    for shard in shards:
        path, number = folder / shard["file"], int(Path(shard["file"]).stem)
        try:
            _, attributes = store.map_shard(path, shard["bytes"])
        except CacheError as error:
            yield str(error)
            continue
        for key, value in {**expected, "shard": number}.items():
            if attributes.get(key) != value:
                yield f"shard {path}: header says {key} {attributes.get(key)}, expected {value}: delete it, build again"
                break
        else:
            if store.sha256(path) != shard["sha256"]:
                yield f"shard {path}: bytes changed since it was written (SHA-256 differs): delete it and build again"
