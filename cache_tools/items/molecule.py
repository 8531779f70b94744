"""Parse SMILES."""

from typing import Any

from cache_tools.errors import BadItem


def parse_smiles(item: bytes) -> Any:
    """The RDKit molecule of a SMILES.

    Raises:
        BadItem: when RDKit cannot read it, or it has no atom.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(item.decode())
    if molecule is None:
        raise BadItem("RDKit cannot parse this SMILES")
    if not molecule.GetNumAtoms():
        raise BadItem("a molecule without atoms")
    return molecule
