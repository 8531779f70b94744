"""One producer over one corpus, shard by shard; what is there already is not made again, and many may work at once."""

import csv
import io
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cache_tools.building.claims import Claims
from cache_tools.building.launch import Place, choose_device
from cache_tools.building.pipeline import Pipeline
from cache_tools.building.progress import Meter
from cache_tools.errors import CacheError, TeacherError
from cache_tools.format import shard as shards
from cache_tools.format import store
from cache_tools.format.statistics import Statistics
from cache_tools.format.store import CorpusManifest
from cache_tools.inputs import Featuriser
from cache_tools.moved import current_names
from cache_tools.producer import Producer, as_json, class_path, libraries, require_same
from cache_tools.teachers.base import Teacher

log = logging.getLogger(__name__)


FLOAT16_MAX = float(np.finfo(np.float16).max)

TASKS = "tasks"  # a folder of a corpus; holds the corpora of tasks, which are named by fingerprint

SKIPPED = "skipped.csv"


@dataclass(frozen=True)
class Settings:
    """How to run the producers; but for ``dtype``, none of it changes the numbers beyond rounding.

    Args:
        batch_size: items that a producer gets at a time.
        device: ``auto`` (a GPU when there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        workers: processes for producers whose time goes into Python; 0 takes one per core.
        dtype: of embeddings on disk; a shard whose values leave float16's range is written as float32. ``int8`` keeps
            256 steps per dimension between the lowest and the highest value of each shard.
        shard_rows: rows of a shard of a new corpus.
    """

    batch_size: int = 256
    device: str = "auto"
    workers: int = 0
    dtype: Literal["float16", "float32", "int8"] = "float16"
    shard_rows: int = store.SHARD_ROWS


@dataclass(frozen=True)
class ShardFacts:
    """A row of a column's manifest."""

    file: str
    rows: int
    valid: int
    bytes: int
    sha256: str
    dtype: str = ""


