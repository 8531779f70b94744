"""Weights files that say the right thing about themselves but hold other tensors are refused in words."""

import pytest
import torch
from safetensors.torch import save_file

from cache_tools.errors import TeacherError
from cache_tools.teachers.gnn import PretrainedGnn
from cache_tools.teachers.specialist import Specialist, teacher_facts, write_specialist


@pytest.fixture(scope="module")
def gnn(tmp_path_factory) -> PretrainedGnn:
    """A graph network with random weights, loaded."""
    path = tmp_path_factory.mktemp("gnn") / "gin.safetensors"
    torch.manual_seed(0)
    save_file(PretrainedGnn.kinds["gin"](120).state_dict(), path, {"kind": "gin"})
    teacher = PretrainedGnn(str(path))
    teacher.load("cpu")
    return teacher


CLASSIFIER = {"weight": torch.zeros(2, 300), "bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("lacking", "classifier"),
    [
        (["x_embedding1.weight"], CLASSIFIER),
        ([], {}),
        ([], {"weight": torch.zeros(2, 300)}),
        ([], {"weight": torch.zeros(2), "bias": torch.zeros(2)}),
    ],
    ids=["a tensor of the network", "the classifier", "its bias", "its width"],
)
def test_a_specialists_file_without_some_tensors_is_refused_in_words(gnn, tmp_path, lacking, classifier):
    network = {name: tensor for name, tensor in gnn.module.state_dict().items() if name not in lacking}
    path = tmp_path / "tuned.safetensors"
    write_specialist(path, network, classifier, teacher_facts(gnn))
    with pytest.raises(TeacherError, match=r"tuned.safetensors does not fit .*PretrainedGnn: .*distill specialise"):
        Specialist(PretrainedGnn(gnn.weights), str(path)).load("cpu")


def test_a_graph_networks_file_without_its_first_table_is_refused_in_words(tmp_path):
    save_file({"other": torch.zeros(3)}, tmp_path / "w.safetensors", {"kind": "gin"})
    with pytest.raises(TeacherError, match=r"w.safetensors does not fit a gin network: .*x_embedding1.weight"):
        PretrainedGnn(str(tmp_path / "w.safetensors")).load("cpu")
