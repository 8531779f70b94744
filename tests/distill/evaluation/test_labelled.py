import csv
import gzip
import io
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.base import Items
from cache_tools.errors import ConfigError, CorpusError
from cache_tools.format import store
from cache_tools.inputs import Featuriser
from cache_tools.teachers.base import Teacher
from distill.data.columns import open_corpus
from distill.evaluation.probes import PROBES, KnnProbe, SoftmaxProbe
from distill.evaluation.protocol import Evaluation
from distill.evaluation.tasks import IdxTask, ImageTask, MoleculeTask, TextPairTask, TextTask
from distill.evaluation.tasks.base import distinct
from distill.students.base import Student

FRUITS = ["apple", "banana", "cherry"]


def table(folder: Path, rows: list[dict[str, str]], name: str = "t.csv") -> Path:
    opened = gzip.open if name.endswith(".gz") else open
    with opened(folder / name, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def texts(count: int, splits=lambda row: "", label=lambda row: FRUITS[row % 3]) -> list[dict[str, str]]:
    return [{"text": f"{label(row)} {row}", "label": label(row), "split": splits(row)} for row in range(count)]


def thirds(row: int) -> str:
    return ["train", "validation", "test"][row % 10 // 4]  # 40 %, 40 %, 20 %


def split_of(task, name="own", seed=0):
    keys, labels = task.load()
    return keys, labels, task.split(name, seed, keys)


# --------------------------------------------------------------------------- splits


@pytest.mark.parametrize("names", [["train", "validation", "test"], ["Train ", "dev", "TEST"], ["train", "val", "test"]])
def test_rows_go_where_their_file_says_whatever_the_seed(tmp_path, names):
    path = table(tmp_path, texts(50, lambda row: names[row % 10 // 4]), "t.csv.gz")
    for seed in (0, 5):
        _, _, parts = split_of(TextTask(path), seed=seed)
        assert [part.tolist() for part in parts] == [[r for r in range(50) if r % 10 // 4 == k] for k in range(3)]


def test_without_validation_rows_the_seed_takes_a_tenth_of_the_training_rows(tmp_path):
    path = table(tmp_path, texts(100, lambda row: "test" if row % 5 == 0 else "train"))
    _, _, (train, valid, test) = split_of(TextTask(path))
    assert test.tolist() == list(range(0, 100, 5))
    assert len(valid) == 8
    assert sorted([*train, *valid]) == [row for row in range(100) if row % 5]
    assert sorted(split_of(TextTask(path))[2][1]) == sorted(valid)
    assert sorted(split_of(TextTask(path), seed=1)[2][1]) != sorted(valid)


def test_training_and_validation_rows_alone_are_judged_on_the_validation_rows(tmp_path):
    path = table(tmp_path, texts(100, lambda row: "val" if row % 5 == 0 else "train"))
    train, valid, test = split_of(TextTask(path))[2]
    assert test.tolist() == list(range(0, 100, 5))
    assert len(valid) == 8
    assert sorted([*train, *valid]) == [row for row in range(100) if row % 5]


@pytest.mark.parametrize("column", ["empty", "none"])
def test_without_split_names_the_seed_cuts_and_copies_stay_on_one_side(tmp_path, column):
    rows = texts(100) * 3
    if column == "none":
        rows = [{"text": row["text"], "label": row["label"]} for row in rows]
    task = TextTask(table(tmp_path, rows))
    keys, _, parts = split_of(task)
    assert [len(part) for part in parts] == [240, 30, 30]
    assert sorted(np.concatenate(parts)) == list(range(300))
    train, valid, test = ({keys[row] for row in part} for part in parts)
    assert not (train & valid or train & test or valid & test)
    assert all(np.array_equal(a, b) for a, b in zip(parts, split_of(task)[2], strict=True))
    assert not np.array_equal(parts[2], split_of(task, seed=1)[2][2])


def test_training_and_validation_rows_that_are_also_test_rows_are_left_out(tmp_path):
    rows = texts(20, thirds)
    rows += [dict(rows[9], split="train"), dict(rows[8], split="validation"), dict(rows[8], split="test")]
    train, valid, test = split_of(TextTask(table(tmp_path, rows)))[2]
    assert test.tolist() == [8, 9, 18, 19, 22]
    assert 20 not in train
    assert 21 not in valid
    assert len(train) + len(valid) == 16


def test_a_pair_counts_as_a_copy_only_as_a_whole(tmp_path):
    rows = [
        {"text1": "a", "text2": "b", "score": "1", "split": "test"},
        {"text1": "a", "text2": "b", "score": "1", "split": "train"},
        {"text1": "a", "text2": "c", "score": "2", "split": "train"},
        {"text1": "d", "text2": "e", "score": "2", "split": "validation"},
    ]
    keys, labels, parts = split_of(TextPairTask(table(tmp_path, rows)))
    assert keys[0] == ("a", "b")
    assert labels.tolist() == [[1], [1], [2], [2]]
    assert [part.tolist() for part in parts] == [[2], [3], [0]]


def test_rows_that_no_system_can_read_leave_the_others_where_they_were(tmp_path):
    task = TextTask(table(tmp_path, texts(50, thirds)))
    keys, _ = task.load()
    kept = [row for row in range(50) if row % 7]
    parts = task.split("own", 0, [keys[row] for row in kept])
    assert [[kept[row] for row in part] for part in parts] == [
        [row for row in kept if thirds(row) == name] for name in ("train", "validation", "test")
    ]


def test_an_item_of_several_rows_keeps_the_split_of_each(tmp_path):
    rows = [{"text": "same", "label": name, "split": part} for name, part in [("a", "train"), ("b", "train"), ("a", "val")]]
    rows += [{"text": "other", "label": "a", "split": "test"}]
    assert [part.tolist() for part in split_of(TextTask(table(tmp_path, rows)))[2]] == [[0, 1], [2], [3]]


@pytest.mark.parametrize(("shots", "held"), [(5, 1), (10, 2), (2, 1)])
def test_k_shots_are_so_many_rows_of_each_class_and_the_files_test_rows(tmp_path, shots, held):
    task = TextTask(table(tmp_path, texts(300, thirds)))
    _, labels, (train, valid, test) = split_of(task, f"{shots}-shot")
    assert Counter(labels[train, 0]) == dict.fromkeys(range(3), shots - held)
    assert Counter(labels[valid, 0]) == dict.fromkeys(range(3), held)
    assert test.tolist() == [row for row in range(300) if thirds(row) == "test"]
    assert len({*train, *valid, *test}) == len(train) + len(valid) + len(test)
    again, other = split_of(task, f"{shots}-shot")[2], split_of(task, f"{shots}-shot", seed=1)[2]
    assert all(np.array_equal(a, b) for a, b in zip((train, valid, test), again, strict=True))
    assert set(train) != set(other[0])


def test_k_shots_of_a_rarer_class_are_all_that_there_are(tmp_path):
    rows = [*texts(100, lambda row: "test" if row >= 80 else "train"), {"text": "x", "label": "zebra", "split": "train"}]
    _, labels, (train, valid, _) = split_of(TextTask(table(tmp_path, rows)), "5-shot")
    assert Counter(labels[np.concatenate([train, valid]), 0]) == {0: 5, 1: 5, 2: 5, 3: 1}


@pytest.mark.parametrize(
    ("make", "offered"),
    [
        (lambda: TextTask(Path("t.csv")), {"own", "5-shot", "20-shot"}),
        (lambda: ImageTask(Path("t")), {"own", "5-shot", "20-shot"}),
        (lambda: TextTask(Path("t.csv"), kind="clustering"), {"own"}),
        (lambda: TextPairTask(Path("t.csv")), {"own"}),
        (lambda: TextPairTask(Path("t.csv"), kind="pairs"), {"own"}),
    ],
)
def test_what_each_task_offers(make, offered):
    names = ["own", "5-shot", "20-shot", "1-shot", "0-shot", "-shot", "5-shots", "random", "scaffold", ""]
    assert {name for name in names if make().offers(name)} == offered


def test_a_split_that_is_not_offered_says_which_are(tmp_path):
    task = TextTask(table(tmp_path, texts(10)))
    with pytest.raises(ConfigError, match="no split 'random' of a multiclass task; there are: own, and of classes 5-shot"):
        split_of(task, "random")


# --------------------------------------------------------------------------- labels


@pytest.mark.parametrize("kind", ["multiclass", "clustering"])
def test_class_names_become_numbers_in_the_order_of_the_names(tmp_path, kind):
    rows = [{"what": name, "class": name} for name in ("pear", "apple", "fig", "apple")]
    keys, labels = TextTask(table(tmp_path, rows), text="what", label="class", kind=kind).load()
    assert keys == ["pear", "apple", "fig", "apple"]
    assert labels.tolist() == [[2], [0], [1], [0]]
    assert labels.dtype == np.float64


def test_clusters_are_looked_for_among_the_test_rows_or_all_without_a_split(tmp_path):
    named = TextTask(table(tmp_path, texts(50, thirds), "named.csv"), kind="clustering")
    assert split_of(named)[2][2].tolist() == [row for row in range(50) if thirds(row) == "test"]
    bare = TextTask(table(tmp_path, texts(50)), kind="clustering")
    assert sorted(split_of(bare)[2][2]) == list(range(50))


def test_probes_are_those_given_or_left_to_the_evaluation():
    assert not TextTask(Path("t.csv")).probes
    assert [type(each) for each in ImageTask(Path("t"), probes=[KnnProbe(), SoftmaxProbe()]).probes] == [
        KnnProbe,
        SoftmaxProbe,
    ]
    metrics = {kind: probe().metric for kind, probe in PROBES.items()}
    assert (metrics["clustering"], metrics["similarity"], metrics["multiclass"]) == ("v-measure", "spearman", "accuracy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,class\na,1\n", "no column label; its columns are: text, class"),
        ("sentence,label\na,1\n", "no column text; its columns are: sentence, label"),
        ("text,label\na,x\nb,\n", r"t\.csv line 3: .*no label"),
        ("text,label\n", "holds no rows"),
    ],
)
def test_bad_files_of_texts_say_what_to_do(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CorpusError, match=message):
        TextTask(tmp_path / "t.csv").load()


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("text1,text2\na,b\n", "similarity", "no column score; its columns are: text1, text2"),
        ("text1,score\na,1\n", "similarity", "no column text2; its columns are: text1, score"),
        ("text1,text2,score\na,b,1\na,b,\n", "similarity", "line 3: score is '', expected a finite number"),
        ("text1,text2,score\na,b,high\n", "similarity", "line 2: score is 'high', expected a finite number"),
        ("text1,text2,score\na,b,nan\n", "similarity", "line 2: score is 'nan', expected a"),
        ("text1,text2,score\na,b,inf\n", "similarity", "line 2: score is 'inf', expected a"),
        ("text1,text2,score\na,b,1\na,b,0.5\n", "pairs", "line 3: score is '0.5', expected 0 or 1"),
        ("text1,text2,score\na,b,2\n", "pairs", "line 2: score is '2', expected 0 or 1"),
        ("text1,text2,score\n", "pairs", "holds no rows"),
    ],
)
def test_bad_files_of_pairs_say_what_to_do(tmp_path, text, kind, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CorpusError, match=message):
        TextPairTask(tmp_path / "t.csv", kind=kind).load()


@pytest.mark.parametrize("make", [TextTask, TextPairTask, ImageTask])
def test_a_missing_file_is_named(tmp_path, make):
    with pytest.raises(CorpusError, match="no (folder or )?file .*nothing.csv"):
        make(tmp_path / "nothing.csv").load()


@pytest.mark.parametrize("bad", ["trian", ""])
def test_a_split_name_that_nobody_knows_is_shown_with_its_file_and_row(tmp_path, bad):
    rows = [*texts(9, thirds), {"text": "x", "label": "apple", "split": bad}]
    rows = [row | {"text1": row["text"], "text2": "y", "score": "1", "smiles": "C", "y": "1"} for row in rows]
    path = table(tmp_path, rows)
    message = f"{path} line 11: split is '{bad}', expected train, validation or test in all rows or in none"
    tasks = TextTask(path), TextPairTask(path), MoleculeTask(path, "regression", ["y"], split="split")
    for task in tasks:
        with pytest.raises(CorpusError, match=re.escape(message)):
            split_of(task)


def test_a_split_of_idx_files_that_nobody_knows_is_shown():
    with pytest.raises(ConfigError, match=re.escape("images names the split 'trian', expected train, validation or test")):
        IdxTask({"trian": "a", "test": "b"})


@pytest.mark.parametrize(("make", "kind"), [(TextTask, "pairs"), (TextTask, "similarity"), (TextPairTask, "multiclass")])
def test_a_kind_that_a_task_cannot_be_is_refused(tmp_path, make, kind):
    with pytest.raises(ConfigError, match=kind):
        make(tmp_path / "t.csv", kind=kind)


# --------------------------------------------------------------------------- images


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, 7 * number % 256, 40)).save(file, "PNG")
    return file.getvalue()


def images(folder: Path, names: list[str], zipped: bool = False) -> Path:
    if zipped:
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for number, name in enumerate(names):
                archive.writestr(name, picture(number))
        return folder / "images.zip"
    for number, name in enumerate(names):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(picture(number))
    return folder / "images"


def in_classes(count: int, *above: str) -> list[str]:
    return ["/".join((*above, fruit, f"{number:02}.png")) for fruit in FRUITS for number in range(count)]


@pytest.mark.parametrize("zipped", [False, True])
def test_folders_are_classes_and_the_seed_cuts_them(tmp_path, zipped):
    task = ImageTask(images(tmp_path, in_classes(20)[::-1], zipped))
    keys, labels, parts = split_of(task)
    assert keys == in_classes(20)
    assert labels[:, 0].tolist() == [number for number in range(3) for _ in range(20)]
    assert [len(part) for part in parts] == [48, 6, 6]
    assert len(np.unique(np.concatenate(parts))) == 60


@pytest.mark.parametrize("zipped", [False, True])
def test_folders_of_splits_stand_above_folders_of_classes(tmp_path, zipped):
    names = in_classes(20, "train") + in_classes(4, "Test") + in_classes(2, "val")
    keys, labels, (train, valid, test) = split_of(ImageTask(images(tmp_path, names, zipped)))
    assert sorted(keys) == sorted(names)
    assert [{keys[row].split("/")[0] for row in part} for part in (train, valid, test)] == [{"train"}, {"val"}, {"Test"}]
    assert [len(part) for part in (train, valid, test)] == [60, 6, 12]
    assert all(FRUITS[int(label)] == key.split("/")[1] for key, (label,) in zip(keys, labels, strict=True))


@pytest.mark.parametrize("zipped", [False, True])
def test_limits_keep_the_first_images_of_each_class(tmp_path, zipped):
    names = in_classes(20, "train") + in_classes(10, "test")
    task = ImageTask(images(tmp_path, names, zipped), train=5, test=3)
    keys, _ = task.load()
    assert sorted(keys) == sorted(in_classes(5, "train") + in_classes(3, "test"))
    assert len(ImageTask(task.path, test=3).load()[0]) == 60 + 9


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("limits", [{}, {"train": 3, "test": 2}])
def test_the_corpus_of_a_task_of_images_has_its_items_in_order(tmp_path, zipped, limits):
    names = in_classes(6, "train") + in_classes(4, "test")
    task = ImageTask(images(tmp_path, names, zipped), **limits)
    ids, items, _ = task.corpus("fruits").read()
    assert ids == distinct(task.load()[0])
    assert items == [picture(names.index(name)) for name in ids]
    assert task.corpus("fruits").modality == "image"
    assert task.corpus("fruits").source == "task fruits"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "b.png"], "expected images in a folder per class, found a.png"),
        (["cat/a.png", "b.png"], "expected images in a folder per class, found b.png"),
        (["cat/a.txt"], "expected images in a folder per class, found no image at all"),
    ],
)
def test_images_in_no_folder_are_refused(tmp_path, names, message):
    with pytest.raises(CorpusError, match=message):
        ImageTask(images(tmp_path, names)).load()


