import gzip
import io
import logging
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cache_tools.corpora.idx import IdxImages
from cache_tools.errors import ConfigError, CorpusError
from cache_tools.items.image import decode_image
from distill.evaluation.probes import PROBES
from distill.evaluation.suites import listing, suite
from distill.evaluation.tasks import AdmetTask, IdxTask, ImageTask, TextPairTask, TextTask

SMALL = [  # several molecules of some scaffolds
    *("c1ccccc1", "Cc1ccccc1", "Clc1ccccc1", "CCO", "CCN", "c1ccncc1", "Cc1ccncc1", "C1CCCCC1", "OC1CCCCC1"),
    *("c1ccc2ccccc2c1", "Oc1ccc2ccccc2c1", "c1ccsc1", "Cc1ccsc1", "c1cc[nH]c1", "C1CCNCC1", "CN1CCNCC1", "c1ccoc1"),
    *("C1CCOC1", "c1ccc2[nH]ccc2c1", "CCCC", "CCC", "CCCCC", "CO", "CS", "CCl"),
]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_an_unknown_suite_or_folder_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match="no suite 'glue'; there are: biogen, moleculenet, tdc-admet, moleculeace, vision-transfer, text-"
    ):
        suite("glue", tmp_path)
    with pytest.raises(ConfigError, match="suite moleculenet: no folder .*nowhere: check the path"):
        suite("moleculenet", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("moleculenet", "delaney-processed.csv or esol.csv; .*pcba.csv"),
        ("biogen", "looked for ADME_public_set_3521.csv, .* .not there: biogen_hlm.csv or adme_public_set_3521.csv"),
        ("moleculeace", "looked for .csv, .jsonl, .parquet with columns smiles, split, cliff_mol, y"),
        ("tdc-admet", "NAME/train_val.csv and NAME/test.csv of TDC's admet_group .not there: caco2_wang; .*; dili"),
        ("vision-transfer", "zips or tars of CLASS/IMAGE or train/CLASS/IMAGE, and for IDX files"),
        ("text-folder", "csv, .jsonl, .parquet with columns text, label; text1, text2, score; or text1, text2, label"),
    ],
)
def test_a_folder_without_a_task_is_refused_with_what_was_looked_for(tmp_path, name, looked_for):
    write(tmp_path / "notes.txt", "nothing here")
    with pytest.raises(ConfigError, match=looked_for):
        suite(name, tmp_path)


# --------------------------------------------------------------------------- molecules

DEEPCHEM = {  # the beginning of each of DeepChem's files, with one row of values
    "delaney-processed.csv": (
        "Compound ID,ESOL predicted log solubility in mols per litre,Minimum Degree,Molecular Weight,"
        "Number of H-Bond Donors,Number of Rings,Number of Rotatable Bonds,Polar Surface Area,"
        "measured log solubility in mols per litre,smiles",
        "benzene,-1.1,2,78,0,1,0,0,-1.64,c1ccccc1",
    ),
    "SAMPL.csv": ("iupac,smiles,expt,calc", '"4-methoxy-N,N-dimethyl-benzamide",CN(C)C(=O)c1ccc(cc1)OC,-11.01,-9.6'),
    "Lipophilicity.csv": ("CMPD_CHEMBLID,exp,smiles", "CHEMBL596271,3.54,Cn1c(CN2CCN(CC2)c3ccc(Cl)cc3)nc4ccccc14"),
    "BBBP.csv": ("num,name,p_np,smiles", "1,Propanolol,1,[Cl].CC(C)NCC(O)COc1cccc2ccccc12"),
    "bace.csv": ("mol,CID,Class,Model,pIC50,MW", "CCO,BACE_1,1,Train,9.15,431.5"),
    "clintox.csv.gz": ("smiles,FDA_APPROVED,CT_TOX", "CCO,1,0"),
    "tox21.csv.gz": (",".join(f"NR-{number}" for number in range(12)) + ",mol_id,smiles", "0,1," + "," * 9 + "0,TOX1,CCO"),
    "sider.csv.gz": ("smiles," + ",".join(f'"Organ {number}, all"' for number in range(27)), "CCO" + ",1" * 27),
    "HIV.csv": ("smiles,activity,HIV_active", "CCO,CI,0"),
    "muv.csv.gz": (",".join(f"MUV-{number}" for number in range(17)) + ",mol_id,smiles", "0" + "," * 16 + ",CID1,CCO"),
    "toxcast_data.csv.gz": ("smiles," + ",".join(f"assay{number}" for number in range(617)), "CCO" + ",0" * 617),
    "pcba.csv.gz": (",".join(f"PCBA-{number}" for number in range(128)) + ",mol_id,smiles", "0," * 128 + "CID1,CCO"),
}
FIRST = {"esol": -1.64, "freesolv": -11.01, "lipophilicity": 3.54, "bbbp": 1.0, "bace": 1.0, "hiv": 0.0}


