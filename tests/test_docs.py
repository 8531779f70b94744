"""The documentation as a site: every link, anchor and name of the Python reference exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


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
    assert [page.name for page in PAGES if f": {page.name}" not in listed] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_commands_of_a_page_name_files_that_exist(page):
    blocks = re.findall("^```bash\n(.*?)^```", page.read_text(), re.M | re.S)
    named = {word for block in blocks for word in re.findall(r"(?:configs|benchmarks|tests|docs)/[\w./-]+", block)}
    assert [name for name in named if not (ROOT / name).exists()] == []
