"""Molecules as graphs of atoms and bonds."""

from typing import Any

import numpy as np

from cache_tools.errors import BadItem
from cache_tools.inputs.base import Featuriser


class MoleculeGraph(Featuriser):
    """The molecular graph of a SMILES with all atom and bond columns of ``torch_geometric.utils.smiles``.

    Fields: ``atoms`` (atoms, 9), ``edges`` (bonds, 2) as source and target atom, ``bonds`` (bonds, 3). Every chemical
    bond is listed twice, once in each direction.
    """

    modality = "molecule"
    python_bound = True
    fields = {"atoms": ("uint8", (9,)), "edges": ("int16", (2,)), "bonds": ("uint8", (3,))}

    def prepare(self, item: bytes) -> Any:
        from cache_tools.items.molecule import parse_smiles

        return parse_smiles(item)

    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        from torch_geometric.utils.smiles import from_rdmol

        try:
            data = from_rdmol(item)
        except ValueError as error:  # an atom or bond outside the tables of torch_geometric
            raise BadItem(f"no feature for this atom or bond: {error}") from None
        if len(data.x) > np.iinfo(np.int16).max:
            raise BadItem(f"{len(data.x)} atoms, at most {np.iinfo(np.int16).max} are supported")
        return {"atoms": data.x.numpy(), "edges": data.edge_index.T.numpy(), "bonds": data.edge_attr.numpy()}
