"""Items of a task that also stand in a corpus: a test on items from training is not fair."""

import hashlib
import io
import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from cache_tools import BadItem, CacheError, decode_image, parse_smiles, read_corpus, read_items, write_file

log = logging.getLogger(__name__)

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def canonical(item: bytes, modality: str) -> bytes:
    """A form that two equal items share: canonical SMILES; words in lower case; RGB pixels.

    An item that cannot be read is its own form.
    """
    try:
        if modality == "molecule":
            from rdkit import Chem

            return bytes(Chem.MolToSmiles(parse_smiles(item)), "utf-8")
        if modality == "image":
            image = decode_image(item)
            return f"{image.size}".encode() + image.tobytes()
    except BadItem:
        return item
    return b" ".join(item.lower().split())


def hashes(items: Iterable[bytes], modality: str) -> Hashes:
    """A number for each item, (items,); equal items have equal numbers."""
    digests = [hashlib.blake2b(canonical(item, modality), digest_size=8).digest() for item in items]
    return np.frombuffer(b"".join(digests), np.uint64)


def corpus_hashes(folder: Path, place: Path | None = None) -> Hashes:
    """The hashes of a stored corpus's items, (rows,); computed once and kept.

    The kept file is in no manifest: its name holds the corpus's fingerprint, numpy compares its checksum when it reads it,
    and a damaged one is computed again.

    Args:
        folder: of the corpus.
        place: a folder to keep them in, when the corpus's own shall stay as it is.
    """
    corpus = read_corpus(folder)
    name = f"seen-{corpus.fingerprint[:16]}.npz"
    for path in (folder / name, (place or folder) / name):
        with (
            suppress(ValueError, EOFError, OSError, KeyError, RuntimeError, BadZipFile),
            np.load(path) as file,
        ):  # missing, or damaged
            kept: Hashes = file["hashes"]
            if kept.shape == (corpus.rows,):
                return kept
    shards = [hashes(read_items(folder, number)[1], corpus.modality) for number in range(corpus.shard_count)]
    every: Hashes = np.concatenate([np.empty(0, np.uint64), *shards])
    content = io.BytesIO()
    np.savez(content, hashes=every)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content.getvalue())
    except (OSError, CacheError) as error:
        log.warning("%s is not kept, the next test computes it again: %s", path, error)
    return every
