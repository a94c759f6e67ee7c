import math
from itertools import pairwise

import pytest
import torch
from conftest import MIXTURES, points
from torchdiffeq import odeint

from flowtext.paths import linear
from flowtext.solve import (
    Counted,
    euler,
    grid,
    heun,
    integrate,
    reference,
    rk4,
    trajectory,
)
from flowtext.worlds import eight_modes

CALLS = {euler: 1, heun: 2, rk4: 4}
ORDER = {euler: 1, heun: 2, rk4: 4}


def noise(n, d=2):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def whole(n):
    return torch.zeros(n).double(), torch.ones(n).double()


@pytest.mark.parametrize("step", CALLS, ids=lambda step: step.__name__)
def test_a_solver_has_its_order(step):
    """Slopes between 32, 64, 128 and 256 steps on a mixture: no superconvergence."""
    v, x = MIXTURES["mixture 3-d"].velocity(linear), noise(256, 3)
    truth = reference(v, x, *whole(256))
    errors = []
    for n in (32, 64, 128, 256):
        error = (integrate(v, x, grid(n), step) - truth).pow(2).mean().sqrt()
        errors.append(math.log2(error))
    for slope in (coarse - fine for coarse, fine in pairwise(errors)):
        assert ORDER[step] - 0.3 < slope < ORDER[step] + 0.5


@pytest.mark.parametrize("step", CALLS, ids=lambda step: step.__name__)
def test_a_solver_makes_the_calls_that_it_bills(step):
    v = Counted(eight_modes().velocity(linear))
    integrate(v, noise(4), grid(10), step)
    assert v.calls == 10 * CALLS[step]


@pytest.mark.parametrize(("step", "theirs"), [(euler, "euler"), (heun, "heun2")])
def test_torchdiffeq_takes_the_same_steps(step, theirs):
    v, x, times = eight_modes().velocity(linear), noise(32), grid(12)
    path = odeint(lambda t, y: v(y, t.expand(32)), x, times, method=theirs)
    ours = torch.stack(list(trajectory(v, x, times, step)))
    assert (ours - path).abs().max() < 1e-12


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
