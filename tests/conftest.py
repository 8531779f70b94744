from pathlib import Path

import pytest
import torch

from cache_tools.building.corpus import build
from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.inputs import MoleculeGraph
from cache_tools.teachers.molecule import Maccs, MorganBits, MorganCounts

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

torch.set_num_threads(1)  # for tensors this small a second thread only waits


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "test_command_lines" not in item.nodeid)  # the longest file first: two workers end together


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with 600 real molecules, three teachers and the graph; do not write to it."""
    folder = tmp_path_factory.mktemp("cache")
    teachers = {"counts": MorganCounts(128), "maccs": Maccs(), "morgan": MorganBits(256)}
    build(folder, "mol", RdkitSamples(limit=600), teachers, {"graph": MoleculeGraph()})
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The workplace's real weights, data and golden numbers; a user's clone has none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}")
    return SHARED