def test_deepchem_s_files_give_their_own_columns_of_labels(tmp_path, caplog):
    for name, (header, row) in DEEPCHEM.items():
        write(tmp_path / name, f"{header}\n{row}\n")
    tasks = suite("moleculenet", tmp_path)
    assert list(tasks) == list(listing("moleculenet")["tasks"])
    assert not caplog.records
    labels = {name: task.load()[1] for name, task in tasks.items()}
    assert {name: labels[name].tolist() for name in FIRST} == {name: [[value]] for name, value in FIRST.items()}
    width = {name: each.shape[1] for name, each in labels.items() if name not in FIRST}
    assert width == {"clintox": 2, "tox21": 12, "sider": 27, "muv": 17, "toxcast": 617, "pcba": 128}
    assert np.isnan(labels["tox21"][0]).sum() == 9
    regression = {name for name, task in tasks.items() if task.kind == "regression"}
    assert regression == {"esol", "freesolv", "lipophilicity"}
    assert tasks["bbbp"].load()[0] == ["[Cl].CC(C)NCC(O)COc1cccc2ccccc12"]


def test_files_that_are_not_there_are_left_out_with_one_warning(tmp_path, caplog):
    write(tmp_path / "esol.csv", "smiles,measured_log_solubility_in_mols_per_litre\nCCO,1.1\n")
    with caplog.at_level(logging.WARNING):
        assert list(suite("moleculenet", tmp_path)) == ["esol"]
    (record,) = caplog.records
    assert "left out: sampl.csv or freesolv.csv; lipophilicity.csv; bbbp.csv" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tox21.csv", "smiles,a,b\nC,1,0\n", "expected MoleculeNet's 12 columns of labels beside smiles; its 3 columns"),
        ("BBBP.csv", "smiles,permeable\nC,1\n", "column 'p_np'; its 2 columns are: smiles, permeable"),
        ("bace.csv", "mol,Class\n", "none, or it has no rows"),
    ],
)
def test_another_table_under_the_name_of_a_data_set_is_refused(tmp_path, name, text, message):
    write(tmp_path / name, text)
    with pytest.raises(ConfigError, match=message):
        suite("moleculenet", tmp_path)


ACE = "smiles,exp_mean [nM],y,cliff_mol,split"  # the columns of MoleculeACE's files


