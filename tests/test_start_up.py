"""What answers at once, and how a wrong command, key, class or file is told."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import cache_tools
import distill
from cache_tools.cli import main as cache_command
from distill.cli import keys
from distill.cli import main as distill_command
from distill.cli.source import declared, parameters

ROOT = Path(__file__).parents[1]
MOL = ["--config", "configs/mol.yaml"]
MACCS = ["--config", "configs/cache/mol.yaml"]

PROGRAM = """
import atexit, sys
heavy = "torch", "lightning", "rdkit"
atexit.register(lambda: sys.stderr.write(f"\\nimported: {[name for name in heavy if name in sys.modules]}"))
from MODULE import main
main(sys.argv[1:])
"""


def spelt(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else ""


def start(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own; the last line of its errors names the heavy libraries that it imported."""
    program = PROGRAM.replace("MODULE", module)
    return subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def told(monkeypatch, capsys):
    """What a command of this process says when it refuses its words."""
    monkeypatch.chdir(ROOT)

    def run(main, *words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        assert stop.value.code not in (0, None)
        return capsys.readouterr().err + (stop.value.code if isinstance(stop.value.code, str) else "")

    return run


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 0),
        (["--help"], 0),
        (["--version"], 0),
        (["export", "--help"], 0),
        (["predict", "--help"], 0),
        (["mteb", "--help"], 0),
        (["compare", "--help"], 0),
        (["study", "--help"], 0),
        (["fitt"], 1),
        (["fit", *MOL, "--max_epochs", "3"], 2),
        (["fit", *MOL, "--trainer.max_epoch=3"], 2),
        (["test", "--prob.seeds", "[0]"], 2),
        (["fit", *MOL, "--model.student.widht", "3"], 2),
        (["fit", *MOL, "--model.student.init_args.widht=3"], 2),
        (["export", "--ckpt", "x"], 2),
        (["fit", "--config", "configs/nothing.yaml"], 1),
        (["study", "--config", "configs/nothing.yaml"], 1),
    ],
    ids=spelt,
)
def test_distill_answers_without_torch_lightning_and_rdkit(words, status):
    done = start("distill.cli", *words)
    assert done.returncode == status, done.stderr
    assert done.stderr.endswith("\nimported: []")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 0),
        (["--help"], 0),
        (["--version"], 0),
        (["build", "--help"], 0),
        (["sample", "--help"], 0),
        (["lst"], 1),
        (["build", "--nme", "x"], 2),
        (["build", "--config", "configs/nothing.yaml"], 1),
        (["list", "--cache", "tests/fixtures/v01/cache"], 0),
        (["verify", "--cache", "tests/fixtures/v01/cache"], 0),
    ],
    ids=spelt,
)
def test_distill_cache_answers_without_torch_lightning_and_rdkit(words, status):
    done = start("cache_tools.cli", *words)
    assert done.returncode == status, done.stderr
    assert done.stderr.endswith("\nimported: []")


