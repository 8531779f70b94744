import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import distill
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.cli.sample import sample
from cache_tools.corpora.image import ImageFolder
from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.corpora.text import TextFile
from cache_tools.errors import CacheError, ConfigError, CorpusError, TeacherError
from cache_tools.format.reader import open_column
from cache_tools.format.store import read_items
from cache_tools.inputs import EncodedImage, MoleculeGraph, Pixels, TokenIds
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.molecule import Maccs, MorganCounts
from cache_tools.teachers.network import pool_tokens
from distill.cli import main
from distill.data.module import DistillData
from distill.evaluation.baselines import embed
from distill.export import write as exporting
from distill.export.average import average
from distill.export.folder import CONFIG, WEIGHTS
from distill.export.formats import ONNX, ONNX_INT8, PROGRAM, SENTENCES, write_onnx, write_program
from distill.export.student import StudentTeacher
from distill.export.weights import round_weights
from distill.export.write import export, open_run, predict, rebuild_run
from distill.students.image import SmallResNet
from distill.students.mixed import MixedStudent

DOCS = Path(__file__).parents[3] / "docs"
SETTINGS = Settings(workers=1)
GRAPH = {"class_path": "distill.students.molecule.GraphStudent", "init_args": {"layers": 2, "width": 16, "dim": 12}}
RESNET = {"class_path": "distill.students.image.SmallResNet", "init_args": {"blocks": 1, "width": 4, "dim": 12}}
COUNTS = {"jumping": True, "fingerprint": 8, "fingerprint_rows": 64}
MINI = {"class_path": "distill.heads.GaussianHead", "init_args": {"preset": "mini"}}


class MeanColour(Teacher):
    """Its third dimension is always 7."""

    modality = "image"
    dim = 3

    def prepare(self, item):
        from cache_tools.items.image import decode_image

        return np.asarray(decode_image(item), np.float32)

    def embed(self, items):
        return np.array([[item.mean() / 255, item.std() / 255, 7] for item in items], np.float32)


class CountWords(Teacher):
    modality = "text"
    dim = 3

    def embed(self, items):
        return np.array([[item.count("good"), item.count("the"), len(item)] for item in items], np.float32)


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A tokenizer, a tiny pretrained network, and three corpora with teachers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("origin")
    words = ["[PAD]", "[UNK]", "the", "film", "is", "good", "bad", "very"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder / "bert")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=8, max_position_embeddings=20, **small)).save_pretrained(folder / "bert")
    random = np.random.default_rng(0)
    lines = [f"{'the ' * int(random.integers(1, 12))}film {number} is good" for number in range(40)]
    (folder / "lines.txt").write_text("\n".join(lines))
    (folder / "pictures").mkdir()
    for number in range(40):
        pixels = random.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number:02}.png")
    cache, tokens = folder / "cache", TokenIds(str(folder / "bert"), 16)
    teachers = {"maccs": Maccs(), "counts": MorganCounts(32)}
    build(cache, "molecule", RdkitSamples(limit=60), teachers, {"graph": MoleculeGraph()}, SETTINGS)
    build(cache, "text", TextFile(folder / "lines.txt"), {"words": CountWords()}, {"tokens": tokens}, SETTINGS)
    pictures = ImageFolder(folder / "pictures")
    build(cache, "image", pictures, {"colour": MeanColour()}, {"pixels": Pixels(16)}, SETTINGS)
    build(cache, "encoded", pictures, {"colour": MeanColour()}, {"pixels": EncodedImage(16)}, SETTINGS)
    return folder


def text_spec(origin: Path, **more) -> dict:
    return {
        "class_path": "distill.students.text.TextStudent",
        "init_args": {"model": str(origin / "bert"), "dim": 12, **more},
    }


def make_run(folder: Path, cache: Path, corpora: list[str], student: dict, teachers: list[str] | None = None) -> Path:
    """A run as `distill fit` leaves it, of a student whose batch norms have seen some rows; returns its checkpoint."""
    named = {"teachers": teachers} if teachers else {}
    data = {"corpora": [{"path": str(cache / name), **named} for name in corpora], "batch_size": 20, "held_out": 10}
    config = {"data": data, "model": {"student": student, "head": MINI}}
    checkpoint = folder / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(1)
    made, model = rebuild_run(config, folder)
    for batch in made.train_dataloader():
        model.losses(batch)
    torch.save({"state_dict": model.state_dict(), "epoch": 0, "global_step": 3}, checkpoint)
    return checkpoint


