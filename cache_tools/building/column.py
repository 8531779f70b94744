"""Make one column: run a producer over a corpus, shard by shard. Resumable; safe with concurrent writers."""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from os.path import lexists
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cache_tools.building.claims import Claims
from cache_tools.building.launch import Place, choose_device
from cache_tools.building.pipeline import BatchResult, Item, Pipeline, Ready
from cache_tools.building.progress import Meter
from cache_tools.errors import CacheError, TeacherError
from cache_tools.format import files, packing, store
from cache_tools.format import shard as shards
from cache_tools.format.reader import Column
from cache_tools.format.store import CorpusManifest
from cache_tools.format.summary import SKIPPED, merged_statistics, skipped_rows
from cache_tools.machine import flush_denormals
from cache_tools.moved import current_names
from cache_tools.producer import Producer, as_json, class_path, library_versions, require_same

log = logging.getLogger(__name__)

LOOK = 10.0  # seconds between two looks at what other writers made: of 100,000 shards one look takes seconds

Facts = dict[str, Any]  # of a finished shard: its entry in the column's manifest


@dataclass(frozen=True)
class Settings:
    """How to run the producers. Only ``dtype`` changes the numbers beyond rounding.

    Args:
        batch_size: items that a producer gets at a time.
        device: ``auto`` (a GPU when there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        workers: processes for producers whose time goes into Python, over all writers that a command starts; 0 takes one
            per core.
        dtype: of embeddings on disk; a shard whose values leave float16's range is written as float32. ``int8`` keeps
            256 steps per dimension between the lowest and the highest value of each shard.
        shard_rows: rows of a shard of a new corpus.
    """

    batch_size: int = 256
    device: str = "auto"
    workers: int = 0
    dtype: Literal["float16", "float32", "int8"] = "float16"
    shard_rows: int = store.SHARD_ROWS


@dataclass
class _Shard:
    """A shard that is being made: what its first ``taken`` rows gave."""

    number: int
    ids: list[str]
    taken: int = 0
    good: list[int] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)  # row -> why it is masked
    batches: list[shards.Arrays] = field(default_factory=list)


def pipeline_for(producer: Producer, rows: int, settings: Settings) -> Pipeline:
    """What runs a producer over so many rows; few of them are not worth a process."""
    return Pipeline(producer, 1 if rows < 4 * settings.batch_size else settings.workers)


