"""Flow maps: nets that learn the jump from s to t, and the three laws it obeys.

A net u(x, s, t) is an average velocity: the jump x + (t - s) u lands at time t.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool
from torch import Generator, Tensor
from torch.func import jvp

from flowtext.nets import Net
from flowtext.objectives import Loss, TimeLaw, uniform
from flowtext.paths import Coupling, Path, Point, independent, linear
from flowtext.solve import Grid, check_grid
from flowtext.tensors import Label, State, Time, Velocity, expand, per_sample

PairLaw = Callable[[int, Generator | None], tuple[Time, Time]]
Measure = Callable[[State], Loss]


def jump(net: Net, x: State, s: Time, t: Time, y: Label | None = None) -> State:
    """Where a point at x at time s is at time t, by one call: x + (t - s) u."""
    return x + expand(t - s, x) * net(x, s, t, y)


def hop(
    net: Net,
    x: State,
    times: Grid,
    y: Label | None = None,
    *,
    renoise: float = 0.0,
    generator: Generator | None = None,
) -> State:
    """A chain of jumps over a grid, on the linear path; one call each.

    `renoise` from 0 to 1 is the share of the noise that is drawn anew at every stop. At
    0 the chain is a function of x; at 1 each jump goes to the data and fresh noise
    leads back, which is consistency sampling. Raises ValueError for another share, or
    a grid that does not increase in [0, 1]. Source: Kim et al. 2024 (arXiv
    2310.02279), gamma-sampling.
    """
    check_grid(times)
    if not 0 <= renoise <= 1:
        raise ValueError(f"got renoise {renoise}, expected a share from 0 to 1")
    for s, t in pairwise(times.tolist()):
        # The cleaner time whose noise, in units of the data, is sqrt(1 - renoise^2)
        # of that at t.
        far = t / (t + math.sqrt(1 - renoise**2) * (1 - t)) if t else t
        start, end = (x.new_full((len(x),), time) for time in (s, far))
        x = jump(net, x, start, end, y)
        if renoise and t < 1:
            fresh = math.sqrt((1 - t) ** 2 - (t / far * (1 - far)) ** 2)
            x = t / far * x + fresh * independent(x, generator)[0]
    return x


def along_start(
    net: Net, x: State, s: Time, t: Time, v: State, y: Label | None = None
) -> tuple[State, State]:
    """u, and its derivative Du/Ds as the start moves on with velocity v.

    The tangent is (v, 1, 0) on (x, s, t).
    """
    return _forward(lambda x, s: net(x, s, t, y), (x, s), (v, torch.ones_like(s)))


def along_end(
    net: Net, x: State, s: Time, t: Time, y: Label | None = None
) -> tuple[State, State]:
    """u, and its derivative du/dt as the end moves on; the tangent is 1 on t."""
    return _forward(lambda t: net(x, s, t, y), (t,), (torch.ones_like(t),))


def lagrangian(
    net: Net, v: Velocity, x: State, s: Time, t: Time, y: Label | None = None
) -> State:
    """u + (t - s) du/dt - v(X, t): does the end of a jump move with the flow?

    It is dX/dt - v(X, t) for the jump X from (x, s) to t. Source: Boffi et al. 2024
    (arXiv 2406.07507).
    """
    u, slope = along_end(net, x, s, t, y)
    there = x + expand(t - s, x) * u
    return u + expand(t - s, x) * slope - v(there, t)


def eulerian(
    net: Net, v: Velocity, x: State, s: Time, t: Time, y: Label | None = None
) -> State:
    """u - v(x, s) - (t - s) Du/Ds: does the landing stay as the start moves on?

    It is -dX/ds - (grad X) v(x, s). Source: Boffi et al. 2024 (arXiv 2406.07507);
    as an average velocity Geng et al. 2025 (arXiv 2505.13447), equation 6.
    """
    now = v(x, s)
    u, slope = along_start(net, x, s, t, now, y)
    return u - now - expand(t - s, x) * slope


def semigroup(
    net: Net, short: Net, x: State, s: Time, r: Time, t: Time, y: Label | None = None
) -> State:
    """u(s, t) less that of two shorter jumps by `short`, over r: do they land alike?

    At s = t it is the difference of the two nets. Source: Boffi et al. 2025 (arXiv
    2505.18825), progressive self-distillation.
    """
    share = torch.where(t > s, (r - s) / (t - s).clamp(min=1e-12), 0.5)
    first = short(x, s, r, y)
    second = short(x + expand(r - s, x) * first, r, t, y)
    there = expand(share, x) * first + expand(1 - share, x) * second
    return net(x, s, t, y) - there


def ordered(law: TimeLaw = uniform, diagonal: float = 0.5) -> PairLaw:
    """Two times of one law in order, s <= t; a share `diagonal` of them with s = t.

    Raises ValueError for a share outside [0, 1].
    """
    if not 0 <= diagonal <= 1:
        raise ValueError(f"got diagonal {diagonal}, expected a share from 0 to 1")

    def draw(n: int, generator: Generator | None = None) -> tuple[Time, Time]:
        one, two, coin = law(n, generator), law(n, generator), uniform(n, generator)
        same = coin < diagonal
        s, t = torch.minimum(one, two), torch.maximum(one, two)
        return torch.where(same, one, s), torch.where(same, one, t)

    return draw


PAIRS = ordered()


def to_data(law: TimeLaw = uniform) -> PairLaw:
    """A start s of some law, and the end t = 1: a consistency model's pairs."""

    def draw(n: int, generator: Generator | None = None) -> tuple[Time, Time]:
        s = law(n, generator)
        return s, torch.ones_like(s)

    return draw


