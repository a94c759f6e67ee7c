"""Numbers that say how good samples are. Each has a noise floor: two real samples."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy import stats
from torch import Generator, Tensor

from flowtext.tensors import State, check_state

PROJECTIONS = 128


def sliced_wasserstein(x: State, y: State) -> Float[Tensor, ""]:
    """The sliced 2-Wasserstein distance between two samples of the same size.

    Root mean square, over 128 fixed random directions, of the distance between sorted
    projections. It grows with the noise of a small sample: compare at one size. Raises
    ValueError for samples of different shape. Source: Bonneel et al. 2015.
    """
    check_state(x)
    check_state(y)
    if x.shape != y.shape:
        got = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"got samples of shapes {got}, expected the same shape")
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
    d = world.means.shape[1]
    if d > 3:
        raise ValueError(f"got a mixture in {d} dimensions, expected at most three")
    check_state(x, d)
    distance = torch.cdist(x.to(world.means), world.means) / world.stds
    near, mode = distance.min(1)
    mode = torch.where(near < 4, mode, len(world.means))
    return mode.bincount(minlength=len(world.means) + 1) / len(x)


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
