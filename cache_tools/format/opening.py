"""Open whatever lies at a path of a cache."""

from pathlib import Path

from cache_tools.format.reader import Aligned, Column, aligned
from cache_tools.format.store import CORPUS, MANIFEST, list_columns, read_manifest


def open(path: str | Path) -> Column | Aligned:
    """Open a column, or all finished columns of a corpus side by side.

    Args:
        path: the folder of a column, such as ``cache/mol/teachers/maccs``, or of a corpus, such as ``cache/mol``.

    Raises:
        CacheError: when there is neither, or the column is unfinished; when a corpus has no finished column, or two columns
            of one name: open those that you want with :func:`aligned`.
    """
    path = Path(path)
    if not (path / CORPUS).is_file():
        return Column(path)
    return aligned(path, [column for column in list_columns(path) if read_manifest(column / MANIFEST)["finished"]])
