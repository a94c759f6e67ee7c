"""Guidance: labels left out in training, leaned on in sampling."""

import math

import pytest
import torch
from conftest import PATHS, double

from flowtext.guide import drop_labels, guided, mix
from flowtext.nets import MLP, velocity
from flowtext.objectives import FlowMatching
from flowtext.paths import linear
from flowtext.solve import euler, grid, integrate
from flowtext.worlds import Mixture

WORLD = Mixture(
    double([0.0, 1, 2], [2, -1, 0], [-1, 0, -1]),
    double(0.4, 0.7, 1.1),
    double(0.5, 0.3, 0.2),
)
PARTS = [
    Mixture(WORLD.means[k : k + 1], WORLD.stds[k : k + 1], double(1.0))
    for k in range(3)
]
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def exact(path):
    """The perfect net for three labels: each label's velocity, or that of them all."""

    def net(x, s, t, y=None):
        free = WORLD.velocity(path)(x, s)
        if y is None:
            return free
        bound = torch.stack([part.velocity(path)(x, s) for part in PARTS])
        return torch.where(y[:, None] < 0, free, bound[y, torch.arange(len(x))])

    return net


def places(n=60):
    x, t = 2 * torch.randn(n, 3, generator=seeded()).double(), torch.rand(n).double()
    return x, 0.2 + 0.7 * t, torch.arange(n) % 3


# Labels left out

NET = MLP(2, width=8)


def told(share, y, seed=0, **rest):
    """What an objective hears of x1 and y when a share of labels is left out."""
    heard = {}

    def objective(net, x1, y, *, generator, **rest):
        heard.update(net=net, x1=x1, y=y, generator=generator, **rest)
        return x1.square().mean(1)

    x1 = torch.randn(len(y), 2, generator=seeded())
    loss = drop_labels(objective, share)(NET, x1, y, generator=seeded(seed), **rest)
    assert heard["x1"] is x1
    assert torch.equal(loss, x1.square().mean(1))
    return heard


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_share_of_the_labels_is_left_out_and_the_others_stay(share):
    y = torch.arange(20_000) % 10
    new = told(share, y)["y"]
    dropped = new == -1
    error = math.sqrt(share * (1 - share) / len(y))
    assert abs(float(dropped.double().mean()) - share) < 4 * error
    assert torch.equal(new[~dropped], y[~dropped])
    assert new.dtype == y.dtype
    assert (y == torch.arange(20_000) % 10).all(), "the caller's labels are untouched"


def test_every_label_is_as_likely_to_be_left_out():
    y = torch.arange(20_000) % 4
    dropped = told(0.3, y)["y"] == -1
    for label in range(4):
        share = dropped[y == label].double().mean()
        assert abs(float(share) - 0.3) < 4 * math.sqrt(0.21 / 5000)


def test_none_or_all_of_the_labels():
    y = torch.arange(1000) % 10
    assert torch.equal(told(0.0, y)["y"], y)
    assert (told(1.0, y)["y"] == -1).all()
    assert torch.equal(told(0.0, y - 1)["y"], y - 1), "a missing label stays missing"


def test_the_generator_decides_which_labels_are_left_out():
    y, before = torch.arange(1000) % 10, torch.get_rng_state()
    assert torch.equal(told(0.5, y, 1)["y"], told(0.5, y, 1)["y"])
    assert not torch.equal(told(0.5, y, 1)["y"], told(0.5, y, 2)["y"])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_moment_and_the_net_reach_the_objective():
    heard = told(0.5, torch.arange(10), at="a moment")
    assert heard["at"] == "a moment"
    assert heard["net"] is NET
    assert isinstance(heard["generator"], torch.Generator)


def test_a_net_so_trained_hears_the_label_or_none():
    """The objective in use: its draws come after those of the labels."""
    net, x1, y = MLP(2, width=8, labels=10), torch.randn(500, 2), torch.arange(500) % 10
    losses = drop_labels(FlowMatching(), 0.4)(net, x1, y, generator=seeded())
    generator = seeded()
    fewer = torch.where(torch.rand(500, generator=generator) < 0.4, -1, y)
    assert torch.equal(losses, FlowMatching()(net, x1, fewer, generator=generator))


def test_the_global_seed_decides_where_there_is_no_generator():
    net, x1, y = MLP(2, width=8, labels=3), torch.randn(50, 2), torch.arange(50) % 3
    torch.manual_seed(0)
    first = drop_labels(FlowMatching(), 0.5)(net, x1, y)
    torch.manual_seed(0)
    assert torch.equal(first, drop_labels(FlowMatching(), 0.5)(net, x1, y))


