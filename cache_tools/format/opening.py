"""Open whatever lies at a path of a cache, or in an object store."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheError
from cache_tools.format.files import read_file, sweep, write_file, write_json
from cache_tools.format.mirror import NOTE, locked
from cache_tools.format.reader import Aligned, Column, aligned
from cache_tools.format.remote import Remote
from cache_tools.format.store import CORPUS, KINDS, MANIFEST, check_manifest_hash, list_columns, read_manifest

SECRET = re.compile(r'"(\w+_)?(key|key_id|secret|token|password|credential|connection_string)": (?!"anon")')


def open(path: str | Path) -> Column | Aligned:
    """Open a column, or all finished columns of a corpus side by side.

    Args:
        path: the folder of a column, such as ``cache/mol/teachers/maccs``, or of a corpus, such as ``cache/mol``.

    Raises:
        CacheError: when there is neither, or the column is unfinished; when a corpus has no finished column, or two columns
            of one name: open those that you want with :func:`aligned`.
    """
    path = Path(path)
    if not (path / CORPUS).is_file():
        return Column(path)
    return aligned(path, [column for column in list_columns(path) if read_manifest(column / MANIFEST)["finished"]])


def open_mirror(url: str, local: Path, limit: int | None = None, options: Mapping[str, Any] | None = None) -> Path:
    """Make a folder that reads like the corpus at ``url``: manifests are copied now, shards when they are read.

    Args:
        url: of the corpus in an object store.
        local: a folder of this machine's disk, shared by its processes.
        limit: bytes that all shards in ``local`` may take; as many as the disk has when not given.
        options: of the store, as fsspec takes them; without credentials.

    Returns:
        The corpus's folder in ``local``.

    Raises:
        CacheError: when there is no corpus, the store gives no answer, or ``options`` or ``url`` hold a credential.
    """
    remote = Remote(url.rstrip("/"), dict(options or {}))
    if SECRET.search(json.dumps(remote.options)) or re.match(r"\w+://[^/@]*:[^/]*@", url):
        raise CacheError(
            "a credential stands in the storage_options or the URL, which a run's config.yaml keeps: move it into the "
            "environment (for S3 AWS_PROFILE, for instance)"
        )
    folder = local / f"{remote.url.rpartition('/')[2]}-{hashlib.sha256(remote.url.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(local / ".lock"):
        write_json(folder / NOTE, {"url": remote.url, "options": remote.options, "limit": limit})
        if not _copy(remote, folder, CORPUS, "items"):
            raise CacheError(f"no corpus at {url}: push one there with `distill-cache push`")
        for column in (f"{kind}/{name}" for kind in KINDS for name in remote.sizes(kind) if re.fullmatch(r"[\w-]+", name)):
            _copy(remote, folder, f"{column}/{MANIFEST}", column)
    return folder


def _copy(remote: Remote, folder: Path, name: str, shards: str) -> bool:
    """Copy a manifest; with another one than before, the shards that are here are not its own. False without one."""
    content = remote.read(name)
    (folder / shards).mkdir(parents=True, exist_ok=True)
    sweep(folder / shards)
    if content is None or read_file(folder / name) != content:
        for path in [folder / name, *(folder / shards).glob("*.h5")]:
            path.unlink(missing_ok=True)
    if content is not None:
        write_file(folder / name, content)
        check_manifest_hash(folder / name)
    return content is not None
