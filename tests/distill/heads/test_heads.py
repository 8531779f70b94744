import ast

import numpy as np
import pytest
import torch
from torch import distributions as D
from torch.nn import functional as F

from distill.heads import CosineHead, DirectHead, MseHead, outputs
from distill.heads.gaussian import PRESETS, BernoulliHead, GaussianHead

CASES = ["diag_k1", "diag_k1_tanh", "diag_k4", "diag_k4_tanh", "tril_k2"]


def reference(head: GaussianHead, student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The same density by torch.distributions."""
    dim = target.shape[1]
    out = head.mlp(student).view(len(student), head.modes, -1).double()
    logit, mean, scale = out[..., 0], out[..., 1 : 1 + dim], out[..., 1 + dim : 1 + 2 * dim]
    precision = (torch.tanh(scale) if head.bounded else scale).exp()
    if head.triangular:
        unit = torch.tril(out[..., 1 + 2 * dim :].unflatten(-1, (dim, dim)), -1) + torch.eye(dim)
        factor = unit @ torch.diag_embed(precision)  # z = factor (t - mean)
        parts = D.MultivariateNormal(mean, precision_matrix=factor.mT @ factor)
    else:
        parts = D.Independent(D.Normal(mean, 1 / precision), 1)
    return D.MixtureSameFamily(D.Categorical(logits=logit), parts).log_prob(target.double())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.workplace
def test_gaussian_head_gives_the_published_log_density(shared, case):
    golden = np.load(shared / "golden" / "gaussian_heads.npz", allow_pickle=True)
    config = ast.literal_eval(str(golden[f"{case}/config"]))
    student, target = (torch.from_numpy(golden[f"{case}/{name}"]) for name in ("student", "teacher"))
    head = GaussianHead(
        student.shape[1],
        target.shape[1],
        layers=config["ff_layers"],
        width=config["ff_dim_hidden"],
        bounded=config["use_tanh"],
        modes=config["cond_modes"],
        triangular="cov_off_diagonal" in config,
    )
    prefix = f"{case}/param/ff.stack."
    published = {name.removeprefix(prefix): golden[name] for name in golden if name.startswith(prefix)}
    # a layer is LayerNorm, Linear, ReLU, Dropout there; no Dropout here
    place = {name: int(name.split(".")[0]) for name in published}
    state = {f"{n - n // 4}.{name.split('.')[1]}": torch.from_numpy(published[name]) for name, n in place.items()}
    head.mlp.load_state_dict(state)
    np.testing.assert_allclose(head.log_prob(student, target).detach(), golden[f"{case}/log_prob"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("triangular", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("modes", [1, 3])
def test_gaussian_head_agrees_with_torch_distributions(modes, bounded, triangular):
    torch.manual_seed(0)
    head = GaussianHead(16, 5, width=32, modes=modes, bounded=bounded, triangular=triangular)
    student, target = torch.randn(64, 16), torch.randn(64, 5)
    torch.testing.assert_close(
        head.log_prob(student, target).double(), reference(head, student, target), rtol=1e-5, atol=1e-5
    )


def test_a_bounded_head_keeps_a_floor_above_its_own_least_sigma():
    head = GaussianHead(2, 1, layers=0, floor=0.5)
    with torch.no_grad():
        head.mlp[0].weight.zero_()
        head.mlp[0].bias.copy_(torch.tensor([0.0, 0.0, 10.0]))  # sigma would be 1 / e
    expected = -D.Normal(0.0, 0.5).log_prob(torch.zeros(3))
    torch.testing.assert_close(head(torch.randn(3, 2), torch.zeros(3, 1)), expected)


@pytest.mark.parametrize("cls", [GaussianHead, BernoulliHead, MseHead, CosineHead])
def test_a_loss_is_float32_under_bfloat16_autocast(cls):
    torch.manual_seed(0)
    head, student, target = cls(16, 40), torch.randn(8, 16), torch.randint(2, (8, 40)).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = head(student, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head(student, target), rtol=0.05, atol=0.05)


def test_the_density_itself_is_not_computed_in_bfloat16():
    torch.manual_seed(0)
    head, student, target = GaussianHead(16, 2000), torch.randn(8, 16), torch.randn(8, 2000)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head(student, target)
    assert (loss != loss.bfloat16().float()).any()


def test_one_mode_has_no_weight_term():
    """The published code took a softmax over the batch there, which adds log(batch)."""
    torch.manual_seed(0)
    head, student, target = GaussianHead(16, 5), torch.randn(64, 16), torch.randn(64, 5)
    torch.testing.assert_close(head(student, target)[:1], head(student[:1], target[:1]))


@pytest.mark.parametrize(("preset", "layers", "width", "bounded"), [(name, *sizes) for name, sizes in PRESETS.items()])
def test_presets_are_the_papers_and_one_that_did_better(preset, layers, width, bounded):
    published = {"default": (2, 512, False), "small": (1, 512, False), "large": (4, 512, False), "mini": (1, 128, True)}
    published["bounded"] = (2, 512, True)
    head = GaussianHead(24, 7, preset=preset)
    linears = [module for module in head.mlp if isinstance(module, torch.nn.Linear)]
    assert (layers, width, bounded) == published[preset]
    assert [each.out_features for each in linears] == [width] * layers + [15]
    assert head.bounded is bounded


def test_bernoulli_head_is_the_likelihood_of_bits():
    torch.manual_seed(0)
    head, student, bits = BernoulliHead(8, 30), torch.randn(5, 8), torch.randint(2, (5, 30), dtype=torch.uint8)
    expected = -D.Independent(D.Bernoulli(logits=head.mlp(student)), 1).log_prob(bits.float())
    torch.testing.assert_close(head(student, bits), expected)


def test_mse_and_cosine_are_the_baselines():
    torch.manual_seed(0)
    student, target = torch.randn(5, 8), torch.randn(5, 30)
    mse, cosine = MseHead(8, 30), CosineHead(8, 30)
    torch.testing.assert_close(mse(student, target), (mse.mlp(student) - target).pow(2).sum(1))
    torch.testing.assert_close(cosine(student, target), 1 - F.cosine_similarity(cosine.mlp(student), target))


def test_a_direct_head_compares_the_embedding_itself_alone_or_beside_a_linear_one():
    student, target = torch.randn(5, 8), torch.randn(5, 8)
    direct, linear = DirectHead(8, 8), CosineHead(8, 30, layers=0)
    torch.testing.assert_close(direct(student, target), 1 - F.cosine_similarity(student, target))
    assert list(direct.parameters()) == []
    for ours, theirs in zip(outputs([direct, linear], student), (student, linear.mlp(student)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_marginal_nll_is_the_density_that_knows_mean_and_variance():
    target, mean, var = torch.randn(6, 4), torch.randn(4), torch.rand(4) + 0.1
    expected = -D.Independent(D.Normal(mean, var.sqrt()), 1).log_prob(target)
    torch.testing.assert_close(GaussianHead.marginal_nll(target, mean, var), expected)
    bits, share = torch.randint(2, (6, 4)), torch.tensor([0.1, 0.5, 0.9, 0.2])
    expected = -D.Independent(D.Bernoulli(share), 1).log_prob(bits.float())
    torch.testing.assert_close(BernoulliHead.marginal_nll(bits, share, share * (1 - share)), expected)


def test_a_gaussian_head_learns_mean_and_scale():
    torch.manual_seed(0)
    student = torch.randn(4096, 2)
    target = student * 2 + torch.randn(4096, 2) * torch.tensor([0.3, 1.5])
    head = GaussianHead(2, 2, layers=0, bounded=False)  # a LayerNorm over two dimensions would leave one sign
    optimizer = torch.optim.Adam(head.parameters(), 3e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = head(student, target).mean()
        loss.backward()
        optimizer.step()
    truth = -D.Normal(student * 2, torch.tensor([0.3, 1.5])).log_prob(target).sum(1).mean()
    assert abs(loss.item() - truth.item()) < 0.05


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_heads_computed_together_are_the_same_heads(layers):
    torch.manual_seed(0)
    kinds = [GaussianHead, BernoulliHead, MseHead, CosineHead]
    heads = [kind(8, dim, layers=layers, width=12) for kind, dim in zip(kinds, (3, 5, 4, 6), strict=True)]
    for head in heads:
        for parameter in head.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    students = [torch.randn(7, 8).requires_grad_() for _ in range(2)]
    students[1].data = students[0].data
    alone = [head.mlp(students[0]) for head in heads]
    together = outputs(heads, students[1])
    torch.testing.assert_close(together, alone)
    gradients = []
    for out in (alone, together):
        sum(each.square().sum() for each in out).backward()
        gradients.append([parameter.grad for head in heads for parameter in head.parameters()])
        for head in heads:
            head.zero_grad()
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(students[0].grad, students[1].grad)
