"""What `pip install quorum-distill` gives without a clone: every file, configurations by name, what is missing."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from cache_tools import ConfigError, import_class
from cache_tools.cli import main as cache_command
from cache_tools.errors import CacheError
from cache_tools.teachers.base import Teacher
from distill.cli import main as distill_command
from distill.export.folder import CONFIG, find

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_file_of_both_packages(tmp_path):
    for name in ("distill", "cache_tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    packed = {
        str(path.relative_to(tmp_path)) for name in ("distill", "cache_tools") for path in (tmp_path / name).rglob("*.*")
    }
    packed = {name for name in packed if (tmp_path / name).is_file()}
    assert {"cache_tools/configs/cache/mol.yaml", "distill/py.typed", "distill/export/card.md.jinja"} <= packed
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with ZipFile(wheel) as archive:
        assert packed - set(archive.namelist()) == set()


def test_a_configuration_of_the_package_is_named_without_its_path_and_a_file_of_that_name_comes_first(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for command, words, path in (
        (distill_command, ["fit", "--config", "mol"], ROOT / "configs" / "mol.yaml"),
        (distill_command, ["fit", "--config=mol", "--config=methods/mse"], ROOT / "configs" / "mol.yaml"),
        (cache_command, ["build", "--config", "mol"], ROOT / "configs" / "cache" / "mol.yaml"),
    ):
        with pytest.raises(SystemExit):
            command([*words, "--print_config"])
        printed = yaml.safe_load(capsys.readouterr().out)
        assert set(yaml.safe_load(path.read_text())) <= set(printed)
    (tmp_path / "mol").write_text("run: runs/own\ndata: {corpus: cache/own}")
    with pytest.raises(SystemExit):
        distill_command(
            ["fit", "--config", "mol", "--model.student", "distill.students.molecule.GraphStudent", "--print_config"]
        )
    assert yaml.safe_load(capsys.readouterr().out)["run"] == "runs/own"


def test_a_name_that_the_package_does_not_know_is_told_with_one_that_it_knows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no file visoin, which --config names; did you mean vision"):
        distill_command(["fit", "--config", "visoin"])
    with pytest.raises(ConfigError, match=f"no export at .*nothing: expected {CONFIG} there, or the name of a released"):
        find("nothing")


def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "without_rdkit.py").write_text("raise ModuleNotFoundError(\"No module named 'rdkit.Chem'\")")
    with pytest.raises(CacheError, match=r"No module named 'rdkit.Chem': pip install 'quorum-distill\[mol\]'"):
        import_class("without_rdkit.Own", Teacher)
    with pytest.raises(SystemExit):
        cache_command(["build", "--config", "mol", "--corpus", "without_rdkit.Own"])
    assert "pip install 'quorum-distill[mol]'" in capsys.readouterr().err