@pytest.fixture(scope="module")
def made(origin, tmp_path_factory) -> dict:
    """Name -> (export, modality, items, the student's embeddings from the cache); the originals are gone."""
    folder, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("exports")
    mixed = {"encoders": {"image": RESNET, "text": text_spec(origin)}, "dim": 10, "layers": 1}
    students = {
        "molecule": (["molecule"], {**GRAPH, "init_args": {**GRAPH["init_args"], **COUNTS}}),
        "text": (["text"], text_spec(origin)),
        "image": (["image"], RESNET),
        "encoded": (["encoded"], RESNET),
        "mixed": (["image", "text"], {"class_path": "distill.students.mixed.MixedStudent", "init_args": mixed}),
    }
    found = {}
    for name, (corpora, student) in students.items():
        checkpoint = make_run(folder / name, origin / "cache", corpora, student)
        forms = {
            "program": name in ("molecule", "text", "image"),
            "onnx": name in ("molecule", "text", "image"),
            "sentence_transformers": name == "text",
        }
        export(out / name, checkpoint, heads=name != "encoded", **forms)
        _, data, model, _ = exporting.open_run(checkpoint, heads=True)
        for part in data.corpora:
            _, items = read_items(part.columns.corpus, 0)
            reference = torch.from_numpy(embed([model.student], part.inputs, torch.arange(len(items)), "cpu")[0])
            found[name if name != "mixed" else f"mixed {part.corpus.modality}"] = (
                *(out / name, part.corpus.modality),
                *(items if part.corpus.modality == "image" else [each.decode() for each in items], reference),
            )
    (origin / "bert").rename(origin / "elsewhere")
    (origin / "cache").rename(origin / "cache elsewhere")
    return found


CASES = ["molecule", "text", "image", "encoded", "mixed image", "mixed text"]


def test_every_export_embeds_in_a_fresh_process_what_the_training_s_student_embeds(made, tmp_path):
    torch.save({name: (str(folder), *rest) for name, (folder, *rest) in made.items()}, tmp_path / "wanted.pt")
    code = """
import sys, torch
import distill
for name, (folder, modality, items, wanted) in torch.load("wanted.pt").items():
    student = distill.load_student(folder)
    found = student.embed(items, modality=modality)
    assert found.dtype == torch.float32 and found.device.type == "cpu"
    print(name, (found - wanted).abs().max().item() <= 1e-4 * wanted.abs().max().item())
print("lightning" in sys.modules)
"""
    (tmp_path / "use.py").write_text(code)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, env=variables, check=False
    )
    assert run.stdout.splitlines() == [*(f"{name} True" for name in CASES), "False"], run.stderr


@pytest.mark.parametrize("name", CASES)
def test_order_and_size_of_batches_do_not_matter(made, name):
    folder, modality, items, wanted = made[name]
    student = distill.load_student(folder, "cpu")
    assert student.dim == wanted.shape[1]
    assert modality in student.modalities
    found = student.embed(items[::-1], modality=modality, batch_size=3)
    torch.testing.assert_close(found.flip(0), wanted, atol=1e-5, rtol=1e-4)
    assert student.embed([], modality=modality).shape == (0, student.dim)


def test_batch_norms_of_an_average_have_the_statistics_of_the_corpus_under_its_weights(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02}.png")
    pictures = ImageFolder(tmp_path / "pictures")
    build(tmp_path / "cache", "image", pictures, {"colour": MeanColour()}, {"pixels": Pixels(16)}, SETTINGS)
    spec = {"class_path": "distill.students.image.SmallResNet", "init_args": {"blocks": 1, "width": 4}}
    best = make_run(tmp_path / "run", tmp_path / "cache", ["image"], spec)
    state = torch.load(best)["state_dict"]
    torch.manual_seed(2)
    start = {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in state.items()}
    torch.save({"state_dict": start, "epoch": 0, "global_step": 0}, best.with_name("start.ckpt"))
    average(tmp_path / "run", 0.5)
    found = torch.load(best.with_name("average.ckpt"))["state_dict"]
    convolution, norm = "student.stem.0.weight", "student.stem.1.running_mean"
    torch.testing.assert_close(found[convolution], (state[convolution] + start[convolution]) / 2)
    _, data, model, _ = open_run(best.with_name("average.ckpt"), heads=False)
    inputs = data.corpora[0].inputs
    with torch.no_grad():
        pixels = model.student._scaled(data.corpora[0].featuriser.unpack(inputs.rows(torch.arange(40))))
        seen = torch.nn.functional.conv2d(pixels, found[convolution], padding=1).mean((0, 2, 3))
    torch.testing.assert_close(found[norm], seen, atol=1e-4, rtol=1e-4)