def test_a_stray_image_beside_the_classes_of_a_split_is_refused(tmp_path):
    names = [*in_classes(3, "train"), *in_classes(2, "test"), "test/unlabelled.png"]
    with pytest.raises(CorpusError, match=r"images in a folder per class, found test/unlabelled\.png"):
        ImageTask(images(tmp_path, names)).load()


# --------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("name", "classes", "test_rows"), [("trec", 6, 500), ("banking77", 77, 3080), ("mr", 2, 1066), ("subj", 2, 1000)]
)
@pytest.mark.workplace
def test_real_texts_with_classes(shared, name, classes, test_rows):
    task = TextTask(shared / "data" / "text" / "tasks" / f"{name}.csv.gz")
    keys, labels, parts = split_of(task)
    assert set(labels[:, 0]) == set(range(classes))
    assert abs(len(parts[2]) - test_rows) <= (0 if name in ("trec", "banking77") else 2)
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts)) >= 0.98 * len(keys)
    train, valid, test = ({keys[row] for row in part} for part in parts)
    assert not (train | valid) & test
    assert len(task.corpus(name).read()[0]) == len(distinct(keys))


@pytest.mark.parametrize(
    ("name", "label", "kind", "test_rows"),
    [("stsb", "score", "similarity", 1379), ("mrpc", "label", "pairs", 1725), ("sick", "score", "similarity", 4927)],
)
@pytest.mark.workplace
def test_real_pairs(shared, name, label, kind, test_rows):
    keys, labels, (train, valid, test) = split_of(
        TextPairTask(shared / "data" / "text" / "tasks" / f"{name}.csv.gz", label, kind)
    )
    assert abs(len(test) - test_rows) <= 5
    assert min(len(train), len(valid)) > 100
    assert np.isfinite(labels).all()
    assert all(isinstance(each, tuple) and len(each) == 2 for each in keys)


