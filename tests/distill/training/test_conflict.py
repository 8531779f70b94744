"""Gradients of the teachers at the student's embedding: measured right, and without a trace in the fit."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from cache_tools.errors import ConfigError
from distill.data.module import DistillData
from distill.heads import BernoulliHead
from distill.records import Results
from distill.report.sections import conflict_plots
from distill.run_folder import RunFolder
from distill.students.molecule import GraphStudent
from distill.training.conflict import Conflict, cosines, gradients
from distill.training.distiller import Distiller
from distill.training.observer import LossObserver


def fit(cache: Path, folder: Path, callbacks: list, **options) -> Distiller:
    torch.manual_seed(0)
    data = DistillData(cache / "mol", batch_size=32, held_out=64)
    student = GraphStudent(layers=2, width=16, dim=24, dropout=0.3)
    model = Distiller(data.statistics, student, heads={"maccs": BernoulliHead}, student_lr=1e-2, head_lr=1e-2, **options)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=5, limit_val_batches=0, callbacks=callbacks,
        logger=CSVLogger(folder, "", ""), log_every_n_steps=100, **quiet,
    ).fit(model, data)  # fmt: skip
    return model


def test_a_fit_ends_in_the_same_weights_with_and_without(cache, tmp_path):
    without, measured = fit(cache, tmp_path / "a", []), fit(cache, tmp_path / "b", [Conflict(2)])
    assert any("running_mean" in name for name in without.state_dict()), "there is batch norm"
    for name, weight in without.state_dict().items():
        assert torch.equal(weight, measured.state_dict()[name]), name
    assert not (tmp_path / "a" / "conflict.csv").exists()
    with open(tmp_path / "b" / "conflict.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows[::9]] == ["0", "2", "4"]
    logged = [row for row in RunFolder(tmp_path / "b").metrics() if row.get("conflict/maccs")]
    assert [row["step"] for row in logged] == ["0", "2", "4"], "whatever log_every_n_steps says"
    step, teachers, matrix = RunFolder(tmp_path / "b").last_conflict()
    assert (step, teachers) == (4, measured.teachers)
    for row, name in enumerate(teachers):
        assert float(logged[-1][f"conflict/{name}"]) == pytest.approx(np.delete(matrix[row], row).mean(), abs=1e-5)
        assert float(logged[-1][f"gradient/{name}"]) > 0


class Losses(LossObserver):
    """Keeps what it observes."""

    def __init__(self):
        self.steps = []

    def on_losses(self, trainer, pl_module, step):
        assert step.losses.requires_grad
        self.steps.append((trainer.global_step, step.losses.shape, step.valid.shape))


def test_an_observer_sees_the_losses_of_every_training_step_of_its_own_fit(cache, tmp_path):
    first, second = Losses(), Losses()
    model = fit(cache, tmp_path / "a", [first])
    assert first.steps == [(number, (3, 32), (3, 32)) for number in range(5)]
    data = DistillData(cache / "mol", batch_size=32, held_out=64)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_steps": 2, "limit_val_batches": 1, "num_sanity_val_steps": 1, "val_check_interval": 1}
    Trainer(default_root_dir=tmp_path, accelerator="cpu", callbacks=[second], **options, **quiet).fit(model, data)
    assert [number for number, *_ in second.steps] == [0, 1], "validation has no observers"
    assert len(first.steps) == 5


def test_a_gradient_is_that_of_the_heads_loss_by_a_plain_loop(cache):
    data = DistillData(cache / "mol", batch_size=32, held_out=64)
    model = Distiller(data.statistics, GraphStudent(layers=2, width=16, dim=24)).eval()
    batch = next(iter(data.train_dataloader()))
    batch.valid = {**batch.valid, "maccs": torch.arange(32) < 7}
    losses, valid, student, targets = model.losses(batch)
    found = gradients(losses, valid, student, model.weights)
    assert all(each.grad is None for each in model.parameters())
    plain = []
    for row, name in enumerate(model.teachers):
        embedding = student.detach().requires_grad_()
        loss = model.heads[name](embedding, targets[name])
        (model.weights[row] * loss[valid[row]].mean()).backward()
        plain.append(embedding.grad.flatten())
    torch.testing.assert_close(found, torch.stack(plain), rtol=1e-4, atol=1e-6)
    for (one, other), each in np.ndenumerate(cosines(found).numpy()):
        assert each == pytest.approx(torch.cosine_similarity(plain[one], plain[other], 0).item(), abs=1e-4)


def test_equal_teachers_agree_and_opposed_ones_do_not():
    student = torch.randn(6, 4, requires_grad=True) * 2
    loss = (student**2).sum(1)
    losses, valid = torch.stack([loss, loss, -loss, loss]), torch.ones(4, 6, dtype=torch.bool)
    valid[3] = False
    found = cosines(gradients(losses, valid, student, torch.tensor([1.0, 0.5, 3.0, 1.0])))
    expected = torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]]).double()
    torch.testing.assert_close(found[:3, :3], expected)
    assert found[3].isnan().all(), "a teacher that has no row of the batch pulls nowhere"


def test_the_report_draws_the_last_measurement(tmp_path):
    lines = ["step,teacher_a,teacher_b,cosine"]
    for step, value in ((0, 0.9), (50, -0.25), (50, -0.5)):  # the run was killed, and did step 50 again
        lines += [f"{step},a,a,1", f"{step},a,b,{value}", f"{step},b,a,{value}", f"{step},b,b,1"]
    (tmp_path / "conflict.csv").write_text("\n".join(lines) + "\n")
    step, teachers, matrix = RunFolder(tmp_path).last_conflict()
    assert (step, teachers, matrix.tolist()) == (50, ["a", "b"], [[1, -0.5], [-0.5, 1]])
    (plot,) = conflict_plots({"student": Results(RunFolder(tmp_path), [], {}, {})})
    assert plot.caption == "student: step 50"
    assert [each.get_text() for each in plot.figure.axes[0].texts] == ["1.00", "-0.50", "-0.50", "1.00"]
    assert conflict_plots({"student": Results(RunFolder(tmp_path / "other"), [], {}, {})}) == []


def test_a_compiled_fit_is_refused(cache, tmp_path):
    with pytest.raises(ConfigError, match="--conflict and model.compile do not go together"):
        fit(cache, tmp_path, [Conflict(2)], compile=True)
