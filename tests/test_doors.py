"""Bad input is refused with what was got and what was expected.

The type checker that guards the other tests is off here: a reader has none.
"""

import math

import pytest
import torch
from conftest import PRODUCTS, double, refuses

from flowtext.fit import fit, read, save
from flowtext.guide import drop_labels, guided
from flowtext.nets import MLP, Classifier, DiT, Twins, UNet, as_velocity
from flowtext.objectives import FlowMatching, logit_normal, within
from flowtext.paths import (
    cosine,
    given,
    linear,
    minibatch_ot,
    on_path,
    variance_preserving,
)
from flowtext.score import (
    cubic,
    energy_distance,
    frechet,
    gaussian,
    interval,
    map_error,
    mmd,
    mmd_to_mixture,
    mode_mass,
    mode_tv,
    nearest,
    precision_recall,
    sliced_wasserstein,
    stein_discrepancy,
    straightness,
)
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

pytestmark = pytest.mark.usefixtures("no_type_checker")


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


TWO_SAMPLES = {
    "energy distance": energy_distance,
    "mmd": lambda x, y: mmd(x, y, cubic),
    "frechet": frechet,
    "precision and recall": lambda x, y: precision_recall(x, y, 1),
    "nearest": nearest,
}


@pytest.mark.parametrize("metric", TWO_SAMPLES.values(), ids=TWO_SAMPLES)
def test_bad_pairs_of_samples_have_no_score(metric):
    with refuses("got samples of widths 2 and 3, expected the same width"):
        metric(x, torch.zeros(4, 3))
    for bad in ((x, x * torch.nan), (x * torch.nan, x)):
        with refuses("got a state with NaN"):
            metric(*bad)
    for bad in ((x[0], x), (x, x[0])):
        with refuses("got a state of shape (2,), expected (b, d)"):
            metric(*bad)
    with refuses("got 0 points"):
        metric(x, x[:0])
    if metric is not nearest:
        for bad in ((x, x[:1]), (x[:1], x)):
            with refuses("got 1 points, expected at least 2"):
                metric(*bad)


def test_a_kernel_has_a_width():
    for width in (0, -1, math.nan):
        with refuses(f"got width {width}, expected more than 0"):
            gaussian(width)
        with refuses(f"got width {width}, expected more than 0"):
            mmd_to_mixture(x, eight_modes(), width)


def test_a_neighbour_is_another_point():
    for k in (0, 4, 10):
        with refuses(f"got k = {k} for 4 and 5 points, expected k from 1 to one less"):
            precision_recall(x, torch.zeros(5, 2), k)


def test_metrics_that_use_a_mixture_get_one():
    for metric in (mode_tv, lambda x, world: mmd_to_mixture(x, world, 1.0)):
        with refuses("got a state of shape (4, 3), expected (b, 2)"):
            metric(torch.zeros(4, 3), eight_modes())
    for world in (PRODUCTS["product 3-d"], Empirical(x)):
        with refuses(f"got a world {type(world).__name__}, expected a Mixture"):
            mmd_to_mixture(x, world, 1.0)
    with refuses("got 1 points, expected at least 2"):
        mmd_to_mixture(x[:1], eight_modes(), 1.0)


def test_a_score_function_gives_one_score_a_state():
    with refuses("got states and scores of shapes (4, 2) and (4, 1)"):
        stein_discrepancy(x, lambda x: x[:, :1])
    with refuses("got a state with NaN"):
        stein_discrepancy(x, lambda x: x * torch.nan)
    with refuses("got 1 points, expected at least 2"):
        stein_discrepancy(x[:1], lambda x: x)


def test_maps_keep_the_shape_of_a_state():
    t = torch.zeros(4).double()

    def stay(x, s, t):
        return x

    for bad in (
        (stay, lambda x, s, t: x[:, :1]),
        (lambda x, s, t: x.sum(1, True), stay),
    ):
        with refuses("got states and ends of shapes (4, 2) and (4"):
            map_error(*bad, x, t, t)
    with refuses("got a state with NaN"):
        map_error(stay, lambda x, s, t: x * torch.nan, x, t, t)


