"""Metrics on trial: known answers, invariances, and samples known to be bad."""

import math

import pytest
import torch
from conftest import double
from scipy import linalg, spatial, stats
from sklearn.metrics import pairwise
from sklearn.neighbors import NearestNeighbors

from flowtext import score
from flowtext.paths import linear
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
from flowtext.solve import euler, grid, integrate
from flowtext.worlds import Gaussian, Mixture, eight_modes


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


def normal(n, d, generator):
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def true_score(world):
    return lambda x: world.score(linear)(x, torch.ones(len(x)).to(x))


def within(values, exact, widths=5):
    """Whether a mean over repeats lies within its standard errors of the answer."""
    values = torch.stack(values)
    return abs(float(values.mean() - exact)) < widths * float(
        values.std() / math.sqrt(len(values))
    )


def test_mode_tv_is_the_mass_that_is_missing():
    world = Mixture(double([0.0], [10.0]), double(0.1, 0.1), double(0.75, 0.25))
    assert mode_tv(double([0.0], [0.0], [0.0], [10.0]), world) == 0
    assert mode_tv(double([0.0], [0.0], [10.0], [10.0]), world) == 0.25
    assert mode_tv(double([0.0], [0.0], [0.0], [5.0]), world) == 0.25
    assert mode_tv(double([5.0], [6.0]), world) == 1


def test_the_energy_distance_is_scipys_without_its_bias(generator):
    """SciPy counts every point as its own pair: E|x - x'| shrinks by (n - 1) / n."""
    x, y = normal(50, 1, generator), 1 + 2 * normal(80, 1, generator)
    biased = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    self_pairs = sum(spatial.distance.pdist(z).mean() / len(z) for z in (x, y))
    assert energy_distance(x, y) == pytest.approx(biased - self_pairs, abs=1e-13)


def test_the_energy_distance_of_two_normals(generator):
    """x - y is N(m, 2), x - x' is N(0, 2): E|N(m, 2)| in closed form."""
    m, n, repeats = 1.5, 30, 300
    folded = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    exact = 2 * folded - 4 / math.sqrt(math.pi)
    pairs = [normal(2 * n, 1, generator).chunk(2) for _ in range(repeats)]
    assert within([energy_distance(x, y + m) for x, y in pairs], exact)
    assert within([energy_distance(x, y) for x, y in pairs], 0)


def mmd_of_normals(width, mean, std, d):
    """Squared MMD of N(0, 1) and N(mean, std^2) in d dimensions."""

    def pair(variance, shift):
        total = width**2 + variance
        return (width**2 / total) ** (d / 2) * math.exp(-d * shift**2 / 2 / total)

    return pair(2, 0) + pair(2 * std**2, 0) - 2 * pair(1 + std**2, mean)


def test_the_mmd_of_two_normals(generator):
    """Unbiased: also at 30 points, and 0 for two samples of one law."""
    n, repeats, width, mean, std = 30, 300, 0.7, 0.5, 1.3
    exact = mmd_of_normals(width, mean, std, 2)
    pairs = [normal(2 * n, 2, generator).chunk(2) for _ in range(repeats)]
    kernel = gaussian(width)
    assert within([mmd(x, mean + std * y, kernel) for x, y in pairs], exact)
    assert within([mmd(x, y, kernel) for x, y in pairs], 0)


def unbiased(own, cross, other):
    """Equation 3 of Gretton et al. from whole tables."""
    n, m = len(own), len(other)
    first = (own.sum() - own.trace()) / n / (n - 1)
    second = (other.sum() - other.trace()) / m / (m - 1)
    return first + second - 2 * cross.mean()


def test_kernels_are_those_of_scikit_learn(generator):
    x, y = normal(40, 3, generator), 1 + normal(25, 3, generator)
    width, pairs = 0.8, ((x, x), (x, y), (y, y))
    theirs = [pairwise.rbf_kernel(*pair, gamma=1 / (2 * width**2)) for pair in pairs]
    found = mmd(x, y, gaussian(width))
    assert found == pytest.approx(unbiased(*theirs), abs=1e-13)
    theirs = [pairwise.polynomial_kernel(*pair, 3, coef0=1) for pair in pairs]
    assert mmd(x, y, cubic) == pytest.approx(unbiased(*theirs), rel=1e-10)


