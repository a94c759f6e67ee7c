"""Flow maps: the three laws on exact maps, and objectives that are zero only there."""

import math

import pytest
import torch
from conftest import GAUSSIANS, PRODUCTS, double, refuses
from scipy import stats
from test_objectives import agrees, seeded

from flowtext import maps
from flowtext.fit import fading, fit
from flowtext.maps import (
    AlphaFlow,
    EulerianMap,
    ImprovedMeanFlow,
    LagrangianMap,
    MeanFlow,
    SemigroupMap,
    Shortcut,
    eulerian,
    fades,
    half,
    hop,
    jump,
    lagrangian,
    ordered,
    semigroup,
    to_data,
)
from flowtext.nets import MLP, Twins, UNet
from flowtext.objectives import At, FlowMatching, uniform, within
from flowtext.paths import linear
from flowtext.solve import grid
from flowtext.tensors import expand, per_sample
from flowtext.worlds import Gaussian, eight_modes

inner = ordered(within(0.1, 0.9), 0.0)
WORLDS = GAUSSIANS | PRODUCTS


def average(world, path=linear):
    """The exact average velocity of a world, as a net."""
    flow, v = world.flow_map(path), world.velocity(path)

    def net(x, s, t, y=None):
        if bool((s == t).all()):
            return v(x, s)
        return (flow(x, s, t) - x) / expand(t - s, x)

    return net


def instant(world, path=linear):
    """The exact velocity of a world, as a net."""
    v = world.velocity(path)
    return lambda x, s, t, y=None: v(x, s)


def spread(world, path, n=64):
    """Points of the flow, and three times in order: (x, s, r, t)."""
    generator = seeded(3)
    s, r, t = (0.1 + 0.8 * torch.rand(3, n, generator=generator).double()).sort(0)[0]
    x1 = world.sample(n, generator)
    x0 = torch.randn(x1.shape, generator=generator, dtype=x1.dtype)
    return path.at(x0, x1, s).x, s, r, t


def kept():
    """A measure of misses that also keeps them."""
    misses = []

    def measure(miss):
        misses.append(miss)
        return per_sample(miss)

    return misses, measure


def overheard(net):
    """A net that also keeps what it is asked: states and times."""
    seen = []

    def listen(x, s, t, y=None):
        seen.append((x, s, t))
        return net(x, s, t)

    return seen, listen


# The laws


def test_the_exact_map_obeys_the_three_laws(mapped, path):
    net, v = average(mapped, path), mapped.velocity(path)
    x, s, r, t = spread(mapped, path)
    assert lagrangian(net, v, x, s, t).abs().max() < 1e-10
    assert eulerian(net, v, x, s, t).abs().max() < 1e-10
    assert semigroup(net, net, x, s, r, t).abs().max() < 1e-10


def test_the_laws_are_those_of_the_jump():
    """By finite differences of the jump of a net that obeys none of them."""

    def net(x, s, t, y=None):
        return (x.flip(1) + s[:, None]).sin() * (1 + t[:, None] ** 2) - x

    v = eight_modes().velocity(linear)
    x, s, r, t = spread(eight_modes(), linear)
    h = torch.full_like(s, 1e-5)

    def land(x, s, t):
        return jump(net, x, s, t)

    moved = (land(x, s, t + h) - land(x, s, t - h)) / 2e-5
    law = moved - v(land(x, s, t), t)
    assert torch.allclose(lagrangian(net, v, x, s, t), law, atol=1e-8)
    ahead, behind = x + 1e-5 * v(x, s), x - 1e-5 * v(x, s)
    law = -(land(ahead, s + h, t) - land(behind, s - h, t)) / 2e-5
    assert torch.allclose(eulerian(net, v, x, s, t), law, atol=1e-8)
    law = (land(x, s, t) - land(land(x, s, r), r, t)) / (t - s)[:, None]
    assert torch.allclose(semigroup(net, net, x, s, r, t), law, atol=1e-12)


