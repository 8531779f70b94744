"""Parse SMILES."""

import re
from typing import Any

from cache_tools.errors import BadItem

MAX_ATOMS = 2_000  # RDKit parses as many within seconds, however the rings are fused

PARSED = 4_096  # molecules that a process keeps, of about 0.4 kB each: all columns of a small corpus share one parse

_parsed: dict[bytes, bytes] = {}  # SMILES -> molecule as RDKit's own bytes, read in a quarter of the time of a parse

_ATOM = re.compile(rb"\[(?!H)[^][]*\]|Br|Cl|[BCNOPSFIbcnops*]")  # all but hydrogens, which RDKit leaves out


def parse_smiles(item: bytes, max_atoms: int = MAX_ATOMS) -> Any:
    """The RDKit molecule of a SMILES.

    Args:
        item: the SMILES.
        max_atoms: a molecule of more atoms, without hydrogens, is refused, if possible before it is parsed.

    Raises:
        BadItem: when RDKit cannot read it, or it has no atom, or too many.
    """
    _check_size(sum(1 for _ in _ATOM.finditer((item.split(maxsplit=1) or [b""])[0])), max_atoms)
    molecule = _parse(item)
    if molecule is None:
        raise BadItem("RDKit cannot parse this SMILES")
    if not molecule.GetNumAtoms():
        raise BadItem("a molecule without atoms")
    _check_size(molecule.GetNumAtoms(), max_atoms)
    return molecule


def _parse(item: bytes) -> Any:
    from rdkit import Chem, rdBase

    if binary := _parsed.get(item):
        return Chem.Mol(binary)  # type: ignore[call-overload]  # its stubs say str
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(item.decode())
    if molecule is not None:
        if len(_parsed) >= PARSED:
            _parsed.clear()
        _parsed[item] = molecule.ToBinary()
    return molecule


def _check_size(atoms: int, max_atoms: int) -> None:
    if atoms > max_atoms:
        raise BadItem(f"{atoms:,} atoms, at most {max_atoms:,} are read: raise max_atoms")
