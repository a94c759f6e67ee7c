"""The identities of the exact worlds, each against something independent of it."""

import math

import numpy as np
import pytest
import torch
from conftest import GAUSSIANS, MIXTURES, double, points, whole
from scipy import fft, stats
from torch import distributions
from torch.func import jacrev, vmap

from flowtext.paths import linear
from flowtext.solve import grid, integrate, reference, rk4
from flowtext.tensors import expand
from flowtext.worlds import (
    Empirical,
    Gaussian,
    Mixture,
    RotatedProduct,
    checkerboard,
    eight_modes,
    moons,
    quantile_map,
    spirals,
)


def jacobian(f, x, *times):
    """The Jacobian of f(x, *times) in x, sample by sample: (b, d, d)."""

    def one(y, *moments):
        return f(y[None], *[m[None] for m in moments])[0]

    return vmap(jacrev(one))(x, *times)


def rate(f, t):
    """The time derivative of f at t."""
    return torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]


def test_the_density_is_the_one_that_torch_distributions_gives(path):
    generator = torch.Generator().manual_seed(2)
    world = MIXTURES["mixture 3-d"]
    x, t = points(world, generator)
    a, s, *_ = path.coefficients(t)
    for i in range(len(x)):
        scale = (a[i] ** 2 * world.stds**2 + s[i] ** 2).sqrt()
        modes = distributions.Normal(a[i] * world.means, scale[:, None])
        modes = distributions.Independent(modes, 1)
        shares = distributions.Categorical(world.weights)
        mixture = distributions.MixtureSameFamily(shares, modes)
        got = world.log_density(path)(x[i : i + 1], t[i : i + 1])
        assert torch.allclose(got[0], mixture.log_prob(x[i]), atol=1e-12)
    world = GAUSSIANS["gaussian 3-d"]
    eye = torch.eye(3).double()
    for i in range(len(x)):
        cov = a[i] ** 2 * world.cov + s[i] ** 2 * eye
        normal = distributions.MultivariateNormal(a[i] * world.mean, cov)
        got = world.log_density(path)(x[i : i + 1], t[i : i + 1])
        assert torch.allclose(got[0], normal.log_prob(x[i]), atol=1e-12)


def test_the_score_is_the_gradient_of_the_log_density(world, path, cloud):
    x, t = cloud
    x.requires_grad_()
    (slope,) = torch.autograd.grad(world.log_density(path)(x, t).sum(), x)
    assert (world.score(path)(x, t) - slope).abs().max() < 1e-11


def test_tweedie_ties_the_posterior_mean_to_the_score(world, path, cloud):
    x, t = cloud
    a, s, *_ = (expand(c, x) for c in path.coefficients(t))
    left, right = a * world.denoise(path)(x, t), x + s**2 * world.score(path)(x, t)
    assert (left - right).abs().max() < 1e-12


def test_the_velocity_follows_from_the_posterior_mean(world, path, cloud):
    x, t = cloud
    a, s, a_dot, s_dot = (expand(c, x) for c in path.coefficients(t))
    data = world.denoise(path)(x, t)
    noise = (x - a * data) / s
    v = a_dot * data + s_dot * noise
    assert (world.velocity(path)(x, t) - v).abs().max() < 1e-11


def test_the_velocity_conserves_mass(world, path, cloud):
    """d/dt log p + div v + v . score = 0, the continuity equation."""
    x, t = cloud
    v, score = world.velocity(path), world.score(path)(x, t)
    density_rate = rate(lambda moment: world.log_density(path)(x, moment), t)
    divergence = jacobian(v, x, t).diagonal(dim1=1, dim2=2).sum(1)
    residual = density_rate + divergence + (v(x, t) * score).sum(1)
    assert (residual.abs() / (1 + divergence.abs())).max() < 1e-10


