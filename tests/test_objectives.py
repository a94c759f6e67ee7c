"""Flow matching: what its loss is worth, where it is least, and from which draws."""

import math

import numpy as np
import pytest
import torch
from conftest import GAUSSIANS, PATHS, double
from scipy import stats

from flowtext.fit import fading, fit
from flowtext.nets import KINDS, MLP, velocity
from flowtext.objectives import FlowMatching, logit_normal, uniform, within
from flowtext.paths import given, linear, minibatch_ot
from flowtext.worlds import Gaussian, Mixture

every_kind = pytest.mark.parametrize("kind", KINDS)
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
middle = within(0.02, 0.98)


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def agrees(samples, expected=0.0):
    """Whether the mean of samples (n, ...) is as expected, within 4 standard errors."""
    error = samples.std(0) / math.sqrt(len(samples))
    return bool(((samples.mean(0) - expected).abs() <= 4 * error).all())


def best(world, path, kind):
    """The exact answer to a kind of question, as a net."""
    data = world.denoise(path)

    def net(x, s, t, y=None):
        if kind == "velocity":
            return world.velocity(path)(x, s)
        a, b = path.alpha(s)[:, None], path.sigma(s)[:, None]
        return data(x, s) if kind == "data" else (x - a * data(x, s)) / b

    return net


def bump(x, t):
    return 0.3 * (x.flip(1) * 2).sin() + 0.5 * (t[:, None] * 3).cos()


def heard(objective, x1, y=None, seed=0):
    """The inputs that a net gets, and the losses of its answers."""
    inputs = []

    def net(x, s, t, y):
        inputs.append((x, s, t, y))
        return torch.zeros_like(x)

    losses = objective(net, x1, y, generator=seeded(seed))
    return *inputs[0], losses


# The value of the loss


@every_path
@every_kind
@pytest.mark.parametrize("world", GAUSSIANS.values(), ids=GAUSSIANS)
def test_the_least_loss_is_the_variance_that_the_state_leaves_open(world, path, kind):
    """Given x = alpha x1 + sigma x0, a sum c x1 + d x0 of the ends still has variance
    (c sigma - d alpha)^2 lambda / (alpha^2 lambda + sigma^2) in a direction where the
    data have lambda."""

    nodes, weights = np.polynomial.legendre.leggauss(200)
    t, weights = torch.from_numpy(0.5 + 0.48 * nodes), torch.from_numpy(weights / 2)
    a, b, a_dot, b_dot = (part[:, None] for part in path.coefficients(t))
    c, d = {"velocity": (a_dot, b_dot), "data": (1, 0), "noise": (0, 1)}[kind]
    spectrum = torch.linalg.eigvalsh(world.cov)
    left_open = (c * b - d * a) ** 2 * spectrum / (a**2 * spectrum + b**2)
    expected = weights @ left_open.mean(1)
    objective = FlowMatching(path, times=middle, predicts=kind)
    x1 = world.sample(40_000, seeded())
    losses = objective(best(world, path, kind), x1, generator=seeded(1))
    assert losses.shape == (40_000,)
    assert agrees(losses, expected)


def test_on_straight_lines_the_least_loss_of_a_gaussian_is_pi_over_two_times_its_std():
    """The integral over t of c^2 / (t^2 c^2 + (1 - t)^2) is pi c / 2."""
    for c in (0.3, 1.0, 2.0):
        world = Gaussian(double(0.7), double([c**2]))
        x1 = world.sample(100_000, seeded())
        exact = best(world, linear, "velocity")
        losses = FlowMatching()(exact, x1, generator=seeded(1))
        assert agrees(losses, math.pi * c / 2)


@every_kind
def test_any_other_answer_costs_its_squared_distance_more(world, path, kind):
    objective = FlowMatching(path, times=middle, predicts=kind)
    x1, exact, excess = world.sample(20_000, seeded()), best(world, path, kind), []

    def other(x, s, t, y):
        excess.append(bump(x, t).square().mean(1))
        return exact(x, s, t) + bump(x, t)

    least = objective(exact, x1, generator=seeded(1))
    losses = objective(other, x1, generator=seeded(1))
    assert excess[0].mean() > 0.1
    assert agrees(losses - least, excess[0].mean())
    assert not agrees(losses - least)


