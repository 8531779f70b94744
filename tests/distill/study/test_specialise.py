import json
import logging
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import convnet
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.cli import main as cache_command
from cache_tools.corpora.image import ImageFolder
from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.errors import CacheError, ConfigError, CorpusError, TeacherError, TrainingError
from cache_tools.format import files, store
from cache_tools.hub import read_safetensors
from cache_tools.producer import rebuild
from cache_tools.teachers import specialist
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.gnn import KINDS, MolClrGcn, MolClrLayer, PretrainedGnn, _Gnn, _MolClr
from cache_tools.teachers.molecule import Maccs
from cache_tools.teachers.specialist import Specialist, teacher_facts
from convnet import CifarResNet, MobileNet, _CifarResNet
from distill.cli.functions import main
from distill.evaluation.tasks import ImageTask, MoleculeTask
from distill.study import specialise as module
from distill.study.specialise import specialise

GRAPH = {
    "input": [1, 32, 32, 3],
    "ops": [
        {"op": "CONV_2D", "param": "a", "in": ["input"], "out": "x", "act": 3, "stride": [2, 2]},
        {"op": "DEPTHWISE_CONV_2D", "param": "b", "in": ["x"], "out": "y", "act": 3, "stride": [1, 1]},
        {"op": "ADD", "in": ["x", "y"], "out": "z", "act": 0},
        {"op": "AVERAGE_POOL_2D", "in": ["z"], "out": "pool", "act": 0},
    ],
}
NAMES = [*KINDS, "molclr", "resnet", "mobilenet", "bert"]