def test_a_teacher_s_raw_space_is_what_the_head_predicts_with_constants_put_back(made):
    folder, _, items, embedded = made["image"]
    student = distill.load_student(folder, "cpu")
    found = student.teacher_space(items, "colour")
    assert student.teachers == ["colour"]
    assert found.shape == (40, 3)
    assert (found[:, 2] == 7).all(), "a dimension that never changes has no target"
    colours = np.array([[each.mean(), each.std()] for each in (np.asarray(Image.open(io.BytesIO(x))) / 255 for x in items)])
    with torch.inference_mode():
        predicted = student.spaces["colour"].head.predict(embedded)
    raw = torch.from_numpy(colours.mean(0) + predicted.numpy() * colours.std(0)).float()
    torch.testing.assert_close(found[:, :2], raw, atol=2e-3, rtol=0)
    assert student.teacher_space([items[0], b"no image"], "colour", bad="nan").isnan().all(1).tolist() == [False, True]
    with pytest.raises(ConfigError, match="has no head of a teacher 'hue'; it has: colour"):
        student.teacher_space(items, "hue")
    with pytest.raises(ConfigError, match="reads the whole embedding: leave dim out"):
        student.teacher_space(items, "colour", dim=2)
    with pytest.raises(ConfigError, match="none: export with `--heads true`"):
        distill.load_student(made["encoded"][0], "cpu").teacher_space(items, "colour")


def test_images_come_as_paths_bytes_pil_images_and_arrays(made, tmp_path):
    folder, _, items, wanted = made["image"]
    path = tmp_path / "one.png"
    path.write_bytes(items[0])
    image = Image.open(path)
    student = distill.load_student(folder, "cpu")
    given = [items[0], path, str(path), image, np.asarray(image), image.convert("RGBA"), torch.from_numpy(np.array(image))]
    torch.testing.assert_close(student.embed(given), wanted[:1].expand(len(given), -1), atol=1e-5, rtol=1e-4)
    grey = Image.fromarray(np.asarray(image)[..., 0])
    torch.testing.assert_close(*student.embed([grey, grey.convert("RGB")]), atol=1e-5, rtol=1e-4)
    assert student.embed([image.convert("CMYK"), grey.convert("P")]).isfinite().all()


@pytest.mark.parametrize(
    ("name", "item", "reason"),
    [
        ("molecule", "C1CC", "item 1 of 2, 'C1CC', cannot be embedded: "),
        ("text", " ", "empty"),
        ("molecule", 5, "a molecule is a str, found int"),
        ("text", None, "a text is a str, found NoneType"),
        ("text", "\ud800", "can't decode"),
        ("image", "nowhere.png", "No such file"),
        ("image", b"\x89PNG cut", "no image that can be read"),
        ("image", np.zeros((4, 4, 3)), r"uint8 \(height, width, 3\), found float64 \(4, 4, 3\)"),
    ],
)
def test_an_item_that_cannot_be_used_is_named_or_a_row_of_nan(made, name, item, reason):
    folder, _, items, wanted = made[name]
    student = distill.load_student(folder, "cpu")
    with pytest.raises(CorpusError, match=reason):
        student.embed([items[0], item])
    found = student.embed([items[0], item], bad="nan")
    torch.testing.assert_close(found[0], wanted[0], atol=1e-5, rtol=1e-4)
    assert found[1].isnan().all()


def test_one_item_without_a_list_and_a_modality_that_must_be_named_are_refused(made):
    mixed = distill.load_student(made["mixed text"][0], "cpu")
    assert mixed.modalities == ["image", "text"]
    assert mixed.teachers == ["colour", "words"]
    with pytest.raises(ConfigError, match="a modality must be named, the student reads: image, text"):
        mixed.embed(["a text"])
    with pytest.raises(ConfigError, match="no modality 'molecule'"):
        mixed.embed(["CC"], modality="molecule")
    with pytest.raises(ConfigError, match=r"write \[item\]"):
        mixed.embed("a text", modality="text")


def test_the_sentence_transformers_folder_and_the_program_give_the_same_embeddings(made):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    folder, _, items, wanted = made["text"]
    for place in (folder, folder / SENTENCES):
        found = SentenceTransformer(str(place), device="cpu").encode(items, convert_to_tensor=True)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    split, program = (
        AutoTokenizer.from_pretrained(folder / "inputs" / "tokens"),
        torch.export.load(folder / PROGRAM).module(),
    )
    for count in (1, 3, 40):
        rows = split(items[:count], padding=True, truncation=True, max_length=16, return_tensors="pt")
        torch.testing.assert_close(program(rows["input_ids"], rows["attention_mask"]), wanted[:count], atol=1e-4, rtol=0)
    folder, _, items, wanted = made["molecule"]
    program, student = torch.export.load(folder / PROGRAM).module(), distill.load_student(folder, "cpu")
    for count in (1, 3, 40):
        given = [torch.from_numpy(array) for array in prepared(student, "molecule", items[:count])]
        torch.testing.assert_close(program(*given), wanted[:count], atol=1e-4, rtol=0)
    folder, _, items, wanted = made["image"]
    program, pixels = torch.export.load(folder / PROGRAM).module(), Pixels(16)
    rows = torch.from_numpy(np.stack([pixels.featurise(pixels.prepare(each))["pixels"][0] for each in items]))
    for count in (1, 3, 40):
        torch.testing.assert_close(program(rows[:count]), wanted[:count], atol=1e-4, rtol=0)