def test_the_loss_is_a_mean_over_coordinates_of_each_sample():
    x1, v = torch.randn(6, 2, 3, 3), torch.randn(6, 2, 3, 3)
    pairs = torch.stack([torch.zeros_like(x1), x1], 1)
    losses = FlowMatching(pair=given)(lambda *_: v, pairs, generator=seeded())
    expected = [((v[i] - x1[i]) ** 2).mean() for i in range(6)]
    assert torch.allclose(losses, torch.stack(expected))


# The place of its minimum


@every_path
@every_kind
def test_the_gradient_of_single_pairs_is_that_of_the_exact_answer_on_average(
    path, kind
):
    """For a net that is linear in its weights, sample by sample."""
    world = Mixture(double([-2.0], [1.5]), double(0.3, 0.5), double(0.4, 0.6))
    exact = best(world, path, kind)

    def net(weights):
        def answer(x, s, t, y=None):
            features = torch.cat([torch.ones_like(x), x, x.sin(), t[:, None]], 1)
            return (features @ weights)[:, None]

        return answer

    objective = FlowMatching(path, times=middle, predicts=kind)
    x1, weights = world.sample(20_000, seeded()), double(0.5, -1, 0.3, 2)
    x, t, *_ = heard(objective, x1, seed=1)
    from_pairs = torch.func.jacfwd(
        lambda weights: objective(net(weights), x1, generator=seeded(1)),
        randomness="same",
    )(weights)
    from_exact = torch.func.jacfwd(
        lambda weights: (net(weights)(x, t, t) - exact(x, t, t)).square().mean(1)
    )(weights)
    assert agrees(from_pairs - from_exact)
    assert not agrees(from_pairs)


@every_path
@every_kind
def test_the_best_line_is_the_exact_answer_of_a_gaussian(path, kind):
    """A quadratic loss: one Newton step leads to its minimum."""
    world, n = Gaussian(double(0.8), double([0.36])), 100_000
    moment = 0.6
    objective = FlowMatching(
        path, times=lambda n, g: torch.full((n,), moment).double(), predicts=kind
    )
    x1 = world.sample(n, seeded())

    def loss(line):
        def net(x, s, t, y=None):
            return line[0] * x + line[1]

        return objective(net, x1, generator=seeded(1)).mean()

    start = torch.zeros(2).double()
    slope = torch.func.grad(loss)(start)
    curvature = torch.autograd.functional.hessian(loss, start)
    line = start - torch.linalg.solve(curvature, slope)
    places, t = double([0.0], [1.0]), torch.full((2,), moment).double()
    at_zero, at_one = best(world, path, kind)(places, t, t)[:, 0]
    error = (loss(line) / n).sqrt() / 0.3  # x spreads by more than 0.3
    assert (line[0] - (at_one - at_zero)).abs() < 4 * error
    assert (line[1] - at_zero).abs() < 4 * error
    assert error < 0.02


def test_a_trained_net_comes_near_the_exact_velocity():
    world = Mixture(double([-1.5], [1.0]), double(0.4, 0.4), double(0.5, 0.5))
    torch.manual_seed(0)
    net = MLP(1, width=64)
    for step in fit(
        net,
        FlowMatching(),
        lambda generator: world.sample(128, generator).float(),
        steps=300,
        lr=fading(2e-2),
        generator=seeded(),
    ):
        assert step.loss.isfinite()
    x1 = world.sample(2000, seeded(2))
    t = 0.95 * uniform(2000, seeded(3)).double()
    x = linear.at(torch.randn(x1.shape, generator=seeded(4)).double(), x1, t).x
    exact = world.velocity(linear)(x, t)
    with torch.inference_mode():
        found = velocity(step.ema)(x.float(), t.float()).double()
        at_noise = velocity(step.ema)(x.float(), 0 * t.float()).double()
    share = (found - exact).square().mean() / exact.square().mean()
    assert share < 0.03
    assert (at_noise - exact).square().mean() / exact.square().mean() > 0.3


# What the net is asked


