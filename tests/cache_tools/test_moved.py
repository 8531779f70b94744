"""Names of version 0.1 still work: in YAML, manifests, exports and in modules that users wrote."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_tools.moved import MOVED, current_class_path, current_names

FIXTURE = Path(__file__).parents[1] / "fixtures" / "v01"

CLASSES = {  # the classes of version 0.1 that a class_path or a user's own module could name, by module
    "cache_tools.columns": "Featuriser MoleculeGraph Pixels EncodedImage TokenIds",
    "cache_tools.corpus": "Corpus Items",
    "cache_tools.images": "Crop",
    "cache_tools.network": "Network",
    "cache_tools.reader": "Column Aligned",
    "cache_tools.statistics": "Statistics",
    "cache_tools.store": "Ragged",
    "cache_tools.teacher": "Teacher Tunable",
    "cache_tools.teachers.convnet": "MobileNet TinyDarknet CifarResNet",
    "cache_tools.transfer": "Imported",
    "distill.conflict": "Conflict",
    "distill.exported": "TeacherSpace ExportedStudent StudentTeacher",
    "distill.guard": "Guard",
    "distill.labelled": "Labelled TextTask TextPairTask ImageTask IdxTask",
    "distill.methods": "",
    "distill.methods.consolidation": "KlHead",
    "distill.methods.densities": "VidHead MseDensityHead DiagonalHead StudentTHead LowRankGaussianHead NaturalGaussianHead "
    "WarmGaussianHead",
    "distill.methods.regression": "MixHead AngleHead",
    "distill.methods.relations": "QueueHead ContrastHead RelationHead",
    "distill.methods.unic": "TeacherDropping",
    "distill.module": "Distiller",
    "distill.mteb": "MtebEncoder",
    "distill.normalize": "Normaliser Raw Standardise Linear GlobalScalar PcaWhitening ZcaWhitening HadamardWhitening PhiS",
    "distill.objective": "Objective WeightedSum Relative UncertaintyWeights RelativeLossWeights",
    "distill.probes": "Probe LinearProbe RidgeProbe LogisticProbe SoftmaxProbe MlpProbe KnnProbe SimilarityProbe PairProbe "
    "ClusterProbe",
    "distill.probing": "ProbeDuring",
    "distill.student": "Student",
    "distill.suites": "AdmetTask",
    "distill.tasks": "Task MoleculeTask CmetActivity NciTpsa ComputedProperty PainsAlerts",
}

FUNCTIONS = {"cache_tools.molecules": "parse_smiles", "cache_tools.store": "read_items"}


def recorded() -> Iterator[tuple[Path, str]]:
    """Every class path in the files that version 0.1 wrote."""
    for path in sorted(FIXTURE.rglob("*")):
        if path.suffix in (".yaml", ".json"):
            for name in re.findall(r'class_path"?:\s*"?([\w.]+)', path.read_text()):
                yield path, name


def imported(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_module_of_the_table_is_tested():
    assert MOVED.keys() == CLASSES.keys() | FUNCTIONS.keys()


@pytest.mark.parametrize("module", CLASSES)
def test_an_old_module_gives_the_new_classes(module):
    old = importlib.import_module(module)
    for name in CLASSES[module].split():
        cls = getattr(old, name)
        assert isinstance(cls, type)
        assert (cls.__name__, cls.__module__ in MOVED) == (name, False)
        assert imported(current_class_path(f"{module}.{name}")) is cls


@pytest.mark.parametrize("module", FUNCTIONS)
def test_an_old_module_gives_the_functions_that_readers_of_items_need(module):
    assert callable(getattr(importlib.import_module(module), FUNCTIONS[module]))


def test_every_class_path_that_version_01_wrote_is_a_class():
    names = {name for _, name in recorded()}
    assert len(names) > 20
    assert {path.suffix for path, _ in recorded()} == {".yaml", ".json"}
    for path, name in recorded():
        assert isinstance(imported(name), type), f"{path}: {name}"
        assert imported(current_class_path(name)) is imported(name)


def test_names_in_a_manifest_become_those_of_today_and_the_rest_stays():
    manifest = json.loads((FIXTURE / "cache" / "mol" / "inputs" / "graph" / "manifest.json").read_text())
    producer = manifest["producer"]
    assert producer["class_path"] == "cache_tools.columns.MoleculeGraph", "as version 0.1 wrote it"
    today = current_names({"nested": [producer], "rest": 1})
    assert today["nested"][0]["class_path"] == "cache_tools.inputs.graph.MoleculeGraph"
    assert today["nested"][0]["fingerprint"]["class_path"] == "cache_tools.inputs.graph.MoleculeGraph"
    assert (today["rest"], current_names("text")) == (1, "text")


def test_an_unknown_name_of_an_old_module_says_where_to_look():
    with pytest.raises(AttributeError, match="cache_tools.columns.Unknown of version 0.1 .* see cache_tools.inputs"):
        importlib.import_module("cache_tools.columns").Unknown  # noqa: B018
    assert current_class_path("cache_tools.columns.Unknown") == "cache_tools.columns.Unknown"


def test_a_class_that_left_the_packages_is_named_with_its_place_where_python_does_not_find_it(monkeypatch):
    from cache_tools import CacheError, Teacher, rebuild

    old = "cache_tools.teachers.convnet.MobileNet"
    assert current_class_path(old) == "convnet.MobileNet", "pytest finds benchmarks/ as configurations do"
    monkeypatch.delitem(sys.modules, "convnet", raising=False)
    monkeypatch.setattr("sys.path", [place for place in sys.path if Path(place).name != "benchmarks"])
    with pytest.raises(CacheError, match=f"cannot import {old}: .* see benchmarks/convnet.py .* PYTHONPATH=benchmarks"):
        rebuild({"class_path": old, "init_args": {"weights": "w.safetensors"}}, Teacher)
    assert current_class_path(old) == old, "columns of other teachers can still be compared"


def test_a_module_that_never_was_stays_unknown():
    with pytest.raises(ModuleNotFoundError, match="cache_tools.nothing"):
        importlib.import_module("cache_tools.nothing")
