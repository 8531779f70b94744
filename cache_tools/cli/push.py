"""``distill-cache push``: copy a corpus to an object store."""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheError
from cache_tools.format import store
from cache_tools.format.files import read_file
from cache_tools.format.remote import Remote
from cache_tools.format.summary import SKIPPED

CLAIM = ".push.json"  # beside the shards, written before them: a copy of the manifest that they belong to
PUSHERS = 8  # shards that are sent at once

log = logging.getLogger(__name__)


def push(corpus: Path, to: str, storage_options: dict[str, Any] | None = None) -> None:
    """Copy a corpus and its finished columns to an object store; what is there already is not sent again.

    Credentials are the environment's, for instance AWS_PROFILE.

    Args:
        corpus: the corpus's folder in the cache, for instance cache/mol.
        to: where it shall be, for instance s3://bucket/cache/mol.
        storage_options: of the store, as fsspec takes them, for instance endpoint_url.

    Raises:
        CacheError: when another corpus or column is there, a shard here is damaged, or the store gives no answer.
    """
    made = {"auto_mkdir": True} if to.startswith("file:") else {}  # object stores have no folders
    remote = Remote(to.rstrip("/"), made | (storage_options or {}))
    store.read_corpus(corpus)
    _push(corpus, remote, "items", store.CORPUS)
    for path in store.list_columns(corpus):
        if store.read_manifest(path / store.MANIFEST)["finished"]:
            column = path.relative_to(corpus).as_posix()
            _push(corpus, remote, column, f"{column}/{store.MANIFEST}")
        else:
            log.warning("%s is unfinished: not pushed", path)


def _push(corpus: Path, remote: Remote, folder: str, manifest: str) -> None:
    """Send the shards in ``folder``, then what belongs to them, then their ``manifest``.

    The first of several drivers writes the claim, and only those with the same shards send any: two builds never mix.
    """
    store.check_manifest_hash(corpus / manifest)
    content = read_file(corpus / manifest) or b""
    mine, done, claimed = json.loads(content), remote.read(manifest), None
    if done is None and not remote.create(f"{folder}/{CLAIM}", content):
        claimed = remote.read(f"{folder}/{CLAIM}")
    theirs = json.loads(done or claimed or content)
    complete_corpus = done is not None and manifest == store.CORPUS  # its rows matter, not how its shards were packed
    for key in ("fingerprint", "shard_rows") if complete_corpus else ("fingerprint", "corpus_fingerprint", "shards"):
        if theirs.get(key) != mine.get(key):
            raise CacheError(
                f"{remote.url}/{folder} holds what another build made ({key} differs): push to another URL, or delete that "
                "folder there first"
            )
    missing = _missing(remote, folder, theirs["shards"])
    with ThreadPoolExecutor(PUSHERS) as pool:
        list(pool.map(lambda shard: _send(corpus, remote, folder, shard), missing))
    if left := _missing(remote, folder, theirs["shards"]):
        raise CacheError(f"{remote.url}/{folder}/{left[0]['file']} is not as it was sent: push again")
    if (skipped := read_file(corpus / folder / SKIPPED)) is not None:
        remote.create(f"{folder}/{SKIPPED}", skipped)
    remote.create(manifest, content)
    log.info("%s/%s: %d of %d shards sent", remote.url, folder, len(missing), len(mine["shards"]))


def _missing(remote: Remote, folder: str, shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shards that the store lacks, or has with another size."""
    sizes = remote.sizes(folder)
    return [shard for shard in shards if sizes.get(shard["file"]) != shard["bytes"]]


def _send(corpus: Path, remote: Remote, folder: str, shard: Mapping[str, Any]) -> None:
    path = corpus / folder / shard["file"]
    store.check_hash(path, shard)
    remote.ask(f"{folder}/{path.name}", lambda fs, there: fs.put_file(str(path), there))
