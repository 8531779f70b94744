"""One producer over one corpus, shard by shard; what is there already is not made again."""

import csv
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cache_tools import store
from cache_tools.columns import Featuriser
from cache_tools.console import start_logging
from cache_tools.errors import BadItem, CacheError, TeacherError
from cache_tools.producer import Producer, class_path
from cache_tools.statistics import Statistics
from cache_tools.store import CorpusManifest
from cache_tools.teacher import Teacher

log = logging.getLogger(__name__)

FLOAT16_MAX = float(np.finfo(np.float16).max)
TASKS = "tasks"  # a folder of a corpus; holds the corpora of tasks, which are named by fingerprint
LIBRARIES = ("torch", "numpy", "rdkit", "torch_geometric", "transformers")


@dataclass(frozen=True)
class Settings:
    """How to run the producers; none of it changes the numbers beyond rounding.

    Args:
        batch_size: items that a producer gets at a time.
        device: ``auto`` (a GPU when there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        workers: processes for producers whose time goes into Python; 0 takes one per core.
        dtype: of embeddings on disk; a shard whose values leave float16's range is written as float32.
        shard_rows: rows of a shard of a new corpus.
    """

    batch_size: int = 256
    device: str = "auto"
    workers: int = 0
    dtype: Literal["float16", "float32"] = "float16"
    shard_rows: int = store.SHARD_ROWS


@dataclass(frozen=True)
class Made:
    """What one batch came to: values of the good positions, and why the others are bad."""

    good: list[int]
    values: Any  # (good, dim) of a teacher; a list of field -> array of a featuriser
    bad: dict[int, str]


def make(producer: Producer, items: list[bytes]) -> Made:
    """Prepare ``items`` and run ``producer`` on those that can be used."""
    prepared: dict[int, Any] = {}
    bad: dict[int, str] = {}
    for position, item in enumerate(items):
        try:
            ready = producer.prepare(item)
            prepared[position] = producer.featurise(ready) if isinstance(producer, Featuriser) else ready
        except (BadItem, UnicodeDecodeError) as error:
            bad[position] = str(error)
    values: Any = list(prepared.values())
    if isinstance(producer, Teacher) and prepared:
        values = np.asarray(producer.embed(values))
        if values.shape != (len(prepared), producer.dim):
            raise TeacherError(
                f"{class_path(producer)} gave an array of shape {values.shape}, expected {(len(prepared), producer.dim)}"
            )
    return Made(list(prepared), values, bad)


_worker: Producer


def _start_worker(producer: Producer) -> None:
    import torch

    global _worker  # noqa: PLW0603 - a pool can hand state to its workers in no other way
    start_logging()
    torch.set_num_threads(1)
    producer.load("cpu")
    _worker = producer


def _work(items: list[bytes]) -> Made:
    return make(_worker, items)


