"""Check that a shard of a column holds what the column's manifest promises."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cache_tools.errors import CacheError
from cache_tools.format.shard import Header, file_name, map_shard
from cache_tools.format.store import checked_header, identity_of


def column_header(path: Path, manifest: Mapping[str, Any], number: int, shard: Mapping[str, Any]) -> Header:
    """The header of shard ``number`` of the column at ``path``, with all that the reader relies on.

    Raises:
        CacheError: when the shard is missing, belongs elsewhere, or holds something else than its manifest promises.
    """
    file = path / file_name(number)
    header = checked_header(file, shard["bytes"], number, identity_of(manifest))
    _check_layout(file, header, manifest, shard["rows"])
    for field in manifest.get("fields", ()):
        _check_offsets(file, header, field)
    return header


def _check_layout(path: Path, header: Header, manifest: Mapping[str, Any], rows: int) -> None:
    """Check that the shard holds what its column's manifest promises; the reader relies on these shapes."""
    expected: dict[str, tuple[str, tuple[int | None, ...]]] = {"valid": ("uint8", (rows,))}
    if manifest["kind"] == "ragged":
        for name, (dtype, *shape) in manifest["fields"].items():
            expected[f"{name}/values"] = dtype, (None, *shape)
            expected[f"{name}/offsets"] = "int64", (rows + 1,)
    elif manifest["kind"] == "bits":
        expected["embedding"] = "uint8", (rows, -(-manifest["dim"] // 8))
    else:
        narrower = "float16 " if manifest["dtype"] == "float32" else ""  # shards of a widened column
        expected["embedding"] = narrower + manifest["dtype"], (rows, manifest["dim"])
        if manifest["dtype"] == "int8":
            expected |= dict.fromkeys(("scale", "offset"), ("float32", (manifest["dim"],)))
    for name, (dtypes, wanted) in expected.items():
        if name not in header.fields:
            raise CacheError(f"shard {path} has no data set {name}: delete it and build again")
        _, dtype, shape = header.fields[name]
        fits = len(shape) == len(wanted) and all(w in (None, size) for w, size in zip(wanted, shape, strict=True))
        if str(dtype) not in dtypes.split() or not fits:
            raise CacheError(
                f"shard {path}: {name} is {dtype} {shape}, expected {dtypes.replace(' ', ' or ')} {wanted}: "
                "delete it and build again"
            )


def _check_offsets(path: Path, header: Header, field: str) -> None:
    """Check that the rows of a ragged field follow each other and end where its values end; a gather relies on it."""
    offsets = map_shard(path, header)[0][f"{field}/offsets"]
    values = header.fields[f"{field}/values"][2][0]
    if offsets[0] != 0 or offsets[-1] != values or (np.diff(offsets) < 0).any():
        raise CacheError(
            f"shard {path}: {field}/offsets do not cut the {values} values into rows: delete it and build again"
        )
