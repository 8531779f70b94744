"""Check that a manifest has every key, of the right type and size, before anything relies on it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cache_tools.format.shard import file_name

Check = Callable[[Any], bool]


def _whole_number(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**63


def _positive(value: Any) -> bool:
    return _whole_number(value, 1)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _number_type(value: Any) -> bool:
    return value in ("float16", "float32", "int8", "uint8")


def _ragged_fields(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_ragged_field, value.values()))


def _ragged_field(value: Any) -> bool:
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        return False
    try:
        return np.dtype(value[0]).kind in "fiu" and all(map(_positive, value[1:]))
    except TypeError:
        return False


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) in (int, float) and math.isfinite(number) for number in value)


SHARD: dict[str, tuple[Check, str]] = {
    "rows": (_positive, "a whole number above 0"),
    "bytes": (_positive, "a whole number above 0"),
    "sha256": (_text, "text"),
}
COLUMN_SHARD = SHARD | {"valid": (_whole_number, "a whole number"), "dtype": (_text, "text")}
COMMON: dict[str, tuple[Check, str]] = {
    "rows": (_whole_number, "a whole number"),
    "shard_rows": (_positive, "a whole number above 0"),
}
CORPUS = COMMON | dict.fromkeys(("modality", "fingerprint", "source"), (_text, "text"))
COLUMN = COMMON | {
    "kind": (lambda value: value in ("dense", "bits", "ragged"), "dense, bits or ragged"),
    "corpus_fingerprint": (_text, "text"),
    "producer": (_mapping, "a mapping"),
    "requested_dtype": (_text, "text"),
    "finished": (lambda value: isinstance(value, bool), "true or false"),
}
PRODUCER: dict[str, tuple[Check, str]] = {
    "class_path": (_text, "text"),
    "init_args": (_mapping, "a mapping"),
    "fingerprint": (_mapping, "a mapping"),
}
RAGGED: dict[str, tuple[Check, str]] = {"fields": (_ragged_fields, "name -> [type of its numbers, sizes ...]")}
DENSE: dict[str, tuple[Check, str]] = {"dim": (_positive, "a whole number above 0")}
FINISHED: dict[str, tuple[Check, str]] = {
    "dtype": (_number_type, "float16, float32, int8 or uint8"),
    "statistics": (_mapping, "a mapping"),
}
STATISTICS: dict[str, tuple[Check, str]] = {
    "count": (_whole_number, "a whole number"),
    "mean": (_numbers, "finite numbers"),
    "var": (_numbers, "finite numbers"),
}


COLUMN_KEYS = {"format_version", "shards", "made_by", *COLUMN, *RAGGED, *DENSE, *FINISHED}  # all that a build writes


def manifest_fault(content: Mapping[str, Any], of_corpus: bool) -> str | None:
    """The first thing that is wrong with a manifest of this format, in words; None when nothing is.

    Args:
        content: of ``corpus.json`` or of a column's ``manifest.json``.
        of_corpus: which of the two.
    """
    fault = _first_wrong(content, CORPUS if of_corpus else COLUMN)
    if fault or of_corpus:
        return fault or _wrong_shards(content, SHARD, complete=True)
    fault = _first_wrong(content["producer"], PRODUCER, "producer: ") or _wrong_column(content)
    return fault or _wrong_shards(content, COLUMN_SHARD, content["finished"])


def note_fault(content: object, number: int) -> str | None:
    """The first thing that is wrong with the facts of a column's shard ``number``; None when nothing is."""
    return _wrong_shard(content, number, COLUMN_SHARD)


def _wrong_column(content: Mapping[str, Any]) -> str | None:
    """What is wrong with the keys that depend on a column's kind."""
    if content["kind"] == "ragged":
        return _first_wrong(content, RAGGED)
    fault = _first_wrong(content, DENSE | FINISHED if content["finished"] else DENSE)
    if fault or not content["finished"]:
        return fault
    statistics = content["statistics"]
    if fault := _first_wrong(statistics, STATISTICS, "statistics: "):
        return fault
    for key in ("mean", "var"):
        if len(statistics[key]) != content["dim"]:
            return f"statistics: {key} has {len(statistics[key])} numbers, expected {content['dim']}"
    return None


def _wrong_shards(content: Mapping[str, Any], keys: Mapping[str, tuple[Check, str]], complete: bool) -> str | None:
    """What is wrong with the list of shards; a complete one covers every row."""
    rows, most, shards = content["rows"], content["shard_rows"], content.get("shards")
    if not isinstance(shards, list):
        return f"shards is {_short(shards)}, expected a list"
    for number, shard in enumerate(shards):
        if fault := _wrong_shard(shard, number, keys):
            return fault
        expected = min(most, rows - number * most)
        if complete and shard["rows"] != expected:
            return f"shard {number} has {shard['rows']} rows, expected {expected} of {rows} in shards of {most}"
    if complete and len(shards) != -(-rows // most):
        return f"it lists {len(shards)} shards, expected {-(-rows // most)} for {rows} rows in shards of {most}"
    return None


def _wrong_shard(shard: Any, number: int, keys: Mapping[str, tuple[Check, str]]) -> str | None:
    if not isinstance(shard, dict) or shard.get("file") != file_name(number):  # else it could be anybody's file
        name = shard.get("file") if isinstance(shard, dict) else shard
        return f"it lists {_short(name)} as shard {number}, expected {file_name(number)}"
    return _first_wrong(shard, keys, f"shard {number}: ")


def _first_wrong(content: Mapping[str, Any], keys: Mapping[str, tuple[Check, str]], where: str = "") -> str | None:
    for key, (check, expected) in keys.items():
        if key not in content:
            return f"{where}{key} is missing, expected {expected}"
        if not check(content[key]):
            return f"{where}{key} is {_short(content[key])}, expected {expected}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
