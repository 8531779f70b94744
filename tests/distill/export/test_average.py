import pytest
import torch

from cache_tools.errors import ConfigError
from distill.cli.functions import main
from distill.export.average import average
from distill.run_folder import RunFolder
from distill.training.checkpoint import read_checkpoint


@pytest.fixture
def run(tmp_path):
    """A run whose student began at 0 and ended at 1."""
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    for path, value in ((folder.start, 0.0), (folder.best, 1.0)):
        state = {"student.weight": torch.full((2, 3), value), "student.seen": torch.tensor(int(value))}
        state["heads.a.bias"] = torch.full((2,), value)
        torch.save({"epoch": 3, "global_step": 40, "state_dict": state, "optimizer_states": [state]}, path)
    return folder


def test_the_student_lies_between_its_start_and_its_end_and_all_else_is_the_best_checkpoints(run):
    main(["average", "--run", str(run.path), "--share", "0.25"])
    found = read_checkpoint(run.average)
    assert (found["epoch"], found["global_step"]) == (3, 40)
    assert found["state_dict"]["student.weight"].unique().tolist() == [0.25]
    assert "optimizer_states" not in found
    assert found["state_dict"]["student.seen"] == 1, "a count is no weight"
    assert found["state_dict"]["heads.a.bias"].tolist() == [1, 1]
    assert read_checkpoint(run.best)["state_dict"]["student.weight"].unique().tolist() == [1], "the run's own stay"


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_a_share_that_cannot_be_is_refused(run, share):
    with pytest.raises(ConfigError, match="expected a number above 0, and at most 1"):
        average(run.path, share)
    assert not run.average.exists()


def test_a_run_that_began_at_random_has_no_start_to_go_back_to(run):
    run.start.unlink()
    with pytest.raises(ConfigError, match="only a student that began with pretrained weights"):
        average(run.path)