@pytest.mark.workplace
def test_real_images(shared):
    task = ImageTask(shared / "data" / "vision" / "cifar10.zip", train=20, test=10)
    keys, labels, (train, valid, test) = split_of(task)
    assert Counter(labels[train, 0].tolist() + labels[valid, 0].tolist()) == dict.fromkeys(range(10), 20)
    assert Counter(labels[test, 0].tolist()) == dict.fromkeys(range(10), 10)
    assert len(keys) == 300


# --------------------------------------------------------------------------- evaluation end to end


class Letters(Featuriser):
    modality = "text"
    fields = {"letters": ("uint8", ())}

    def featurise(self, item):
        return {"letters": np.frombuffer(item.encode(), np.uint8)}


class Oracle(Teacher):
    """Knows a text's class, and how alike two texts are: by their first word."""

    modality = "text"
    dim = 3

    def embed(self, items):
        return np.array([np.eye(3)[FRUITS.index(item.split()[0])] for item in items], np.float32)


class Noise(Teacher):
    modality = "text"
    dim = 4

    def embed(self, items):
        return np.array([np.random.default_rng(list(item.encode())).normal(size=4) for item in items], np.float32)


class LetterCounts(Student):
    input = "letters"
    dim = 2

    def embeddings(self, rows):
        import torch

        counts = rows["letters"].counts.float()
        return [torch.stack([counts, counts.square()], 1)]


