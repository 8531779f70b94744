"""Python code that comes with a model never runs, and nobody is asked whether it may, unless the command says so."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cache_tools.building.column import Settings
from cache_tools.building.corpus import build, build_like
from cache_tools.cli.sample import sample
from cache_tools.corpora.text import TextFile
from cache_tools.errors import CacheError, TeacherError
from cache_tools.producer import rebuild
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.text import HfTextTeacher

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "cat", "dog", "ran", "sat"]
TEXTS = ["the cat sat", "the dog ran", "cat", "dog sat"]

CODE = """
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ViTImageProcessor

def mark(what):
    with open({marker!r}, "a") as file:
        file.write(what + " ")

mark("imported")

class StrangeConfig(BertConfig):
    model_type = "strange"

class Strange(BertModel):
    config_class = StrangeConfig

    def __init__(self, config, **options):
        super().__init__(config, **options)
        mark("network")

class StrangeTokenizer(PreTrainedTokenizerFast):
    def pad(self, *arguments, **options):
        mark("tokenizer")
        return super().pad(*arguments, **options)

class StrangeProcessor(ViTImageProcessor):
    pass
"""

LOADS = """
import os, sys
from cache_tools import ConfigError, TeacherError, TokenIds
from cache_tools.teachers.image import HfImageTeacher, OpenClipTeacher
from cache_tools.teachers.molecule import HfMolecule
from cache_tools.teachers.text import HfTextTeacher, SentenceTransformerTeacher
from distill.students.image import ImageStudent
from distill.students.text import TextStudent

model, sentences, clip = sys.argv[1:]
for name, load in {
    "text": lambda: HfTextTeacher(model).load("cpu"),
    "molecule": lambda: HfMolecule(model).load("cpu"),
    "image": lambda: HfImageTeacher(model).load("cpu"),
    "sentences": lambda: SentenceTransformerTeacher(model).load("cpu"),
    "modules": lambda: SentenceTransformerTeacher(sentences).load("cpu"),
    "clip": lambda: OpenClipTeacher("local-dir:" + clip).load("cpu"),
    "input": lambda: TokenIds(model).load("cpu"),
    "student": lambda: TextStudent(model),
    "random student": lambda: TextStudent(model, pretrained=False),
    "image student": lambda: ImageStudent(model, "transformers"),
}.items():
    try:
        load()
        print("LOADED", name)
    except (ConfigError, TeacherError) as error:
        print("REFUSED", name, "needs Python code that comes with it; that code was not run" in str(error) or error)
