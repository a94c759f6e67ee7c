"""The identities of the exact worlds, each against something independent of it."""

import torch
from conftest import GAUSSIANS, MIXTURES, points
from torch import distributions
from torch.func import jacrev, vmap

from flowtext.paths import linear
from flowtext.solve import reference
from flowtext.tensors import expand
from flowtext.worlds import eight_modes


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


def times_and_points(gaussian):
    generator = torch.Generator().manual_seed(4)
    x, s = points(gaussian, generator)
    r, t = torch.rand(2, len(s), generator=generator, dtype=s.dtype)
    return x, s, r, t


def test_the_gaussian_flow_map_is_where_scipy_arrives(gaussian, path):
    x, s, _, t = times_and_points(gaussian)
    there = reference(gaussian.velocity(path), x, s, t)
    assert (gaussian.flow_map(path)(x, s, t) - there).abs().max() < 1e-10


def test_one_jump_equals_two(gaussian, path):
    x, s, r, t = times_and_points(gaussian)
    jump = gaussian.flow_map(path)
    assert (jump(jump(x, s, r), r, t) - jump(x, s, t)).abs().max() < 1e-12


def test_a_jump_is_undone_by_the_jump_back(gaussian, path):
    x, s, _, t = times_and_points(gaussian)
    jump = gaussian.flow_map(path)
    assert (jump(jump(x, s, t), t, s) - x).abs().max() < 1e-12
    assert (jump(x, s, s) - x).abs().max() < 1e-14


def test_lagrangian_the_end_moves_with_the_velocity_there(gaussian, path):
    x, s, _, t = times_and_points(gaussian)
    jump, v = gaussian.flow_map(path), gaussian.velocity(path)
    motion = rate(lambda moment: jump(x, s, moment), t)
    assert (motion - v(jump(x, s, t), t)).abs().max() < 1e-12


def test_eulerian_the_end_stays_as_the_start_moves_along_the_path(gaussian, path):
    x, s, _, t = times_and_points(gaussian)
    jump, v = gaussian.flow_map(path), gaussian.velocity(path)
    tangent = (v(x, s), torch.ones_like(s))
    change = torch.func.jvp(lambda y, m: jump(y, m, t), (x, s), tangent)[1]
    assert change.abs().max() < 1e-12


def mean_flow_residual(gaussian, path, sign):
    """u - v - sign (t - s) D_s u, with u the average velocity."""
    x, s, _, t = times_and_points(gaussian)
    t = (s + 0.3).clamp(max=1)
    jump, v = gaussian.flow_map(path), gaussian.velocity(path)

    def u(y, start, end):
        return (jump(y, start, end) - y) / (end - start)[:, None]

    tangent = (v(x, s), torch.ones_like(s), torch.zeros_like(t))
    average, change = torch.func.jvp(u, (x, s, t), tangent)
    return (average - v(x, s) - sign * (t - s)[:, None] * change).abs().max()


def test_the_average_velocity_obeys_the_mean_flow_identity(gaussian, path):
    assert mean_flow_residual(gaussian, path, +1) < 1e-12
    assert mean_flow_residual(gaussian, path, -1) > 1e-2


def test_the_density_changes_by_the_determinant_of_the_map(gaussian, path):
    x, s, _, t = times_and_points(gaussian)
    jump, log_density = gaussian.flow_map(path), gaussian.log_density(path)
    growth = torch.linalg.slogdet(jacobian(jump, x, s, t)).logabsdet
    change = log_density(x, s) - log_density(jump(x, s, t), t)
    assert (growth - change).abs().max() < 1e-11


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