def test_chunks_change_nothing_and_bound_the_table(generator, monkeypatch):
    world = eight_modes()
    x, y = draws(30, generator), draws(44, generator)

    def measure():
        found = energy_distance(x, y), stein_discrepancy(x, true_score(world))
        found += mmd(x, y, cubic), mmd_to_mixture(y, world, 0.5), nearest(x, y).sum()
        return torch.stack([*found, *precision_recall(x, y)])

    whole, rows = measure(), []
    monkeypatch.setattr(score, "CHUNK", 7)
    assert (measure() / whole - 1).abs().max() < 1e-10

    def spy(a, b):
        rows.append(len(a))
        return cubic(a, b)

    mmd(x, y, spy)
    assert max(rows) == 7


def test_the_order_of_samples_is_no_part_of_a_score(generator):
    x, y = draws(60, generator), draws(60, generator)
    mixed = x[torch.randperm(60, generator=generator)]
    for metric in (energy_distance, frechet, lambda x, y: mmd(x, y, cubic)):
        assert metric(x, y) == pytest.approx(float(metric(y, x)), abs=1e-13)
        assert metric(x, y) == pytest.approx(float(metric(mixed, y)), abs=1e-13)


def test_images_are_scored_as_rows(generator):
    x, y = normal(2 * 20, 12, generator).chunk(2)
    folded = x.reshape(20, 3, 2, 2), y.reshape(20, 3, 2, 2)
    assert energy_distance(*folded) == energy_distance(x, y)
    assert torch.equal(nearest(*folded), nearest(x, y))


def test_the_mmd_to_a_mixture_needs_no_second_sample(generator):
    """Against the formula for two normals, and against a large second sample."""
    n, repeats, width, mean, std = 30, 300, 0.7, 0.5, 1.3
    world = Mixture(double([mean, mean]), double(std), double(1.0))
    exact = mmd_of_normals(width, mean, std, 2)
    samples = [normal(n, 2, generator) for _ in range(repeats)]
    assert within([mmd_to_mixture(x, world, width) for x in samples], exact)
    world = Mixture(
        double([0.0, 0], [2, 1], [-1, 2]), double(0.2, 0.5, 1.0), double(0.5, 0.3, 0.2)
    )
    x, many = 0.5 + normal(500, 2, generator), world.sample(4000, generator)
    found = float(mmd_to_mixture(x, world, width))
    assert abs(found / float(mmd(x, many, gaussian(width))) - 1) < 0.05


def test_the_mmd_to_a_mixture_has_a_lower_floor(generator):
    """Half the noise: one sample in place of two."""
    world, n = eight_modes(), 200
    one = [mmd_to_mixture(draws(n, generator), world, 0.5) for _ in range(200)]
    two = [
        mmd(draws(n, generator), draws(n, generator), gaussian(0.5)) for _ in range(200)
    ]
    assert within(one, 0)
    assert 1.5 < float(torch.stack(two).std() / torch.stack(one).std()) < 2.5


def stein_by_autograd(x, slope):
    """Mean of Stein's kernel over unequal pairs, every derivative by autograd."""

    def k(a, b):
        return (1 + ((a - b) ** 2).sum()) ** -0.5

    total = 0.0
    for i, j in ((i, j) for i in range(len(x)) for j in range(len(x)) if i != j):
        a, b, p, q = x[i], x[j], slope[i], slope[j]
        in_a, in_b = (torch.func.grad(k, number)(a, b) for number in (0, 1))
        mixed = torch.func.jacfwd(torch.func.grad(k, 0), 1)(a, b).trace()
        total += p @ q * k(a, b) + p @ in_b + q @ in_a + mixed
    return total / len(x) / (len(x) - 1)


def test_the_stein_kernel_has_the_derivatives_of_its_base(generator):
    x = normal(6, 3, generator)
    slope = normal(6, 3, generator)
    exact = float(stein_by_autograd(x, slope))
    assert float(stein_discrepancy(x, lambda x: slope)) == pytest.approx(exact)


