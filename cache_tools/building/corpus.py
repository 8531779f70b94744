"""Make a corpus with all of its columns: store the items, then run every producer over them."""

import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from os.path import lexists
from pathlib import Path
from typing import Any

from cache_tools.building.column import Build, Settings, pipeline_for
from cache_tools.building.launch import Place
from cache_tools.building.progress import EVERY
from cache_tools.building.remote import RemoteBuild
from cache_tools.cluster import Cluster
from cache_tools.corpora.base import Corpus
from cache_tools.errors import CacheError
from cache_tools.format import store
from cache_tools.format.files import sweep, system_errors_in_words
from cache_tools.format.store import CorpusManifest
from cache_tools.producer import Producer, class_path, rebuild

WAIT = 0.5  # seconds between looks at what other writers are making
SAY = 60.0  # seconds between words about them
NAMED = 3  # columns that wait are named, at most

log = logging.getLogger(__name__)


def build(
    cache: str | Path,
    name: str,
    corpus: Corpus,
    teachers: Mapping[str, Producer],
    inputs: Mapping[str, Producer],
    settings: Settings | None = None,
    place: Place = Place(),  # noqa: B008 - a tuple
    cluster: Cluster | None = None,
) -> Path:
    """Store ``corpus`` as ``cache/name`` and make every column that it lacks.

    Args:
        cache: the cache's folder.
        name: of the corpus's folder in it.
        corpus: the items.
        teachers: column name -> teacher.
        inputs: column name -> featuriser of a student's input.
        settings: how to run them.
        place: which of several writers this one is.
        cluster: makes the shards; this process alone when not given.

    Returns:
        The corpus's folder.

    Raises:
        CacheError: when ``name`` cannot be a folder's, it holds another corpus, or a column was made by something else.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):  # it becomes one folder inside the cache, never a path
        raise CacheError(f"a corpus cannot be called {name!r}: use letters, digits, _, - and .")
    settings = settings or Settings()
    folder = Path(cache) / name
    manifest = store_corpus(folder, corpus, settings.shard_rows)
    named = [*inputs.items(), *teachers.items()]  # with its inputs, a build that was interrupted can already be used
    for column, producer in named:
        check_column(folder, manifest, column, producer)
    if cluster is None:
        run_builds([Build(folder, manifest, column, producer, settings, place) for column, producer in named])
    else:
        run_builds([RemoteBuild(folder, manifest, column, producer, settings, cluster) for column, producer in named])
    return folder


def add_column(folder: Path, name: str, producer: Producer, settings: Settings | None = None) -> Path:
    """Make one more column of the corpus that is stored at ``folder``.

    Returns:
        The column's folder.

    Raises:
        CacheError: when there is no corpus, or the column was made by something else.
    """
    return add_columns([folder], name, producer, settings)[0]


def add_columns(folders: Iterable[Path], name: str, producer: Producer, settings: Settings | None = None) -> list[Path]:
    """Make one more column of each of several corpora; see :func:`add_column`."""
    listed = list(folders)
    manifests = {folder: store.read_corpus(folder) for folder in listed}
    for folder, manifest in manifests.items():
        check_column(folder, manifest, name, producer)
    run_builds(_builds(manifests, name, producer, settings or Settings(), made_by="add_column"))
    return [folder / producer.kind / name for folder in listed]


def _builds(
    manifests: Mapping[Path, CorpusManifest], name: str, producer: Producer, settings: Settings, **facts: Any
) -> list[Build]:
    """A build for each corpus; the producer is loaded once, and its processes start once."""
    paths = {folder: folder / producer.kind / name / store.MANIFEST for folder in manifests}
    finished = {folder for folder, path in paths.items() if lexists(path) and store.read_manifest(path)["finished"]}
    rows = sum(manifest.rows for folder, manifest in manifests.items() if folder not in finished)
    pipeline = pipeline_for(producer, rows, settings) if len(manifests) > 1 else None
    return [
        Build(folder, manifest, name, producer, settings, pipeline=pipeline, **facts)
        for folder, manifest in manifests.items()
    ]


def run_builds(builds: Sequence[Build]) -> None:
    """Run every build until its column is finished: wait for shards of other writers, take over those of dead ones."""
    rows = [build.corpus.rows for build in builds]
    for number, build in enumerate(builds):
        build.before, build.after = sum(rows[:number]), sum(rows[number + 1 :])
    unfinished, said = _run_once(builds), -math.inf
    while unfinished:
        if time.monotonic() - said >= SAY:
            said = time.monotonic()
            for build in unfinished[:NAMED]:
                log.info("%s: %s", build.label, build.claims.waiting())
            if len(unfinished) > NAMED:
                log.info("%d more columns wait, too", len(unfinished) - NAMED)
        time.sleep(WAIT)
        unfinished = _run_once(unfinished)


def _run_once(builds: Iterable[Build]) -> list[Build]:
    """Run every build; those whose columns are not finished, since other writers hold the rest."""
    unfinished = list[Build]()
    for pipeline, group in groupby(builds, key=attrgetter("pipeline")):
        sharing, said = [*group], time.monotonic()
        before = sum(build.rows_made for build in sharing)
        with pipeline:
            for number, build in enumerate(sharing):
                unfinished += [] if build.run() else [build]
                if time.monotonic() - said > EVERY:
                    said = time.monotonic()
                    log.info("%s: %d of %d corpora", build.path.name, number + 1, len(sharing))
        if sharing[0].shared and (made := sum(build.rows_made for build in sharing) - before):
            log.info("%s: %d rows of %d corpora made", sharing[0].path.name, made, len(sharing))
    return unfinished


def check_column(folder: Path, manifest: CorpusManifest, name: str, producer: Producer) -> None:
    """Check that a producer can make a column of that name.

    Raises:
        CacheError: when the name cannot be used, or the producer reads another modality.
    """
    check_column_name(name)
    if producer.modality != manifest.modality:
        raise CacheError(f"{name} reads {producer.modality}s, the corpus {folder} holds {manifest.modality}s")


def check_column_name(name: str) -> None:
    """Check that ``name`` can be a folder and a key of configurations.

    Raises:
        CacheError: when it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise CacheError(f"a column cannot be called {name!r}: use letters, digits, _ and -")


