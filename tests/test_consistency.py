"""Consistency: exact maps to the data, the bias of a finite gap, and relatives."""

import itertools
import math

import pytest
import torch
from conftest import double, refuses
from test_maps import (
    WORLDS,
    average,
    check_gradient,
    inner,
    instant,
    kept,
    net_of,
    overheard,
)
from test_objectives import agrees, seeded

from flowtext.consistency import (
    ConsistencyDistillation,
    ConsistencyTraining,
    ContinuousConsistency,
    MomentMatching,
    Trajectory,
    carry,
    even,
    shrinking,
)
from flowtext.maps import MeanFlow, jump, ordered, to_data
from flowtext.nets import MLP, Twins
from flowtext.objectives import (
    At,
    FlowMatching,
    adaptive,
    pseudo_huber,
    within,
)
from flowtext.paths import linear
from flowtext.solve import euler, heun, rk4
from flowtext.tensors import per_sample
from flowtext.worlds import Gaussian, Mixture, eight_modes

LINE = Gaussian(double(0.0), double([0.25]))
early = within(0.1, 0.9)


# The exact map


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_taught_by_the_exact_velocity_the_exact_map_has_no_loss(world):
    net, teacher = average(world), instant(world)
    x1 = world.sample(64, seeded())

    def loss(objective):
        return objective(net, x1, generator=seeded(1)).max()

    assert loss(ContinuousConsistency(teacher, early)) < 1e-20
    assert loss(ConsistencyDistillation(teacher, even(256), rk4, early)) < 1e-12
    # Jumps over r, which a solver found: as exact as the solver is.
    fine = loss(Trajectory(teacher, rk4, inner))
    assert fine < 1e-2 * loss(Trajectory(teacher, euler, inner))


def test_a_solver_carries_each_sample_over_its_own_interval(mapped):
    x, n = mapped.sample(64, seeded()), 64
    s, t = (0.1 + 0.8 * torch.rand(2, n, generator=seeded()).double()).sort(0)[0]
    goal = mapped.flow_map(linear)(x, s, t)
    errors = [
        (carry(instant(mapped), x, s, t, heun, n=n) - goal).square().mean().sqrt()
        for n in (16, 32, 64)
    ]
    for one, two in itertools.pairwise(errors):
        assert 1.5 < math.log2(one / two) < 2.6


# The bias of a gap


def slope_of_steps(n, s=0.0, variance=0.25):
    """f_s(x) = m x, the mean of the chain x_s -> x_r -> ... of n posterior draws."""
    slope = 1.0
    while s < 1 - 1e-12:
        r = min(s + 1 / n, 1.0)
        slope *= (s * r * variance + (1 - s) * (1 - r)) / (
            s**2 * variance + (1 - s) ** 2
        )
        s = r
    return slope


def test_an_even_gap_leads_to_the_mean_of_a_chain():
    """Slopes on the way to the exact 0.5 as the gap shrinks, and no mean miss there."""
    slopes = [slope_of_steps(n) for n in (4, 10, 40, 160)]
    assert slopes == pytest.approx([0.3405, 0.4308, 0.4818, 0.4954], abs=6e-5)

    def chain(x, s, t, y=None):
        slope = torch.tensor([slope_of_steps(4, float(each)) for each in s]).double()
        return (slope - 1)[:, None] * x / (1 - s).clamp(min=1e-12)[:, None]

    for net, holds in ((chain, True), (average(LINE), False)):
        (misses, measure), (seen, listen) = kept(), overheard(net)
        objective = ConsistencyTraining(even(4), early, measure)
        objective(listen, LINE.sample(20_000, seeded()), generator=seeded(1))
        correlation = (misses[0] * seen[-1][0]).sum(1)
        assert agrees(correlation) == holds


def test_the_bias_on_two_modes_is_that_of_the_posterior_chain():
    """Two narrow modes and half of the way: the fixed point is a mean of two ends.

    f_1/2 is the posterior mean at 1/2, and f_0(x) = E[f_1/2(x_1/2) | x_0 = x], found
    here by quadrature over the data and nothing else.
    """
    world = Mixture(double([-2.0], [2.0]), double(0.3, 0.3), double(0.5, 0.5))
    mean = world.denoise(linear)
    nodes = torch.linspace(-5, 5, 2001).double()[:, None]
    zero = torch.ones(2001).double()
    weight = world.log_density(linear)(nodes, zero).exp()
    weight = weight / weight.sum()

    def chain(x, s, t, y=None):
        state, later = x[:, 0], s >= 0.5
        middle = (nodes[:, 0] + state[:, None]) / 2  # x_1/2 given x_0 and data
        times = torch.full((middle.numel(),), 0.5).double()
        ends = mean(middle.reshape(-1, 1), times).reshape(middle.shape)
        start = (ends * weight).sum(1)
        end = torch.where(later, mean(x, s.clamp(max=0.999))[:, 0], start)
        return (end - state)[:, None] / (1 - s)[:, None].clamp(min=1e-9)

    misses, measure = kept()
    objective = ConsistencyTraining(even(2), lambda n, g: torch.zeros(n), measure)
    x1 = world.sample(4000, seeded())
    objective(chain, x1, generator=seeded(1))
    x0 = torch.randn(x1.shape, generator=seeded(1), dtype=x1.dtype)
    for probe in (torch.ones_like(x0), x0, x0**2, x0.sin()):
        assert agrees((misses[0] * probe).sum(1))
    # And it is not the flow map, whose ends lie on the modes.
    one = torch.ones(1).double()
    assert abs(float(jump(chain, double([1.0]), 0 * one, one))) < 1.0


