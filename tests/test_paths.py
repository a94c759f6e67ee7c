import math

import pytest
import torch
from conftest import PATHS

from flowtext.paths import cosine, linear, on_path, same_ratio, variance_preserving


def ends(n=5, d=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, n, d, generator=generator, dtype=torch.float64)


def test_a_path_starts_at_noise_and_ends_at_data(path):
    x0, x1 = ends()
    zero, one = torch.zeros(5).double(), torch.ones(5).double()
    leak = 0.01 if path is variance_preserving else 1e-15
    assert torch.allclose(path.at(x0, x1, zero).x, x0, atol=3 * leak)
    assert (path.alpha(one) - 1).abs().max() < 1e-15
    assert path.sigma(one).abs().max() == 0


def test_the_linear_velocity_is_the_difference_of_the_ends():
    x0, x1 = ends()
    t = torch.rand(5).double()
    point = linear.at(x0, x1, t)
    assert torch.equal(point.v, x1 - x0)
    assert point.x0 is x0
    assert point.x1 is x1
    assert point.t is t


def test_the_velocity_is_the_slope_of_the_path(path):
    x0, x1 = ends()
    t, h = 0.1 + 0.8 * torch.rand(5).double(), 1e-5
    slope = (path.at(x0, x1, t + h).x - path.at(x0, x1, t - h).x) / (2 * h)
    assert (path.at(x0, x1, t).v - slope).abs().max() < 1e-8


def test_derivatives_of_the_schedules_match_the_hand_calculation(path):
    t = torch.rand(7).double()
    a, s, a_dot, s_dot = path.coefficients(t)
    if path is linear:
        expected = t, 1 - t, torch.ones_like(t), -torch.ones_like(t)
    elif path is cosine:
        angle, rate = math.pi / 2 * t, math.pi / 2
        expected = angle.sin(), angle.cos(), rate * angle.cos(), -rate * angle.sin()
    else:
        beta = 0.1 + (1 - t) * 19.9
        kept = torch.exp(-((1 - t) * 0.1 + (1 - t) ** 2 * 19.9 / 2) / 2)
        noise = (1 - kept**2).sqrt()
        expected = kept, noise, beta / 2 * kept, -beta / 2 * kept**2 / noise
    for got, wanted in zip((a, s, a_dot, s_dot), expected, strict=True):
        assert (got - wanted).abs().max() < 1e-12


def test_images_take_one_time_a_sample():
    x0, x1 = torch.randn(2, 4, 3, 8, 8)
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    x = linear.at(x0, x1, t).x
    assert torch.allclose(x[1], 0.75 * x0[1] + 0.25 * x1[1])


def test_state_and_velocity_give_back_the_ends(path):
    x0, x1 = ends()
    t = 0.02 + 0.95 * torch.rand(5).double()
    point = path.at(x0, x1, t)
    data, noise = path.ends_of(point.x, point.v, t)
    assert (data - x1).abs().max() < 1e-12
    assert (noise - x0).abs().max() < 1e-12


def test_a_velocity_knows_data_noise_and_score(world, path, cloud):
    x, t = cloud
    v, data = world.velocity(path)(x, t), world.denoise(path)(x, t)
    a, s = (c[:, None] for c in (path.alpha(t), path.sigma(t)))
    assert (path.data_of(x, v, t) - data).abs().max() < 1e-11
    assert (path.noise_of(x, v, t) - (x - a * data) / s).abs().max() < 1e-11
    assert (path.score_of(x, v, t) - world.score(path)(x, t)).abs().max() < 1e-10


def test_the_linear_solve_needs_no_division_at_the_ends():
    x, v = ends()
    for moment in (0.0, 1.0):
        t = torch.full((5,), moment).double()
        data, noise = linear.ends_of(x, v, t)
        assert torch.allclose(data, x + (1 - moment) * v)
        assert torch.allclose(noise, x - moment * v)


def test_the_noising_process_has_the_distributions_of_the_flow(world, path, cloud):
    """v = (alpha'/alpha) x + g^2 score / 2, the probability-flow ODE of Song et al."""
    x, t = cloud
    a, _, a_dot, _ = (c[:, None] for c in path.coefficients(t))
    half = path.diffusion(t)[:, None] ** 2 / 2
    v = a_dot / a * x + half * world.score(path)(x, t)
    gap = (world.velocity(path)(x, t) - v).abs() / (1 + half)
    assert gap.max() < 1e-11


def test_variance_preserving_noise_comes_at_the_rate_beta():
    t = 0.05 + 0.9 * torch.rand(9).double()
    beta = 0.1 + (1 - t) * 19.9
    assert (variance_preserving.diffusion(t) ** 2 - beta).abs().max() < 1e-11
    kept = variance_preserving.alpha(t) ** 2 + variance_preserving.sigma(t) ** 2
    assert (kept - 1).abs().max() < 1e-15


@pytest.mark.parametrize("source", PATHS.values(), ids=PATHS.keys())
def test_one_model_serves_every_path(world, path, source, cloud):
    x, t = cloud
    moved = on_path(world.velocity(source), source, path)
    exact = world.velocity(path)(x, t)
    assert ((moved(x, t) - exact).abs() / (1 + exact.abs())).max() < 1e-8


def test_equal_ratios_of_signal_to_noise(path):
    t = torch.rand(50).double() * 0.98 + 0.01
    s, factor = same_ratio(linear, path, t)
    assert (s / (1 - s) / (path.alpha(t) / path.sigma(t)) - 1).abs().max() < 1e-10
    assert (factor * s - path.alpha(t)).abs().max() < 1e-12
    assert (factor * (1 - s) - path.sigma(t)).abs().max() < 1e-12


def test_the_ends_of_one_path_are_the_ends_of_another():
    s, factor = same_ratio(linear, cosine, torch.tensor([0.0, 1]).double())
    assert torch.allclose(s, torch.tensor([0.0, 1]).double(), atol=1e-15)
    assert torch.allclose(factor, torch.ones(2).double())
