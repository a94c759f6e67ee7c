import math
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import PATHS
from scipy import stats
from scipy.optimize import linear_sum_assignment, linprog

from flowtext.paths import (
    cosine,
    given,
    independent,
    linear,
    minibatch_ot,
    on_path,
    same_ratio,
    variance_preserving,
)


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


# Couplings


def clouds(n=40, d=3, number=0):
    x1 = 2 * torch.randn(n, d, generator=seeded(number)).double() + 1
    noise, _ = independent(x1, seeded(number + 1))
    return noise, x1


def seeded(number):
    return torch.Generator().manual_seed(number)


def cost(x0, x1):
    return float((x1 - x0).square().sum())


COUPLINGS = {"independent": independent, "minibatch_ot": minibatch_ot(16)}
every_coupling = pytest.mark.parametrize(
    "couple", COUPLINGS.values(), ids=COUPLINGS.keys()
)


@every_coupling
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_come_back_as_they_were(couple, dtype):
    x1 = torch.randn(40, 1, 2, 3, dtype=dtype)
    x0, back = couple(x1, seeded(0))
    assert back is x1
    assert x0.shape == x1.shape
    assert x0.dtype == dtype


@every_coupling
def test_noise_is_normal_whatever_the_data(couple):
    x1 = 5 + 3 * torch.rand(4000, 2, generator=seeded(1)).double() ** 2
    x0, _ = couple(x1, seeded(0))
    for column in x0.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    assert abs(float(torch.corrcoef(x0.T)[0, 1])) < 4 / math.sqrt(4000)


def test_independent_noise_knows_nothing_of_the_data():
    x1 = torch.randn(4000, 1, generator=seeded(1))
    x0, _ = independent(x1, seeded(0))
    pair = torch.cat([x0, x1], 1)
    assert abs(float(torch.corrcoef(pair.T)[0, 1])) < 4 / math.sqrt(4000)
    near, _ = minibatch_ot()(x1, seeded(0))
    assert torch.corrcoef(torch.cat([near, x1], 1).T)[0, 1] > 0.95


@every_coupling
def test_a_coupling_draws_from_its_generator_alone(couple):
    x1, before = torch.randn(20, 2), torch.get_rng_state()
    assert torch.equal(couple(x1, seeded(3))[0], couple(x1, seeded(3))[0])
    assert not torch.equal(couple(x1, seeded(3))[0], couple(x1, seeded(4))[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert couple(x1)[0].isfinite().all()


def test_every_noise_is_handed_out_once():
    noise, x1 = clouds()
    x0, _ = minibatch_ot(64)(x1, seeded(1))
    order = (x0[:, None] == noise).all(2)
    assert torch.equal(order.sum(0), torch.ones(40, dtype=torch.long))
    assert torch.equal(order.sum(1), torch.ones(40, dtype=torch.long))
    assert not torch.equal(x0, noise)


def test_no_way_to_hand_out_noise_is_nearer():
    """Tried one by one, all 720."""
    for number in range(20):
        noise, x1 = clouds(6, 2, 2 * number)
        x0, _ = minibatch_ot(6)(x1, seeded(2 * number + 1))
        every = [cost(noise[[*order]], x1) for order in permutations(range(6))]
        assert abs(cost(x0, x1) - min(every)) < 1e-10
        assert min(every) < cost(noise, x1)


def test_the_cost_is_that_of_a_linear_programme():
    noise, x1 = clouds(12)
    square = (x1[:, None] - noise).square().sum(2).flatten().numpy()
    rows = np.kron(np.eye(12), np.ones(12))
    columns = np.kron(np.ones(12), np.eye(12))
    plan = linprog(square, A_eq=np.vstack([rows, columns]), b_eq=np.ones(24))
    x0, _ = minibatch_ot(12)(x1, seeded(1))
    assert abs(cost(x0, x1) - plan.fun) < 1e-8
    assert plan.fun < 0.8 * cost(noise, x1)


def test_on_a_line_the_order_is_kept():
    noise, x1 = clouds(100, 1)
    x0, _ = minibatch_ot(100)(x1, seeded(1))
    assert torch.equal(x0[x1[:, 0].argsort()], noise.sort(0).values)


def test_noise_is_handed_out_within_runs_of_the_given_size():
    """Also within the last one, which may be smaller."""
    noise, x1 = clouds(37)
    x0, _ = minibatch_ot(10)(x1, seeded(1))
    for start in (0, 10, 20, 30):
        run = slice(start, start + 10)
        square = (x1[run, None] - noise[run]).square().sum(2)
        best = linear_sum_assignment(square.numpy())[1]
        assert torch.equal(x0[run], noise[run][best])
    whole, _ = minibatch_ot(37)(x1, seeded(1))
    assert cost(whole, x1) < cost(x0, x1) < cost(noise, x1)


def test_a_larger_size_costs_less():
    noise, x1 = clouds(256, 2)
    costs = [cost(minibatch_ot(n)(x1, seeded(1))[0], x1) for n in (2, 16, 64, 256)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] < cost(noise, x1)
    assert cost(minibatch_ot()(x1, seeded(1))[0], x1) == costs[-1]


def test_images_are_compared_pixel_by_pixel():
    x1 = torch.randn(12, 2, 3, 3, generator=seeded(0))
    x0, _ = minibatch_ot(12)(x1, seeded(1))
    flat, _ = minibatch_ot(12)(x1.flatten(1), seeded(1))
    assert torch.equal(x0.flatten(1), flat)


def test_near_pairs_make_straighter_paths():
    """On a line the exact coupling is a straight flow: paths never cross."""
    noise, x1 = clouds(200, 1)
    x0, _ = minibatch_ot(200)(x1, seeded(1))
    for moment in (0.3, 0.9):
        t = torch.full((200,), moment).double()
        x = linear.at(x0, x1, t).x[:, 0]
        assert torch.equal(x.argsort(), x1[:, 0].argsort())
        assert not torch.equal(linear.at(noise, x1, t).x[:, 0].argsort(), x.argsort())


def test_given_pairs_are_noise_then_data():
    pairs = torch.randn(5, 2, 1, 4, 4)
    x0, x1 = given(pairs)
    assert torch.equal(x0, pairs[:, 0])
    assert torch.equal(x1, pairs[:, 1])
    again = torch.stack(given(torch.randn(2, 2, 7), None), 1)
    assert torch.equal(torch.stack(given(again), 1), again)