def test_moleculeace_s_files_give_values_their_own_split_and_marks_of_cliffs(tmp_path, caplog):
    rows = [
        ("CCO", 3000, -3.5, 1, "train"),
        ("CCN", 10, -1.0, 0, "train"),
        ("CCC", 1, 0.0, 1, "test"),
        ("C", 1, 0.5, 0, "test"),
    ]
    lines = [",".join(map(str, row)) for row in rows]
    write(tmp_path / "CHEMBL2047_EC50.csv", "\n".join([ACE, *lines]) + "\n")
    write(tmp_path / "other.csv.gz", "smiles,pki,cliff,split\nCCO,6.5,0,train\nCCN,7,1,test\n")
    write(tmp_path / "esol.csv", "smiles,measured log solubility in mols per litre\nCCO,1.1\n")
    write(tmp_path / "two.csv", "smiles,a,b,cliff,split\nCCO,6.5,1,0,train\n")
    tasks = suite("moleculeace", tmp_path)
    assert list(tasks) == ["CHEMBL2047_EC50", "other"]
    assert not caplog.records
    task = tasks["CHEMBL2047_EC50"]
    items, labels = task.load()
    assert labels.tolist() == [[row[2]] for row in rows]
    train, valid, test = task.split("own", 0, items)
    assert [items[row] for row in train] == ["CCO", "CCN"]
    assert (len(valid), [items[row] for row in test]) == (0, ["CCC", "C"])
    assert {name: marked.tolist() for name, marked in task.marks().items()} == {"cliff_mol": [True, False, True, False]}
    assert tasks["other"].load()[1].tolist() == [[6.5], [7.0]]


BIOGEN = (
    "Internal ID,Vendor ID,SMILES,CollectionName,LOG HLM_CLint (mL/min/kg),LOG MDR1-MDCK ER (B-A/A-B),"
    "LOG SOLUBILITY PH 6.8 (ug/mL),LOG PLASMA PROTEIN BINDING (HUMAN) (% unbound),"
    "LOG PLASMA PROTEIN BINDING (RAT) (% unbound),LOG RLM_CLint (mL/min/kg)"
)


def test_biogen_s_one_table_is_a_task_for_each_label_and_so_is_a_table_for_each(tmp_path, caplog):
    write(
        tmp_path / "one" / "ADME_public_set_3521.csv", f"{BIOGEN}\n0,1,CCO,x,0.1,0.2,,0.4,0.5,0.6\n1,2,CCN,x,1,2,3,4,5,6\n"
    )
    tasks = suite("biogen", tmp_path / "one")
    names = ("hlm", "rlm", "mdr1", "solubility", "hppb", "rppb")
    assert list(tasks) == [f"biogen_{name}" for name in names]
    first = [task.load()[1][0, 0] for task in tasks.values()]
    np.testing.assert_equal(first, [0.1, 0.6, 0.2, np.nan, 0.4, 0.5])
    assert len({task.corpus(name).scan() for name, task in tasks.items()}) == 1, "all of them share one cache"
    assert not caplog.records
    write(tmp_path / "each" / "biogen_rlm.csv.gz", "smiles,log_value\nCCO,1.5\n")
    tasks = suite("biogen", tmp_path / "each")
    assert {name: task.load()[1].tolist() for name, task in tasks.items()} == {"biogen_rlm": [[1.5]]}


@pytest.mark.workplace
def test_the_real_moleculeace_and_biogen(shared):
    folder = shared / "data" / "mol" / "tasks"
    tasks = suite("moleculeace", folder) | suite("biogen", folder)
    assert len(tasks) == 18 + 3
    assert sum(len(task.load()[0]) for name, task in tasks.items() if name.startswith("ace")) == 29_244
    assert {name: len(task.load()[0]) for name, task in tasks.items() if name.startswith("biogen")} == {
        **{"biogen_rlm": 3054, "biogen_mdr1": 2642, "biogen_hppb": 194}
    }
    items, _ = tasks["ace_chembl204_ki"].load()
    assert [len(part) for part in tasks["ace_chembl204_ki"].split("own", 0, items)] == [2201, 0, 553]


@pytest.mark.parametrize("kind", ["mol", "text", "vision"])
def test_the_configuration_of_a_modality_s_suites_names_those_that_there_are(kind, tmp_path, monkeypatch, capsys):
    """It is laid over a run's configuration: `distill test --config configs/probes/mol.yaml`."""
    from distill.cli import main

    root = Path(__file__).parents[3]
    monkeypatch.chdir(root)
    over = Path("configs", "probes", f"{kind}.yaml")
    with pytest.raises(SystemExit):
        main(["fit", "--config", f"configs/{kind}.yaml", "--config", str(over), "--print_config"])
    probe = yaml.safe_load(capsys.readouterr().out)["probe"]
    assert probe["suites"] == yaml.safe_load(over.read_text())["probe"]["suites"]
    for name in probe["suites"]:
        with pytest.raises(ConfigError, match=f"suite {name}: no task in "):
            suite(name, tmp_path)


