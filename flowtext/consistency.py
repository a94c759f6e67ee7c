"""Jumps to the data: consistency models, and two relatives that jump anywhere."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, nn

from flowtext.maps import PAIRS, Measure, PairLaw, along_start, jump
from flowtext.nets import Net
from flowtext.objectives import At, Loss, TimeLaw, uniform, within
from flowtext.paths import Coupling, Path, Point, independent, linear
from flowtext.solve import Step, grid, heun, integrate
from flowtext.tensors import Label, State, Time, expand, per_sample

# The time that a start s is compared with, at some progress of the training.
Gap = Callable[[Time, float], Time]


def even(n: int) -> Gap:
    """A gap of 1/n, for all starts and all of the training; the last ones end at 1.

    Raises ValueError for fewer than one step.
    """
    if n < 1:
        raise ValueError(f"got {n} steps, expected 1 or more")
    return lambda s, progress: (s + 1 / n).clamp(max=1)


def shrinking(stages: int = 8, factor: float = 2.0) -> Gap:
    """The whole way to the data at first, then `factor` times less at every stage.

    Raises ValueError for no stage, or a factor that does not shrink. Source: Geng et
    al. 2025 (arXiv 2406.14548), easy consistency tuning, in time instead of noise.
    """
    if stages < 1 or factor <= 1:
        got = f"{stages} stages that shrink {factor} times"
        raise ValueError(f"got {got}, expected 1 or more of them and a factor above 1")

    def later(s: Time, progress: float) -> Time:
        stage = min(math.floor(stages * progress), stages - 1)
        return s + (1 - s) / factor**stage

    return later


EASY, FINE = shrinking(), even(64)
NEAR = within(0.0, 0.25)


@dataclass(frozen=True)
class ConsistencyTraining:
    """Land where the jump from a cleaner point of the same pair does.

    At a gap that stays, plain squares lead to the mean of a chain of random steps, not
    to the flow map; a gap that shrinks takes that away, and another `measure` of the
    miss makes up for part of it. Source: Song et al. 2023 (arXiv 2303.01469), algorithm
    3; without an average for the target as Song and Dhariwal 2024 (arXiv 2310.14189).
    """

    gap: Gap = EASY
    times: TimeLaw = uniform
    measure: Measure = per_sample
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        point, r = _start(self, x1, at, generator)
        cleaner, end = self.path.at(point.x0, point.x1, r).x, torch.ones_like(r)
        with torch.no_grad():
            target = jump(net, cleaner, r, end, y)
        miss = jump(net, point.x, point.t, end, y) - target
        return self.measure(miss) / (r - point.t)


@dataclass(frozen=True)
class ConsistencyDistillation:
    """Land where the jump from a point further on the teacher's own path does.

    That point is one `step` of a solver away; the jump from there is the averaged
    net's. Source: Song et al. 2023 (arXiv 2303.01469), algorithm 2.
    """

    teacher: Net
    gap: Gap = FINE
    step: Step = heun
    times: TimeLaw = uniform
    measure: Measure = per_sample
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        point, r = _start(self, x1, at, generator)
        end = torch.ones_like(r)
        average = at.ema if at and at.ema is not None else net
        with torch.no_grad():
            further = carry(self.teacher, point.x, point.t, r, self.step, y)
            target = jump(average, further, r, end, y)
        miss = jump(net, point.x, point.t, end, y) - target
        return self.measure(miss) / (r - point.t)


@dataclass(frozen=True)
class ContinuousConsistency:
    """Consistency without a gap: move the jump to the data along its own derivative.

    g = v - u + (1 - s) Du/Ds, divided by its size plus `damp`, is what u is moved by;
    the derivative comes in over the share `warm` of a training. v is a teacher's or the
    pair's. Source: Lu and Song 2025 (arXiv 2410.11081), on this book's paths.
    """

    teacher: Net | None = None
    times: TimeLaw = uniform
    warm: float = 0.1
    damp: float = 0.1
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        x0, x1 = self.pair(x1, generator)
        s = self.times(len(x1), generator).to(x1)
        point, end = self.path.at(x0, x1, s), torch.ones_like(s)
        share = min(at.progress / self.warm, 1.0) if at and self.warm else 1.0
        with torch.no_grad():
            v = self.teacher(point.x, s, s, y) if self.teacher else point.v
            u, slope = along_start(net, point.x, s, end, v, y)
            g = v - u + share * expand(1 - s, x1) * slope
            g = g / expand(per_sample(g).sqrt() + self.damp, x1)
        return per_sample(net(point.x, s, end, y) - u - g)


@dataclass(frozen=True)
class Trajectory:
    """Jump anywhere on the teacher's path, and compare where both jumps then end.

    From s, and from a point r that the teacher reached by one `step` over the share
    `split` of the way, both jump to t, and from there a frozen net to the data. Where
    s = t the velocity of the pair is learned. Source: Kim et al. 2024 (arXiv
    2310.02279), without its adversarial part.
    """

    teacher: Net
    step: Step = heun
    times: PairLaw = PAIRS
    split: TimeLaw = NEAR
    measure: Measure = per_sample
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        x0, x1 = self.pair(x1, generator)
        s, t = (time.to(x1) for time in self.times(len(x1), generator))
        r = s + self.split(len(x1), generator).to(x1) * (t - s)
        point, end, still = self.path.at(x0, x1, s), torch.ones_like(s), _frozen(net)
        with torch.no_grad():
            further = carry(self.teacher, point.x, s, r, self.step, y)
            target = jump(net, jump(net, further, r, t, y), t, end, y)
        u = net(point.x, s, t, y)
        there = point.x + expand(t - s, x1) * u
        miss = jump(still, there, t, end, y) - target
        return torch.where(s == t, per_sample(u - point.v), self.measure(miss))


@dataclass(frozen=True)
class MomentMatching:
    """Make jumps from s and from r, a little later, land alike as distributions.

    Groups of `particles` samples share their times; within each, the squared maximum
    mean discrepancy of the two landings is the loss. `kernel` takes squared distances,
    a mean over coordinates. Raises ValueError for a batch that is not whole groups.
    Source: Zhou et al. 2025 (arXiv 2503.07565).
    """

    particles: int = 4
    gap: float = 0.1
    kernel: Callable[[State], State] = lambda square: (-(square + 1e-6).sqrt()).exp()
    times: PairLaw = PAIRS
    path: Path = linear
    pair: Coupling = independent

    def __call__(self, net: Net, x1, y=None, *, at=None, generator=None) -> Loss:
        n, m = len(x1), self.particles
        if n % m:
            raise ValueError(f"got {n} samples, expected a multiple of {m} particles")
        x0, x1 = self.pair(x1, generator)
        shared = self.times(n // m, generator)
        s, t = (time.to(x1).repeat_interleave(m) for time in shared)
        r = s + self.gap * (t - s)
        start, later = (self.path.at(x0, x1, time).x for time in (s, r))
        with torch.no_grad():
            target = jump(net, later, r, t, y).unflatten(0, (-1, m))
        found = jump(net, start, s, t, y).unflatten(0, (-1, m))

        def mean(one: State, two: State) -> Loss:
            apart = (one[:, :, None] - two[:, None]).flatten(3).square().mean(3)
            return self.kernel(apart).mean((1, 2))

        loss = mean(found, found) + mean(target, target) - 2 * mean(found, target)
        return loss.repeat_interleave(m)


def carry(
    net: Net, x: State, s: Time, t: Time, step: Step, y: Label | None = None, n: int = 1
) -> State:
    """Where a velocity net takes x from s to t in n equal steps, each sample its own.

    One clock from 0 to 1 runs for all: dx/dtau = (t - s) v(x, s + tau (t - s)).
    """

    def v(x: State, tau: Time) -> State:
        now = s + tau * (t - s)
        return expand(t - s, x) * net(x, now, now, y)

    return integrate(v, x, grid(n), step)


def _start(
    objective, x1: State, at: At | None, generator: Generator | None
) -> tuple[Point, Time]:
    """The point of a fresh pair at a start, and the time that it is compared with."""
    x0, x1 = objective.pair(x1, generator)
    s = objective.times(len(x1), generator).to(x1)
    return objective.path.at(x0, x1, s), objective.gap(s, at.progress if at else 1.0)


def _frozen(net: Net) -> Net:
    """The net as it is now: gradients pass to its input, none to its weights."""
    if not isinstance(net, nn.Module):
        return net
    weights = {name: value.detach() for name, value in net.named_parameters()}
    return lambda *inputs: torch.func.functional_call(net, weights, inputs)
