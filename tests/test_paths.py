import math

import torch

from flowtext.paths import linear


def ends(n=5, d=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, n, d, generator=generator, dtype=torch.float64)


def test_a_path_starts_at_noise_and_ends_at_data(path):
    x0, x1 = ends()
    zero, one = torch.zeros(5).double(), torch.ones(5).double()
    assert torch.allclose(path.at(x0, x1, zero).x, x0)
    assert torch.allclose(path.at(x0, x1, one).x, x1)


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
    assert (path.at(x0, x1, t).v - slope).abs().max() < 1e-9


def test_derivatives_of_the_schedules_match_the_hand_calculation(path):
    t = torch.rand(7).double()
    a, s, a_dot, s_dot = path.coefficients(t)
    if path is linear:
        expected = t, 1 - t, torch.ones_like(t), -torch.ones_like(t)
    else:
        angle, rate = math.pi / 2 * t, math.pi / 2
        expected = angle.sin(), angle.cos(), rate * angle.cos(), -rate * angle.sin()
    for got, wanted in zip((a, s, a_dot, s_dot), expected, strict=True):
        assert (got - wanted).abs().max() < 1e-14


def test_images_take_one_time_a_sample():
    x0, x1 = torch.randn(2, 4, 3, 8, 8)
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    x = linear.at(x0, x1, t).x
    assert torch.allclose(x[1], 0.75 * x0[1] + 0.25 * x1[1])
