"""What the two packages export: every name has an example in docs/python.md, and the examples run."""

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import cache_tools
import distill

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"


def examples() -> doctest.DocTest:
    text = PAGE.read_text().replace("```", "")  # the end of a code block is not output
    return doctest.DocTestParser().get_doctest(text, {"__name__": "python_page"}, PAGE.name, str(PAGE), 0)


def names_used() -> set[str]:
    trees = [ast.parse(example.source) for example in examples().examples]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    packages = (node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    of_package = {node.attr for node in packages if node.value.id in ("distill", "cache_tools")}
    return of_package | {node.id for node in nodes if isinstance(node, ast.Name)}


@pytest.mark.parametrize("package", [cache_tools, distill], ids=["cache_tools", "distill"])
def test_every_public_name_is_used_in_an_example(package):
    assert package.__all__
    assert set(package.__all__) - names_used() == set()


@pytest.mark.parametrize("package", [cache_tools, distill], ids=["cache_tools", "distill"])
def test_the_stub_exports_what_it_imports(package):
    tree = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text())
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    (listed,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    assert imported == set(listed) == set(package.__all__)
    for name in listed:
        assert getattr(package, name) is not None


def test_the_examples_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    results = runner.run(examples(), out=report.append)
    assert results.failed == 0, "".join(report)
    assert results.attempted > 100


@pytest.mark.parametrize("package", ["cache_tools", "distill"])
def test_importing_a_package_loads_no_heavy_library(package):
    heavy = "torch", "lightning", "h5py", "rdkit"
    code = f"import sys, {package}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
