"""The on-disk format, version 1: corpora and columns as folders of numbered shards, each with a manifest."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cache_tools.errors import CacheError, CorpusError
from cache_tools.format.files import file_size, read_file, sha256, system_errors_in_words, write_file
from cache_tools.format.mirror import mirror_of
from cache_tools.format.packing import cut, cut_one, ragged_bytes
from cache_tools.format.schema import COLUMN_KEYS, manifest_fault, note_fault
from cache_tools.format.shard import (
    FORMAT_VERSION,
    Arrays,
    ForeignShard,
    Header,
    file_name,
    map_shard,
    read_header,
    write_shard,
)

SHARD_ROWS = 65_536
MANIFEST, CORPUS = "manifest.json", "corpus.json"
KINDS = ("teachers", "inputs")  # folders of a corpus that hold columns
TASKS = "tasks"  # a folder of a corpus that holds the corpora of tasks, each in a folder named by its fingerprint
HASH = "manifest_sha256"  # last key of a manifest: the SHA-256 of the file with "" in its place; version 0.1 had none
MEND = "restore it, or delete this file and run the same build again: it keeps the shards that are sound"
NOTES = "[0-9]*.json"  # the facts of finished shards, until the column's last shard is finished


# --------------------------------------------------------------------------------------------------- manifests


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest at ``path``, refused when missing, damaged, incomplete or of a newer format.

    Raises:
        CacheError: with the path and what to run.
    """
    text = read_file(path)
    if text is None:
        raise CacheError(f"nothing at {path}: build it first, for instance `distill-cache build --config mol`")
    try:
        content: dict[str, Any] = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{path} is not JSON ({error}): {MEND}") from None
    if not isinstance(content, dict):
        raise CacheError(f"{path} is no manifest: {MEND}")
    _check_version(path, content)
    if fault := manifest_fault(content, path.name == CORPUS):
        raise CacheError(f"{path}: {fault}: {MEND}")
    content.pop(HASH, None)
    return content


def write_manifest(path: Path, content: Mapping[str, Any], keep: bool = False) -> None:
    """Write a manifest with a hash of itself as its last key; ``keep`` as in :func:`write_file`."""
    rest = {key: value for key, value in content.items() if key != HASH}
    unsigned = json.dumps({**rest, HASH: ""}, indent=1)
    digest = hashlib.sha256(unsigned.encode()).hexdigest()
    write_file(path, unsigned.removesuffix('""\n}') + f'"{digest}"\n}}', keep)


def check_manifest_hash(path: Path) -> None:
    """Compare a manifest with the hash that it carries; one of version 0.1 carries none and must have no unknown key.

    Raises:
        CacheError: when a byte changed.
    """
    text = (read_file(path) or b"").decode()
    content = json.loads(text)
    if HASH in content:
        start, _, end = text.rpartition(f'"{content[HASH]}"')
        sound = hashlib.sha256(f'{start}""{end}'.encode()).hexdigest() == content[HASH]
    else:
        sound = content.keys() <= {field.name for field in fields(CorpusManifest)} | COLUMN_KEYS
    if not sound:
        raise CacheError(f"{path}: bytes changed since it was written (SHA-256 differs): {MEND}")


def _check_version(path: Path, content: Mapping[str, Any]) -> None:
    written = content.get("format_version")
    if written != FORMAT_VERSION:
        raise CacheError(
            f"{path} has format version {written}, this version reads {FORMAT_VERSION}: upgrade quorum-distill"
        )


