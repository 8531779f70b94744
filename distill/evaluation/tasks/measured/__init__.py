"""Tasks of molecules whose labels were measured in laboratories; their tables come with this package."""

from functools import cache
from pathlib import Path
from typing import Literal, get_args

from cache_tools import ConfigError
from distill.evaluation.tasks.base import Kind
from distill.evaluation.tasks.molecule import MoleculeTask
from distill.evaluation.tasks.tables import table_rows

Name = Literal["bbb", "logbb", "solubility"]

KINDS: dict[Name, Kind] = {"bbb": "classification", "logbb": "regression", "solubility": "regression"}

Assay = Literal[
    "CHEMBL1862_Ki",
    "CHEMBL1871_Ki",
    "CHEMBL2034_Ki",
    "CHEMBL2047_EC50",
    "CHEMBL204_Ki",
    "CHEMBL2147_Ki",
    "CHEMBL214_Ki",
    "CHEMBL218_EC50",
    "CHEMBL219_Ki",
    "CHEMBL228_Ki",
    "CHEMBL231_Ki",
    "CHEMBL233_Ki",
    "CHEMBL234_Ki",
    "CHEMBL235_EC50",
    "CHEMBL236_Ki",
    "CHEMBL237_EC50",
    "CHEMBL237_Ki",
    "CHEMBL238_Ki",
    "CHEMBL239_EC50",
    "CHEMBL244_Ki",
    "CHEMBL262_Ki",
    "CHEMBL264_Ki",
    "CHEMBL2835_Ki",
    "CHEMBL287_Ki",
    "CHEMBL2971_Ki",
    "CHEMBL3979_EC50",
    "CHEMBL4005_Ki",
    "CHEMBL4203_Ki",
    "CHEMBL4616_EC50",
    "CHEMBL4792_Ki",
]


class Measured(MoleculeTask):
    """A table of measured labels that comes with this package; README.md beside it names sources and licences.

    Args:
        name: ``bbb``, whether 1,561 molecules pass the blood-brain barrier; ``logbb``, how 1,058 molecules divide between
            brain and blood; or ``solubility``, of 1,282 molecules in water.

    Raises:
        ConfigError: when there is no such table.
    """

    def __init__(self, name: Name):
        if name not in KINDS:
            raise ConfigError(f"no table {name}; there are: {', '.join(KINDS)}")
        super().__init__(Path(__file__).with_name(f"{name}.csv.gz"), KINDS[name])


@cache
def _activities(path: Path) -> list[dict[str, str]]:
    """All rows of a table of the package; a test of many assays reads it once."""
    return table_rows(path, ["smiles", "y", "assay"])


class Activity(MoleculeTask):
    """How strongly 200 molecules act on one protein: minus the log10 of Ki or EC50 in nM. Of MoleculeACE.

    The rows are drawn with a fixed seed from each data set; README.md beside the table names sources and licences. Scores
    are not those of the publication, which has all rows and a split by activity cliffs: suite ``moleculeace``.

    Args:
        assay: the protein's name in ChEMBL, and what was measured, for instance ``CHEMBL204_Ki``.

    Raises:
        ConfigError: when there is no such assay.
    """

    def __init__(self, assay: Assay):
        if assay not in get_args(Assay):
            raise ConfigError(f"no assay {assay}; there are: {', '.join(get_args(Assay))}")
        super().__init__(Path(__file__).with_name("activity.csv.gz"), "regression", ["y"])
        self.assay: Assay = assay

    def _read(self) -> list[dict[str, str]]:
        return [row for row in _activities(self.path) if row["assay"] == self.assay]
