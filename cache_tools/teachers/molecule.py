"""Molecule teachers: RDKit descriptors and fingerprints, and any transformers encoder over SMILES."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cache_tools.errors import BadItem
from cache_tools.format.files import sha256
from cache_tools.items.molecule import parse_smiles
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.text import HfEncoder

SCALES = Path(__file__).with_name("rdkit_descriptors.json")


class RdkitDescriptors(Teacher):
    """RDKit's two-dimensional descriptors, robustly scaled: ``(value - median) / scale``, clipped to +-10, NaN as 0.

    The medians and scales (interquartile range, or the standard deviation where that is zero) were measured once, on the
    15,000 sample molecules of RDKit. They are in a file of this package, so a molecule has the same row in every corpus.

    Args:
        max_atoms: a molecule of more atoms is masked; the time of one grows with the fourth power of its atoms.
    """

    modality = "molecule"
    python_bound = True
    clip = 10.0
    max_atoms = 500
    added: ClassVar[Mapping[str, Any]] = {"max_atoms": max_atoms}

    def __init__(self, max_atoms: int = max_atoms) -> None:
        self.max_atoms = max_atoms
        scales: dict[str, list[float]] = json.loads(SCALES.read_text())  # name -> (median, scale)
        self.names = list(scales)
        self.median, self.scale = np.array(list(scales.values())).T  # (dim,), (dim,)
        self.dim = len(scales)

    def prepare(self, item: bytes) -> Any:
        return parse_smiles(item, self.max_atoms)

    def embed(self, items: Sequence[Any]) -> np.ndarray[Any, Any]:
        scaled = (raw_descriptors(items, self.names) - self.median) / self.scale
        clipped: np.ndarray[Any, Any] = np.clip(np.nan_to_num(scaled, nan=0.0), -self.clip, self.clip)
        return clipped.astype(np.float32)

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "scales": sha256(SCALES), "clip": self.clip}


def raw_descriptors(molecules: Sequence[Any], names: Sequence[str]) -> np.ndarray[Any, Any]:
    """RDKit's descriptors of each molecule, (batch, len(names)); NaN where RDKit cannot compute one."""
    from rdkit import rdBase
    from rdkit.Chem import Descriptors

    functions = dict(Descriptors.descList) | {"Ipc": _ipc, "AvgIpc": _average_ipc}
    with rdBase.BlockLogs():
        return np.array([[_number(functions[name], molecule) for name in names] for molecule in molecules], np.float64)


def _number(function: Any, molecule: Any) -> float:
    try:
        return float(function(molecule))
    except (ValueError, ZeroDivisionError, RuntimeError, OverflowError):  # what RDKit's functions raise
        return float("nan")


@lru_cache(1)  # RDKit computes it for each of the two descriptors: two thirds of the time of a large molecule
def _polynomial(molecule: Any) -> Any:
    """The sizes of the coefficients of the characteristic polynomial, (atoms + 1,), as in RDKit's ``Ipc``."""
    from rdkit.Chem import GetDistanceMatrix, Graphs

    distances = molecule._adjMat = GetDistanceMatrix(molecule, False)  # where RDKit's BalabanJ and BertzCT look for it
    return abs(Graphs.CharacteristicPolynomial(molecule, np.equal(distances, 1)))


def _average_ipc(molecule: Any) -> Any:
    from rdkit.ML.InfoTheory import entropy

    return entropy.InfoEntropy(_polynomial(molecule))  # type: ignore[attr-defined]  # of RDKit's C++


def _ipc(molecule: Any) -> Any:
    return sum(_polynomial(molecule)) * _average_ipc(molecule)


class _Fingerprint(Teacher):
    """Masks molecules of more than ``max_atoms`` atoms: the time of one grows with the square of its atoms or faster."""

    modality = "molecule"
    python_bound = True
    binary = True
    max_atoms = 1_000
    added: ClassVar[Mapping[str, Any]] = {"max_atoms": max_atoms}

    def __init__(self, dim: int = 2048, max_atoms: int = max_atoms):
        self.dim, self.max_atoms = dim, max_atoms

    def prepare(self, item: bytes) -> Any:
        return parse_smiles(item, self.max_atoms)

    @abstractmethod
    def _one(self, molecule: Any) -> Any:
        """The fingerprint (dim,) of one molecule."""

    def embed(self, items: Sequence[Any]) -> np.ndarray[Any, Any]:
        return np.stack([self._one(molecule) for molecule in items])


