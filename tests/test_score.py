"""Metrics on trial: known answers, invariances, and samples known to be bad."""

import math

import pytest
import torch
from conftest import double
from scipy import stats

from flowtext.score import interval, mode_mass, sliced_wasserstein, straightness
from flowtext.worlds import Mixture, eight_modes


def draws(n, generator):
    return eight_modes().sample(n, generator)


def test_on_a_line_it_is_the_distance_between_sorted_samples(generator):
    x, y = torch.randn(2, 500, 1, generator=generator, dtype=torch.float64)
    exact = (x.sort(0).values - (2 * y).sort(0).values).pow(2).mean().sqrt()
    assert (sliced_wasserstein(x, 2 * y) - exact).abs() < 1e-14


def test_a_shift_by_c_costs_c_over_root_d(generator):
    x = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    found = sliced_wasserstein(x, x + double(0, 0, 2.0))
    assert abs(float(found) - 2 / math.sqrt(3)) < 0.1


def test_its_directions_do_not_depend_on_the_default_precision(generator):
    x, y = draws(100, generator), draws(100, generator)
    before, found = torch.get_default_dtype(), []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        found.append(sliced_wasserstein(x, y))
    torch.set_default_dtype(before)
    assert torch.equal(*found)


def test_it_is_a_distance_and_sees_no_order(generator):
    x, y = draws(1000, generator), draws(1000, generator)
    mixed = x[torch.randperm(1000, generator=generator)]
    assert sliced_wasserstein(x, mixed) < 1e-14
    assert torch.equal(sliced_wasserstein(x, y), sliced_wasserstein(y, x))
    assert sliced_wasserstein(3 * x, 3 * y) / sliced_wasserstein(x, y) - 3 < 1e-12


def test_two_real_samples_set_the_floor_and_bad_ones_stand_above(generator):
    real, other = draws(20_000, generator), draws(20_000, generator)
    floor = float(sliced_wasserstein(real, other))
    assert 0.02 < floor < 0.06
    collapsed = other.mean(0).expand_as(other)
    blurred = other + 0.3 * torch.randn(other.shape, generator=generator).double()
    missing = other[torch.cdist(other, eight_modes().means).argmin(1) != 3]
    missing = missing[torch.randint(len(missing), (20_000,), generator=generator)]
    for bad in (collapsed, blurred, missing):
        assert sliced_wasserstein(real, bad) > 2 * floor


def test_mode_mass_counts_modes_and_strays(generator):
    world, n = eight_modes(), 50_000
    found = mode_mass(draws(n, generator), world)
    noise = (world.weights * (1 - world.weights) / n).sqrt()
    assert ((found[:-1] - world.weights).abs() < 5 * noise).all()
    assert found[-1] < 0.001  # exp(-8) = 0.0003 lie outside four standard deviations
    strays = mode_mass(torch.zeros(10, 2).double(), world)
    assert strays.tolist() == [0] * 8 + [1]
    assert found.sum() == pytest.approx(1)


def test_mode_mass_measures_in_each_modes_own_width():
    world = Mixture(double([0.0], [10.0]), double(0.1, 2.0), double(0.5, 0.5))
    found = mode_mass(double([0.39], [0.41], [3.0], [17.9], [18.1]), world)
    assert found.tolist() == pytest.approx([1 / 5, 2 / 5, 2 / 5])


def test_straight_tracks_at_constant_speed_score_nothing(generator):
    times = torch.linspace(0, 1, 11).double()
    x0, x1 = torch.randn(2, 1, 40, 3, generator=generator, dtype=torch.float64)
    t = times[:, None, None]
    assert straightness(x0 + t * (x1 - x0), times) < 1e-28
    assert straightness(x0 + 3 * t * (x1 - x0), 2 * times) < 1e-28


def test_a_straight_track_that_speeds_up_is_not_straight_in_time():
    """x = t^2 c: v - chord = (2 t - 1) c, whose mean square is |c|^2 / 3."""
    times = torch.linspace(0, 1, 2001).double() ** 1.3
    track = times[:, None, None] ** 2 * double(3.0, 4.0)
    assert abs(float(straightness(track, times)) - 25 / 3) < 1e-4
    slow = straightness(track, 2 * times)
    assert abs(float(slow) - 25 / 12) < 1e-4


def test_the_interval_is_students(generator):
    values = torch.randn(6, generator=generator).tolist()
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((theirs.low, theirs.high), rel=1e-6)
    assert interval([1.0, 1.0, 1.0]) == (1, 1)