@pytest.fixture(scope="module")
def fruits(tmp_path_factory):
    """A corpus of texts with a perfect and a useless teacher, and a file for each kind of task."""
    folder = tmp_path_factory.mktemp("fruits")
    items = [f"{FRUITS[row % 3]} number {row}" for row in range(30)]
    teachers = {"oracle": Oracle(), "noise": Noise()}
    corpus = build(folder, "c", Items(items, "text"), teachers, {"letters": Letters()}, Settings(workers=1))
    table(folder, texts(120, thirds), "classes.csv")
    pairs = [
        {"text1": f"{FRUITS[row % 3]} {row}", "text2": f"{FRUITS[row // 3 % 3]} {row}x", "split": thirds(row)}
        for row in range(90)
    ]
    alike = [row["text1"].split()[0] == row["text2"].split()[0] for row in pairs]
    table(folder, [row | {"score": str(5 * same)} for row, same in zip(pairs, alike, strict=True)], "similar.csv")
    table(folder, [row | {"label": str(int(same))} for row, same in zip(pairs, alike, strict=True)], "pairs.csv")
    return folder, corpus


def tasks_of(folder):
    return {
        "classes": TextTask(folder / "classes.csv"),
        "both": TextTask(folder / "classes.csv", probes=[SoftmaxProbe(), KnnProbe()]),
        "groups": TextTask(folder / "classes.csv", kind="clustering"),
        "similar": TextPairTask(folder / "similar.csv"),
        "pairs": TextPairTask(folder / "pairs.csv", "label", "pairs"),
    }