def prepared(student, name: str, items: list) -> list[np.ndarray]:
    """The inputs of an ONNX file, made without the student's network."""
    if name == "text":
        split = student.inputs["tokens"].split(items, padding=True, return_tensors="np")
        return [split["input_ids"], split["attention_mask"]]
    if name == "image":
        return [np.concatenate([student.prepare(item, "pixels")["pixels"] for item in items])]
    names: dict = {}
    exec((student.folder / "featurise.py").read_text(), names)
    arrays = names["featurise"](items)
    return [arrays[key] for key in ("atoms", "edges", "bonds", "counts")]


@pytest.mark.parametrize("name", ["molecule", "text", "image"])
def test_onnx_runtime_gives_the_same_embeddings_and_the_card_says_how_near_int8_is(made, name):
    from onnxruntime import InferenceSession

    folder, _, items, wanted = made[name]
    sessions = [InferenceSession(folder / file) for file in (ONNX, ONNX_INT8)]
    student = distill.load_student(folder, "cpu")
    for count in (1, 3, 40):
        given = prepared(student, name, items[:count])
        exact, rounded = (
            session.run(None, dict(zip([part.name for part in session.get_inputs()], given, strict=True)))[0]
            for session in sessions
        )
        torch.testing.assert_close(torch.from_numpy(exact), wanted[:count], atol=1e-4, rtol=1e-4)
        assert torch.cosine_similarity(torch.from_numpy(rounded), wanted[:count]).min() > 0.98
    card = (folder / "README.md").read_text()
    assert re.search(rf"\| {ONNX} \| [\d.]+ \| [\d,]+ \| [\de.-]+ \| 1\.000000 \|\n\| {ONNX_INT8} \| ", card)


def test_atoms_alone_salts_and_any_batch_have_the_same_embedding_in_onnx(made):
    from onnxruntime import InferenceSession

    folder, _, items, _ = made["molecule"]
    student, session = distill.load_student(folder, "cpu"), InferenceSession(folder / ONNX)
    smiles = ["C", "[Na+].[Cl-]", "CN1CCC[C@H]1c1cccnc1.Cl", *items[:59], "O", "[Fe]"]
    names = [argument.name for argument in session.get_inputs()]
    wanted = student.embed(smiles)
    for size in (1, 64):
        batches = [prepared(student, "molecule", smiles[start : start + size]) for start in range(0, 64, size)]
        found = [session.run(None, dict(zip(names, given, strict=True)))[0] for given in batches]
        torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), wanted, atol=1e-4, rtol=1e-4)


def test_sums_in_onnx_lose_nothing_on_several_threads(made):
    """onnxruntime's ScatterND adds with threads that overwrite each other; ScatterElements does not."""
    import onnx

    files = [path for folder, *_ in made.values() for path in folder.glob("*.onnx")]
    operations = {path: {node.op_type for node in onnx.load(path).graph.node} for path in files}
    assert [path for path, found in operations.items() if "ScatterND" in found] == []
    assert "ScatterElements" in operations[made["molecule"][0] / ONNX]