def test_a_map_that_stands_still_obeys_composition_alone():
    def still(x, s, t, y=None):
        return torch.zeros_like(x)

    v = eight_modes().velocity(linear)
    x, s, r, t = spread(eight_modes(), linear)
    assert semigroup(still, still, x, s, r, t).abs().max() == 0
    assert lagrangian(still, v, x, s, t).abs().max() > 1
    assert eulerian(still, v, x, s, t).abs().max() > 1
    assert semigroup(still, instant(eight_modes()), x, s, s, s).abs().max() > 1


# Hops


@pytest.mark.parametrize("times", [grid(1), grid(5), torch.tensor([0, 0.7, 1.0])])
def test_a_chain_of_exact_jumps_is_one_exact_jump(mapped, times):
    x = torch.randn(32, *mapped.sample(1).shape[1:], generator=seeded()).double()
    zero = torch.zeros(32).double()
    goal = mapped.flow_map(linear)(x, zero, zero + 1)
    assert torch.allclose(hop(average(mapped), x, times.double()), goal, atol=1e-9)


@pytest.mark.parametrize("renoise", [0.0, 0.4, 1.0])
def test_fresh_noise_keeps_the_distributions_of_an_exact_map(renoise):
    world, stops = Gaussian(double(0.7), double([0.25])), [0.3, 0.8]
    seen = []

    def net(x, s, t, y=None):
        seen.append((x, float(s[0]), float(t[0])))
        return average(world)(x, s, t)

    x0 = torch.randn(40_000, 1, generator=seeded()).double()
    end = hop(net, x0, double(0.0, *stops, 1.0), renoise=renoise, generator=seeded(1))
    assert [round(s, 9) for _, s, _ in seen] == [0, *stops]
    states = [(x, s) for x, s, _ in seen[1:]] + [(end, 1.0)]
    for x, t in states:
        level = math.sqrt(0.25 * t**2 + (1 - t) ** 2)
        z = (x - 0.7 * t) / level
        assert agrees(z)
        assert agrees(z**2, 1.0)
    # How much of the first state is left: the share of noise that was not drawn anew.
    kept = float((states[0][0] * x0).mean()) / math.sqrt(0.25 * 0.09 + 0.49)
    clean = 0.3 / (0.3 + math.sqrt(1 - renoise**2) * 0.7)
    shrink = 0.3 / clean * math.sqrt(0.25 * clean**2 + (1 - clean) ** 2)
    assert kept == pytest.approx(shrink / math.sqrt(0.25 * 0.09 + 0.49), abs=0.02)