def test_the_stein_discrepancy_is_nothing_for_real_samples_alone(generator):
    world, n, repeats = eight_modes(), 60, 200
    real = [draws(n, generator) for _ in range(repeats)]
    at = true_score(world)
    assert within([stein_discrepancy(x, at) for x in real], 0)
    noise = [0.1 * normal(n, 2, generator) for _ in range(repeats)]
    blurred = [stein_discrepancy(x + z, at) for x, z in zip(real, noise, strict=True)]
    assert float(torch.stack(blurred).mean()) > 0.05


def test_the_stein_discrepancy_does_not_see_weights(generator):
    """The score between modes far apart knows nothing of how heavy they are."""
    world, n = eight_modes(), 2000
    one_mode = world.means[3] + 0.15 * normal(n, 2, generator)
    at = true_score(world)
    floor = torch.stack([stein_discrepancy(draws(n, generator), at) for _ in range(5)])
    assert stein_discrepancy(one_mode, at) < 3 * floor.abs().max()
    assert mmd_to_mixture(one_mode, world, 0.5) > 0.5


def law(x):
    return x.mean(0).numpy(), x.T.cov().numpy()


def test_frechet_is_the_formula_with_scipys_root(generator):
    x = normal(200, 4, generator) @ normal(4, 4, generator)
    y = 1 + normal(300, 4, generator) @ normal(4, 4, generator)
    (m, c), (n, d) = law(x), law(y)
    root = linalg.sqrtm(c @ d).real
    exact = ((m - n) ** 2).sum() + (c + d - 2 * root).trace()
    assert frechet(x, y) == pytest.approx(exact, rel=1e-9)


def test_frechet_of_two_known_normals(generator):
    """Whitened to mean 0 and covariance 1, so that the answer is exact."""
    x = normal(100, 3, generator)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    y = double(1.0, 2, 0) + x * double(2.0, 0.5, 1)
    assert frechet(x, y) == pytest.approx(5 + 1 + 0.25, abs=1e-12)
    assert frechet(x, x + 3) == pytest.approx(27, abs=1e-11)


def test_frechet_of_features_that_span_little(generator):
    """Fewer points than features: covariances without full rank, and no NaN."""
    x = normal(6, 20, generator)
    assert frechet(x, x).abs() < 1e-12
    assert frechet(x, 3 * x) == pytest.approx(
        float(4 * (x.mean(0) ** 2).sum() + 4 * x.T.cov().trace())
    )
    other = normal(6, 20, generator)
    apart = frechet(*(torch.cat(pair, 1) for pair in ((x, 0 * x), (0 * x, other))))
    sizes = [(z.mean(0) ** 2).sum() + z.T.cov().trace() for z in (x, other)]
    assert apart == pytest.approx(float(sum(sizes)))
    assert frechet(x[:, :1], other[:, :1]) >= 0


def test_frechet_falls_with_the_size_of_a_sample(generator):
    few, many = ([normal(n, 20, generator) for _ in range(2)] for n in (100, 1000))
    assert frechet(*few) > 5 * frechet(*many)


def test_precision_falls_with_noise_and_recall_with_collapse(generator):
    real, other = draws(1000, generator), draws(1000, generator)
    precision, recall = precision_recall(real, other)
    assert min(precision, recall) > 0.95
    one_mode = eight_modes().means[3] + 0.15 * normal(1000, 2, generator)
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.95
    assert recall < 0.25
    noisy = other + normal(1000, 2, generator)
    precision, recall = precision_recall(real, noisy)
    assert precision < 0.5
    assert recall > 0.9


def test_precision_and_recall_by_scikit_learns_neighbours(generator):
    real, fake = draws(90, generator), 0.8 * normal(70, 2, generator) + 1

    def share(x, centres, k):
        found = NearestNeighbors(n_neighbors=k).fit(centres)
        radii = found.kneighbors()[0][:, -1]  # without the point itself
        return (spatial.distance.cdist(x, centres) <= radii).any(1).mean()

    for k in (1, 3, 5):
        precision, recall = precision_recall(real, fake, k)
        assert 0 < precision < 1
        assert float(precision) == pytest.approx(share(fake, real, k))
        assert float(recall) == pytest.approx(share(real, fake, k))


