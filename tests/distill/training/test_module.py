import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision.amp import _optimizer_handles_unscaling

from cache_tools.errors import CacheError, ConfigError
from cache_tools.format.statistics import Statistics
from cache_tools.teachers.base import Teacher
from distill.data.module import DistillData
from distill.data.order import Source
from distill.heads import BernoulliHead, CosineHead, GaussianHead, MseDensityHead, MseHead
from distill.objectives import UncertaintyWeights
from distill.students.molecule import GraphStudent
from distill.targets import GlobalScalar, Raw, Standardise
from distill.training.distiller import Distiller
from distill.training.metrics import TeacherMetrics


def student() -> GraphStudent:
    return GraphStudent(layers=2, width=16, dim=24)


def model(data: DistillData, **options) -> Distiller:
    torch.manual_seed(0)
    return Distiller(data.statistics, student(), **options)


def test_every_parameter_that_learns_is_in_the_optimiser(data, trainer):
    distiller = model(data)
    trainer(max_steps=1, limit_val_batches=0).fit(distiller, data)
    optimised = {id(p) for group in distiller.optimizers().param_groups for p in group["params"]}
    assert {id(p) for p in distiller.parameters() if p.requires_grad} == optimised
    assert [group["name"] for group in distiller.optimizers().param_groups] == ["student", "heads"]


def test_weights_are_student_dim_over_teacher_dim_where_a_loss_sums(data):
    weights = model(data, heads={"maccs": CosineHead, "morgan": BernoulliHead}).weights
    kept = [int((data.statistics[name].var > 1e-10).sum()) for name in ("counts",)]
    assert weights.tolist() == pytest.approx([24 / kept[0], 1.0, 24 / 256])


def test_all_methods_share_one_normaliser_and_bits_keep_theirs(data):
    targets = {}
    for head in (GaussianHead, MseHead, CosineHead):
        batch = next(iter(data.train_dataloader()))
        targets[head] = model(data, head=head).losses(batch)[3]
    for name, target in targets[GaussianHead].items():
        assert torch.equal(target, targets[MseHead][name])
        assert torch.equal(target, targets[CosineHead][name])
    raw = model(data, heads={"maccs": BernoulliHead}).losses(batch)[3]["maccs"]
    assert raw.unique().tolist() == [0, 1]


def test_clipping_touches_the_student_alone(data):
    distiller = model(data)
    for parameter in distiller.parameters():
        parameter.grad = torch.ones_like(parameter)
    distiller.configure_gradient_clipping(None, 1.0)
    norm = torch.stack([p.grad.norm() for p in distiller.student.parameters()]).norm()
    assert norm.item() == pytest.approx(1.0, rel=1e-3)
    assert all((p.grad == 1).all() for p in distiller.heads.parameters())


@pytest.mark.parametrize(("precision", "handles"), [("16-mixed", False), ("bf16-mixed", True), ("32-true", True)])
def test_what_is_clipped_is_no_longer_scaled(data, precision, handles):
    """Lightning leaves a gradient scaler's factor in the gradient where the optimiser takes it out by itself."""
    distiller = model(data)
    distiller._trainer = SimpleNamespace(precision=precision, estimated_stepping_batches=10)
    (optimiser,), _ = distiller.configure_optimizers()
    assert _optimizer_handles_unscaling(optimiser) is handles


def test_learning_rate_rises_then_falls_as_a_cosine(data, trainer):
    distiller = model(data, student_lr=1e-2, head_lr=1e-3, warmup=0.25)
    rates = []
    distiller.on_train_batch_start = lambda *_: rates.append([group["lr"] for group in distiller.optimizers().param_groups])
    trainer(max_epochs=2, limit_train_batches=8, limit_val_batches=0).fit(distiller, data)
    student_rates = [rate for rate, _ in rates]
    assert student_rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert student_rates[4:] == pytest.approx([0.005 * (1 + math.cos(math.pi * step / 12)) for step in range(12)])
    assert all(head == pytest.approx(rate / 10) for rate, head in rates)