def test_gaps_shrink_from_the_whole_way():
    later, s = shrinking(stages=4, factor=2.0), double(0.0, 0.5)
    for progress, share in (
        (0.0, 1),
        (0.24, 1),
        (0.26, 0.5),
        (0.99, 0.125),
        (1.0, 0.125),
    ):
        assert torch.allclose(later(s, progress), s + share * (1 - s))
    assert torch.allclose(even(4)(double(0.5, 0.9), 0.3), double(0.75, 1.0))


def test_at_the_whole_gap_consistency_is_flow_matching_of_the_jump_to_the_data():
    x1, net = eight_modes().sample(64, seeded()), net_of(torch.tensor(0.7).double())
    found = ConsistencyTraining(even(1))(net, x1, generator=seeded(1))
    seen = []

    def listen(x, s, t, y):
        seen.append(s)
        return net(x, s, torch.ones_like(s))

    expected = FlowMatching()(listen, x1, generator=seeded(1))
    assert torch.allclose(found, (1 - seen[0]) * expected)


def test_continuous_consistency_is_mean_flow_to_the_data():
    """Without normalising, and with all of the derivative, the gradients agree."""
    weight = torch.tensor(0.7).double().requires_grad_()
    net, x1 = net_of(weight), eight_modes().sample(64, seeded())
    for teacher in (None, instant(eight_modes())):
        plain = MeanFlow(teacher, to_data(early))
        damped = ContinuousConsistency(teacher, early, damp=1e9)
        one, two = (
            torch.autograd.grad(f(net, x1, generator=seeded(1)).mean(), weight)[0]
            for f in (plain, damped)
        )
        assert float(two) * 1e9 == pytest.approx(float(one), rel=1e-6)


def test_the_derivative_comes_in_and_the_step_is_bounded():
    x1, net = eight_modes().sample(64, seeded()), net_of(torch.tensor(0.7).double())
    objective = ContinuousConsistency(times=early, warm=0.5)
    losses = [objective(net, x1, at=At(p, None), generator=seeded(1)) for p in (0, 1)]
    assert not torch.allclose(*losses)
    for loss in losses:
        assert loss.max() < 1
    # At the start of the training the target is the velocity of the pair.
    x0 = torch.randn(x1.shape, generator=(g := seeded(1)), dtype=x1.dtype)
    s = early(64, g).double()
    point = linear.at(x0, x1, s)
    size = per_sample(point.v - net(point.x, s, torch.ones_like(s))).sqrt()
    assert torch.allclose(losses[0], (size / (size + 0.1)) ** 2)


# Relatives


def test_moments_of_one_particle_are_consistency():
    """With the squared distance for a kernel, and jumps to the data."""
    x1, net = eight_modes().sample(64, seeded()), net_of(torch.tensor(0.7).double())
    one = MomentMatching(1, 0.1, lambda square: -square / 2, to_data())
    found, starts = one(net, x1, generator=seeded(1)), []

    def gap(s, progress):
        starts.append(s)
        return s + 0.1 * (1 - s)

    expected = ConsistencyTraining(gap)(net, x1, generator=seeded(1))
    assert torch.allclose(found, expected * 0.1 * (1 - starts[0]))


def test_groups_of_particles_are_compared_as_distributions():
    """By the energy distance of each group, pair by pair."""
    x1, net = eight_modes().sample(12, seeded()), net_of(torch.tensor(0.7).double())
    objective = MomentMatching(4, 0.3, lambda square: -square.sqrt(), inner)
    found = objective(net, x1, generator=seeded(1))
    x0 = torch.randn(x1.shape, generator=(g := seeded(1)), dtype=x1.dtype)
    s, t = (time.double().repeat_interleave(4) for time in inner(3, g))
    r = s + 0.3 * (t - s)
    one = jump(net, linear.at(x0, x1, s).x, s, t)
    two = jump(net, linear.at(x0, x1, r).x, r, t)
    for k in range(3):
        a, b = one[4 * k : 4 * k + 4], two[4 * k : 4 * k + 4]
        expected = sum(
            2 * (a[i] - b[j]).norm() - (a[i] - a[j]).norm() - (b[i] - b[j]).norm()
            for i, j in itertools.product(range(4), repeat=2)
        ) / (16 * math.sqrt(2))
        assert torch.allclose(found[4 * k : 4 * k + 4], expected)


