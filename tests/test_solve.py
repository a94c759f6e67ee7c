import math
from itertools import pairwise

import pytest
import torch
from conftest import MIXTURES, PATHS, double, points
from scipy.integrate import quad
from test_worlds import jacobian
from torchdiffeq import odeint

from flowtext.paths import linear, variance_preserving
from flowtext.solve import (
    Counted,
    ab2,
    ddim,
    dpmpp_2m,
    euler,
    euler_maruyama,
    exact_divergence,
    grid,
    heun,
    hutchinson,
    integrate,
    log_density,
    midpoint,
    reference,
    rk4,
    trajectory,
    unipc,
)
from flowtext.worlds import Gaussian, eight_modes

# Every solver on the linear path: how to make it, calls a step, order up to t = 1.
SOLVERS = {
    "euler": (euler, 1, 1),
    "midpoint": (midpoint, 2, 2),
    "heun": (heun, 2, 2),
    "rk4": (rk4, 4, 4),
    "ab2": (ab2, 1, 2),
    "ddim": (ddim(linear), 1, 1),
    "dpmpp_2m": (dpmpp_2m(linear), 1, 2),
    "unipc": (unipc(linear), 1, 2),
}
EXPONENTIAL = {"ddim": ddim, "dpmpp_2m": dpmpp_2m, "unipc": unipc}
each_exponential = pytest.mark.parametrize("name", EXPONENTIAL)


