"""Tasks of molecules whose labels were measured in laboratories; their tables come with this package."""

from pathlib import Path
from typing import Literal

from distill.evaluation.tasks.base import Kind
from distill.evaluation.tasks.molecule import MoleculeTask

Name = Literal["bbb", "logbb", "solubility"]

KINDS: dict[Name, Kind] = {"bbb": "classification", "logbb": "regression", "solubility": "regression"}


class Measured(MoleculeTask):
    """A table of measured labels that comes with this package; README.md beside it names sources and licences.

    Args:
        name: ``bbb``, whether 1,561 molecules pass the blood-brain barrier; ``logbb``, how 1,058 molecules divide between
            brain and blood; or ``solubility``, of 1,282 molecules in water.
    """

    def __init__(self, name: Name):
        super().__init__(Path(__file__).with_name(f"{name}.csv.gz"), KINDS[name])
