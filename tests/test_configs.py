"""Every configuration names classes and arguments that are there; so does every page of the docs."""

import re
import subprocess
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from cache_tools import cli as cache_cli
from distill import cli as distill_cli
from distill.cli.functions import main as run_function
from distill.cli.study import resolve
from distill.study.study import Study

ROOT = Path(__file__).parents[1]
CONFIGS, OURS = ROOT / "configs", ROOT / "benchmarks" / "studies"


def naming(key: str, *folders: Path) -> list[Path]:
    """The configurations of ``folders`` whose top level has ``key``."""
    return [path for folder in folders for path in sorted(folder.glob("*.yaml")) if key in yaml.safe_load(path.read_text())]


FITS = naming("model", CONFIGS)
CACHES = naming("teachers", CONFIGS / "cache") + sorted(OURS.glob("*-cache.yaml"))
STUDIES = naming("methods", CONFIGS, OURS)
SPECIALISTS = naming("task", CONFIGS, OURS / "specialists")
RECIPES = [f"{kind}-{size}" for kind in ("mol", "text", "vision") for size in ("tiny", "small", "base")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_kind_of_configuration_is_found():
    everything = [FITS, CACHES, STUDIES, SPECIALISTS]
    assert all(everything)
    for_users = {*CONFIGS.glob("*.yaml"), *(CONFIGS / "cache").glob("*.yaml")}
    assert {path for paths in everything for path in paths} >= for_users


def test_nothing_that_a_user_runs_or_reads_names_the_workplace():
    texts = [ROOT / "README.md", ROOT / "Makefile", OURS.parent / "Makefile", *(ROOT / "docs").glob("*.md")]
    texts += [path for folder in (CONFIGS, OURS) for path in folder.rglob("*.yaml")]
    texts += [path for package in ("cache_tools", "distill") for path in (ROOT / package).rglob("*.py")]
    assert [path for path in texts if "../shared" in path.read_text()] == []


@pytest.mark.parametrize("config", FITS, ids=lambda path: path.stem)
def test_a_students_configuration_is_complete(config, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        distill_cli.main(["fit", "--config", str(config), "--print_config"])
    assert stop.value.code in (0, None), capsys.readouterr().err
    assert yaml.safe_load(capsys.readouterr().out)["model"]["student"]["class_path"]


def test_each_kind_of_item_has_three_sizes_of_recipes_which_the_help_and_the_docs_list():
    rows = re.findall(r"^\| `([a-z-]+)`", (ROOT / "docs" / "which.md").read_text(), re.M)
    assert rows[: len(RECIPES)] == RECIPES
    listed = re.findall(r"(\w+)-\{tiny,small,base\}", distill_cli.HELP)
    assert [f"{kind}-{size}" for kind in listed for size in ("tiny", "small", "base")] == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_reads_the_cache_that_the_command_in_its_comment_builds(recipe):
    text = (ROOT / "configs" / f"{recipe}.yaml").read_text()
    command = re.search(r"`make cache TEACHERS=([a-z-]+)(?: CORPUS=\S+?)?(?: NAME=(\w+))?`", text)
    group = yaml.safe_load((ROOT / "configs" / "cache" / f"{command[1]}.yaml").read_text())
    content = yaml.safe_load(text)
    assert content["data"]["corpus"] == f"cache/{command[2] or group['name']}"
    named = {*content["data"].get("teachers", []), *content["model"].get("heads", {})}
    assert named <= set(group["teachers"])


def printed(capsys, *configs: Path) -> dict:
    words = [word for path in configs for word in ("--config", str(path))]
    with pytest.raises(SystemExit):
        distill_cli.main(["fit", *words, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("base", ["mol", "text-paper"])
@pytest.mark.parametrize("name", ["nll", "low-rank", "unic"])
def test_a_method_laid_over_a_configuration_is_that_method(name, base, capsys, monkeypatch, tmp_path):
    """Whatever heads that one has: those of mol.yaml are linear, the paper's have three layers, one width per teacher."""
    monkeypatch.chdir(ROOT)
    student = {"class_path": "distill.students.molecule.GraphStudent"}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump({"data": {"corpus": "cache/mol"}, "model": {"student": student}}))
    method = CONFIGS / "methods" / f"{name}.yaml"
    alone, over = (printed(capsys, each, method)["model"] for each in (tmp_path / "bare.yaml", CONFIGS / f"{base}.yaml"))
    for key in ("head", "heads", "objective"):
        assert over[key] == alone[key], key


def test_every_method_clears_the_heads_of_a_base_and_says_what_its_own_is_to_be():
    methods = sorted((CONFIGS / "methods").glob("*.yaml"))
    assert len(methods) > 10
    for path in methods:
        model = yaml.safe_load(path.read_text())["model"]
        kind, given = model["head"]["class_path"], model["head"].get("init_args", {})
        assert model["heads"] is None, path
        assert kind.endswith("RelationHead") or {"layers", "width", "ladder"} <= set(given), path
        assert not kind.endswith("GaussianHead") or "bounded" in given, path
        assert not kind.endswith("heads.GaussianHead") or "preset" in given, path


@pytest.mark.parametrize("config", STUDIES, ids=lambda path: path.stem)
def test_no_two_methods_of_a_study_are_the_same(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load(config.read_text())
    paths = [[Path(each) for each in ([found] if isinstance(found, str) else found)] for found in given["methods"].values()]
    base = [Path(each) for each in ([given["base"]] if isinstance(given["base"], str) else given["base"])]
    Study(base, dict(zip(given["methods"], paths, strict=True)), Path("runs"), [0]).require_different_methods(resolve)


@pytest.mark.parametrize("config", CACHES, ids=lambda path: path.stem)
def test_a_cache_configuration_is_complete(config, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["distill-cache", "build", "--config", str(config), "--print_config"])
    with pytest.raises(SystemExit) as stop:
        cache_cli.main()
    assert stop.value.code in (0, None), capsys.readouterr().err
    assert yaml.safe_load(capsys.readouterr().out)["teachers"]


@pytest.mark.parametrize("config", SPECIALISTS, ids=lambda path: path.stem)
def test_a_specialists_configuration_is_complete(config, capsys):
    with pytest.raises(SystemExit) as stop:
        run_function(["specialise", "--config", str(config), "--out", f"{config.stem}.safetensors", "--print_config"])
    assert stop.value.code in (0, None), capsys.readouterr().err
    assert yaml.safe_load(capsys.readouterr().out)["task"]["class_path"]


@pytest.mark.parametrize(
    ("group", "reader"), [("mol", "molecule.SmilesFile"), ("text", "text.TextFile"), ("vision-paper", "image.ImageFolder")]
)
def test_make_reads_a_corpus_of_the_groups_modality(group, reader):
    command = ["make", "-n", "cache", f"TEACHERS={group}", "CORPUS=my corpus"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f'--corpus cache_tools.corpora.{reader} --corpus.path "my corpus"' in done.stdout


def test_the_readme_names_every_group_of_teachers():
    named = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert named
    assert sorted(named) == sorted(path.stem for path in (ROOT / "configs" / "cache").glob("*.yaml"))


@pytest.mark.parametrize("group", ["mol", "text", "text-paper", "vision", "vision-paper"])
def test_a_group_has_a_student_that_reads_its_cache(group):
    student, cache = (yaml.safe_load((ROOT / "configs" / part / f"{group}.yaml").read_text()) for part in ("", "cache"))
    assert student["data"]["corpus"] == f"cache/{cache['name']}"
    assert set(student["model"].get("heads", {})) <= set(cache["teachers"])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_classes_and_files_that_a_page_names_are_there(page):
    text = page.read_text()
    paths = re.findall(r"\b(?:cache_tools|distill)(?:\.[a-z]\w*)+\.[A-Z]\w+", text)
    classes = {tuple(path.rsplit(".", 1)) for path in paths if not path.endswith(".NAME")}
    assert [pair for pair in classes if not hasattr(import_module(pair[0]), pair[1])] == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    files = re.findall(r"(?<![\w/])(?:configs|benchmarks|tests)/[a-z\d_/-]+\.(?:yaml|py)\b", text)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_study_that_a_page_names_is_a_target():
    named = {study for page in PAGES for study in re.findall(r"Makefile (study-[a-z0-9-]*[a-z0-9])", page.read_text())}
    assert named
    command = ["make", "-n", "-f", "benchmarks/Makefile", *sorted(named), "DATA=data", "WEIGHTS=weights"]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def test_the_prepared_command_for_a_gpu_fits_and_tests_every_base_recipe():
    command = ["make", "-n", "-f", "benchmarks/Makefile", "base-recipes", "DATA=data", "WEIGHTS=weights"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for recipe in (recipe for recipe in RECIPES if recipe.endswith("-base")):
        assert re.search(rf"fit --config configs/{recipe}.yaml .*--run runs/gpu-{recipe};", shown)
        assert f"test --run runs/gpu-{recipe}" in shown


def test_the_functions_that_the_architecture_names_are_there():
    steps = re.findall(r"^\| \d+ \| (`\w+/\w[^|]*)\|", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    places = [place for step in steps for place in re.findall(r"`([\w/]+)\.py`((?:,? `[\w.]+`)+)", step)]
    assert len(places) >= len(steps) > 20
    for module, names in places:
        for name in re.findall(r"`([\w.]+)`", names):
            attrgetter(name)(import_module(module.replace("/", ".")))  # raises where it is not there
