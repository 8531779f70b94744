"""The precision of a run: what ``auto`` takes and says, what a continued run takes, and what probes embed in."""

import logging

import pytest
import torch
import yaml
from lightning import Trainer

from cache_tools import Items, MoleculeGraph, Settings, build, open_column
from distill.cli import main
from distill.evaluation.baselines import embed
from distill.export.folder import CONFIG
from distill.export.student import load_student
from distill.export.write import export
from distill.run_folder import RunFolder
from distill.students.image import SmallResNet
from distill.students.mixed import MixedStudent
from distill.students.molecule import GraphStudent
from distill.training.checkpoint import read_checkpoint
from distill.training.precision import RunTrainer, as_trained, choose_precision

WIDE, NARROW = GraphStudent(1, 256), GraphStudent(1, 128)


@pytest.fixture
def processor(monkeypatch):
    """Makes a processor with these instructions for bfloat16; there is no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return lambda name: monkeypatch.setattr("distill.training.precision.bf16_instructions", lambda: name)


def began_in(folder, precision) -> RunFolder:
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"precision": precision}}))
    return RunFolder(folder)


def test_auto_is_bfloat16_where_processor_and_student_gain(processor):
    processor("avx512_bf16")
    assert choose_precision("auto", WIDE, "auto", None) == ("bf16-mixed", "this machine computes it fast: avx512_bf16")
    assert choose_precision("auto", NARROW, "auto", None) == ("32-true", "this GraphStudent gains little from bfloat16")
    processor("")
    assert choose_precision("auto", WIDE, "auto", None)[0] == "32-true"
    assert choose_precision("bf16-mixed", WIDE, "auto", None) == (
        "bf16-mixed",
        "as the configuration says; slow, since this processor has no instructions for it",
    )


def test_auto_is_float32_on_a_cpu_where_convolutions_are_depthwise(processor):
    processor("avx512_bf16")
    depthwise, grouped, plain = (SmallResNet(1, 16) for _ in range(3))
    depthwise.stem[0] = torch.nn.Conv2d(16, 16, 3, groups=16)
    grouped.stem[0] = torch.nn.Conv2d(16, 16, 3, groups=4)
    assert "depthwise" in choose_precision("auto", depthwise, "auto", None)[1]
    assert [choose_precision("auto", student, "auto", None)[0] for student in (depthwise, grouped, plain)] == [
        "32-true",
        "bf16-mixed",
        "bf16-mixed",
    ]


def test_a_mixed_student_gains_when_one_of_its_encoders_does():
    assert MixedStudent({"graph": GraphStudent(1, 128), "pixels": SmallResNet(1, 8)}, dim=8).gains_from_bf16
    assert not MixedStudent({"graph": GraphStudent(1, 128)}, dim=8).gains_from_bf16


@pytest.mark.parametrize("instructions", ["amx_bf16", ""])
def test_a_continued_run_computes_as_it_began_on_every_machine(processor, tmp_path, instructions):
    processor(instructions)
    assert choose_precision("auto", WIDE, "auto", began_in(tmp_path, "32-true"))[0] == "32-true"
    assert choose_precision("auto", NARROW, "auto", began_in(tmp_path, "bf16-mixed"))[0] == "bf16-mixed"
    assert choose_precision("auto", WIDE, "auto", began_in(tmp_path, None))[0] == "32-true"  # version 0.1


def test_a_continued_run_that_computes_otherwise_says_so(processor, tmp_path, caplog):
    processor("amx_bf16")
    with caplog.at_level(logging.WARNING):
        assert choose_precision(None, WIDE, "auto", began_in(tmp_path, "32-true"))[0] is None
        assert not caplog.records
        assert choose_precision("bf16-mixed", WIDE, "auto", began_in(tmp_path, "32-true"))[0] == "bf16-mixed"
    assert "was trained in 32-true, this command computes in bf16-mixed" in caplog.text


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_a_student_embeds_outside_of_steps_as_in_them(precision, dtype):
    layer = torch.nn.Linear(2, 2)
    with as_trained(Trainer(precision=precision, accelerator="cpu", logger=False)):
        assert layer(torch.ones(1, 2)).dtype == dtype


def test_ranks_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr("distill.training.precision.threads", lambda ranks: 12 // ranks)
    monkeypatch.setenv("OMP_NUM_THREADS", "12")
    before = torch.get_num_threads()
    try:
        RunTrainer(precision=None, accelerator="cpu", devices=4, strategy="ddp", logger=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_run_keeps_what_auto_was_and_its_export_embeds_as_it_was_measured(cache, processor, tmp_path, caplog):
    processor("avx512_bf16")
    run = RunFolder(tmp_path / "run")
    student = "--model.student=distill.students.molecule.GraphStudent --model.student.layers=1 --model.student.width=256"
    quick = "--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false"
    with caplog.at_level(logging.INFO):
        main(
            ["fit", f"--data.corpus={cache / 'mol'}", "--data.batch_size=64", f"--run={run.path}", *student.split(), *quick]
        )
    assert "precision: bf16-mixed, this machine computes it fast: avx512_bf16" in caplog.text
    assert yaml.safe_load(run.config.read_text())["trainer"]["precision"] == "bf16-mixed"
    assert {value.dtype for value in read_checkpoint(run.best)["state_dict"].values() if value.is_floating_point()} == {
        torch.float32
    }

    export(tmp_path / "export", run.best)
    assert '"precision": "bf16-mixed"' in (tmp_path / "export" / CONFIG).read_text()
    processor("")
    smiles = ["CCO", "c1ccccc1O", "CC(=O)Nc1ccc(O)cc1"]
    exact = load_student(tmp_path / "export").embed(smiles)  # here without such instructions, see conftest.py
    column = build(tmp_path, "mol", Items(smiles, "molecule"), {}, {"graph": MoleculeGraph()}, Settings(workers=1))
    inputs, network = open_column(column / "inputs" / "graph"), load_student(tmp_path / "export").network.module
    with torch.autocast("cpu", torch.bfloat16):
        measured = torch.from_numpy(embed([network], inputs, torch.arange(3), "cpu")[0])
    torch.testing.assert_close(measured, exact, rtol=0.05, atol=0.02)
    assert (measured != exact).any()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache_tools.teachers.network.bf16_instructions", lambda: "avx512_bf16")
        again = load_student(tmp_path / "export").embed(smiles)
    torch.testing.assert_close(again, measured, rtol=1e-3, atol=1e-3)
    assert (again != exact).any()