def test_the_velocity_is_the_average_over_the_data_that_could_be_meant(world, path):
    """Monte Carlo: conditional velocities weighted by how well each x1 explains x."""
    generator = torch.Generator().manual_seed(3)
    x, _ = points(world, generator, 8)
    t = torch.full((8,), 0.4, dtype=torch.float64)
    a, s, a_dot, s_dot = (float(c[0]) for c in path.coefficients(t))
    x1 = world.sample(400_000, generator)
    for point, exact in zip(x, world.velocity(path)(x, t), strict=True):
        x0 = (point - a * x1) / s
        weight = (-0.5 * (x0**2).sum(1)).softmax(0)
        each = a_dot * x1 + s_dot * x0
        mean = weight @ each
        error = (weight**2 @ (each - mean) ** 2).sqrt()
        assert ((mean - exact).abs() < 5 * error + 1e-3).all()


def test_samples_have_the_moments_of_the_world(world, generator):
    n = 200_000
    x = world.sample(n, generator)
    one = torch.ones(n).double()
    at_noise = torch.zeros_like(x[:1])
    mean = world.denoise(linear)(at_noise, torch.zeros(1).double())[0]
    noise = x.std(0) / n**0.5
    assert ((x.mean(0) - mean).abs() < 5 * noise).all()
    entropy = -world.log_density(linear)(x, one)
    again = -world.log_density(linear)(world.sample(n, generator), one)
    assert abs(entropy.mean() - again.mean()) < 5 * entropy.std() * (2 / n) ** 0.5
    smoothed = torch.linalg.eigvalsh(torch.atleast_2d(x.T.cov()))
    assert (smoothed > 0).all()


def test_modes_are_sampled_by_their_weights(generator):
    world, n = eight_modes(), 100_000
    x = world.sample(n, generator)
    share = torch.cdist(x, world.means).argmin(1).bincount(minlength=8) / n
    noise = (world.weights * (1 - world.weights) / n).sqrt()
    assert ((share - world.weights).abs() < 5 * noise).all()


def test_gaussian_samples_have_its_covariance(generator):
    world = GAUSSIANS["gaussian 3-d"]
    got = world.sample(400_000, generator).T.cov()
    assert (got - world.cov).abs().max() < 0.02


def times_and_points(world):
    generator = torch.Generator().manual_seed(4)
    x, s = points(world, generator)
    r, t = torch.rand(2, len(s), generator=generator, dtype=s.dtype) * 0.99
    return x, s, r, t


def rounding(world):
    """Gaussian maps are formulas; quantile maps are solved for."""
    return 1e-12 if isinstance(world, Gaussian) else 1e-9


def test_the_flow_map_is_where_scipy_arrives(mapped, path):
    x, s, _, t = times_and_points(mapped)
    there = reference(mapped.velocity(path), x, s, t)
    error = (mapped.flow_map(path)(x, s, t) - there).abs().max()
    assert error < (1e-10 if isinstance(mapped, Gaussian) else 1e-7)


def test_one_jump_equals_two(mapped, path):
    x, s, r, t = times_and_points(mapped)
    jump = mapped.flow_map(path)
    gap = (jump(jump(x, s, r), r, t) - jump(x, s, t)).abs().max()
    assert gap < rounding(mapped)


def test_a_jump_is_undone_by_the_jump_back(mapped, path):
    x, s, _, t = times_and_points(mapped)
    jump = mapped.flow_map(path)
    assert (jump(jump(x, s, t), t, s) - x).abs().max() < rounding(mapped)
    assert (jump(x, s, s) - x).abs().max() < 1e-13


def test_lagrangian_the_end_moves_with_the_velocity_there(mapped, path):
    x, s, _, t = times_and_points(mapped)
    jump, v = mapped.flow_map(path), mapped.velocity(path)
    motion = rate(lambda moment: jump(x, s, moment), t)
    assert (motion - v(jump(x, s, t), t)).abs().max() < rounding(mapped)


def test_eulerian_the_end_stays_as_the_start_moves_along_the_path(mapped, path):
    x, s, _, t = times_and_points(mapped)
    jump, v = mapped.flow_map(path), mapped.velocity(path)
    tangent = (v(x, s), torch.ones_like(s))
    change = torch.func.jvp(lambda y, m: jump(y, m, t), (x, s), tangent)[1]
    assert change.abs().max() < rounding(mapped)