class Build:
    """Makes one column of one corpus, alone or beside other writers.

    Args:
        folder: the corpus's folder.
        corpus: its manifest.
        kind: ``teachers`` or ``inputs``.
        name: the column's name.
        producer: what makes it.
        settings: how.
        place: which writer this is, of how many.
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
        place: Place = Place(),  # noqa: B008 - a tuple
        expected: dict[str, Any] | None = None,
    ):
        self.folder, self.corpus, self.producer, self.settings = folder, corpus, producer, settings
        self.place, self.expected = place, expected
        self.header: dict[str, Any] = {}
        self.path = folder / kind / name
        self.label = f"{corpus.source if folder.parent.name == TASKS else folder.name}, {name}"

    def run(self) -> bool:
        """Make what is missing and nobody else is making; a finished column costs a look at its manifest and file sizes.

        Returns:
            Whether the column is finished; if not, other writers hold the rest.

        Raises:
            CacheError: when the column on disk was made by something else; the field that differs is named.
        """
        with shards.full_disk_in_words(self.path.parent):
            return self._run()

    def _run(self) -> bool:
        if not self.header:  # the first time
            if self._is_made():
                return True
            self.producer.load(choose_device(self.settings.device, self.place.local))
            self._open()
        done = self._done()
        missing = [number for number in range(self.corpus.shard_count) if number not in done]
        if missing:
            shards.sweep(self.path)
            self._require_space(missing)
            self._make_missing(missing)
            done = self._done()
        if len(done) < self.corpus.shard_count:
            return False
        if missing or not self._manifest()["finished"]:
            self._finish([done[number] for number in sorted(done)])
        self._tidy_up()
        return True

    def _is_made(self) -> bool:
        """Whether the column that is expected is there whole: then its producer need not even be loaded."""
        if self.expected is None or not (self.path / store.MANIFEST).exists():
            return False
        there = self._manifest()
        wanted: dict[str, Any] = {"producer": {"fingerprint": self.expected}, "corpus_fingerprint": self.corpus.fingerprint}
        wanted |= {"requested_dtype": self.settings.dtype, "shard_rows": self.corpus.shard_rows}
        return there["finished"] and _identity(there) == _identity(wanted) and len(self._done()) == self.corpus.shard_count

    def _open(self) -> None:
        """Create the manifest, or compare what is there with what is asked for."""
        producer: dict[str, Any] = {
            "class_path": class_path(self.producer),
            "init_args": as_json(self.producer.init_args),
            "fingerprint": as_json(self.producer.fingerprint()),
            "libraries": libraries(),
        }
        if self.expected is not None:
            require_same(self.path, self.expected, producer["fingerprint"])
        manifest = {
            "format_version": shards.FORMAT_VERSION,
            "kind": "ragged",
            "corpus_fingerprint": self.corpus.fingerprint,
            "producer": producer,
            "rows": self.corpus.rows,
            "shard_rows": self.corpus.shard_rows,
            "requested_dtype": self.settings.dtype,
            "finished": False,
            "shards": [],
        }
        if isinstance(self.producer, Teacher):
            manifest |= {"kind": "bits" if self.producer.binary else "dense", "dim": self.producer.dim}
        elif isinstance(self.producer, Featuriser):
            manifest["fields"] = {name: [dtype, *shape] for name, (dtype, shape) in self.producer.fields.items()}
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / store.MANIFEST).exists():
            shards.write_json(self.path / store.MANIFEST, manifest, keep=True)
        elif not any(self.path.glob("[0-9.]*")):  # nothing was ever made, for instance of a teacher since mended
            shards.write_json(self.path / store.MANIFEST, manifest)
        there = self._manifest()
        require_same(self.path, _identity(there), _identity(manifest))
        self.header = store.identity_of(there)

    def _manifest(self) -> dict[str, Any]:
        return store.read_manifest(self.path / store.MANIFEST)

    def _done(self) -> dict[int, ShardFacts]:
        """Shards that are there whole."""
        listed = store.listed_shards(self.path).items()
        return {number: ShardFacts(**each) for number, each in listed if store.whole(self._shard(number), each)}

    def _require_space(self, missing: list[int]) -> None:
        if isinstance(self.producer, Teacher):
            width = self.producer.dim * (1 / 8 if self.producer.binary else np.dtype(self.settings.dtype).itemsize)
            rows = sum(self.corpus.shard_span(number)[1] for number in missing)
            shards.require_space(self.path, int(rows * (width + 1)))

    def _make_missing(self, missing: list[int]) -> None:
        """Claim shard after shard, beginning with those of this writer's own turn."""
        rank, world = self.place.rank, self.place.world
        turns = sorted(missing, key=lambda number: ((number - rank) % world, number))
        made = masked = size = 0
        mine: set[int] = set()
        with ExitStack() as stack:
            claims = stack.enter_context(Claims(self.path))
            few = self.corpus.rows < 4 * self.settings.batch_size  # not worth a process
            pipeline = stack.enter_context(Pipeline(self.producer, 1 if few else self.settings.workers))
            meter = stack.enter_context(Meter(self.label, self._rows(missing), shown=rank == 0))
            writer = stack.enter_context(ThreadPoolExecutor(1))  # one shard is written while the next is made
            writing: Future[ShardFacts] | None = None
            for number in turns:
                if not claims.take(number):
                    continue
                if self._adopt(number):
                    claims.release(number)
                    continue
                over = [each for each in missing if each in mine or self._is_there(each)]
                arrays = self._arrays(number, pipeline, partial(_advance, meter, self._rows(over), size))
                size += sum(array.nbytes for array in arrays.values())
                meter.at(self._rows(over) + len(arrays["valid"]), size)
                mine.add(number)
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, number, arrays, claims)
                made += len(arrays["valid"])
                masked += int(len(arrays["valid"]) - arrays["valid"].sum())
            if writing is not None:
                writing.result()
        if made:
            what = f", {masked} of them cannot be used, see {self.path / SKIPPED}" if masked else ""
            log.log(
                logging.WARNING if masked else logging.INFO, "%s: %d rows made, %s%s", self.label, made, meter.speed, what
            )

    def _rows(self, numbers: list[int]) -> int:
        return sum(self.corpus.shard_span(number)[1] for number in numbers)

    def _shard(self, number: int) -> Path:
        return self.path / shards.file_name(number)

    def _is_there(self, number: int) -> bool:
        return self._shard(number).exists()

    def _adopt(self, number: int) -> bool:
        """Whether a shard is there after all: another writer's, or one whose writer died before its note.

        What is there but is not this column's shard is removed.
        """
        path = self._shard(number)
        header = store.remove_foreign(path, number, self._header(number))
        if header is None:
            return False
        note = store.read_note(path.with_suffix(".json"))
        if note and store.whole(path, note):
            return True
        arrays, _ = shards.map_shard(path, header)
        self._note(number, arrays, {"file": path.name, "bytes": path.stat().st_size, "sha256": shards.sha256(path)})
        return True

    def _write(self, number: int, arrays: shards.Arrays, claims: Claims) -> ShardFacts:
        note = self._note(number, arrays, shards.write_shard(self.path, number, arrays, self._header(number)))
        claims.release(number)
        return note

    def _header(self, number: int) -> dict[str, Any]:
        first, rows = self.corpus.shard_span(number)
        return self.header | {"shard": number, "first_row": first, "rows": rows}

    def _note(self, number: int, arrays: shards.Arrays, facts: dict[str, Any]) -> ShardFacts:
        """Write the facts of a finished shard beside it, so that writers need no common manifest until the end."""
        dtype = str(arrays["embedding"].dtype) if "embedding" in arrays else ""
        note = ShardFacts(rows=len(arrays["valid"]), valid=int(arrays["valid"].sum()), dtype=dtype, **facts)
        shards.write_json(self.path / f"{number:05d}.json", asdict(note))
        return note

    def _arrays(self, number: int, pipeline: Pipeline, advance: Any) -> shards.Arrays:
        ids, items = store.read_items(self.folder, number)
        given = [identity.encode() for identity in ids] if self.producer.by_id else items
        size = self.settings.batch_size
        batches = [given[start : start + size] for start in range(0, len(given), size)]
        good: list[int] = []
        values: list[Any] = []
        bad: dict[int, str] = {}
        bytes_made = 0
        for index, made in enumerate(pipeline(batches)):
            good += [index * size + position for position in made.good]
            bad |= {index * size + position: reason for position, reason in made.bad.items()}
            values += [self._checked(made.values, ids, good)] if isinstance(made.values, np.ndarray) else made.values
            bytes_made += values[-1].nbytes if isinstance(made.values, np.ndarray) else 0
            advance(index * size + len(batches[index]), bytes_made)
        rows = len(ids)
        arrays: shards.Arrays = {"valid": np.isin(np.arange(rows), good).astype(np.uint8)}
        if bad:
            arrays |= store.ragged_bytes("reasons", [bad[row].encode() for row in sorted(bad)])
        return arrays | (
            self._dense(rows, good, values) if isinstance(self.producer, Teacher) else self._ragged(ids, good, values)
        )

    def _checked(self, embedded: np.ndarray[Any, Any], ids: list[str], good: list[int]) -> np.ndarray[Any, Any]:
        """A batch as it will be stored, refused where it is no embedding."""
        binary = isinstance(self.producer, Teacher) and self.producer.binary
        if not binary:
            with np.errstate(over="ignore"):
                embedded = embedded.astype(np.float32, copy=False)  # first: what it cannot hold is an infinity
        if not np.isfinite(embedded).all():
            row = good[len(good) - len(embedded) + int(np.flatnonzero(~np.isfinite(embedded).all(1))[0])]
            raise TeacherError(f"{self.label}: the embedding of id {ids[row]!r} has a NaN or an infinity; nothing written")
        if binary:
            if not np.isin(embedded, (0, 1)).all():
                raise TeacherError(f"{self.label}: {class_path(self.producer)} is binary but gave values beside 0 and 1")
            return embedded.astype(np.uint8)
        narrow = self.settings.dtype == "float16" and np.abs(embedded).max(initial=0.0) <= FLOAT16_MAX
        return embedded.astype(np.float16) if narrow else embedded

    def _dense(self, rows: int, good: list[int], values: list[Any]) -> shards.Arrays:
        assert isinstance(self.producer, Teacher)
        start = np.uint8 if self.producer.binary else np.float16 if self.settings.dtype == "float16" else np.float32
        embedded = np.concatenate([np.empty((0, self.producer.dim), start), *values])  # float32 if one batch is
        stored: shards.Arrays = {"embedding": embedded}
        if self.settings.dtype == "int8" and not self.producer.binary:
            stored = store.quantise(embedded)
            embedded = store.dequantise(**stored)
        statistics = Statistics.of(embedded)  # of what a reader will get
        full: np.ndarray[Any, Any] = np.zeros((rows, self.producer.dim), stored["embedding"].dtype)
        full[good] = stored["embedding"]
        stored["embedding"] = np.packbits(full, axis=1) if self.producer.binary else full
        return stored | {"statistics/mean": statistics.mean, "statistics/var": statistics.var}

    def _ragged(self, ids: list[str], good: list[int], values: list[Any]) -> shards.Arrays:
        assert isinstance(self.producer, Featuriser)
        arrays: shards.Arrays = {}
        for field, (dtype, shape) in self.producer.fields.items():
            pieces = [np.empty((0, *shape), dtype)] * len(ids)
            for row, value in zip(good, values, strict=True):
                with np.errstate(over="ignore"):
                    pieces[row] = value[field].astype(dtype)
                if np.dtype(dtype).kind == "f" and not np.isfinite(pieces[row]).all():
                    raise TeacherError(
                        f"{self.label}: {field} of id {ids[row]!r} has a NaN or an infinity; nothing written"
                    )
            arrays |= store.ragged(field, pieces, dtype, shape)
        return arrays

    def _finish(self, done: list[ShardFacts]) -> None:
        """List the shards in the manifest and the skipped rows in a csv; two writers that do so write the same."""
        self._write_skipped(done)
        manifest = self._manifest() | {"finished": True, "shards": [asdict(each) for each in done]}
        if isinstance(self.producer, Teacher):
            manifest["dtype"] = max((each.dtype for each in done), key=lambda name: np.dtype(name).itemsize)
            manifest["statistics"] = self._statistics(done).to_json()
        shards.write_json(self.path / store.MANIFEST, manifest)

    def _tidy_up(self) -> None:
        """Remove what is of no use beside a finished column; a writer that was killed while finishing left it."""
        for path in [*self.path.glob(store.NOTES), *self.path.glob(".*.claim")]:
            path.unlink(missing_ok=True)
        shards.sweep(self.path)

    def _write_skipped(self, done: list[ShardFacts]) -> None:
        bad = [line for number, each in enumerate(done) if each.valid < each.rows for line in self._skipped(number)]
        if not bad:
            (self.path / SKIPPED).unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("row", "id", "reason"), *bad])
        shards.write_file(self.path / SKIPPED, text.getvalue())

    def _skipped(self, number: int) -> Iterator[tuple[int, str, str]]:
        arrays, _ = shards.map_shard(self.path / shards.file_name(number))
        ids, _ = store.read_items(self.folder, number)
        first, _ = self.corpus.shard_span(number)
        for row, reason in zip(np.flatnonzero(arrays["valid"] == 0).tolist(), store.cut(arrays, "reasons"), strict=True):
            yield first + row, ids[row], reason.decode()

    def _statistics(self, done: list[ShardFacts]) -> Statistics:
        total = Statistics(0, np.zeros(0), np.zeros(0))
        for each in done:
            arrays, _ = shards.map_shard(self.path / each.file)
            part = Statistics(each.valid, np.array(arrays["statistics/mean"]), np.array(arrays["statistics/var"]))
            total = total.merge(part)
        if not total.count:
            raise CacheError(f"{self.label}: not one row could be embedded, see {self.path / SKIPPED}")
        return total


def _advance(meter: Meter, elsewhere: int, before: int, rows: int, size: int) -> None:
    meter.at(elsewhere + rows, before + size)


def _identity(manifest: dict[str, Any]) -> dict[str, Any]:
    """What decides a column's content, field by field."""
    fields = {"corpus": manifest["corpus_fingerprint"], "dtype": manifest["requested_dtype"]}
    return {**current_names(manifest["producer"]["fingerprint"]), **fields, "shard_rows": manifest["shard_rows"]}
