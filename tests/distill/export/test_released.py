"""The students that come with the package: each embeds as when it was released, scores as it did, and tells all facts."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import distill
from cache_tools import ConfigError, RdkitSamples
from distill.cli import main
from distill.export.folder import RELEASED, read_config, released

STUDENTS = released()
EXPECTED = Path(__file__).with_name("released.json")  # made by `make release`
SHOWN = 8  # numbers of an embedding that are compared

TOPICS = [
    "The striker scored twice and the goalkeeper saved a penalty. | The match went to extra time. | Fans cheered as the "
    "team lifted the cup. | The coach changed both defenders at half time. | She won the tennis final in three sets. | The "
    "referee showed the captain a red card. | Our club signed a new midfielder. | He broke the record in the marathon.",
    "Fry the onions in butter until they are golden. | Add salt, pepper and a little cream to the soup. | Bake the bread "
    "for forty minutes. | The cake needs three eggs and some sugar. | Serve the pasta with fresh basil. | Marinate the "
    "chicken in lemon juice and garlic. | Stir the rice and let it simmer. | Chop the carrots and boil the potatoes.",
    "The senate voted on the new tax law. | The minister resigned after the election. | Parliament debates the budget. | "
    "Voters elected a new president. | The government signed a treaty with its neighbours. | The mayor promised lower "
    "taxes. | The party lost its majority in congress. | The court overturned the immigration policy.",
]


def texts() -> tuple[list[str], np.ndarray]:
    lines = [topic.split(" | ") for topic in TOPICS]
    return sum(lines, []), np.repeat(np.arange(len(lines)), [len(part) for part in lines])


def molecules() -> tuple[list[str], np.ndarray]:
    from rdkit import Chem
    from rdkit.Chem.Crippen import MolLogP

    smiles = [item.decode() for _, item in RdkitSamples(limit=300).rows()]
    return smiles, np.array([MolLogP(Chem.MolFromSmiles(each)) for each in smiles])


def images() -> tuple[list[np.ndarray], np.ndarray]:
    digits, labels = load_digits(return_X_y=True)
    large = np.kron(digits[:300].reshape(-1, 8, 8), np.ones((8, 8)))  # (images, 64, 64)
    return list(np.repeat((large * 15.9).astype(np.uint8)[..., None], 3, -1)), labels[:300]


ITEMS = {"text": texts, "molecule": molecules, "image": images}


def score(embedded: np.ndarray, labels: np.ndarray) -> float:
    """Cross-validated: R2 of ridge regression for numbers, accuracy of the nearest neighbour for classes."""
    model = Ridge() if labels.dtype == float else KNeighborsClassifier(1, metric="cosine")
    return float(cross_val_score(model, StandardScaler().fit_transform(embedded), labels, cv=4).mean())


@pytest.mark.parametrize("folder", STUDENTS, ids=lambda folder: folder.name)
def test_a_released_student_embeds_and_scores_as_when_it_was_released(folder):
    student = distill.load_student(folder.name, "cpu")
    (modality,) = student.modalities
    items, labels = ITEMS[modality]()
    embedded = student.embed(items).numpy()
    assert embedded.shape == (len(items), student.dim)
    found = {"embedding": embedded[:2, :SHOWN].tolist(), "score": score(embedded, labels)}
    if os.environ.get("WRITE_RELEASED"):
        known = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
        kept = {name: value for name, value in known.items() if name in {path.name for path in STUDENTS}}
        EXPECTED.write_text(json.dumps(kept | {folder.name: found}, indent=1) + "\n")
    wanted = json.loads(EXPECTED.read_text())[folder.name]
    np.testing.assert_allclose(found["embedding"], wanted["embedding"], atol=1e-3 * np.abs(embedded).max())
    assert found["score"] == pytest.approx(wanted["score"], abs=0.02)
    assert found["score"] > 0.5


@pytest.mark.parametrize("folder", STUDENTS, ids=lambda folder: folder.name)
def test_a_released_student_says_its_licence_and_names_no_place_of_the_machine_that_made_it(folder):
    facts = read_config(folder)["facts"]
    assert facts["licence"]
    assert facts.get("per_second", 1) > 0
    contents = [path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md", ".txt")]
    assert len(contents) >= 2
    for place in ("/work", "/tmp", "/home", "/root", "../shared"):
        assert [text for text in contents if place in text] == [], place


def test_released_students_are_small_enough_to_come_with_the_package():
    assert STUDENTS
    assert sum(path.stat().st_size for path in RELEASED.rglob("*") if path.is_file()) <= 25e6


def test_the_list_of_students_fits_a_terminal_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["students"])
    shown = capsys.readouterr().out
    table = shown.partition("Its model card")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert [folder.name for folder in STUDENTS if folder.name not in table] == []


def test_a_name_nearly_like_that_of_a_released_student_is_told():
    with pytest.raises(ConfigError, match="did you mean text-static"):
        distill.load_student("text-statik")