def test_training_lowers_the_loss_and_names_every_figure(data, trainer):
    distiller = model(data, heads={"maccs": BernoulliHead, "counts": CosineHead}, student_lr=1e-2, head_lr=1e-2)
    fitting = trainer(max_epochs=6)
    before = fitting.validate(distiller, data, verbose=False)[0]
    fitting.fit(distiller, data)
    after = fitting.validate(distiller, data, verbose=False)[0]
    names = {"val/loss", "nll/maccs", "r2/maccs", "nats/maccs", "loss/counts", "cosine/counts"}
    assert after.keys() == names | {"nll/morgan", "r2/morgan", "nats/morgan"}
    assert after["val/loss"] < before["val/loss"]
    assert after["r2/maccs"] > 0.1
    assert after["nats/maccs"] > before["nats/maccs"]


def test_rows_that_no_student_can_read_are_left_out_and_others_masked(tmp_path):
    from cache_tools.building.corpus import build
    from cache_tools.corpora.base import Items
    from cache_tools.inputs import MoleculeGraph
    from cache_tools.teachers.molecule import Maccs

    items = ["C" * n for n in range(1, 40)] + ["broken"]
    build(tmp_path, "c", Items(items, "molecule"), {"maccs": Maccs()}, {"graph": MoleculeGraph()})
    data = DistillData(tmp_path / "c", batch_size=39, held_out=1)
    batch = next(iter(data.train_dataloader()))
    held = data.sources[0].held_out.tolist()
    assert held != [39], "the broken molecule must be among the rows of the batch"
    assert batch.rows.tolist() == [row for row in range(40) if row not in (39, *held)]
    assert len(batch.targets["maccs"]) == len(batch.inputs["graph"]["atoms"].counts) == 38


def test_what_does_not_fit_together_is_named(data, cache):
    with pytest.raises(ConfigError, match="model.heads names gin; the teachers are: counts, maccs, morgan"):
        model(data, heads={"gin": MseHead})
    with pytest.raises(
        ConfigError, match="UncertaintyWeights divides losses, and that of teacher counts, of a MseDensityHead, can"
    ):
        model(data, heads=dict.fromkeys(["maccs", "morgan"], BernoulliHead), objective=UncertaintyWeights())
    with pytest.raises(CacheError, match="no teacher column gin; it has: counts, maccs, morgan"):
        DistillData(cache / "mol", teachers=["gin"])
    with pytest.raises(ConfigError, match="no batch of 5000 is left: lower data.held_out or data.batch_size"):
        DistillData(cache / "mol", batch_size=5000, held_out=64)
    with pytest.raises(ConfigError, match="data.held_out is -60, expected at least 1"):
        DistillData(cache / "mol", held_out=-60)
    with pytest.raises(CacheError, match="nothing at .*nowhere"):
        DistillData(cache / "nowhere")


def test_bfloat16_training_keeps_densities_in_float32(data, trainer):
    distiller = model(data)
    trainer(max_steps=2, limit_val_batches=1, precision="bf16-mixed").fit(distiller, data)
    batch = next(iter(data.train_dataloader()))
    with torch.autocast("cpu", torch.bfloat16):
        losses, _, _, _ = distiller.losses(batch)
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()


def test_heads_computed_together_give_the_same_losses(data):
    distiller = model(data, heads={"morgan": BernoulliHead})
    batch = next(iter(data.train_dataloader()))
    losses, _, student, targets = distiller.losses(batch)
    assert distiller.bank.groups == [["counts", "maccs", "morgan"]]
    together = distiller.bank.group_losses(distiller.teachers, student, targets)
    torch.testing.assert_close(torch.stack(list(together.values())), losses)


def test_a_run_that_names_no_head_learns_squared_error_and_its_density(data):
    kinds = {name: type(head) for name, head in model(data).heads.items()}
    assert kinds == dict.fromkeys(["counts", "maccs", "morgan"], MseDensityHead)