# Nets, objectives, guidance and the loop

LABELLED = {
    "mlp": (lambda labels: MLP(64, width=8, labels=labels), (1, 8, 8)),
    "unet": (lambda labels: UNet(1, (8, 16), labels=labels), (1, 8, 8)),
    "dit": (lambda labels: DiT(1, 8, 2, 8, 1, 2, labels=labels), (1, 8, 8)),
}
every_labelled = pytest.mark.parametrize("name", LABELLED)
half = torch.full((4,), 0.5)


@every_labelled
def test_a_net_without_labels_refuses_them(name):
    make, shape = LABELLED[name]
    with refuses("got labels, expected none: this net was made without"):
        make(0)(torch.zeros(4, *shape), half, half, torch.zeros(4).long())


@every_labelled
def test_labels_out_of_range_are_refused(name):
    make, shape = LABELLED[name]
    net, images = make(3), torch.zeros(4, *shape)
    for bad in ([0, 1, 2, 3], [0, -2, 1, 1]):
        with refuses(
            f"got labels {bad} of shape (4,), expected (4,) from -1, none, to"
        ):
            net(images, half, half, torch.tensor(bad))
    for bad in (torch.zeros(3).long(), torch.zeros(4, 1).long()):
        with refuses(f"of shape {tuple(bad.shape)}, expected (4,) from -1"):
            net(images, half, half, bad)
    with refuses("got labels [1] of shape (), expected (4,) from -1"):
        net(images, half, half, torch.tensor(1))


def test_twins_refuse_labels_as_each_net_would():
    twins = Twins([MLP(2, width=8, labels=3) for _ in range(2)])
    for bad in (3, -2):
        with refuses(f"got labels [0, {bad}, 0, 0] of shape (4,), expected (4,) from"):
            twins(torch.zeros(4, 2), half, half, torch.tensor([0, bad, 0, 0]))


@pytest.mark.parametrize("n", [1, 3])
def test_a_state_of_another_size_is_refused_by_an_mlp(n):
    with refuses(f"got a state of shape (4, {n}), expected 2 numbers a sample"):
        MLP(2)(torch.zeros(4, n), half, half)


@pytest.mark.parametrize("shape", [(4, 1, 8, 6), (4, 1, 6, 8), (4, 1, 9, 8), (4, 8, 8)])
def test_sides_that_a_unet_cannot_halve_are_refused(shape):
    wanted = "(b, 1, h, w) with h and w multiples of 4"
    with refuses(f"got a state of shape {shape}, expected {wanted}"):
        UNet(1, (8, 8), patch=2)(torch.zeros(shape), half, half)


@pytest.mark.parametrize("shape", [(4, 1, 6, 6), (4, 1, 8, 6), (4, 1, 6, 8), (4, 8, 8)])
def test_sides_other_than_a_transformers_own_are_refused(shape):
    with refuses(f"got a state of shape {shape}, expected (b, 1, 8, 8)"):
        DiT(1, 8, width=8, heads=2)(torch.zeros(shape), half, half)


def test_images_of_other_channels_are_refused():
    images = torch.zeros(4, 3, 8, 8)
    for net in (UNet(1, (8, 8)), DiT(1, 8, width=8, heads=2)):
        with refuses("got a state of shape (4, 3, 8, 8), expected (b, 1, "):
            net(images, half, half)
    with refuses("got a state of shape (4, 3, 8, 8), expected (b, 1, "):
        Classifier(1, 8, 10)(images)


def test_an_answer_of_another_shape_is_refused():
    with refuses("got an answer of shape (4, 1), expected that of the state, (4, 2)"):
        FlowMatching()(lambda x, s, t, y: x[:, :1], torch.zeros(4, 2))


