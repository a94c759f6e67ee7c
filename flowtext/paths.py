"""How noise becomes data: paths x = alpha(t) x1 + sigma(t) x0, such as `linear`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowtext.tensors import State, Time, check_state, check_time, expand


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

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]

    def coefficients(self, t: Time) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma and their time derivatives at t, each of shape (b,)."""
        t = t.contiguous()  # an expanded time shares memory, which jvp refuses
        one = torch.ones_like(t)
        alpha, alpha_dot = torch.func.jvp(self.alpha, (t,), (one,))
        sigma, sigma_dot = torch.func.jvp(self.sigma, (t,), (one,))
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


linear = Path(alpha=lambda t: t, sigma=lambda t: 1 - t)
