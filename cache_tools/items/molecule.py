"""Parse SMILES."""

import re
from typing import Any

from cache_tools.errors import BadItem

MAX_ATOMS = 2_000  # RDKit parses as many within seconds, however the rings are fused

_ATOM = re.compile(rb"\[(?!H)[^][]*\]|Br|Cl|[BCNOPSFIbcnops*]")  # all but hydrogens, which RDKit leaves out


def parse_smiles(item: bytes, max_atoms: int = MAX_ATOMS) -> Any:
    """The RDKit molecule of a SMILES.

    Args:
        item: the SMILES.
        max_atoms: a molecule of more atoms, without hydrogens, is refused, if possible before it is parsed.

    Raises:
        BadItem: when RDKit cannot read it, or it has no atom, or too many.
    """
    from rdkit import Chem, rdBase

    _check_size(sum(1 for _ in _ATOM.finditer((item.split(maxsplit=1) or [b""])[0])), max_atoms)
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(item.decode())
    if molecule is None:
        raise BadItem("RDKit cannot parse this SMILES")
    if not molecule.GetNumAtoms():
        raise BadItem("a molecule without atoms")
    _check_size(molecule.GetNumAtoms(), max_atoms)
    return molecule


def _check_size(atoms: int, max_atoms: int) -> None:
    if atoms > max_atoms:
        raise BadItem(f"{atoms:,} atoms, at most {max_atoms:,} are read: raise max_atoms")