def mean_flow_residual(world, path, sign):
    """u - v - sign (t - s) D_s u, with u the average velocity."""
    x, s, _, t = times_and_points(world)
    t = (s + 0.3).clamp(max=0.99)
    jump, v = world.flow_map(path), world.velocity(path)

    def u(y, start, end):
        return (jump(y, start, end) - y) / (end - start)[:, None]

    tangent = (v(x, s), torch.ones_like(s), torch.zeros_like(t))
    average, change = torch.func.jvp(u, (x, s, t), tangent)
    return (average - v(x, s) - sign * (t - s)[:, None] * change).abs().max()


def test_the_average_velocity_obeys_the_mean_flow_identity(mapped, path):
    assert mean_flow_residual(mapped, path, +1) < rounding(mapped)
    assert mean_flow_residual(mapped, path, -1) > 1e-2


def test_the_average_velocity_starts_as_the_velocity(mapped, path):
    x, s, *_ = times_and_points(mapped)
    jump, h = mapped.flow_map(path), 1e-5
    ahead, behind = jump(x, s, s + h), jump(x, s, s - h)
    gap = (ahead - behind) / (2 * h) - mapped.velocity(path)(x, s)
    assert gap.abs().max() < 1e-6


def test_the_density_changes_by_the_determinant_of_the_map(mapped, path):
    x, s, _, t = times_and_points(mapped)
    jump, log_density = mapped.flow_map(path), mapped.log_density(path)
    growth = torch.linalg.slogdet(jacobian(jump, x, s, t)).logabsdet
    change = log_density(x, s) - log_density(jump(x, s, t), t)
    assert (growth - change).abs().max() < 10 * rounding(mapped)


@pytest.mark.parametrize("far", [-9.0, -6.0, 6.0, 9.0])
def test_a_quantile_map_is_exact_in_the_tails(path, far):
    """Where a rank of 1 - 1e-19 rounds to 1, the log-odds still know the place."""
    world = MIXTURES["mixture 1-d"]
    x, zero, t = double([far]), double(0.0), double(0.9)
    exact = reference(world.velocity(path), x, zero, t)
    there = quantile_map(world, path)(x, zero, t)
    assert (there - exact).abs().max() < 1e-7
    assert (quantile_map(world, path)(there, t, zero) - x).abs().max() < 1e-7


def test_the_quantile_map_is_scipys_rank(path):
    """Ranks at t = 1 from SciPy's normal distribution function."""
    world = MIXTURES["mixture 1-d"]
    x, zero, one = torch.linspace(-3, 3, 31).double()[:, None], *whole(31)
    end = quantile_map(world, linear)(x, zero, one)
    each = stats.norm.cdf(end.numpy(), world.means[:, 0], world.stds)
    assert abs(each @ world.weights.numpy() - stats.norm.cdf(x[:, 0])).max() < 1e-14


def test_the_product_map_holds_at_the_size_of_an_image():
    """64 coordinates along a 2-D cosine basis, 2^64 modes, against Runge-Kutta."""
    basis = torch.from_numpy(fft.dct(np.eye(8), norm="ortho"))
    generator = torch.Generator().manual_seed(7)
    spread = torch.rand(64, 2, generator=generator).double()
    world = RotatedProduct(
        torch.kron(basis, basis),
        torch.stack([-spread[:, 0], spread[:, 1]], 1),
        0.1 + 0.3 * spread.flip(1),
        torch.full((64, 2), 0.5).double(),
    )
    x = torch.randn(4, 64, generator=generator, dtype=torch.float64)
    end = world.flow_map(linear)(x, *whole(4))
    walked = integrate(world.velocity(linear), x, grid(400), rk4)
    assert (end - walked).abs().max() < 4e-6


def test_finite_data_are_the_limit_of_narrow_modes(path, generator):
    points_ = moons(30, generator).double()
    narrow = Mixture(
        points_, torch.full((30,), 1e-5).double(), torch.full((30,), 1 / 30).double()
    )
    x, t = points(narrow, generator)
    data = Empirical(points_)
    for ask in ("velocity", "score", "denoise", "log_density"):
        got, wanted = (getattr(each, ask)(path)(x, t) for each in (data, narrow))
        assert (got - wanted).abs().max() < 1e-5 * (1 + wanted.abs().max())