def test_a_chain_without_fresh_noise_draws_nothing():
    net, x, state = MLP(2), torch.randn(8, 2), torch.get_rng_state()
    hop(net, x, grid(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_reach_every_jump():
    seen = []

    def net(x, s, t, y):
        seen.append(y)
        return x

    y = torch.arange(4)
    hop(net, torch.randn(4, 2), grid(3), y)
    assert len(seen) == 3
    assert all(each is y for each in seen)


@pytest.mark.usefixtures("no_type_checker")
def test_a_bad_chain_is_refused():
    x = torch.randn(4, 2)
    for share in (-0.1, 1.1, math.nan):
        with refuses(f"got renoise {share}, expected a share from 0 to 1"):
            hop(MLP(2), x, grid(2), renoise=share)
    with refuses("got a grid that does not increase"):
        hop(MLP(2), x, torch.tensor([0, 0.5, 0.5]))
    for share in (-0.1, 1.1, math.nan):
        with refuses(f"got diagonal {share}, expected a share from 0 to 1"):
            ordered(diagonal=share)


# Times


def test_pairs_are_in_order_and_a_share_of_them_is_equal():
    s, t = ordered(diagonal=0.25)(40_000, seeded())
    assert (s <= t).all()
    assert agrees((s == t).double(), 0.25)
    assert stats.kstest(s[s == t].numpy(), "uniform").pvalue > 0.01
    apart = s < t
    assert stats.kstest(t[apart].numpy(), stats.beta(2, 1).cdf).pvalue > 0.01
    assert stats.kstest(s[apart].numpy(), stats.beta(1, 2).cdf).pvalue > 0.01
    s, t = to_data()(1000, seeded())
    assert (t == 1).all()
    assert stats.kstest(s.numpy(), "uniform").pvalue > 0.01


def test_shortcuts_are_halves_of_halves():
    s, t = Shortcut(levels=3, smallest=0.4).times(40_000, seeded())
    d = t - s
    assert set(d.tolist()) == {1.0, 0.5, 0.25, 0.125}
    assert (s / d == (s / d).round()).all()
    assert (t <= 1).all()
    for size in (1.0, 0.5, 0.25):
        assert agrees((d == size).double(), 0.2)


# Objectives on the exact map

TAUGHT = {
    "lagrangian": lambda teacher: LagrangianMap(teacher, inner),
    "eulerian": lambda teacher: EulerianMap(teacher, inner),
    "semigroup": lambda teacher: SemigroupMap(teacher, inner),
    "semigroup, uniform": lambda teacher: SemigroupMap(teacher, inner, uniform),
    "semigroup, s = t": lambda teacher: SemigroupMap(teacher, ordered(diagonal=1.0)),
    "mean flow": lambda teacher: MeanFlow(teacher, inner),
}


@pytest.mark.parametrize("name", TAUGHT)
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_taught_by_the_exact_velocity_the_exact_map_has_no_loss(name, world):
    objective = TAUGHT[name](instant(world))
    x1 = world.sample(64, seeded())
    assert objective(average(world), x1, generator=seeded(1)).max() < 1e-20


@pytest.mark.parametrize("kind", [MeanFlow, ImprovedMeanFlow])
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_velocities_of_pairs_miss_the_exact_map_by_nothing_on_average(kind, world):
    """What is left over has no mean at any state, so no correlation with anything."""
    (misses, measure), (seen, net) = kept(), overheard(average(world))
    objective = kind(times=inner, measure=measure)
    objective(net, world.sample(20_000, seeded()), generator=seeded(1))
    x, s, t = seen[-1]
    for probe in (torch.ones_like(x), x, x.sin() * s[:, None], x**2 * t[:, None]):
        assert agrees((misses[0] * probe).sum(1))
    assert misses[0].abs().mean() > 0.1


def alpha_slope(alpha, s, t, variance=0.25, rounds=3000):
    """k of the fixed point u = k x of a constant alpha, for 1-D normal data.

    k(s, t) = (alpha + (1 - alpha)(r - s) k(r, t)) w(s) + (1 - alpha) k(r, t) with
    E[v | x] = w x and r = s + alpha (t - s), from t backwards.
    """

    def w(s):
        return (s * variance - (1 - s)) / (s**2 * variance + (1 - s) ** 2)

    times = [t - (t - s) * (1 - alpha) ** i for i in range(rounds)]
    k = w(t)
    for now, r in zip(times[-2::-1], times[:0:-1], strict=True):
        k = (alpha + (1 - alpha) * (r - now) * k) * w(now) + (1 - alpha) * k
    return k


def test_a_constant_alpha_has_the_minimiser_of_its_recursion():
    """On the way to the exact slope 0.5 as alpha falls; at alpha = 1 the mean."""
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    slopes = [float(1 + alpha_slope(a, zero, one)) for a in (1, 0.5, 0.25, 0.1, 0.02)]
    assert slopes == pytest.approx([0, 0.365, 0.440, 0.477, 0.4955], abs=6e-4)
    world, (misses, measure) = Gaussian(double(0.0), double([0.25])), kept()

    def fixed(x, s, t, y=None):
        return alpha_slope(0.25, s, t, rounds=120)[:, None] * x

    seen, net = overheard(fixed)
    objective = AlphaFlow(lambda _: 0.25, inner, measure)
    objective(net, world.sample(20_000, seeded()), generator=seeded(1))
    x, s, t = seen[-1]
    for probe in (x, x * s[:, None], x * t[:, None] ** 2):
        assert agrees((misses[0] * probe).sum(1))
    exact, misses[:] = average(world), []
    objective(exact, world.sample(20_000, seeded()), generator=seeded(1))
    assert not agrees((misses[0] * x).sum(1))


def test_alpha_falls_to_nothing():
    alpha = fades()
    values = [alpha(p / 100) for p in range(101)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.99
    assert values[50] == 0.5
    assert values[-1] == 0


# Where the gradient goes


class Probe:
    """A net that stands still wherever no gradient is asked for."""

    def __init__(self, moving, still):
        self.moving, self.still, self.asked = moving, still, 0

    def __call__(self, x, s, t, y=None):
        self.asked += torch.is_grad_enabled()
        return (self.moving if torch.is_grad_enabled() else self.still)(x, s, t, y)


def net_of(weight):
    """A smooth net with one number to learn."""

    def net(x, s, t, y=None):
        s, t = s[:, None], t[:, None]
        return (weight * x.flip(1) + s).sin() * (1 + t**2) - weight**2 * x * t

    return net


def times_only(x, s, t, y=None):
    """A teacher whose velocity is the same everywhere."""
    return torch.ones_like(x) * (3 * s[:, None]).cos()


at_start = At(0.2, None)
GRADIENTS = {
    "lagrangian": LagrangianMap(times_only),
    "eulerian": EulerianMap(times_only),
    "semigroup": SemigroupMap(split=uniform),
    "semigroup, taught": SemigroupMap(times_only),
    "shortcut": Shortcut(levels=3),
    "mean flow": MeanFlow(),
    "mean flow, taught": MeanFlow(instant(eight_modes())),
    "improved mean flow": ImprovedMeanFlow(),
    "alpha flow": AlphaFlow(),
    "alpha flow, at its end": AlphaFlow(lambda _: 0.0),
}


def check_gradient(objective, at=at_start):
    """One call learns, and the gradient is that of its finite differences."""
    x1, start = eight_modes().sample(64, seeded()), torch.tensor(0.7).double()

    def loss(weight):
        net = Probe(net_of(weight), net_of(start))
        value = objective(net, x1, at=at, generator=seeded(1)).mean()
        assert net.asked == 1
        return value

    weight = start.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(weight), weight)
    expected = (loss(start + 1e-5) - loss(start - 1e-5)) / 2e-5
    assert abs(expected) > 1e-2
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_the_prediction_alone(name):
    check_gradient(GRADIENTS[name])


def test_the_point_where_a_lagrangian_map_asks_is_not_differentiated():
    x1, weight = eight_modes().sample(64, seeded()), torch.tensor(0.7).double()
    weight.requires_grad_()
    world = eight_modes()
    loss = LagrangianMap(instant(world), inner)(
        net_of(weight), x1, generator=seeded(1)
    ).mean()
    (found,) = torch.autograd.grad(loss, weight)
    x0 = torch.randn(x1.shape, generator=(g := seeded(1)), dtype=x1.dtype)
    s, t = (time.double() for time in inner(64, g))
    x, net = linear.at(x0, x1, s).x, net_of(weight)
    there = jump(net, x, s, t).detach()
    u, slope = maps.along_end(net, x, s, t)
    miss = u + (t - s)[:, None] * slope - world.velocity(linear)(there, t)
    (expected,) = torch.autograd.grad(per_sample(miss).mean(), weight)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_one_pass_and_two_passes_have_one_gradient():
    """The derivative that comes with u, and one found apart without a graph."""
    x1, weight = eight_modes().sample(64, seeded()), torch.tensor(0.7).double()
    weight.requires_grad_()
    loss = MeanFlow()(net_of(weight), x1, generator=seeded(1)).mean()
    (two,) = torch.autograd.grad(loss, weight)
    x0 = torch.randn(x1.shape, generator=(g := seeded(1)), dtype=x1.dtype)
    s, t = (time.double() for time in maps.PAIRS(64, g))
    point = linear.at(x0, x1, s)
    u, slope = maps.along_start(net_of(weight), point.x, s, t, point.v)
    miss = u - (point.v + (t - s)[:, None] * slope).detach()
    (one,) = torch.autograd.grad(per_sample(miss).mean(), weight)
    assert float(two) == pytest.approx(float(one), rel=1e-12)


@pytest.mark.parametrize("kind", [LagrangianMap, EulerianMap, MeanFlow])
def test_derivatives_keep_the_precision_of_the_weights(kind):
    """Under autocast a norm after a convolution has no derivative on a CPU."""
    torch.manual_seed(0)
    teacher, net = UNet(1, (8, 8)), UNet(1, (8, 8))
    x1 = torch.randn(32, 1, 4, 4)

    def loss():
        return kind(teacher, inner)(net, x1, generator=seeded()).mean()

    expected = loss()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x1, x1[:, 0, 0, 0], x1[:, 0, 0, 0]).dtype == torch.bfloat16
        found = loss()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
    found.backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())


