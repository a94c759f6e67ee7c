"""Inference: a velocity into samples, by steps that each look at the field."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Generator, Tensor

from flowtext.tensors import State, Time, Velocity, check_state, check_time, expand

Step = Callable[[Velocity, State, Time, float], State]
Grid = Float[Tensor, " n"]
Divergence = Callable[[Velocity, State, Time], tuple[State, Float[Tensor, " b"]]]


@dataclass(frozen=True)
class Multistep:
    """A step that remembers: advance(v, x, t, h, past) gives the state and its past.

    The past is None at the start of a trajectory.
    """

    advance: Callable[[Velocity, State, Time, float, tuple | None], tuple[State, tuple]]


def euler(v: Velocity, x: State, t: Time, h: float) -> State:
    """One call: follow the tangent at the start. Order 1. Source: Euler 1768."""
    return x + h * v(x, t)


def midpoint(v: Velocity, x: State, t: Time, h: float) -> State:
    """Two calls: the velocity half-way. Order 2. Source: Runge 1895."""
    middle = x + h / 2 * v(x, t)
    return x + h * v(middle, t + h / 2)


def heun(v: Velocity, x: State, t: Time, h: float) -> State:
    """Two calls: the mean velocity of both ends. Order 2. Source: Heun 1900."""
    start = v(x, t)
    end = v(x + h * start, t + h)
    return x + h * (start + end) / 2


def rk4(v: Velocity, x: State, t: Time, h: float) -> State:
    """Four calls: start, twice the middle, end. Order 4. Source: Kutta 1901."""
    k1 = v(x, t)
    k2 = v(x + h / 2 * k1, t + h / 2)
    k3 = v(x + h / 2 * k2, t + h / 2)
    k4 = v(x + h * k3, t + h)
    return x + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6


def _adams_bashforth(v, x, t, h, past):
    now = v(x, t)
    if past is None:
        return x + h * now, (now, h)
    before, h_before = past
    return x + h * (now + h / h_before / 2 * (now - before)), (now, h)


# One call: the line through this velocity and the one before. Order 2; the first step
# is Euler's. Source: Bashforth and Adams 1883.
ab2 = Multistep(_adams_bashforth)


def ddim(path) -> Step:
    """One call: the exact step if the posterior mean stood still. Order 1.

    On the linear path it is Euler's. Source: Song, Meng and Ermon 2021 (arXiv
    2010.02502), equation 12 without fresh noise.
    """

    def step(v: Velocity, x: State, t: Time, h: float) -> State:
        data, noise = path.ends_of(x, v(x, t), t)
        a, s = _levels(path, _end(t, h), x)
        return a * data + s * noise

    return step


def dpmpp_2m(path) -> Multistep:
    """One call: the posterior mean on a line through its last two values. Order 2.

    The line is straight in log(alpha/sigma); where that is infinite, at the ends, the
    step is DDIM's, and the order 2 up to a logarithm. Source: Lu et
    al. 2022 (arXiv 2211.01095), algorithm 2.
    """

    def advance(v, x, t, h, past):
        data = path.data_of(x, v(x, t), t)
        keep, gain, length = _exponential(path, x, t, h)
        mean = data if past is None else _extrapolate(data, length, *past)
        return keep * x + gain * mean, (data, length)

    return Multistep(advance)


def unipc(path) -> Multistep:
    """One call: DPM-Solver++(2M), each step put right by the next step's call.

    Order 3 where log(alpha/sigma) is finite, 2 up to a path's ends. The states that a
    trajectory yields are predictions; a change made to them is lost. Source: Zhao
    et al. 2023 (arXiv 2302.04867), UniPC-2 with B(h) = exp(-h) - 1.
    """

    def advance(v, x, t, h, past):
        data = path.data_of(x, v(x, t), t)
        if past is not None:
            x = past[2](data)
        keep, gain, length = _exponential(path, x, t, h)
        mean = data if past is None else _extrapolate(data, length, *past[:2])

        def correct(new: State) -> State:
            older, newer = torch.zeros_like(length), torch.full_like(length, 0.5)
            slope = torch.zeros_like(data)
            if past is not None:
                older, newer = _corrector(length, past[1])
                slope = past[0] - data
            return keep * x + gain * (data + older * slope + newer * (new - data))

        return keep * x + gain * mean, (data, length, correct)

    return Multistep(advance)


def euler_maruyama(
    path, noise: Callable[[Tensor], Tensor], generator: Generator | None = None
) -> Step:
    """One call: an Euler step with fresh noise e(t) dW and the drift that undoes it.

    dx = (v + e^2 score / 2) dt + e dW has the distributions of the flow for every
    noise e(t) >= 0. Source: Albergo et al. 2023 (arXiv 2303.08797), section 2.
    """

    def step(v: Velocity, x: State, t: Time, h: float) -> State:
        velocity, e = v(x, t), expand(noise(t), x)
        drift = velocity + e**2 / 2 * path.score_of(x, velocity, t)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return x + h * drift + math.sqrt(h) * e * z

    return step


def grid(n: int, warp: Callable[[Tensor], Tensor] = lambda t: t) -> Grid:
    """n + 1 times from noise to data, in float64: equal steps sent through warp.

    Raises ValueError if n is not a whole number of at least 1, or if the warped times
    do not increase within [0, 1].
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"got {n!r} steps, expected a whole number of at least 1")
    times = warp(torch.linspace(0, 1, n + 1, dtype=torch.float64))
    check_grid(times)
    return times