def test_a_net_is_asked_on_the_path_on_the_diagonal_with_its_labels(path):
    x0, x1 = torch.randn(2, 50, 3).double()
    y = torch.arange(50)
    objective = FlowMatching(path, pair=given, times=middle)
    x, s, t, labels, _ = heard(objective, torch.stack([x0, x1], 1), y)
    assert s is t
    assert labels is y
    assert torch.equal(t, middle(50, seeded()).double())
    assert torch.equal(x, path.at(x0, x1, t).x)


def test_without_labels_the_net_gets_none():
    assert heard(FlowMatching(), torch.randn(5, 2))[3] is None


@every_kind
def test_each_kind_of_net_is_told_another_end(path, kind):
    x0, x1 = torch.randn(2, 50, 3).double()
    objective = FlowMatching(path, pair=given, times=middle, predicts=kind)
    *_, t, _, losses = heard(objective, torch.stack([x0, x1], 1))
    point = path.at(x0, x1, t)
    told = {"velocity": point.v, "data": x1, "noise": x0}[kind]
    assert torch.equal(objective.target(point), told)
    assert (losses - told.square().mean(1)).abs().max() < 1e-12


def test_a_weight_multiplies_the_loss_at_its_time():
    x1 = torch.randn(100, 2)
    *_, t, _, plain = heard(FlowMatching(), x1)
    *_, weighed = heard(FlowMatching(weight=lambda t: 1 + 3 * t**2), x1)
    assert torch.allclose(weighed, (1 + 3 * t**2) * plain)
    *_, other = heard(FlowMatching(weight=torch.zeros_like), x1)
    assert other.abs().max() == 0


def test_the_coupling_decides_which_noise_meets_which_data():
    x1 = torch.randn(64, 2)
    coupled = FlowMatching(pair=minibatch_ot(64))
    near, far = heard(coupled, x1)[-1].mean(), heard(FlowMatching(), x1)[-1].mean()
    assert near < 0.5 * far


# Draws


def test_one_seed_gives_one_loss_and_the_global_draws_are_left_alone():
    x1, before = torch.randn(32, 2), torch.get_rng_state()
    for objective in (
        FlowMatching(),
        FlowMatching(times=logit_normal()),
        FlowMatching(times=middle, pair=minibatch_ot(16)),
    ):
        first, again = (heard(objective, x1, seed=5)[-1] for _ in range(2))
        other = heard(objective, x1, seed=6)[-1]
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_step_draws_anew():
    generator, x1 = seeded(), torch.randn(32, 2)
    net = MLP(2, width=8)
    first = FlowMatching()(net, x1, generator=generator)
    assert not torch.equal(first, FlowMatching()(net, x1, generator=generator))


def test_without_a_generator_the_global_seed_decides():
    x1, losses = torch.randn(32, 2), []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(FlowMatching()(lambda x, *_: x, x1))
    assert torch.equal(*losses)


def test_time_has_the_precision_of_the_data():
    for dtype in (torch.float32, torch.float64):
        x1 = torch.randn(8, 2, dtype=dtype)
        x, s, _, _, losses = heard(FlowMatching(), x1)
        assert x.dtype == s.dtype == losses.dtype == dtype


def fits(samples, law):
    """The Kolmogorov-Smirnov test, at a level of one in ten thousand."""
    return stats.kstest(samples.numpy(), law).pvalue > 1e-4


def test_uniform_times_are_uniform():
    assert fits(uniform(20_000, seeded()), stats.uniform.cdf)
    assert torch.equal(uniform(9, seeded(1)), uniform(9, seeded(1)))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.4, 1.5), (1.0, 0.5)])
def test_logit_normal_times_have_normal_log_odds(mean, std):
    t = logit_normal(mean, std)(20_000, seeded()).double()
    assert fits(torch.logit(t), stats.norm(mean, std).cdf)
    assert (t.mean() > 0.5) == (mean > 0) or mean == 0


def test_a_law_is_squeezed_into_its_bounds():
    t = within(0.2, 0.9)(20_000, seeded())
    assert fits(t, stats.uniform(0.2, 0.7).cdf)
    assert torch.equal(within(0.0, 1.0)(9, seeded()), uniform(9, seeded()))
    law = logit_normal(1.0)
    assert torch.allclose(
        within(0.5, 1.0, law)(9, seeded()), 0.5 + 0.5 * law(9, seeded())
    )
