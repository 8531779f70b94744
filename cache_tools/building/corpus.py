"""A corpus with all of its columns: store the items, then run every producer over them."""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cache_tools.building.column import Build, Settings
from cache_tools.building.launch import Place
from cache_tools.corpora.base import Corpus
from cache_tools.errors import CacheError
from cache_tools.format import store
from cache_tools.format.store import CorpusManifest
from cache_tools.inputs import Featuriser
from cache_tools.producer import Producer, rebuild
from cache_tools.teachers.base import Teacher

WAIT = 0.5  # seconds between looks at what other writers are making


def build(
    cache: Path,
    name: str,
    corpus: Corpus,
    teachers: dict[str, Teacher],
    inputs: dict[str, Featuriser],
    settings: Settings | None = None,
    place: Place = Place(),  # noqa: B008 - a tuple
) -> Path:
    """Store ``corpus`` as ``cache/name`` and make every column that it lacks.

    Returns:
        The corpus's folder.

    Raises:
        CacheError: when the folder holds another corpus, or a column was made by something else.
    """
    settings = settings or Settings()
    folder = cache / name
    manifest = store_corpus(folder, corpus, settings.shard_rows)
    named: list[tuple[str, str, Producer]] = [("teachers", key, teacher) for key, teacher in teachers.items()]
    named += [("inputs", key, featuriser) for key, featuriser in inputs.items()]
    builds = []
    for kind, key, producer in named:
        check_name(key)
        if producer.modality != manifest.modality:
            raise CacheError(f"{key} reads {producer.modality}s, the corpus {folder} holds {manifest.modality}s")
        builds.append(Build(folder, manifest, kind, key, producer, settings, place))
    finish(builds)
    return folder


def finish(builds: Sequence[Build]) -> None:
    """Run every build until its column is finished: wait for shards of other writers, take over those of the dead."""
    rest = [build for build in builds if not build.run()]
    while rest:
        time.sleep(WAIT)
        rest = [build for build in rest if not build.run()]


def check_name(name: str) -> None:
    """A column's name becomes a folder and a key of configurations.

    Raises:
        CacheError: when it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise CacheError(f"a column cannot be called {name!r}: use letters, digits, _ and -")


def build_like(columns: Iterable[Path], parent: Path, corpus: Corpus, settings: Settings | None = None) -> Path:
    """Store ``corpus`` under ``parent`` with the same columns as another one, by the producers that their manifests name.

    Args:
        columns: the other corpus's columns.
        parent: gets a folder named for the corpus's fingerprint, so that equal corpora share one.
        corpus: the items.
        settings: how.

    Returns:
        The corpus's folder.
    """
    settings = settings or Settings()
    folder = parent / corpus.scan()[1][:16]
    task = store_corpus(folder, corpus, settings.shard_rows)
    builds = []
    for path in columns:
        manifest = store.read_manifest(path / store.MANIFEST)
        base: type[Producer] = Teacher if path.parent.name == "teachers" else Featuriser
        producer = rebuild(manifest["producer"], base)
        like = replace(settings, dtype=manifest["requested_dtype"])
        expected = manifest["producer"]["fingerprint"]
        builds.append(Build(folder, task, path.parent.name, path.name, producer, like, expected=expected))
    finish(builds)
    return folder


def store_corpus(folder: Path, corpus: Corpus, shard_rows: int) -> CorpusManifest:
    """Write the corpus's ids and items, or check that the same ones are there.

    Raises:
        CacheError: when ``folder`` holds another corpus.
    """
    rows, fingerprint = corpus.scan()
    new = CorpusManifest(corpus.modality, rows, shard_rows, fingerprint, corpus.source, [], views=corpus.views)
    if not (folder / store.CORPUS).exists():
        return store.write_corpus(folder, corpus.rows(), new)
    there = store.read_corpus(folder)
    if there.fingerprint != fingerprint:
        raise CacheError(
            f"{folder} holds another corpus ({there.rows} rows from {there.source}) than {corpus.source} "
            f"({rows} rows): choose another name (NAME=...) or cache folder (CACHE=...)"
        )
    paths = [folder / "items" / each["file"] for each in there.shards]
    damaged = [path for path, each in zip(paths, there.shards, strict=True) if not store.whole(path, each)]
    if not damaged:
        return there
    for path in damaged:
        path.unlink(missing_ok=True)
    return store.write_corpus(folder, corpus.rows(), replace(new, shard_rows=there.shard_rows))
