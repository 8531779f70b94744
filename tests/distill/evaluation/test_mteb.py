import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import spearmanr

import distill
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.corpora.text import TextFile
from cache_tools.errors import ConfigError
from cache_tools.inputs import MoleculeGraph, TokenIds
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.molecule import Maccs
from distill.cli.functions import main
from distill.evaluation import mteb as ours
from distill.evaluation.mteb import SMALL, MtebEncoder, engine, named
from distill.export.write import export, rebuild_run

WORDS = ["the", "film", "is", "good", "bad", "very", "long", "short", "and", "old"]
MINI = {"class_path": "distill.heads.GaussianHead", "init_args": {"preset": "mini"}}
GRAPH = {"class_path": "distill.students.molecule.GraphStudent", "init_args": {"layers": 1, "width": 8, "dim": 8}}


class Length(Teacher):
    modality = "text"
    dim = 2

    def embed(self, items):
        return np.array([[len(item), item.count("good")] for item in items], np.float32)


def exported(folder: Path, name: str, student: dict) -> Path:
    """A student of random weights on the corpus ``name`` of the folder's cache, as `distill export` leaves it."""
    config = {
        "data": {"corpus": str(folder / "cache" / name), "batch_size": 10, "held_out": 5},
        "model": {"student": student, "head": MINI},
    }
    checkpoint = folder / "run" / name / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    (folder / "run" / name / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(1)
    _, model = rebuild_run(config, folder / "run" / name)
    torch.save({"state_dict": model.state_dict(), "epoch": 0, "global_step": 3}, checkpoint)
    export(folder / "students" / f"tiny {name}", checkpoint)
    return folder / "students" / f"tiny {name}"


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> dict[str, Path]:
    """Two exported students: one of texts, one of molecules."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("mteb")
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder / "words")
    (folder / "lines.txt").write_text("\n".join(f"the film {number} is {word}" for number, word in enumerate(WORDS * 3)))
    tokens, settings = TokenIds(str(folder / "words"), 16), Settings(workers=1)
    build(folder / "cache", "text", TextFile(folder / "lines.txt"), {"length": Length()}, {"tokens": tokens}, settings)
    build(folder / "cache", "mol", RdkitSamples(limit=30), {"maccs": Maccs()}, {"graph": MoleculeGraph()}, settings)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    init = {"model": "bert", "pretrained": False, "config": {"vocab_size": 12, **small}, "dim": 12}
    text = {"class_path": "distill.students.text.TextStudent", "init_args": init}
    return {"text": exported(folder, "text", text), "mol": exported(folder, "mol", GRAPH)}


def task_of(base: str, name: str, kind: str, main_score: str, folder: Path):
    """A task of mteb whose data are the csv files of a folder."""
    abstasks = engine().abstasks
    metadata = engine().TaskMetadata(
        name=name,
        description="made by a test",
        reference=None,
        dataset={"path": str(folder), "revision": "1"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )
    return type(name, (getattr(abstasks, base),), {"metadata": metadata})


def table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def local(tmp_path, monkeypatch) -> dict[str, Path]:
    """Two tasks that mteb knows by name, with data in csv files."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 6)) for _ in range(60)]
    pairs = [
        {"sentence1": a, "sentence2": b, "score": 5 * len(set(a.split()) & set(b.split())) / 6}
        for a, b in zip(texts[:30], texts[30:], strict=True)
    ]
    table(tmp_path / "likeness" / "test.csv", pairs)
    for part in ("train", "test"):
        rows = [{"text": f"{random.choice(WORDS[:4])} {WORDS[4 + n % 2]} film", "label": n % 2} for n in range(40)]
        table(tmp_path / "mood" / f"{part}.csv", rows)
    made = [
        task_of("AbsTaskSTS", "LocalLikeness", "STS", "cosine_spearman", tmp_path / "likeness"),
        task_of("AbsTaskClassification", "LocalMood", "Classification", "accuracy", tmp_path / "mood"),
        task_of("AbsTaskSTS", "NowhereSTS", "STS", "cosine_spearman", Path("quorum-distill") / "no-such-data-set"),
    ]
    for library in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{library}.HF_HUB_OFFLINE", True)  # read when they were imported, perhaps by another test
    for each in made:
        monkeypatch.setitem(sys.modules["mteb.get_tasks"]._TASKS_REGISTRY, each.metadata.name, each)
    return {"pairs": pairs, "folder": tmp_path}


def test_the_command_writes_mteb_s_files_and_its_spearman_is_that_of_the_student(students, local, tmp_path, capsys):
    arguments = [f"--student={students['text']}", "--tasks=[LocalLikeness, LocalMood]", f"--out={tmp_path / 'out'}"]
    main(["mteb", *arguments])
    shown = capsys.readouterr().out
    (folder,) = (tmp_path / "out" / "results" / "quorum-distill__tiny_text").iterdir()
    assert str(folder) in shown.replace("\n", "")
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("LocalLikeness", "LocalMood")}
    scores = {name: each["scores"]["test"][0]["main_score"] for name, each in found.items()}
    student = distill.load_student(students["text"], "cpu")
    first, second = (student.embed([row[side] for row in local["pairs"]]).double() for side in ("sentence1", "sentence2"))
    cosine = torch.nn.functional.cosine_similarity(first, second).numpy()
    wanted = spearmanr(cosine, [row["score"] for row in local["pairs"]]).statistic
    assert scores["LocalLikeness"] == pytest.approx(wanted, abs=1e-3)
    assert wanted > 0.2
    assert scores["LocalMood"] > 0.8
    for score in scores.values():
        assert f"{score:.3f}" in shown
    assert f"{np.mean(list(scores.values())):.3f}" in shown
    (folder / "LocalMood.json").unlink()
    before = (folder / "LocalLikeness.json").stat().st_mtime_ns
    main(["mteb", *arguments])
    assert (folder / "LocalMood.json").exists()
    assert (folder / "LocalLikeness.json").stat().st_mtime_ns == before, "what is there is not run again"


