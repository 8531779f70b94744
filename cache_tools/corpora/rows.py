"""Read every row of a file or folder with all its columns, whatever the item in it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache_tools.corpora.choose import COLUMNS
from cache_tools.corpora.image import ImageFolder
from cache_tools.corpora.molecule import smiles_lines
from cache_tools.corpora.tables import file_ending, read_lines, read_parquet_rows, read_table

LINES = (".smi", ".txt")


def read_rows(path: Path, modality: str, column: str | None = None) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every row and the item in it; the item may be none that can be used.

    Args:
        path: a table (csv, jsonl or parquet, whose cells keep their types), a smi or txt file, or a folder, zip or tar of
            images. All but parquet also gzipped.
        modality: ``molecule``, ``text`` or ``image``.
        column: of a table: the one of the items; ``smiles``, ``text`` or ``path`` when not given.

    Yields:
        Column -> cell; and the cell of the item, or an image's bytes.

    Raises:
        CorpusError: when the file or the column is missing, or a row cannot be read.
    """
    column, ending = column or COLUMNS[modality], file_ending(path)
    if modality == "image" and (path.is_dir() or ending in (".zip", ".tar", ".tgz")):
        yield from (({column: name}, read()) for name, read in ImageFolder(path).files())
    elif ending in LINES and modality == "molecule":
        for line in smiles_lines(path):
            smiles, *name = line.split(None, 1)
            yield {column: smiles, "name": "".join(name)}, smiles
    elif ending in LINES:
        yield from (({column: line.strip()}, line.strip()) for line in read_lines(path) if line.strip())
    else:
        rows = read_parquet_rows(path, [column]) if ending == ".parquet" else read_table(path, [column], ", .smi, .txt")
        yield from ((row, row[column]) for row in rows)