# One method as another


def test_without_a_teacher_equal_times_are_flow_matching():
    """Given s = t the loss of each is the flow-matching loss, sample by sample."""
    x1, net = eight_modes().sample(64, seeded()).float(), MLP(2)
    expected = FlowMatching()(net, x1, generator=seeded(1))
    same = ordered(diagonal=1.0)
    for kind in (LagrangianMap, EulerianMap, SemigroupMap, MeanFlow):
        found = kind(None, same)(net, x1, generator=seeded(1))
        assert torch.allclose(found, expected, atol=1e-6)
    found = ImprovedMeanFlow(same)(net, x1, generator=seeded(1))
    assert torch.allclose(found, expected, atol=1e-6)


def test_equal_times_weigh_as_much_at_every_alpha():
    """Given s = t, AlphaFlow's gradient is flow matching's, whatever alpha is."""
    x1, net = eight_modes().sample(64, seeded()).float(), MLP(2)
    same = ordered(diagonal=1.0)

    def gradient(objective):
        loss = objective(net, x1, generator=seeded(1)).mean()
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, net.parameters())]
        )

    expected = gradient(FlowMatching())
    for alpha in (1.0, 0.25, 0.01):
        found = gradient(AlphaFlow(lambda _, alpha=alpha: alpha, same))
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_shortcut_is_the_semigroup_law_in_the_middle():
    x1, net = eight_modes().sample(64, seeded()), net_of(torch.tensor(0.7).double())
    short = Shortcut(levels=3, smallest=0.0)
    big = torch.tensor([1.0, 0.5])[torch.arange(64) % 2]
    start = torch.where(big == 1, 0.0, 0.5)

    def times(n, generator):
        return start, start + big

    object.__setattr__(short, "times", times)
    one = short(net, x1, generator=seeded(1))
    two = SemigroupMap(None, times, half)(net, x1, generator=seeded(1))
    assert torch.allclose(one, two, atol=1e-12)


