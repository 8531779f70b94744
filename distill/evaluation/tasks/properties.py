"""Tasks of molecules whose physical properties were measured; their tables come with the package ``chemicals``."""

import csv
import gzip
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from cache_tools import ConfigError
from distill.evaluation.tasks.base import Array
from distill.evaluation.tasks.molecule import MoleculeTask

Name = Literal[
    "autoignition",
    "boiling_point",
    "critical_pressure",
    "critical_temperature",
    "critical_volume",
    "density",
    "dipole_moment",
    "flash_point",
    "heat_capacity_liquid",
    "heat_of_formation_gas",
    "heat_of_formation_liquid",
    "heat_of_formation_solid",
    "heat_of_fusion",
    "heat_of_sublimation",
    "heat_of_vaporisation",
    "logp",
    "lower_flammability",
    "melting_point",
    "motor_octane",
    "permittivity",
    "refractive_index",
    "research_octane",
    "upper_flammability",
]


class Source(NamedTuple):
    """Where the values of a property stand in ``chemicals``."""

    table: str  # file
    column: str
    log: bool = False  # log10 of the values: their 95th percentile is over ten times their 5th
    within: tuple[str, float, float] | None = None  # only rows whose column of this name is in this range, in kelvin
    stated: str | None = None  # only rows that have this column: the error of the measurement
    least: float = -np.inf  # a lower value is a misprint


CRC = "Misc/Physical Constants of Organic Compounds.csv"
CRITICAL = "Critical Properties/IUPACOrganicCriticalProps.tsv"
FORMATION = "Heat Capacity/CRC Standard Thermodynamic Properties of Chemical Substances.tsv"
FLAMMABILITY = "Safety/IS IEC 60079-20-1 2010.tsv"
ROOM = 288.0, 303.2  # temperatures of a room

SOURCES: dict[Name, Source] = {
    "autoignition": Source(FLAMMABILITY, "T_autoignition"),
    "boiling_point": Source(CRC, "Tb"),
    "critical_pressure": Source(CRITICAL, "Pc"),
    "critical_temperature": Source(CRITICAL, "Tc", least=50),  # phenanthrene is in thousands of kelvin
    "critical_volume": Source(CRITICAL, "Vc"),
    "density": Source(CRC, "rho"),
    "dipole_moment": Source("Misc/cccbdb.nist.gov Dipoles.csv", "dipole_moment"),
    "flash_point": Source("Safety/DIPPR T_flash Serat.csv", "T_flash"),
    "heat_capacity_liquid": Source(FORMATION, "Cpl"),
    "heat_of_formation_gas": Source(FORMATION, "Hfg"),
    "heat_of_formation_liquid": Source(FORMATION, "Hfl"),
    "heat_of_formation_solid": Source(FORMATION, "Hfs"),
    "heat_of_fusion": Source("Phase Change/CRC Handbook Heat of Fusion.tsv", "Hfus", log=True),
    "heat_of_sublimation": Source("Phase Change/Ghazerati Appendix Sublimation Enthalpy.tsv", "Hsub", stated="error"),
    "heat_of_vaporisation": Source("Phase Change/CRC Handbook Heat of Vaporization.tsv", "Hvap298"),
    "logp": Source("Environment/Syrres logP data.csv.gz", "logP"),
    "lower_flammability": Source(FLAMMABILITY, "LFL", least=0),  # that of 1-octanol is negative
    "melting_point": Source("Phase Change/OpenNotebook Melting Points.tsv", "Tm"),
    "motor_octane": Source("Misc/Florian_Liming_MON_experimental.tsv", "MON"),
    "permittivity": Source(
        "Electrolytes/Permittivity (Dielectric Constant) of Liquids.tsv", "Permittivity", log=True, within=("T", *ROOM)
    ),
    "refractive_index": Source("Misc/CRC Handbook Organic RI.csv", "RI", within=("RIT", *ROOM)),
    "research_octane": Source("Misc/Florian_Liming_RON_experimental.tsv", "RON"),
    "upper_flammability": Source(FLAMMABILITY, "UFL"),
}