def test_the_facts_of_the_student_are_in_mteb_s_model_card(students):
    encoder = MtebEncoder(students["text"], "cpu")
    assert isinstance(encoder, engine().EncoderProtocol)
    meta = encoder.mteb_model_meta
    weights = list(encoder.student.network.module.parameters())
    assert meta.name == "quorum-distill/tiny text"
    assert (meta.embed_dim, meta.max_tokens, meta.modalities) == (12, 16, ["text"])
    assert meta.n_parameters == sum(each.numel() for each in weights)
    assert meta.n_embedding_parameters == 12 * 16 + 512 * 16 + 2 * 16, "words, places, segments"
    assert meta.memory_usage_mb == pytest.approx(meta.n_parameters * 4 / 2**20)
    assert meta.revision == MtebEncoder(str(students["text"])).mteb_model_meta.revision


def test_another_student_has_another_revision(students, tmp_path):
    encoder = MtebEncoder(students["text"], "cpu")
    copy = tmp_path / "tiny text"
    copy.symlink_to(students["text"])
    assert MtebEncoder(copy, "cpu").mteb_model_meta.revision == encoder.mteb_model_meta.revision
    config = json.loads((students["text"] / "config.json").read_text())
    changed = tmp_path / "other" / "tiny text"
    changed.parent.mkdir()
    shutil.copytree(students["text"], changed)
    config["student"]["init_args"]["pooling"] = "cls"
    (changed / "config.json").write_text(json.dumps(config))
    assert MtebEncoder(changed, "cpu").mteb_model_meta.revision != encoder.mteb_model_meta.revision


def test_every_other_type_of_task_runs_through_mteb_s_engine(students):
    from mteb import mocks

    names = ["MockClusteringTask", "MockPairClassificationTask", "MockRetrievalTask", "MockRerankingTask"]
    tasks = [getattr(mocks, name)() for name in names]
    results = engine().evaluate(MtebEncoder(students["text"], "cpu"), tasks, cache=None, co2_tracker=False)
    scores = {each.task_name: each.get_score() for each in results.task_results}
    assert len(scores) == 4
    assert all(0 <= score <= 1 for score in scores.values()), scores
    assert not results.exceptions


def test_a_blank_text_has_a_vector_and_batches_do_not_matter(students):
    encoder = MtebEncoder(students["text"], "cpu")
    texts = ["the film is good", " ", "bad", ""]
    found = encoder.encode([{"text": texts[:3]}, {"text": texts[3:]}], batch_size=2, task_metadata=None, hf_split="test")
    assert found.shape == (4, 12)
    np.testing.assert_array_equal(found[1], found[3])
    np.testing.assert_allclose(found[[0, 2]], encoder.student.embed([texts[0], texts[2]]), atol=1e-6)
    torch.testing.assert_close(encoder.similarity(found, found).diagonal(), encoder.similarity_pairwise(found, found))


def test_the_small_suite_has_every_type_of_the_leaderboard_s_tasks(local):
    tasks = [named(name) for name in SMALL]
    assert {task.metadata.type for task in tasks} == {
        *("Classification", "Clustering", "PairClassification", "STS", "Reranking", "Retrieval")
    }
    leaderboard = {task.metadata.name for task in engine().get_benchmark("MTEB(eng, v2)").tasks}
    assert set(SMALL) <= leaderboard
    assert all(task.eval_splits == ["test"] and task.languages == ["eng"] for task in tasks)


def test_what_is_missing_is_named_before_anything_runs(students, local, tmp_path):
    with pytest.raises(ConfigError, match=r"Did you mean: 'STSBenchmark'\?"):
        named("STSBenchmrk")
    with pytest.raises(ConfigError, match=r"of 1 of 2 tasks .*: NowhereSTS \(quorum-distill/no-such-data-set\).*HF_HOME"):
        ours.mteb(students["text"], ["LocalLikeness", "NowhereSTS"], tmp_path / "out", "cpu")
    assert not list(tmp_path.glob("out/**/*.json"))
    with pytest.raises(ConfigError, match="no modality 'text', the student reads: molecule"):
        MtebEncoder(students["mol"], "cpu")


def test_without_mteb_the_extra_is_named(students, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ConfigError, match=r"pip install 'quorum-distill\[eval\]'"):
        MtebEncoder(students["text"], "cpu")
