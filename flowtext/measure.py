"""What is measured of a trained net: rows of numbers, each beside its noise floor."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from flowtext import nets
from flowtext.data import load
from flowtext.maps import hop
from flowtext.objectives import FlowMatching
from flowtext.paths import linear
from flowtext.score import (
    frechet,
    mode_mass,
    mode_tv,
    nearest,
    precision_recall,
    sliced_wasserstein,
)
from flowtext.solve import Grid, euler, grid, integrate, reference
from flowtext.tensors import Label, State
from flowtext.worlds import Mixture, RotatedProduct

SAMPLES = 10_000  # of the plane, for each net

# seed, sampler, calls, metric, value, floor
Rows = Iterator[tuple[int, str, int, str, float, float]]


def _euler(net: nets.Net, x0: State, times: Grid, y: Label | None) -> State:
    return integrate(nets.velocity(net, y), x0, times, euler)


def _renoised(net: nets.Net, x0: State, times: Grid, y: Label | None) -> State:
    fresh = Generator(x0.device).manual_seed(2)
    return hop(net, x0, times, y, renoise=1.0, generator=fresh)


SAMPLERS = {"euler": _euler, "map": hop, "renoised map": _renoised}


def sample(
    net: nets.Net,
    x0: State,
    calls: int,
    y: Label | None = None,
    sampler: str = "euler",
) -> State:
    """Samples from noise x0 by so many equal steps, a thousand at a time.

    Raises ValueError for an unknown sampler.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"got {sampler!r}, expected one of {[*SAMPLERS]}")
    parts = x0.split(1000)
    labels = [None] * len(parts) if y is None else y.split(1000)
    with torch.no_grad():
        ends = [
            SAMPLERS[sampler](net, part, grid(calls), label)
            for part, label in zip(parts, labels, strict=True)
        ]
    return torch.cat(ends)


def plane(
    net: nets.Net,
    calls: Sequence[int],
    world: Mixture,
    samplers: Sequence[str] = ("euler",),
) -> Rows:
    """Path error and distribution errors of one net or of many, with each sampler."""
    n, generator = SAMPLES, Generator().manual_seed(1)
    x0 = torch.randn(n, 2, generator=generator)
    real, other = (world.sample(n, generator).float() for _ in range(2))
    zero = torch.zeros(n).double()
    truth = reference(world.velocity(linear), x0.double(), zero, zero + 1).float()

    def numbers(x: State, goal: State) -> dict[str, Tensor]:
        found = {"rmse": (x - goal).square().sum(1).mean().sqrt()}
        found |= {"off-mode": mode_mass(x, world)[-1], "mode-tv": mode_tv(x, world)}
        return found | {"sw2": sliced_wasserstein(x, real)}

    floor = numbers(other, other)
    for seed, alone in _each(net):
        for sampler, many in product(samplers, calls):
            found = numbers(sample(alone, x0, many, sampler=sampler), truth)
            yield from _rows(seed, sampler, many, found, floor)


def path(
    net: nets.Net,
    calls: Sequence[int],
    world: RotatedProduct,
    samplers: Sequence[str] = ("euler",),
) -> Rows:
    """Path error a coordinate, against the world's own flow map."""
    n = 2000
    x0 = torch.randn(n, len(world.means), generator=Generator().manual_seed(1))
    zero = torch.zeros(n).double()
    goal = world.flow_map(linear)(x0.double(), zero, zero + 1).float()
    for seed, alone in _each(net):
        for sampler, many in product(samplers, calls):
            miss = sample(alone, x0, many, sampler=sampler) - goal
            found = {"rmse": miss.square().mean().sqrt()}
            yield from _rows(seed, sampler, many, found, {"rmse": 0.0})


