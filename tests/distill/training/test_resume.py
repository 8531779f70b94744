"""Real training processes: a killed run goes on as if nothing had happened, and two ranks do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.base import Items
from cache_tools.errors import ConfigError
from cache_tools.inputs import MoleculeGraph
from cache_tools.teachers.molecule import Maccs
from distill.data.module import DistillData
from distill.heads import GaussianHead
from distill.students.molecule import GraphStudent
from distill.training.distiller import Distiller

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "fixtures" / "run.py"
EPOCH = 8  # steps of an epoch: 600 rows, 25 held out, batches of 64
KILLED = 13  # in the second epoch, behind the checkpoint of step 12


class Runs:
    """Training processes; each leaves its last checkpoint, and a diary and its end per rank."""

    def __init__(self, cache: Path, folder: Path):
        self.corpora, self.folder = [str(cache / "mol")], folder

    def __call__(self, name: str, ranks: int, **options) -> Path:
        folder = self.folder / name
        folder.mkdir()
        defaults = {"corpora": self.corpora, "workers": 0, "dropout": 0.2, "kill_at": 0, "checkpoint": ""}
        argument = json.dumps({**defaults, "ranks": ranks, "folder": str(folder), **options})
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
        command = [sys.executable, str(SCRIPT), argument]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
        assert (done.returncode == 0) == (not options.get("kill_at")), done.stderr[-3000:]
        return folder

    def resumed(self, killed: Path, ranks: int, **options) -> Path:
        assert not (killed / "end.ckpt").exists()
        return self(f"{killed.name}-resumed-{ranks}", ranks, checkpoint=str(killed / "last.ckpt"), **options)


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    return Runs(cache, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(runs):
    """Runs that nobody killed, by number of ranks."""
    return {ranks: runs(f"whole-{ranks}", ranks) for ranks in (1, 2)}


def diary(folder: Path) -> dict[int, list[dict]]:
    """Step -> what each rank wrote."""
    steps: dict[int, list[dict]] = {}
    for path in sorted(folder.glob("diary-*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            steps.setdefault(line["step"], []).append(line)
    return steps


def rows(folder: Path) -> dict[int, list[str]]:
    """Step -> rows of its global batch."""
    return {step: sorted(row for each in ranks for row in each["rows"]) for step, ranks in diary(folder).items()}


def ends(folder: Path) -> list[dict]:
    """What each rank holds at the end."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("end-*.json"))]


def test_global_batches_do_not_depend_on_ranks(whole):
    assert len(rows(whole[1])) == 2 * EPOCH
    assert rows(whole[1]) == rows(whole[2])


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 2)])
def test_a_killed_run_goes_on_to_the_last_digit(runs, whole, ranks, workers):
    killed = runs(f"killed-{ranks}-{workers}", ranks, workers=workers, kill_at=KILLED)
    resumed = runs.resumed(killed, ranks, workers=workers)
    after, expected = diary(resumed), diary(whole[ranks])
    assert min(after) == KILLED, "it goes on behind the checkpoint, not at the epoch's beginning"
    assert after == {step: expected[step] for step in after}, "same rows, same loss, dropout included"
    assert ends(resumed) == ends(whole[ranks])
    if ranks == 2:
        alone = runs.resumed(killed, 1)
        assert rows(alone) == {step: each for step, each in rows(whole[1]).items() if step >= KILLED}


def test_a_run_never_goes_on_with_other_batches(whole, cache, trainer):
    data = DistillData(cache / "mol", batch_size=32, held_out=25)
    student = GraphStudent(layers=2, width=16, dim=16, norm="layer")
    model = Distiller(data.statistics, student, head=lambda s, t: GaussianHead(s, t, preset="mini"))
    fitting = trainer(max_epochs=3)
    with pytest.raises(ConfigError, match="'batch': 64.*now they come from.*'batch': 32"):
        fitting.fit(model, data, ckpt_path=whole[1] / "last.ckpt")


def test_two_ranks_learn_what_one_does(runs, cache, tmp_path):
    """With rows that a teacher has not seen, not equally many on each rank."""
    items = Items(["C" * n + "O" for n in range(1, 90)], "molecule")
    settings = Settings(shard_rows=32, workers=1)
    other = build(tmp_path, "other", items, {"maccs": Maccs()}, {"graph": MoleculeGraph()}, settings)
    corpora = [str(cache / "mol"), str(other)]
    one, two = (runs(f"equal-{ranks}", ranks, corpora=corpora, dropout=0) for ranks in (1, 2))
    logged = [[ranks[0]["logged"] for ranks in diary(each).values()] for each in (one, two)]
    torch.testing.assert_close(*map(torch.tensor, logged), rtol=1e-5, atol=0)
    states = [torch.load(each / "end.ckpt", weights_only=False)["state_dict"] for each in (one, two)]
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)
    metrics = [each[0]["metrics"] for each in map(ends, (one, two))]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    assert ends(two)[0]["state"] == ends(two)[1]["state"], "the ranks hold the same student, heads and statistics"