"""


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def save_model(folder: Path) -> Path:
    """A folder as save_pretrained makes it, random weights (unit tests only)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """A file that the model's code writes when it runs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", sys.path.copy())
    return tmp_path / "marker"


@pytest.fixture
def model(tmp_path, marker) -> Path:
    """A model whose network, tokenizer and image processor are classes of a Python file in its folder."""
    folder = save_model(tmp_path / "strange")
    (folder / "strange.py").write_text(CODE.format(marker=str(marker)))
    classes = {"AutoConfig": "strange.StrangeConfig", "AutoModel": "strange.Strange"}
    change(folder / "config.json", model_type="strange", architectures=["Strange"], auto_map=classes)
    tokenizer = {"AutoTokenizer": [None, "strange.StrangeTokenizer"]}
    change(folder / "tokenizer_config.json", tokenizer_class="StrangeTokenizer", auto_map=tokenizer)
    processor = {"image_processor_type": "Strange", "auto_map": {"AutoImageProcessor": "strange.StrangeProcessor"}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def sentences(tmp_path, model) -> Path:
    """A folder of sentence-transformers whose only module is a class of a Python file in it."""
    folder = tmp_path / "sentences"
    folder.mkdir()
    (folder / "strange.py").write_text((model / "strange.py").read_text())
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "strange.Strange"}]))
    return folder


@pytest.fixture
def clip(tmp_path, model) -> Path:
    """A folder of open_clip whose tower of texts is the strange model."""
    folder = tmp_path / "clip"
    folder.mkdir()
    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}
    text = {"hf_model_name": str(model), "hf_tokenizer_name": str(model), "hf_model_pretrained": False}
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("stdin", ["terminal", "closed"])
def test_code_of_a_model_never_runs_and_nobody_is_asked(model, sentences, clip, marker, stdin, tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", LOADS, str(model), str(sentences), str(clip)]
    if stdin == "closed":
        command = ["bash", "-c", 'exec "$@" <&-', "bash", *command]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=300, env=environment, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if line.startswith(("LOADED", "REFUSED"))]
    kinds = ["text", "molecule", "image", "sentences", "modules", "clip", "input", "student"]
    assert printed == [f"REFUSED {kind} True" for kind in [*kinds, "random student", "image student"]], done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert not marker.exists()


def test_a_teacher_with_consent_runs_the_code_of_its_network_and_tokenizer(model, marker):
    teacher = HfTextTeacher(str(model), trust_remote_code=True)
    assert not marker.exists()
    teacher.load("cpu")
    assert tuple(teacher.embed([teacher.prepare(b"the cat")]).shape) == (1, 16)
    assert {"imported", "network", "tokenizer"} <= set(marker.read_text().split())


@pytest.fixture
def column(tmp_path, model, marker) -> Path:
    """A column that a command with consent built; the code has left no mark."""
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    teacher = HfTextTeacher(str(model), trust_remote_code=True)
    settings = Settings(workers=1, device="cpu")
    folder = build(tmp_path / "cache", "text", TextFile(tmp_path / "texts.csv"), {"strange": teacher}, {}, settings)
    marker.unlink()
    return folder / "teachers" / "strange"


def test_a_manifest_grants_no_trust_and_says_which_flag_does(column, marker, capsys):
    sample(column)
    with pytest.raises(
        CacheError, match=r"strange says trust_remote_code: True, expected false.* --trust_remote_code true"
    ):
        sample(column, check=True)
    assert not marker.exists()
    sample(column, check=True, trust_remote_code=True)
    assert "network" in marker.read_text()
    assert "4 rows embedded again" in capsys.readouterr().out


def test_columns_of_a_task_are_built_with_a_models_code_only_by_consent(column, tmp_path, marker):
    (tmp_path / "task.csv").write_text("text\nthe cat ran\n")
    task, settings = TextFile(tmp_path / "task.csv"), Settings(workers=1, device="cpu")
    with pytest.raises(CacheError, match="--probe.trust_remote_code true"):
        build_like([column], tmp_path / "tasks", [task], settings)
    assert not marker.exists()
    build_like([column], tmp_path / "tasks", [task], settings, trust_remote_code=True)
    assert "network" in marker.read_text()


INNER = {"class_path": "cache_tools.teachers.text.HfTextTeacher", "init_args": {"model": "m", "trust_remote_code": True}}


@pytest.mark.parametrize(
    "arguments",
    [
        INNER["init_args"],
        {"model": "m", "trust_remote_code": "true"},
        {"model": "m", "trust_remote_code": 1},
        {"teacher": INNER, "weights": "w.safetensors"},
        {"teachers": [{"options": INNER}]},
    ],
    ids=["plain", "text", "number", "teacher of a specialist", "deep inside"],
)
def test_arguments_of_a_file_that_would_run_code_are_refused_wherever_they_stand(arguments):
    with pytest.raises(CacheError, match=r"cache/x says trust_remote_code: .* no file may allow this"):
        rebuild({"class_path": "cache_tools.teachers.text.HfTextTeacher", "init_args": arguments}, Teacher, "cache/x")


@pytest.mark.parametrize(
    "spec",
    [
        {"class_path": "cache_tools.teachers.text.HfTextTeacher"},
        {"class_path": "cache_tools.teachers.text.HfTextTeacher", "init_args": [1]},
        {"class_path": "cache_tools.teachers.text.HfTextTeacher", "init_args": {"nothing": 1}},
        {"class_path": 3, "init_args": {}},
        {"class_path": ".relative.Name", "init_args": {}},
        {"class_path": "cache_tools.teachers.base.Teacher", "init_args": {}},
    ],
    ids=["no arguments", "a list", "another argument", "a number", "relative", "abstract"],
)
def test_a_manifest_that_names_no_teacher_is_refused_in_words(spec):
    with pytest.raises(CacheError, match=r"cache/x: no Teacher can be made|cannot import"):
        rebuild(spec, Teacher, "cache/x")


def test_the_refusal_of_a_teacher_says_what_to_do(model):
    with pytest.raises(TeacherError, match=r"strange needs Python code .* not run. Read it first. .* set its trust_rem"):
        HfTextTeacher(str(model)).load("cpu")
