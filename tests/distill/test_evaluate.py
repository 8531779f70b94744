from pathlib import Path

import numpy as np
import torch

from cache_tools import open_column
from cache_tools.run import Settings
from cache_tools.transfer import import_
from distill.data import open_part
from distill.evaluate import Evaluation
from distill.tasks import MoleculeTask

SMILES = ["CCO", "CCN", "CCC", "c1ccccc1", "CCCl", "CC=O", "CC#N", "CCS"]


def test_an_imported_teacher_joins_the_probes_when_it_has_the_tasks_items(tmp_path: Path, caplog):
    from cache_tools.build import build
    from cache_tools.columns import MoleculeGraph
    from cache_tools.corpus import Items
    from cache_tools.teachers.molecule import Maccs

    corpus = build(tmp_path, "c", Items(SMILES, "molecule"), {"maccs": Maccs()}, {"graph": MoleculeGraph()})
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))
    (tmp_path / "e.ids.txt").write_text("\n".join(SMILES) + "\n")
    import_(corpus, "elsewhere", tmp_path / "e.npy", key="item")
    (tmp_path / "task.csv").write_text("smiles,y\nCCO,1\nCCN,2\nCCC,3\nCCCC,4\n")
    evaluation = Evaluation({"y": MoleculeTask(tmp_path / "task.csv", "regression")})
    parts = [open_part(corpus, ["maccs", "elsewhere"])]

    evaluation.prepare(parts, Settings(workers=1))
    assert evaluation.teachers == {"y": ["maccs"]}
    assert "teacher elsewhere was imported and is left out of the probes" in caplog.text
    command = caplog.text.split("distill-cache import ")[1].split()

    import_(Path(command[1]), command[3], tmp_path / "e.npy", key="item")
    evaluation.prepare(parts, Settings(workers=1))
    assert evaluation.teachers == {"y": ["maccs", "elsewhere"]}
    column = open_column(Path(command[1]) / "teachers" / "elsewhere")
    assert column.valid(torch.arange(4)).tolist() == [True, True, True, False]


def test_test_rows_that_stand_in_the_corpus_are_counted_and_left_out_when_asked(tmp_path: Path):
    from cache_tools.build import build
    from cache_tools.columns import MoleculeGraph
    from cache_tools.corpus import Items
    from cache_tools.teachers.molecule import Maccs

    chains = ["C" * n + "O" for n in range(1, 61)]
    corpus = build(tmp_path, "c", Items(chains[:30], "molecule"), {"maccs": Maccs()}, {"graph": MoleculeGraph()})
    rows = [f"O{'C' * n},{n}" for n in range(1, 61)]  # the same molecules, written the other way round
    (tmp_path / "task.csv").write_text("\n".join(["smiles,y", *rows]) + "\n")
    tasks = {"y": MoleculeTask(tmp_path / "task.csv", "regression")}
    found = {}
    for exclude in (False, True):
        evaluation = Evaluation(tasks, seeds=[0], systems=["teachers"], exclude_seen=exclude)
        evaluation.prepare([open_part(corpus, ["maccs"])], Settings(workers=1))
        (found[exclude],) = evaluation.run({}, "cpu")
    assert found[False].test_rows == 6
    assert 0 < found[False].seen_rows == found[True].seen_rows < 6
    assert found[True].test_rows == 6 - found[True].seen_rows