@pytest.mark.workplace
def test_the_real_moleculenet(shared):
    tasks = suite("moleculenet", shared / "data" / "mol" / "tasks")
    shapes = {name: task.load()[1].shape for name, task in tasks.items()}
    assert shapes == {
        **{"esol": (1128, 1), "freesolv": (642, 1), "lipophilicity": (4200, 1), "bbbp": (2050, 1), "bace": (1513, 1)},
        **{"clintox": (1484, 2), "tox21": (7831, 12)},
    }
    items, _ = tasks["esol"].load()
    parts = tasks["esol"].split("scaffold", 0, items)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1128))


def admet(folder: Path, train: list[str], test: list[str], y: str = "1") -> Path:
    for name, part in (("train_val.csv", train), ("test.csv", test)):
        write(folder / name, "Drug_ID,Drug,Y\n" + "".join(f"{row},{each},{y}\n" for row, each in enumerate(part)))
    return folder


@pytest.mark.parametrize("inside", ["", "admet_group"])
def test_tdc_s_folders_are_found_with_their_kinds(tmp_path, inside, caplog):
    kinds = Counter(task["kind"] for task in listing("tdc-admet")["tasks"].values())
    assert kinds == {"regression": 9, "classification": 13}
    admet(tmp_path / inside / "caco2_wang", SMALL, ["CCO"], "-4.2")
    admet(tmp_path / inside / "herg", SMALL, ["CCO"])
    write(tmp_path / inside / "ames" / "test.csv", "Drug_ID,Drug,Y\n")
    with caplog.at_level(logging.WARNING):
        tasks = suite("tdc-admet", tmp_path)
    assert {name: (task.kind, PROBES[task.kind]().metric) for name, task in tasks.items()} == {
        "caco2_wang": ("regression", "r2"),
        "herg": ("classification", "auroc"),
    }
    assert "2 of 22 tasks" in caplog.messages[0]
    assert "; ames; " in caplog.messages[0], "without train_val.csv"
    assert tasks["caco2_wang"].load()[1].tolist() == [[-4.2]] * 26
    assert [split for split in ("own", "random", "scaffold", "5-shot") if tasks["herg"].offers(split)] == ["own"]


@pytest.mark.parametrize(
    ("seed", "valid"),  # rows that create_scaffold_split of PyTDC 1.1.15 gave for the first 20 of SMALL
    [(1, [5, 6, 16]), (2, [0, 1, 2]), (3, [7, 8, 16]), (4, [7, 8, 9, 10]), (5, [9, 10, 16])],
)
def test_a_seed_cuts_the_validation_rows_that_tdc_cuts_and_the_test_rows_stay(tmp_path, seed, valid):
    task = AdmetTask(admet(tmp_path, SMALL[:20], SMALL[20:]), "classification")
    keys, _ = task.load()
    parts = task.split("own", seed, keys)
    assert [sorted(part.tolist()) for part in parts] == [sorted(set(range(20)) - set(valid)), valid, list(range(20, 25))]


def test_rows_that_no_encoder_can_read_may_be_missing_from_a_tdc_split(tmp_path):
    task = AdmetTask(admet(tmp_path, [*SMALL[:20], "CCO"], SMALL[20:]), "classification")
    keys, _ = task.load()
    kept = [key for row, key in enumerate(keys) if row not in (4, 22)]
    train, valid, test = task.split("own", 1, kept)
    assert [kept[row] for row in test] == [key for key in SMALL[20:] if key != keys[22]]
    assert len(train) + len(valid) == 20


def test_tdc_names_the_file_of_a_bad_label(tmp_path):
    admet(tmp_path, ["CCO"], ["C"], "0.5")
    with pytest.raises(CorpusError, match=r"train_val\.csv line 2: Y is '0.5', expected 0, 1 or nothing"):
        AdmetTask(tmp_path, "classification").load()
    with pytest.raises(ConfigError, match="cannot be of kind multiclass"):
        AdmetTask(tmp_path, "multiclass")