@pytest.fixture(scope="module")
def records(fruits):
    folder, corpus = fruits
    evaluation = Evaluation(tasks_of(folder), splits=["own", "5-shot"], seeds=[0, 1])
    evaluation.prepare([open_corpus(corpus, None)], Settings(workers=1))
    return evaluation.run({"student": LetterCounts(), "untrained": LetterCounts()}, "cpu")


def test_every_kind_of_task_has_its_metric(records):
    assert {(each.task, each.metric) for each in records} == {
        ("classes", "accuracy"),
        ("both linear", "accuracy"),
        ("both knn", "accuracy"),
        ("groups", "v-measure"),
        ("similar", "spearman"),
        ("pairs", "ap"),
    }
    assert {(each.system, each.kind) for each in records} == {
        ("student", "student"),
        ("untrained", "untrained"),
        ("oracle", "teachers"),
        ("noise", "teachers"),
        ("concatenated", "concatenated"),
        ("pca", "pca"),
    }
    assert {each.test_rows for each in records} == {24, 18}
    assert all(np.isfinite(each.score) for each in records)


def test_a_perfect_teacher_scores_one_and_a_useless_one_does_not(records):
    scores = {name: [each.score for each in records if each.system == name] for name in ("oracle", "noise", "student")}
    np.testing.assert_allclose(scores["oracle"], 1)
    assert max(scores["noise"]) < 0.75
    assert max(scores["student"]) < 0.75