def test_the_student_of_a_density_beside_squared_error_is_that_of_squared_error(data, trainer):
    students = []
    for head in (MseHead, MseDensityHead):
        distiller = model(data, head=head, head_lr=1e-3)
        logged = trainer(max_epochs=2, gradient_clip_val=1.0)
        logged.fit(distiller, data)
        students.append(distiller.student.state_dict())
    torch.testing.assert_close(students[1], students[0], rtol=0, atol=0)
    assert logged.callback_metrics["nats/counts"] > 0
    learnt = torch.nn.functional.softplus(distiller.heads["counts"].pace * distiller.heads["counts"].raw_variance)
    assert (learnt - 1).abs().max() > 0.1, "the variance has left where it began"


class Rare(Teacher):
    """Weighs three kinds of atoms."""

    modality = "molecule"
    dim = 3

    def embed(self, items):
        return np.array([[item.count("C") / 8, item.count("N") / 5, item.count("S")] for item in items], np.float32)


@pytest.fixture(scope="module")
def rare(tmp_path_factory) -> DistillData:
    """300 rows; only rows that are held out have sulfur."""
    from cache_tools.building.column import Settings
    from cache_tools.building.corpus import build
    from cache_tools.corpora.base import Items
    from cache_tools.inputs import MoleculeGraph

    molecules = ["C" * carbons + "N" * nitrogens for carbons in range(1, 21) for nitrogens in range(1, 16)]
    for sulfurs in (1, 2):
        molecules[Source(300, 30).held_out[3 * sulfurs]] = "CN" + "S" * sulfurs
    corpus, cache = Items(molecules, "molecule"), tmp_path_factory.mktemp("rare")
    made = build(cache, "c", corpus, {"rare": Rare()}, {"graph": MoleculeGraph()}, Settings(workers=1))
    data = DistillData(made, batch_size=90)
    data.statistics["rare"].var[2] = 1e-18  # what rounding may leave of a variance of zero
    return data


@pytest.mark.parametrize("head", [GaussianHead, MseHead, MseDensityHead, CosineHead])
@pytest.mark.parametrize("normaliser", [lambda known: Standardise(known, limit=4.0), Standardise, GlobalScalar, Raw])
def test_a_dimension_that_only_held_out_rows_vary_in_outweighs_no_other_and_is_named(rare, trainer, head, normaliser):
    torch.manual_seed(0)
    distiller = Distiller(rare.statistics, student(), head=head, normaliser=normaliser)
    figures = trainer().validate(distiller, rare, verbose=False)[0]
    assert figures.get("floored/rare") == 1, figures
    assert all(abs(value) < 50 for value in figures.values()), figures


def test_figures_of_held_out_rows_that_do_not_vary_are_left_out_or_finite():
    normaliser, rows = Raw(Statistics.of(np.eye(3))), torch.zeros(4, 3)
    for head in (GaussianHead(2, 3), MseHead(2, 3), CosineHead(2, 3)):
        metrics, same = TeacherMetrics(3), normaliser.mean.expand(4, 3) if not head.scale_free else rows
        metrics.update(head, normaliser, head(torch.randn(4, 2), same), torch.randn(4, 2), same)
        figures = metrics.named(head)
        assert "r2" not in figures
        assert all(torch.isfinite(value) for value in figures.values()), figures


def test_held_out_figures_of_a_fit_with_prefixes_are_those_of_the_whole_embedding(data, trainer):
    distiller = model(data, head=MseHead, dims=[4, 8])
    names = {name.split(".")[1] for name in distiller.state_dict() if name.startswith("prefixes.")}
    assert names == {"4", "8"}
    assert not [name for name in model(data, head=MseHead).state_dict() if name.startswith("prefixes.")]
    fitting = trainer(max_epochs=1)
    fitting.fit(distiller, data)
    optimised = {id(p) for group in distiller.optimizers().param_groups for p in group["params"]}
    assert {id(p) for p in distiller.parameters() if p.requires_grad} == optimised
    figures = fitting.validate(distiller, data, verbose=False)[0]
    plain = model(data, head=MseHead)
    plain.load_state_dict({name: x for name, x in distiller.state_dict().items() if not name.startswith("prefixes.")})
    assert trainer().validate(plain, data, verbose=False)[0] == pytest.approx(figures)
    batch = next(iter(data.train_dataloader()))
    assert not torch.allclose(distiller.train().losses(batch).losses, distiller.eval().losses(batch).losses)
