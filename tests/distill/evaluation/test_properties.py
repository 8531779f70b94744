"""Tasks whose tables come with the package chemicals."""

from typing import get_args

import numpy as np
import pytest
from rdkit import Chem

from cache_tools import ConfigError
from distill.evaluation.tasks import PhysicalProperty, properties


def test_every_property_that_can_be_named_has_a_source():
    assert sorted(get_args(properties.Name)) == sorted(properties.SOURCES)
    assert len(properties.SOURCES) == 23


@pytest.mark.parametrize("name", properties.SOURCES)
def test_a_property_has_200_to_600_different_organic_molecules_with_values(name):
    task = PhysicalProperty(name)
    smiles, labels = task.load()
    assert (task.kind, task.provenance, task.modality) == ("regression", "measured", "molecule")
    assert 200 <= len(smiles) == len(set(smiles)) <= 600
    assert labels.shape == (len(smiles), 1)
    assert np.isfinite(labels).all() and labels.std() > 0
    molecules = [Chem.MolFromSmiles(text) for text in smiles]
    assert [Chem.MolToSmiles(molecule, isomericSmiles=False) for molecule in molecules] == smiles
    assert all("." not in text for text in smiles) and not any(map(Chem.GetFormalCharge, molecules))


@pytest.mark.parametrize(
    ("name", "smiles", "value"),
    [  # textbook values: K, K, Pa, J/mol, kg/m3, units of 1, log10
        ("boiling_point", "c1ccccc1", 353.2),
        ("critical_temperature", "CCCCCC", 507.6),
        ("critical_pressure", "CCCCCC", 3.025e6),
        ("heat_of_formation_gas", "CCO", -234_800),
        ("density", "CCO", 789),
        ("refractive_index", "c1ccccc1", 1.501),
        ("logp", "c1ccccc1", 2.13),
        ("permittivity", "CC(C)=O", np.log10(21.0)),
        ("dipole_moment", "CC#N", 3.92),
        ("research_octane", "CC(C)CC(C)(C)C", 100),
    ],
)
def test_values_are_those_of_textbooks(name, smiles, value):
    molecules, labels = PhysicalProperty(name, limit=100_000).load()
    assert labels[molecules.index(smiles), 0] == pytest.approx(value, rel=0.01)


def test_the_molecules_of_a_limit_are_drawn_with_a_fixed_seed():
    few, more = PhysicalProperty("density", limit=50).load()[0], PhysicalProperty("density", limit=100).load()[0]
    assert (len(few), len(more)) == (50, 100)
    assert few == more[:50]


def test_misprints_rows_without_an_error_and_other_temperatures_are_left_out():
    assert PhysicalProperty("critical_temperature", limit=10_000).load()[1].min() > 190
    assert PhysicalProperty("lower_flammability").load()[1].min() > 0
    sublimed = properties.SOURCES["heat_of_sublimation"]
    assert len(list(properties._values(sublimed))) < len(list(properties._values(sublimed._replace(stated=None))))
    permittivity = properties.SOURCES["permittivity"]
    assert len(list(properties._values(permittivity))) < len(list(properties._values(permittivity._replace(within=None))))


@pytest.mark.parametrize("name", properties.SOURCES)
def test_logarithms_are_taken_where_values_span_more_than_a_factor_of_ten(name):
    log = properties.SOURCES[name].log
    labels = PhysicalProperty(name, limit=100_000).load()[1]
    values = 10**labels if log else labels
    low, high = np.percentile(values, [5, 95])
    assert log == (values.min() > 0 and high > 10 * low)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(properties, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tables of the package chemicals: pip install 'quorum-distill\[properties\]'"):
        properties._folder()


def test_another_version_of_the_package_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(properties, "_folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"another version of chemicals: pip install 'quorum-distill\[properties\]'"):
        list(properties._values(properties.SOURCES["density"]))