IDENTIFIERS = ("pubchem small", "pubchem large", "example user db")
ELEMENTS = {1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 34, 35, 53}  # H, B, C, N, O, F, Si, P, S, Cl, Se, Br, I


class PhysicalProperty(MoleculeTask):
    """A measured property of organic compounds, from a table of the package ``chemicals`` (MIT; extra ``properties``).

    The tasks are all properties whose values stand in a table that its documentation or its source calls measured, for at
    least 200 organic molecules; docs/modalities.md says which tables are left out. An organic molecule has carbon, no
    metal, no charge, no isotope and one part. Stereochemistry is left out, as teachers and students do not see it, and
    each molecule counts once. The molecules are small, most of them liquids.

    Args:
        name: of the property.
        limit: molecules at most, drawn with a fixed seed.

    Raises:
        ConfigError: when ``chemicals`` is not installed, or its version has no such table.
    """

    kind, provenance = "regression", "measured"

    def __init__(self, name: Name, limit: int = 600):
        self.name: Name = name
        self.limit = limit

    def load(self) -> tuple[list[str], Array]:
        smiles, values = _molecules(self.name, self.limit)
        return list(smiles), np.array(values)[:, None]


@cache
def _molecules(name: Name, limit: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """SMILES and values of different molecules, in random order."""
    from rdkit import rdBase

    smiles_of = _smiles()
    rows = list(_values(SOURCES[name]))
    found: dict[str, float] = {}
    with rdBase.BlockLogs():
        for row in np.random.default_rng(0).permutation(len(rows)).tolist():
            number, value = rows[row]
            if (smiles := _organic(smiles_of.get(number, ""))) is not None:
                found.setdefault(smiles, value)
            if len(found) == limit:
                break
    return tuple(found), tuple(found.values())


def _values(source: Source) -> Iterator[tuple[str, float]]:
    """CAS number and value of each row of a table that has both."""
    path = _folder() / source.table
    if not path.is_file():
        raise ConfigError(f"no {path}: another version of chemicals: pip install 'quorum-distill[properties]'")
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else open(path, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if _wanted(row, source) and float(row[source.column]) >= source.least:
                value = float(row[source.column])
                yield row["CAS"], float(np.log10(value)) if source.log else value


def _wanted(row: dict[str, str], source: Source) -> bool:
    """Whether a row has the value, and the temperature and the error that its source asks for."""
    if not row[source.column] or (source.stated and not row[source.stated]):
        return False
    if source.within is None:
        return True
    column, low, high = source.within
    return bool(row[column]) and low <= float(row[column]) <= high


@cache
def _smiles() -> dict[str, str]:
    """The SMILES of every CAS number that ``chemicals`` knows; of a number in two tables, that of the first."""
    found: dict[str, str] = {}
    for table in IDENTIFIERS:
        with open(_folder() / "Identifiers" / f"chemical identifiers {table}.tsv", encoding="utf-8") as file:
            for line in file:
                _, number, _, _, smiles, _ = line.split("\t", 5)
                found.setdefault(number, smiles)
    return found


def _organic(smiles: str) -> str | None:
    """The canonical SMILES of an organic molecule without its stereochemistry; None of anything else."""
    from rdkit import Chem

    molecule = None if "." in smiles else Chem.MolFromSmiles(smiles)
    if molecule is None or Chem.GetFormalCharge(molecule):
        return None
    atoms = list(molecule.GetAtoms())
    if any(atom.GetAtomicNum() not in ELEMENTS or atom.GetIsotope() or atom.GetNumRadicalElectrons() for atom in atoms):
        return None
    carbon = any(atom.GetAtomicNum() == 6 for atom in atoms)
    return str(Chem.MolToSmiles(molecule, isomericSmiles=False)) if carbon else None


def _folder() -> Path:
    """Where ``chemicals`` keeps its tables; the package itself is not imported."""
    spec = find_spec("chemicals")
    if spec is None or spec.origin is None:
        raise ConfigError("this task reads tables of the package chemicals: pip install 'quorum-distill[properties]'")
    return Path(spec.origin).parent