def test_a_training_is_of_some_steps_and_kept_somewhere(tmp_path):
    def train(**options):
        return [*fit(MLP(2), FlowMatching(), lambda _: x.float(), **options)]

    with refuses("got 0 steps, saved every 500, expected 1 or more of each, whole"):
        train(steps=0)
    with refuses("got 1 steps, saved every 0, expected 1 or more of each"):
        train(steps=1, every=0)
    with refuses("got 1000.0 steps, saved every 500, expected 1 or more of each"):
        train(steps=1e3)
    for ema in (1.5, -0.1, math.nan):
        with refuses(f"got ema {ema} and lr 0.001, expected 0 <= ema < 1"):
            train(steps=1, ema=ema)
    with refuses("got ema 0.999 and lr -1, expected 0 <= ema < 1 and a rate above 0"):
        train(steps=1, lr=-1)
    with refuses("got a net whose weights are frozen, expected them free"):
        [*fit(MLP(2).requires_grad_(False), FlowMatching(), lambda _: x, steps=1)]
    with refuses("gone/run.pt, expected a file in a folder that exists"):
        train(steps=1, keep=tmp_path / "gone" / "run.pt")


@every_labelled
def test_a_state_of_another_precision_than_the_weights_is_refused(name):
    make, shape = LABELLED[name]
    with refuses("got a state of torch.float64, expected torch.float32, that of the w"):
        make(0)(torch.zeros(4, *shape).double(), half, half)


@every_labelled
def test_times_that_are_not_one_a_sample_are_refused(name):
    make, shape = LABELLED[name]
    net, images = make(0), torch.zeros(4, *shape)
    for bad in (half[:3], half[:, None], torch.tensor(0.5)):
        for times in ((bad, half), (half, bad)):
            with refuses(f"got a time Tensor of shape {tuple(bad.shape)}, expected"):
                net(images, *times)
    with refuses("got a time float, expected shape (4,): one a sample"):
        net(images, 0.5, half)


@every_labelled
def test_labels_that_are_no_integers_are_refused(name):
    make, shape = LABELLED[name]
    net, images = make(3), torch.zeros(4, *shape)
    for bad, kind in (([0] * 4, "list"), (3, "int"), (half, "torch.float32")):
        with refuses(f"got labels of {kind}, expected a tensor of integers"):
            net(images, half, half, bad)


@pytest.mark.parametrize("widths", [(), (30, 64), (32, 60)])
def test_widths_of_a_unet_are_multiples_of_eight(widths):
    with refuses(f"got widths {widths}, expected some multiples of 8"):
        UNet(1, widths)


def test_parts_of_an_objective_are_what_they_should_be():
    with refuses("got path 'cosine', expected a Path such as linear"):
        FlowMatching("cosine")
    for name in ("pair", "times", "weight"):
        with refuses(f"got {name} 0.5, expected a function"):
            FlowMatching(**{name: 0.5})
    with refuses("got times <function logit_normal"):
        FlowMatching(times=logit_normal)(MLP(2), torch.zeros(4, 2))


def test_a_batch_is_data_or_data_and_labels():
    def train(batch):
        return [*fit(MLP(2), FlowMatching(), lambda _: batch, steps=1)]

    with refuses("got a batch of 3 parts, expected x1 or x1, y"):
        train((x, x, x))
    with refuses("got a state of list, expected a floating-point tensor"):
        train(([[0.0, 1.0]], None))


def test_a_scale_is_a_number_or_one_a_sample():
    net = guided(MLP(2, labels=3), torch.tensor([2.0, 5.0]))
    with refuses("got a scale of shape (2,), expected a number or (4,)"):
        net(torch.zeros(4, 2), half, half, torch.zeros(4).long())


def test_numbers_in_the_place_of_things_are_refused():
    points = torch.zeros(4, 2)
    with refuses("got times of int, expected a tensor such as grid(8)"):
        integrate(lambda x, t: x, points, 8, euler)
    with refuses("got kernel 0.5, expected one such as gaussian(0.5)"):
        mmd(points, points, 0.5)
    with refuses("got a world Gaussian, expected a Mixture"):
        mode_mass(points, Gaussian(double(0.0, 0.0), torch.eye(2).double()))


