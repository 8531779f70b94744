"""Check a cache: every byte against its hash, and manifests against themselves, their shards and their corpus."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheError
from cache_tools.format import store
from cache_tools.format.files import read_file
from cache_tools.format.layout import column_header
from cache_tools.format.shard import file_name, map_shard
from cache_tools.format.summary import SKIPPED, merged_statistics, skipped_rows


def cache_faults(cache: Path) -> Iterator[str]:
    """Everything that is wrong in a cache; a fault of one corpus or column does not hide those of the next."""
    for folder in store.corpora(cache):
        try:
            yield from corpus_faults(folder)
            fingerprint = store.read_corpus(folder).fingerprint
        except CacheError as error:
            yield f"{error}\nthe columns of {folder} were not checked"
            continue
        for path in store.list_columns(folder):
            try:
                yield from column_faults(path, fingerprint)
            except CacheError as error:
                yield str(error)
    for folder, names in store.folders(cache):
        if store.CORPUS not in names and _has_shards(folder / "items"):
            yield f"{folder} holds items and no {store.CORPUS}: restore it, or run the same build again"


def corpus_faults(folder: Path) -> list[str]:
    """Everything that is wrong with the items of the corpus at ``folder``; empty when nothing is wrong.

    Raises:
        CacheError: when its manifest cannot be read.
    """
    manifest = store.read_corpus(folder)
    faults = _caught(store.check_manifest_hash, folder / store.CORPUS)
    digest, damaged = hashlib.sha256(), list[str]()
    for number in range(manifest.shard_count):
        damaged += _caught(_feed_items, folder, manifest, number, digest)
    faults += damaged
    if not damaged and digest.hexdigest() != manifest.fingerprint:
        faults.append(f"{folder / store.CORPUS}: its rows are not those of its fingerprint: {store.MEND}")
    columns = [path for kind in store.KINDS for path in sorted((folder / kind).glob("*"))]
    lost = [path for path in columns if not os.path.lexists(path / store.MANIFEST) and _has_shards(path)]
    return faults + [
        f"{path} holds shards and no {store.MANIFEST}: restore it, or run the same build again" for path in lost
    ]


def column_faults(path: Path, fingerprint: str) -> list[str]:
    """Everything that is wrong with the column at ``path`` of the corpus with ``fingerprint``.

    Raises:
        CacheError: when its manifest or its corpus's cannot be read.
    """
    manifest = store.read_manifest(path / store.MANIFEST)
    corpus = store.read_corpus(path.parent.parent)
    faults = _caught(store.check_manifest_hash, path / store.MANIFEST)
    foreign = []
    if manifest["corpus_fingerprint"] != fingerprint:
        foreign.append(f"{path} was made from another corpus: delete it and build again")
    elif (manifest["rows"], manifest["shard_rows"]) != (corpus.rows, corpus.shard_rows):
        foreign.append(
            f"{path / store.MANIFEST}: {manifest['rows']} rows in shards of {manifest['shard_rows']}, its corpus has "
            f"{corpus.rows} in shards of {corpus.shard_rows}: {store.MEND}"
        )
    if not manifest["finished"]:
        faults.append(f"{path} is {store.state(path)}: run the same build again")
    damaged = [
        fault
        for number, shard in store.listed_shards(path).items()
        for fault in _caught(_check_shard, path, manifest, number, shard)
    ]
    if manifest["finished"] and not damaged:
        faults += _caught(_check_statistics, path, manifest)
        faults += [] if foreign else _caught(_check_skipped, path, corpus, manifest["shards"])
    return faults + foreign + damaged


def _caught(check: Callable[..., None], *arguments: Any) -> list[str]:
    """What ``check`` finds wrong, as a list of one message or none."""
    try:
        check(*arguments)
    except CacheError as error:
        return [str(error)]
    return []


def _feed_items(folder: Path, manifest: store.CorpusManifest, number: int, digest: "hashlib._Hash") -> None:
    path, shard = folder / "items" / file_name(number), manifest.shards[number]
    store.checked_header(path, shard["bytes"], number, {"corpus_fingerprint": manifest.fingerprint})
    store.check_hash(path, shard)
    for row in zip(*store.read_items(folder, number, manifest), strict=True):
        store.feed(digest, *row)


def _check_shard(path: Path, manifest: Mapping[str, Any], number: int, shard: Mapping[str, Any]) -> None:
    file = path / file_name(number)
    header = column_header(path, manifest, number, shard)
    store.check_hash(file, shard)
    arrays, _ = map_shard(file, header)
    actual: dict[str, Any] = {"rows": len(arrays["valid"]), "valid": int(arrays["valid"].sum())}
    if "embedding" in arrays:
        actual["dtype"] = str(arrays["embedding"].dtype)
    for key, value in actual.items():
        if shard[key] != value:
            raise CacheError(
                f"{path / store.MANIFEST}: {key} of shard {number} is {shard[key]}, the shard has {value}: {store.MEND}"
            )


def _check_statistics(path: Path, manifest: Mapping[str, Any]) -> None:
    if manifest["kind"] != "ragged" and merged_statistics(path, manifest["shards"]).to_json() != manifest["statistics"]:
        raise CacheError(f"{path / store.MANIFEST}: its statistics are not those of its shards: {store.MEND}")


def _check_skipped(path: Path, corpus: store.CorpusManifest, shards: Sequence[Mapping[str, Any]]) -> None:
    if (read_file(path / SKIPPED) or b"") != skipped_rows(path, corpus, shards):
        raise CacheError(
            f"{path / SKIPPED} is not the list of the rows that its shards mask: delete it and run the same build again, "
            "which writes it anew"
        )


def _has_shards(folder: Path) -> bool:
    return any(folder.glob("[0-9]*.h5"))
