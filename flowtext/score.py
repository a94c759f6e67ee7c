"""Numbers that say how good samples are. Each has a noise floor: two real samples."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from scipy import stats
from torch import Generator, Tensor

from flowtext.tensors import FlowMap, State, Time, check_state

PROJECTIONS = 128
CHUNK = 1000  # rows at a time, so that no table of all pairs is ever stored

Others = Float[Tensor, "n *d"]
Pairs = Float[Tensor, "b n"]
Kernel = Callable[[State, Others], Pairs]


def sliced_wasserstein(x: State, y: State) -> Float[Tensor, ""]:
    """The sliced 2-Wasserstein distance between two samples of the same size.

    Root mean square, over 128 fixed random directions, of the distance between sorted
    projections. It grows with the noise of a small sample: compare at one size. Raises
    ValueError for samples of different shape. Source: Bonneel et al. 2015.
    """
    _check_same(x, y, "samples")
    fixed = Generator().manual_seed(0)
    size = x[0].numel(), PROJECTIONS
    directions = torch.randn(size, generator=fixed, dtype=torch.float64).to(x)
    directions = directions / directions.norm(dim=0)
    near = (x.flatten(1) @ directions).sort(0).values
    far = (y.to(x).flatten(1) @ directions).sort(0).values
    return (near - far).pow(2).mean().sqrt()


def mode_mass(x: State, world) -> Float[Tensor, " k_and_one"]:
    """The share of samples at every mode of a mixture, and last the share at none.

    A sample belongs to its nearest mode if it is within four standard deviations.
    Raises ValueError beyond three dimensions, where real samples lie farther out.
    """
    if not hasattr(world, "means"):
        raise ValueError(f"got a world {type(world).__name__}, expected a Mixture")
    d = world.means.shape[1]
    if d > 3:
        raise ValueError(f"got a mixture in {d} dimensions, expected at most three")
    check_state(x, d)
    distance = torch.cdist(x.to(world.means), world.means) / world.stds
    near, mode = distance.min(1)
    mode = torch.where(near < 4, mode, len(world.means))
    return mode.bincount(minlength=len(world.means) + 1) / len(x)


def mode_tv(x: State, world) -> Float[Tensor, ""]:
    """Total variation between the weights of a mixture and the shares of samples.

    The share of mass that is missing at its mode, in [0, 1]; strays are missing too.
    Raises ValueError as `mode_mass` does. It sees nothing of the shape of a mode.
    """
    return (world.weights - mode_mass(x, world)[:-1]).clamp(min=0).sum()


def energy_distance(x: State, y: Others) -> Float[Tensor, ""]:
    """The energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, unbiased: also below 0.

    SciPy's, on a line, is the root of the biased one. Raises ValueError unless x and y
    have the same width and two points each. Source: Székely and Rizzo 2013.
    """
    return mmd(x, y, lambda a, b: -_distances(a, b))


def mmd(x: State, y: Others, kernel: Kernel) -> Float[Tensor, ""]:
    """The squared maximum mean discrepancy, unbiased: about 0 if both are alike.

    The kernel is `gaussian(width)`, `cubic`, or your own. Raises ValueError unless x
    and y have the same width and two points each. Source: Gretton et al. 2012, eq. 3.
    """
    if not callable(kernel):
        raise ValueError(f"got kernel {kernel!r}, expected one such as gaussian(0.5)")
    x, y = _both(x, y)
    return _mean(kernel, x) + _mean(kernel, y) - 2 * _mean(kernel, x, y)


def gaussian(width: float) -> Kernel:
    """The kernel exp(-|x - y|^2 / (2 width^2)). Raises ValueError unless width > 0."""
    if not width > 0:
        raise ValueError(f"got width {width}, expected more than 0")
    return lambda x, y: _bump(x, y, width, 0)


def cubic(x: State, y: Others) -> Pairs:
    """The kernel (x.y / d + 1)^3, for features: `mmd` with it is the KID.

    Source: Bińkowski et al. 2018, section 4.
    """
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd_to_mixture(x: State, world, width: float) -> Float[Tensor, ""]:
    """The squared Gaussian-kernel MMD to a mixture itself, not to a sample of it.

    Means of the kernel under the mixture are known, so only x is noisy. Raises
    ValueError unless world is a `Mixture` of the width of x. Source: convolution of
    normal densities; Gretton et al. 2012, eq. 3.
    """
    variance = getattr(world, "stds", torch.zeros(0, 0)) ** 2
    if variance.ndim != 1:
        raise ValueError(f"got a world {type(world).__name__}, expected a Mixture")
    check_state(x, world.means.shape[1])
    variance, means, weights = (
        value.to(x.device, torch.float64)
        for value in (variance, world.means, world.weights)
    )
    x, kernel = _table(x), gaussian(width)
    cross = _bump(x, means, width, variance) @ weights
    own = _bump(means, means, width, variance + variance[:, None])
    return _mean(kernel, x) - 2 * cross.mean() + weights @ own @ weights


def stein_discrepancy(x: State, score: Callable[[State], State]) -> Float[Tensor, ""]:
    """The squared kernel Stein discrepancy from x to a score function, unbiased.

    It needs no sample of the data: the score of the data, at x, is enough. Nearly
    blind to the weights of modes far apart. Kernel (1 + |x - y|^2)^(-1/2). Raises
    ValueError unless score(x) has the shape of x. Source: Gorham and Mackey 2017.
    """
    states, slope = _table(x), score(x)
    _check_same(x, slope, "states and scores")
    return _mean(_stein, torch.cat([states, _table(slope)], 1))


def frechet(x: Float[Tensor, "b f"], y: Float[Tensor, "n f"]) -> Float[Tensor, ""]:
    """The squared Fréchet distance between normal laws fitted to two sets of features.

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)). It falls with the size of the sample:
    compare at one size. Raises ValueError unless x and y have the same width and two
    points each. Source: Heusel et al. 2017, eq. 6.
    """
    x, y = _both(x, y)
    (mean, root), (other_mean, other_root) = _normal_law(x), _normal_law(y)
    shared = torch.linalg.svdvals(root @ other_root).sum()
    spread = (root**2).sum() + (other_root**2).sum() - 2 * shared
    return ((mean - other_mean) ** 2).sum() + spread


def precision_recall(
    real: State, fake: Others, k: int = 3
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(precision, recall): fakes among the real ones, real ones among the fakes.

    A point is among a set if it is as near to one of its points as that point's k-th
    neighbour. Raises ValueError unless both have the same width and more than k
    points. Source: Kynkäänniemi et al. 2019, eq. 1 and 2.
    """
    real, fake = _both(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        got = f"k = {k} for {len(real)} and {len(fake)} points"
        raise ValueError(f"got {got}, expected k from 1 to one less than the points")
    return _share_among(fake, real, k), _share_among(real, fake, k)


def nearest(x: State, data: Others) -> Float[Tensor, " b"]:
    """The distance of every sample to its nearest datum; 0 for a copy.

    Small beside that of a real test sample, it says that a generator has memorised.
    Raises ValueError unless both have the same width.
    """
    x, data = _both(x, data, least=1)
    return torch.cat([_distances(rows, data).min(1).values for rows in x.split(CHUNK)])


@torch.no_grad()
def map_error(X: FlowMap, Y: FlowMap, x: State, s: Time, t: Time) -> Float[Tensor, ""]:
    """The path error: root mean square distance between X(x, s, t) and Y(x, s, t).

    Not the distribution error: two maps may spread the same samples, each to another
    state. Raises ValueError unless both maps keep the shape of x.
    """
    ends = X(x, s, t), Y(x, s, t)
    for end in ends:
        _check_same(x, end, "states and ends")
    ours, theirs = _both(*ends, least=1)
    return (ours - theirs).pow(2).sum(1).mean().sqrt()


def straightness(track: Float[Tensor, "n b *d"], times: Float[Tensor, " n"]) -> Tensor:
    """How far tracks are from straight lines at constant speed; 0 for those.

    The mean of |v - (end - start) / duration|^2 over samples and time. Raises
    ValueError unless there is one state a time. Source: Liu et al. 2023 (arXiv
    2209.03003), section 2.
    """
    if len(track) != len(times) or len(times) < 2:
        got = f"{len(track)} states and {len(times)} times"
        raise ValueError(f"got {got}, expected one state a time, two or more")
    h = times.diff().to(track).reshape(-1, *[1] * (track.ndim - 1))
    chord = (track[-1] - track[0]) / h.sum()
    defect = (track.diff(dim=0) / h - chord) ** 2
    return (defect.flatten(2).sum(2) * h.flatten(1)).sum(0).mean() / h.sum()


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t-interval for the mean of independent values: (low, high).

    For a difference of two methods give the paired differences, seed by seed. Raises
    ValueError for fewer than two values. Source: Student 1908.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.ndim != 1 or len(values) < 2 or not values.isfinite().all():
        raise ValueError(f"got {values.tolist()}, expected two or more finite values")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std()
    half, mean = float(half) / math.sqrt(len(values)), float(values.mean())
    return mean - half, mean + half


def _check_same(x: Tensor, y: Tensor, what: str) -> None:
    check_state(x)
    check_state(y)
    if x.shape != y.shape:
        got = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"got {what} of shapes {got}, expected the same shape")


