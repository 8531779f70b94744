"""Molecule teachers: descriptors of RDKit and mordred, fingerprints, and any transformers encoder over SMILES."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cache_tools.errors import BadItem, TeacherError
from cache_tools.format.files import sha256
from cache_tools.items.molecule import parse_smiles
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.text import HfEncoder


class _Descriptors(Teacher):
    """Two-dimensional descriptors, robustly scaled: ``(value - median) / scale``, clipped to +-10, NaN as 0.

    The medians and scales (interquartile range, or the standard deviation where that is zero) were measured once, by
    ``benchmarks/scales.py``. They are in a file of this package, so a molecule has the same row in every corpus.
    """

    modality = "molecule"
    python_bound = True
    clip = 10.0
    scales: ClassVar[Path]  # a file: name -> (median, scale)

    def __init__(self) -> None:
        scales: dict[str, list[float]] = json.loads(self.scales.read_text())
        self.names = list(scales)
        self.median, self.scale = np.array(list(scales.values())).T  # (dim,), (dim,)
        self.dim = len(scales)

    @abstractmethod
    def raw(self, molecules: Sequence[Any]) -> np.ndarray[Any, Any]:
        """The descriptors of each molecule, (batch, dim); NaN where one cannot be computed."""

    def embed(self, items: Sequence[Any]) -> np.ndarray[Any, Any]:
        scaled = (self.raw(items) - self.median) / self.scale
        clipped: np.ndarray[Any, Any] = np.clip(np.nan_to_num(scaled, nan=0.0), -self.clip, self.clip)
        return clipped.astype(np.float32)

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "scales": sha256(self.scales), "clip": self.clip}


class RdkitDescriptors(_Descriptors):
    """RDKit's 217 two-dimensional descriptors, scaled by the 15,000 sample molecules of RDKit.

    Args:
        max_atoms: a molecule of more atoms is masked; the time of one grows with the fourth power of its atoms.
    """

    max_atoms = 500
    added: ClassVar[Mapping[str, Any]] = {"max_atoms": max_atoms}
    scales = Path(__file__).with_name("rdkit_descriptors.json")

    def __init__(self, max_atoms: int = max_atoms) -> None:
        super().__init__()
        self.max_atoms = max_atoms

    def prepare(self, item: bytes) -> Any:
        return parse_smiles(item, self.max_atoms)

    def raw(self, molecules: Sequence[Any]) -> np.ndarray[Any, Any]:
        return raw_descriptors(molecules, self.names)


class Mordred(_Descriptors):
    """The 1,613 two-dimensional descriptors of mordred (Moriwaki et al., 2018), scaled by a fifth of RDKit's samples.

    The package ``mordredcommunity`` computes them (extra ``mordred``). Many are missing for molecules of several fragments,
    such as salts.

    Args:
        max_atoms: a molecule of more atoms is masked.
        max_rings: a molecule of more rings is masked: the number of its paths, and so the time, is exponential in them.

    Raises:
        TeacherError: when the package is not installed, or its descriptors are others.
    """

    scales = Path(__file__).with_name("mordred_descriptors.json")

    def __init__(self, max_atoms: int = 200, max_rings: int = 12) -> None:
        super().__init__()
        self.max_atoms, self.max_rings = max_atoms, max_rings

    def load(self, device: str) -> None:
        self.calculator = mordred_calculator()
        names = [str(each) for each in self.calculator.descriptors]
        if names != self.names:
            other = next(iter(set(names) ^ set(self.names)), "their order")
            raise TeacherError(
                f"mordredcommunity has {len(names):,} descriptors, expected the {self.dim:,} of version 2.0 "
                f"(differs: {other}): pip install 'quorum-distill[mordred]'"
            )

    def prepare(self, item: bytes) -> Any:
        molecule = parse_smiles(item, self.max_atoms)
        if (rings := molecule.GetRingInfo().NumRings()) > self.max_rings:
            raise BadItem(f"{rings} rings, at most {self.max_rings} are read: raise max_rings")
        return molecule

    def raw(self, molecules: Sequence[Any]) -> np.ndarray[Any, Any]:
        return raw_mordred(molecules, self.calculator)


def mordred_calculator() -> Any:
    """What computes mordred's two-dimensional descriptors, without a limit of time: a slow machine gives the same rows.

    Raises:
        TeacherError: when mordredcommunity is not installed.
    """
    try:
        from mordred import Calculator, descriptors
    except ImportError:
        raise TeacherError("Mordred needs mordredcommunity: pip install 'quorum-distill[mordred]'") from None
    return Calculator(descriptors, ignore_3D=True, config={"timeout": float("inf")})


def raw_mordred(molecules: Sequence[Any], calculator: Any) -> np.ndarray[Any, Any]:
    """Mordred's descriptors of each molecule, (batch, descriptors); NaN where mordred says that one is missing."""
    from rdkit import rdBase

    with rdBase.BlockLogs(), np.errstate(all="ignore"):
        return np.array([[_number(float, value) for value in calculator(molecule)] for molecule in molecules], np.float64)


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