def identity_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the header of every shard of a column must say of its origin."""
    return {"corpus_fingerprint": manifest["corpus_fingerprint"], "producer": producer_key(manifest["producer"])}


def producer_key(producer: Mapping[str, Any]) -> str:
    """A short hash of what made a column; every shard carries it in its header."""
    return hashlib.sha256(json.dumps(producer["fingerprint"], sort_keys=True).encode()).hexdigest()[:16]


def checked_header(path: Path, size: int | None, number: int, expected: Mapping[str, Any]) -> Header:
    """The header of shard ``number``, refused when the shard belongs elsewhere.

    Raises:
        ForeignShard: when it is of another size, not plain, or swapped with another.
        CacheError: when it is missing, of a newer format, or the system refuses to read it.
    """
    header = read_header(path, size)
    for key, value in {**expected, "shard": number}.items():
        if header.attributes.get(key) != value:
            raise ForeignShard(
                f"shard {path}: header says {key} {header.attributes.get(key)}, expected {value}: delete it, build again"
            )
    _check_version(path, header.attributes)
    return header


def check_hash(path: Path, shard: Mapping[str, Any]) -> None:
    """Read all of a shard and compare it with what its manifest says.

    Raises:
        CacheError: when a byte changed.
    """
    with system_errors_in_words(path):
        actual = sha256(path)
    if actual != shard["sha256"]:
        raise CacheError(f"shard {path}: bytes changed since it was written (SHA-256 differs): delete it and build again")


def whole(path: Path, shard: Mapping[str, Any]) -> bool:
    """Whether the shard that a manifest lists is on disk with the size that it lists."""
    return bool(file_size(path) == shard["bytes"])


def read_note(path: Path) -> dict[str, Any] | None:
    """The facts of a finished shard, kept beside it until its column is finished; None when they are lost or damaged."""
    text = read_file(path)
    try:
        note: dict[str, Any] = json.loads(text or b"")
    except (ValueError, RecursionError):
        return None
    return None if note_fault(note, int(path.stem)) else note


def listed_shards(folder: Path) -> dict[int, dict[str, Any]]:
    """Number -> facts of the shards of a column, finished or not."""
    # notes first: a writer that finishes the column moves them into the manifest
    notes = {int(path.stem): note for path in folder.glob(NOTES) if path.stem.isdecimal() and (note := read_note(path))}
    return dict(enumerate(read_manifest(folder / MANIFEST)["shards"])) | notes


def state(folder: Path) -> str:
    """How much of a column is finished, in words."""
    manifest = read_manifest(folder / MANIFEST)
    done = sum(shard["rows"] for shard in listed_shards(folder).values())
    return "finished" if manifest["finished"] else f"unfinished, {done:,} of {manifest['rows']:,} rows"


# ------------------------------------------------------------------------------------------------ stored corpus


@dataclass(frozen=True)
class CorpusManifest:
    """``corpus.json``: what a corpus folder holds."""

    modality: str
    rows: int
    shard_rows: int
    fingerprint: str
    source: str
    shards: list[dict[str, Any]]
    format_version: int = FORMAT_VERSION
    views: int = 1  # this many consecutive rows show the same item

    def shard_span(self, number: int) -> tuple[int, int]:
        """First row and rows of shard ``number``."""
        first = number * self.shard_rows
        return first, min(self.shard_rows, self.rows - first)

    @property
    def shard_count(self) -> int:
        return -(-self.rows // self.shard_rows)


def write_corpus(folder: Path, rows: Iterator[tuple[str, bytes]], manifest: CorpusManifest) -> CorpusManifest:
    """Write ids and raw items as ragged bytes under ``folder/items``, then ``corpus.json``.

    Args:
        folder: of the corpus.
        rows: every ``(id, item)``, read shard by shard.
        manifest: what the corpus is; its list of shards is filled in.

    Raises:
        CorpusError: when the rows are not those whose fingerprint the manifest has.
    """
    (folder / "items").mkdir(parents=True, exist_ok=True)
    shards, digest = [], hashlib.sha256()
    for number in range(manifest.shard_count):
        first, count = manifest.shard_span(number)
        chunk = list(itertools.islice(rows, count))
        if len(chunk) < count:
            break
        for row in chunk:
            feed(digest, *row)
        ids, items = [identity.encode() for identity, _ in chunk], [item for _, item in chunk]
        header = {"corpus_fingerprint": manifest.fingerprint, "shard": number, "first_row": first, "rows": count}
        remove_foreign(folder / "items" / file_name(number), number, header)
        arrays = ragged_bytes("ids", ids) | ragged_bytes("items", items)
        shards.append(write_shard(folder / "items", number, arrays, header) | {"rows": count})
    if next(rows, None) is not None or digest.hexdigest() != manifest.fingerprint:
        for number in range(manifest.shard_count):  # their headers claim a fingerprint that they do not have
            (folder / "items" / file_name(number)).unlink(missing_ok=True)
        raise CorpusError(f"{manifest.source} changed while it was read: build again when it is at rest")
    manifest = replace(manifest, shards=shards)
    write_manifest(folder / CORPUS, asdict(manifest))
    return manifest


def feed(digest: "hashlib._Hash", identity: str, item: bytes) -> None:
    """Add a row to a corpus's fingerprint."""
    digest.update(b"%d %d " % (len(identity), len(item)) + identity.encode() + item)


