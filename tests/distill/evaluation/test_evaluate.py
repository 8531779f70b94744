import copy
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import r2_score

from cache_tools import open_column
from cache_tools.building.column import Settings
from cache_tools.cli.transfer import import_
from cache_tools.errors import CacheError, ConfigError
from cache_tools.format.packing import Ragged
from cache_tools.teachers.base import Teacher
from distill.data.columns import open_corpus
from distill.evaluation.baselines import TokenMean, starts_at_random, undistilled
from distill.evaluation.during import ProbeDuring
from distill.evaluation.probes import KernelRidgeProbe, RidgeProbe
from distill.evaluation.protocol import Evaluation
from distill.evaluation.tasks import MoleculeTask
from distill.export.student import load_student
from distill.export.write import export, rebuild_run
from distill.records import Record
from distill.run_folder import RunFolder, safe_name
from distill.students.mixed import MixedStudent
from distill.students.molecule import GraphStudent
from distill.students.text import TextStudent
from distill.training.calibration import calibrated
from distill.training.checkpoint import read_checkpoint, student_of

STUDENT = {"class_path": "distill.students.molecule.GraphStudent", "init_args": {"layers": 2, "width": 16, "dim": 12}}
SMILES = ["CCO", "CCN", "CCC", "c1ccccc1", "CCCl", "CC=O", "CC#N", "CCS"]


def test_an_imported_teacher_joins_the_probes_when_it_has_the_tasks_items(tmp_path: Path, caplog):
    from cache_tools.building.corpus import build
    from cache_tools.corpora.base import Items
    from cache_tools.inputs import MoleculeGraph
    from cache_tools.teachers.molecule import Maccs

    corpus = build(tmp_path, "c", Items(SMILES, "molecule"), {"maccs": Maccs()}, {"graph": MoleculeGraph()})
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))
    (tmp_path / "e.ids.txt").write_text("\n".join(SMILES) + "\n")
    import_(corpus, "elsewhere", tmp_path / "e.npy", key="item")
    (tmp_path / "task.csv").write_text("smiles,y\nCCO,1\nCCN,2\nCCC,3\nCCCC,4\n")
    evaluation = Evaluation({"y": MoleculeTask(tmp_path / "task.csv", "regression")})
    parts = [open_corpus(corpus, ["maccs", "elsewhere"])]

    evaluation.prepare(parts, Settings(workers=1))
    assert evaluation.prepared["y"].teachers == ["maccs"]
    assert "teacher elsewhere was imported and is left out of the probes" in caplog.text
    command = caplog.text.split("distill-cache import ")[1].split()

    import_(Path(command[1]), command[3], tmp_path / "e.npy", key="item")
    evaluation.prepare(parts, Settings(workers=1))
    assert evaluation.prepared["y"].teachers == ["maccs", "elsewhere"]
    column = open_column(Path(command[1]) / "teachers" / "elsewhere")
    assert column.valid(torch.arange(4)).tolist() == [True, True, True, False]


def test_a_split_is_the_same_whoever_else_is_probed(tmp_path: Path):
    """One molecule that a teacher cannot read is left out, and moves no other one."""
    from cache_tools.building.corpus import build
    from cache_tools.corpora.base import Items
    from cache_tools.inputs import MoleculeGraph
    from cache_tools.teachers.molecule import Maccs

    molecules = ["C" * n + "O" for n in range(1, 41)]
    corpus = build(tmp_path, "c", Items(molecules, "molecule"), {"maccs": Maccs()}, {"graph": MoleculeGraph()})
    (tmp_path / "task.csv").write_text("\n".join(["smiles,y", *(f"{each},{len(each)}" for each in molecules)]) + "\n")
    tasks, student = {"y": MoleculeTask(tmp_path / "task.csv", "regression")}, GraphStudent(layers=1, width=8)
    found: dict[str, list[list[str]]] = {}
    for systems, teachers in ((["student"], ["maccs"]), (["student", "teachers"], ["maccs", "elsewhere"])):
        evaluation = Evaluation(tasks, seeds=[0, 1], systems=systems)
        evaluation.prepare([open_corpus(corpus, teachers)], Settings(workers=1))
        keep = tmp_path / "-".join(systems)
        keep.mkdir()
        evaluation.run({"student": student}, "cpu", quiet=True, keep=keep)
        for path in sorted((keep / "predictions").glob("*.npz")):
            kept = np.load(path)
            items = json.loads(kept["items"].tobytes())
            found.setdefault(path.name, []).append(
                [items[row] for part in ("train", "valid", "test") for row in kept[part]]
            )
        if "teachers" not in systems:
            np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(39, 3)).astype(np.float32))
            (tmp_path / "e.ids.txt").write_text("\n".join(molecules[:7] + molecules[8:]) + "\n")
            for place in (corpus, evaluation.prepared["y"].folder):
                import_(place, "elsewhere", tmp_path / "e.npy", key="item")
    assert len(found) == 2
    for alone, beside in found.values():
        assert len(alone) == 40
        assert beside == [each for each in alone if each != molecules[7]]