def half(n: int, generator: Generator | None = None) -> Time:
    """The share one half, n times: every jump is split in its middle."""
    device = generator.device if generator else None
    return torch.full((n,), 0.5, device=device)


@dataclass(frozen=True)
class LagrangianMap:
    """Move the end of a jump with the velocity that is known there.

    The velocity is a teacher's; without one it is the net's own at s = t, where it
    learns it from pairs. The gradient passes through du/dt. Source: Boffi et al. 2024
    (arXiv 2406.07507) with a teacher, 2025 (arXiv 2505.18825) without.
    """

    teacher: Net | None = None
    times: PairLaw = PAIRS
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        return _residual(self, lagrangian, net, x1, y, generator)


@dataclass(frozen=True)
class EulerianMap:
    """Keep the landing of a jump still as its start moves with the known velocity.

    The velocity as in LagrangianMap. The gradient passes through Du/Ds, in x too, which
    costs more than MeanFlow's, and on images is said to be less steady. Source: Boffi
    et al. 2024 (arXiv 2406.07507) with a teacher, 2025 (arXiv 2505.18825) without.
    """

    teacher: Net | None = None
    times: PairLaw = PAIRS
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        return _residual(self, eulerian, net, x1, y, generator)


@dataclass(frozen=True)
class SemigroupMap:
    """Make one jump land where two shorter ones do; the velocity at s = t is known.

    `split` draws the share of the interval that the first of the two takes. The short
    jumps are the net's own and are not differentiated. Without pairs with s = t every
    map that stands still is a minimiser. Source: Boffi et al. 2025 (arXiv 2505.18825).
    """

    teacher: Net | None = None
    times: PairLaw = PAIRS
    split: TimeLaw = half
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        point, t = _start(self, x1, generator)
        r = point.t + self.split(len(x1), generator).to(t) * (t - point.t)
        v = point.v
        with torch.no_grad():
            if self.teacher:
                v = self.teacher(point.x, point.t, point.t, y)

        def short(x: State, a: Time, b: Time, y: Label | None = None) -> State:
            with torch.no_grad():
                return _where(a == b, v, net(x, a, b, y))

        return per_sample(semigroup(net, short, point.x, point.t, r, t, y))


@dataclass(frozen=True)
class Shortcut:
    """Double the step: one step of size d lands where two of size d/2 do.

    Steps are 1, 1/2, ... 1/2^levels; the smallest learns the velocity of pairs, on a
    share `smallest` of the batch, as if it were straight. Source: Frans et al. 2025
    (arXiv 2410.12557), algorithm 1.
    """

    levels: int = 7
    smallest: float = 0.75
    path: Path = linear
    pair: Coupling = independent

    def times(self, n: int, generator: Generator | None = None) -> tuple[Time, Time]:
        """Steps of a size drawn from all, from a multiple of that size."""
        level = (uniform(n, generator) * self.levels).floor()
        level[uniform(n, generator) < self.smallest] = self.levels
        d = 0.5**level
        s = (uniform(n, generator) / d).floor() * d
        return s, s + d

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        point, t = _start(self, x1, generator)
        with torch.no_grad():
            r = (point.t + t) / 2
            first = net(point.x, point.t, r, y)
            there = point.x + expand(r - point.t, x1) * first
            both = (first + net(there, r, t, y)) / 2
        smallest = t - point.t < 1.5 * 0.5**self.levels
        target = _where(smallest, point.v, both)
        return per_sample(net(point.x, point.t, t, y) - target)


