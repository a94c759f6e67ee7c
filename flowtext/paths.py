"""How noise becomes data: paths x = alpha(t) x1 + sigma(t) x0, such as `linear`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from flowtext.tensors import (
    State,
    Time,
    Velocity,
    anywhere,
    check_state,
    check_time,
    expand,
)

Schedule = Callable[[Tensor], Tensor]
# Who is paired with whom: a batch becomes noise and data, (x0, x1).
Coupling = Callable[[State, Generator | None], tuple[State, State]]


@dataclass(frozen=True)
class Point:
    """A point of a path: the state, its velocity, and the ends and time behind them."""

    x: State
    v: State
    x0: State
    x1: State
    t: Time


@dataclass(frozen=True)
class Path:
    """A path from noise at t = 0 to data at t = 1 by two schedules of time.

    Source: Lipman et al. 2023 (arXiv 2210.02747), section 4.
    """

    alpha: Schedule
    sigma: Schedule

    def coefficients(self, t: Time) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma and their time derivatives at t, each of shape (b,).

        Raises ValueError where a schedule has no finite slope, as at some paths' ends.
        """
        t = t.contiguous()  # an expanded time shares memory, which jvp refuses
        one = torch.ones_like(t)
        alpha, alpha_dot = torch.func.jvp(self.alpha, (t,), (one,))
        sigma, sigma_dot = torch.func.jvp(self.sigma, (t,), (one,))
        if anywhere(~torch.isfinite(alpha_dot + sigma_dot)):
            stop = "stop a little before its end, say at 0.999"
            raise ValueError(f"got a time where the path has no finite slope; {stop}")
        return alpha, sigma, alpha_dot, sigma_dot

    def at(self, x0: State, x1: State, t: Time) -> Point:
        """The point between noise x0 and data x1 at t in [0, 1], and its velocity.

        Raises ValueError if x0 and x1 differ in shape or t is not (b,) in [0, 1].
        """
        check_state(x0)
        check_state(x1)
        check_time(t, x0)
        if x0.shape != x1.shape:
            got = f"{tuple(x0.shape)} and {tuple(x1.shape)}"
            raise ValueError(f"got ends of shapes {got}, expected the same shape")
        a, s, a_dot, s_dot = (expand(c, x0) for c in self.coefficients(t))
        return Point(a * x1 + s * x0, a_dot * x1 + s_dot * x0, x0, x1, t)

    def ends_of(self, x: State, v: State, t: Time) -> tuple[State, State]:
        """The data and the noise that together give this state and this velocity.

        Solves x = alpha x1 + sigma x0 and v = alpha' x1 + sigma' x0. Given the velocity
        of a flow, they are the posterior means of both. Raises ValueError as `at` does.
        """
        check_time(t, x)
        a, s, a_dot, s_dot = (expand(c, x) for c in self.coefficients(t))
        determinant = a * s_dot - a_dot * s
        return (s_dot * x - s * v) / determinant, (a * v - a_dot * x) / determinant

    def data_of(self, x: State, v: State, t: Time) -> State:
        """The posterior mean of the data, E[x1 | x], from the velocity v at x."""
        return self.ends_of(x, v, t)[0]

    def noise_of(self, x: State, v: State, t: Time) -> State:
        """The posterior mean of the noise, E[x0 | x], from the velocity v at x."""
        return self.ends_of(x, v, t)[1]

    def score_of(self, x: State, v: State, t: Time) -> State:
        """The score, grad log p_t(x) = -E[x0 | x] / sigma, from the velocity v at x.

        Raises ValueError at a time where the path has no noise left.
        """
        sigma = self.sigma(t)
        if anywhere(sigma <= 0):
            got = "got a time without noise, where the score has no value"
            raise ValueError(f"{got}; expected t < 1")
        return -self.noise_of(x, v, t) / expand(sigma, x)

    def diffusion(self, t: Time) -> Time:
        """g(t) of the noising process that has the path's distributions.

        Run from data to noise it is dx = -(alpha'/alpha) x |dt| + g dW, and
        g^2 = 2 sigma (alpha' sigma - alpha sigma') / alpha. Raises ValueError where
        alpha is 0. Source: Song et al. 2021 (arXiv 2011.13456), equation 5, for a path.
        """
        a, s, a_dot, s_dot = self.coefficients(t)
        if anywhere(a <= 0):
            got = "got a time without data, where the noising has no finite rate"
            raise ValueError(f"{got}; expected t > 0")
        return (2 * s * (a_dot * s - a * s_dot) / a).sqrt()


