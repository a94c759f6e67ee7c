"""Shapes that everything speaks, and the checks at the door."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

State = Float[Tensor, "b *d"]
Time = Float[Tensor, " b"]
Label = Int[Tensor, " b"]

Velocity = Callable[[State, Time], State]
FlowMap = Callable[[State, Time, Time], State]


def expand(t: Time, x: State) -> Float[Tensor, "b *ones"]:
    """One time a sample, shaped to multiply a state: (b,) becomes (b, 1, ..., 1)."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def per_sample(r: State) -> Float[Tensor, " b"]:
    """The mean square of each sample's entries: (b, ...) becomes (b,)."""
    return r.flatten(1).square().mean(1)


def check_state(x: State, dim: int | None = None) -> None:
    """Refuse a state that is not (b, ...), not (b, dim) if dim is given, or not finite.

    Raises ValueError that says what was got and what was expected.
    """
    if not torch.is_tensor(x) or not x.is_floating_point():
        kind = x.dtype if torch.is_tensor(x) else type(x).__name__
        raise ValueError(f"got a state of {kind}, expected a floating-point tensor")
    if dim is None and x.ndim < 2:
        raise ValueError(f"got a state of shape {tuple(x.shape)}, expected (b, d)")
    if dim is not None and (x.ndim != 2 or x.shape[1] != dim):
        raise ValueError(f"got a state of shape {tuple(x.shape)}, expected (b, {dim})")
    _check_finite("a state", x)


def check_image(x: State, multiple: int, channels: int) -> None:
    """Refuse what is not a batch of images, (b, channels, h, w) of whole multiples.

    Raises ValueError that says what was got and what was expected.
    """
    sides = [*x.shape[2:]]
    if len(sides) != 2 or x.shape[1] != channels or any(n % multiple for n in sides):
        wanted = f"(b, {channels}, h, w) with h and w multiples of {multiple}"
        raise ValueError(f"got a state of shape {tuple(x.shape)}, expected {wanted}")


def check_shape(x: State, image: tuple[int, ...]) -> None:
    """Refuse a batch whose samples are not of one shape. Raises ValueError."""
    if x.shape[1:] != image:
        wanted = f"(b, {', '.join(map(str, image))})"
        raise ValueError(f"got a state of shape {tuple(x.shape)}, expected {wanted}")


def check_time(t: Time, x: State) -> None:
    """Refuse a time that is not one number a sample in [0, 1].

    Raises ValueError that says what was got and what was expected.
    """
    wanted = f"({len(x)},): one time a sample"
    if not torch.is_tensor(t) or not t.is_floating_point():
        kind = t.dtype if torch.is_tensor(t) else type(t).__name__
        raise ValueError(f"got a time of {kind}, expected a tensor of shape {wanted}")
    if t.shape != x.shape[:1]:
        raise ValueError(f"got times of shape {tuple(t.shape)}, expected {wanted}")
    _check_finite("a time", t)
    slack = 8 * torch.finfo(t.dtype).eps  # the last step's t + h may round past 1
    if anywhere((t < -slack) | (t > 1 + slack)):
        low, high = float(t.min()), float(t.max())
        raise ValueError(f"got times from {low:g} to {high:g}, expected [0, 1]")


def _check_finite(what: str, x: Tensor) -> None:
    if anywhere(~torch.isfinite(x)):
        raise ValueError(f"got {what} with NaN or infinity, expected finite numbers")


def anywhere(condition: Tensor) -> bool:
    """Whether the condition holds for any entry; False under vmap, which cannot say."""
    try:
        return bool(condition.any())
    except RuntimeError:
        return False