def test_shots_are_left_out_where_a_task_does_not_offer_them(records):
    offered = {split: {each.task for each in records if each.split == split} for split in ("own", "5-shot")}
    assert offered["5-shot"] == {"classes", "both linear", "both knn"}
    assert offered["own"] == {"classes", "both linear", "both knn", "groups", "similar", "pairs"}
    assert len(records) == 6 * (6 + 2 * 3), "a data set's own split is one, whatever the seed"


def test_every_seed_and_system_stands_once(records):
    assert max(Counter((e.system, e.task, e.split, e.seed) for e in records).values()) == 1


def test_a_pairs_items_are_embedded_once_in_the_order_of_first_use(fruits, records):
    folder, corpus = fruits
    task = tasks_of(folder)["similar"]
    evaluation = Evaluation({"similar": task}, splits=["own"])
    evaluation.prepare([open_corpus(corpus, None)], Settings(workers=1))
    stored = store.read_corpus(evaluation.prepared["similar"].folder)
    assert stored.rows == len(distinct(task.load()[0])) == 180
    pairs, _ = task.load()
    in_order = list(dict.fromkeys(text for pair in pairs for text in pair))
    assert [item.decode() for item in store.read_items(evaluation.prepared["similar"].folder, 0)[1]] == in_order


def test_only_the_systems_asked_for_are_scored(fruits):
    folder, corpus = fruits
    evaluation = Evaluation(
        {"classes": tasks_of(folder)["classes"]}, splits=["own"], seeds=[0], systems=["student", "teachers"]
    )
    evaluation.prepare([open_corpus(corpus, ["oracle"])], Settings(workers=1))
    found = evaluation.run({"student": LetterCounts(), "untrained": LetterCounts()}, "cpu")
    assert [each.system for each in found] == ["student", "oracle"]


