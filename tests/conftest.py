import os
from pathlib import Path

import pytest
import torch

from cache_tools import MoleculeGraph, RdkitSamples, bf16_instructions, build
from cache_tools.teachers.molecule import Maccs, MorganBits, MorganCounts

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
NEEDS = (
    f"workplace: needs {SHARED} with real weights, data sets and published numbers, which are not part of the repository"
)

torch.set_num_threads(1)  # for tensors this small a second thread only waits


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "workplace: needs the workplace's folder shared/ beside the repository; skipped where it is missing"
    )
    config.addinivalue_line("markers", "slow: takes minutes; `make test-slow` runs it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "test_command_lines" not in item.nodeid)  # the longest file first: two workers end together
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("workplace"):
            raise pytest.UsageError(f"{item.nodeid} takes the fixture `shared`: mark it with @pytest.mark.workplace")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("workplace") and not SHARED.is_dir():
        # the workplace's own CI has the folder, so its tests must not drop out in silence; GitHub's machines have none
        if os.environ.get("CI") == "true" and "GITHUB_ACTIONS" not in os.environ:
            pytest.fail(NEEDS, pytrace=False)
        pytest.skip(NEEDS)


def pytest_runtest_call() -> None:
    torch.set_flush_denormal(False)  # builds and fits of other tests have set it; hypothesis draws such numbers


@pytest.fixture(autouse=True)
def _no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tests' own process, ``auto`` is float32 on every processor: they compare with references in float32."""
    monkeypatch.setattr(bf16_instructions, "__defaults__", (Path("/proc/without/bfloat16"),))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with 600 real molecules, three teachers and the graph; do not write to it."""
    folder = tmp_path_factory.mktemp("cache")
    teachers = {"counts": MorganCounts(128), "maccs": Maccs(), "morgan": MorganBits(256)}
    build(folder, "mol", RdkitSamples(limit=600), teachers, {"graph": MoleculeGraph()})
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The workplace's real weights, data and published numbers, for tests with the marker ``workplace``."""
    return SHARED