def test_a_transformer_is_of_whole_patches_and_heads():
    for parts in ({"size": 9}, {"size": 8, "patch": 3}, {"size": 8, "heads": 5}):
        with refuses("expected whole patches and whole heads"):
            DiT(1, **parts)


def test_sides_other_than_a_classifiers_own_are_refused():
    net = Classifier(1, 8, 10)
    for shape in ((4, 1, 8, 6), (4, 1, 6, 8), (4, 8, 8), (4, 1, 12, 12)):
        for call in (net, net.features):
            with refuses(f"got a state of shape {shape}, expected (b, 1, 8, 8)"):
                call(torch.zeros(shape))


def test_a_batch_that_twins_cannot_share_is_refused():
    twins = Twins([MLP(2, width=8) for _ in range(3)])
    with refuses("got 4 samples, expected a multiple of 3 nets"):
        twins(torch.zeros(4, 2), half, half)


@pytest.mark.parametrize("kind", ["score", "v", "", None])
def test_an_unknown_prediction_is_refused(kind):
    with refuses("expected one of ['velocity', 'data', 'noise']"):
        as_velocity(MLP(2), linear, kind)
    with refuses("expected one of ['velocity', 'data', 'noise']"):
        FlowMatching(predicts=kind)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1), (0, 1.1), (0.6, 0.4), (0.5, 0.5)])
def test_times_outside_of_a_path_are_refused(low, high):
    with refuses(f"got times from {low} to {high}, expected 0 <= low < high <= 1"):
        within(low, high)
    with refuses("got times from nan"):
        within(math.nan, high)


@pytest.mark.parametrize("size", [1, 0, -3])
def test_an_assignment_is_of_two_or_more(size):
    with refuses(f"got an assignment of {size} samples, expected 2 or more"):
        minibatch_ot(size)


@pytest.mark.parametrize("shape", [(5, 2), (5, 3, 2), (5, 1, 2), (5,)])
def test_pairs_are_two_states_a_sample(shape):
    with refuses(f"got pairs of shape {shape}, expected (b, 2, ...)"):
        given(torch.zeros(shape))


def test_an_objective_refuses_data_that_are_no_numbers():
    for pair in (minibatch_ot(4), FlowMatching().pair):
        with pytest.raises(ValueError, match=r"NaN|invalid numeric"):
            FlowMatching(pair=pair)(MLP(2), torch.full((4, 2), torch.nan))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_of_labels_is_between_none_and_all(share):
    with refuses(f"got a share of {share}, expected a number in [0, 1]"):
        drop_labels(FlowMatching(), share)


def test_labels_that_are_not_there_cannot_be_left_out():
    with refuses("got no labels, expected one a sample to drop a share of"):
        drop_labels(FlowMatching(), 0.1)(MLP(2, labels=3), torch.zeros(4, 2))
    with refuses("got no labels, expected one a sample to drop a share of"):
        [*fit(MLP(2), drop_labels(FlowMatching(), 0.1), lambda _: x.float(), steps=1)]


def test_guidance_needs_labels():
    with refuses("got no labels, expected one a sample to steer towards"):
        guided(MLP(2, labels=3), 2.0)(torch.zeros(4, 2), half, half)


def test_a_loss_that_is_no_number_ends_the_run():
    loud = FlowMatching(weight=lambda t: t * math.inf)
    with refuses("at step 1, the weights are those of the step before; try a smaller"):
        [*fit(MLP(2), loud, lambda _: x.float(), steps=3)]


def test_a_file_that_is_no_run_and_no_net_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("neither")
    with refuses(
        f"got {path}, which is damaged or of another net, expected a run to go"
    ):
        [*fit(MLP(2), FlowMatching(), lambda _: x.float(), steps=1, keep=path)]
    with refuses(f"got {path}, which cannot be read"):
        read(path, MLP(2))
    assert path.read_text() == "neither"
    save(path, MLP(2, width=64), {})
    with refuses("weights of a MLP that fit another net"):
        read(path, MLP(2))