def _both(x: State, y: Others, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two samples as tables in float64, after the checks at the door."""
    x, y = _table(x, least), _table(y, least)
    if x.shape[1] != y.shape[1]:
        got = f"{x.shape[1]} and {y.shape[1]}"
        raise ValueError(f"got samples of widths {got}, expected the same width")
    return x, y.to(x.device)


def _table(sample: State, least: int = 2) -> Float[Tensor, "b f"]:
    """A sample as a table in float64, after the checks at the door."""
    check_state(sample)
    if len(sample) < least:
        raise ValueError(f"got {len(sample)} points, expected at least {least}")
    return sample.flatten(1).double()


def _mean(kernel: Kernel, x: State, y: Others | None = None) -> Float[Tensor, ""]:
    """The mean of a kernel over pairs of x and y, or over unequal pairs of x alone."""
    total = x.new_zeros(())
    for start in range(0, len(x), CHUNK):
        block = kernel(x[start : start + CHUNK], x if y is None else y)
        total += block.sum()
        if y is None:
            total -= block.diagonal(start).sum()
    return total / (len(x) * (len(x) - 1 if y is None else len(y)))


def _distances(x: State, y: Others) -> Pairs:
    """Distances, not by scalar products, whose rounding hides copies."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _bump(x: State, y: Others, width: float, variance: Tensor | int) -> Pairs:
    """A Gaussian kernel, averaged over normal noise of this variance on its points."""
    total = width**2 + torch.as_tensor(variance, dtype=x.dtype, device=x.device)
    height = (width**2 / total) ** (x.shape[1] / 2)
    return height * torch.exp(-(_distances(x, y) ** 2) / (2 * total))


def _stein(left: State, right: Others) -> Pairs:
    """Stein's kernel on rows that hold a state and its score."""
    (x, p), (y, q) = left.chunk(2, 1), right.chunk(2, 1)
    square = _distances(x, y) ** 2
    k = (1 + square) ** -0.5
    pull = (p * x).sum(1)[:, None] - p @ y.T - x @ q.T + (q * y).sum(1)
    return p @ q.T * k + (pull + x.shape[1]) * k**3 - 3 * square * k**5


def _normal_law(x: Float[Tensor, "b f"]) -> tuple[Tensor, Tensor]:
    """The mean of features and the symmetric root of their covariance."""
    mean = x.mean(0)
    cov = (x - mean).T @ (x - mean) / (len(x) - 1)
    spectrum, directions = torch.linalg.eigh(cov)
    return mean, directions * spectrum.clamp(min=0).sqrt() @ directions.T


def _share_among(x: State, centres: Others, k: int) -> Float[Tensor, ""]:
    """The share of x within the k-th neighbour's distance of one of the centres."""
    radii = torch.cat(
        [
            _distances(rows, centres).kthvalue(k + 1, 1).values
            for rows in centres.split(CHUNK)
        ]
    )
    among = [(_distances(rows, centres) <= radii).any(1) for rows in x.split(CHUNK)]
    return torch.cat(among).double().mean()
