"""The documentation as a site: every link, anchor and name of the Python reference exists, and notebooks are up to date."""

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import distill

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("methods/*.md")])
TUTORIALS = sorted((DOCS / "tutorials").glob("*.py"))


def build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", folder]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_site_has_no_link_that_leads_nowhere_and_every_name_of_the_reference(tmp_path):
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "api" / "index.html").read_text()
    named = re.findall("^::: (.+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert len(named) > 30
    assert [name for name in named if f'id="{name}"' not in reference] == []


def test_every_page_is_in_the_navigation():
    assert len(PAGES) > 10
    listed = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES if f": {page.relative_to(DOCS)}" not in listed] == []


def test_every_method_has_a_page_that_shows_its_configuration():
    methods = {path.stem: path.read_text() for path in (ROOT / "configs" / "methods").glob("*.yaml")}
    assert len(methods) >= 20
    for name, content in methods.items():
        page = (DOCS / "methods" / f"{name}.md").read_text()
        (shown,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
        model = yaml.safe_load(content)["model"]
        assert yaml.safe_load(shown)["model"] == {key: value for key, value in model.items() if value is not None}, name
        assert "**Source:**" in page and "**Trap.**" in page and f"(methods/{name}.md)" in (DOCS / "methods.md").read_text()


def cells_of(source: str) -> list[str]:
    """The code cells of a tutorial's source."""
    parts = re.split(r"^# %%(.*)\n", source, flags=re.M)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [text.strip() for kind, text in pairs if "markdown" not in kind]


@pytest.mark.parametrize("source", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_was_run_as_its_source_is_now(source):
    cells = json.loads(source.with_suffix(".ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert ["".join(cell["source"]) for cell in code] == cells_of(source.read_text()), "run `make notebooks`"
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "it was run from top to bottom"
    assert [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"] == []


def scripts() -> dict[str, str]:
    """Source of each tutorial, and of each block of a page that is no session with ``>>>``."""
    sources = {source.stem: source.read_text() for source in TUTORIALS}
    for page in [ROOT / "README.md", *PAGES]:
        blocks = re.findall("^```python\n(.*?)^```", page.read_text(), re.M | re.S)
        sources |= {f"{page.stem}-{number}": block for number, block in enumerate(blocks) if ">>>" not in block}
    return sources


@pytest.mark.parametrize("name", scripts())
def test_a_script_of_the_documentation_uses_names_and_keywords_that_exist(name):
    tree = ast.parse(scripts()[name])
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for node in [node for node in imports if re.match(r"(distill|cache_tools)\b", node.module or "")]:
        module = import_module(node.module or "")
        assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    for node in [node for node in calls if ast.unparse(node.func.value) in ("distill", "cache_tools")]:
        function = getattr(import_module(ast.unparse(node.func.value)), node.func.attr)
        assert {word.arg for word in node.keywords} <= inspect.signature(function).parameters.keys()
    for node in [node for node in calls if ast.unparse(node.func.value) == "student"]:
        method = getattr(distill.FittedStudent, node.func.attr)
        parameters = inspect.signature(method).parameters
        free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        assert free or {word.arg for word in node.keywords} <= parameters.keys()


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_commands_of_a_page_name_files_that_exist(page):
    blocks = re.findall("^```bash\n(.*?)^```", page.read_text(), re.M | re.S)
    named = {word for block in blocks for word in re.findall(r"(?:configs|benchmarks|tests|docs)/[\w./-]+", block)}
    assert [name for name in named if not (ROOT / name).exists()] == []
