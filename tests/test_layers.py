"""The floors of the architecture: a file imports only from lower floors."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {  # a module may import those on lower floors, and those on its own floor that stand before it
    "cache_tools": [
        ["errors"],
        ["addresses", "console", "hub", "images", "launch", "molecules", "network", "producer", "progress"],
        ["shard", "statistics", "tables"],
        ["corpus", "store", "stack", "reader", "claims", "teacher", "columns", "verify", "seen"],
        ["corpora.dataset", "corpora.molecule", "corpora.text", "corpora.image", "corpora.idx"],
        ["teachers.text", "teachers.molecule", "teachers.gnn", "teachers.image", "teachers.convnet", "teachers.specialist"],
        ["pipeline", "run", "build", "transfer", "sample"],
        ["cli"],
    ],
    "distill": [
        ["exact", "descent", "hadamard", "order", "heads", "marginal", "normalize", "objective", "student", "augment"],
        ["methods.regression", "methods.densities", "methods.unic", "methods.consolidation", "methods.relations"],
        ["students.molecule", "students.text", "students.image", "students.mixed"],
        ["metrics", "data", "online", "guard", "module", "probes", "tasks", "labelled", "suites"],
        ["exported", "systems", "prepared", "evaluate", "probing", "conflict"],
        ["page", "scores", "figures", "results", "report", "card", "export"],
        ["attribution", "slurm", "mteb", "specialise", "fit", "run", "study", "compare", "cli"],
    ],
}
# `build` embeds a task's items and `corpus` holds them: probing is a cache stage too;
# `launch` and `pipeline` choose an exported student's device and prepare its items as those of any teacher
FROM_CACHE_TOOLS = {
    "console",
    "errors",
    "store",
    "stack",
    "reader",
    "statistics",
    "corpus",
    "run",
    "build",
    "producer",
    "teacher",
    "teachers.specialist",
    "columns",
    "corpora.image",
    "corpora.idx",
    "hub",
    "launch",
    "network",
    "pipeline",
    "tables",
    "seen",
}
NO_LIGHTNING = {
    "cache_tools.store",
    "cache_tools.reader",
    "cache_tools.shard",
    "distill.order",
    "distill.heads",
    "distill.normalize",
    "distill.objective",
    "distill.student",
    "distill.descent",
    "distill.probes",
    "distill.augment",
    "distill.exact",
}


def modules() -> dict[str, Path]:
    found = [path for package in FLOORS for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in found}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def place(package: str, name: str) -> tuple[int, int] | None:
    for floor, names in enumerate(FLOORS[package]):
        if name in names:
            return floor, names.index(name)
    return None


@pytest.mark.parametrize("module", modules())
def test_a_file_imports_only_from_lower_floors(module):
    package, name = module.split(".", 1)
    here = place(package, name)
    assert here is not None, f"{module} has no floor: add it to FLOORS"
    for imported in imports(modules()[module]) & modules().keys():
        other, theirs = imported.split(".", 1)
        if other == package:
            assert place(package, theirs) < here, f"{module} imports {imported}, which is not below it"
        else:
            assert package == "distill", "cache_tools never imports distill"
            assert theirs in FROM_CACHE_TOOLS, f"{module} imports {imported}"


@pytest.mark.parametrize("module", sorted(NO_LIGHTNING))
def test_the_mathematics_never_imports_lightning(module):
    assert not {name for name in imports(modules()[module]) if name.split(".")[0] in ("lightning", "pytorch_lightning")}


def test_only_the_shard_module_imports_h5py():
    assert [name for name, path in modules().items() if "h5py" in imports(path)] == ["cache_tools.shard"]


def test_importing_the_packages_loads_no_heavy_library():
    import subprocess
    import sys

    code = "import sys, cache_tools.teachers.molecule, cache_tools.build; print([m for m in sys.modules if m in HEAVY])"
    code = code.replace("HEAVY", "('rdkit', 'transformers', 'torch_geometric', 'lightning')")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.strip() == "[]"