def save(folder: Path, name: str, state: dict, **facts: str) -> str:
    path = folder / f"{name}.safetensors"
    save_file({key: each.contiguous() for key, each in state.items()}, path, facts)
    return str(path)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, Teacher]:
    """One of each network, small, of random weights (unit tests only)."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    made: dict[str, Teacher] = {}
    for kind, layer in KINDS.items():
        network = _Gnn(layer, 20)
        for each in network.parameters():
            if each.ndim > 2:  # the attention of GAT begins at 0
                nn.init.normal_(each, std=0.1)
        made[kind] = PretrainedGnn(save(folder, kind, network.state_dict(), kind=kind))
    network = _MolClr(20)
    for layer in network.gnns:
        assert isinstance(layer, MolClrLayer)
        nn.init.normal_(layer.weight, std=0.1)
    made["molclr"] = MolClrGcn(save(folder, "molclr", network.state_dict(), kind="molclr_gcn"))
    made["resnet"] = CifarResNet(save(folder, "resnet", _CifarResNet(1).state_dict(), depth="8"))
    shapes = {"a.weight": (8, 3, 3, 3), "a.bias": (8,), "b.weight": (8, 1, 3, 3), "b.bias": (8,)}
    state = {key: 0.3 * torch.randn(shape) for key, shape in shapes.items()}
    made["mobilenet"] = MobileNet(save(folder, "mobilenet", state, graph=json.dumps(GRAPH)))
    made["bert"] = bert(folder / "bert")
    return made


def bert(folder: Path) -> Teacher:
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from cache_tools.teachers.molecule import HfMolecule

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *"CNOclnso()=#123"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes), add_pooling_layer=False).save_pretrained(folder)
    return HfMolecule(str(folder))


def again(teacher: Teacher) -> Teacher:
    """The same, not yet loaded."""
    return pickle.loads(pickle.dumps(teacher))


@pytest.fixture(scope="module")
def smiles() -> list[str]:
    found = [item.decode() for item in RdkitSamples(limit=400).read()[1]]
    return [each for each in found if set(each) <= set("CNOclnso()=#123")][:120]


@pytest.fixture(scope="module")
def molecules(tmp_path_factory, smiles) -> Path:
    """Two labels, of which some are missing, and a row that is no molecule."""
    path = tmp_path_factory.mktemp("task") / "task.csv"
    rows = [f"{each},{int('N' in each)},{'' if row % 3 else int('=' in each)}" for row, each in enumerate(smiles)]
    path.write_text("\n".join(["smiles,nitrogen,double", *rows, "no molecule,1,0"]) + "\n")
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Noise of three kinds: stripes down, stripes across, dots; no mean of colours tells them apart."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("across", "dots", "down"):
        (folder / name).mkdir()
        for number in range(30):
            noise = random.integers(0, 256, (32, 32, 3), np.uint8)
            pixels = {"down": noise[:1].repeat(32, 0), "across": noise[:, :1].repeat(32, 1), "dots": noise}[name]
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def prepared(teacher: Teacher, smiles: list[str], images: Path) -> list:
    found = [path.read_bytes() for path in sorted(images.glob("*/1*.png"))[:12]]
    items = found if teacher.modality == "image" else [each.encode() for each in smiles[:12]]
    return [teacher.prepare(item) for item in items]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_the_output_is_the_embedding(name, teachers, smiles, images):
    teacher = again(teachers[name])
    teacher.load("cpu")
    items = prepared(teacher, smiles, images)
    expected = np.asarray(teacher.embed(items))
    out = teacher.forward(items)
    np.testing.assert_array_equal(out.detach(), expected)
    teacher.module.requires_grad_(True).train()
    weight = torch.randn(out.shape[1], 3, generator=torch.Generator().manual_seed(0))
    (teacher.forward(items) @ weight).square().sum().backward()
    for key, each in teacher.module.named_parameters():
        assert each.grad is not None, f"{key} has no gradient"
        assert each.grad.isfinite().all(), key
        assert each.grad.abs().max() > 0, f"the gradient of {key} is zero"


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    return read_safetensors(path)


@pytest.mark.parametrize("name", ["gcn", "molclr", "resnet", "bert"])
def test_a_file_gives_the_tuned_networks_logits(name, teachers, smiles, images, molecules, tmp_path):
    teacher, out = again(teachers[name]), tmp_path / "made" / "specialist.safetensors"
    task = ImageTask(images) if teacher.modality == "image" else MoleculeTask(molecules, "classification")
    split = "own" if teacher.modality == "image" else "random"
    specialise(teacher, task, out, split, epochs=1, lr=1e-3, device="cpu")
    items = prepared(teacher, smiles, images)
    state, facts = read(out)
    assert facts["logits"] == ("3" if teacher.modality == "image" else "2")
    made = Specialist(again(teachers[name]), str(out))
    made.load("cpu")
    np.testing.assert_array_equal(made.embed(items), tuned(teacher, state, items))


def tuned(teacher: Teacher, state: dict[str, torch.Tensor], items: list) -> torch.Tensor:
    """The logits of a network that was tuned in place."""
    with torch.no_grad():
        embedding = torch.as_tensor(teacher.embed(items))
        return nn.functional.linear(embedding, state["classifier.weight"], state["classifier.bias"])


def test_another_process_gives_the_same_logits(teachers, smiles, images, tmp_path):
    teacher, out = again(teachers["mobilenet"]), tmp_path / "specialist.safetensors"
    specialise(teacher, ImageTask(images), out, epochs=2, lr=1e-2, device="cpu")
    items = prepared(teacher, smiles, images)
    exact = type(teacher)(**teacher.init_args | {"precision": "float32"})  # there, a processor with bfloat16 would use it
    made = Specialist(exact, str(out))
    (tmp_path / "made.pickle").write_bytes(pickle.dumps((made, items, tuned(teacher, read(out)[0], items).numpy())))
    code = "import pickle, sys, numpy as np, torch; torch.set_num_threads(1); "
    code += "made, items, expected = pickle.load(open(sys.argv[1], 'rb')); made.load('cpu'); "
    code += "found = np.asarray(made.embed(items)); print(found.dtype, made.dim, np.array_equal(found, expected))"
    command = [sys.executable, "-c", code, str(tmp_path / "made.pickle")]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(convnet.__file__).parent),
    }  # the pickles name classes of that module
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["float32", "3", "True"]


def test_tuning_learns_what_the_frozen_network_cannot_see_and_the_score_is_the_files(teachers, images, tmp_path, capsys):
    teacher, task, out = again(teachers["mobilenet"]), ImageTask(images), tmp_path / "out.safetensors"
    specialise(teacher, task, out, epochs=8, lr=1e-2, seed=3, device="cpu")
    facts = read(out)[1]
    assert float(facts["score"]) > float(facts["frozen_score"])
    assert int(facts["epoch"]) > 0
    made = Specialist(again(teachers["mobilenet"]), str(out))
    made.load("cpu")
    keys, labels = task.load()
    _, _, test = task.split("own", 3, keys)
    logits = np.asarray(made.embed([made.prepare((images / keys[row]).read_bytes()) for row in test]))
    assert np.mean(logits.argmax(1) == labels[test, 0]) == pytest.approx(float(facts["score"]), abs=1e-4)
    shown = capsys.readouterr().out
    assert "the frozen network" in shown
    assert f"{float(facts['score']):.3f}" in shown
    assert facts.keys() == {
        *("teacher", "teacher_sha256", "task", "split", "logits", "metric"),
        *("frozen_score", "score", "epoch", "seed"),
    }


def test_without_epochs_it_is_the_frozen_network_and_a_bad_row_is_named(teachers, molecules, tmp_path, caplog):
    teacher, out = again(teachers["gcn"]), tmp_path / "out.safetensors"
    with caplog.at_level(logging.WARNING):
        specialise(teacher, MoleculeTask(molecules, "classification"), out, "random", epochs=0, device="cpu")
    assert "1 items are left out; the teacher cannot read them, for instance no molecule" in caplog.text
    state, facts = read(out)
    assert (facts["score"], facts["epoch"]) == (facts["frozen_score"], "0")
    fresh = again(teachers["gcn"])
    fresh.load("cpu")
    assert teacher_facts(fresh).items() <= facts.items()
    for name, each in fresh.module.state_dict().items():
        assert torch.equal(state[f"network.{name}"], each)


def test_a_failing_fit_leaves_no_file(teachers, images, tmp_path, monkeypatch):
    out, task = tmp_path / "out.safetensors", ImageTask(images)
    with pytest.raises(TrainingError, match=r"epoch 1: the loss is nan, expected a finite one: lower lr"):
        monkeypatch.setattr(module.F, "cross_entropy", lambda *_: torch.tensor(torch.nan, requires_grad=True))
        specialise(again(teachers["mobilenet"]), task, out, epochs=1, device="cpu")
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "publish", full)
    with pytest.raises(CacheError, match="no space left"):
        specialise(again(teachers["mobilenet"]), task, out, epochs=0, device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_the_file_as_it_was(tmp_path):
    out = tmp_path / "out.safetensors"
    specialist.write_specialist(
        out, {"a": torch.ones(2)}, {"weight": torch.ones(1, 2), "bias": torch.ones(1)}, {"of": "first"}
    )
    code = "import os, signal, sys, torch; from pathlib import Path; from cache_tools.format import files; "
    code += "from cache_tools.teachers import specialist; "
    code += f"files.publish = lambda *_: os.kill(os.getpid(), {int(signal.SIGKILL)}); "
    code += "specialist.write_specialist(Path(sys.argv[1]), {'a': torch.zeros(2)}, {}, {'of': 'second'})"
    done = subprocess.run([sys.executable, "-c", code, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read(out)[1] == {"of": "first"}
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["out.safetensors"]


@pytest.fixture(scope="module")
def made(teachers, images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "stripes.safetensors"
    specialise(again(teachers["resnet"]), ImageTask(images), out, epochs=1, device="cpu")
    return out


def test_the_same_seed_makes_the_same_specialist(made, teachers, images, tmp_path):
    second = tmp_path / "second.safetensors"
    specialise(again(teachers["resnet"]), ImageTask(images), second, epochs=1, device="cpu")
    found = [Specialist(again(teachers["resnet"]), str(path)) for path in (made, second)]
    for each in found:
        each.load("cpu")
    assert found[0].fingerprint() == found[1].fingerprint()
    assert read(made)[1] == read(second)[1]


def test_one_line_of_yaml_makes_its_logits_a_column_that_knows_what_made_it(made, teachers, images, tmp_path, monkeypatch):
    base = teachers["resnet"]
    spec = {"class_path": "convnet.CifarResNet", "init_args": {"weights": base.weights}}
    line = {
        "class_path": "cache_tools.teachers.specialist.Specialist",
        "init_args": {"teacher": spec, "weights": str(made)},
    }
    corpus = {"class_path": "cache_tools.corpora.image.ImageFolder", "init_args": {"path": str(images), "limit": 20}}
    config = {"name": "images", "corpus": corpus, "teachers": {"stripes": line}, "inputs": {}}
    (tmp_path / "cache.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    cache_command(["build", "--config", "cache.yaml"])
    path = tmp_path / "cache" / "images" / "teachers" / "stripes"
    manifest = store.read_manifest(path / store.MANIFEST)
    assert (manifest["dim"], manifest["rows"], manifest["finished"]) == (3, 20, True)
    rebuilt = rebuild(manifest["producer"], Teacher)
    assert isinstance(rebuilt, Specialist)
    assert type(rebuilt.teacher) is CifarResNet
    cache_command(["sample", "--column", str(path), "--check", "true", "--device", "cpu"])

    other = tmp_path / "other.safetensors"
    state, facts = read(made)
    parts = {
        part: {k.removeprefix(part): v + 1 for k, v in state.items() if k.startswith(part)}
        for part in ("network.", "classifier.")
    }
    specialist.write_specialist(other, parts["network."], parts["classifier."], facts)
    with pytest.raises(CacheError, match=r"stripes was made with \w+ = "):
        build(
            tmp_path / "cache",
            "images",
            ImageFolder(images, limit=20),
            {"stripes": Specialist(again(base), str(other))},
            {},
            Settings(),
        )


def test_a_specialist_of_another_teacher_or_file_is_refused(made, teachers, tmp_path):
    with pytest.raises(TeacherError, match=r"tuned from a teacher with teacher convnet.CifarResNet, this one has"):
        Specialist(again(teachers["mobilenet"]), str(made)).load("cpu")
    state = {name: each + 1 for name, each in read(Path(teachers["resnet"].weights))[0].items()}
    other = CifarResNet(save(tmp_path, "other", state, depth="8"))
    with pytest.raises(TeacherError, match="tuned from a teacher with teacher_sha256"):
        Specialist(other, str(made)).load("cpu")
    with pytest.raises(TeacherError, match="no weights at .*nowhere.safetensors: `distill specialise` makes"):
        Specialist(again(teachers["resnet"]), str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(TeacherError, match=r"Maccs has no network that can be tuned: expected a cache_tools.Tunable"):
        Specialist(Maccs(), str(made))


def few(folder: Path, rows: list[str]) -> MoleculeTask:
    (folder / "few.csv").write_text("\n".join(["smiles,label", *rows]) + "\n")
    return MoleculeTask(folder / "few.csv", "classification")


@pytest.mark.parametrize(
    ("teacher", "task", "options", "message"),
    [
        ("maccs", "molecules", {}, "Maccs has no network that can be tuned"),
        ("gcn", "images", {}, r"PretrainedGnn reads molecules, the task has images: change one"),
        ("gcn", "regression", {}, "the task is of kind regression; .* one of: classification, multiclass"),
        ("gcn", "molecules", {"split": "own"}, "no split 'own'"),
        ("gcn", "few", {"split": "random"}, "the random split has 4 training, 0 validation, 1 test rows; expected 10"),
        ("gcn", "one", {"split": "random"}, "training rows have one label"),
        ("gcn", "molecules", {"out": Path("out.pt")}, "expected a file with the ending .safetensors"),
        ("gcn", "molecules", {"batch_size": 0}, "batch_size 0: expected at least 0 and at least 1"),
        ("resnet", "lone", {}, "no training row of class 0"),
        ("bert", "molecules", {}, "'no molecule' is no molecule and has no scaffold"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_words(
    teacher, task, options, message, teachers, molecules, images, tmp_path, smiles
):
    tasks = {
        "molecules": lambda: MoleculeTask(molecules, "classification"),
        "regression": lambda: MoleculeTask(molecules, "regression", ["nitrogen"]),
        "images": lambda: ImageTask(images),
        "few": lambda: few(tmp_path, ["C,1", "CC,0", "CCC,1", "CCCC,0", "CCCCC,1"]),
        "one": lambda: few(tmp_path, [f"{each},1" for each in smiles[:40]]),
        "lone": lambda: lone(tmp_path / "lone", images),
    }
    chosen = Maccs() if teacher == "maccs" else again(teachers[teacher])
    options = {"out": tmp_path / "out.safetensors", "device": "cpu", **options}
    with pytest.raises((ConfigError, CorpusError, TeacherError), match=message):
        specialise(chosen, tasks[task](), **options)
    assert not list(tmp_path.glob("*.safetensors"))


def test_few_rows_are_ten_steps_that_rise_and_fall(teachers, smiles, tmp_path, monkeypatch):
    """One batch an epoch, ten epochs: of a rise of one step the schedule divides by zero."""
    rates = []

    class Watched(torch.optim.AdamW):
        def step(self, *arguments, **options):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    task = few(tmp_path, [f"{each},{int('N' in each)}" for each in smiles[:30]])
    specialise(again(teachers["gcn"]), task, tmp_path / "few.safetensors", "random", epochs=10, lr=1e-3, device="cpu")
    assert (tmp_path / "few.safetensors").is_file()
    assert len(rates) == 10
    highest = int(np.argmax(rates))
    assert rates[highest] == pytest.approx(1e-3)
    assert 0 < highest < 9
    assert (np.diff(rates)[:highest] > 0).all()
    assert (np.diff(rates)[highest:] < 0).all()


def lone(folder: Path, images: Path) -> ImageTask:
    """A class of test images alone."""
    for part, name in (("train", "dots"), ("train", "down"), ("test", "across"), ("test", "dots")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        numbers = slice(0, 20) if part == "train" else slice(20, 30)
        (folder / part / name).mkdir()
        for path in sorted((images / name).iterdir())[numbers]:
            os.link(path, folder / part / name / path.name)
    return ImageTask(folder)


def test_the_command_reads_its_arguments_from_a_file(teachers, images, tmp_path, capsys):
    task = {"class_path": "distill.evaluation.tasks.ImageTask", "init_args": {"path": str(images), "include": "d*"}}
    teacher = {
        "class_path": "convnet.CifarResNet",
        "init_args": {"weights": teachers["resnet"].weights},
    }
    (tmp_path / "specialist.yaml").write_text(json.dumps({"teacher": teacher, "task": task, "epochs": 0}))
    out = tmp_path / "out.safetensors"
    main(["specialise", "--config", str(tmp_path / "specialist.yaml"), "--out", str(out), "--device", "cpu"])
    assert read(out)[1]["logits"] == "2", "the pattern leaves two classes"
    assert "written: " in capsys.readouterr().out
