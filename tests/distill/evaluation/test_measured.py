"""Tasks whose tables come with the package."""

import csv
import gzip
from typing import get_args

import numpy as np
import pytest
from rdkit import Chem

from cache_tools import ConfigError
from distill.evaluation.tasks import Activity, Measured
from distill.evaluation.tasks.measured import KINDS, Assay


@pytest.mark.parametrize(("name", "rows"), [("bbb", 1561), ("logbb", 1058), ("solubility", 1282)])
def test_every_row_of_a_measured_task_is_a_molecule_with_a_label(name, rows):
    task = Measured(name)
    smiles, labels = task.load()
    assert (len(smiles), labels.shape, task.kind, task.provenance) == (rows, (rows, 1), KINDS[name], "measured")
    assert all(Chem.MolFromSmiles(each) is not None for each in smiles)
    assert np.isfinite(labels).all() and len(np.unique(labels)) > 1


def test_labels_are_those_of_the_publications():
    """Diosgenin hardly dissolves (Huuskonen); sulfasalazine and moxalactam stay outside of the brain (B3DB)."""
    for name, smiles, label in (
        ("solubility", "CC1CCC2(OC1)OC1CC3C4CC=C5CC(O)CCC5(C)C4CCC3(C)C1C2C", -7.32),
        ("logbb", "CN1C(=NN=N1)SCC2=C(N3C(C(C3=O)(NC(=O)C(C4=CC=C(C=C4)O)C(=O)O)OC)OC2)C(=O)O", -2.52),
        ("bbb", "O=C(O)c1cc(N=Nc2ccc(S(=O)(=O)Nc3ccccn3)cc2)ccc1O", 0),
    ):
        found, labels = Measured(name).load()
        canonical = [Chem.CanonSmiles(each) for each in found]
        assert labels[canonical.index(Chem.CanonSmiles(smiles)), 0] == label


@pytest.mark.parametrize("assay", get_args(Assay))
def test_an_assay_has_200_molecules_with_different_activities(assay):
    smiles, labels = Activity(assay).load()
    assert len(set(smiles)) == 200 and labels.shape == (200, 1)
    assert all(Chem.MolFromSmiles(each) is not None for each in smiles)
    assert np.isfinite(labels).all() and labels.std() > 0.3


@pytest.mark.workplace
def test_activities_are_those_of_moleculeace(shared):
    compared = 0
    for assay in get_args(Assay):
        path = shared / "data" / "mol" / "tasks" / f"ace_{assay.lower()}.csv.gz"
        if not path.exists():
            continue
        with gzip.open(path, "rt") as file:
            known = {row["smiles"]: float(row["neg_log_nm"]) for row in csv.DictReader(file)}
        smiles, labels = Activity(assay).load()
        assert labels[:, 0] == pytest.approx([known[each] for each in smiles], abs=1e-3)
        compared += 1
    assert compared > 10


def test_an_unknown_table_or_assay_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match="no table logp; there are: bbb, logbb, solubility"):
        Measured("logp")
    with pytest.raises(ConfigError, match="no assay CHEMBL1; there are: CHEMBL1862_Ki, "):
        Activity("CHEMBL1")
