import numpy as np
import pytest
from sklearn.model_selection import GroupKFold

from cache_tools.errors import ConfigError
from distill.evaluation.parts import CHOICE_ROWS, few_rows, offers, parts_of
from distill.evaluation.probes import LATER, TRAINED, KernelRidgeProbe
from distill.evaluation.protocol import Evaluation
from distill.evaluation.tasks import ComputedProperty, MoleculeTask, TextTask
from distill.evaluation.tasks.base import folds
from distill.evaluation.tasks.molecule import scaffold_numbers


@pytest.fixture(scope="module")
def molecules():
    task = ComputedProperty("MolLogP", limit=400)
    return task, task.load()[0]


@pytest.mark.parametrize("split", ["random", "scaffold"])
def test_each_row_is_tested_once_in_five_folds_and_groups_stay_together(molecules, split):
    task, items = molecules
    parts = parts_of(task, split, 0, items, 5, unseen=False)
    groups = task.groups(split, items)
    assert len(parts) == 5
    assert sorted(np.concatenate([part.test for part in parts])) == list(range(len(items)))
    for rows, fold, test in parts:
        assert sorted([*rows, *test]) == list(range(len(items)))
        assert not set(groups[rows]) & set(groups[test])
        assert set(fold) == {0, 1, 2}
        held = [set(groups[rows[fold == number]]) for number in range(3)]
        assert not held[0] & held[1]
        assert not (held[0] | held[1]) & held[2]
        assert 0.1 < len(test) / len(items) < 0.3
    again = parts_of(task, split, 0, items, 5, unseen=False)
    other = parts_of(task, split, 1, items, 5, unseen=False)
    assert all(np.array_equal(one.test, two.test) for one, two in zip(parts, again, strict=True))
    assert not all(np.array_equal(one.test, two.test) for one, two in zip(parts, other, strict=True))


def test_folds_are_as_even_as_scikit_learns(molecules):
    groups = scaffold_numbers(molecules[1])
    mine = np.bincount(folds(groups, 5, 0))
    theirs = [len(test) for _, test in GroupKFold(5).split(groups, groups=groups)]
    assert sorted(mine) == sorted(theirs)


def test_copies_of_a_molecule_share_a_fold():
    items = ["C" * n for n in range(1, 31)] * 4
    for part in parts_of(ComputedProperty("qed", limit=5), "random", 0, items, 5, unseen=False):
        assert not {items[row] for row in part.rows} & {items[row] for row in part.test}


def test_options_are_chosen_on_a_thousand_rows_at_most():
    items = ["C" * (1 + n % 40) + "N" * (n // 40) for n in range(2000)]
    for _, fold, _ in parts_of(ComputedProperty("qed", limit=5), "random", 0, items, 5, unseen=False):
        assert (fold >= 0).sum() == CHOICE_ROWS
        assert set(fold) == {LATER, 0, 1, 2}


def test_one_split_has_its_validation_rows_as_before(molecules):
    task, items = molecules
    train, valid, test = task.split("random", 3, items)
    (part,) = parts_of(task, "random", 3, items, 0, unseen=False)
    assert part.rows[part.fold == TRAINED].tolist() == train.tolist()
    assert part.rows[part.fold == 0].tolist() == valid.tolist()
    assert part.test.tolist() == test.tolist()


def test_small_data_draws_keep_so_many_rows_and_the_test_rows(molecules):
    task, items = molecules
    assert few_rows("100-rows") == 100
    assert few_rows("rows") is few_rows("0-rows") is few_rows("5-shot") is None
    assert offers(task, "50-rows")
    whole = parts_of(task, "random", 0, items, 5, unseen=False)
    few = parts_of(task, "50-rows", 0, items, 5, unseen=False)
    assert len(few) == 5
    for one, part in zip(whole, few, strict=True):
        assert len(part.rows) == 50
        assert set(part.rows) <= set(one.rows)
        assert part.test.tolist() == one.test.tolist()
    assert not np.array_equal(few[0].rows, parts_of(task, "50-rows", 1, items, 5, unseen=False)[0].rows)
    assert parts_of(task, "1000-rows", 0, items, 5, unseen=False) == []


def test_test_rows_that_a_data_set_names_are_never_folded(tmp_path):
    rows = [f"text {n},{n % 2},{'test' if n % 4 == 0 else 'train'}" for n in range(80)]
    (tmp_path / "named.csv").write_text("\n".join(["text,label,split", *rows]) + "\n")
    (tmp_path / "bare.csv").write_text("\n".join(["text,label", *(row.rpartition(",")[0] for row in rows)]) + "\n")
    named, bare = TextTask(tmp_path / "named.csv"), TextTask(tmp_path / "bare.csv")
    (part,) = parts_of(named, "own", 0, named.load()[0], 5, unseen=False)
    assert part.test.tolist() == list(range(0, 80, 4))
    assert len(parts_of(bare, "own", 0, bare.load()[0], 5, unseen=False)) == 5


def test_a_tasks_own_split_without_validation_rows_is_chosen_by_inner_folds(tmp_path):
    lines = [f"{'C' * (1 + n)}O,{n},{n % 2},{'test' if n % 5 == 0 else 'train'}" for n in range(40)]
    (tmp_path / "ace.csv").write_text("\n".join(["smiles,y,cliff,split", *lines]) + "\n")
    task = MoleculeTask(tmp_path / "ace.csv", "regression", split="split", mark=["cliff"])
    items, labels = task.load()
    assert labels[:, 0].tolist() == list(range(40))
    assert task.marks()["cliff"].tolist() == [n % 2 == 1 for n in range(40)]
    (part,) = parts_of(task, "own", 0, items, 5, unseen=False)
    assert part.test.tolist() == list(range(0, 40, 5))
    assert set(part.fold) == {0, 1, 2}


def test_a_molecules_task_of_search_has_all_rows_and_their_scaffolds(tmp_path):
    (tmp_path / "t.csv").write_text("smiles,y\nc1ccccc1C,7.5\nc1ccccc1CC,5\nC1CCCCC1,\nCCO,8\n")
    task = MoleculeTask(tmp_path / "t.csv", "search", active=6)
    items, labels = task.load()
    np.testing.assert_array_equal(labels, [[1, 0], [0, 0], [np.nan, 1], [1, 2]])
    (part,) = parts_of(task, "own", 0, items, 5, unseen=False)
    assert part.test.tolist() == [0, 1, 2, 3]
    assert not len(part.rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "probe.folds is 1, expected 2 or more, or 0"),
        ({"folds": 5, "every": 1}, "probe.folds 5 with probe.every 1: every row is a test row of one fold"),
        ({"folds": 5, "score_on": "validation"}, "probe.folds 5 with probe.score_on validation"),
        ({"probes": {"regresion": [KernelRidgeProbe()]}}, "probe.probes names the kind regresion; there are: classif"),
    ],
)
def test_folds_and_probes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Evaluation({"y": ComputedProperty("qed", limit=5)}, **options)


def test_a_task_stays_out_of_splits_that_it_does_not_name(tmp_path):
    task = MoleculeTask(tmp_path / "t.csv", "regression", splits=["random"])
    assert [split for split in ("random", "scaffold", "own") if offers(task, split)] == ["random"]


def test_with_folds_one_seed_is_enough():
    assert Evaluation(folds=5).seeds == [0]
    assert Evaluation().seeds == [0, 1, 2, 3, 4]