def test_test_rows_that_stand_in_the_corpus_are_counted_and_left_out_when_asked(tmp_path: Path):
    from cache_tools.building.corpus import build
    from cache_tools.corpora.base import Items
    from cache_tools.inputs import MoleculeGraph
    from cache_tools.teachers.molecule import Maccs

    chains = ["C" * n + "O" for n in range(1, 61)]
    corpus = build(tmp_path, "c", Items(chains[:30], "molecule"), {"maccs": Maccs()}, {"graph": MoleculeGraph()})
    rows = [f"O{'C' * n},{n}" for n in range(1, 61)]  # the same molecules, written the other way round
    (tmp_path / "task.csv").write_text("\n".join(["smiles,y", *rows]) + "\n")
    tasks = {"y": MoleculeTask(tmp_path / "task.csv", "regression")}
    found = {}
    for exclude in (False, True):
        evaluation = Evaluation(tasks, seeds=[0], systems=["teachers"], exclude_seen=exclude)
        evaluation.prepare([open_corpus(corpus, ["maccs"])], Settings(workers=1))
        (found[exclude],) = evaluation.run({}, "cpu")
    assert found[False].test_rows == 6
    assert 0 < found[False].seen_rows == found[True].seen_rows < 6
    assert found[True].test_rows == 6 - found[True].seen_rows


@pytest.fixture(scope="module")
def chains(tmp_path_factory) -> Path:
    """A corpus of two teachers, a task, and a run whose checkpoint is that of its student at the start."""
    from cache_tools.building.corpus import build
    from cache_tools.corpora.base import Items
    from cache_tools.inputs import MoleculeGraph
    from cache_tools.teachers.molecule import Maccs, MorganCounts

    folder = tmp_path_factory.mktemp("chains")
    molecules = [f"{'C' * n}{end}" for n in range(1, 21) for end in ("O", "N", "Cl", "c1ccccc1")]
    teachers = {"maccs": Maccs(), "morgan": MorganCounts(dim=64)}
    build(folder, "c", Items(molecules, "molecule"), teachers, {"graph": MoleculeGraph()}, Settings(workers=1))
    lines = [f"{'C' * n}{end},{n + 3 * (end == 'F')}" for n in range(1, 31) for end in ("F", "S")]
    (folder / "task.csv").write_text("\n".join(["smiles,y", *lines]) + "\n")
    config = {"data": {"corpus": str(folder / "c"), "batch_size": 16}, "model": {"student": STUDENT}}
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(5)
    _, model = rebuild_run(config, folder / "run" / "config.yaml")
    state = {"state_dict": model.state_dict(), "epoch": 0, "global_step": 0}
    torch.save(state, folder / "run" / "checkpoints" / "best.ckpt")
    return folder


def test_students_from_elsewhere_are_systems_like_its_own(chains: Path):
    checkpoint = chains / "run" / "checkpoints" / "best.ckpt"
    export(chains / "run" / "export", checkpoint)
    made = Evaluation(
        {"y": MoleculeTask(chains / "task.csv", "regression")},
        seeds=[0],
        systems=["student"],
        students={"exported": chains / "run" / "export"},
    )
    made.prepare([open_corpus(chains / "c", ["maccs", "morgan"])], Settings(workers=1))
    student = load_student(chains / "run" / "export").network.module
    scores = {record.system: record.score for record in made.run({"student": student}, "cpu", quiet=True)}
    assert scores["exported"] == pytest.approx(scores["student"], abs=0.01)  # float16 columns
    costs = made.costs({"student": student}, "cpu")
    assert costs["exported"].parameters == costs["student"].parameters == sum(p.numel() for p in student.parameters())