# --------------------------------------------------------------------------- images


def picture(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def zipped(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, picture(number))


def idx(path: Path, values: np.ndarray) -> Path:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(length.to_bytes(4, "big") for length in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = head + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def digits(path: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(rows).integers(0, 256, (rows, 5, 4))
    labels = np.arange(rows) % 10
    idx(path, images)
    idx(path.with_name(path.name.replace("images-idx3", "labels-idx1")), labels)
    return images, labels


def test_folders_archives_and_idx_files_are_tasks_with_two_probes(tmp_path, caplog):
    zipped(tmp_path / "pets.zip", [f"{part}/{label}/{n}.png" for part in ("train", "test") for label in "ab" for n in "01"])
    for number in range(4):
        (tmp_path / "flowers" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "flowers" / f"class{number % 2}" / f"{number}.png").write_bytes(picture(number))
    zipped(tmp_path / "flat.zip", ["a.png"])
    write(tmp_path / "README.md", "not a task")
    digits(tmp_path / "KMNIST" / "raw" / "train-images-idx3-ubyte", 30)
    digits(tmp_path / "KMNIST" / "raw" / "t10k-images-idx3-ubyte", 20)
    digits(tmp_path / "digits_t10k-images-idx3-ubyte.gz", 40)
    with caplog.at_level(logging.WARNING):
        tasks = suite("vision-transfer", tmp_path)
    kinds = {name: type(task) for name, task in tasks.items()}
    assert kinds == {"KMNIST": IdxTask, "digits": IdxTask, "pets": ImageTask, "flowers": ImageTask}
    assert {tuple(probe.name for probe in task.probes) for task in tasks.values()} == {("linear", "knn")}
    assert [record.getMessage().partition("left out: ")[2] for record in caplog.records] == [
        "images in class folders in flat.zip"
    ]
    sizes = {name: [len(part) for part in task.split("own", 0, task.load()[0])] for name, task in tasks.items()}
    assert sizes == {"KMNIST": [27, 3, 20], "digits": [32, 4, 4], "pets": [4, 0, 4], "flowers": [3, 1, 0]}


def test_two_tasks_of_one_name_are_refused(tmp_path):
    zipped(tmp_path / "pets.zip", ["a/0.png"])
    (tmp_path / "pets" / "a").mkdir(parents=True)
    (tmp_path / "pets" / "a" / "0.png").write_bytes(picture(0))
    with pytest.raises(ConfigError, match=r"pets\.zip is a second task called pets"):
        suite("vision-transfer", tmp_path)


def test_a_damaged_archive_is_an_error_and_not_left_out(tmp_path):
    zipped(tmp_path / "good.zip", ["a/0.png"])
    write(tmp_path / "pets.zip", "PK cut")
    with pytest.raises(CorpusError, match=r"pets\.zip"):
        suite("vision-transfer", tmp_path)


def test_idx_images_keep_their_pixels_classes_and_parts(tmp_path):
    files = {part: tmp_path / f"{name}-images-idx3-ubyte.gz" for part, name in (("train", "train"), ("test", "t10k"))}
    made = {part: digits(path, rows) for (part, path), rows in zip(files.items(), (20, 10), strict=True)}
    task = IdxTask(files)
    keys, labels = task.load()
    assert labels[:, 0].tolist() == [*made["train"][1], *made["test"][1]]
    ids, items, _ = task.corpus("digits").read()
    assert ids == list(keys)
    pixels = np.stack([np.asarray(decode_image(item)) for item in items])
    np.testing.assert_array_equal(pixels, np.concatenate([made["train"][0], made["test"][0]])[..., None].repeat(3, -1))
    assert set(task.split("own", 3, keys)[2]) == set(range(20, 30))
    assert IdxImages([files["test"]]).names()[0] == "t10k-images-idx3-ubyte/0"


def test_idx_files_that_are_wrong_say_so(tmp_path):
    path = tmp_path / "x-images-idx3-ubyte"
    digits(path, 10)
    idx(tmp_path / "x-labels-idx1-ubyte", np.arange(9))
    with pytest.raises(CorpusError, match="holds 10 images and x-labels-idx1-ubyte 9 labels: not a pair"):
        IdxTask({"": path}).load()
    content = path.read_bytes()
    for wrong in (content[:-1], b"", b"\0\0\x0d\3" + content[4:], content[:9]):
        path.write_bytes(wrong)
        with pytest.raises(CorpusError, match="no IDX file of 3 axes of bytes, or it is cut short"):
            IdxTask({"": path}).load()
    (tmp_path / "x-labels-idx1-ubyte").unlink()
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="no file .*x-labels-idx1-ubyte: check the path"):
        IdxTask({"": path}).load()
    with pytest.raises(CorpusError, match=r"cut-images.*gz cannot be read"):
        list(IdxImages([write(tmp_path / "cut-images", "no gzip").rename(tmp_path / "cut-images-idx3-ubyte.gz")]).pairs())


@pytest.mark.workplace
def test_the_real_images(shared):
    tasks = suite("vision-transfer", shared / "data" / "vision")
    loaded = {name: task.load() for name, task in tasks.items()}
    assert {name: (len(keys), len(np.unique(labels))) for name, (keys, labels) in loaded.items()} == {
        "cifar10": (40_000, 10),
        "flowers12_160": (960, 12),
        "hymenoptera_160": (397, 2),
        "tiny_imagenet_train_75pc": (15_150, 202),
        "mnist": (10_000, 10),
    }
    counts = [len(part) for part in tasks["hymenoptera_160"].split("own", 0, loaded["hymenoptera_160"][0])]
    assert counts == [220, 24, 153]
    assert Counter(loaded["mnist"][1][:, 0])[1.0] == 1135, "ones among MNIST's test digits"


# --------------------------------------------------------------------------- texts


def test_tables_of_texts_are_tasks_by_their_columns(tmp_path, caplog):
    write(tmp_path / "topics.csv.gz", "id,text,label\n0,a,x\n1,b,y\n")
    write(tmp_path / "likeness.jsonl", '{"text1": "a", "text2": "b", "score": 4, "label": 1}\n')
    write(tmp_path / "same.csv", "text1,text2,label\na,b,0\n")
    write(tmp_path / "other.csv", "question,answer\na,b\n")
    write(tmp_path / "empty.csv", "text,label\n")
    write(tmp_path / "notes.txt", "text,label\na,b\n")
    with caplog.at_level(logging.WARNING):
        tasks = suite("text-folder", tmp_path)
    assert {name: (type(task), task.kind) for name, task in tasks.items()} == {
        "topics": (TextTask, "multiclass"),
        "likeness": (TextPairTask, "similarity"),
        "same": (TextPairTask, "pairs"),
    }
    assert caplog.messages[0].endswith("left out: such columns in empty.csv; such columns in other.csv")
    assert {name: task.load()[1].tolist() for name, task in tasks.items()} == {
        "topics": [[0.0], [1.0]],
        "likeness": [[4.0]],
        "same": [[0.0]],
    }


@pytest.mark.workplace
def test_the_real_texts(shared):
    tasks = suite("text-folder", shared / "data" / "text" / "tasks")
    assert {name: (task.kind, len(task.load()[0])) for name, task in tasks.items()} == {
        **{"banking77": ("multiclass", 13083), "cr": ("multiclass", 3771), "mpqa": ("multiclass", 10603)},
        **{"mr": ("multiclass", 10662), "subj": ("multiclass", 10_000), "trec": ("multiclass", 5952)},
        **{"mrpc": ("pairs", 5301), "sick": ("similarity", 9927), "stsb": ("similarity", 8628)},
    }
    assert [len(part) for part in tasks["trec"].split("own", 0, tasks["trec"].load()[0])][2] == 500