class Build:
    """Makes one column of one corpus.

    Args:
        folder: the corpus's folder.
        corpus: its manifest.
        kind: ``teachers`` or ``inputs``.
        name: the column's name.
        producer: what makes it.
        settings: how.
        expected: the fingerprint that the producer must have, where another column decides it.
    """

    def __init__(
        self,
        folder: Path,
        corpus: CorpusManifest,
        kind: str,
        name: str,
        producer: Producer,
        settings: Settings,
        expected: dict[str, Any] | None = None,
    ):
        self.expected = expected
        self.folder, self.corpus, self.producer, self.settings = folder, corpus, producer, settings
        self.path = folder / kind / name
        self.label = f"{corpus.source if folder.parent.name == TASKS else folder.name}, {name}"

    def run(self) -> None:
        """Make what is missing; a finished column costs a look at its manifest and file sizes.

        Raises:
            CacheError: when the column on disk was made by something else; the field that differs is named.
        """
        self.producer.load(_device(self.settings.device))
        producer: dict[str, Any] = {
            "class_path": class_path(self.producer),
            "init_args": _plain(self.producer.init_args),
            "fingerprint": _plain(self.producer.fingerprint()),
            "libraries": dict(_versions()),
        }
        if self.expected is not None:
            self._same(self.expected, producer["fingerprint"])
        self.header = {"corpus_fingerprint": self.corpus.fingerprint, "producer": store.producer_key(producer)}
        done = self._done(producer["fingerprint"])
        missing = [number for number in range(self.corpus.shard_count) if number not in done]
        if not missing:
            log.debug("%s: nothing to do", self.label)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        store.sweep(self.path)
        with ExitStack() as stack:
            batches = self._pool(stack)
            progress = stack.enter_context(_progress())
            rows = sum(self.corpus.shard_span(number)[1] for number in missing)
            task = progress.add_task(self.label, total=rows)
            for number in missing:
                done[number] = self._adopt(number) or self._make(number, batches, lambda n: progress.advance(task, n))
                self._write_manifest(producer, done)
        masked = sum(done[number]["rows"] - done[number]["valid"] for number in missing)
        what = f", {masked} of them cannot be used, see {self.path / 'skipped.csv'}" if masked else ""
        log.log(logging.WARNING if masked else logging.INFO, "%s: %d rows made%s", self.label, rows, what)

    def _pool(self, stack: ExitStack) -> Any:
        workers = self.settings.workers or os.cpu_count() or 1
        if not self.producer.python_bound or workers == 1 or self.corpus.rows < 4 * self.settings.batch_size:
            return lambda chunks: (make(self.producer, chunk) for chunk in chunks)
        # forkserver: a fork of a process that has threads may hang
        context = multiprocessing.get_context("forkserver")
        pool = stack.enter_context(ProcessPoolExecutor(workers, context, _start_worker, (self.producer,)))
        return lambda chunks: pool.map(_work, chunks)

    def _done(self, fingerprint: dict[str, Any]) -> dict[int, dict[str, Any]]:
        path = self.path / store.MANIFEST
        if not path.exists():
            return {}
        manifest = store.read_manifest(path)
        recorded = {
            **manifest["producer"]["fingerprint"],
            "corpus": manifest["corpus_fingerprint"],
            "dtype": manifest["requested_dtype"],
        }
        self._same(recorded, {**fingerprint, "corpus": self.corpus.fingerprint, "dtype": self.settings.dtype})
        return {int(Path(each["file"]).stem): each for each in manifest["shards"] if store.whole(self.path, each)}

    def _same(self, recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
        for key in sorted(recorded.keys() | wanted.keys()):
            if recorded.get(key) != wanted.get(key):
                raise CacheError(
                    f"{self.path} was made with {key} = {recorded.get(key)!r}, now it is {wanted.get(key)!r}: "
                    "give the new one another name, or delete that folder to make it again"
                )

    def _adopt(self, number: int) -> dict[str, Any] | None:
        """The manifest row of a shard that was finished just before its writer died."""
        path = self.path / f"{number:05d}.h5"
        try:
            arrays, attributes = store.map_shard(path)
        except CacheError:
            return None
        if {key: attributes.get(key) for key in self.header} != self.header:
            return None
        facts = {"file": path.name, "bytes": path.stat().st_size, "sha256": store.sha256(path)}
        return facts | _shard_row(arrays)

    def _make(self, number: int, batches: Any, advance: Any) -> dict[str, Any]:
        ids, items = store.read_items(self.folder, number)
        size = self.settings.batch_size
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        good: list[int] = []
        values: list[Any] = []
        bad: dict[int, str] = {}
        for index, made in enumerate(batches(chunks)):
            good += [index * size + position for position in made.good]
            bad |= {index * size + position: reason for position, reason in made.bad.items()}
            values += [made.values] if isinstance(made.values, np.ndarray) else made.values
            advance(len(chunks[index]))
        first, rows = self.corpus.shard_span(number)
        self._write_skipped(first, [(first + row, ids[row], reason) for row, reason in bad.items()])
        arrays: store.Arrays = {"valid": np.isin(np.arange(rows), good).astype(np.uint8)}
        if isinstance(self.producer, Teacher):
            arrays |= self._dense(rows, good, values, ids)
        else:
            arrays |= self._ragged(rows, good, values)
        facts = store.write_shard(
            self.path, number, arrays, self.header | {"shard": number, "first_row": first, "rows": rows}
        )
        return facts | _shard_row(arrays)

    def _dense(self, rows: int, good: list[int], values: list[Any], ids: list[str]) -> store.Arrays:
        assert isinstance(self.producer, Teacher)
        binary = self.producer.binary
        embedded = np.concatenate([np.empty((0, self.producer.dim), np.float32), *values])
        if not np.isfinite(embedded).all():
            row = good[int(np.flatnonzero(~np.isfinite(embedded).all(1))[0])]
            raise TeacherError(f"{self.label}: the embedding of id {ids[row]!r} has a NaN or an infinity; nothing written")
        if binary and not np.isin(embedded, (0, 1)).all():
            raise TeacherError(f"{self.label}: {class_path(self.producer)} is binary but gave values beside 0 and 1")
        wide = self.settings.dtype == "float32" or np.abs(embedded).max(initial=0.0) > FLOAT16_MAX
        full = np.zeros((rows, self.producer.dim), np.uint8 if binary else np.float32 if wide else np.float16)
        full[good] = embedded
        statistics = Statistics.of(full[good])  # of what is on disk
        return {
            "embedding": np.packbits(full, axis=1) if binary else full,
            "statistics/mean": statistics.mean,
            "statistics/var": statistics.var,
        }

    def _ragged(self, rows: int, good: list[int], values: list[Any]) -> store.Arrays:
        assert isinstance(self.producer, Featuriser)
        arrays: store.Arrays = {}
        for field, (dtype, shape) in self.producer.fields.items():
            pieces = [np.empty((0, *shape), dtype)] * rows
            for row, value in zip(good, values, strict=True):
                pieces[row] = value[field]
            arrays |= store.ragged(field, pieces, dtype, shape)
        return arrays

    def _write_skipped(self, first: int, bad: list[tuple[int, str, str]]) -> None:
        path = self.path / "skipped.csv"
        rows = range(first, first + self.corpus.shard_rows)
        kept: list[Any] = []
        if path.exists():
            with open(path, newline="") as file:
                kept = [line for line in list(csv.reader(file))[1:] if int(line[0]) not in rows]
        if kept or bad:
            with open(path, "w", newline="") as file:
                csv.writer(file).writerows([("row", "id", "reason"), *kept, *bad])

    def _write_manifest(self, producer: dict[str, Any], done: dict[int, dict[str, Any]]) -> None:
        shards = [done[number] for number in sorted(done)]
        manifest = {
            "format_version": store.FORMAT_VERSION,
            "kind": "ragged",
            "corpus_fingerprint": self.corpus.fingerprint,
            "producer": producer,
            "rows": self.corpus.rows,
            "shard_rows": self.corpus.shard_rows,
            "finished": len(done) == self.corpus.shard_count,
            "requested_dtype": self.settings.dtype,
            "shards": shards,
        }
        if isinstance(self.producer, Teacher):
            manifest |= {"kind": "bits" if self.producer.binary else "dense", "dim": self.producer.dim}
            manifest["dtype"] = max((shard["dtype"] for shard in shards), key=lambda name: np.dtype(name).itemsize)
            if manifest["finished"]:
                manifest["statistics"] = self._statistics(shards).to_json()
        elif isinstance(self.producer, Featuriser):
            manifest["fields"] = {name: [dtype, *shape] for name, (dtype, shape) in self.producer.fields.items()}
        store.write_json(self.path / store.MANIFEST, manifest)

    def _statistics(self, shards: list[dict[str, Any]]) -> Statistics:
        total = Statistics(0, np.zeros(0), np.zeros(0))
        for shard in shards:
            arrays, _ = store.map_shard(self.path / shard["file"], shard["bytes"])
            part = Statistics(shard["valid"], np.array(arrays["statistics/mean"]), np.array(arrays["statistics/var"]))
            total = total.merge(part)
        if not total.count:
            raise CacheError(f"{self.label}: not one row could be embedded, see {self.path / 'skipped.csv'}")
        return total


def _shard_row(arrays: store.Arrays) -> dict[str, Any]:
    row = {"rows": len(arrays["valid"]), "valid": int(arrays["valid"].sum())}
    return row | ({"dtype": str(arrays["embedding"].dtype)} if "embedding" in arrays else {})


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """As JSON would give them back: paths as text, tuples as lists."""
    plain: dict[str, Any] = json.loads(json.dumps(arguments, default=str))
    return plain


def _device(device: str) -> str:
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _versions() -> Iterator[tuple[str, str]]:
    for library in LIBRARIES:
        try:
            yield library, version(library)
        except PackageNotFoundError:
            continue


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
