"""Tasks of labelled texts and pairs of texts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.evaluation.probes import Probe
from distill.evaluation.tasks.base import Array, Key, Kind
from distill.evaluation.tasks.labelled import Labelled, class_numbers
from distill.evaluation.tasks.tables import number, table_rows


class TextTask(Labelled):
    """Texts that have one class each.

    Args:
        path: a csv, jsonl (both also as ``.gz``) or parquet file.
        text: its column of texts.
        label: its column of classes, numbers or names.
        split: its column of split names; the seed splits the rows when it is missing or empty.
        kind: ``multiclass``, or ``clustering`` of the test rows (of all rows, when there is no split).
        probes: instead of the kind's own.

    Raises:
        CorpusError: missing file or column, a row without a label.
    """

    modality = "text"
    kinds = ("multiclass", "clustering")

    def __init__(
        self,
        path: Path,
        text: str = "text",
        label: str = "label",
        split: str = "split",
        kind: Kind = "multiclass",
        probes: list[Probe] | None = None,
    ):
        super().__init__(kind, probes)
        self.path, self.text, self.label, self.part = Path(path), text, label, split

    def load(self) -> tuple[Sequence[Key], Array]:
        rows = table_rows(self.path, [self.text, self.label])
        labels = class_numbers([row[self.label] for row in rows], self.path)
        return self._keep([row[self.text] for row in rows], [row.get(self.part, "") for row in rows], labels)


class TextPairTask(Labelled):
    """Pairs of texts with a score, or with a label of 0 or 1.

    Args:
        path: a csv, jsonl (both also as ``.gz``) or parquet file.
        label: its column of scores or labels.
        kind: ``similarity`` (scores) or ``pairs`` (labels).
        first: its column of first texts.
        second: its column of second texts.
        split: its column of split names; the seed splits the rows when it is missing or empty.

    Raises:
        CorpusError: missing file or column, a label that is no number.
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
        split: str = "split",
    ):
        super().__init__(kind, None)
        self.path, self.label, self.first, self.second, self.part = Path(path), label, first, second, split

    def load(self) -> tuple[Sequence[Key], Array]:
        rows = table_rows(self.path, [self.first, self.second, self.label])
        labels = [
            [number(row[self.label], f"{self.path} line {line}: {self.label}", binary=self.kind == "pairs")]
            for line, row in enumerate(rows, 2)
        ]
        keys = [(row[self.first], row[self.second]) for row in rows]
        return self._keep(keys, [row.get(self.part, "") for row in rows], np.array(labels))
