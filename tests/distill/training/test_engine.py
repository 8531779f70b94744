"""The training engine in one process: broken losses, precision, memory, probes during a fit."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from cache_tools import Ragged
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.image import ImageFolder
from cache_tools.errors import ConfigError, TrainingError
from cache_tools.inputs import Pixels
from cache_tools.items.image import decode_image
from cache_tools.teachers.base import Teacher
from distill.cli.ranks import place
from distill.data.module import DistillData
from distill.evaluation.during import ProbeDuring
from distill.evaluation.protocol import Evaluation
from distill.evaluation.tasks import ComputedProperty
from distill.heads import GaussianHead
from distill.students.base import Student
from distill.students.image import ImageStudent, SmallResNet
from distill.students.molecule import GraphStudent
from distill.students.text import TextStudent
from distill.training.distiller import Distiller


def mini(student_dim: int, teacher_dim: int) -> GaussianHead:
    return GaussianHead(student_dim, teacher_dim, preset="mini")


def trainer(folder: Path, *callbacks: Callback, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    keeping = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    options = {"accelerator": "cpu", "limit_val_batches": 0, "enable_checkpointing": keeping, **quiet, **options}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **options)


@pytest.fixture
def data(cache):
    return DistillData(cache / "mol", batch_size=64, held_out=24)


def model(data: DistillData, **options) -> Distiller:
    torch.manual_seed(0)
    return Distiller(data.statistics, GraphStudent(layers=1, width=16, dim=16), head=mini, **options)


class Poison(Callback):
    """Spoils a teacher's embedding at one step."""

    def __init__(self, step: int, rows: slice, value: float):
        self.step, self.rows, self.value = step, rows, value

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            batch.targets["counts"] = batch.targets["counts"].float()
            batch.targets["counts"][self.rows] = self.value
            self.row = int(batch.rows[self.rows][0])


# ------------------------------------------------------------------------------------------------ broken losses


def test_a_loss_that_is_not_finite_stops_the_run_and_names_teacher_and_item(data, tmp_path):
    kept = ModelCheckpoint(tmp_path, "last", every_n_train_steps=2, enable_version_counter=False)
    poison = Poison(5, slice(3, 4), math.nan)
    with pytest.raises(TrainingError) as told:
        trainer(tmp_path, poison, kept, max_epochs=5).fit(model(data), data)
    text = str(told.value)
    assert text.startswith("step 6: the loss of teacher counts is nan, about ")
    assert f"worst in row {poison.row} of {data.corpora[0].columns.corpus} (id " in text
    assert f"go on with --ckpt_path {tmp_path}/last.ckpt, from before" in text
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == 4, "the checkpoint is from before"
    assert all(each.isfinite().all() for each in checkpoint["state_dict"].values())


