"""What a user writes: a teacher, a head, a student and a task, in a file of their own."""

import numpy as np
import torch

from cache_tools.teachers.base import Teacher
from distill.evaluation.tasks.base import Task, random_split
from distill.heads import Head
from distill.students.base import Student


class Letters(Teacher):
    """How often each of some letters stands in a SMILES."""

    modality = "molecule"

    def __init__(self, letters: str = "CNOSF"):
        self.letters, self.dim = letters, len(letters)

    def embed(self, items):
        return np.array([[item.count(letter) for letter in self.letters] for item in items], np.float32)


class AbsoluteError(Head):
    def __init__(self, student_dim: int, teacher_dim: int):
        super().__init__()
        self.linear = torch.nn.Linear(student_dim, teacher_dim)

    def forward(self, student, target):
        return (self.predict(student) - target.float()).abs().sum(1)

    def predict(self, student):
        return self.linear(student).float()


class BagOfAtoms(Student):
    input = "graph"

    def __init__(self, dim: int = 32):
        super().__init__()
        self.dim = dim
        self.table = torch.nn.Embedding(256, dim)

    def embeddings(self, inputs):
        atoms = inputs["atoms"]
        number = torch.repeat_interleave(torch.arange(len(atoms.counts)), atoms.counts)
        each = self.table(atoms.values[:, 0].long())
        return [torch.zeros(len(atoms.counts), self.dim).index_add_(0, number, each)]


class CarbonCount(Task):
    modality = "molecule"
    kind = "regression"
    provenance = "computed"

    def load(self):
        items = ["C" * n + "O" * m for n in range(1, 15) for m in range(5)]
        return items, np.array([[item.count("C")] for item in items], np.float64)

    def split(self, name, seed, items):
        return random_split(len(items), seed)