def test_the_page_s_example_of_molecules_in_onnx_runs_in_any_folder(made, tmp_path, monkeypatch):
    (tmp_path / "student").symlink_to(made["molecule"][0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (example,) = re.findall(r"```python\n(import sys\n.*?)```", (DOCS / "export.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(example, names)
    del sys.modules["featurise"]
    wanted = distill.load_student("student", "cpu").embed(["CCO", "c1ccccc1", "[Na+].[Cl-]"])
    torch.testing.assert_close(torch.from_numpy(names["embedded"]), wanted, atol=1e-4, rtol=1e-4)


def test_a_student_of_several_modalities_has_no_program_and_no_onnx(tmp_path):
    mixed, inputs = MixedStudent({"views": SmallResNet(1, 4)}, dim=4), {"pixels": Pixels(16)}
    with pytest.raises(ConfigError, match=r"--program is for students of texts, images or molecules .*MixedStudent reads"):
        write_program(mixed, inputs, tmp_path / PROGRAM)
    with pytest.raises(ConfigError, match=r"leave --onnx out"):
        write_onnx(mixed, inputs, {}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_every_pooling_can_be_traced_with_a_free_batch(pooling):
    class Pool(torch.nn.Module):
        def forward(self, hidden, mask):
            return pool_tokens(hidden, mask, pooling)

    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("tokens", min=1, max=64)
    given = torch.randn(2, 5, 3), torch.ones(2, 5, dtype=torch.long)
    program = torch.export.export(Pool(), given, dynamic_shapes=({0: batch, 1: tokens},) * 2, strict=False).module()
    hidden, mask = torch.randn(4, 6, 3), torch.arange(6) < torch.tensor([[6], [2], [1], [3]])
    torch.testing.assert_close(program(hidden, mask.long()), pool_tokens(hidden, mask.long(), pooling))


@pytest.mark.parametrize(
    ("library", "model"), [("timm", "test_resnet"), ("timm", "local-dir:{}/timm"), ("transformers", "{}/vit")]
)
def test_a_pretrained_backbone_loads_without_its_folder(origin, tmp_path, library, model):
    import timm
    import transformers as hf
    from timm.models import save_for_hf

    from distill.students.image import ImageStudent

    source = tmp_path / "source"
    save_for_hf(timm.create_model("test_vit", num_classes=0, img_size=32), source / "timm", model_args={"img_size": 32})
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    hf.ViTModel(hf.ViTConfig(**sizes, intermediate_size=32)).save_pretrained(source / "vit")
    hf.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(source / "vit")
    args = {"model": model.format(source), "library": library, "pretrained": ":" in model or library == "transformers"}
    torch.manual_seed(0)
    student = ImageStudent(**args, dim=5).eval()
    changed = student.portable({**args, "dim": 5}, tmp_path / "network")
    shutil.rmtree(source)
    again = ImageStudent(**changed).eval()
    again.load_state_dict(student.state_dict())
    pixels = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(again.encode(pixels), student.encode(pixels))


# ------------------------------------------------------------------------------------------ damaged, and refused


EVIL = {"dim": 1, "targets": 1, "head": {"class_path": "os.system", "init_args": {"command": "touch pwned"}}}


def spoil(folder: Path, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no export at .*: expected config.json there"),
        (lambda folder: (folder / CONFIG).write_text("{"), "is not JSON"),
        (lambda folder: spoil(folder, format_version=9), "format version 9, this version reads 1: upgrade"),
        (lambda folder: (folder / CONFIG).write_text('{"format_version": 1}'), "lacks student, dim, inputs"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot read .*model.safetensors"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4]), "is damaged: its SHA-256"),
        (lambda folder: spoil(folder, student={"class_path": "os.system"}), "os.system is no Student"),
        (lambda folder: spoil(folder, student="os.system"), "cannot make os.system"),
        (lambda folder: spoil(folder, teachers={"evil": EVIL}), r"cannot make os.system \(os.system is no Head\)"),
        (lambda folder: spoil(folder, teachers=["evil"]), "is not as `distill export` writes it"),
        (lambda folder: spoil(folder, student={"class_path": "my_own.Student"}), "must be importable here"),
        (lambda folder: spoil(folder, student=RESNET), "does not fit the student of config.json"),
        (lambda folder: spoil(folder, inputs={"graph": {"class_path": "os.system", "init_args": {}}}), "is no Featuriser"),
    ],
)
def test_a_damaged_export_says_what_is_wrong(made, tmp_path, monkeypatch, damage, message):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "export"
    shutil.copytree(made["molecule"][0], folder)
    damage(folder)
    with pytest.raises((ConfigError, CacheError), match=message):
        distill.load_student(folder, "cpu")
    assert not Path("pwned").exists(), "a configuration ran a command"


def swap(path: Path, kind: str) -> None:
    path.unlink()
    {"pipe": os.mkfifo, "device": lambda place: place.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        (CONFIG, "no export at .*: expected config.json there"),
        (WEIGHTS, "cannot read .*model.safetensors, expected a file"),
        ("inputs/tokens/tokenizer.json", "tokenizer.json is a pipe or a device, expected a file|cannot load"),
        ("network/config.json", "config.json is a pipe or a device, expected a file|cannot load|cannot make"),
    ],
)
def test_a_pipe_or_an_endless_device_in_an_export_is_refused_at_once(made, tmp_path, kind, file, message):
    folder = tmp_path / "export"
    shutil.copytree(made["text"][0], folder)
    swap(folder / file, kind)
    with pytest.raises((ConfigError, TeacherError), match=message):
        distill.load_student(folder, "cpu")


def arguments(folder: Path, **changes) -> None:
    student = json.loads((folder / CONFIG).read_text())["student"]
    spoil(folder, student=student | {"init_args": student["init_args"] | changes})


def teacher(folder: Path, **changes) -> None:
    teachers = json.loads((folder / CONFIG).read_text())["teachers"]
    spoil(folder, teachers={name: spec | changes for name, spec in teachers.items()})


def network(folder: Path, **changes) -> None:
    path = folder / "network" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("molecule", lambda folder: arguments(folder, layers=10**9), "network of more than"),
        ("molecule", lambda folder: arguments(folder, width=10**6), "network of more than"),
        ("molecule", lambda folder: arguments(folder, width=10**12), "network of more than|no network that can be built"),
        ("molecule", lambda folder: arguments(folder, dim=10**8), "network of more than"),
        ("image", lambda folder: arguments(folder, blocks=10**9), "network of more than"),
        ("image", lambda folder: arguments(folder, width=10**5), "network of more than|no network that can be built"),
        ("mixed image", lambda folder: arguments(folder, layers=10**9), "network of more than"),
        ("text", lambda folder: network(folder, num_hidden_layers=10**9), "network of more than"),
        ("text", lambda folder: network(folder, vocab_size=10**10), "network of more than|no network that can be built"),
        ("molecule", lambda folder: teacher(folder, targets=10**11), "gives teacher .* the dim and targets"),
        ("molecule", lambda folder: teacher(folder, dim=10**11), "gives teacher .* the dim and targets"),
        ("molecule", lambda folder: arguments(folder, trust_remote_code=True), "no file may allow this"),
        ("molecule", lambda folder: (folder / CONFIG).write_text("[" * 100_000), "is not JSON"),
    ],
)
def test_a_configuration_of_an_impossible_network_is_refused_quickly_in_little_memory(
    made, tmp_path, name, change, message
):
    folder = tmp_path / "export"
    shutil.copytree(made[name][0], folder)
    change(folder)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises((ConfigError, CacheError), match=message):
        distill.load_student(folder, "cpu")
    assert time.process_time() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000, "kilobytes"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """A folder with a cache and a run that `distill fit` made."""
    folder = tmp_path_factory.mktemp("fitted")
    inputs = {"graph": MoleculeGraph()}
    build(folder / "cache", "mol", RdkitSamples(limit=80), {"maccs": Maccs()}, inputs, SETTINGS)
    config = {
        "run": str(folder / "runs" / "mini"),
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, "enable_progress_bar": False},
        "data": {"corpus": str(folder / "cache" / "mol"), "batch_size": 20, "held_out": 20},
        "model": {"student": GRAPH, "head": MINI},
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(folder / "fit.yaml")])
    return folder


