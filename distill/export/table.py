"""``distill embed``: embed every row of a table, a file of lines or a folder of images, row by row, into another table."""

import csv
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cache_tools import MESSAGES, ConfigError, CorpusError, Pipeline, file_ending, item_bytes, read_rows, shows_bars
from distill.export.folder import find
from distill.export.student import AHEAD, StudentTeacher

log = logging.getLogger(__name__)

EMBEDDING, ERROR = "embedding", "embedding_error"  # columns that are added

Row = Mapping[str, Any]
Array = np.ndarray[Any, Any]
Write = Callable[[Sequence[Row], Array, Sequence[str]], None]  # rows, embeddings (rows, dim), why a row has none


def embed(
    student: Path,
    input: Path,
    out: Path,
    column: str | None = None,
    modality: str | None = None,
    workers: int = 1,
    device: str = "auto",
    dim: int | None = None,
) -> None:
    """Embed every row of a file, and write all its columns with the embeddings; memory does not grow with the rows.

    A row that cannot be embedded is kept: its embedding is empty (NaN in npy), and ``embedding_error`` says why.

    Args:
        student: a folder that ``distill export`` made, or the name of a released student.
        input: a table (csv, jsonl or parquet), a smi or txt file, or a folder, zip or tar of images.
        out: a file that is not there yet: ``.parquet`` (a column ``embedding`` of lists), ``.csv`` (``embedding_0``,
            ``embedding_1`` ...) or ``.npy`` (the embeddings alone, in the order of the rows).
        column: of a table: the one of the items; ``smiles``, ``text`` or ``path`` when not given.
        modality: of the items, for a student that reads several.
        workers: processes that embed, each on one core; 1 embeds in this process.
        device: ``auto`` (a GPU when there is one), ``cpu``, ``cuda``, ...
        dim: only the first ``dim`` numbers of each embedding, for a student that was trained with ``model.dims``.

    Raises:
        ConfigError: when ``out`` is there, has another ending, the student does not read such items, or has no such prefix.
        CorpusError: when the input or its column is missing, or it has columns of these names.
    """
    kind = file_ending(out)
    if kind not in WRITERS or out.exists() or not out.parent.is_dir():
        endings = f"a name that ends in {' or '.join(WRITERS)}, of no file, in a folder that is there"
        raise ConfigError(f"--out {out}: expected {endings}")
    teacher = _Rows(find(student), modality)
    teacher.load(device)
    reads, size, width = teacher.modality, teacher.student.rows * AHEAD, teacher.student.width(dim)
    given = deque[Sequence[Row]]()
    with TemporaryDirectory(prefix=".embed", dir=out.parent) as folder:
        file = Path(folder) / out.name
        with (
            WRITERS[kind](file, input, width) as write,
            Pipeline(teacher, workers) as pipeline,
            _progress() as advance,
        ):
            rows = bad = 0
            for result in pipeline(_batches(read_rows(input, reads, column), size, given)):
                chunk = given.popleft()
                values = np.full((len(chunk), width), np.nan, np.float32)
                values[result.good] = result.values[:, :width] if result.good else 0
                write(chunk, values, [result.bad.get(row, "") for row in range(len(chunk))])
                rows, bad = rows + len(chunk), bad + len(result.bad)
                advance(len(chunk))
        if not rows:
            raise CorpusError(f"{input} holds no rows: expected at least one {reads}")
        file.rename(out)
    told = f"; {bad:,} of them have no embedding: {ERROR} says why" if bad else ""
    level = logging.WARNING if bad else logging.INFO
    log.log(level, "written: %s, %s rows, %d wide%s", out, f"{rows:,}", width, told)


class _Rows(StudentTeacher):
    """A student of raw items, in worker processes where there are several."""

    python_bound = True

    def prepare(self, item: Any) -> Any:
        return super().prepare(item_bytes(item, self.modality))