# Labels leaned on


@every_path
def test_scale_one_is_the_label_and_scale_zero_is_none(path):
    x, t, y = places()
    net = exact(path)
    assert (guided(net, 1.0)(x, t, t, y) - net(x, t, t, y)).abs().max() < 1e-12
    assert torch.equal(guided(net, 0.0)(x, t, t, y), net(x, t, t))


def test_guidance_is_linear_in_its_scale():
    x, t, y = places()
    net = exact(linear)
    at = {scale: guided(net, scale)(x, t, t, y) for scale in (0.0, 1.0, 3.0, -2.0)}
    step = at[1.0] - at[0.0]
    assert step.abs().max() > 1
    assert (at[3.0] - at[0.0] - 3 * step).abs().max() < 1e-12
    assert (at[-2.0] - at[0.0] + 2 * step).abs().max() < 1e-12


def test_the_scale_may_change_with_time():
    x, t, y = places()
    net = exact(linear)
    steered = guided(net, lambda t: 4 * t**2)(x, t, 0 * t + 1, y)
    for moment in range(3):
        one = slice(moment, moment + 1)
        alone = guided(net, float(4 * t[moment] ** 2))
        assert torch.allclose(steered[one], alone(x[one], t[one], t[one], y[one]))


def test_a_sample_without_a_label_is_not_steered():
    x, t, _ = places()
    none = torch.full((len(x),), -1)
    assert torch.equal(
        guided(exact(linear), 5.0)(x, t, t, none), exact(linear)(x, t, t)
    )


def test_both_times_reach_the_net():
    net, x, y = MLP(3, width=8, labels=3).double(), *places()[::2]
    s, t = torch.rand(2, len(x)).double()
    steered = guided(net, 2.0)(x, s, t, y)
    expected = 2 * net(x, s, t, y) - net(x, s, t)
    assert (steered - expected).abs().max() < 1e-12
    assert (steered - guided(net, 2.0)(x, s, s, y)).abs().max() > 1e-3


@every_path
@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_guidance_follows_the_gradient_of_the_labels_probability(path, scale):
    """v + scale g^2/2 grad log p(y | x_t): Bayes' rule for the exact worlds."""
    x, t, y = places()
    x.requires_grad_()
    joint = torch.stack(
        [
            part.log_density(path)(x, t) + weight.log()
            for part, weight in zip(PARTS, WORLD.weights, strict=True)
        ],
        1,
    )
    log_share = joint.log_softmax(1)[torch.arange(len(x)), y]
    (pull,) = torch.autograd.grad(log_share.sum(), x)
    steered = guided(exact(path), scale)(x, t, t, y)
    half = path.diffusion(t)[:, None] ** 2 / 2
    expected = WORLD.velocity(path)(x, t) + scale * half * pull
    assert (steered - expected).abs().max() < 1e-10


def test_mixing_by_the_shares_of_the_labels_is_no_guidance():
    """The mean of the labels' velocities, by their probabilities, is the free one."""
    x, t, _ = places()
    joint = torch.stack([part.log_density(linear)(x, t) for part in PARTS], 1)
    share = (joint + WORLD.weights.log()).softmax(1)
    free = WORLD.velocity(linear)
    bound = [mix(free, part.velocity(linear), 1.0)(x, t) for part in PARTS]
    mean = (share[..., None] * torch.stack(bound, 1)).sum(1)
    assert (mean - free(x, t)).abs().max() < 1e-12


def test_stronger_guidance_draws_samples_to_where_the_label_is_sure():
    y = torch.full((400,), 2)
    x0 = torch.randn(400, 3, generator=seeded(1)).double()
    sure = []
    for scale in (0.0, 1.0, 3.0):
        v = velocity(guided(exact(linear), scale), y)
        x = integrate(v, x0, grid(16), euler)
        one = torch.full((400,), 1.0).double()
        joint = torch.stack([part.log_density(linear)(x, one) for part in PARTS], 1)
        sure.append((joint + WORLD.weights.log()).softmax(1)[:, 2].mean())
    assert sure[0] < sure[1] - 0.2
    assert sure[1] < sure[2] - 0.01


def test_any_two_velocities_can_be_mixed():
    """Also two models: steering away from a bad version of itself."""
    x, t, _ = places()
    good, bad = WORLD.velocity(linear), PARTS[0].velocity(linear)
    mixed = mix(bad, good, 2.0)(x, t)
    assert (mixed - (2 * good(x, t) - bad(x, t))).abs().max() < 1e-12