def test_the_commands_take_the_newest_run_and_its_card_can_be_followed(fitted, monkeypatch):
    monkeypatch.chdir(fitted)
    run = fitted / "runs" / "mini"
    record = {
        "system": "student",
        "kind": "student",
        "task": "logp",
        "provenance": "computed",
        "split": "random",
        "seed": 0,
    }
    record |= {"metric": "r2", "score": 0.5, "test_rows": 9}
    (run / "probes").mkdir()
    (run / "probes" / "results.json").write_text(json.dumps({"checkpoint": "x/best.ckpt", "records": [record]}))
    main(["export", "--out", "small student", "--heads", "true"])
    card = (fitted / "small student" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "quorum-distill"
    assert front["tags"][-1] == "molecule"
    assert "| maccs | `cache_tools.teachers.molecule.Maccs` | 167 |  |  |  | no weights |" in card
    assert re.search(r"\| mol \| molecule \| 80 \| .* \| [0-9a-f]{16} \| graph \|", card)
    assert re.search(r"Held-out rows at step 2: loss [0-9.-]+", card)
    assert "| teacher | nats | nll | r2" in card
    assert "| logp<br>r2 |" in card
    files = {"README.md", "config.json", "model.safetensors", "probes-random.png", "training.png"}
    assert {path.name for path in (fitted / "small student").iterdir()} == files
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    names: dict = {}
    exec(snippet, names)
    assert names["embedded"].shape == (2, 12)
    assert names["raw"].shape == (2, 167)
    with pytest.raises(SystemExit, match="small student is there already: choose another --out"):
        main(["export", "--out", "small student"])
    with pytest.raises(SystemExit, match="--sentence_transformers is for a TextStudent"):
        main(["export", "--out", "other", "--sentence_transformers", "true"])
    assert not list(fitted.glob("*other*")), "what failed leaves nothing behind"
    assert not list(fitted.glob(".export*"))


@pytest.mark.parametrize(("dtype", "share", "close"), [("float16", 0.7, 0.9999), ("int8", 0.5, 0.999)])
def test_rounded_weights_take_less_space_and_the_card_says_what_they_change(fitted, monkeypatch, dtype, share, close):
    monkeypatch.chdir(fitted)
    for out, given in ((dtype, dtype), (f"not {dtype}", "float32")):
        main(["export", "--out", out, "--dtype", given, "--heads", "true", "--licence", "mit"])
    sizes = [(fitted / out / WEIGHTS).stat().st_size for out in (dtype, f"not {dtype}")]
    assert sizes[0] < share * sizes[1]
    whole, half = (distill.load_student(fitted / out, "cpu") for out in (f"not {dtype}", dtype))
    assert {value.dtype for value in half.network.module.state_dict().values()} <= {torch.float32, torch.int64}
    smiles = ["CCO", "c1ccccc1", "CC(=O)Nc1ccc(O)cc1"]
    assert not torch.equal(half.embed(smiles), whole.embed(smiles))
    assert torch.cosine_similarity(half.embed(smiles), whole.embed(smiles)).min() > close
    assert torch.cosine_similarity(half.teacher_space(smiles, "maccs"), whole.teacher_space(smiles, "maccs")).min() > close
    card = (fitted / dtype / "README.md").read_text()
    assert float(re.search(r"the lowest cosine with an embedding in float32 is ([\d.]+)\.", card)[1]) > close
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert "lowest cosine" not in (fitted / f"not {dtype}" / "README.md").read_text()
    assert json.loads((fitted / dtype / CONFIG).read_text())["facts"]["licence"] == "mit"


def test_a_row_of_int8_keeps_its_largest_number_and_zeros():
    layer = torch.nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.tensor([[1e-3, -2e-3, 0.0], [0.0, 0.0, 0.0], [50.0, 0.1, -3e4]])
    before = layer.weight.clone()
    round_weights(layer, "int8")
    assert ((layer.weight - before).abs().amax(1) <= before.abs().amax(1) / 253).all()
    torch.testing.assert_close(layer.weight.abs().amax(1), before.abs().amax(1), rtol=1e-6, atol=0)
    again = layer.weight.clone()
    round_weights(layer, "int8")
    torch.testing.assert_close(layer.weight.data, again, rtol=1e-6, atol=0)


def test_weights_beyond_float16_are_refused():
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, 1e5)
    with pytest.raises(ConfigError, match="weights weight hold numbers beyond float16: export them with --dtype float32"):
        round_weights(layer, "float16")