def test_a_trajectory_is_compared_at_the_data_through_a_frozen_net():
    """The gradient passes through the last jump, not to its weights."""
    torch.manual_seed(0)
    net, x1 = MLP(2, width=8).double(), eight_modes().sample(16, seeded())
    objective = Trajectory(instant(eight_modes()), rk4, inner, within(0.0, 0.5))
    objective(net, x1, generator=seeded(1)).mean().backward()
    x0 = torch.randn(x1.shape, generator=(g := seeded(1)), dtype=x1.dtype)
    s, t = (time.double() for time in inner(16, g))
    r = s + 0.5 * torch.rand(16, generator=g).double() * (t - s)
    x, end = linear.at(x0, x1, s).x, torch.ones_like(s)
    still = MLP(2, width=8).double()
    still.load_state_dict(net.state_dict())
    still.requires_grad_(False)
    further = carry(instant(eight_modes()), x, s, r, rk4)
    goal = jump(still, jump(still, further, r, t), t, end)
    found = jump(still, jump(net, x, s, t), t, end)
    expected = torch.autograd.grad(per_sample(found - goal).mean(), net.parameters())
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient)


def test_the_diagonal_of_a_trajectory_learns_the_velocity():
    x1, net = eight_modes().sample(64, seeded()), net_of(torch.tensor(0.7).double())
    objective = Trajectory(instant(eight_modes()), times=ordered(diagonal=1.0))
    found = objective(net, x1, generator=seeded(1))
    assert torch.allclose(found, FlowMatching()(net, x1, generator=seeded(1)))


GRADIENTS = {
    "training": ConsistencyTraining(),
    "distillation": ConsistencyDistillation(instant(eight_modes())),
    "continuous": ContinuousConsistency(),
    "continuous, taught": ContinuousConsistency(instant(eight_modes())),
    "moments": MomentMatching(),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_the_prediction_alone(name):
    check_gradient(GRADIENTS[name])


def test_the_target_of_distillation_is_the_average():
    x1, start = eight_modes().sample(64, seeded()), torch.tensor(0.7).double()
    objective, seen = ConsistencyDistillation(instant(eight_modes())), []

    def ema(x, s, t, y=None):
        seen.append(s)
        return net_of(start + 0.1)(x, s, t)

    def loss(ema):
        net = net_of(start)
        return objective(net, x1, at=At(0.5, ema), generator=seeded(1)).mean()

    assert loss(ema) > 1.01 * loss(None)
    assert len(seen) == 1
    assert loss(None) == objective(net_of(start), x1, generator=seeded(1)).mean()


# Measures of a miss


def test_measures_are_a_square_when_small_and_weaker_when_large():
    miss = double([1e-6, -1e-6], [30.0, -40.0])
    small, large = pseudo_huber(0.03)(miss)
    assert float(small) == pytest.approx(1e-12 / 0.06, rel=1e-3)
    assert float(large) == pytest.approx(math.sqrt(1250) - 0.03, rel=1e-5)
    small, large = adaptive(1.0, 0.01)(miss)
    assert float(small) == pytest.approx(1e-10, rel=1e-6)
    assert float(large) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("power", "answer"), [(0.5, -0.30), (0.75, -0.44), (1.0, -0.56)]
)
def test_an_adaptive_weight_leans_from_the_mean_towards_the_mode(power, answer):
    """Targets exponential less one, whose mean is 0: where the gradient vanishes."""
    target = torch.linspace(5e-6, 1 - 5e-6, 100_000).double().log().neg()[:, None] - 1
    low, high = -1.0, 0.5
    for _ in range(30):
        middle = torch.tensor((low + high) / 2).double().requires_grad_()
        loss = adaptive(power, 0.01)(middle - target).mean()
        (gradient,) = torch.autograd.grad(loss, middle)
        low, high = (float(middle), high) if gradient < 0 else (low, float(middle))
    assert low == pytest.approx(answer, abs=0.01)


@pytest.mark.usefixtures("no_type_checker")
def test_bad_settings_are_refused():
    with refuses("got 0 steps, expected 1 or more"):
        even(0)
    for stages, factor in ((0, 2.0), (3, 1.0)):
        with refuses(f"got {stages} stages that shrink {factor} times, expected 1 or"):
            shrinking(stages, factor)
    with refuses("got 6 samples, expected a multiple of 4 particles"):
        MomentMatching()(MLP(2), torch.zeros(6, 2))
    for c in (0, -1, math.nan):
        for measure in (pseudo_huber, lambda c: adaptive(1.0, c)):
            with refuses(f"got c {c}, expected it above 0"):
                measure(c)


def test_twins_can_be_taught():
    torch.manual_seed(0)
    twins = Twins([MLP(2, width=8) for _ in range(3)])
    x1 = torch.randn(12, 2)
    teacher = MLP(2, width=8)
    kinds = (ConsistencyDistillation, ContinuousConsistency, Trajectory)
    taught = [kind(teacher) for kind in kinds]
    for objective in (ConsistencyTraining(), MomentMatching(), *taught):
        loss = objective(twins, x1, generator=seeded())
        (gradient,) = torch.autograd.grad(loss[:4].sum(), twins.stacks[0])
        assert gradient[0].abs().max() > 0
        assert gradient[1:].abs().max() == 0