def test_weights_that_break_are_told_from_an_item_that_does(data, tmp_path):
    class Break(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 3:
                next(pl_module.student.parameters()).data.fill_(math.nan)

    with pytest.raises(
        TrainingError, match="teacher counts, maccs, morgan is nan.*every row: the weights broke.*no checkpoint"
    ):
        trainer(tmp_path, Break(), max_epochs=5).fit(model(data), data)


def test_a_spike_stops_the_run(data, tmp_path):
    poison = Poison(150, slice(0, 1), 1e9)
    with pytest.raises(
        TrainingError, match="step 151: the loss of teacher counts is .* in row .* whose loss is .*--model.spike 0"
    ):
        trainer(tmp_path, poison, max_epochs=30).fit(model(data), data)


def test_a_checkpoint_never_holds_broken_weights(data, tmp_path):
    class BreakGradient(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 3:
                next(pl_module.student.parameters()).grad.fill_(math.nan)

    kept = ModelCheckpoint(tmp_path, "last", every_n_train_steps=2, enable_version_counter=False)
    with pytest.raises(TrainingError, match="step 4: weights are not finite, though the losses were"):
        trainer(tmp_path, BreakGradient(), kept, max_epochs=5).fit(model(data), data)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 2


def test_a_teacher_that_comes_late_is_no_spike(data, tmp_path):
    class Late(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step < 105:
                batch.valid["maccs"] = torch.zeros_like(batch.valid["maccs"])

    run = trainer(tmp_path, Late(), max_steps=115)
    run.fit(model(data), data)
    assert run.global_step == 115


def test_spikes_pass_when_nobody_looks_for_them(data, tmp_path):
    run = trainer(tmp_path, Poison(150, slice(0, 1), 1e9), max_steps=155)
    run.fit(model(data, spike=0), data)
    assert run.global_step == 155


def learn(head: GaussianHead, target: torch.Tensor, steps: int) -> list[float]:
    """Losses of a head whose rows are all the same."""
    optimiser, losses = torch.optim.Adam(head.parameters(), lr=0.1), []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = head(torch.ones(len(target), 4), target).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("triangular", [False, True])
def test_a_density_cannot_collapse(triangular):
    """Repeated rows and a constant dimension: without a floor sigma falls until the loss is not finite."""
    torch.manual_seed(0)
    head = GaussianHead(4, 3, layers=0, bounded=False, floor=0.1, triangular=triangular)
    target = torch.tensor([[1.0, -2.0, 0.0]]).repeat(32, 1)
    least = 3 * (0.5 * math.log(2 * math.pi) + math.log(0.1))
    losses = learn(head, target, 400)
    assert min(losses) >= least - 1e-3
    assert all(math.isfinite(loss) for loss in losses)
    if not triangular:
        assert losses[-1] == pytest.approx(least, abs=0.05), "sigma is at its floor"
        target[::2] *= -1
        assert learn(head, target, 600)[-1] < 10, "and leaves it again: at the floor it would be above 200"


# ---------------------------------------------------------------------------------------------------- precision


class Colours(Teacher):
    modality = "image"
    dim = 3

    def prepare(self, item):
        return np.asarray(decode_image(item), np.float32)

    def embed(self, items):
        return np.stack([item.mean((0, 1)) + 1000 for item in items])  # a mean that bfloat16 rounds by 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for number in range(90):
        pixels = random.integers(0, 256, 3) // 2 + random.integers(0, 128, (16, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    settings = Settings(workers=1, dtype="float32")
    return build(folder / "cache", "p", ImageFolder(folder), {"colours": Colours()}, {"pixels": Pixels(16)}, settings)


def image_model(data: DistillData) -> Distiller:
    torch.manual_seed(0)
    return Distiller(data.statistics, SmallResNet(1, 8), head=mini, student_lr=3e-3, head_lr=3e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_densities_and_statistics_stay_in_float32(pictures, tmp_path, precision):
    data = DistillData(pictures, batch_size=16, held_out=10)
    run, distiller = trainer(tmp_path, max_epochs=12, precision=precision, limit_val_batches=1.0), image_model(data)
    run.fit(distiller, data)
    half = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {each.dtype for each in distiller.student.parameters()} == {half}
    assert {each.dtype for each in distiller.heads.parameters()} == {torch.float32}
    assert distiller.normalisers["colours"].shift.dtype == torch.float32
    _, _, _, targets = distiller.losses(next(iter(data.train_dataloader())))
    assert abs(float(targets["colours"].mean())) < 0.5, "a shift of 4 is a tenth of a deviation here, and more"
    assert run.callback_metrics["r2/colours"] > 0.5


def test_a_molecule_student_learns_in_bfloat16(data, tmp_path):
    run = trainer(tmp_path, max_epochs=3, precision="bf16-true", limit_val_batches=1.0)
    run.fit(model(data, student_lr=3e-3, head_lr=3e-3), data)
    assert run.callback_metrics["r2/maccs"] > 0.02


# ------------------------------------------------------------------------------------------------ memory, speed


def graphs(data: DistillData):
    return next(iter(data.train_dataloader())).inputs["graph"]


def tokens():
    counts = torch.tensor([3, 7, 5])
    return {"tokens": Ragged(torch.randint(0, 30, (15,), dtype=torch.int32), counts, 7)}


STUDENTS = {
    "molecule": lambda: GraphStudent(layers=3, width=16, virtual_node=True),
    "text": lambda: TextStudent(
        "bert", config={"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ),
    "image": lambda: ImageStudent("vit_tiny_patch16_224", pretrained=False, size=32),
}


@pytest.mark.parametrize("kind", STUDENTS)
def test_activations_computed_again_give_the_same_gradients(data, kind):
    torch.manual_seed(0)
    rows = {"molecule": lambda: graphs(data), "text": tokens, "image": lambda: torch.randint(0, 256, (2, 32, 32, 3))}[
        kind
    ]()
    found, kept = [], []
    for again in (False, True):
        torch.manual_seed(0)
        student = STUDENTS[kind]().train()
        if again:
            student.checkpoint_activations()
        numbers = []  # that the forward pass keeps for the backward pass
        for _ in range(2):  # a norm that one pass left frozen would tell in the next
            with torch.autograd.graph.saved_tensors_hooks(lambda x, to=numbers: to.append(x.numel()) or x, lambda x: x):
                out = student.encode(rows)
            out.square().sum().backward()
        kept.append(sum(numbers))
        state = {name: buffer.clone() for name, buffer in student.named_buffers() if "running" in name}
        found.append(({name: each.grad for name, each in student.named_parameters() if each.grad is not None}, state))
    torch.testing.assert_close(found[0], found[1])
    assert 0 < kept[1] < 0.9 * kept[0], "less is kept"


def test_a_student_that_keeps_its_activations_says_so(data):
    with pytest.raises(ConfigError, match="SmallResNet cannot compute its activations again"):
        Distiller(data.statistics, SmallResNet(1, 8), head=mini, activation_checkpointing=True)


class MeanPixel(Student):
    """Quick to compile."""

    input, dim = "pixels", 3

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def embeddings(self, rows):
        return [self.linear(rows.float().mean((1, 2)) / 255)]


def test_batch_norms_that_would_take_in_a_batch_twice_are_refused():
    with pytest.raises(ConfigError, match="count every batch twice"):
        ImageStudent("resnet10t", pretrained=False).checkpoint_activations()


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(pictures, tmp_path):
    losses = []
    for compiled in (False, True):
        data = DistillData(pictures, batch_size=16, held_out=10)
        torch.manual_seed(0)
        distiller = Distiller(data.statistics, MeanPixel(), head=mini, compile=compiled)
        run = trainer(tmp_path, max_steps=3, log_every_n_steps=1)
        run.fit(distiller, data)
        losses.append(float(run.callback_metrics["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# ------------------------------------------------------------------------------------------------- goes on exactly


def test_augmentation_goes_on_where_it_was(pictures, tmp_path):
    def run(steps: int, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        data = DistillData(pictures, batch_size=16, held_out=10, augmentation="student-only")
        kept = ModelCheckpoint(tmp_path, "last", every_n_train_steps=3, enable_version_counter=False)
        distiller = image_model(data)
        trainer(tmp_path, kept, max_epochs=2, limit_train_batches=steps).fit(distiller, data, ckpt_path=checkpoint)
        return distiller.student.state_dict()

    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                raise KeyboardInterrupt

    expected = run(5)
    data = DistillData(pictures, batch_size=16, held_out=10, augmentation="student-only")
    kept = ModelCheckpoint(tmp_path / "killed", "last", every_n_train_steps=3, enable_version_counter=False)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(tmp_path, kept, Stop(), max_epochs=2, limit_train_batches=5).fit(image_model(data), data)
    torch.manual_seed(99)
    torch.testing.assert_close(run(5, tmp_path / "killed" / "last.ckpt"), expected, rtol=0, atol=0)


def test_a_run_of_so_many_steps_goes_on_with_the_rows_of_its_epoch(data, tmp_path):
    """Lightning tells the order an epoch too much when the checkpoint was written by an epoch's last validation."""

    class Rows(Callback):
        def __init__(self, stop=0):
            self.rows, self.stop = {}, stop

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.rows[trainer.global_step] = batch.rows.tolist()
            if trainer.global_step == self.stop:
                raise RuntimeError("killed")

    def run(folder: Path, rows: Rows, checkpoint: Path | None = None) -> None:
        kept = ModelCheckpoint(folder, "best", "val/loss", enable_version_counter=False)
        trainer(folder, rows, kept, max_steps=26, limit_val_batches=1.0).fit(model(data), data, ckpt_path=checkpoint)

    whole, killed, resumed = Rows(), Rows(stop=12), Rows()
    run(tmp_path / "a", whole)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "b", killed)
    run(tmp_path / "c", resumed, tmp_path / "b" / "best.ckpt")
    assert resumed.rows == {step: rows for step, rows in whole.rows.items() if step >= min(resumed.rows)}
    assert min(resumed.rows) == 10, "nine steps are an epoch"


def test_rows_that_fill_no_batch_are_said_once(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "distill.data")
    trainer(tmp_path, max_epochs=2).fit(model(data), data)
    assert "leaves out" not in caplog.text, "576 rows are nine batches"
    odd = DistillData(data.corpora[0].columns.corpus, batch_size=50, held_out=24)
    trainer(tmp_path, max_epochs=2).fit(model(odd), odd)
    assert caplog.text.count("each epoch leaves out 26 rows") == 1


def test_a_job_that_was_started_again_goes_on_in_its_folder(tmp_path):
    run = tmp_path / "mol"
    assert place(run, {}) == (run, None)
    assert place(run, {"SLURM_JOB_ID": "7"}) == (tmp_path / "mol-7", None)
    for folder in (run, tmp_path / "mol-7"):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").touch()
    again = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    assert place(run, again) == (tmp_path / "mol-7", None), "it was stopped before its first checkpoint"
    for folder in (run, tmp_path / "mol-7"):
        (folder / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "mol-7-2").mkdir()  # of a restart that was stopped before its first checkpoint
    assert place(run, again) == (tmp_path / "mol-7", str(tmp_path / "mol-7" / "checkpoints" / "last.ckpt"))
    assert place(run, {"SLURM_JOB_ID": "8"}) == (tmp_path / "mol-8", None), "another job"
    assert place(run, {"TORCHELASTIC_RESTART_COUNT": "0"}) == (run, None)
    both = {"TORCHELASTIC_RESTART_COUNT": "2", "SLURM_RESTART_COUNT": "0"}
    assert place(run, both) == (
        run,
        str(run / "checkpoints" / "last.ckpt"),
    )


# -------------------------------------------------------------------------------------------- probes during a fit


def test_a_checkpoint_is_kept_by_its_probes(data, tmp_path):
    tasks = {name: ComputedProperty(name, limit=90) for name in ("TPSA", "MolLogP")}
    probing = ProbeDuring(Evaluation(tasks, every=2, during=["TPSA"]))
    best = ModelCheckpoint(tmp_path, "best", "probe/TPSA", mode="max", every_n_epochs=2, enable_version_counter=False)
    run = trainer(tmp_path, probing, best, max_epochs=4, limit_val_batches=1.0)
    distiller = model(data)
    run.fit(distiller, data)
    assert run.callback_metrics["probe/mean"] == run.callback_metrics["probe/TPSA"]
    assert "probe/MolLogP" not in run.callback_metrics
    assert best.best_model_score > 0
    assert distiller.training


def test_a_task_to_probe_during_a_fit_is_one_of_the_tasks():
    with pytest.raises(ConfigError, match="during names none; probe.tasks has: TPSA"):
        Evaluation({"TPSA": ComputedProperty("TPSA")}, every=1, during=["none"])