def build_like(
    columns: Iterable[Path],
    parent: Path,
    corpora: Iterable[Corpus],
    settings: Settings | None = None,
    trust_remote_code: bool = False,
) -> list[Path]:
    """Store corpora with the same columns as another one, made by the producers that their manifests name.

    Args:
        columns: the other corpus's columns.
        parent: gets a folder for each corpus, named by its fingerprint, so that equal corpora share one.
        corpora: the items.
        settings: how.
        trust_remote_code: as for :func:`cache_tools.producer.rebuild`.

    Returns:
        The folder of each corpus.
    """
    settings = settings or Settings()
    placed = [(parent / corpus.scan()[1][:16], corpus) for corpus in corpora]
    stored = {folder: store_corpus(folder, corpus, settings.shard_rows) for folder, corpus in placed}
    builds = list[Build]()
    for path in columns:
        manifest = store.read_manifest(path / store.MANIFEST)
        producer = rebuild(manifest["producer"], Producer, path, trust_remote_code=trust_remote_code)
        if producer.kind != path.parent.name:
            raise CacheError(f"{path}: {class_path(producer)} makes columns of {producer.kind}, not of {path.parent.name}")
        like = replace(settings, dtype=manifest["requested_dtype"])
        expected = manifest["producer"]["fingerprint"]
        builds += _builds(stored, path.name, producer, like, expected=expected)
    run_builds(builds)
    return [folder for folder, _ in placed]


def store_corpus(folder: Path, corpus: Corpus, shard_rows: int) -> CorpusManifest:
    """Write the corpus's ids and items, or check that the same ones are stored.

    Raises:
        CacheError: when ``folder`` holds another corpus.
    """
    rows, fingerprint = corpus.scan()
    new = CorpusManifest(corpus.modality, rows, shard_rows, fingerprint, corpus.source, [], views=corpus.views)
    for written in (folder, folder / "items"):
        sweep(written)
    with system_errors_in_words(folder, others=False):
        return _stored(folder, corpus, new)


def _stored(folder: Path, corpus: Corpus, new: CorpusManifest) -> CorpusManifest:
    if not lexists(folder / store.CORPUS):
        return store.write_corpus(folder, corpus.rows(), new)
    stored = store.read_corpus(folder)
    if stored.fingerprint != new.fingerprint:
        raise CacheError(
            f"{folder} holds another corpus ({stored.rows} rows from {stored.source}) than {corpus.source} "
            f"({new.rows} rows): choose another name (NAME=...) or cache folder (CACHE=...)"
        )
    paths = [folder / "items" / shard["file"] for shard in stored.shards]
    damaged = [path for path, shard in zip(paths, stored.shards, strict=True) if not store.whole(path, shard)]
    if not damaged:
        return stored
    for path in damaged:
        path.unlink(missing_ok=True)
    return store.write_corpus(folder, corpus.rows(), replace(new, shard_rows=stored.shard_rows))
