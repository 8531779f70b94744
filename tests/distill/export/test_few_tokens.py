"""Students of texts whose rare tokens share a row: fitted, probed, and exported in every format."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import distill
from cache_tools import Settings, Teacher, TextFile, TokenIds, build, read_safetensors
from distill.evaluation.tasks import TextTask
from distill.export.formats import ONNX, ONNX_INT8, SENTENCES

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "rare", "scarce", "the", "film", "is", "good", "bad", "very"]
STUDENTS = {
    "text": {"class_path": "distill.students.text.TextStudent", "init_args": {"kept": 6, "dim": 8, "unit": True}},
    "static": {
        "class_path": "distill.students.text.StaticStudent",
        "init_args": {"vocabulary": len(WORDS), "width": 8, "kept": 6},
    },
}


class CountWords(Teacher):
    modality = "text"
    dim = 3

    def embed(self, items):
        return [[item.count("good"), item.count("the"), len(item)] for item in items]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tokenizer, a network, a corpus of 60 texts and a task."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("few")
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes)).save_pretrained(folder / "bert")
    texts = [f"{'the ' * (1 + number % 7)}film is {'good ' * (number % 3)}{'very ' * (number % 2)}" for number in range(60)]
    (folder / "texts.txt").write_text("\n".join(texts))
    (folder / "task.csv").write_text("text,label\n" + "".join(f"{text},{text.count('the') % 2}\n" for text in texts))
    tokens = {"tokens": TokenIds(str(folder / "bert"), 16)}
    build(folder / "cache", "text", TextFile(folder / "texts.txt"), {"words": CountWords()}, tokens, Settings(workers=1))
    return folder


@pytest.fixture(scope="module", params=STUDENTS)
def fitted(request, place) -> distill.FittedStudent:
    spec = json.loads(json.dumps(STUDENTS[request.param]))
    spec["init_args"]["model" if request.param == "text" else "start"] = str(place / "bert")
    config = {
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "precision": "32-true"},
        "data": {"corpus": "", "batch_size": 20, "held_out": 10},
        "model": {"student": spec, "head": {"class_path": "distill.heads.MseHead"}},
    }
    (place / "fit.yaml").write_text(yaml.safe_dump(config))
    return distill.fit(place / "cache" / "text", place / "fit.yaml", out=place / request.param)


TEXTS = ["the film is good", "very bad rare film", "scarce the", "nothing known"]


def test_a_fit_keeps_the_commonest_tokens_and_an_export_remembers_them(fitted, place):
    student = fitted.network.module
    rows = next(buffer for name, buffer in student.named_buffers() if name.endswith("row_of"))
    kept = [WORDS[token] for token in (rows < 6).nonzero().squeeze(1).tolist()]
    assert {"[CLS]", "[SEP]", "the", "film", "is"} < {*kept} and len(kept) == 6
    tensors = read_safetensors(fitted.folder / "model.safetensors")[0]
    assert sum(name.endswith("row_of") for name in tensors) == 1
    tables = [len(value) for name, value in tensors.items() if "word_embeddings" in name or "vectors" in name]
    assert 7 in tables and len(WORDS) not in [size for size in tables if size != len(rows)]
    found = fitted.embed(["rare", "scarce", "bad"])
    torch.testing.assert_close(found[0].expand_as(found), found)


def test_int8_onnx_the_program_and_sentence_transformers_embed_the_same(fitted, place, tmp_path):
    from onnxruntime import InferenceSession

    text = "model" in fitted.config["student"]["init_args"]
    fitted.export(tmp_path / "all", program=True, onnx=True, sentence_transformers=text)
    wanted = fitted.embed(TEXTS)
    torch.testing.assert_close(distill.load_student(tmp_path / "all", "cpu").embed(TEXTS), wanted)
    split = fitted.inputs["tokens"].split(TEXTS, padding=True, return_tensors="np")
    given = [split["input_ids"], split["attention_mask"]]
    for file, atol in ((ONNX, 1e-5), (ONNX_INT8, 0.05)):
        session = InferenceSession(tmp_path / "all" / file)
        names = [part.name for part in session.get_inputs()]
        (found,) = session.run(None, dict(zip(names, given, strict=True)))
        torch.testing.assert_close(torch.from_numpy(found), wanted, atol=atol, rtol=0.05)
    program = torch.export.load(tmp_path / "all" / "model.pt2").module()
    torch.testing.assert_close(program(*map(torch.from_numpy, given)), wanted, atol=1e-5, rtol=1e-4)
    fitted.export(tmp_path / "int8", dtype="int8")
    rounded = distill.load_student(tmp_path / "int8", "cpu").embed(TEXTS)
    assert torch.cosine_similarity(rounded, wanted).min() > 0.98
    if text:
        from sentence_transformers import SentenceTransformer

        network = SentenceTransformer(str(tmp_path / "all"), device="cpu")
        assert len(network[0].auto_model.get_input_embeddings().weight) == len(WORDS)
        found = network.encode(TEXTS, convert_to_tensor=True)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert (tmp_path / "all" / SENTENCES).is_dir()


def test_such_a_student_is_probed_beside_its_start_and_its_tokens(fitted, place):
    task = TextTask(place / "task.csv")
    options = {"probe.seeds": [0], "probe.splits": ["own"], "probe.systems": ["student", "untrained", "start", "tokens"]}
    records = distill.evaluate(fitted, {"odd": task}, options)
    assert {record.system for record in records} == {"student", "untrained", "start", "tokens"}