@cache
def _generator(kind: str, **arguments: int) -> Any:
    """One of RDKit's fingerprint generators, for instance ``Morgan``; all molecules share it."""
    from rdkit.Chem import rdFingerprintGenerator

    return getattr(rdFingerprintGenerator, f"Get{kind}Generator")(**arguments)


class MorganBits(_Fingerprint):
    """Morgan (ECFP) bits: radius 2 is ECFP4. Args: dim: bits; radius: bonds around each atom; max_atoms: of a molecule."""

    def __init__(self, dim: int = 2048, radius: int = 2, max_atoms: int = _Fingerprint.max_atoms):
        super().__init__(dim, max_atoms)
        self.radius = radius

    def _one(self, molecule: Any) -> Any:
        return _generator("Morgan", radius=self.radius, fpSize=self.dim).GetFingerprintAsNumPy(molecule)


class MorganCounts(_Fingerprint):
    """Morgan (ECFP) counts: log(1 + count). Args: dim: bins; radius: bonds around each atom; max_atoms: of a molecule."""

    binary = False

    def __init__(self, dim: int = 1024, radius: int = 2, max_atoms: int = _Fingerprint.max_atoms):
        super().__init__(dim, max_atoms)
        self.radius = radius

    def _one(self, molecule: Any) -> Any:
        counts = _generator("Morgan", radius=self.radius, fpSize=self.dim).GetCountFingerprintAsNumPy(molecule)
        return np.log1p(counts, dtype=np.float32)


class AtomPairs(_Fingerprint):
    """Atom-pair bits. Args: dim: bits; max_atoms: of a molecule."""

    def _one(self, molecule: Any) -> Any:
        return _generator("AtomPair", fpSize=self.dim).GetFingerprintAsNumPy(molecule)


class TopologicalTorsions(_Fingerprint):
    """Topological-torsion bits. Args: dim: bits; max_atoms: of a molecule."""

    def _one(self, molecule: Any) -> Any:
        return _generator("TopologicalTorsion", fpSize=self.dim).GetFingerprintAsNumPy(molecule)


class Maccs(_Fingerprint):
    """The 167 MACCS keys. Args: max_atoms: of a molecule."""

    def __init__(self, max_atoms: int = _Fingerprint.max_atoms) -> None:
        super().__init__(167, max_atoms)

    def _one(self, molecule: Any) -> Any:
        from rdkit.Chem.rdMolDescriptors import GetMACCSKeysFingerprint

        return _bits(GetMACCSKeysFingerprint(molecule))


class Avalon(_Fingerprint):
    """Avalon bits. Args: dim: bits; max_atoms: of a molecule."""

    def __init__(self, dim: int = 1024, max_atoms: int = _Fingerprint.max_atoms):
        super().__init__(dim, max_atoms)

    def _one(self, molecule: Any) -> Any:
        from rdkit.Avalon.pyAvalonTools import GetAvalonFP

        return _bits(GetAvalonFP(molecule, self.dim))


def _bits(vector: Any) -> np.ndarray[Any, Any]:
    from rdkit.DataStructs import ConvertToNumpyArray

    array = np.zeros(0, np.uint8)
    ConvertToNumpyArray(vector, array)
    return array


class HfMolecule(HfEncoder):
    """Any transformers encoder of SMILES, such as ChemBERTa; see :class:`cache_tools.teachers.text.HfEncoder`.

    A SMILES of more than ``max_length`` tokens is masked, never cut.
    """

    modality = "molecule"

    def prepare(self, item: bytes) -> Any:
        tokens = self.tokenizer(self.prompt + super().prepare(item))
        if len(tokens["input_ids"]) > self.max_length:
            raise BadItem(f"{len(tokens['input_ids'])} tokens, at most {self.max_length} are read")
        return tokens