def test_the_smallest_shortcut_learns_the_velocity_of_pairs():
    x1, net = eight_modes().sample(64, seeded()), net_of(torch.tensor(0.7).double())
    found = Shortcut(levels=3, smallest=1.0)(net, x1, generator=seeded(1))
    x0 = torch.randn(x1.shape, generator=(g := seeded(1)), dtype=x1.dtype)
    s, t = (time.double() for time in Shortcut(levels=3, smallest=1.0).times(64, g))
    assert ((t - s) == 0.125).all()
    point = linear.at(x0, x1, s)
    expected = per_sample(net(point.x, s, t) - point.v)
    assert torch.allclose(found, expected)


def test_alpha_one_is_flow_matching_for_every_jump_and_alpha_small_is_mean_flow():
    x1, weight = eight_modes().sample(64, seeded()), torch.tensor(0.7).double()
    weight.requires_grad_()
    net = net_of(weight)

    def misses(kind, *args):
        found, measure = kept()
        loss = kind(*args, inner, measure)(net, x1, generator=seeded(1)).mean()
        return found[0], torch.autograd.grad(loss, weight)[0]

    whole, _ = misses(AlphaFlow, lambda _: 1.0)
    x0 = torch.randn(x1.shape, generator=(g := seeded(1)), dtype=x1.dtype)
    s, t = (time.double() for time in inner(64, g))
    point = linear.at(x0, x1, s)
    assert torch.allclose(whole, net(point.x, s, t) - point.v)
    small, gradient = misses(AlphaFlow, lambda _: 1e-6)
    limit, expected = misses(MeanFlow, None)
    assert torch.allclose(small / 1e-6, limit, atol=1e-4)
    assert float(gradient) == pytest.approx(float(expected), rel=1e-4)


