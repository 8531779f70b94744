"""Lay the rows of a shard out as arrays: embeddings as float16, float32, int8 or bits; rows of different lengths flat."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cache_tools.format.shard import Arrays
from cache_tools.format.statistics import Statistics

if TYPE_CHECKING:
    from torch import Tensor

FLOAT16_MAX = float(np.finfo(np.float16).max)

Array = np.ndarray[Any, Any]

Fields = Mapping[str, tuple[str, tuple[int, ...]]]  # name of a ragged field -> its type on disk, the shape of one element


class Ragged(NamedTuple):
    """Rows of different lengths, flat: ``values`` (total, ...) and ``counts`` (batch,)."""

    values: "Tensor"
    counts: "Tensor"
    longest: int  # the largest count, known to the host: a student on a GPU need not wait for it


# -------------------------------------------------------------------------------------------------- embeddings


def narrow(embedded: Array, dtype: str) -> Array:
    """A batch of finite embeddings (batch, dim), float32; as float16 where ``dtype`` asks for it and every value fits."""
    fits = dtype == "float16" and np.abs(embedded).max(initial=0.0) <= FLOAT16_MAX
    return embedded.astype(np.float16) if fits else embedded


def dense(batches: Sequence[Array], good: Sequence[int], rows: int, dim: int, dtype: str) -> Arrays:
    """The arrays of a shard of embeddings, with their statistics; a row that is not ``good`` is zeros.

    Args:
        batches: embeddings of the good rows; if one batch is wider than float16, the shard is float32.
        good: the rows that could be embedded, in the order of the batches.
        rows: of the shard.
        dim: width of an embedding.
        dtype: ``float16``, ``float32``, ``int8``, or ``bits`` for embeddings of 0 and 1.
    """
    start = {"bits": np.uint8, "float16": np.float16}.get(dtype, np.float32)
    embedded = np.concatenate([np.empty((0, dim), start), *batches])  # (good, dim)
    stored: Arrays = {"embedding": embedded}
    if dtype == "int8":
        stored = quantise(embedded)
        embedded = dequantise(**stored)
    statistics = Statistics.of(embedded)  # of what a reader will get
    full: Array = np.zeros((rows, dim), stored["embedding"].dtype)
    full[good] = stored["embedding"]
    stored["embedding"] = np.packbits(full, axis=1) if dtype == "bits" else full
    return stored | {"statistics/mean": statistics.mean, "statistics/var": statistics.var}


def quantise(rows: Array) -> Arrays:
    """``rows`` (rows, dim) as int8 with a scale and an offset per dimension: ``row ~ embedding * scale + offset``."""
    low, high = (rows.min(0), rows.max(0)) if len(rows) else (np.zeros(rows.shape[1]),) * 2
    low, high = low.astype(np.float32), high.astype(np.float32)
    offset = low / 2 + high / 2  # halves first: the sum of two large floats may overflow
    # of the larger half, for the offset is rounded; a hair above 127, so that what is read back never leaves float32
    scale = np.maximum(np.maximum(high - offset, offset - low) / 127.0001, np.finfo(np.float32).tiny)
    return {"embedding": np.rint((rows - offset) / scale).astype(np.int8), "scale": scale, "offset": offset}


def dequantise(embedding: Array, scale: Array, offset: Array) -> Array:
    """The rows that :func:`quantise` stored, rounded to its steps, float32."""
    rows: Array = embedding * scale + offset
    return rows


# ---------------------------------------------------------------------------------------------------- ragged rows


def ragged_batch(items: Sequence[Mapping[str, Array]], fields: Fields) -> Arrays:
    """A batch of items, each ``field -> (length, *shape)``, as flat ``FIELD/values`` and ``FIELD/counts`` (batch,)."""
    arrays: Arrays = {}
    for name, (dtype, shape) in fields.items():
        with np.errstate(over="ignore"):  # the caller refuses an infinity by its id
            pieces = [np.empty((0, *shape), dtype), *(item[name].astype(dtype) for item in items)]
        arrays[f"{name}/values"] = np.concatenate(pieces)
        arrays[f"{name}/counts"] = np.array([len(piece) for piece in pieces[1:]], np.int64)
    return arrays


def ragged(batches: Sequence[Arrays], good: Sequence[int], rows: int, fields: Fields) -> Arrays:
    """The arrays of a shard of ragged rows: ``FIELD/values`` (total, *shape), ``FIELD/offsets`` (rows + 1,).

    Args:
        batches: what :func:`ragged_batch` made of the good rows.
        good: the rows that could be made, in the order of the batches; any other row is empty.
        rows: of the shard.
        fields: of the column.
    """
    arrays: Arrays = {}
    for name, (dtype, shape) in fields.items():
        values = [np.empty((0, *shape), dtype), *(batch[f"{name}/values"] for batch in batches)]
        counts = [np.empty(0, np.int64), *(batch[f"{name}/counts"] for batch in batches)]
        offsets = np.zeros(rows + 1, np.int64)
        offsets[np.asarray(good, np.int64) + 1] = np.concatenate(counts)
        arrays |= {f"{name}/values": np.concatenate(values), f"{name}/offsets": offsets.cumsum()}
    return arrays


def ragged_bytes(name: str, pieces: Sequence[bytes]) -> Arrays:
    """Byte strings laid out flat: ``NAME/values`` (total,) and ``NAME/offsets`` (rows + 1,)."""
    offsets = np.cumsum([0, *(len(piece) for piece in pieces)], dtype=np.int64)
    return {f"{name}/values": np.frombuffer(b"".join(pieces), np.uint8), f"{name}/offsets": offsets}


def cut(arrays: Arrays, name: str) -> Iterator[bytes]:
    """The byte strings that :func:`ragged_bytes` laid out."""
    values, offsets = arrays[f"{name}/values"].tobytes(), arrays[f"{name}/offsets"].tolist()
    return (values[start:end] for start, end in itertools.pairwise(offsets))


def cut_one(arrays: Arrays, name: str, row: int) -> bytes:
    """The byte string of one row of those that :func:`ragged_bytes` laid out."""
    start, end = arrays[f"{name}/offsets"][row : row + 2].tolist()
    return arrays[f"{name}/values"][start:end].tobytes()
