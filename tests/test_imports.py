"""What an import costs; which room imports which is held by the contracts in pyproject.toml (`lint-imports`)."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_importing_the_cache_stage_loads_no_heavy_library():
    heavy = "('rdkit', 'transformers', 'torch_geometric', 'lightning')"
    code = "import sys, cache_tools.teachers.molecule, cache_tools.building.corpus; "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.strip() == "[]"
