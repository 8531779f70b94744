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
