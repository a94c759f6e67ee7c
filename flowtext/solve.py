"""Inference: a velocity into samples, by steps that each look at the field."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor

from flowtext.tensors import State, Time, Velocity, check_state, check_time, expand

Step = Callable[[Velocity, State, Time, float], State]
Grid = Float[Tensor, " n"]


def euler(v: Velocity, x: State, t: Time, h: float) -> State:
    """One call: follow the tangent at the start. Order 1. Source: Euler 1768."""
    return x + h * v(x, t)


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


def grid(n: int) -> Grid:
    """n equal steps from noise at 0 to data at 1: n + 1 times in float64.

    Raises ValueError if n is not a whole number of at least 1.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"got {n!r} steps, expected a whole number of at least 1")
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


def trajectory(v: Velocity, x: State, times: Grid, step: Step) -> Iterator[State]:
    """Every state on the way, one for each of the increasing times, x first.

    Raises ValueError for a state or a grid that cannot be integrated.
    """
    check_state(x)
    check_grid(times)
    yield x
    for start, end in pairwise(times.tolist()):
        x = step(v, x, x.new_full((len(x),), start), end - start)
        yield x


def integrate(v: Velocity, x: State, times: Grid, step: Step) -> State:
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
    if times.ndim != 1 or len(times) < 2:
        shape = tuple(times.shape)
        raise ValueError(f"got a grid of shape {shape}, expected (n + 1,) with n >= 1")
    if not torch.isfinite(times).all():
        raise ValueError("got a grid with NaN or infinity, expected finite times")
    if not (times.diff() > 0).all():
        raise ValueError(f"got a grid that does not increase: {times.tolist()[:5]}")