def test_samples_on_one_point_cover_nothing(generator):
    real = draws(200, generator)
    _, recall = precision_recall(real, real[:1].expand(200, 2))
    assert recall == 1 / 200  # the point itself


def test_nearest_is_the_distance_to_the_nearest_datum(generator):
    data, x = normal(50, 5, generator), normal(30, 5, generator)
    exact = spatial.distance.cdist(x, data).min(1)
    assert nearest(x, data).tolist() == pytest.approx(exact.tolist(), rel=1e-12)


def test_a_copy_is_at_distance_nothing_even_far_out(generator):
    data = 1000 + normal(50, 5, generator)
    assert (nearest(data[10:20], data) == 0).all()


def test_the_path_error_of_known_maps(generator):
    x = normal(40, 3, generator).requires_grad_()
    s, t = torch.zeros(40).double(), torch.ones(40).double()

    def far(x, s, t):
        return x + double(3.0, 0, 4)

    found = map_error(lambda x, s, t: x, far, x, s, t)
    assert not found.requires_grad
    assert found == pytest.approx(5)
    # one sample of forty is wrong by 5: the root of a mean, not a mean of roots
    found = map_error(
        far, lambda x, s, t: torch.cat([x[:1], far(x[1:], s, t)]), x, s, t
    )
    assert found == pytest.approx(5 / math.sqrt(40))


def test_the_path_error_of_a_solver_falls_with_its_order(generator):
    world = Gaussian(double(1.0, 0), double([0.5, 0.2], [0.2, 0.3]))
    exact, v = world.flow_map(linear), world.velocity(linear)
    x, ones = normal(200, 2, generator), torch.ones(200).double()

    def solver(steps):
        return lambda x, s, t: integrate(v, x, grid(steps), euler)

    errors = [map_error(exact, solver(n), x, 0 * ones, ones) for n in (50, 100)]
    assert map_error(exact, exact, x, 0 * ones, ones) == 0
    assert 1.9 < errors[0] / errors[1] < 2.1


def test_a_wrong_path_may_end_in_the_right_distribution(generator):
    """Mirrored noise is noise: every sample lands elsewhere, the spread is the same."""
    world = Gaussian(double(0.0, 0), double([0.5, 0.2], [0.2, 0.3]))
    exact = world.flow_map(linear)
    x, ones = normal(2000, 2, generator), torch.ones(2000).double()

    def mirror(x, s, t):
        return exact(-x, s, t)

    ends = exact(
        torch.cat([x, -x]), torch.zeros(4000).double(), torch.ones(4000).double()
    )
    mirrored = mirror(
        torch.cat([x, -x]), torch.zeros(4000).double(), torch.ones(4000).double()
    )
    assert sliced_wasserstein(ends, mirrored) < 1e-12
    size = (ends**2).sum(1).mean().sqrt()
    error = map_error(exact, mirror, x, 0 * ones, ones)
    assert error == pytest.approx(2 * float(size), rel=1e-6)


def test_every_metric_is_at_its_floor_for_real_samples_and_above_for_bad_ones(
    generator,
):
    """All on trial at once: collapsed on one mode, and blurred."""
    world, n = eight_modes(), 1000
    real = draws(n, generator)
    metrics = {
        "energy": lambda x: energy_distance(real, x),
        "mmd": lambda x: mmd(real, x, gaussian(0.3)),
        "mmd to mixture": lambda x: mmd_to_mixture(x, world, 0.3),
        "frechet": lambda x: frechet(real, x),
        "mode tv": lambda x: mode_tv(x, world),
    }
    one_mode = world.means[3] + 0.15 * normal(n, 2, generator)
    blurred = draws(n, generator) + 0.4 * normal(n, 2, generator)
    others = [draws(n, generator) for _ in range(5)]
    for name, metric in metrics.items():
        floor = max(abs(float(metric(other))) for other in others)
        assert float(metric(one_mode)) > 10 * floor, name
        if name != "frechet":  # which sees a wide circle of modes, and no mode
            assert float(metric(blurred)) > 2 * floor, name