class Build:
    """Makes one column of one corpus, alone or together with other writers.

    Args:
        folder: the corpus's folder.
        corpus: its manifest.
        name: the column's name.
        producer: what makes it.
        settings: how.
        place: which writer this is, of how many.
        expected: the fingerprint that the producer must have, where another column decides it.
        pipeline: runs the producer for several corpora; enter it around :meth:`run`. One for this corpus when not given.
        made_by: noted in the manifest of a new column; a fit does not learn unasked from what no build made.
    """

    def __init__(
        self,
        folder: Path,
        corpus: CorpusManifest,
        name: str,
        producer: Producer,
        settings: Settings,
        place: Place = Place(),  # noqa: B008 - a tuple
        expected: dict[str, Any] | None = None,
        pipeline: Pipeline | None = None,
        made_by: str = "build",
    ):
        self.folder, self.corpus, self.producer, self.settings = folder, corpus, producer, settings
        self.place, self.expected, self.made_by = place, expected, made_by
        self.header: dict[str, Any] = {}
        self._prepared = False
        self._read_from: Column | None = None
        self.before = self.after = 0  # rows of earlier and of later columns that are made together with it
        self.path = folder / producer.kind / name
        self.claims = Claims(self.path)
        self.pipeline = pipeline or pipeline_for(producer, corpus.rows, settings)
        self.shared, self.rows_made = pipeline is not None, 0
        self.label = f"{corpus.source if folder.parent.name == store.TASKS else folder.name}, {name}"

    def run(self) -> bool:
        """Make the shards that are missing and that no other writer has claimed.

        For a finished column this only reads its manifest and file sizes.

        Returns:
            Whether the column is finished; if not, other writers hold the rest.

        Raises:
            CacheError: when the column on disk was made by something else; the field that differs is named.
        """
        with files.system_errors_in_words(self.folder, others=False):
            return self._run()

    def _run(self) -> bool:
        if not self._prepared:  # the first time
            if self._is_finished():
                return True
            self.prepare()
            self._prepared = True
        done = self._done()
        missing = [number for number in range(self.corpus.shard_count) if number not in done]
        if missing:
            files.sweep(self.path)
            self.make(missing)
            done = self._done()
        if len(done) < self.corpus.shard_count:
            return False
        if missing or not self._manifest()["finished"] or self._lacks_list(done.values()):
            self._finish([done[number] for number in sorted(done)])
        self._tidy_up()
        return True

    def prepare(self) -> None:
        """Load the producer, and create the column or compare it with what is asked for."""
        flush_denormals()
        self.pipeline.load(choose_device(self.settings.device, self.place.local))
        self._open()

    def _is_finished(self) -> bool:
        """Whether the column that is expected is complete on disk: then its producer need not be loaded."""
        if self.expected is None or not lexists(self.path / store.MANIFEST):
            return False
        present = self._manifest()
        same = present["finished"] and _recorded(present) == self._identity(self.expected)
        done = self._done() if same else {}
        return len(done) == self.corpus.shard_count and not self._lacks_list(done.values())

    def _open(self) -> None:
        """Create the manifest, or compare the one on disk with what is asked for."""
        producer: dict[str, Any] = {
            "class_path": class_path(self.producer),
            "init_args": as_json(self.producer.init_args),
            "fingerprint": as_json(self.producer.fingerprint()),
            "libraries": library_versions(),
        }
        if self.expected is not None:
            require_same(self.path, self.expected, producer["fingerprint"])
        fields = self.producer.manifest_fields()
        manifest = {
            "format_version": shards.FORMAT_VERSION,
            "kind": fields["kind"],
            "corpus_fingerprint": self.corpus.fingerprint,
            "producer": producer,
            "rows": self.corpus.rows,
            "shard_rows": self.corpus.shard_rows,
            "requested_dtype": self.settings.dtype,
            "finished": False,
            "shards": [],
            "made_by": self.made_by,
            **fields,
        }
        self.path.mkdir(parents=True, exist_ok=True)
        if not lexists(self.path / store.MANIFEST):
            store.write_manifest(self.path / store.MANIFEST, manifest, keep=True)
        elif not any(self.path.glob("[0-9.]*")):  # no shard was ever made, for instance because the teacher failed
            store.write_manifest(self.path / store.MANIFEST, manifest)
        present = self._manifest()
        require_same(self.path, _recorded(present), self._identity(producer["fingerprint"]))
        self.header = store.identity_of(present)

    def _identity(self, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the content of this column, field by field."""
        fields = {"corpus": self.corpus.fingerprint, "dtype": self.settings.dtype, "shard_rows": self.corpus.shard_rows}
        return {**current_names(fingerprint), **fields}

    def _manifest(self) -> dict[str, Any]:
        return store.read_manifest(self.path / store.MANIFEST)

    def _done(self) -> dict[int, Facts]:
        """Shards that are on disk with the size that their facts say."""
        listed = store.listed_shards(self.path).items()
        return {number: facts for number, facts in listed if store.whole(self._shard(number), facts)}

    def make(self, missing: list[int]) -> None:
        """Claim and make shard after shard; each writer starts with its own share of them."""
        files.require_space(self.path, int(self._rows(missing) * (self.producer.row_bytes(self.settings.dtype) + 1)))
        rank, world = self.place.rank, self.place.world
        turns = sorted(missing, key=lambda number: ((number - rank) % world, number))
        done = rows = masked = size = 0
        looked = time.monotonic()
        mine = set[int]()
        started = deque[_Shard]()
        with ExitStack() as stack:
            claims = stack.enter_context(self.claims)
            if not self.shared:
                stack.enter_context(self.pipeline)
            step = self.pipeline.batch(self.settings.batch_size)
            results = self.pipeline(self._batches(turns, step, claims, started))  # what it starts is not measured
            meter = stack.enter_context(self._meter(missing, shown=rank == 0))
            writer = stack.enter_context(ThreadPoolExecutor(1))  # one shard is written while the next is made
            writing: Future[None] | None = None
            for result in results:
                shard = started[0]
                size += self._add(shard, result)
                meter.at(done + shard.taken, size)
                if shard.taken < len(shard.ids):
                    continue
                started.popleft()
                mine.add(shard.number)
                rows, masked = rows + len(shard.ids), masked + len(shard.bad)
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, shard, claims)
                done += len(shard.ids)
                if time.monotonic() - looked > LOOK:
                    looked, present = time.monotonic(), set(os.listdir(self.path))
                    done = self._rows([each for each in missing if each in mine or shards.file_name(each) in present])
            if writing is not None:
                writing.result()
        self._say_made(rows, masked, meter)

    def _meter(self, missing: list[int], shown: bool = True) -> Meter:
        return Meter(self.label, self._rows(missing), shown, self.before, self.after)

    def _say_made(self, rows: int, masked: int, meter: Meter) -> None:
        self.rows_made += rows
        if rows:
            level = logging.WARNING if masked else logging.DEBUG if self.shared else logging.INFO
            unusable = f", {masked} of them cannot be used, see {self.path / SKIPPED}" if masked else ""
            log.log(level, "%s: %d rows made, %s%s", self.label, rows, meter.speed, unusable)

    def _batches(
        self, turns: Iterable[int], step: int, claims: Claims, started: deque["_Shard"]
    ) -> Iterator[Sequence[Item]]:
        """Batches of ``step`` items of every shard that can be claimed; each such shard is put into ``started``."""
        source = self._source()
        for number in turns:
            if not claims.take(number):
                continue
            if self._adopt(number):
                claims.release(number)
                continue
            ids, items = store.read_items(self.folder, number, self.corpus)
            given = [identity.encode() for identity in ids] if self.producer.by_id else items
            started.append(_Shard(number, ids))
            first = self.corpus.shard_span(number)[0]
            for start in range(0, len(given), step):
                batch = given[start : start + step]
                yield _with_rows(batch, source, first + start) if source else batch

    def _source(self) -> Column | None:
        """The column of this corpus that holds what the producer would first make of each item, when it is finished."""
        if self._read_from or (featuriser := self.producer.reads()) is None:
            return self._read_from
        wanted = current_names(as_json(featuriser.fingerprint())), self.corpus.fingerprint
        for path in (self.folder / featuriser.kind).glob(f"*/{store.MANIFEST}"):
            manifest = store.read_manifest(path)
            found = current_names(manifest["producer"]["fingerprint"]), manifest["corpus_fingerprint"]
            if manifest["finished"] and found == wanted:
                self._read_from = Column(path.parent)
        return self._read_from

    def _rows(self, numbers: list[int]) -> int:
        return sum(self.corpus.shard_span(number)[1] for number in numbers)

    def _shard(self, number: int) -> Path:
        return self.path / shards.file_name(number)

    def _adopt(self, number: int) -> bool:
        """Whether a shard is on disk after all: another writer's, or one whose writer died before its note.

        A file with its name that is not this column's shard is removed.
        """
        path = self._shard(number)
        header = store.remove_foreign(path, number, self._header(number))
        if header is None:
            return False
        note = store.read_note(path.with_suffix(".json"))
        if note and store.whole(path, note):
            return True
        self._note(number, shards.map_shard(path, header)[0], shards.facts(path))
        return True

    def _write(self, shard: "_Shard", claims: Claims) -> None:
        arrays: shards.Arrays = {"valid": np.isin(np.arange(len(shard.ids)), shard.good).astype(np.uint8)}
        if shard.bad:
            arrays |= packing.ragged_bytes("reasons", [shard.bad[row].encode() for row in sorted(shard.bad)])
        arrays |= self.producer.pack_shard(shard.batches, shard.good, len(shard.ids), self.settings.dtype)
        shard.batches.clear()
        written = shards.write_shard(self.path, shard.number, arrays, self._header(shard.number))
        self._note(shard.number, arrays, written)
        claims.release(shard.number)

    def _header(self, number: int) -> dict[str, Any]:
        first, rows = self.corpus.shard_span(number)
        return self.header | {"shard": number, "first_row": first, "rows": rows}

    def _note(self, number: int, arrays: shards.Arrays, file: Facts) -> None:
        """Write the facts of a finished shard beside it, so that writers need no common manifest until the end."""
        rows = {"rows": len(arrays["valid"]), "valid": int(arrays["valid"].sum())}
        dtype = str(arrays["embedding"].dtype) if "embedding" in arrays else ""
        files.write_json(self.path / f"{number:05d}.json", {"file": file["file"], **rows, **file, "dtype": dtype})

    def _add(self, shard: "_Shard", result: BatchResult) -> int:
        """Add the next batch to a shard; the bytes that it needs."""
        start, size = shard.taken, 0
        if result.good:
            rows = [start + position for position in result.good]
            try:
                batch = self.producer.pack_batch(result.values, [shard.ids[row] for row in rows], self.settings.dtype)
            except TeacherError as error:
                raise TeacherError(f"{self.label}: {error}") from None
            shard.batches.append(batch)
            shard.good += rows
            size = sum(array.nbytes for array in batch.values())
        shard.bad |= {start + position: reason for position, reason in result.bad.items()}
        shard.taken += len(result.good) + len(result.bad)
        return size

    def _finish(self, done: list[Facts]) -> None:
        """List the shards in the manifest and the skipped rows in a csv; two writers that do so write the same."""
        self._write_skipped(done)
        manifest = self._manifest() | {"finished": True, "shards": done}
        if manifest["kind"] != "ragged":
            manifest["dtype"] = max((facts["dtype"] for facts in done), key=lambda name: np.dtype(name).itemsize)
            statistics = merged_statistics(self.path, done)
            if not statistics.count:
                raise CacheError(f"{self.label}: not one row could be embedded, see {self.path / SKIPPED}")
            manifest["statistics"] = statistics.to_json()
        store.write_manifest(self.path / store.MANIFEST, manifest)

    def _tidy_up(self) -> None:
        """Remove notes and claims, which a finished column no longer needs; a writer that was killed may have left some."""
        for path in [*self.path.glob(store.NOTES), *self.path.glob(".*.claim")]:
            path.unlink(missing_ok=True)
        files.sweep(self.path)

    def _write_skipped(self, done: list[Facts]) -> None:
        if text := skipped_rows(self.path, self.corpus, done):
            files.write_file(self.path / SKIPPED, text)
        else:
            (self.path / SKIPPED).unlink(missing_ok=True)

    def _lacks_list(self, done: Iterable[Facts]) -> bool:
        """Whether a finished column lost its list of masked rows."""
        return not (self.path / SKIPPED).exists() and any(facts["valid"] < facts["rows"] for facts in done)


def _with_rows(batch: list[bytes], source: Column, first: int) -> list[Item]:
    """The items of a batch as a column's rows from ``first`` on; those that it could not make stay raw."""
    rows = np.arange(first, first + len(batch))
    split = {
        name: np.split(ragged.values.numpy(), ragged.counts.numpy().cumsum()[:-1])
        for name, ragged in source.rows(rows).items()
    }
    return [
        Ready({name: values[place] for name, values in split.items()}) if valid else item
        for place, (item, valid) in enumerate(zip(batch, source.valid(rows).tolist(), strict=True))
    ]


def _recorded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What decided the content of the column that has this manifest, field by field."""
    fields = {"corpus": manifest["corpus_fingerprint"], "dtype": manifest["requested_dtype"]}
    return {**current_names(manifest["producer"]["fingerprint"]), **fields, "shard_rows": manifest["shard_rows"]}
