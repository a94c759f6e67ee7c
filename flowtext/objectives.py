"""Learn the velocity: objectives(net, x1, y), one loss a sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from flowtext.nets import KINDS, Net
from flowtext.paths import Coupling, Path, Point, independent, linear
from flowtext.tensors import Label, State, Time, per_sample

TimeLaw = Callable[[int, Generator | None], Time]
Loss = Float[Tensor, " b"]


class At(NamedTuple):
    """The moment of a training run: progress from 0 to 1, and the averaged net."""

    progress: float
    ema: nn.Module | None


def uniform(n: int, generator: Generator | None = None) -> Time:
    """n times, each as likely as the next, in [0, 1)."""
    device = generator.device if generator else None
    return torch.rand(n, generator=generator, device=device)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeLaw:
    """Times whose log-odds are normal: most in the middle, few at the ends.

    A mean above 0 leans towards the data. Source: Esser et al. 2024 (2403.03206).
    """

    def draw(n: int, generator: Generator | None = None) -> Time:
        device = generator.device if generator else None
        z = torch.randn(n, generator=generator, device=device)
        return torch.sigmoid(mean + std * z)

    return draw


def within(low: float, high: float, law: TimeLaw = uniform) -> TimeLaw:
    """A law squeezed into [low, high], for a path with no value at an end.

    Raises ValueError unless 0 <= low < high <= 1.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"got times from {low} to {high}, expected 0 <= low < high <= 1"
        )
    return lambda n, generator=None: low + (high - low) * law(n, generator)


@dataclass(frozen=True)
class FlowMatching:
    """Regress what the net predicts on the pair behind each point of the path.

    The least loss is reached by the mean over pairs, the velocity of the flow (or the
    posterior mean of data or noise), and it is not 0. `weight` is a function of time.
    Raises ValueError for an unknown prediction. Source: Lipman et al. 2023 (arXiv
    2210.02747), equation 9.
    """

    path: Path = linear
    pair: Coupling = independent
    times: TimeLaw = uniform
    predicts: str = "velocity"
    weight: Callable[[Time], Time] = torch.ones_like

    def __post_init__(self) -> None:
        if self.predicts not in KINDS:
            raise ValueError(f"got {self.predicts!r}, expected one of {[*KINDS]}")
        if not isinstance(self.path, Path):
            raise ValueError(f"got path {self.path!r}, expected a Path such as linear")
        for name in ("pair", "times", "weight"):
            if not callable(value := getattr(self, name)):
                raise ValueError(f"got {name} {value!r}, expected a function")

    def __call__(
        self,
        net: Net,
        x1: State,
        y: Label | None = None,
        *,
        at: At | None = None,
        generator: Generator | None = None,
    ) -> Loss:
        x0, x1 = self.pair(x1, generator)
        t = self.times(len(x1), generator)
        if not torch.is_tensor(t):  # as from a law that was named but not called
            raise ValueError(f"got times {t!r}, expected a tensor ({len(x1)},)")
        t = t.to(x1)
        point = self.path.at(x0, x1, t)
        found = net(point.x, t, t, y)
        if found.shape != x1.shape:
            got = f"an answer of shape {tuple(found.shape)}"
            raise ValueError(
                f"got {got}, expected that of the state, {tuple(x1.shape)}"
            )
        return self.weight(t) * per_sample(found - self.target(point))

    def target(self, point: Point) -> State:
        """What the net should say at a point: its velocity, its data or its noise."""
        return dict(zip(KINDS, (point.v, point.x1, point.x0), strict=True))[
            self.predicts
        ]


def pseudo_huber(c: float) -> Callable[[State], Loss]:
    """A measure of misses: their square while below c, their size above.

    sqrt(m^2 + c^2) - c of the root mean square m. With random targets it leans from the
    mean towards the median. Raises ValueError unless c > 0. Source: Song and Dhariwal
    2024 (arXiv 2310.14189).
    """
    if not c > 0:
        raise ValueError(f"got c {c}, expected it above 0")
    return lambda miss: (per_sample(miss) + c**2).sqrt() - c


def adaptive(power: float = 1.0, c: float = 0.01) -> Callable[[State], Loss]:
    """A measure of misses: the mean square m, weighted by 1/(m + c)^power as it is.

    The weight is not differentiated. With random targets it leans from the mean towards
    a mode. Raises ValueError unless c > 0. Source: Geng et al. 2025 (arXiv 2505.13447),
    with a mean in place of a sum.
    """
    if not c > 0:
        raise ValueError(f"got c {c}, expected it above 0")

    def measure(miss: State) -> Loss:
        square = per_sample(miss)
        return square / (square.detach() + c) ** power

    return measure