def test_align_your_flow_is_mean_flow_with_a_weight():
    """Its gradient, of sg(-dX/ds) X, is (t - s)/2 times MeanFlow's, one by one."""
    world, weight = eight_modes(), torch.tensor(0.7).double().requires_grad_()
    teacher, v = instant(world), world.velocity(linear)
    net, x1 = net_of(weight), world.sample(8, seeded())
    losses = MeanFlow(teacher, inner)(net, x1, generator=seeded(1))
    x0 = torch.randn(x1.shape, generator=(g := seeded(1)), dtype=x1.dtype)
    s, t = (time.double() for time in inner(8, g))
    x = linear.at(x0, x1, s).x
    moved = -eulerian(net, v, x, s, t).detach()  # dX/ds along the flow
    aligned = -(moved * jump(net, x, s, t)).mean(1)
    for i in range(8):
        one = torch.autograd.grad(losses[i], weight, retain_graph=True)[0]
        two = torch.autograd.grad(aligned[i], weight, retain_graph=True)[0]
        gap = float(t[i] - s[i])
        assert float(two) == pytest.approx(gap / 2 * float(one), rel=1e-9)


# Nets


@pytest.mark.parametrize("objective", [LagrangianMap(), MeanFlow(), Shortcut()])
def test_twins_and_images_can_be_taught(objective):
    """Each of many nets learns from its own rows, and images go the same way."""
    torch.manual_seed(0)
    twins = Twins([MLP(2, width=8, labels=3) for _ in range(3)])
    x1, y = torch.randn(12, 2), torch.arange(12) % 3
    loss = objective(twins, x1, y, generator=seeded())
    (gradient,) = torch.autograd.grad(loss[:4].sum(), twins.stacks[0])
    assert gradient[0].abs().max() > 0
    assert gradient[1:].abs().max() == 0
    net, x1 = UNet(1, (8, 8), labels=3), torch.randn(12, 1, 4, 4)
    loss = objective(net, x1, y, generator=seeded())
    assert loss.shape == (12,)
    loss.mean().backward()


def test_a_net_learns_the_exact_map_from_the_exact_velocity():
    """On a 1-D normal distribution, where the map is a line."""
    world = Gaussian(double(1.0), double([0.25]))
    v = world.velocity(linear)

    def teacher(x, s, t, y=None):
        return v(x.double(), s.double()).float()

    torch.manual_seed(0)
    run = fit(
        MLP(1, width=32, depth=2), LagrangianMap(teacher),
        lambda g: world.sample(128, g).float(),
        steps=500, lr=fading(1e-2), ema=0.98, generator=seeded(),
    )  # fmt: skip
    *_, last = run
    x, zero = torch.linspace(-2, 2, 41)[:, None], torch.zeros(41)
    truth = world.flow_map(linear)(x.double(), zero.double(), zero.double() + 1)
    with torch.no_grad():
        found = jump(last.ema, x, zero, zero + 1)
        straight = x + last.ema(x, zero, zero)
    assert (found - truth).abs().max() < 0.15
    assert (straight - truth).abs().max() > 0.5
