"""Downstream tasks: items, labels, and how they are split."""

from distill.evaluation.tasks.base import Task, distinct, grouped_split, random_split
from distill.evaluation.tasks.image import IdxTask, ImageTask
from distill.evaluation.tasks.labelled import Labelled
from distill.evaluation.tasks.measured import Activity, Measured
from distill.evaluation.tasks.molecule import (
    AdmetTask,
    CmetActivity,
    ComputedProperty,
    MoleculeTask,
    NciTpsa,
    PainsAlerts,
    scaffold_split,
)
from distill.evaluation.tasks.properties import PhysicalProperty
from distill.evaluation.tasks.text import TextPairTask, TextTask

__all__ = [
    "Activity",
    "AdmetTask",
    "CmetActivity",
    "ComputedProperty",
    "IdxTask",
    "ImageTask",
    "Labelled",
    "Measured",
    "MoleculeTask",
    "NciTpsa",
    "PainsAlerts",
    "PhysicalProperty",
    "Task",
    "TextPairTask",
    "TextTask",
    "distinct",
    "grouped_split",
    "random_split",
    "scaffold_split",
]