def trajectory(
    v: Velocity, x: State, times: Grid, step: Step | Multistep
) -> Iterator[State]:
    """Every state on the way, one for each of the increasing times, x first.

    Raises ValueError for a state or a grid that cannot be integrated.
    """
    check_state(x)
    check_grid(times)
    yield x
    past = None
    for start, end in pairwise(times.tolist()):
        t, h = x.new_full((len(x),), start), end - start
        if isinstance(step, Multistep):
            x, past = step.advance(v, x, t, h, past)
        else:
            x = step(v, x, t, h)
        yield x


def integrate(v: Velocity, x: State, times: Grid, step: Step | Multistep) -> State:
    """The state at the last of the increasing times, starting from x at the first.

    Raises ValueError for a state or a grid that cannot be integrated.
    """
    for state in trajectory(v, x, times, step):
        x = state
    return x


def reference(v: Velocity, x: State, s: Time, t: Time) -> State:
    """Where x goes from s to t, to about ten digits: slow, either direction, float64.

    Source: SciPy's DOP853 (Hairer, Norsett and Wanner 1993), tolerance 1e-11.
    """
    check_state(x)
    check_time(s, x)
    check_time(t, x)
    x, s, t = x.detach().double(), s.double(), t.double()

    def rate(tau: float, flat: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(flat).reshape(x.shape).to(x.device)
        velocity = v(state, (s + tau * (t - s)).clamp(0, 1))
        return (expand(t - s, x) * velocity).detach().cpu().numpy().ravel()

    start = x.cpu().numpy().ravel()
    found = solve_ivp(rate, (0, 1), start, method="DOP853", rtol=1e-11, atol=1e-13)
    if not found.success:
        raise ValueError(f"SciPy could not integrate this velocity: {found.message}")
    return torch.from_numpy(found.y[:, -1]).reshape(x.shape).to(x.device)


def log_density(
    v: Velocity,
    x: State,
    times: Grid,
    step: Step | Multistep,
    divergence: Divergence | None = None,
) -> Float[Tensor, " b"]:
    """log p(x) at the last of the times, if at the first, 0, x was normal noise.

    Carries x back to noise and adds up the divergence of v on the way, exactly unless
    another `divergence` is given. The step must need nothing but v: euler, midpoint,
    heun, rk4, ab2. Source: Chen et al. 2018 (arXiv 1806.07366), theorem 1.
    """
    check_state(x)
    check_grid(times)
    if times[0] != 0:
        raise ValueError(f"got a first time of {float(times[0]):g}, expected 0, noise")
    divergence, last = divergence or exact_divergence, float(times[-1])

    def back(state: State, tau: Time) -> State:
        place = state[:, :-1].reshape(x.shape)
        velocity, growth = divergence(v, place, (last - tau).clamp(min=0))
        return torch.cat([-velocity.flatten(1), growth[:, None]], 1)

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
    state = integrate(back, start, (last - times).flip(0), step)
    noise, growth = state[:, :-1], state[:, -1]
    return -0.5 * (noise**2 + math.log(2 * math.pi)).sum(1) - growth


def exact_divergence(
    v: Velocity, x: State, t: Time
) -> tuple[State, Float[Tensor, " b"]]:
    """v and its divergence at x: as many forward derivatives as x has coordinates."""
    growth = x.new_zeros(len(x))
    for along in torch.eye(x[0].numel()).to(x):
        velocity, partial = hutchinson(along.expand(len(x), -1).reshape(x.shape))(
            v, x, t
        )
        growth = growth + partial
    return velocity, growth


def hutchinson(probe: State) -> Divergence:
    """The divergence estimated by one forward derivative along a random probe z.

    z . (J z) has the right mean if the entries of z are independent with mean 0 and
    variance 1. Source: Hutchinson 1989; Grathwohl et al. 2019 (arXiv 1810.01367).
    """

    def estimate(v: Velocity, x: State, t: Time):
        place = x.contiguous()  # an expanded state shares memory, which jvp refuses
        velocity, slope = torch.func.jvp(lambda y: v(y, t), (place,), (probe,))
        return velocity, (slope * probe).flatten(1).sum(1)

    return estimate


class Counted:
    """A velocity that counts how often it is called."""

    def __init__(self, v: Velocity) -> None:
        self.v = v
        self.calls = 0

    def __call__(self, x: State, t: Time) -> State:
        self.calls += 1
        return self.v(x, t)


def check_grid(times: Grid) -> None:
    """Refuse a grid that is not two or more increasing times.

    Raises ValueError that says what was got and what was expected.
    """
    if not torch.is_tensor(times):
        kind = type(times).__name__
        raise ValueError(f"got times of {kind}, expected a tensor such as grid(8)")
    if times.ndim != 1 or len(times) < 2:
        shape = tuple(times.shape)
        raise ValueError(f"got a grid of shape {shape}, expected (n + 1,) with n >= 1")
    if not torch.isfinite(times).all():
        raise ValueError("got a grid with NaN or infinity, expected finite times")
    if not (times.diff() > 0).all():
        raise ValueError(f"got a grid that does not increase: {times.tolist()[:5]}")
    if times[0] < 0 or times[-1] > 1:
        ends = f"{float(times[0]):g} to {float(times[-1]):g}"
        raise ValueError(f"got a grid from {ends}, expected times in [0, 1]")


def _end(t: Time, h: float) -> Time:
    """t + h, or 1 where a grid's rounding stops just below: there no noise is left."""
    end = t + h
    return torch.where(end > 1 - 8 * torch.finfo(t.dtype).eps, 1, end)


def _levels(path, t: Time, x: State) -> tuple[Tensor, Tensor]:
    return expand(path.alpha(t), x), expand(path.sigma(t), x)


def _exponential(path, x: State, t: Time, h: float) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of x and of a constant posterior mean, and the log-SNR gained."""
    a, s = _levels(path, t, x)
    a_end, s_end = _levels(path, _end(t, h), x)
    keep = s_end / s
    length = (a_end.log() - s_end.log()) - (a.log() - s.log())
    return keep, a_end - a * keep, length


def _extrapolate(data: State, length: Tensor, before: State, h: Tensor) -> State:
    """The posterior mean half-way through a step, on a line through two values."""
    ratio = length / h
    return data + torch.where(ratio.isfinite(), ratio, 0) / 2 * (data - before)


def _corrector(h: Tensor, h_before: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the older and of the new posterior mean in UniPC's second look."""
    r, b = -h_before / h, torch.expm1(-h)
    first = -1 / h - 1 / b
    second = 2 / h**2 + (2 / h - 1) / b
    newer = (second - r * first) / (1 - r)
    known = (r.isfinite() & h.isfinite()).expand_as(newer)
    older = (first - newer) / r
    return torch.where(known, older, 0), torch.where(known, newer, 0.5)
