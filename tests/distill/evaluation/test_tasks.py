import numpy as np
import pytest

from cache_tools.errors import ConfigError, CorpusError
from distill.evaluation.tasks.base import random_split
from distill.evaluation.tasks.molecule import (
    CmetActivity,
    ComputedProperty,
    MoleculeTask,
    NciTpsa,
    PainsAlerts,
    _scaffold,
    scaffold_split,
)


def test_a_task_file_has_one_or_more_targets_and_labels_may_be_missing(tmp_path):
    (tmp_path / "t.csv").write_text("smiles,a,b\nCCO,1,0\nCCN,,1\n")
    items, labels = MoleculeTask(tmp_path / "t.csv", "classification").load()
    assert items == ["CCO", "CCN"]
    np.testing.assert_array_equal(labels, [[1, 0], [np.nan, 1]])
    assert MoleculeTask(tmp_path / "t.csv", "classification", targets=["b"]).load()[1].tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("smi,a\nC,1\n", "regression", "no column smiles; its columns are: smi, a"),
        ("smiles,b\nC,1\n", "regression", "no column a; its columns are: smiles, b"),
        ("smiles,a\nC,1\nC,x\n", "regression", "line 3: a is 'x', expected a finite number or nothing"),
        ("smiles,a\nC,2\n", "classification", "line 2: a is '2', expected 0, 1 or nothing"),
        ("smiles,a\n", "regression", "holds no rows"),
        ("smiles,a\nC,inf\n", "regression", "line 2: a is 'inf', expected a finite number"),
        ("smiles,a\nC,1,2\n", "regression", "line 2: more cells than the header has columns"),
    ],
)
def test_bad_task_files_say_what_to_do(tmp_path, text, kind, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CorpusError, match=message):
        MoleculeTask(tmp_path / "t.csv", kind, targets=["a"]).load()


@pytest.mark.parametrize(("rows", "seed"), [(1000, 0), (101, 3)])
def test_a_random_split_cuts_all_rows_once(rows, seed):
    parts = random_split(rows, seed)
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert [abs(len(part) / rows - share) < 0.01 for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True)] == [True] * 3
    assert not np.array_equal(parts[0], random_split(rows, seed + 1)[0])


def test_a_scaffold_split_keeps_scaffolds_together():
    smiles, _ = ComputedProperty("MolLogP", limit=600).load()
    splits = [scaffold_split(smiles, seed) for seed in (0, 0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(*splits[:2], strict=True))
    assert not np.array_equal(splits[0][2], splits[2][2])
    for parts in splits:
        assert sorted(np.concatenate(parts)) == list(range(len(smiles)))
        scaffolds = [{_scaffold(smiles[row]) for row in part} for part in parts]
        assert not scaffolds[0] & scaffolds[1]
        assert not (scaffolds[0] | scaffolds[1]) & scaffolds[2]
        assert 0.08 < len(parts[2]) / len(smiles) < 0.12


def test_an_unknown_split_or_property_is_named():
    with pytest.raises(ConfigError, match="there are: random, scaffold"):
        PainsAlerts(limit=5).split("time", 0, ["C"])
    with pytest.raises(ConfigError, match="no descriptor 'LogX'"):
        ComputedProperty("LogX").load()


@pytest.mark.parametrize(
    ("task", "provenance", "low", "high"),
    [
        (CmetActivity(), "measured", 4, 12),
        (NciTpsa(50), "computed", 0, 1000),
        (ComputedProperty("qed", 50), "computed", 0, 1),
        (PainsAlerts(50), "computed", 0, 1),
    ],
    ids=lambda each: type(each).__name__ if hasattr(each, "load") else None,
)
def test_tasks_from_rdkits_own_files(task, provenance, low, high):
    items, labels = task.load()
    assert labels.shape == (len(items), 1)
    assert len(items) >= 45
    assert labels.min() >= low
    assert labels.max() <= high
    assert labels.std() > 0
    assert task.provenance == provenance
    assert len(task.corpus("x").read()[0]) == len(set(items))


def test_copies_of_a_molecule_stay_on_one_side_of_a_random_split():
    items = ["C" * n for n in range(1, 31)] * 4
    parts = PainsAlerts(limit=5).split("random", 0, items)
    assert sorted(np.concatenate(parts)) == list(range(120))
    molecules = [{items[row] for row in part} for part in parts]
    assert not molecules[0] & molecules[2]
    assert not molecules[1] & molecules[2]
