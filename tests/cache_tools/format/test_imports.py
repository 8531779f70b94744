"""What starts at once: reading a cache's manifests and checking its files needs no torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "modules",
    [
        "cache_tools.format.store, cache_tools.format.reader, cache_tools.format.verify",
        "cache_tools.cli, cache_tools.cli.check",
        "cache_tools.building.corpus, cache_tools.teachers.base, cache_tools.inputs, cache_tools.corpora.molecule",
    ],
)
def test_importing_loads_no_heavy_library(modules):
    heavy = "torch", "lightning", "rdkit", "transformers", "torch_geometric"
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_cache_is_listed_and_verified_without_torch(command, cache):
    words = [command, "--cache", str(cache)]
    code = f"import sys; from cache_tools.cli import main; main({words}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mol" in done.stdout if command == "list" else "every shard is as it was written" in done.stdout
