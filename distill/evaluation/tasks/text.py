"""Tasks of labelled texts and pairs of texts."""

from collections.abc import Sequence
from pathlib import Path

from distill.evaluation.probes import Probe
from distill.evaluation.tasks.base import Array, Key, Kind
from distill.evaluation.tasks.labelled import Labelled, class_numbers
from distill.evaluation.tasks.tables import class_names, part_names, table_rows, values

SPLIT = "split"  # a column that a table may have


def named(split: str) -> list[str]:
    """The column of split names, when a configuration names it: the table must have it then."""
    return [] if split == SPLIT else [split]


class TextTask(Labelled):
    """Texts that have one class, or one value, each.

    Args:
        path: a csv, jsonl (both also as ``.gz``) or parquet file.
        text: its column of texts.
        label: its column of classes, numbers or names; of values for ``regression``.
        split: its column of split names; the seed splits the rows when there is no column ``split``, or it is empty.
        kind: ``multiclass``, ``clustering`` of the test rows (of all rows, when there is no split), or ``regression``.
        probes: instead of the kind's own.

    Raises:
        CorpusError: missing file or column, a row without a label or with an unknown split, many different
            fractional numbers as classes.
    """

    modality = "text"
    kinds = ("multiclass", "clustering", "regression")

    def __init__(
        self,
        path: Path,
        text: str = "text",
        label: str = "label",
        split: str = SPLIT,
        kind: Kind = "multiclass",
        probes: list[Probe] | None = None,
    ):
        super().__init__(kind, probes)
        self.path, self.text, self.label, self.part = Path(path), text, label, split

    def load(self) -> tuple[Sequence[Key], Array]:
        rows = table_rows(self.path, [self.text, self.label, *named(self.part)], [self.part])
        if self.kind == "regression":
            labels = values(rows, self.path, [self.label], binary=False)
        else:
            labels = class_numbers(class_names(rows, self.path, self.label))
        return self._keep([row[self.text] for row in rows], part_names(rows, self.path, self.part), labels)


class TextPairTask(Labelled):
    """Pairs of texts with a score, or with a label of 0 or 1.

    Args:
        path: a csv, jsonl (both also as ``.gz``) or parquet file.
        label: its column of scores or labels.
        kind: ``similarity`` (scores) or ``pairs`` (labels).
        first: its column of first texts.
        second: its column of second texts.
        split: its column of split names; the seed splits the rows when there is no column ``split``, or it is empty.

    Raises:
        CorpusError: missing file or column, a label that is no number, a row with an unknown split.
    """

    modality = "text"
    kinds = ("similarity", "pairs")

    def __init__(
        self,
        path: Path,
        label: str = "score",
        kind: Kind = "similarity",
        first: str = "text1",
        second: str = "text2",
        split: str = SPLIT,
    ):
        super().__init__(kind, None)
        self.path, self.label, self.first, self.second, self.part = Path(path), label, first, second, split

    def load(self) -> tuple[Sequence[Key], Array]:
        rows = table_rows(self.path, [self.first, self.second, self.label, *named(self.part)], [self.part])
        labels = values(rows, self.path, [self.label], binary=self.kind == "pairs")
        keys = [(row[self.first], row[self.second]) for row in rows]
        return self._keep(keys, part_names(rows, self.path, self.part), labels)