def images(
    net: nets.Net,
    calls: Sequence[int],
    name: str,
    judge: nets.Classifier,
    samplers: Sequence[str] = ("euler",),
) -> Rows:
    """Images made with labels against 10,000 real ones, in a classifier's features.

    The floor of a number is that of as many test images, 2,000 at random or all, and
    the labels asked for are theirs: other counts alone move a Fréchet distance.
    """
    train, test, n = load(name), load(name, train=False), 2000
    rows = torch.randperm(len(test.x), generator=Generator().manual_seed(3))[:n]
    few, y, real = test.x[rows], test.y[rows], train.x[:10_000]
    x0 = torch.randn(few.shape, generator=Generator().manual_seed(1))
    known = features_of(judge, real)

    def numbers(x: State, y: Label) -> dict[str, Tensor]:
        seen = features_of(judge, x)
        precision, recall = precision_recall(known[: len(x)], seen)
        agree = (judge.head(seen.float()).argmax(1) == y).float().mean()
        found = {"frechet": frechet(seen, known), "agreement": agree}
        found |= {"precision": precision, "recall": recall}
        return found | {"nearest": nearest(x, real).median()}

    floor = numbers(few, y)
    yield from _rows(
        0, "none", 0, *[{"loss": fixed_loss(net, train.x[:n], train.y[:n])}] * 2
    )
    for sampler, many in product(samplers, calls):
        found = numbers(sample(net, x0, many, y, sampler), y)
        yield from _rows(0, sampler, many, found, floor)


def regression(
    net: nets.Net,
    calls: Sequence[int],
    name: str,
    view: Callable[[State], State],
) -> Rows:
    """The loss on test images, and how far samples are from the means of their classes.

    That distance is in units of the real images', so their floor is 1.
    """
    train, test = load(name), load(name, train=False)
    loss = fixed_loss(net, view(test.x), test.y)
    yield from _rows(0, "none", 0, *[{"test-loss": loss}] * 2)
    means = torch.stack(
        [view(train.x)[train.y == k].mean(0) for k in range(train.classes)]
    )
    x0 = torch.randn(test.x.shape, generator=Generator().manual_seed(1))
    spread = (view(train.x) - means[train.y]).square().mean().sqrt()
    for many in calls:
        miss = sample(net, x0, many, test.y) - means[test.y]
        found = {"from-mean": miss.square().mean().sqrt() / spread}
        yield from _rows(0, "euler", many, found, {"from-mean": 1.0})


def shuffle(x: State) -> State:
    """Images with their pixels in another order, the same for all."""
    size = x[0, 0].numel()
    order = torch.randperm(size, generator=Generator().manual_seed(0))
    return x.flatten(2)[:, :, order].reshape(x.shape)


def fixed_loss(net: nets.Net, x1: State, y: Label) -> float:
    """The flow-matching loss with fixed noise and times, to compare nets by."""
    with torch.no_grad():
        generator = Generator().manual_seed(1)
        return float(FlowMatching()(net, x1, y, generator=generator).mean())


def classifier(net: nn.Module, calls: Sequence[int], name: str) -> Rows:
    """The accuracy on the test set; the floor is that of a guess."""
    test = load(name, train=False)
    found = net.head(features_of(net, test.x).float()).argmax(1)
    right = {"accuracy": (found == test.y).float().mean()}
    yield from _rows(0, "none", 1, right, {"accuracy": 1 / test.classes})


def features_of(judge: nets.Classifier, x: State) -> Float[Tensor, "b f"]:
    """The features of images, a thousand at a time, in float64."""
    with torch.no_grad():
        return torch.cat([judge.features(part) for part in x.split(1000)]).double()


def _each(net: nets.Net) -> Iterator[tuple[int, nets.Net]]:
    """One net, or each of many that were trained together, with its number."""
    many = isinstance(net, nets.Twins)
    return enumerate(map(net.net, range(len(net))) if many else [net])


def _rows(seed: int, sampler: str, calls: int, found: dict, floor: dict) -> Rows:
    for metric, value in found.items():
        yield seed, sampler, calls, metric, float(value), float(floor[metric])