def test_the_principal_components_are_those_of_the_corpus_and_as_many_as_the_student_has(chains: Path):
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    part = open_corpus(chains / "c", ["maccs", "morgan"])
    dense = [np.asarray(column.rows(torch.arange(80)).float()) for column in part.teachers.values()]
    scale = StandardScaler().fit(np.concatenate(dense, 1))
    expected = PCA(12).fit(scale.transform(np.concatenate(dense, 1)))
    evaluation = Evaluation(
        {"y": MoleculeTask(chains / "task.csv", "regression")}, seeds=[0], systems=["pca", "concatenated"]
    )
    evaluation.prepare([part], Settings(workers=1))
    prepared = evaluation.prepared["y"]
    found = prepared.embed(["pca", "concatenated"], {}, prepared.reduction(12), "cpu").systems
    wanted = expected.transform(scale.transform(found["concatenated"][1]))
    np.testing.assert_allclose(np.abs(found["pca"][1]), np.abs(wanted), rtol=1e-2, atol=1e-2)  # signs are free
    assert found["concatenated"][1].shape == (60, 167 + 64)


def test_a_student_that_began_with_weights_is_judged_with_them_and_without(tmp_path: Path):
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
    BertModel(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    spec = {
        "class_path": "distill.students.text.TextStudent",
        "init_args": {"model": str(tmp_path / "bert"), "pretrained": True},
    }
    student = TextStudent(str(tmp_path / "bert"))
    found = undistilled(student, spec)
    assert set(found) == {"untrained", "start"}
    states = {name: each.state_dict() for name, each in {**found, "student": student}.items()}
    key = "network.embeddings.word_embeddings.weight"
    assert torch.equal(states["start"][key], states["student"][key])
    assert not torch.equal(states["untrained"][key], states["student"][key])
    new = {**spec, "init_args": {"model": "bert", "pretrained": True, "config": small}}
    assert set(undistilled(TextStudent("bert", config=small), new)) == {"untrained"}


def test_the_batch_norms_of_random_weights_have_the_statistics_of_the_corpus(chains: Path):
    torch.manual_seed(0)
    part, student = open_corpus(chains / "c", ["maccs"]), GraphStudent(layers=2, width=16, dim=12, dropout=0.5)
    before = copy.deepcopy(student.state_dict())
    done = calibrated(student, [part], "cpu")
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # what each norm reads of all rows
    twin = copy.deepcopy(student).eval()
    for name, module in twin.named_modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.train()
            module.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: (x[0].mean(0), x[0].var(0))}))
    with torch.no_grad():
        twin({"graph": part.featuriser.unpack(part.inputs.rows(torch.arange(80)))})
    assert len(seen) == 4
    for name, (mean, var) in seen.items():
        torch.testing.assert_close(done.get_submodule(name).running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(done.get_submodule(name).running_var, var, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in done.modules())
    for key, value in done.state_dict().items():
        if "running" not in key and "tracked" not in key:
            torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    for key, value in student.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    again = calibrated(done, [part], "cpu").state_dict()
    torch.testing.assert_close(again, done.state_dict())


def test_a_student_without_batch_norms_is_not_changed(chains: Path):
    student = GraphStudent(layers=2, width=16, dim=12, norm="layer")
    assert calibrated(student, [open_corpus(chains / "c", ["maccs"])], "cpu") is student


def test_only_the_untrained_student_of_a_probe_is_calibrated(chains: Path):
    torch.manual_seed(0)
    student = GraphStudent(layers=2, width=16, dim=12)
    evaluation = Evaluation({"y": MoleculeTask(chains / "task.csv", "regression")}, seeds=[0])
    evaluation.prepare([open_corpus(chains / "c", ["maccs"])], Settings(workers=1))
    scores = {}
    for norms in ("unseen", "seen"):
        if norms == "seen":
            student = calibrated(student, evaluation.corpora, "cpu")
        records = evaluation.run({"student": student, "untrained": student, "start": student}, "cpu", quiet=True)
        scores[norms] = {
            record.system: record.score for record in records if record.system in ("student", "untrained", "start")
        }
    assert scores["unseen"]["student"] == scores["unseen"]["start"] != scores["unseen"]["untrained"]
    assert scores["unseen"]["untrained"] == pytest.approx(scores["seen"]["untrained"])
    assert scores["seen"]["student"] == pytest.approx(scores["seen"]["untrained"])


def test_two_systems_of_one_name_are_refused(chains: Path):
    part = open_corpus(chains / "c", ["maccs"])
    for name in ("maccs", "student"):
        evaluation = Evaluation({"y": MoleculeTask(chains / "task.csv", "regression")}, students={name: chains / "run"})
        with pytest.raises(ConfigError, match=f"two systems are called {name}"):
            evaluation.prepare([part])


def test_a_checkpoint_among_the_probed_students_is_refused_with_the_command_that_exports_it(chains: Path):
    corpora = [open_corpus(chains / "c", ["maccs"])]
    checkpoint = chains / "run" / "checkpoints" / "best.ckpt"
    for place, message in (
        (checkpoint, rf"probe.students.mine is the file .*`distill export --ckpt_path {checkpoint}`"),
        (chains / "nowhere", "no export at .*nowhere: .*make one with `distill export`"),
    ):
        evaluation = Evaluation({"y": MoleculeTask(chains / "task.csv", "regression")}, students={"mine": place})
        with pytest.raises(ConfigError, match=message):
            evaluation.prepare(corpora, Settings(workers=1))


def test_validation_rows_are_scored_when_asked_and_the_test_rows_stay_unseen(chains: Path):
    task = MoleculeTask(chains / "task.csv", "regression")
    keys, _ = task.load()
    parts, rows = task.split("random", 0, keys), {}
    for score_on in ("test", "validation"):
        evaluation = Evaluation({"y": task}, seeds=[0], systems=["teachers"], score_on=score_on)
        evaluation.prepare([open_corpus(chains / "c", ["maccs"])], Settings(workers=1))
        keep = chains / score_on
        keep.mkdir()
        evaluation.run({}, "cpu", quiet=True, keep=keep)
        kept = np.load(keep / "predictions" / "y-random-0.npz")
        items = json.loads(bytes(kept["items"]))
        rows[score_on] = {part: {items[row] for row in kept[part]} for part in ("train", "valid", "test")}
    train, valid, test = ({keys[row] for row in part} for part in parts)
    assert rows["test"] == {"train": train, "valid": valid, "test": test}
    assert rows["validation"]["test"] == valid
    assert rows["validation"]["train"] | rows["validation"]["valid"] == train
    assert len(rows["validation"]["valid"]) == len(train) // 10


def test_what_a_checkpoint_is_chosen_by_is_not_what_it_is_tested_on(chains: Path):
    class Watched(MoleculeTask):
        def split(self, name, seed, items):
            parts = super().split(name, seed, items)
            self.tested = {items[row] for row in parts[2]}
            return parts

    task = Watched(chains / "task.csv", "regression")
    during = ProbeDuring(Evaluation({"y": task}, every=1)).evaluation
    during.prepare([open_corpus(chains / "c", ["maccs", "morgan"])], Settings(workers=1))
    student = load_student(chains / "run" / "export").network.module
    during.run({"student": student}, "cpu", quiet=True, keep=chains)
    (path,) = (chains / "predictions").glob("y-random-0.npz")
    kept = np.load(path)
    items = json.loads(bytes(kept["items"]))
    used = [items[row] for part in ("train", "valid", "test") for row in kept[part]]
    assert len(used) == len(set(used)) == 54
    assert not task.tested & set(used)


@pytest.fixture
def read_only(chains: Path, tmp_path: Path):
    """The corpus of ``chains``, mounted so that nothing can be written."""
    original, place = tmp_path / "c", tmp_path / "read-only"
    shutil.copytree(chains / "c", original, ignore=shutil.ignore_patterns("tasks", "seen-*"))
    place.mkdir()
    mount = ["mount", "--bind", "-o", "ro", str(original), str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a folder is not permitted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_cache_is_probed_with_another_folder_for_its_tasks(chains: Path, read_only: Path, tmp_path: Path):
    tasks, student = {"y": MoleculeTask(chains / "task.csv", "regression")}, GraphStudent(layers=1, width=8)
    corpora = [open_corpus(read_only, ["maccs", "morgan"])]
    with pytest.raises(
        CacheError, match=r"read-only/tasks: .*\(Read-only file system\): name another one with --probe.cache"
    ):
        Evaluation(tasks, seeds=[0]).prepare(corpora, Settings(workers=1))
    scores = []
    for cache in (tmp_path / "elsewhere" / "kept", None):
        evaluation = Evaluation(tasks, seeds=[0], cache=cache)
        evaluation.prepare(corpora if cache else [open_corpus(chains / "c", ["maccs", "morgan"])], Settings(workers=1))
        scores.append([(record.system, record.score) for record in evaluation.run({"student": student}, "cpu", quiet=True)])
    assert scores[0] == scores[1]
    assert len(list((tmp_path / "elsewhere" / "kept").rglob("seen-*.npz"))) == 2
    assert not (read_only / "tasks").exists()
    assert ProbeDuring(Evaluation(tasks, every=1, cache=tmp_path)).evaluation.cache == tmp_path


def test_a_read_only_cache_that_holds_the_tasks_needs_no_other_folder(
    chains: Path, read_only: Path, tmp_path: Path, caplog
):
    tasks = {"y": MoleculeTask(chains / "task.csv", "regression")}
    Evaluation(tasks, seeds=[0]).prepare([open_corpus(tmp_path / "c", ["maccs"])], Settings(workers=1))
    (next((tmp_path / "c").glob("seen-*.npz"))).unlink()
    evaluation = Evaluation(tasks, seeds=[0])
    evaluation.prepare([open_corpus(read_only, ["maccs"])], Settings(workers=1))
    assert evaluation.prepared["y"].teachers == ["maccs"]
    assert "npz is not kept, the next test computes it again" in caplog.text


def test_fingerprints_are_a_system_of_molecules_that_are_no_teachers_and_stand_beside_the_student(chains: Path):
    from rdkit.Chem import Descriptors, MolFromSmiles
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    systems = ["student", "fingerprints", "student+fingerprints"]
    evaluation = Evaluation({"y": MoleculeTask(chains / "task.csv", "regression")}, seeds=[0], systems=systems)
    evaluation.prepare([open_corpus(chains / "c", ["maccs"])], Settings(workers=1))
    student = GraphStudent(layers=1, width=8, dim=6)
    prepared = evaluation.prepared["y"]
    embedded = prepared.embed(systems, {"student": student}, None, "cpu")
    found = {name: x for name, (_, x) in embedded.systems.items()}
    assert list(found) == systems
    molecules = [MolFromSmiles(key) for key in embedded.keys]
    counts = np.stack([GetMorganGenerator(radius=2, fpSize=1024).GetCountFingerprintAsNumPy(each) for each in molecules])
    np.testing.assert_allclose(found["fingerprints"][:, :1024], np.log1p(counts), rtol=2e-3)
    weight = 1024 + list(dict(Descriptors.descList)).index("MolWt")
    expected = [Descriptors.MolWt(each) for each in molecules]
    assert np.corrcoef(found["fingerprints"][:, weight], expected)[0, 1] > 0.999
    beside = np.concatenate([found["student"], found["fingerprints"]], 1)
    np.testing.assert_array_equal(found["student+fingerprints"], beside)
    costs = evaluation.costs({"student": student}, "cpu")
    assert {name: cost.dim for name, cost in costs.items()} == {name: x.shape[1] for name, x in found.items()}
    assert costs["student+fingerprints"].per_second < min(costs[name].per_second for name in systems[:2])
    assert costs["student+fingerprints"].parameters == costs["student"].parameters
    alone = Evaluation(evaluation.tasks, seeds=[0], systems=["student+fingerprints"])
    alone.prepare([open_corpus(chains / "c", ["maccs"])], Settings(workers=1))
    assert [record.kind for record in alone.run({"student": student}, "cpu", quiet=True)] == ["student+fingerprints"]


def test_prefixes_are_systems_computed_from_the_students_own_embedding(chains: Path):
    tasks, systems = {"y": MoleculeTask(chains / "task.csv", "regression")}, ["student", "prefixes"]
    student, passes = GraphStudent(layers=1, width=8, dim=6), []
    student.register_forward_hook(lambda *_: passes.append(1))
    counted = []
    for dims in ([], [2, 4]):
        evaluation = Evaluation(tasks, seeds=[0], systems=systems)
        evaluation.prepare([open_corpus(chains / "c", ["maccs"])], Settings(workers=1))
        passes.clear()
        found = evaluation.prepared["y"].embed(systems, {"student": student}, None, "cpu", dims).systems
        counted.append(len(passes))
    assert counted[0] == counted[1], "no second pass"
    assert {name: kind for name, (kind, _) in found.items()} == {
        "student": "student",
        "student[:2]": "prefixes",
        "student[:4]": "prefixes",
    }
    np.testing.assert_array_equal(found["student[:2]"][1], found["student"][1][:, :2])
    records = evaluation.run({"student": student}, "cpu", quiet=True, dims=[2, 4])
    assert {record.system for record in records} == set(found)
    costs = evaluation.costs({"student": student}, "cpu", [2, 4])
    assert {name: cost.dim for name, cost in costs.items()} == {"student": 6, "student[:2]": 2, "student[:4]": 4}
    assert costs["student[:2]"].per_second == costs["student"].per_second
    alone = Evaluation(tasks, seeds=[0], systems=["prefixes"])
    alone.prepare([open_corpus(chains / "c", ["maccs"])], Settings(workers=1))
    assert {record.kind for record in alone.run({"student": student}, "cpu", quiet=True, dims=[2])} == {"prefixes"}


def test_molecules_are_featurised_once_when_a_teacher_is_a_fingerprint(tmp_path: Path):
    from cache_tools.building.corpus import build
    from cache_tools.corpora.base import Items
    from cache_tools.inputs import MoleculeGraph
    from cache_tools.teachers.molecule import MorganCounts

    corpus = build(tmp_path, "c", Items(SMILES, "molecule"), {"counts": MorganCounts()}, {"graph": MoleculeGraph()})
    (tmp_path / "task.csv").write_text("smiles,y\nCCO,1\nCCN,2\nCCC,3\nCCCC,4\n")
    tasks = {"y": MoleculeTask(tmp_path / "task.csv", "regression")}
    for systems in (["fingerprints"], ["teachers", "fingerprints"]):
        evaluation = Evaluation(tasks, systems=systems)
        evaluation.prepare([open_corpus(corpus, ["counts"])], Settings(workers=1))
        prepared = evaluation.prepared["y"]
        assert prepared.others == {"fingerprints": ["counts", "fingerprints-RdkitDescriptors"]}
        columns = sorted(path.name for path in (prepared.folder / "teachers").iterdir())
        assert columns == ["counts", "fingerprints-RdkitDescriptors"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Path:
    """A fitted run of texts whose student began with the weights of a saved BERT, and a task."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from cache_tools.building.corpus import build
    from cache_tools.corpora.base import Items
    from cache_tools.inputs import TokenIds
    from distill.cli import main

    folder = tmp_path_factory.mktemp("lines")
    words = ["[PAD]", "[UNK]", "the", "film", "is", "good", "bad", "dull", "fine"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder / "words")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
    BertModel(BertConfig(**small)).save_pretrained(folder / "bert")
    random = np.random.default_rng(0)
    texts = sorted({" ".join(random.choice(words[2:], random.integers(2, 6))) for _ in range(90)})
    inputs = {"tokens": TokenIds(str(folder / "words"), 16)}
    build(folder, "c", Items(texts, "text"), {"length": Length()}, inputs, Settings(workers=1))
    rows = [f"{text},{int('good' in text)}" for text in texts]
    (folder / "task.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    init_args = {"model": str(folder / "bert"), "pretrained": True, "dim": 8}
    task = {"class_path": "distill.evaluation.tasks.TextTask", "init_args": {"path": str(folder / "task.csv")}}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "log_every_n_steps": 1}
    config = {
        "run": str(folder / "run"),
        "trainer": {"max_epochs": 2, **quiet},
        "data": {"corpus": str(folder / "c"), "batch_size": 16, "held_out": 16},
        "model": {
            "student": {"class_path": "distill.students.text.TextStudent", "init_args": init_args},
            "head": {"class_path": "distill.heads.MseHead"},
            "student_lr": 1e-2,
        },
        "probe": {"splits": ["own"], "seeds": [0], "tasks": {"good": task}},
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(folder / "fit.yaml")])
    main(["test", "--run", str(folder / "run")])
    return folder


class Length(Teacher):
    modality = "text"
    dim = 3

    def embed(self, items):
        return np.array([[len(item), item.count("good"), item.count("is")] for item in items], np.float32)


def test_a_fit_keeps_the_weights_that_it_began_with_and_the_test_judges_them(lines: Path):
    from transformers import BertModel

    run = RunFolder(lines / "run")
    states = {path.stem: student_of(read_checkpoint(path)) for path in (run.start, run.best)}
    key = "network.embeddings.word_embeddings.weight"
    bert = BertModel.from_pretrained(lines / "bert").embeddings.word_embeddings.weight
    torch.testing.assert_close(states["start"][key], bert, rtol=0, atol=0)
    assert not torch.equal(states["best"][key], bert)
    content = json.loads(run.results.read_text())
    kinds = {record["system"] for record in content["records"]}
    assert kinds == {"student", "untrained", "start", "length", "concatenated", "pca", "tokens"}
    assert content["costs"]["tokens"]["parameters"] == 9 * 16
    assert content["costs"]["tokens"]["dim"] == 16
    assert content["costs"]["start"]["parameters"] == content["costs"]["student"]["parameters"] > 9 * 16


def test_the_start_is_what_was_saved_also_where_the_configuration_would_give_another(lines: Path):
    config = yaml.safe_load((lines / "run" / "config.yaml").read_text())
    saved = student_of(read_checkpoint(RunFolder(lines / "run").start))
    torch.manual_seed(77)  # another linear map to the width of 8
    _, model = rebuild_run(config, lines / "run" / "config.yaml")
    spec = config["model"]["student"]
    assert not torch.equal(model.student.project.weight, saved["project.weight"])
    found = undistilled(model.student, spec, [open_corpus(lines / "c", None)], saved)
    assert torch.equal(found["start"].project.weight, saved["project.weight"])
    assert set(found) == {"untrained", "start", "tokens"}


def test_a_teacher_with_the_name_of_a_system_is_refused_before_a_fit_begins(lines: Path, tmp_path: Path):
    from cache_tools.building.corpus import add_column
    from distill.cli import main

    add_column(lines / "c", "start", Length())
    run = tmp_path / "refused"
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(lines / "fit.yaml"), "--data.teachers", "[start]", "--run", str(run)])
    assert "two systems are called start: give the teacher's column" in str(stop.value.code)
    assert "these are taken: student, prefixes, untrained, start, teachers," in str(stop.value.code)
    assert not run.exists()


def test_an_encoder_with_weights_inside_a_mixed_student_is_a_start(lines: Path):
    init_args = {"encoders": {"text": {"class_path": "distill.students.text.TextStudent"}}, "dim": 8}
    student = MixedStudent({"text": TextStudent(str(lines / "bert"))}, dim=8)
    for pretrained in (True, False):
        init_args["encoders"]["text"]["init_args"] = {"model": str(lines / "bert"), "pretrained": pretrained}
        spec = {"class_path": "distill.students.mixed.MixedStudent", "init_args": init_args}
        assert starts_at_random(student, spec) is not pretrained
    assert student.random_start(init_args)["encoders"]["text"]["init_args"]["pretrained"] is False


def test_a_fit_from_random_weights_keeps_no_start():
    spec = {"class_path": STUDENT["class_path"], "init_args": {**STUDENT["init_args"]}}
    student = GraphStudent(**STUDENT["init_args"])
    assert starts_at_random(student, spec)
    assert list(undistilled(student, spec)) == ["untrained"]


def test_tokens_are_the_mean_of_the_table_s_vectors_weighted_by_rarity():
    random = np.random.default_rng(0)
    table, counts = random.normal(size=(5, 3)).astype(np.float32), np.array([0, 900, 99, 1, 0])
    texts = [[1, 2, 2], [3], [4, 0, 1, 1]]
    expected = []
    for text in texts:
        weights = [1e-3 / (1e-3 + counts[token] / 1000) for token in text]
        expected.append(sum(weight * table[token] for weight, token in zip(weights, text, strict=True)) / len(text))
    rows = Ragged(torch.tensor(sum(texts, []), dtype=torch.int32), torch.tensor([3, 1, 4]), 4)
    student = TokenMean("tokens", torch.from_numpy(table), torch.from_numpy(counts))
    np.testing.assert_allclose(student({"tokens": {"tokens": rows}}), expected, rtol=1e-5)


def test_scores_of_version_0_1_are_read_with_the_name_that_the_start_has_now():
    record = Record("pretrained", "pretrained", "t", "measured", "own", 0, "r2", 0.5, 10)
    assert (record.system, record.kind) == ("start", "start")
    assert Evaluation({}, systems=["student", "pretrained"]).systems == ["student", "start"]


def test_folds_give_one_score_and_a_prediction_for_each_row(chains: Path):
    probes = {"regression": [RidgeProbe(), KernelRidgeProbe()]}
    evaluation = Evaluation(
        {"y": MoleculeTask(chains / "task.csv", "regression")}, folds=5, probes=probes, systems=["teachers"]
    )
    evaluation.prepare([open_corpus(chains / "c", ["maccs"])], Settings(workers=1))
    keep = chains / "folds"
    keep.mkdir()
    records = evaluation.run({}, "cpu", quiet=True, keep=keep)
    assert [(record.task, record.probe, record.folds, record.test_rows) for record in records] == [
        ("y linear", "linear", 5, 60),
        ("y rbf", "rbf", 5, 60),
    ]
    for record in records:
        kept = np.load(keep / "predictions" / f"{safe_name(record.task)}-random-0.npz")
        scores = []
        for number in range(5):
            test = kept[f"test/{number}"]
            place = np.flatnonzero(np.isin(kept["test"], test))
            assert kept["test"][place].tolist() == test.tolist()
            assert not set(test) & set(kept[f"train/{number}"])
            scores.append(r2_score(kept["labels"][test], kept["predicted/maccs"][place]))
        assert record.score == pytest.approx(np.mean(scores))
        assert record.beside.keys() == {"rmse"}


def test_rows_with_a_mark_are_scored_beside_the_others(chains: Path):
    rows = (chains / "task.csv").read_text().splitlines()
    marked = [f"{row},{n % 2},{'test' if n % 3 == 0 else 'train'}" for n, row in enumerate(rows[1:])]
    (chains / "ace.csv").write_text("\n".join(["smiles,y,cliff,split", *marked]) + "\n")
    task = MoleculeTask(chains / "ace.csv", "regression", split="split", mark=["cliff"])
    evaluation = Evaluation({"ace": task}, splits=["own"], seeds=[0, 1], systems=["teachers"])
    evaluation.prepare([open_corpus(chains / "c", ["maccs"])], Settings(workers=1))
    keep = chains / "marks"
    keep.mkdir()
    (record,) = evaluation.run({}, "cpu", quiet=True, keep=keep)
    kept = np.load(keep / "predictions" / "ace-own-0.npz")
    items = json.loads(bytes(kept["items"]))
    cliff = np.array([task.marks()["cliff"][task.load()[0].index(item)] for item in items])
    test, error = kept["test"], kept["predicted/maccs"] - kept["labels"][kept["test"]]
    assert 0 < cliff[test].sum() < len(test)
    assert record.beside["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert record.beside["rmse cliff"] == pytest.approx(np.sqrt((error[cliff[test]] ** 2).mean()))
    assert record.beside.keys() == {"rmse", "rmse cliff", "r2 cliff"}


def test_labels_apart_are_tasks_of_their_own_with_the_scores_that_each_has_alone(chains: Path):
    rows = (chains / "task.csv").read_text().splitlines()
    more = [f"{row},{'' if n % 4 == 0 else 7 * n % 31}" for n, row in enumerate(rows[1:])]  # a quarter has no z
    (chains / "two.csv").write_text("\n".join([f"{rows[0]},z", *more]) + "\n")

    def probed(**options):
        task = MoleculeTask(chains / "two.csv", "regression", **options)
        evaluation = Evaluation({"t": task}, folds=5, systems=["teachers"])
        evaluation.prepare([open_corpus(chains / "c", ["maccs"])], Settings(workers=1))
        return evaluation.run({}, "cpu", quiet=True)

    apart, together = probed(apart=True), probed()
    known = len(more) - len(more[::4])
    assert [(record.task, record.test_rows) for record in apart] == [("t y", len(more)), ("t z", known)]
    for record, target in zip(apart, ("y", "z"), strict=True):
        assert record.score == pytest.approx(probed(targets=[target])[0].score, abs=1e-6)
    assert together[0].score == pytest.approx(np.mean([record.score for record in apart]))
