"""The statistics of batch norms, found again where the weights are not those of a fit's end."""

import copy
from collections.abc import Sequence

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from distill.data.batch import to_device
from distill.data.columns import CorpusColumns, drawn
from distill.students.base import Student

CALIBRATION_ROWS = 2048  # of the corpora together


def calibrated(student: Student, corpora: Sequence[CorpusColumns], device: str, batch: int = 512) -> Student:
    """A copy of a student whose batch norms have the statistics of rows of the corpora; the same student without them.

    Batch norms that never saw data pass everything on unscaled: that is no network that anyone would use. Those of averaged
    weights need other statistics than averaged ones (arXiv 1803.05407, section 3.2).

    Args:
        student: of random or of averaged weights.
        corpora: those of the run; at most 2,048 rows of them are drawn, always the same ones.
        device: where it runs.
        batch: rows at a time; the statistics are the mean over the batches.
    """
    if not any(isinstance(module, _BatchNorm) for module in student.modules()):
        return student
    student = copy.deepcopy(student).to(device).eval()
    for module in student.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.train().momentum = None  # a plain mean
    for corpus in corpora:
        inputs, rows = corpus.inputs, drawn([corpus.inputs], CALIBRATION_ROWS // len(corpora))
        if len(rows) < 2:  # one row may have no variance
            continue
        for part in rows.tensor_split(-(-len(rows) // batch)):  # equal parts
            with torch.no_grad():
                student(to_device({inputs.name: corpus.featuriser.unpack(inputs.rows(part))}, device))
    return student.eval()