def test_items_that_cannot_be_embedded_are_left_out_for_all(fruits, tmp_path):
    rows = texts(60, thirds)
    rows[1]["text"] = rows[8]["text"] = " "
    evaluation = Evaluation({"gaps": TextTask(table(tmp_path, rows))}, splits=["own"], seeds=[0])
    evaluation.prepare([open_corpus(fruits[1], None)], Settings(workers=1))
    found = evaluation.run({"student": LetterCounts()}, "cpu")
    assert {each.test_rows for each in found} == {11}
    assert next(each.score for each in found if each.system == "oracle") == 1


@pytest.mark.filterwarnings("ignore")
def test_a_system_whose_embeddings_are_all_the_same_hides_no_other(fruits):
    class Collapsed(LetterCounts):
        def embeddings(self, rows):
            return [0 * super().embeddings(rows)[0] + 1]

    folder, corpus = fruits
    evaluation = Evaluation(tasks_of(folder), splits=["own"], seeds=[0])
    evaluation.prepare([open_corpus(corpus, None)], Settings(workers=1))
    found = evaluation.run({"student": LetterCounts(), "untrained": Collapsed()}, "cpu")
    per_task = Counter(each.task for each in found)
    assert set(per_task.values()) == {6}
    assert len(per_task) == 6


def test_a_split_that_no_task_offers_is_an_error(fruits):
    folder, corpus = fruits
    with pytest.raises(ConfigError, match="probe.splits names random, which none of the tasks .*classes.* offers"):
        Evaluation(tasks_of(folder)).prepare([open_corpus(corpus, None)])
    with pytest.raises(ConfigError, match="names 5-shot, which none of the tasks pairs offers"):
        pairs = {"pairs": tasks_of(folder)["pairs"]}
        Evaluation(pairs, splits=["own", "5-shot"]).prepare([open_corpus(corpus, None)])


def test_a_task_that_has_none_of_the_splits_is_left_out_with_a_warning(fruits, caplog):
    folder, corpus = fruits
    Evaluation(tasks_of(folder), splits=["5-shot"]).prepare([open_corpus(corpus, None)], Settings(workers=1))
    assert "task pairs is left out, it has no split 5-shot: add one that it has" in caplog.text
    assert "task classes" not in caplog.text


def test_a_task_without_a_corpus_of_its_modality_is_an_error(fruits, tmp_path):
    tasks = {"pictures": ImageTask(images(tmp_path, in_classes(2)))}
    with pytest.raises(ConfigError, match="task pictures has images, the run has no corpus of them"):
        Evaluation(tasks, splits=["own"]).prepare([open_corpus(fruits[1], None)], Settings(workers=1))


def test_a_student_of_another_column_is_an_error(fruits):
    class Other(LetterCounts):
        input = "words"

    folder, corpus = fruits
    evaluation = Evaluation({"classes": tasks_of(folder)["classes"]}, splits=["own"], seeds=[0])
    evaluation.prepare([open_corpus(corpus, None)], Settings(workers=1))
    with pytest.raises(ConfigError, match="Other reads the input column words, the data gives letters"):
        evaluation.run({"student": Other()}, "cpu")