def remove_foreign(path: Path, number: int, header: Mapping[str, Any]) -> Header | None:
    """The header of the shard at ``path``, None without one; a file that is proven to be another one is removed.

    Raises:
        CacheError: when the system refuses to read the file: then it may be sound, and it stays.
    """
    if file_size(path) is None:
        return None
    try:
        return checked_header(path, None, number, header)
    except ForeignShard:
        path.unlink(missing_ok=True)
        return None


def read_corpus(folder: Path) -> CorpusManifest:
    """The manifest of the corpus at ``folder``.

    Raises:
        CacheError: when there is none.
    """
    content = read_manifest(folder / CORPUS)
    if unknown := content.keys() - {field.name for field in fields(CorpusManifest)}:
        raise CacheError(f"{folder / CORPUS}: {min(unknown)} is no key of a corpus: {MEND}")
    return CorpusManifest(**content)


def read_items(folder: Path, number: int, manifest: CorpusManifest | None = None) -> tuple[list[str], list[bytes]]:
    """Ids and raw items of shard ``number`` of the corpus at ``folder``, whose manifest is read when not given."""
    arrays = _map_items(folder, manifest or read_corpus(folder), number)
    try:
        return [identity.decode() for identity in cut(arrays, "ids")], list(cut(arrays, "items"))
    except UnicodeDecodeError as error:
        path = folder / "items" / file_name(number)
        raise CacheError(f"shard {path}: an id is not UTF-8 ({error}): delete it and build again") from None


def read_item(folder: Path, row: int) -> tuple[str, bytes]:
    """Id and raw item of one row of the corpus at ``folder``; only this row is read."""
    manifest = read_corpus(folder)
    number, place = divmod(row, manifest.shard_rows)
    arrays = _map_items(folder, manifest, number)
    identity, item = (cut_one(arrays, name, place) for name in ("ids", "items"))
    return identity.decode(), item


def _map_items(folder: Path, manifest: CorpusManifest, number: int) -> Arrays:
    path = folder / "items" / file_name(number)
    expected, facts, mirror = {"corpus_fingerprint": manifest.fingerprint}, manifest.shards[number], mirror_of(folder)
    with mirror.held(path, facts) if mirror else nullcontext():
        return map_shard(path, checked_header(path, facts["bytes"], number, expected))[0]


# --------------------------------------------------------------------------------------------------- listings


def folders(cache: Path) -> Iterator[tuple[Path, set[str]]]:
    """Every folder under ``cache``, also behind links, with the names of what is in it; a link to an earlier one is not."""
    earlier: set[tuple[int, int]] = set()
    for root, inner, files in os.walk(cache, followlinks=True):
        found = os.stat(root)
        if (found.st_dev, found.st_ino) in earlier:
            inner.clear()
            continue
        earlier.add((found.st_dev, found.st_ino))
        yield Path(root), {*inner, *files}


def corpora(cache: Path) -> list[Path]:
    """Folders under ``cache`` that hold a corpus, also those of tasks inside a corpus."""
    return sorted(path for path, names in folders(cache) if CORPUS in names)


def list_columns(corpus: Path) -> list[Path]:
    """Folders of a corpus that hold a column, teachers first; also one whose manifest is a link to nowhere."""
    columns = [path for kind in KINDS for path in sorted((corpus / kind).glob("*"))]
    return [path for path in columns if os.path.lexists(path / MANIFEST)]
