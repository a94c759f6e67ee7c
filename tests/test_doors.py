"""Bad input is refused with what was got and what was expected.

The type checker that guards the other tests is off here: a reader has none.
"""

import math
import re

import jaxtyping
import pytest
import torch
from conftest import PRODUCTS, double

from flowtext.paths import cosine, linear, on_path, variance_preserving
from flowtext.score import interval, mode_mass, sliced_wasserstein, straightness
from flowtext.solve import (
    ddim,
    euler,
    euler_maruyama,
    grid,
    integrate,
    log_density,
    reference,
)
from flowtext.worlds import (
    Empirical,
    Gaussian,
    Mixture,
    RotatedProduct,
    eight_modes,
    quantile_map,
)


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
    doors += [lambda x, t: linear.ends_of(x, x, t), on_path(v, cosine, linear)]
    doors += [Empirical(x).velocity(linear), Empirical(x).log_density(cosine)]
    flat = RotatedProduct(torch.eye(2), *torch.ones(3, 2, 1)).flow_map(linear)
    doors += [lambda x, t: flat(x, t, good), lambda x, t: flat(x, good, t)]
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
    flat = RotatedProduct(torch.eye(2), *torch.ones(3, 2, 1))
    doors = [v, world.velocity(linear), world.log_density(linear)]
    for door in (*doors, flat.velocity(linear), flat.log_density(linear)):
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
    "past data": (torch.tensor([0, 1.5]), "got a grid from 0 to 1.5, expected times"),
    "before noise": (torch.tensor([-1.0, 1]), "got a grid from -1 to 1, expected"),
}


@pytest.mark.parametrize(("times", "message"), BAD_GRIDS.values(), ids=BAD_GRIDS)
def test_a_bad_grid_is_refused(times, message):
    with refuses(message):
        integrate(v, x, times, euler)


@pytest.mark.parametrize("n", [0, -3, 2.5, True, "4"])
def test_a_bad_number_of_steps_is_refused(n):
    with refuses(f"got {n!r} steps, expected a whole number of at least 1"):
        grid(n)


def test_a_bad_warp_is_refused():
    with refuses("got a grid that does not increase"):
        grid(4, lambda t: 1 - t)
    with refuses("got a grid from 0 to 2, expected times in [0, 1]"):
        grid(4, lambda t: 2 * t)


def test_times_without_an_answer_are_refused():
    zero, one = torch.zeros(4).double(), torch.ones(4).double()
    with refuses("got a time where the path has no finite slope; stop a little before"):
        eight_modes().velocity(variance_preserving)(x, one)
    with refuses("got a time without noise, where the score has no value"):
        linear.score_of(x, x, one)
    with refuses("got a time without data, where the noising has no finite rate"):
        linear.diffusion(zero)
    with refuses("got a time without noise, expected t < 1"):
        Empirical(x).denoise(linear)(x, one)
    for step in (ddim(linear), euler_maruyama(linear, torch.zeros_like)):
        with refuses("got times from -1 to -1"):
            step(v, x, -one, 0.1)


def test_a_density_starts_from_noise():
    with refuses("got a first time of 0.1, expected 0, noise"):
        log_density(v, x, double(0.1, 1.0), euler)
    with refuses("got a state with NaN"):
        log_density(v, x * torch.nan, grid(4), euler)
    with refuses("got a state of shape (4,), expected (b, d)"):
        log_density(v, x[:, 0], grid(4), euler)
    with refuses("got a grid of shape (0,), expected (n + 1,)"):
        log_density(v, x, torch.zeros(0), euler)


def test_a_reference_that_cannot_be_found_is_refused():
    zero, one = torch.zeros(4).double(), torch.ones(4).double()
    with refuses("got a state of shape (4,), expected (b, d)"):
        reference(v, x[:, 0], zero, one)
    with refuses("SciPy could not integrate this velocity: Required step size"):
        reference(lambda x, t: 4 * (1 + x**2), x, zero, one)


def test_bad_finite_data_are_refused():
    with refuses("got no points, expected at least one"):
        Empirical(torch.zeros(0, 2))
    with refuses("got a state with NaN"):
        Empirical(torch.full((3, 2), torch.nan))
    with refuses("got states of shape (2,), expected (3,)"):
        Empirical(torch.zeros(5, 3)).velocity(linear)(x, torch.zeros(4).double())
    with refuses("got a state with NaN"):
        Empirical(x).velocity(linear)(x * torch.nan, torch.zeros(4).double())


def test_a_bad_product_is_refused():
    good = PRODUCTS["product 3-d"]
    parts = good.means, good.stds, good.weights
    with refuses("got a rotation that is not orthogonal"):
        RotatedProduct(2 * good.rotation, *parts)
    with refuses("got a rotation that is not orthogonal"):
        RotatedProduct(good.rotation[:, :2], *parts)
    with refuses("got a rotation that is not orthogonal"):
        RotatedProduct(good.rotation[:2], *[part[:2] for part in parts])
    with refuses("got means of shape (2, 2), expected one row for 3 coordinates"):
        RotatedProduct(good.rotation, good.means[:2], *parts[1:])
    with refuses("got weights that sum to 2, expected 1"):
        RotatedProduct(good.rotation, good.means, good.stds, 2 * good.weights)
    with refuses("expected all positive"):
        RotatedProduct(good.rotation, good.means, -good.stds, good.weights)


def test_a_quantile_map_is_for_a_line():
    with refuses("got a mixture in 2 dimensions, expected one dimension"):
        quantile_map(eight_modes(), linear)


def test_bad_samples_have_no_score():
    with refuses("got samples of shapes (4, 2) and (5, 2), expected the same shape"):
        sliced_wasserstein(x, torch.zeros(5, 2))
    with refuses("got a state with NaN"):
        sliced_wasserstein(x, x * torch.nan)
    with refuses("got a state with NaN"):
        sliced_wasserstein(x * torch.nan, x)
    eye = torch.eye(4)
    far = Mixture(eye, torch.ones(4), torch.full((4,), 0.25))
    with refuses("got a mixture in 4 dimensions, expected at most three"):
        mode_mass(eye, far)
    with refuses("got a state of shape (4, 3), expected (b, 2)"):
        mode_mass(torch.zeros(4, 3), eight_modes())
    with refuses("got 3 states and 5 times, expected one state a time"):
        straightness(torch.zeros(3, 4, 2), grid(4))
    with refuses("got 1 states and 1 times, expected one state a time, two or more"):
        straightness(torch.zeros(1, 4, 2), torch.zeros(1))
    for values in ([1.0], [1.0, math.nan], [], [[1.0, 2.0], [3.0, 4.0]]):
        with pytest.raises(ValueError, match="expected two or more finite values"):
            interval(values)


def test_ends_of_a_path_have_one_shape():
    with refuses("got ends of shapes (4, 2) and (4, 3)"):
        linear.at(x, torch.zeros(4, 3), torch.zeros(4))


def test_a_path_refuses_ends_that_are_no_states():
    for ends in ((x * torch.nan, x), (x, x * torch.nan)):
        with refuses("got a state with NaN"):
            linear.at(*ends, torch.zeros(4).double())


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
    with refuses("got mean of shape (0,), expected 1 axes, none of them empty"):
        Gaussian(torch.zeros(0), torch.zeros(0, 0))


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
