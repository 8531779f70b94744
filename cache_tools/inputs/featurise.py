"""Molecules as the arrays that a student's ONNX file reads. This file needs RDKit and numpy alone; an export has a copy."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

Arrays = dict[str, np.ndarray[Any, Any]]

# column -> number of its categories
ATOM = {"element": 119, "chirality": 9, "degree": 11, "charge": 12, "hydrogens": 9, "radical electrons": 5}
ATOM |= {"hybridisation": 8, "aromatic": 2, "in a ring": 2}
BOND = {"type": 22, "stereo": 6, "conjugated": 2}

CHARGE = 5  # is added, since charges begin at -5
HYBRIDISATIONS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 6: 5, 7: 6, 8: 7}  # torch_geometric's tables lack RDKit's SP2D


def featurise(smiles: Iterable[str]) -> Arrays:
    """The inputs of an ONNX file: ``InferenceSession("model.onnx").run(None, featurise(["CCO", "C"]))``.

    Args:
        smiles: of a batch.

    Returns:
        ``atoms`` (atoms, 9) and ``bonds`` (bonds, 3), the categories of all atoms and bonds, one molecule after the other;
        ``edges`` (bonds, 2), the two atoms of each bond, numbered through the batch; ``counts`` (batch,), the number of
        atoms of each molecule. All are int64.

    Raises:
        ValueError: when RDKit cannot read a SMILES, or an atom or bond is not in the tables; it names the SMILES.
    """
    graphs = [_read(each) for each in smiles]
    counts = np.array([len(graph["atoms"]) for graph in graphs], int)
    first = counts.cumsum() - counts
    edges = [graph["edges"] + number for graph, number in zip(graphs, first, strict=True)]
    flat = {name: np.concatenate([graph[name] for graph in graphs]) for name in ("atoms", "bonds")}
    return {**flat, "edges": np.concatenate(edges), "counts": counts}


def graph_of(molecule: Any) -> Arrays:
    """One RDKit molecule: ``atoms`` (atoms, 9), ``edges`` (bonds, 2), ``bonds`` (bonds, 3); each bond in both directions.

    The arrays are those of ``torch_geometric.utils.smiles.from_rdmol``, in its order.

    Raises:
        ValueError: when an atom or bond is not in the tables.
    """
    atoms = np.array([_atom(atom) for atom in molecule.GetAtoms()], int).reshape(-1, len(ATOM))
    ends = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    edges = np.array(ends + [(end, begin) for begin, end in ends], int).reshape(-1, 2)
    bonds = np.array([_bond(bond) for bond in molecule.GetBonds()] * 2, int).reshape(-1, len(BOND))
    _check("atom", atoms, ATOM)
    _check("bond", bonds, BOND)
    order = np.lexsort(edges.T[::-1])
    return {"atoms": atoms, "edges": edges[order], "bonds": bonds[order]}


def _read(smiles: str) -> Arrays:
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        raise ValueError(f"RDKit reads no molecule in the SMILES {smiles!r}")
    try:
        return graph_of(molecule)
    except ValueError as error:
        raise ValueError(f"{smiles!r}: {error}") from None


def _check(name: str, categories: np.ndarray[Any, Any], columns: dict[str, int]) -> None:
    """Refuse categories (rows, columns) outside the tables."""
    outside = (categories < 0) | (categories >= list(columns.values()))
    for row, column in np.argwhere(outside)[:1]:
        title, count = list(columns.items())[column]
        raise ValueError(f"{name} {row} has {title} {categories[row, column]}, expected 0 to {count - 1}")


def _atom(atom: Any) -> tuple[int, ...]:
    return (
        atom.GetAtomicNum(),
        int(atom.GetChiralTag()),
        atom.GetTotalDegree(),
        atom.GetFormalCharge() + CHARGE,
        atom.GetTotalNumHs(),
        atom.GetNumRadicalElectrons(),
        HYBRIDISATIONS.get(int(atom.GetHybridization()), -1),
        atom.GetIsAromatic(),
        atom.IsInRing(),
    )


def _bond(bond: Any) -> tuple[int, ...]:
    return int(bond.GetBondType()), int(bond.GetStereo()), bond.GetIsConjugated()
