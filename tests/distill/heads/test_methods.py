"""Every method against an independent reference: a plain loop, or torch.distributions."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import distributions as D
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from cache_tools import Ragged
from cache_tools.errors import ConfigError
from distill import cli
from distill.heads import (
    AngleHead,
    BernoulliHead,
    CosineHead,
    DirectHead,
    GaussianHead,
    HeadContext,
    KlHead,
    Ladder,
    MixHead,
    MseHead,
)
from distill.heads.densities import (
    LowRankGaussianHead,
    MseDensityHead,
    NaturalGaussianHead,
    StudentTHead,
    VidHead,
    WarmGaussianHead,
)
from distill.heads.relations import CORNERS, ContrastHead, QueueHead, RelationHead
from distill.objectives import RelativeLossWeights, UncertaintyWeights
from distill.students.image import ImageStudent, SmallResNet
from distill.students.mixed import MixedStudent
from distill.students.molecule import GraphStudent
from distill.students.text import TextStudent
from distill.targets import MarginalMixture
from distill.training.distiller import Distiller
from distill.training.metrics import TeacherMetrics

METHODS = sorted((Path(__file__).parents[3] / "configs" / "methods").glob("*.yaml"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------------- densities


def parts(head: GaussianHead, student: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = head.mlp(student).double()
    return out[:, 1 : 1 + head.teacher_dim], out[:, 1 + head.teacher_dim :]


def test_vid_is_a_gaussian_of_one_variance_per_dimension():
    head, student, target = VidHead(8, 5), torch.randn(6, 8), torch.randn(6, 5)
    deviation = (F.softplus(head.raw_variance) + 1e-5).sqrt()
    expected = -D.Independent(D.Normal(head.mlp(student), deviation), 1).log_prob(target)
    torch.testing.assert_close(head(student, target), expected)
    torch.testing.assert_close(deviation.detach(), torch.ones(5), atol=1e-4, rtol=0)


def test_squared_error_and_its_density():
    head, student, target = MseDensityHead(8, 5), torch.randn(6, 8), torch.randn(6, 5)
    mean, vid, mse = head.mlp(student), VidHead(8, 5), MseHead(8, 5)
    vid.mlp.load_state_dict(head.mlp.state_dict())
    mse.mlp.load_state_dict(head.mlp.state_dict())
    for each in (head, vid, mse):
        each(student, target).sum().backward()
    assert torch.equal(head.mlp[-1].weight.grad, mse.mlp[-1].weight.grad)
    torch.testing.assert_close(head.raw_variance.grad, head.pace * vid.raw_variance.grad)
    torch.testing.assert_close(head(student, target), (mean - target).pow(2).sum(1) + vid(student, target))
    torch.testing.assert_close(head.eval()(student, target), vid(student, target))
    torch.testing.assert_close(head.predict(student), mean)


def test_student_t_is_the_density_of_torch_distributions():
    head, student, target = StudentTHead(8, 5, degrees=3.5, bounded=False), torch.randn(6, 8), torch.randn(6, 5)
    mean, scale = parts(head, student)
    expected = -D.Independent(D.StudentT(torch.tensor(3.5), mean, (-scale).exp()), 1).log_prob(target.double())
    torch.testing.assert_close(head(student, target).double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="above 2"):
        StudentTHead(8, 5, degrees=2)


def test_low_rank_is_a_gaussian_with_that_covariance():
    head, student, target = LowRankGaussianHead(8, 5, rank=2, bounded=False), torch.randn(6, 8), torch.randn(6, 5)
    torch.nn.init.normal_(head.factor)
    mean, scale = parts(head, student)
    diagonal, factor = torch.diag_embed((-scale).exp()), head.factor.double()
    covariance = diagonal @ (torch.eye(5) + factor @ factor.T) @ diagonal
    expected = -D.MultivariateNormal(mean, covariance).log_prob(target.double())
    torch.testing.assert_close(head(student, target).double(), expected, rtol=1e-5, atol=1e-5)


def test_natural_parameters_are_those_of_torch_distributions():
    head, student, target = NaturalGaussianHead(8, 5), torch.randn(6, 8), torch.randn(6, 5)
    natural, scale = parts(head, student)
    deviation = (-scale.tanh()).exp()
    expected = -D.Independent(D.Normal(natural * deviation**2, deviation), 1).log_prob(target.double())
    torch.testing.assert_close(head(student, target).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.predict(student).double(), natural * deviation**2, rtol=1e-5, atol=1e-5)


def test_a_variance_is_held_for_so_many_batches_of_training():
    head, student, target = WarmGaussianHead(8, 5, steps=2), torch.randn(6, 8), torch.randn(6, 5)
    mean, scale = parts(head, student)
    free = -D.Independent(D.Normal(mean, (-scale.tanh()).exp()), 1).log_prob(target)
    held = -D.Independent(D.Normal(mean, 1.0), 1).log_prob(target)
    for expected in (held, held, free):
        torch.testing.assert_close(head.train()(student, target).double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(head.eval()(student, target).double(), expected, rtol=1e-5, atol=1e-5)
    again = WarmGaussianHead(8, 5, steps=2)
    again.load_state_dict(head.state_dict())
    torch.testing.assert_close(again(student, target).double(), free, rtol=1e-5, atol=1e-5, msg="goes on where it was")


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beta_weighs_the_gradient_of_the_mean_by_the_variance(beta):
    head, student, target = GaussianHead(8, 5, preset="default", beta=beta), torch.randn(6, 8), torch.randn(6, 5)
    out = head.mlp(student).detach().requires_grad_()
    head.loss(out, target).sum().backward()
    mean, variance = out[:, 1:6], (-2 * out[:, 6:]).exp()
    torch.testing.assert_close(out.grad[:, 1:6], ((mean - target) / variance * variance**beta).detach())
    plain = GaussianHead(8, 5, preset="default")
    plain.load_state_dict(head.state_dict())
    torch.testing.assert_close(head.nll(student, target), plain(student, target), msg="information is counted without beta")
    torch.testing.assert_close(head.eval()(student, target), plain(student, target))


def test_beta_is_for_one_diagonal_gaussian():
    with pytest.raises(ConfigError, match="leave beta out"):
        GaussianHead(8, 5, beta=0.5, modes=2)


@pytest.mark.workplace
def test_the_marginal_mixture_gives_the_published_log_density(shared):
    golden = np.load(shared / "golden" / "gaussian_heads.npz", allow_pickle=True)
    case = {name: torch.from_numpy(golden[f"marginal_k8/{name}"]) for name in ("teacher", "log_prob")}
    means, logvar, weigh = (torch.from_numpy(golden[f"marginal_k8/param/{name}"]) for name in ("means", "logvar", "weigh"))
    mixture = MarginalMixture(weigh[0], means, -2 * logvar[0])  # the published name is wrong: it is a, of r = exp(a)
    torch.testing.assert_close(-mixture(case["teacher"]).double(), case["log_prob"], rtol=1e-5, atol=1e-5)


def test_the_marginal_mixture_is_that_of_torch_distributions():
    logits, means, log_variances, target = torch.randn(3), torch.randn(3, 5), torch.randn(3, 5), torch.randn(7, 5)
    modes = D.Independent(D.Normal(means, (0.5 * log_variances).exp()), 1)
    expected = -D.MixtureSameFamily(D.Categorical(logits=logits), modes).log_prob(target)
    torch.testing.assert_close(MarginalMixture(logits, means, log_variances)(target), expected, rtol=1e-4, atol=1e-4)


def test_a_mixture_knows_clusters_that_one_gaussian_does_not():
    """Two clusters: the student that tells them apart, and nothing more, is worth ln 2, not what one Gaussian says."""
    side = torch.randint(2, (4000, 1)).float()
    rows = 6 * side - 3 + 0.5 * torch.randn(4000, 1)
    nll = MarginalMixture.fitted(rows, 2)(rows).mean()
    known = -D.Normal(6 * side - 3, 0.5).log_prob(rows).mean()
    one = GaussianHead.marginal_nll(rows, rows.mean(0), rows.var(0)).mean()
    assert (nll - known).item() == pytest.approx(math.log(2), abs=0.02)
    assert (one - known).item() > 1.5


def test_nats_are_counted_from_the_mixture_when_it_is_asked_for(data, trainer):
    found = {}
    for modes in (1, 4):
        torch.manual_seed(0)
        distiller = Distiller(data.statistics, GraphStudent(layers=1, width=8), marginal_modes=modes)
        found[modes] = trainer().validate(distiller, data, verbose=False)[0]["nats/counts"]
        assert not [key for key in distiller.state_dict() if key.startswith("metrics")]
    assert found[4] < found[1]


@pytest.mark.parametrize(
    "cls", [VidHead, MseDensityHead, StudentTHead, LowRankGaussianHead, NaturalGaussianHead, WarmGaussianHead]
)
def test_a_density_is_float32_under_bfloat16_autocast(cls):
    head, student, target = cls(8, 500), torch.randn(6, 8), torch.randn(6, 500)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head(student, target)
    assert loss.dtype == torch.float32
    assert (loss != loss.bfloat16().float()).any()


@pytest.mark.parametrize(
    "cls", [BernoulliHead, GaussianHead, CosineHead, KlHead, MseDensityHead, StudentTHead, LowRankGaussianHead]
)
def test_validation_asks_nothing_that_cudas_autocast_refuses(cls):
    """Tensors without values know it on any machine; autocast of a CPU refuses less."""
    with FakeTensorMode(), torch.device("cuda"):
        head, student, target = cls(8, 5), torch.rand(6, 8), torch.rand(6, 5)
        metrics = SimpleNamespace(dim=5, marginal=None, total=torch.zeros(6, dtype=torch.float64))
        normal = SimpleNamespace(mean=torch.rand(5), var=torch.rand(5))
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            assert (student @ student.T).dtype == torch.bfloat16
            TeacherMetrics.update(metrics, head, normal, head(student, target), student, target)
        finally:
            torch.set_autocast_enabled("cuda", False)
        assert metrics.total.dtype == torch.float64


# ---------------------------------------------------------------------------------------------------- regressions


def test_unics_loss_is_that_of_a_plain_loop():
    widths, head = [6, 6, 8], MixHead(8, 5, ladder=True)
    head.attach(HeadContext(widths, torch.empty))
    blocks, target = [torch.randn(7, width) for width in widths], torch.randn(7, 5)
    got = head(torch.cat(blocks, 1), target)
    for row in range(7):
        predicted = torch.zeros(5)
        for rung, block in zip(head.mlp.rungs, blocks, strict=True):
            first, second = rung[0], rung[2]
            assert first.out_features == (32 if block is blocks[-1] else 8), "4 D for the last block, D for the others"
            predicted = predicted + second.weight @ F.gelu(first.weight @ block[row] + first.bias) + second.bias
        cosine = predicted @ target[row] / (predicted.norm() * target[row].norm())
        each = [(0.5 * e * e if e < 1 else e - 0.5) for e in (predicted - target[row]).abs().tolist()]
        assert got[row].item() == pytest.approx(0.5 * (1 - cosine.item()) + 0.5 * sum(each) / 5, abs=1e-5)


def test_a_mix_has_the_weights_that_it_is_given():
    student, target = torch.randn(7, 8), torch.randn(7, 5)
    head = MixHead(8, 5, cosine=0.9, smooth_l1=0.1, mse=2.0)
    out = head.mlp(student)
    smooth, squared = (getattr(F, name)(out, target, reduction="none").mean(1) for name in ("smooth_l1_loss", "mse_loss"))
    expected = 0.9 * (1 - F.cosine_similarity(out, target)) + 0.1 * smooth + 2 * squared
    torch.testing.assert_close(head(student, target), expected)
    with pytest.raises(ConfigError, match="one above 0"):
        MixHead(8, 5, cosine=0, smooth_l1=0)


def test_the_angle_is_divided_by_the_teachers_dispersion():
    rows = torch.randn(100, 5) + 1
    head = AngleHead(8, 5)
    head.attach(HeadContext([8], lambda count: rows))
    directions = F.normalize(rows.double())
    center = F.normalize(directions.mean(0), dim=0)
    dispersion = torch.arccos((directions @ center).clamp(-1, 1)).square().mean()
    assert head.dispersion.item() == pytest.approx(dispersion.item(), rel=1e-5)
    student, target = torch.randn(7, 8), torch.randn(7, 5)
    angle = torch.arccos(F.cosine_similarity(head.mlp(student).double(), target.double()))
    torch.testing.assert_close(head(student, target).double(), angle.square() / dispersion, rtol=1e-4, atol=1e-5)


def test_the_angles_gradient_is_finite_where_prediction_and_target_agree():
    head, target = AngleHead(8, 5), torch.randn(3, 5)
    out = target.clone().requires_grad_()
    head.loss(out, target).sum().backward()
    assert out.grad.isfinite().all()


# ----------------------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("classes", [1, 4])
def test_kl_of_logits_is_that_of_softened_classes(classes):
    head, student, logits = KlHead(8, classes, temperature=3.0), torch.randn(6, 8), 5 * torch.randn(6, classes)
    both = [head.mlp(student), logits]
    if classes == 1:
        theirs, mine = (D.Bernoulli(logits=each.squeeze(1) / 3) for each in reversed(both))
    else:
        theirs, mine = (D.Categorical(logits=each / 3) for each in reversed(both))
    torch.testing.assert_close(head(student, logits), 9 * D.kl_divergence(theirs, mine), rtol=1e-4, atol=1e-5)
    assert KlHead.raw_targets, "logits are no embedding to standardise"


# -------------------------------------------------------------------------------------------------------- relations


def test_the_queues_divergence_is_that_of_a_plain_loop():
    rows = torch.randn(20, 5)
    head = QueueHead(8, 5, temperature=0.5)
    head.attach(HeadContext([8], lambda count: rows))
    student, target = torch.randn(4, 8), torch.randn(4, 5)
    got, out = head(student, target), head.mlp(student)
    for row in range(4):
        mine, theirs = (
            D.Categorical(logits=torch.stack([F.cosine_similarity(each[row], other, dim=0) / 0.5 for other in rows]))
            for each in (out, target)
        )
        torch.testing.assert_close(got[row], D.kl_divergence(theirs, mine), rtol=1e-4, atol=1e-6)


def test_contrast_tells_a_rows_target_from_others_and_not_from_itself():
    rows = torch.randn(6, 5)
    head = ContrastHead(8, 5, negatives=6, temperature=0.5).eval()
    head.attach(HeadContext([8], lambda count: rows))
    student, target = torch.randn(1, 8), rows[2:3]
    scores = F.cosine_similarity(head.mlp(student), rows) / 0.5 - math.log(6)
    wrong = torch.cat([scores[:2], scores[3:]])
    expected = -F.logsigmoid(scores[2]) - F.logsigmoid(-wrong).sum()
    torch.testing.assert_close(head(student, target)[0], expected)


def test_the_log_partition_goes_where_it_has_to():
    """Several units, at the learning rate of heads."""
    rows = F.normalize(torch.randn(256, 20))
    head = ContrastHead(20, 20, negatives=256)
    head.attach(HeadContext([20], lambda count: rows))
    optimiser = torch.optim.AdamW(head.parameters(), 1e-3)
    for _ in range(150):
        optimiser.zero_grad()
        drawn = rows[torch.randint(256, (64,))]
        head(drawn, drawn).mean().backward()
        optimiser.step()
    assert head.pace * head.raw_partition.item() > math.log(256) + 0.5, "what is near its target needs a larger one"


def test_relations_are_those_of_a_plain_loop():
    student, target = torch.randn(5, 8), torch.randn(5, 3)
    got = RelationHead(8, 3, distance=1.0, angle=2.0)(student, target)

    def distances(x):
        found = torch.tensor([[(a - b).norm() for b in x] for a in x])
        return found / found[~torch.eye(5, dtype=torch.bool)].mean()

    def angles(x):
        unit = [[F.normalize(b - a, dim=0) for b in x] for a in x]
        return torch.tensor([[[unit[i][j] @ unit[i][k] for k in range(5)] for j in range(5)] for i in range(5)])

    expected = F.huber_loss(distances(student), distances(target), reduction="none").mean(1)
    expected = expected + 2 * F.huber_loss(angles(student), angles(target), reduction="none").mean((1, 2))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_relations_of_many_rows_are_finite_and_never_see_a_masked_row(data):
    head, student, target = RelationHead(8, 3), torch.randn(3 * CORNERS, 8), torch.randn(3 * CORNERS, 3)
    student[1], target[1], target[2:4] = student[0], target[0], 1e3  # doubles
    loss = head(student.requires_grad_(), target)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100
    distiller = Distiller(data.statistics, GraphStudent(layers=1, width=8), RelationHead)
    batch = next(iter(data.train_dataloader()))
    batch.valid["counts"] = torch.arange(32) < 20
    student = torch.randn(32, 8)
    targets = {name: torch.randn(32, 4) for name in distiller.teachers}
    first = distiller.bank(student, targets, batch.valid)
    targets["counts"][20:] = torch.nan
    second = distiller.bank(student, targets, batch.valid)
    torch.testing.assert_close(first, second)
    unseen = {name: torch.zeros(32, dtype=torch.bool) for name in distiller.teachers}
    distiller.bank(student.requires_grad_(), targets, unseen).sum().backward()
    assert not student.grad.any(), "a rank without a row has a gradient, zero"


# --------------------------------------------------------------------------------------------------------- ladders


def students() -> dict[str, tuple]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
    text = TextStudent("bert", config={**sizes, "max_position_embeddings": 8}, dim=12)
    tokens = {"tokens": Ragged(torch.tensor([3, 4, 5]), torch.tensor([2, 1]), 2)}
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    return {
        "text": (text, {"tokens": tokens}),
        "small images": (SmallResNet(1, 4, dim=10), {"pixels": pixels}),
        "timm": (ImageStudent("resnet18", pretrained=False, dim=20), {"pixels": pixels}),
        "torchvision": (ImageStudent("mobilenet_v2", "torchvision", pretrained=False), {"pixels": pixels}),
        "mixed": (MixedStudent({"text": text, "image": SmallResNet(1, 4)}, dim=10), {"tokens": tokens, "pixels": pixels}),
    }


@pytest.mark.parametrize("kind", ["text", "small images", "timm", "torchvision", "mixed"])
def test_a_ladder_stands_on_every_kind_of_student(kind):
    student, inputs = students()[kind]
    blocks = student.eval().all_embeddings(inputs)
    assert [each.shape[1] for each in blocks] == student.widths
    assert len(blocks) > 1
    torch.testing.assert_close(blocks[-1], student(inputs))
    assert Ladder(student.widths, 5)(torch.cat(blocks, 1)).shape == (len(blocks[-1]), 5)


@pytest.mark.parametrize("jumping", [False, True])
def test_a_ladder_on_molecules_trains_every_block(data, jumping):
    student = GraphStudent(layers=3, width=8, dim=10, pooling="mean+sum", jumping=jumping)
    head = MixHead if jumping else (lambda s, t: GaussianHead(s, t, ladder=True))
    distiller = Distiller(data.statistics, student, (lambda s, t: MixHead(s, t, ladder=True)) if jumping else head)
    assert [rung[0].in_features for rung in distiller.heads["counts"].mlp.rungs] == [16, 16, 10]
    losses, _, seen, _ = distiller.losses(next(iter(data.train_dataloader())))
    losses.sum().backward()
    assert seen.shape == (32, 42)
    assert all(rung[0].weight.grad.abs().sum() > 0 for rung in distiller.heads["counts"].mlp.rungs)


def test_a_student_that_hides_its_blocks_has_no_ladder(data):
    class Hidden(GraphStudent):
        widths = property(lambda self: super(GraphStudent, self).widths)

    with pytest.raises(ConfigError, match="give it `widths`"):
        Distiller(data.statistics, Hidden(layers=1, width=8), lambda s, t: MixHead(s, t, ladder=True))


def test_many_degrees_of_freedom_are_a_gaussian():
    head, student, target = StudentTHead(8, 5, degrees=1e3), torch.randn(6, 8), torch.randn(6, 5)
    gaussian = GaussianHead._nll(head, head.mlp(student), target)
    torch.testing.assert_close(head(student, target), gaussian, rtol=1e-2, atol=1e-2)


def test_a_natural_gaussian_without_bounds_is_finite():
    head = NaturalGaussianHead(8, 5, bounded=False)
    with torch.no_grad():
        head.mlp[-1].bias[6:] = -60.0
    assert head(torch.randn(4, 8), torch.randn(4, 5)).isfinite().all()


def test_a_bernoulli_head_is_for_bits():
    head = BernoulliHead(8, 3)
    head.attach(HeadContext([8], lambda count: torch.tensor([[0.0, 1.0, 0.5]])))
    with pytest.raises(ConfigError, match="values go from 0 to 3: expected bits"):
        head.attach(HeadContext([8], lambda count: torch.tensor([[0.0, 1.0, 3.0]])))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: QueueHead(8, 5, temperature=0), "temperature of a QueueHead is 0, expected a number above 0"),
        (lambda: QueueHead(8, 5, queue=-5), "queue"),
        (lambda: ContrastHead(8, 5, negatives=0), "negatives"),
        (lambda: LowRankGaussianHead(8, 5, rank=0), "rank"),
        (lambda: WarmGaussianHead(8, 5, steps=-3), "steps"),
        (lambda: GaussianHead(8, 5, modes=0), "modes"),
        (lambda: GaussianHead(8, 5, beta=9), "beta of a GaussianHead is 9, expected a power between 0 and 1"),
        (lambda: GaussianHead(8, 5, layers=-2), "-2 hidden layers"),
        (lambda: MseHead(8, 5, width=0), "0 wide"),
        (lambda: RelationHead(8, 5, distance=-1), "distance -1"),
        (lambda: CosineHead(8, 1), "CosineHead compares directions, and this teacher has 1 dimension"),
        (lambda: DirectHead(8, 9), "the student's is 8 wide and the teacher's target 9; make the student as wide"),
        (lambda: QueueHead(8, 1), "QueueHead compares directions"),
        (lambda: AngleHead(8, 1), "AngleHead compares directions"),
        (lambda: MixHead(8, 1, smooth_l1=0), "MixHead compares directions"),
        (lambda: KlHead(8, 5, temperature=math.nan), "temperature of a KlHead is nan"),
        (lambda: UncertaintyWeights(bound=-1), "bound"),
        (lambda: RelativeLossWeights(temperature=0), "temperature"),
        (lambda: RelativeLossWeights(memory=0.5), "memory"),
    ],
)
def test_settings_that_cannot_be_are_refused(made, message):
    with pytest.raises(ConfigError, match=message):
        made()


# ------------------------------------------------------------------------------------------------------------ whole


def test_there_are_methods_to_test():
    assert len(METHODS) > 10, "of an empty list pytest would make one test that is skipped"


@pytest.mark.parametrize("config", METHODS, ids=lambda path: path.stem)
def test_every_method_trains_the_student(config, cache, tmp_path, monkeypatch):
    """From its configuration, by the command, on real molecules: its loss falls."""
    small = {
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False},
        "data": {"corpus": str(cache / "mol"), "teachers": ["counts"], "batch_size": 32, "held_out": 64},
        "model": {
            "student": {"class_path": "distill.students.molecule.GraphStudent", "init_args": {"layers": 2, "width": 16}},
            "student_lr": 3e-3,
            "head_lr": 3e-3,
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    monkeypatch.chdir(tmp_path)
    cli.main(["fit", "--config", "small.yaml", "--config", str(config), "--run", "run"])
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    at = lines[0].split(",").index("val/loss")
    losses = [float(each) for line in lines[1:] if (each := line.split(",")[at])]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_a_head_in_the_place_of_another_has_its_own_size(capsys):
    """jsonargparse keeps options that both classes have: of a default it would make the first one's choice the second's."""
    vid, mini = (
        METHODS[0].with_name("vid.yaml"),
        {"class_path": "distill.heads.GaussianHead", "init_args": {"preset": "mini"}},
    )
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", str(vid), "--model.head", json.dumps(mini), "--print_config"])
    head = yaml.safe_load(capsys.readouterr().out)["model"]["head"]["init_args"]
    assert (head["preset"], head["layers"], head["width"], head["bounded"]) == ("mini", None, None, None)


FIFTEENTH = """
from torch import nn
from distill.heads import MseHead

class LogCoshHead(MseHead):
    def loss(self, out, target):
        error = (out - target).float()
        return (error + nn.functional.softplus(-2 * error) - 0.6931).sum(-1)
"""


def test_one_more_method_is_one_file(cache, tmp_path, monkeypatch):
    (tmp_path / "fifteenth.py").write_text(FIFTEENTH)
    method = {"model": {"head": {"class_path": "fifteenth.LogCoshHead", "init_args": {"width": 16, "ladder": True}}}}
    (tmp_path / "fifteenth.yaml").write_text(yaml.safe_dump(method))
    monkeypatch.syspath_prepend(str(tmp_path))
    test_every_method_trains_the_student(tmp_path / "fifteenth.yaml", cache, tmp_path, monkeypatch)