def test_lightning_comes_without_the_image_and_text_metrics_and_these_when_they_are_used():
    program = """
import sys
from distill.cli import light
light.install()
import lightning.pytorch, torch, torchmetrics
print([name for name in ("torchvision", "transformers", "scipy.signal") if name in sys.modules])
from torchmetrics.metric import Metric
from lightning.pytorch.core.module import Metric as used_by_lightning
assert torchmetrics.Metric is Metric is used_by_lightning
import torchmetrics.classification
from torchmetrics import functional, Accuracy
print(Accuracy(task="multiclass", num_classes=3)(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])).item())
print(isinstance(Accuracy(task="binary"), Metric), functional.mean_squared_error(torch.ones(2), torch.zeros(2)).item())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "0.6666666865348816", "True 1.0"]


def test_a_torchmetrics_that_is_built_differently_is_imported_whole(tmp_path):
    (tmp_path / "torchmetrics" / "utilities").mkdir(parents=True)
    (tmp_path / "torchmetrics" / "__init__.py").write_text(
        "from torchmetrics.core import Metric\nfrom . import utilities\n"
    )
    (tmp_path / "torchmetrics" / "__about__.py").write_text("__version__ = '9'")
    (tmp_path / "torchmetrics" / "utilities" / "__init__.py").write_text("from torchmetrics import Metric\n")
    (tmp_path / "torchmetrics" / "core.py").write_text("class Metric: pass\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    program += "from distill.cli import light; light.install()\n"
    program += "import torchmetrics; print(torchmetrics.Metric is torchmetrics.utilities.Metric)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_keys_that_are_known_before_the_imports_are_those_of_the_command(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        distill_command([command, *MOL, "--print_config"])
    whole = yaml.safe_load(capsys.readouterr().out)
    unprinted = {"help", "config", "print_config", "optimizer", "lr_scheduler", "verbose"}
    assert set(whole) <= keys.KEYS | keys.SECTIONS.keys()
    assert keys.KEYS - set(whole) <= unprinted
    for section, path in keys.SECTIONS.items():
        assert set(parameters(path) or ()) - {"statistics"} == set(whole[section]), "statistics come from the data"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.max_epoch", "3"], "no key 'trainer.max_epoch'; did you mean trainer.max_epochs?"),
        (["--trainer.max_epo=3"], "no key 'trainer.max_epo'; did you mean trainer.max_epochs?"),
        (["--batch_size", "3"], "no key 'batch_size'; did you mean data.batch_size?"),
        (["--model.student.widht", "3"], "Option 'widht' is not accepted by distill.students.molecule.GraphStudent; did"),
        (["--model.head.widht", "3"], "'widht' is not accepted by distill.heads.CosineHead; did you mean width?"),
        (["--model.student", "my.Own", "--model.student.widht", "3"], "No module named 'my'"),
        (["--model.head", "GausianHead"], "did you mean distill.heads.gaussian.GaussianHead"),
        (
            ["--model.student", "distill.student.molecule.GraphStudent"],
            "did you mean distill.students.molecule.GraphStudent",
        ),
        (
            ["--model.student", "distill.students.molecule.GraphStudnt"],
            "did you mean distill.students.molecule.GraphStudent",
        ),
    ],
    ids=spelt,
)
def test_a_wrong_key_or_class_of_a_fit_is_told_with_the_right_one(told, words, message):
    shown = told(distill_command, "fit", *MOL, *words)
    assert message in shown
    assert "usage:" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "--nme", "x"], "no key 'nme'; did you mean name?"),
        (["list", "--cach", "x"], "no key 'cach'; did you mean cache?"),
        (
            ["build", "--config", "configs/cache/mol.yaml", "--corpus.limt", "3"],
            "Option 'limt' is not accepted; did you mean limit?",
        ),
        (
            ["build", "--config", "configs/cache/mol.yaml", "--corpus", "RdkitSample"],
            ".RdkitSamples?",
        ),
    ],
    ids=spelt,
)
def test_a_wrong_key_or_class_of_a_build_is_told_with_the_right_one(told, words, message):
    assert message in told(cache_command, *words)


@pytest.mark.parametrize("main", [distill_command, cache_command], ids=["distill", "distill-cache"])
def test_a_wrong_command_lists_all_commands(told, main, capsys):
    shown = told(main, "exprt")
    with pytest.raises(SystemExit):
        main(["--help"])
    page = capsys.readouterr().out
    assert page.strip() in shown
    assert shown.endswith("error: no command 'exprt'; did you mean export?")
    assert "\n  export " in page


@pytest.mark.parametrize("words", [["fit"], ["study"], ["export"], ["compare"]])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: x\nmodel: {student: a\ndata: b\n", ", line 3: this is no YAML: "),
        ("run: x\nmodel: [a\n", ", line 3: this is no YAML: "),
        ("run: x\n\tmodel: a\n", ", line 2: this is no YAML: "),
        ("run: \x01\n", ": this is no text in UTF-8: "),
    ],
)
def test_yaml_that_cannot_be_read_is_told_with_file_and_line(told, tmp_path, words, text, message):
    (tmp_path / "broken.yaml").write_text(text)
    assert f"error: {tmp_path}/broken.yaml{message}" in told(distill_command, *words, "--config", f"{tmp_path}/broken.yaml")


def test_a_wrong_key_of_a_configuration_is_told_with_its_line(told, tmp_path):
    (tmp_path / "fit.yaml").write_text("run: x\ndata:\n  corpus: y\n  batchsize: 3\n")
    shown = told(distill_command, "fit", f"--config={tmp_path}/fit.yaml")
    assert f"error: {tmp_path}/fit.yaml, line 4: no key 'data.batchsize'; did you mean data.batch_size?" in shown


def test_a_wrong_option_of_a_class_in_a_configuration_is_told_with_its_line(told, tmp_path):
    """Also of the class that a later configuration puts in the place of an earlier one."""
    student = "model:\n  student:\n    init_args: {KEY: 3}\n    class_path: distill.students.CLASS\n"
    (tmp_path / "fit.yaml").write_text(student.replace("CLASS", "molecule.GraphStudent").replace("KEY", "layers"))
    (tmp_path / "wrong.yaml").write_text(student.replace("CLASS", "text.StaticStudent").replace("KEY", "layers"))
    first, second = str(tmp_path / "fit.yaml"), str(tmp_path / "wrong.yaml")
    shown = told(distill_command, "fit", "--config", first, "--config", second)
    assert f"{second}, line 3: Option 'layers' is not accepted by distill.students.text.StaticStudent" in shown


FITS = [
    path
    for folder in ("configs", "tests/fixtures/v01")
    for path in sorted((ROOT / folder).rglob("*.yaml"))
    if yaml.safe_load(path.read_text()).keys() & {"model", "data"}
]


@pytest.mark.parametrize("config", FITS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_right_key_is_refused_before_the_imports(config):
    keys.check_keys(["fit", "--config", str(config)])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("extension_example.Letters", ["letters"]),  # a module of a user's
        ("cache_tools.Maccs", None),  # taken from a front door that is not in the source
        ("distill.heads.GaussianHead", "width"),
        ("nothing.Here", None),
        ("__main__.Mine", None),
        ("", None),
        (".relative", None),
        ("{class_path: a.b}", None),
    ],
)
def test_parameters_are_read_from_sources_or_not_at_all(path, expected, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests")
    found = parameters(path)
    assert expected in found if isinstance(expected, str) else found == expected


def test_a_missing_configuration_is_told_with_its_neighbour(told):
    shown = told(distill_command, "fit", "--config", "configs/moll.yaml")
    assert shown == "error: no file configs/moll.yaml, which --config names; did you mean configs/mol.yaml?"


@pytest.mark.parametrize("main", [distill_command, cache_command], ids=["distill", "distill-cache"])
def test_the_version_is_one_everywhere(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out == f"quorum-distill {distill.__version__}\n"
    assert distill.__version__ == cache_tools.__version__
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cache_tools.__version__"}


@pytest.mark.parametrize("command", ["fit", "validate", "test", "export", "predict"])
def test_help_is_plain_and_says_what_the_command_does(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        distill_command([command, "--help"])
    shown = capsys.readouterr().out
    description = shown.split("\n\n")[1]
    assert description.endswith(".")
    assert "[options]" not in shown
    assert "{fit,validate" not in shown
    assert not re.search(r":[a-z]+:`", shown)


def test_export_does_not_ask_for_the_checkpoint_that_it_finds_itself(capsys):
    with pytest.raises(SystemExit):
        distill_command(["export", "--help"])
    assert "[--ckpt_path CKPT_PATH]" in " ".join(capsys.readouterr().out.split())


def test_a_declared_function_is_the_real_one_when_it_is_called(tmp_path):
    from cache_tools import ConfigError
    from distill.export.write import export

    outline = declared("distill.export.write:export")
    assert outline.__doc__ == export.__doc__
    assert outline.__annotations__ == export.__annotations__
    with pytest.raises(ConfigError, match="is there already"):
        outline(tmp_path / "..")


def test_a_fit_says_each_thing_once_and_nothing_of_no_use(cache, tmp_path):
    small = ["--model.student", "distill.students.molecule.GraphStudent", "--model.student.width", "8"]
    small += ["--model.student.layers", "1", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    words = ["fit", *small, "--data.corpus", str(cache / "mol"), "--run", str(tmp_path / "run")]
    done = start("distill.cli", *words)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert sum("GPU available" in line for line in lines) == 1
    assert any("parameters: student" in line for line in lines)
    for noise in ("FLOPs", "eval mode", "TPU", "torch.jit", "Loading `train_dataloader`", "Seed set", "Trainer.fit"):
        assert noise not in done.stdout + done.stderr