def noise(n, d=2):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def slopes(v, x, step, counts, warp=lambda t: t):
    """How the error falls at every doubling, to the base 2."""
    times = grid(1, warp)
    start, end = (moment.repeat(len(x)) for moment in times)
    truth = reference(v, x, start, end)
    errors = []
    for n in counts:
        error = (integrate(v, x, grid(n, warp), step) - truth).pow(2).mean().sqrt()
        errors.append(math.log2(error))
    return [coarse - fine for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_has_its_order(name):
    """From 32 to 256 steps on a mixture in three dimensions: no superconvergence."""
    step, _, order = SOLVERS[name]
    v, x = MIXTURES["mixture 3-d"].velocity(linear), noise(256, 3)
    slack = 0.4 if name == "dpmpp_2m" else 0.3  # it loses a logarithm at the ends
    for slope in slopes(v, x, step, (32, 64, 128, 256)):
        assert order - slack < slope < order + 0.5


@each_exponential
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_an_exponential_solver_has_its_order_between_finite_ratios(name, path):
    order = {"ddim": 1, "dpmpp_2m": 2, "unipc": 3}[name]
    v, x = MIXTURES["mixture 3-d"].velocity(path), noise(256, 3)
    found = slopes(
        v, x, EXPONENTIAL[name](path), (64, 128, 256), lambda t: 0.05 + 0.9 * t
    )
    for slope in found:
        assert order - 0.35 < slope < order + 0.5


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_makes_the_calls_that_it_bills(name):
    step, calls, _ = SOLVERS[name]
    v = Counted(eight_modes().velocity(linear))
    integrate(v, noise(4), grid(10), step)
    assert v.calls == 10 * calls


@pytest.mark.parametrize(
    ("step", "theirs"), [(euler, "euler"), (midpoint, "midpoint"), (heun, "heun2")]
)
def test_torchdiffeq_takes_the_same_steps(step, theirs):
    v, x, times = eight_modes().velocity(linear), noise(32), grid(12)
    path = odeint(lambda t, y: v(y, t.expand(32)), x, times, method=theirs)
    ours = torch.stack(list(trajectory(v, x, times, step)))
    assert (ours - path).abs().max() < 1e-12


def test_adams_bashforth_is_exact_for_a_line_after_its_first_step():
    """On an uneven grid: v = 2 t, so x = t^2, less the first step's error."""
    times = double(0, 0.1, 0.4, 0.5, 1)
    end = integrate(lambda x, t: 2 * t[:, None].expand_as(x), noise(3), times, ab2)
    assert (end - noise(3) - (1 - 0.1**2)).abs().max() < 1e-14


def test_a_multistep_solver_forgets_between_trajectories():
    v, x = eight_modes().velocity(linear), noise(8)
    for step in (ab2, dpmpp_2m(linear), unipc(linear)):
        once = integrate(v, x, grid(5), step)
        assert torch.equal(integrate(v, x, grid(5), step), once)


def test_on_the_linear_path_ddim_is_euler(world):
    v, x = world.velocity(linear), noise(16, world.sample(1).shape[1])
    gap = integrate(v, x, grid(9), ddim(linear)) - integrate(v, x, grid(9), euler)
    assert gap.abs().max() < 1e-13


def frozen(path, data):
    """The velocity if the posterior mean were a function of time alone."""

    def v(x, t):
        a, s, a_dot, s_dot = (c[:, None] for c in path.coefficients(t))
        mean = data(t)[:, None]
        return a_dot * mean + s_dot * (x - a * mean) / s

    return v


@each_exponential
def test_an_exponential_step_is_exact_for_a_frozen_posterior_mean(name, path):
    v, x = frozen(path, lambda t: 0 * t + 1.7), noise(8)
    times = double(0.2, 0.35, 0.9, 0.95)
    exact = reference(v, x, 0.2 + 0 * x[:, 0], 0.95 + 0 * x[:, 0])
    walked = integrate(v, x, times, EXPONENTIAL[name](path))
    assert (walked - exact).abs().max() < 1e-9
    assert (integrate(v, x, times, euler) - exact).abs().max() > 1e-9 or path is linear


def log_snr(path, t):
    return path.alpha(t).log() - path.sigma(t).log()


def test_dpm_solver_follows_its_published_formula(path):
    """X = (b_t / b_s) x - a_t expm1(-h) [(1 + 1/2r) D - 1/2r D'], r = h' / h."""
    times, x = double(0.3, 0.45, 0.7), noise(6)
    v = eight_modes().velocity(path)
    first = integrate(v, x, times[:2], ddim(path))
    start, middle, end = (moment.repeat(6) for moment in times)
    before = path.data_of(x, v(x, start), start)
    now = path.data_of(first, v(first, middle), middle)
    h = log_snr(path, end) - log_snr(path, middle)
    r = ((log_snr(path, middle) - log_snr(path, start)) / h)[:, None]
    mean = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
    gain = (path.alpha(end) * torch.expm1(-h))[:, None]
    exact = (path.sigma(end) / path.sigma(middle))[:, None] * first - gain * mean
    assert (integrate(v, x, times, dpmpp_2m(path)) - exact).abs().max() < 1e-12


def test_unipc_corrects_a_parabola_exactly(path):
    """Three values of a parabola in log-SNR fix its integral, found by quadrature."""
    times, x = double(0.3, 0.45, 0.7), noise(6)
    start, middle, end = (moment.repeat(6) for moment in times)

    def data(t):
        return (1 + 0.7 * log_snr(path, t) - 0.4 * log_snr(path, t) ** 2)[:, None]

    def given(t):
        return data(t).expand(6, 2)

    def v(x, t):
        a, s, a_dot, s_dot = (c[:, None] for c in path.coefficients(t))
        return a_dot * given(t) + s_dot * (x - a * given(t)) / s

    h = float((log_snr(path, middle) - log_snr(path, start))[0])
    past = (given(start), double([h]), lambda new: x)
    _, past = unipc(path).advance(v, x, middle, 0.25, past)
    exact = reference(v, x, middle, end)
    assert (past[2](given(end)) - exact).abs().max() < 1e-9


def test_unipc_averages_two_means_where_no_ratio_is_known():
    """In the first step, and after a start at noise, where log(alpha/sigma) is -inf."""
    v, x, past = eight_modes().velocity(linear), noise(6), None
    for start, end in pairwise((0.0, 0.3, 0.5)):
        t = double(start).repeat(6)
        mean, new = linear.data_of(x, v(x, t), t), noise(6).flip(0)
        place = x if past is None else past[2](mean)
        keep = (1 - end) / (1 - start)
        exact = keep * place + (end - start * keep) * (mean + new) / 2
        x, past = unipc(linear).advance(v, x, t, end - start, past)
        assert (past[2](new) - exact).abs().max() < 1e-14


def test_a_sampler_without_noise_is_euler():
    v, x = eight_modes().velocity(linear), noise(16)
    step = euler_maruyama(linear, torch.zeros_like)
    same = integrate(v, x, grid(7), step) - integrate(v, x, grid(7), euler)
    assert same.abs().max() == 0


@pytest.mark.parametrize("amount", [0.5, 1.0, 2.0])
def test_any_amount_of_noise_keeps_the_distributions(path, amount, generator):
    """On a bell curve mean and variance follow Euler-Maruyama exactly, step by step."""
    world = Gaussian(double(1.0), double([0.25]))
    x = torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    times = grid(200, lambda t: 0.98 * t)
    step = euler_maruyama(path, lambda t: amount * (1 - t), generator)
    end = integrate(world.velocity(path), x, times, step)
    a, s = path.alpha(times[-1:]), path.sigma(times[-1:])
    mean, variance = float(a), float(a**2 / 4 + s**2)
    assert abs(float(end.mean()) - mean) < 0.025
    assert abs(float(end.var()) / variance - 1) < 0.06


def test_fresh_noise_has_the_variance_of_its_time(generator):
    """With no drift, e(t) dW alone: variance is the integral of e^2."""
    step = euler_maruyama(linear, lambda t: 1 + t, generator)
    v = frozen(linear, lambda t: 0 * t)  # all data at 0: v = -x / (1 - t)
    x = torch.zeros(200_000, 1).double()
    end = integrate(v, x, grid(1, lambda t: t / 100), step)
    assert abs(float(end.var()) / 0.01 - 1) < 0.02
    again = euler_maruyama(linear, lambda t: 1 + t, torch.Generator().manual_seed(0))
    assert torch.equal(integrate(v, x, grid(1, lambda t: t / 100), again), end)


def test_rk4_is_exact_where_simpson_is():
    """For a velocity of time alone it is Simpson's rule: exact for cubics."""

    def v(x, t):
        return (4 * t**3 - 3 * t**2 + 2 * t - 1)[:, None].expand_as(x)

    end = integrate(v, torch.zeros(3, 2).double(), grid(1), rk4)
    assert end.abs().max() < 1e-15


def test_one_perfect_euler_step_lands_on_the_mean(world):
    x = noise(16, world.sample(1).shape[1])
    end = integrate(world.velocity(linear), x, grid(1), euler)
    mean = world.denoise(linear)(x, torch.zeros(16).double())
    assert (end - mean).abs().max() < 1e-12
    assert end.std(0).max() < 1e-12


def test_trajectory_visits_every_time_and_starts_at_x():
    x, times = noise(6), grid(7)
    states = list(trajectory(eight_modes().velocity(linear), x, times, heun))
    assert len(states) == len(times)
    assert states[0] is x
    end = integrate(eight_modes().velocity(linear), x, times, heun)
    assert torch.equal(states[-1], end)


def test_a_grid_may_be_uneven():
    times = torch.tensor([0.0, 0.1, 0.5, 1.0])
    end = integrate(lambda x, t: torch.ones_like(x), noise(3), times, euler)
    assert torch.allclose(end, noise(3) + 1)


def test_the_grid_is_float64_from_noise_to_data():
    assert torch.equal(grid(4), torch.tensor([0, 0.25, 0.5, 0.75, 1]).double())
    assert torch.equal(grid(2, torch.square), torch.tensor([0, 0.25, 1]).double())
    assert grid(3)[1].item() == 1 / 3  # which single precision misses


@each_exponential
def test_an_exponential_step_ends_on_the_posterior_mean(name, path):
    """The last step, to where no noise is left, whatever the rounding of t + h."""
    world = eight_modes()
    for n in (1, 2, 3, 7, 49):
        states = list(
            trajectory(world.velocity(path), noise(8), grid(n), EXPONENTIAL[name](path))
        )
        if name != "unipc":  # which still corrects the state before
            t = grid(n)[-2].repeat(8)
            mean = world.denoise(path)(states[-2], t)
            assert (states[-1] - mean).abs().max() < 1e-9
        assert states[-1].isfinite().all()  # no step asks for the slope at t = 1


def test_states_keep_their_dtype():
    world, x = eight_modes(), noise(3)
    single = type(world)(world.means.float(), world.stds.float(), world.weights.float())
    end = integrate(single.velocity(linear), x.float(), grid(30), rk4)
    exact = integrate(world.velocity(linear), x, grid(30), rk4)
    assert end.dtype == torch.float32
    assert (end - exact).abs().median() < 1e-5


def test_the_reference_runs_both_ways_and_each_sample_at_its_own_times(world):
    generator = torch.Generator().manual_seed(6)
    x, s = points(world, generator, 4)
    t = torch.rand(4, generator=generator, dtype=s.dtype)
    v = world.velocity(linear)
    assert (reference(v, reference(v, x, s, t), t, s) - x).abs().max() < 1e-7
    alone = torch.cat(
        [reference(v, x[i : i + 1], s[i : i + 1], t[i : i + 1]) for i in range(4)]
    )
    assert (reference(v, x, s, t) - alone).abs().max() < 1e-7


def test_the_reference_agrees_with_torchdiffeq():
    v, x = MIXTURES["mixture 3-d"].velocity(linear), noise(32, 3)
    start, end = torch.zeros(32).double(), torch.full((32,), 0.9).double()
    times = torch.tensor([0.0, 0.9]).double()  # their steps may reach past the end
    theirs = odeint(lambda t, y: v(y, t.expand(32)), x, times, rtol=1e-11, atol=1e-12)
    assert (reference(v, x, start, end) - theirs[-1]).abs().max() < 1e-8


def test_the_reference_agrees_with_quadrature():
    """For a velocity of time alone it is an integral, which SciPy's quad knows."""

    def v(x, t):
        return t.sin().exp()[:, None].expand_as(x)

    end = reference(v, torch.zeros(1, 1).double(), double(0.2), double(0.7))
    assert abs(float(end) - quad(lambda t: math.exp(math.sin(t)), 0.2, 0.7)[0]) < 1e-12


def test_the_density_found_along_the_flow_is_the_density(world, path, generator):
    x, _ = points(world, generator, 16)
    last, leak = 0.9, 0.05 if path is variance_preserving else 0
    times = grid(50, lambda t: last * t)
    found = log_density(world.velocity(path), x, times, rk4)
    exact = world.log_density(path)(x, torch.full((16,), last).double())
    near = exact > exact.max() - 12  # far out a bell curve's start is far out too
    error = (found - exact)[near].abs()
    assert error.median() < 1e-4 + leak
    assert error.max() < 2e-2 + leak  # steep between modes


@pytest.mark.parametrize(("step", "order"), [(euler, 1), (heun, 2), (ab2, 2)])
def test_the_density_has_the_order_of_its_solver(step, order, generator):
    world = MIXTURES["mixture 1-d"]
    x, _ = points(world, generator, 64)
    exact = world.log_density(linear)(x, torch.full((64,), 0.9).double())
    errors = []
    for n in (40, 80, 160):
        times = grid(n, lambda t: 0.9 * t)
        found = log_density(world.velocity(linear), x, times, step)
        errors.append(math.log2((found - exact).pow(2).mean().sqrt()))
    for coarse, fine in pairwise(errors):
        assert order - 0.4 < coarse - fine < order + 0.5


def test_the_divergence_is_the_trace_of_the_jacobian(world, path, cloud):
    x, t = cloud
    v = world.velocity(path)
    velocity, growth = exact_divergence(v, x, t)
    trace = jacobian(v, x, t).diagonal(dim1=1, dim2=2).sum(1)
    assert torch.equal(velocity, v(x, t))
    assert ((growth - trace).abs() / (1 + trace.abs())).max() < 1e-11


def test_the_probe_estimates_the_divergence_without_bias(generator):
    world = MIXTURES["mixture 3-d"]
    v, n = world.velocity(linear), 20_000
    x = torch.randn(1, 3, generator=generator, dtype=torch.float64).expand(n, 3)
    t = torch.full((n,), 0.6).double()
    _, exact = exact_divergence(v, x[:1], t[:1])
    for draw in (torch.randn(n, 3, generator=generator).double(), None):
        coin = 2.0 * (torch.rand(n, 3, generator=generator) < 0.5).double() - 1
        _, found = hutchinson(coin if draw is None else draw)(v, x, t)
        error = found.std() / n**0.5
        assert (found.mean() - exact).abs() < 4 * error


def test_densities_of_images_have_one_number_an_image(generator):
    x = torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64)
    found = log_density(lambda x, t: -x, x, grid(64), rk4)
    noise_ = x.flatten(1) * math.e  # back in time the states grow
    exact = -0.5 * (noise_**2 + math.log(2 * math.pi)).sum(1) + 4
    assert (found - exact).abs().max() < 1e-6


