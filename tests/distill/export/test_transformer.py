"""A student in pipelines of scikit-learn."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cache_tools import CorpusError, RdkitSamples
from distill import StudentTransformer, load_student

FOLDER = Path(__file__).parents[2] / "fixtures" / "v01" / "student"


@pytest.fixture(scope="module")
def smiles() -> list[str]:
    return [item.decode() for item in RdkitSamples(limit=60).read()[1]][:40]


def test_a_grid_search_over_a_pipeline_finds_the_best_model(smiles):
    labels = [float(text.count("C")) for text in smiles]
    steps = [("student", StudentTransformer(FOLDER, device="cpu")), ("scale", StandardScaler()), ("ridge", Ridge())]
    search = GridSearchCV(Pipeline(steps), {"ridge__alpha": [0.1, 1e6], "student__batch_size": [8]}, cv=3)
    search.fit(smiles, labels)
    assert search.best_params_["ridge__alpha"] == 0.1
    assert search.score(smiles, labels) > 0.8
    assert pickle.loads(pickle.dumps(search.best_estimator_)).predict(smiles[:3]) == pytest.approx(
        search.predict(smiles[:3])
    )


@pytest.mark.parametrize("loaded", [False, True], ids=["folder", "loaded"])
def test_a_clone_has_the_same_arguments_and_the_same_embeddings(smiles, loaded):
    student = load_student(FOLDER, "cpu") if loaded else str(FOLDER)
    first = StudentTransformer(student, bad="nan", device="cpu")
    other = clone(first)
    assert other.get_params() == first.get_params()
    assert np.array_equal(first.fit_transform([*smiles, "no"]), other.transform([*smiles, "no"]), equal_nan=True)
    assert np.allclose(first.transform(smiles), load_student(FOLDER, "cpu").embed(smiles).numpy(), atol=1e-6)


def test_columns_of_a_data_frame_become_named_columns_with_its_index(smiles):
    table = pd.DataFrame({"smiles": smiles, "weight": range(40)}, index=range(100, 140))
    student = StudentTransformer(FOLDER, device="cpu")
    both = make_column_transformer((student, ["smiles"]), (StandardScaler(), ["weight"])).set_output(transform="pandas")
    found = both.fit_transform(table)
    assert found.index.tolist() == list(range(100, 140))
    assert list(found.columns) == [
        *(f"studenttransformer__embedding_{n}" for n in range(16)),
        "standardscaler__weight",
    ]
    assert student.fit(table).transform(table).shape == (40, 16), "the column smiles is found"


def test_a_molecule_that_cannot_be_read_is_an_error_that_names_it():
    with pytest.raises(CorpusError, match="item 1 of 2, 'no', cannot be embedded"):
        make_pipeline(StudentTransformer(FOLDER, device="cpu"), Ridge()).fit(["C", "no"], [0, 1])