@dataclass(frozen=True)
class MeanFlow:
    """Regress u on v + (t - s) Du/Ds, which is not differentiated.

    v is the velocity of the pair, or a teacher's; then (t - s)/2 times this gradient is
    that of Align Your Flow. `measure` of the miss: with the velocity of pairs any but
    the square moves the answer. Source: Geng et al. 2025 (arXiv 2505.13447), equation
    10; Sabour et al. 2025 (arXiv 2506.14603).
    """

    teacher: Net | None = None
    times: PairLaw = PAIRS
    measure: Measure = per_sample
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        point, t = _start(self, x1, generator)
        s, v = point.t, point.v
        with torch.no_grad():
            if self.teacher:
                v = self.teacher(point.x, s, s, y)
            slope = along_start(net, point.x, s, t, v, y)[1]
        return self.measure(net(point.x, s, t, y) - v - expand(t - s, x1) * slope)


@dataclass(frozen=True)
class ImprovedMeanFlow:
    """MeanFlow with the start moved by the net's own velocity, not by the pair's.

    What is regressed on, the velocity of the pair, then depends on no net; only Du/Ds
    does, and it varies less. Source: Geng et al. 2025 (arXiv 2512.02012).
    """

    times: PairLaw = PAIRS
    measure: Measure = per_sample
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        point, t = _start(self, x1, generator)
        s = point.t
        with torch.no_grad():
            own = net(point.x, s, s, y)
            slope = along_start(net, point.x, s, t, own, y)[1]
        u = net(point.x, s, t, y)
        return self.measure(u - expand(t - s, x1) * slope - point.v)


def fades(high: float = 1.0, low: float = 0.005) -> Callable[[float], float]:
    """A share that falls from `high` to 0 along a sigmoid over a training run.

    Below `low` it is 0. Source: Zhang et al. 2025 (arXiv 2510.20771).
    """

    def share(progress: float) -> float:
        value = high / (1 + math.exp(25 * (progress - 0.5)))
        return value if value >= low else 0.0

    return share


FADE = fades()


@dataclass(frozen=True)
class AlphaFlow:
    """From straight steps to MeanFlow, as alpha falls from 1 to 0 over training.

    The net's own jump takes over at r = s + alpha (t - s). At alpha = 1 this is flow
    matching for all jumps, towards 0 it is MeanFlow; a fixed alpha in between has
    another minimiser than the flow map. Source: Zhang et al. 2025 (arXiv 2510.20771).
    """

    alpha: Callable[[float], float] = FADE
    times: PairLaw = PAIRS
    measure: Measure = per_sample
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        alpha = self.alpha(at.progress if at else 1.0)
        if not alpha:
            limit = MeanFlow(None, self.times, self.measure, self.path, self.pair)
            return limit(net, x1, y, at=at, generator=generator)
        point, t = _start(self, x1, generator)
        r = point.t + alpha * (t - point.t)
        with torch.no_grad():
            ahead = point.x + expand(r - point.t, x1) * point.v
            target = alpha * point.v + (1 - alpha) * net(ahead, r, t, y)
        return self.measure(net(point.x, point.t, t, y) - target) / alpha


def _start(objective, x1: State, generator: Generator | None) -> tuple[Point, Time]:
    """The point of a fresh pair at the start of a jump, and the time of its end."""
    x0, x1 = objective.pair(x1, generator)
    s, t = (time.to(x1) for time in objective.times(len(x1), generator))
    return objective.path.at(x0, x1, s), t


def _residual(
    objective, law: Callable, net: Net, x1: State, y: Label | None, generator
) -> Loss:
    """How far a fresh jump of the net breaks a law of the velocity that is known."""
    point, t = _start(objective, x1, generator)
    v = _known(objective.teacher, net, point, t, y)
    return per_sample(law(net, v, point.x, point.t, t, y))


def _known(
    teacher: Net | None, net: Net, point: Point, t: Time, y: Label | None
) -> Velocity:
    """The velocity a map is taught, not differentiated: a teacher's or the net's own.

    The net's own stands in for s < t; where s = t it is that of the pair.
    """

    def v(x: State, time: Time) -> State:
        with torch.no_grad():
            if teacher:
                return teacher(x, time, time, y)
            own = net(x, time, time, y)
            return _where(point.t == t, point.v, own)

    return v


def _forward(f: Callable, at: tuple, along: tuple) -> tuple[State, State]:
    """The value of f and its derivative, both in the precision of `at`.

    Under autocast some layers get a state and a tangent of two precisions.
    """
    with torch.autocast(at[0].device.type, enabled=False):
        return jvp(f, at, tuple(d.to(a) for d, a in zip(along, at, strict=True)))


def _where(condition: Bool[Tensor, " b"], one: State, two: State) -> State:
    """Of two states, sample by sample, the first where the condition holds."""
    return torch.where(condition.reshape(-1, *[1] * (one.ndim - 1)), one, two)