def test_a_density_uses_the_divergence_that_it_is_given(generator):
    """Along a probe z the velocity -x shrinks by z . z, whatever the dimension."""
    x, probe = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    found = log_density(lambda x, t: -x, x, grid(64), rk4, hutchinson(probe))
    noise_ = x * math.e
    exact = -0.5 * (noise_**2 + math.log(2 * math.pi)).sum(1) + (probe**2).sum(1)
    assert (found - exact).abs().max() < 1e-6


def test_the_way_back_visits_the_times_of_the_way_there():
    seen = []

    def v(x, t):
        seen.append(float(t[0]))
        return -x

    log_density(v, noise(3, 1), double(0, 0.1, 0.4, 1), euler)
    assert seen == pytest.approx([1, 0.4, 0.1])


def test_a_grid_that_rounds_to_just_below_one_ends_at_data(path):
    v, x, times = eight_modes().velocity(path), noise(8), grid(5)
    exact = integrate(v, x, times, dpmpp_2m(path))
    times[-1] = 1 - 2**-53
    assert (integrate(v, x, times, dpmpp_2m(path)) - exact).abs().max() < 1e-9


def test_float32_takes_the_last_step_to_the_end_itself():
    """A step that stopped just short of 1 would extrapolate to a log-SNR of 16."""
    world, x = eight_modes(), noise(64)
    single = type(world)(world.means.float(), world.stds.float(), world.weights.float())
    for n in (3, 7, 10, 13, 100):
        end = integrate(single.velocity(linear), x.float(), grid(n), dpmpp_2m(linear))
        exact = integrate(world.velocity(linear), x, grid(n), dpmpp_2m(linear))
        assert (end - exact).abs().median() < 1e-4