def test_the_best_velocity_for_finite_data_leads_back_to_them(generator):
    data = Empirical(moons(50, generator).double())
    x0 = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    times = grid(200, lambda t: 0.999 * t)
    end = integrate(data.velocity(linear), x0, times, rk4)
    assert torch.cdist(end, data.points).amin(1).max() < 0.02


def test_finite_data_conserve_mass_and_may_be_images(path, generator):
    data = Empirical(torch.randn(5, 1, 2, 2, generator=generator).double())
    flat = Empirical(data.points.flatten(1))
    x = torch.randn(8, 1, 2, 2, generator=generator, dtype=torch.float64)
    t = 0.1 + 0.8 * torch.rand(8, generator=generator).double()
    assert data.velocity(path)(x, t).shape == x.shape
    assert data.sample(7, generator).shape == (7, 1, 2, 2)
    x = x.flatten(1)
    v, score = flat.velocity(path), flat.score(path)(x, t)
    density_rate = rate(lambda moment: flat.log_density(path)(x, moment), t)
    divergence = jacobian(v, x, t).diagonal(dim1=1, dim2=2).sum(1)
    residual = density_rate + divergence + (v(x, t) * score).sum(1)
    assert (residual.abs() / (1 + divergence.abs())).max() < 1e-9


def test_finite_data_are_drawn_evenly(generator):
    data = Empirical(torch.arange(5.0)[:, None])
    share = data.sample(50_000, generator)[:, 0].long().bincount() / 50_000
    assert (share - 0.2).abs().max() < 0.01


def test_the_moons_are_half_circles(generator):
    x = moons(20_000, generator) / 1.5
    upper, lower = x - torch.tensor([-0.5, -0.25]), x - torch.tensor([0.5, 0.25])
    near = torch.minimum((upper.norm(dim=1) - 1).abs(), (lower.norm(dim=1) - 1).abs())
    assert near.quantile(0.99) < 3 * 0.1 / 1.5
    assert x[:, 1].abs().quantile(0.99) < 0.75 + 3 * 0.1 / 1.5  # no lower halves
    assert x.mean(0).abs().max() < 0.03  # the one is the other turned by half a turn


def test_the_spirals_are_arms_of_constant_pitch(generator):
    x = spirals(20_000, generator)
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    half_turns = (1.5 * math.pi * radius - angle) / math.pi
    miss = (half_turns - half_turns.round()).abs()[radius > 0.5]
    assert miss.quantile(0.98) < 3 * 1.5 * 0.05
    assert abs((half_turns.round() % 2).mean() - 0.5) < 0.02  # as many on each arm
    assert abs((radius < 1).float().mean() - 1 / 4) < 0.02  # a disc's share of area
    assert 1.9 < radius.max() < 2.3


def test_the_checkerboard_is_even_on_its_black_squares(generator):
    x = checkerboard(80_000, generator)
    cell = (x + 2).floor().long()
    assert ((cell >= 0) & (cell < 4)).all()
    assert (cell.sum(1) % 2 == 0).all()
    count = (4 * cell[:, 0] + cell[:, 1]).bincount(minlength=16)
    assert (count[count > 0] / 80_000 - 1 / 8).abs().max() < 0.006
    assert (count > 0).sum() == 8
    assert ((x + 2) % 1).mean(0).sub(0.5).abs().max() < 0.005


def test_a_world_and_its_states_may_differ_in_precision(world, cloud):
    """The finer of the two decides; nobody is left with a matrix product that fails."""
    x, t = cloud
    fields = {
        name: value.float() for name, value in vars(world).items() if name[0] != "_"
    }
    coarse, exact = type(world)(**fields), world.velocity(linear)(x, t)
    for other, y in ((coarse, x), (world, x.float())):
        got = other.velocity(linear)(y, t.to(y.dtype))
        assert got.dtype == torch.float64
        assert (got - exact).abs().max() < 1e-3 * exact.abs().max()
