import numpy as np
import torch

from cache_tools import Column, Items, MoleculeGraph, Settings, build, open_column
from distill.evaluation.baselines import embed
from distill.students.molecule import GraphStudent


def test_all_students_of_a_column_share_one_reading_of_its_rows(tmp_path, monkeypatch):
    molecules = Items(["C" * number + "O" for number in range(1, 31)], "molecule")
    corpus = build(tmp_path, "c", molecules, {}, {"graph": MoleculeGraph()}, Settings(workers=1))
    column = open_column(corpus / "inputs" / "graph")
    students, rows = [GraphStudent(layers=1, width=8), GraphStudent(layers=2, width=16)], torch.arange(30).flip(0)
    read, read_rows = [], Column.rows
    monkeypatch.setattr(Column, "rows", lambda self, rows: read.append(rows) or read_rows(self, rows))
    together = embed(students, column, rows, "cpu", batch=7)
    assert torch.equal(torch.cat(read), rows)
    for student, embedded in zip(students, together, strict=True):
        assert embedded.shape == (30, student.dim)
        np.testing.assert_array_equal(embedded, embed([student], column, rows, "cpu", batch=7)[0])
    read.clear()
    assert embed([], column, rows, "cpu") == []
    assert not read
