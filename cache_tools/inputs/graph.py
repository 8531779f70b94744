"""Molecules as graphs of atoms and bonds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cache_tools.errors import BadItem, ConfigError
from cache_tools.inputs.base import Featuriser
from cache_tools.items.molecule import MAX_ATOMS, parse_smiles

MOST = np.iinfo(np.int16).max  # atoms that edges can name


class MoleculeGraph(Featuriser):
    """The molecular graph of a SMILES with all atom and bond columns of ``torch_geometric.utils.smiles``.

    Fields: ``atoms`` (atoms, 9), ``edges`` (bonds, 2) as source and target atom, ``bonds`` (bonds, 3). Every chemical
    bond is listed twice, once in each direction.

    Args:
        max_atoms: a molecule of more atoms is masked; 32,767 at most.

    Raises:
        ConfigError: when ``max_atoms`` is larger.
    """

    modality = "molecule"
    python_bound = True
    max_atoms = MAX_ATOMS
    added: ClassVar[Mapping[str, Any]] = {"max_atoms": max_atoms}
    standalone = Path(__file__).with_name("featurise.py")
    fields = {"atoms": ("uint8", (9,)), "edges": ("int16", (2,)), "bonds": ("uint8", (3,))}

    def __init__(self, max_atoms: int = MAX_ATOMS):
        if max_atoms > MOST:
            raise ConfigError(f"max_atoms is {max_atoms:,}, expected at most {MOST:,}: edges are stored as int16")
        self.max_atoms = max_atoms

    def prepare(self, item: bytes) -> Any:
        return parse_smiles(item, self.max_atoms)

    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        from cache_tools.inputs.featurise import graph_of

        try:
            return graph_of(item)
        except ValueError as error:
            raise BadItem(f"no feature for this atom or bond: {error}") from None