def test_a_predicted_column_is_a_teacher_like_any_other(fitted, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(fitted)
    options = ["--settings.workers", "1", "--settings.dtype", "float32"]
    main(["predict", "--corpus", "cache/mol", "--name", "again", *options])
    column = open_column(fitted / "cache" / "mol" / "teachers" / "again")
    student = distill.load_student(fitted / "runs" / "mini" / "export", "cpu")
    items = [item.decode() for item in read_items(fitted / "cache" / "mol", 0)[1]]
    torch.testing.assert_close(column.rows(torch.arange(80)), student.embed(items), atol=1e-5, rtol=1e-4)
    made = column.manifest["producer"]
    assert made["class_path"] == "distill.export.student.StudentTeacher"
    assert len(made["fingerprint"]["weights_sha256"]) == 64
    sample(column.path, rows=8, check=True, device="cpu")
    assert "8 rows embedded again" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in column.path.iterdir()}
    main(["predict", "--corpus", "cache/mol", "--name", "again", "--student", "runs/mini/export", *options])
    assert before == {path: path.stat().st_mtime_ns for path in column.path.iterdir()}, "what is there is not made again"
    data = DistillData(fitted / "cache" / "mol", teachers=["again"], batch_size=20, held_out=20)
    assert next(iter(data.train_dataloader())).targets["again"].shape == (20, 12)
    unnamed = DistillData(fitted / "cache" / "mol", batch_size=20, held_out=20)
    assert list(unnamed.statistics) == ["maccs"], "no student teaches itself unless it is asked to"
    second = make_run(tmp_path / "second", fitted / "cache", ["mol"], GRAPH, ["maccs", "again"])
    export(tmp_path / "pupil", second)
    card = (tmp_path / "pupil" / "README.md").read_text()
    assert re.search(
        r"\| again \| `distill.export.student.StudentTeacher` \| 12 \| export \|  \| [0-9a-f]{16} \| unknown \|", card
    )


def test_a_student_that_embeds_a_corpus_reads_the_input_that_it_has(fitted, made, monkeypatch):
    corpus, options = fitted / "cache" / "mol", Settings(workers=1, dtype="float32")
    monkeypatch.setattr(MoleculeGraph, "featurise", lambda self, item: pytest.fail("made a second time"))
    predict(corpus, "reading", student=made["molecule"][0], settings=options)
    rows = open_column(corpus / "teachers" / "reading").rows(torch.arange(80))
    monkeypatch.undo()
    items = [item.decode() for item in read_items(corpus, 0)[1]]
    torch.testing.assert_close(rows, distill.load_student(made["molecule"][0], "cpu").embed(items), atol=1e-5, rtol=1e-4)


def test_predict_refuses_what_does_not_fit(fitted, made, tmp_path):
    corpus = fitted / "cache" / "mol"
    with pytest.raises(ConfigError, match="expected one of --ckpt_path and --student"):
        predict(corpus, ckpt_path=fitted / "runs" / "mini" / "checkpoints" / "best.ckpt", student=made["molecule"][0])
    with pytest.raises(ConfigError, match="reads texts, the corpus .* holds molecules"):
        predict(corpus, student=made["text"][0])
    with pytest.raises(ConfigError, match="no modality 'molecule', the student reads: image, text"):
        predict(corpus, student=made["mixed text"][0])
    with pytest.raises(CacheError, match="cannot be called"):
        predict(corpus, "a b", student=made["molecule"][0])
    other = tmp_path / "run"
    shutil.copytree(fitted / "runs" / "mini", other, ignore=shutil.ignore_patterns("export", "probes"))
    shutil.copytree(made["molecule"][0], other / "export")
    with pytest.raises(ConfigError, match="is of another checkpoint than"):
        predict(corpus, ckpt_path=other / "checkpoints" / "best.ckpt")


