"""Bad input is refused with what was got and what was expected.

The type checker that guards the other tests is off here: a reader has none.
"""

import re

import jaxtyping
import pytest
import torch
from conftest import double

from flowtext.paths import linear
from flowtext.solve import euler, grid, integrate, reference
from flowtext.worlds import Gaussian, Mixture, eight_modes


@pytest.fixture(autouse=True)
def no_type_checker():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def refuses(message):
    return pytest.raises(ValueError, match=re.escape(message))


v = eight_modes().velocity(linear)
x = torch.zeros(4, 2).double()
BAD_TIMES = {
    "a number": (0.5, "got a time of float"),
    "a 0-d tensor": (torch.tensor(0.5), "got times of shape (), expected (4,)"),
    "a column": (torch.zeros(4, 1), "got times of shape (4, 1), expected (4,)"),
    "one for all": (torch.zeros(1), "got times of shape (1,), expected (4,)"),
    "too many": (torch.zeros(5), "got times of shape (5,), expected (4,)"),
    "integers": (torch.zeros(4, dtype=torch.long), "got a time of torch.int64"),
    "NaN": (torch.full((4,), torch.nan), "got a time with NaN"),
    "after data": (torch.full((4,), 1.5), "got times from 1.5 to 1.5, expected [0, 1]"),
    "before noise": (torch.full((4,), -0.5), "expected [0, 1]"),
}


@pytest.mark.parametrize(("t", "message"), BAD_TIMES.values(), ids=BAD_TIMES)
def test_a_bad_time_is_refused_at_every_door(t, message):
    world = Gaussian(double(0, 0), torch.eye(2).double())
    good = torch.zeros(4).double()
    doors = [v, world.velocity(linear), world.score(linear), world.denoise(linear)]
    doors += [world.log_density(linear), eight_modes().log_density(linear)]
    doors += [lambda x, t: world.flow_map(linear)(x, t, good)]
    doors += [lambda x, t: world.flow_map(linear)(x, good, t)]
    doors += [lambda x, t: linear.at(x, x, t)]
    doors += [lambda x, t: reference(v, x, good, t)]
    doors += [lambda x, t: reference(v, x, t, good)]
    for door in doors:
        with refuses(message):
            door(x, t)


BAD_STATES = {
    "NaN": (torch.full((4, 2), torch.nan), "got a state with NaN"),
    "infinity": (torch.full((4, 2), torch.inf), "got a state with NaN or infinity"),
    "three columns": (
        torch.zeros(4, 3),
        "got a state of shape (4, 3), expected (b, 2)",
    ),
    "no batch": (torch.zeros(2), "got a state of shape (2,), expected (b, 2)"),
    "integers": (torch.zeros(4, 2).long(), "got a state of torch.int64"),
    "a list": ([[0.0, 0.0]], "got a state of list"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_STATES.values(), ids=BAD_STATES)
def test_a_bad_state_is_refused(bad, message):
    world = Gaussian(double(0, 0), torch.eye(2).double())
    for door in (v, world.velocity(linear), world.log_density(linear)):
        with refuses(message):
            door(bad, torch.zeros(4).double())


def test_a_solver_refuses_a_bad_start():
    with refuses("got a state with NaN"):
        integrate(v, torch.full((4, 2), torch.nan), grid(4), euler)
    with refuses("got a state of shape (4,), expected (b, d)"):
        integrate(v, torch.zeros(4), grid(4), euler)


BAD_GRIDS = {
    "empty": (torch.zeros(0), "got a grid of shape (0,), expected (n + 1,)"),
    "one time": (torch.zeros(1), "got a grid of shape (1,), expected (n + 1,)"),
    "two axes": (torch.zeros(2, 2), "got a grid of shape (2, 2)"),
    "decreasing": (torch.linspace(1, 0, 5), "got a grid that does not increase"),
    "standing still": (torch.zeros(3), "got a grid that does not increase"),
    "NaN": (torch.tensor([0, torch.nan, 1]), "got a grid with NaN"),
}


@pytest.mark.parametrize(("times", "message"), BAD_GRIDS.values(), ids=BAD_GRIDS)
def test_a_bad_grid_is_refused(times, message):
    with refuses(message):
        integrate(v, x, times, euler)


@pytest.mark.parametrize("n", [0, -3, 2.5, True, "4"])
def test_a_bad_number_of_steps_is_refused(n):
    with refuses(f"got {n!r} steps, expected a whole number of at least 1"):
        grid(n)


def test_ends_of_a_path_have_one_shape():
    with refuses("got ends of shapes (4, 2) and (4, 3)"):
        linear.at(x, torch.zeros(4, 3), torch.zeros(4))


BAD_GAUSSIANS = {
    "indefinite": ([[1.0, 2], [2, 1]], "got cov with eigenvalue -1"),
    "flat": ([[1.0, 1], [1, 1]], "expected positive definite"),
    "skew": ([[1.0, 0.5], [0, 1]], "got a cov that is not symmetric"),
    "too large": (torch.eye(3).tolist(), "got cov (3, 3), expected (2, 2)"),
    "a vector": ([1.0, 1], "got cov of shape (2,), expected 2 axes"),
    "NaN": ([[1.0, 0], [0, torch.nan]], "got cov with NaN"),
}


@pytest.mark.parametrize(("cov", "message"), BAD_GAUSSIANS.values(), ids=BAD_GAUSSIANS)
def test_a_bad_covariance_is_refused(cov, message):
    with refuses(message):
        Gaussian(double(0, 0), torch.tensor(cov).double())


def test_a_bad_mean_is_refused():
    with refuses("got mean of shape (1, 2), expected 1 axes"):
        Gaussian(double([0, 0]), torch.eye(2).double())


BAD_MIXTURES = {
    "sum": ([1, 1], [0.5, 0.6], "got weights that sum to 1.1, expected 1"),
    "negative": ([1, 1], [1.5, -0.5], "got weights [1.5, -0.5], expected all positive"),
    "no width": ([1, 0], [0.5, 0.5], "got stds [1.0, 0.0], expected all positive"),
    "too few": ([1], [0.5, 0.5], "got 1 stds, expected 2: one a mode"),
    "NaN": ([1, torch.nan], [0.5, 0.5], "got stds with NaN"),
}


@pytest.mark.parametrize(
    ("stds", "weights", "message"), BAD_MIXTURES.values(), ids=BAD_MIXTURES
)
def test_a_bad_mixture_is_refused(stds, weights, message):
    with refuses(message):
        Mixture(double([0.0, 0], [1, 1]), double(*stds), double(*weights))


def test_means_of_a_mixture_are_a_table():
    with refuses("got means of shape (2,), expected 2 axes"):
        Mixture(double(0.0, 1), double(1, 1), double(0.5, 0.5))
