import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from distill.evaluation.probes.descent import minimise


def logistic(problems: int, seed: int = 0):
    """Penalised logistic losses of several problems on features of very different scales, and where each is least."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(200, 12)) * np.logspace(0, -2, 12))
    y = torch.from_numpy((rng.uniform(size=(problems, 200)) < np.linspace(0.02, 0.5, problems)[:, None]).astype(float))

    def loss(weights, which):
        logits = weights @ x.T
        losses = torch.nn.functional.softplus(logits) - y[which] * logits
        return losses.sum(1) + 1e-3 * weights.square().sum(1), (logits.sigmoid() - y[which]) @ x + 2e-3 * weights

    def one(number):
        def of(weights):
            value, slope = loss(torch.from_numpy(weights)[None], torch.tensor([number]))
            return float(value), slope[0].numpy()

        return minimize(of, np.zeros(12), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9}).fun

    return loss, [one(number) for number in range(problems)]


@pytest.mark.parametrize("memory", [2, 10])
def test_every_problem_ends_where_scipy_ends(memory):
    loss, least = logistic(5)
    everything, zero = torch.arange(5), torch.zeros(5, 12, dtype=torch.float64)
    found = minimise(loss, zero, loss(zero, everything)[0], 1e-12, memory=memory)
    np.testing.assert_allclose(loss(found, everything)[0], least, rtol=1e-6)


def test_a_problem_that_has_arrived_is_not_computed_again():
    loss, _ = logistic(4)
    counts = []

    def counted(weights, which):
        counts.append(len(which))
        return loss(weights, which)

    zero = torch.zeros(4, 12, dtype=torch.float64)
    minimise(counted, zero, loss(zero, torch.arange(4))[0], 1e-9)
    assert counts[0] == 4
    assert counts[-1] < 4
    assert counts == sorted(counts, reverse=True)


def test_a_looser_tolerance_stops_earlier():
    loss, least = logistic(3)
    zero, everything = torch.zeros(3, 12, dtype=torch.float64), torch.arange(3)
    worst = loss(zero, everything)[0]
    least = torch.tensor(least, dtype=torch.float64)
    tight, loose = (loss(minimise(loss, zero, worst, each), everything)[0] - least for each in (1e-10, 1e-2))
    assert (tight < 1e-4 * (worst - least)).all()
    assert (loose > 10 * tight).all()


def test_no_step_climbs_even_where_the_first_one_is_far_too_long():
    values = []

    def steep(x, which):
        values.append(float((100 * x.square()).sum()))
        return (100 * x.square()).sum(1), 200 * x

    found = minimise(steep, torch.ones(1, 3), torch.tensor([300.0]), 1e-9)
    assert max(values) > values[0], "the test should begin with a step that is too long"
    assert found.abs().max() < 1e-3
