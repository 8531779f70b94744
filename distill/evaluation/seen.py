"""Which items of a task also stand in a corpus: what a student was trained on cannot be a fair test."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from cache_tools import BadItem, decode_image, parse_smiles, read_corpus, read_items

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def canonical(item: bytes, modality: str) -> bytes:
    """What two equal items share: canonical SMILES; words in lower case; RGB pixels.

    An item that cannot be read stands for itself.
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
    """One number per item, (items,); equal for items that are the same."""
    found = [hashlib.blake2b(canonical(item, modality), digest_size=8).digest() for item in items]
    return np.frombuffer(b"".join(found), np.uint64)


def corpus_hashes(folder: Path) -> Hashes:
    """The hashes of a stored corpus's items, (rows,); made once and kept beside it."""
    corpus = read_corpus(folder)
    path = folder / f"seen-{corpus.fingerprint[:16]}.npy"
    if path.exists():
        kept: Hashes = np.load(path)
        return kept
    made = [hashes(read_items(folder, number)[1], corpus.modality) for number in range(corpus.shard_count)]
    every: Hashes = np.concatenate([np.empty(0, np.uint64), *made])
    with NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as file:
        np.save(file, every)
    os.replace(file.name, path)
    return every
