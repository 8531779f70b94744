import ast
import re

import numpy as np
import pytest
from rdkit import Chem
from torch_geometric.utils.smiles import e_map, from_rdmol, x_map

from cache_tools.errors import BadItem
from cache_tools.inputs import MoleculeGraph
from cache_tools.inputs.featurise import ATOM, BOND, featurise, graph_of

SMILES = [
    *("C", "[Fe]", "[H][H]", "[Na+].[Cl-]", "CC(=O)Oc1ccccc1C(=O)O", "C/C=C/C", "C/C=C\\C", "CC=CC", "[CH3]", "[O-]C=O"),
    *("N[C@@H](C)C(=O)O", "CN1CCC[C@H]1c1cccnc1.Cl", "FS(F)(F)(F)(F)F"),
    *("[NH4+]->[Cu]", "F[Xe]F", "O=[U]=O", "C1=CC=CC=C1", "c1ccc2c(c1)[nH]c1ccccc12", "C#N", "[13CH4]", "[Og]", "*C"),
]


@pytest.mark.parametrize("smiles", SMILES)
def test_the_arrays_of_a_molecule_are_those_of_torch_geometric(smiles):
    molecule = Chem.MolFromSmiles(smiles)
    arrays, wanted = graph_of(molecule), from_rdmol(molecule)
    np.testing.assert_array_equal(arrays["atoms"], wanted.x.numpy(), strict=True)
    np.testing.assert_array_equal(arrays["edges"], wanted.edge_index.T.numpy(), strict=True)
    np.testing.assert_array_equal(arrays["bonds"], wanted.edge_attr.numpy(), strict=True)


def test_the_tables_have_the_sizes_of_torch_geometric():
    assert [len(values) for values in x_map.values()] == list(ATOM.values())
    assert [len(values) for values in e_map.values()] == list(BOND.values())


def test_a_batch_numbers_its_atoms_from_the_first_molecule_to_the_last():
    arrays = featurise(iter(["CO", "C", "CCN"]))
    assert arrays["counts"].tolist() == [2, 1, 3]
    assert arrays["edges"].tolist() == [[0, 1], [1, 0], [3, 4], [4, 3], [4, 5], [5, 4]]
    assert {name: (array.shape[1:], array.dtype) for name, array in arrays.items()} == {
        **{"atoms": ((9,), np.int64), "edges": ((2,), np.int64), "bonds": ((3,), np.int64)},
        "counts": ((), np.int64),
    }


@pytest.mark.parametrize("smiles", ["C1CC", "", "F[Pt@SP1](Cl)(Br)I"])
def test_a_molecule_that_cannot_be_read_is_named(smiles):
    with pytest.raises(ValueError, match=re.escape(repr(smiles))):
        featurise(["C", smiles])


def test_an_atom_without_a_feature_is_a_bad_item():
    with pytest.raises(BadItem, match="no feature for this atom or bond: atom 1 has hybridisation -1, expected 0 to 7"):
        MoleculeGraph().process_item(b"F[Pt@SP1](Cl)(Br)I")


def test_the_file_of_an_export_needs_rdkit_and_numpy_alone():
    tree = ast.walk(ast.parse(MoleculeGraph.standalone.read_text()))
    modules = [
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert sorted(modules) == ["collections.abc", "numpy", "rdkit", "typing"]
