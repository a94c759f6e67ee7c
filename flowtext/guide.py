"""Steer a net with labels: leave them out in training, lean on them in sampling."""

from collections.abc import Callable

import torch
from torch import Generator

from flowtext.nets import Net
from flowtext.tensors import Label, State, Time, Velocity, expand

Scale = float | Callable[[Time], Time]


def drop_labels(objective: Callable, share: float) -> Callable:
    """The objective, with the labels of a random share of the samples left out.

    One net so learns the velocity with and without a label (-1). Raises ValueError
    unless share is in [0, 1], or without labels. Source: Ho and Salimans 2022 (arXiv
    2207.12598), algorithm 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"got a share of {share}, expected a number in [0, 1]")

    def with_fewer(
        net: Net,
        x1: State,
        y: Label | None = None,
        *,
        generator: Generator | None = None,
        **rest,
    ):
        if y is None:
            raise ValueError("got no labels, expected one a sample to drop a share of")
        device = generator.device if generator else y.device
        dropped = torch.rand(len(y), generator=generator, device=device) < share
        y = torch.where(dropped.to(y.device), -1, y)
        return objective(net, x1, y, generator=generator, **rest)

    return with_fewer


def mix(free: Velocity, bound: Velocity, scale: Scale) -> Velocity:
    """free + scale (bound - free): 0 is free, 1 is bound, more leans further.

    The scale is a number, or a function of time. Raises ValueError for another shape.
    Source: Ho and Salimans 2022 (arXiv 2207.12598), equation 6, counted so that 1 means
    no guidance.
    """

    def v(x: State, t: Time) -> State:
        amount = torch.as_tensor(scale(t) if callable(scale) else scale).to(x)
        if amount.ndim and amount.shape != t.shape:
            got = f"a scale of shape {tuple(amount.shape)}"
            raise ValueError(f"got {got}, expected a number or ({len(t)},)")
        start = free(x, t)
        return start + expand(amount.expand_as(t), x) * (bound(x, t) - start)

    return v


def guided(net: Net, scale: Scale) -> Net:
    """The net, steered by classifier-free guidance; two calls in one.

    Its velocity without a label and the one with its label, mixed; same signature.
    Raises ValueError when called without labels.
    """

    def steered(x: State, s: Time, t: Time, y: Label | None = None) -> State:
        if y is None:
            raise ValueError("got no labels, expected one a sample to steer towards")
        free, bound = (lambda x, _: net(x, s, t)), (lambda x, _: net(x, s, t, y))
        return mix(free, bound, scale)(x, s)

    return steered