def _batches(rows: Iterator[tuple[Row, Any]], size: int, given: deque[Sequence[Row]]) -> Iterator[list[Any]]:
    """The items of ``size`` rows at a time; the rows are put into ``given``."""
    while batch := list(islice(rows, size)):
        for row, _ in batch if not given else ():
            if taken := sorted(name for name in row if name == ERROR or name.startswith(EMBEDDING)):
                raise CorpusError(f"the input has a column {taken[0]}, as the output will: rename it")
        given.append([row for row, _ in batch])
        yield [item for _, item in batch]


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    columns = SpinnerColumn(), TextColumn("{task.completed:,} rows, {task.fields[speed]}"), TimeElapsedColumn()
    with Progress(*columns, console=MESSAGES, transient=True, disable=not shows_bars(MESSAGES)) as progress:
        task = progress.add_task("", total=None, speed="")

        def advance(rows: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, advance=rows, speed=f"{speed:,.0f} rows/s" if speed else "")

        yield advance


@contextmanager
def _to_csv(path: Path, source: Path, dim: int) -> Iterator[Write]:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer, names = csv.writer(file, lineterminator="\n"), list[str]()

        def write(rows: Sequence[Row], values: Array, errors: Sequence[str]) -> None:
            if not names:
                names.extend(rows[0])
                writer.writerow([*names, ERROR, *(f"{EMBEDDING}_{number}" for number in range(dim))])
            for row, error, value in zip(rows, errors, values, strict=True):
                shown = [""] * dim if error else [f"{number:.7g}" for number in value.tolist()]
                writer.writerow([*_cells(row, names, source), error, *shown])

        yield write


@contextmanager
def _to_parquet(path: Path, source: Path, dim: int) -> Iterator[Write]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError("a parquet file needs pyarrow: pip install 'quorum-distill[parquet]'") from None
    added = [(ERROR, pyarrow.string()), (EMBEDDING, pyarrow.list_(pyarrow.float32(), dim))]
    writers: list[Any] = []
    try:

        def write(rows: Sequence[Row], values: Array, errors: Sequence[str]) -> None:
            typed = file_ending(source) == ".parquet"
            fields = list(parquet.read_schema(source)) if typed else [(name, pyarrow.string()) for name in rows[0]]
            if not writers:
                writers.append(parquet.ParquetWriter(path, pyarrow.schema([*fields, *added])))
            schema = writers[0].schema
            names = schema.names[: -len(added)]
            cells = zip(*(_cells(row, names, source) for row in rows), strict=True)
            arrays = [pyarrow.array(cell, schema.field(name).type) for name, cell in zip(names, cells, strict=True)]
            bad = np.array([bool(error) for error in errors])
            flat = pyarrow.array(values.ravel())
            embedding = pyarrow.FixedSizeListArray.from_arrays(flat, dim, mask=pyarrow.array(bad))
            told = pyarrow.array([error or None for error in errors], pyarrow.string())
            writers[0].write_table(pyarrow.table([*arrays, told, embedding], schema=schema))

        yield write
    finally:
        for writer in writers:
            writer.close()


@contextmanager
def _to_npy(path: Path, source: Path, dim: int) -> Iterator[Write]:
    count = 0
    with open(path, "wb") as file:

        def head() -> None:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, header)  # NumPy keeps room for more rows

        def write(rows: Sequence[Row], values: Array, errors: Sequence[str]) -> None:
            nonlocal count
            count += len(rows)
            file.write(values.astype("<f4").tobytes())

        head()
        yield write
        head()


def _cells(row: Row, names: Sequence[str], source: Path) -> list[Any]:
    if more := sorted(row.keys() - set(names)):
        raise CorpusError(
            f"{source}: a row has the column {more[0]}, which the first row lacks: give every row all columns"
        )
    return [row.get(name) for name in names]


WRITERS: dict[str, Callable[[Path, Path, int], AbstractContextManager[Write]]] = {
    ".parquet": _to_parquet,
    ".csv": _to_csv,
    ".npy": _to_npy,
}