def test_a_student_of_several_modalities_is_a_teacher_of_one_of_them(made):
    teacher = StudentTeacher(made["mixed text"][0], of="image")
    assert teacher.modality == "image"
    teacher.load("cpu")
    _, _, items, wanted = made["mixed image"]
    found = teacher.embed([teacher.prepare(each) for each in items])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert "export" not in teacher.fingerprint(), "a moved export stays the same teacher"


def test_of_two_exports_to_one_folder_one_is_told(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(fitted)
    checkpoint = fitted / "runs" / "mini" / "checkpoints" / "best.ckpt"
    context = multiprocessing.get_context("fork")
    ready, told = context.Barrier(2), context.Queue()

    def one() -> None:
        ready.wait()
        try:
            export(tmp_path / "out", checkpoint)
            told.put("")
        except ConfigError as error:
            told.put(str(error))

    processes = [context.Process(target=one) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = sorted(told.get(timeout=120) for _ in processes)
    assert first == ""
    assert "out is there already: choose another --out" in second
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    distill.load_student(tmp_path / "out", "cpu")


def test_an_export_that_cannot_be_made_says_why(fitted, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(fitted / "runs" / "mini", run, ignore=shutil.ignore_patterns("export", "probes"))
    best = run / "checkpoints" / "best.ckpt"
    with pytest.raises(ConfigError, match=r"no checkpoint at .*: expected RUN/checkpoints/best.ckpt"):
        export(tmp_path / "out", run / "best.ckpt")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"model": {**config["model"], "student": RESNET}}))
    with pytest.raises(ConfigError, match="does not fit .*config.yaml"):
        export(tmp_path / "out", best)
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"model": {**config["model"], "colour": "red"}}))
    with pytest.raises(ConfigError, match="is no configuration of this version"):
        export(tmp_path / "out", best)
    pairs = {"class_path": "distill.heads.RelationHead"}
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"model": {"student": GRAPH, "head": pairs}}))
    _, model = rebuild_run(yaml.safe_load((run / "config.yaml").read_text()), run)
    torch.save({"state_dict": model.state_dict(), "epoch": 0, "global_step": 1}, best)
    with pytest.raises(ConfigError, match="no head of this run can emit"):
        export(tmp_path / "out", best, heads=True)
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="a checkpoint must lie in its run's folder"):
        export(tmp_path / "out", best)
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing is left behind"


def test_a_head_of_directions_and_a_normaliser_that_mixes_dimensions_are_exported(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(fitted)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = yaml.safe_load((fitted / "runs" / "mini" / "config.yaml").read_text())
    classes = {"head": "distill.heads.CosineHead", "normaliser": "distill.targets.PhiS"}
    config["model"] = {"student": GRAPH, **{key: {"class_path": path} for key, path in classes.items()}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    _, model = rebuild_run(config, run)
    torch.save({"state_dict": model.state_dict(), "epoch": 0, "global_step": 1}, run / "checkpoints" / "best.ckpt")
    export(tmp_path / "out", run / "checkpoints" / "best.ckpt", heads=True)
    student, smiles = distill.load_student(tmp_path / "out", "cpu"), ["CCO", "c1ccccc1", "CC(=O)Nc1ccc(O)cc1"]
    assert student.teachers == ["maccs"]
    head, normaliser = model.bank.head("maccs"), model.bank.normaliser("maccs")
    with torch.inference_mode():
        target, wanted = normaliser(student.teacher_space(smiles, "maccs")), head.predict(student.embed(smiles))
    torch.testing.assert_close(torch.cosine_similarity(target, wanted), torch.ones(3), atol=1e-4, rtol=0)
    length = target.square().mean().item()  # of each dimension, whose variance is 1 on average
    assert length == pytest.approx(1, abs=0.01)


def test_the_text_program_is_the_student_s_own_arithmetic(made):
    folder, _, items, wanted = made["text"]
    student = distill.load_student(folder, "cpu")
    ids = [torch.tensor(student.prepare(each.encode(), "tokens")["tokens"]).long() for each in items[:4]]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
    with torch.inference_mode():
        found = student.network.module.traceable(student.inputs["tokens"]).module(padded, mask)
    torch.testing.assert_close(found, wanted[:4], atol=1e-5, rtol=1e-4)


def test_rebuilding_a_run_leaves_its_configuration_as_it_was(fitted, monkeypatch):
    """The export's own configuration is written from it: heads of single teachers became text."""
    monkeypatch.chdir(fitted)
    path = fitted / "runs" / "mini" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["heads"] = {"maccs": {"class_path": "distill.heads.BernoulliHead"}}
    before = json.dumps(config)
    rebuild_run(config, path)
    assert json.dumps(config) == before