def independent(x1: State, generator: Generator | None = None) -> tuple[State, State]:
    """Noise drawn without a look at the data: x0 normal, and the data as they are."""
    device = generator.device if generator else x1.device
    shape = {"dtype": x1.dtype, "device": device}
    return torch.randn(x1.shape, generator=generator, **shape).to(x1.device), x1


def minibatch_ot(size: int = 256) -> Coupling:
    """Noise handed out so that the squared distances to the data are least.

    Within each run of `size` samples, by an exact assignment; data keep their order,
    and so their labels. It is not the optimal transport of the whole distributions.
    Raises ValueError for a size below 2. Source: Pooladian et al. 2023 (arXiv
    2304.14772); Tong et al. 2024 (arXiv 2302.00482).
    """
    if size < 2:
        raise ValueError(f"got an assignment of {size} samples, expected 2 or more")

    def couple(x1: State, generator: Generator | None = None) -> tuple[State, State]:
        x0, _ = independent(x1, generator)
        handed = [
            noise[_assignment(noise, data)]
            for noise, data in zip(x0.split(size), x1.split(size), strict=True)
        ]
        return torch.cat(handed), x1

    return couple


def given(
    pairs: Float[Tensor, "b 2 *d"], generator: Generator | None = None
) -> tuple[State, State]:
    """Pairs that are ready: a batch (b, 2, *d) holds the noise, then the data.

    A model's own noise and samples, paired like this, are what ReFlow trains on.
    Raises ValueError for another shape. Source: Liu et al. 2023 (arXiv 2209.03003).
    """
    if pairs.ndim < 3 or pairs.shape[1] != 2:
        got = tuple(pairs.shape)
        raise ValueError(f"got pairs of shape {got}, expected (b, 2, ...)")
    return pairs[:, 0], pairs[:, 1]


def on_path(v: Velocity, source: Path, target: Path) -> Velocity:
    """A velocity made for one path, as the velocity of the same model on another.

    At equal ratios of signal to noise the states of two paths differ by a factor, and
    the posterior means not at all. Where target is noisier than source ever is, the
    answer is source's at its start. Source: Karras et al. 2022 (arXiv 2206.00364).
    """

    def moved(x: State, t: Time) -> State:
        check_time(t, x)
        s, factor = same_ratio(source, target, t)
        there = x / expand(factor, x)
        data, noise = source.ends_of(there, v(there, s), s)
        _, _, a_dot, s_dot = (expand(c, x) for c in target.coefficients(t))
        return a_dot * data + s_dot * noise

    return moved


def same_ratio(source: Path, target: Path, t: Time) -> tuple[Time, Time]:
    """The time s on source at which alpha/sigma is as on target at t, and a factor c.

    A state of source at s times c is a state of target at t. Found by bisection; where
    source never gets as noisy as target, s is 0.
    """

    def angle(path: Path, moment: Time) -> Time:
        return torch.atan2(path.alpha(moment), path.sigma(moment))

    wanted = angle(target, t)
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(60):
        middle = (low + high) / 2
        before = angle(source, middle) < wanted
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    factor = torch.hypot(target.alpha(t), target.sigma(t))
    return high, factor / torch.hypot(source.alpha(high), source.sigma(high))


def _assignment(x0: State, x1: State) -> Tensor:
    """Which noise each datum gets, so that the squared distances add up to least."""
    cost = torch.cdist(x1.flatten(1).double(), x0.flatten(1).double()).square()
    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(x0.device)


def _log_alpha(t: Tensor) -> Tensor:
    """log alpha of the VP schedule: beta grows from 0.1 at data to 20 at noise."""
    u = 1 - t
    return -(u**2) * (20 - 0.1) / 4 - u * 0.1 / 2


# Straight lines between noise and data. Source: Lipman et al. 2023 (2210.02747).
linear = Path(alpha=lambda t: t, sigma=lambda t: 1 - t)
# A quarter turn from noise to data. Source: Nichol and Dhariwal 2021 (2102.09672),
# without its offset.
cosine = Path(
    alpha=lambda t: torch.sin(math.pi / 2 * t),
    sigma=lambda t: torch.sin(math.pi / 2 * (1 - t)),
)
# Starts at alpha = 0.007, not 0, and its velocity has no value at t = 1: stop short.
# Source: Song et al. 2021 (2011.13456), appendix C.
variance_preserving = Path(
    alpha=lambda t: _log_alpha(t).exp(),
    sigma=lambda t: torch.sqrt(-torch.expm1(2 * _log_alpha(t))),
)
