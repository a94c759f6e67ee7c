"""Nets with one signature, net(x, s, t, y): an average velocity; at s = t a velocity.

All of them can be differentiated forwards (torch.func.jvp) and stacked (vmap).
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from flowtext.tensors import (
    Label,
    State,
    Time,
    Velocity,
    anywhere,
    check_image,
    check_shape,
    expand,
)

Net = Callable[[State, Time, Time, Label | None], State]
KINDS = ("velocity", "data", "noise")
TIME_FEATURES = 10


def velocity(net: Net, y: Label | None = None) -> Velocity:
    """The velocity that a net knows, v(x, t) = net(x, t, t, y), with labels bound."""
    return lambda x, t: net(x, t, t, y)


def as_velocity(net: Net, path, kind: str, floor: float = 0.05) -> Net:
    """A net that predicts the velocity, the data or the noise, as a velocity net.

    At s the two ends are found from x = alpha x1 + sigma x0 and the one predicted; the
    divisor is held at `floor`, since near t = 1 (data) or t = 0 (noise) the state says
    nothing of the other end. Raises ValueError for an unknown kind. Source: Karras et
    al. 2022 (arXiv 2206.00364); the floor as Lu et al. 2026 (arXiv 2601.22158).
    """
    if kind not in KINDS:
        raise ValueError(f"got kind {kind!r}, expected one of {[*KINDS]}")
    if kind == "velocity":
        return net

    def converted(x: State, s: Time, t: Time, y: Label | None = None) -> State:
        a, b, a_dot, b_dot = (expand(c, x) for c in path.coefficients(s))
        found = net(x, s, t, y)
        if kind == "data":
            return a_dot * found + b_dot * (x - a * found) / b.clamp(min=floor)
        return a_dot * (x - b * found) / a.clamp(min=floor) + b_dot * found

    return converted


class MLP(nn.Module):
    """A net for points (b, dim), or anything with dim numbers a sample.

    `depth` hidden layers; labels 0 .. labels - 1, where -1 or y = None means no label.
    """

    def __init__(self, dim: int, width: int = 128, depth: int = 3, labels: int = 0):
        super().__init__()
        self.dim = dim
        self.first = nn.Linear(dim + TIME_FEATURES, width)
        self.label = _Label(labels, width)
        layers = []
        for _ in range(depth - 1):
            layers += [nn.SiLU(), nn.Linear(width, width)]
        self.rest = nn.Sequential(*layers, nn.SiLU(), nn.Linear(width, dim))

    def forward(self, x: State, s: Time, t: Time, y: Label | None = None) -> State:
        if x[0].numel() != self.dim:
            got = f"a state of shape {tuple(x.shape)}"
            raise ValueError(f"got {got}, expected {self.dim} numbers a sample")
        _check(x, s, t, self.first.weight)
        features = torch.cat([x.flatten(1), time_features(s, t).to(x)], 1)
        hidden = self.first(features) + self.label(y, x)
        return self.rest(hidden).reshape(x.shape)


class UNet(nn.Module):
    """A convolutional net for images (b, channels, h, w): down, across, and up again.

    One entry of `widths` (multiples of 8) a resolution; pixels are first gathered into
    patches. Raises ValueError if h or w is not a multiple of patch 2^(levels - 1).
    Source: Ronneberger et al. 2015 (arXiv 1505.04597), with time as Ho et al. 2020
    (arXiv 2006.11239).
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (32, 64),
        patch: int = 1,
        labels: int = 0,
    ):
        super().__init__()
        if not widths or any(width % 8 for width in widths):
            raise ValueError(f"got widths {widths}, expected some multiples of 8")
        self.channels, self.patch = channels, patch
        self.multiple = patch * 2 ** (len(widths) - 1)
        self.clock = _Clock(2 * widths[0], labels)
        size = channels * patch**2
        self.enter = nn.Conv2d(size, widths[0], 3, padding=1)
        blocks = [_Block(a, b, 2 * widths[0]) for a, b in _steps(widths)]
        self.down = nn.ModuleList(blocks)
        last, clock = widths[-1], 2 * widths[0]
        middle = [_Block(last, last, clock), _Attention(last)]
        self.middle = nn.ModuleList([*middle, _Block(last, last, clock)])
        blocks = [_Block(2 * b, a, 2 * widths[0]) for a, b in _steps(widths)[::-1]]
        self.up = nn.ModuleList(blocks)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, widths[0]), nn.SiLU(), _zero(_conv(widths[0], size))
        )

    def forward(self, x: State, s: Time, t: Time, y: Label | None = None) -> State:
        check_image(x, self.multiple, self.channels)
        _check(x, s, t, self.clock.time[0].weight)
        when = self.clock(s, t, y, x)
        fold = {"p": self.patch, "q": self.patch}
        x = rearrange(x, "b c (h p) (w q) -> b (c p q) h w", **fold)
        x, kept = self.enter(x), []
        for index, block in enumerate(self.down):
            x = block(nn.functional.avg_pool2d(x, 2) if index else x, when)
            kept.append(x)
        first, attend, second = self.middle
        x = second(attend(first(x, when)), when)
        for index, block in enumerate(self.up):
            if index:
                x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, kept.pop()], 1), when)
        return rearrange(self.leave(x), "b (c p q) h w -> b c (h p) (w q)", **fold)


class DiT(nn.Module):
    """A transformer for square images (b, channels, size, size), patch by patch.

    Raises ValueError for other sizes, a size that is not whole patches, or a width that
    is not whole heads. Source: Peebles and Xie 2023 (arXiv 2212.09748), adaLN-Zero.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        patch: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        labels: int = 0,
    ):
        super().__init__()
        if size % patch or width % heads:
            got = f"size {size}, patch {patch}, width {width} and {heads} heads"
            raise ValueError(f"got {got}, expected whole patches and whole heads")
        self.image, self.patch = (channels, size, size), patch
        self.clock = _Clock(width, labels)
        self.enter = nn.Linear(channels * patch**2, width)
        places = torch.randn((size // patch) ** 2, width) / math.sqrt(width)
        self.place = nn.Parameter(places)
        self.blocks = nn.ModuleList(_Layer(width, heads) for _ in range(depth))
        self.leave = nn.Sequential(
            nn.LayerNorm(width), _zero(nn.Linear(width, channels * patch**2))
        )

    def forward(self, x: State, s: Time, t: Time, y: Label | None = None) -> State:
        check_shape(x, self.image)
        _check(x, s, t, self.clock.time[0].weight)
        when = self.clock(s, t, y, x)
        fold = {"p": self.patch, "q": self.patch, "h": self.image[1] // self.patch}
        x = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", **fold)
        x = self.enter(x) + self.place
        for block in self.blocks:
            x = block(x, when)
        return rearrange(self.leave(x), "b (h w) (c p q) -> b c (h p) (w q)", **fold)


class Classifier(nn.Module):
    """A small convolutional classifier whose last hidden layer serves as features.

    Call it for logits (b, classes); `features` gives (b, 64), in which samples are
    compared. The side of the image must be a multiple of 4.
    """

    def __init__(self, channels: int, size: int, classes: int, width: int = 32):
        super().__init__()
        self.image = (channels, size, size)
        self.body = nn.Sequential(
            _conv(channels, width),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.AvgPool2d(2),
            _conv(width, 2 * width),
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (size // 4) ** 2, 64),
            nn.Tanh(),
        )
        self.head = nn.Linear(64, classes)

    def features(self, x: State) -> Float[Tensor, "b 64"]:
        """The last hidden layer, in which samples are compared."""
        check_shape(x, self.image)
        return self.body(x)

    def forward(self, x: State) -> Float[Tensor, "b k"]:
        return self.head(self.features(x))


class Twins(nn.Module):
    """n nets of one shape that are trained and sampled together, each on its own rows.

    A batch of n b samples is cut into n parts in order, one a net. Gradients do not
    mix, so n seeds cost much less than n runs. Source: PyTorch's model ensembling.
    """

    def __init__(self, nets: Sequence[nn.Module]):
        super().__init__()
        weights, _ = torch.func.stack_module_state([*nets])
        self.names = [*weights]
        self.stacks = nn.ParameterList(weights[name].detach() for name in self.names)
        self.each = [copy.deepcopy(nets[0]).to("meta")]  # a list hides it from torch

    def forward(self, x: State, s: Time, t: Time, y: Label | None = None) -> State:
        n = len(self)
        if len(x) % n:
            raise ValueError(f"got {len(x)} samples, expected a multiple of {n} nets")
        for part in self.each[0].modules():  # under vmap values cannot be checked
            if isinstance(part, _Label):
                part.check(y, x)

        def call(weights, *inputs):
            return torch.func.functional_call(self.each[0], weights, inputs)

        parts = [
            part.unflatten(0, (n, -1)) for part in (x, s, t, y) if part is not None
        ]
        weights = dict(zip(self.names, self.stacks, strict=True))
        return torch.vmap(call)(weights, *parts).flatten(0, 1)

    def __len__(self) -> int:
        return len(self.stacks[0])

    def net(self, index: int) -> nn.Module:
        """A copy of one of the nets, to be used alone."""
        stacks = zip(self.names, self.stacks, strict=True)
        first = self.stacks[0]
        alone = copy.deepcopy(self.each[0]).to_empty(device=first.device).to(first)
        alone.load_state_dict({name: stack[index].detach() for name, stack in stacks})
        return alone


def begin(net: nn.Module, source: nn.Module) -> None:
    """Give a net the weights of another, or each of many twins those of one.

    Raises ValueError if the weights are of another net.
    """
    weights, many = source.state_dict(), isinstance(net, Twins)
    found = dict(zip(net.names, net.stacks, strict=True)) if many else net.state_dict()
    shapes = {name: value.shape[many:] for name, value in found.items()}
    if shapes != {name: value.shape for name, value in weights.items()}:
        got = f"the weights of a {type(source).__name__}"
        raise ValueError(f"got {got}, expected those of this {type(net).__name__}")
    with torch.no_grad():
        for name, value in weights.items():
            found[name].copy_(value.expand_as(found[name]))


def time_features(s: Time, t: Time) -> Float[Tensor, "b 10"]:
    """Slow waves of s and of t - s: a derivative in time grows with their frequency."""
    each = []
    for time in (s, t - s):
        angle = math.pi * time
        waves = [angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos()]
        each += [time, *waves]
    return torch.stack(each, 1)


def attention(
    q: Float[Tensor, "*b n d"], k: Float[Tensor, "*b n d"], v: Float[Tensor, "*b n d"]
) -> Float[Tensor, "*b n d"]:
    """Softmax attention written out, since torch's fused kernels refuse jvp."""
    share = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return share @ v


def _check(x: State, s: Time, t: Time, weight: Tensor) -> None:
    """Refuse times that are not (b,), and a state of another kind than the weights."""
    for time in (s, t):
        if not torch.is_tensor(time) or time.shape != x.shape[:1]:
            shape = f" of shape {tuple(time.shape)}" if torch.is_tensor(time) else ""
            got = f"a time {type(time).__name__}{shape}"
            raise ValueError(f"got {got}, expected shape ({len(x)},): one a sample")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        wanted = f"{weight.dtype}, that of the weights, as after x.to({weight.dtype})"
        raise ValueError(f"got a state of {x.dtype}, expected {wanted}")


class _Label(nn.Module):
    """A vector a label; the last row stands for no label."""

    def __init__(self, labels: int, width: int):
        super().__init__()
        self.labels = labels
        self.table = nn.Embedding(labels + 1, width) if labels else None

    def forward(self, y: Label | None, x: State) -> Tensor:
        self.check(y, x)
        if self.table is None:
            return x.new_zeros(1, 1)
        if y is None:
            y = torch.full((len(x),), -1, device=x.device)
        return self.table(torch.where(y < 0, self.labels, y))

    def check(self, y: Label | None, x: State) -> None:
        """Refuse labels that are not (b,), out of range, or not foreseen."""
        if y is not None and self.table is None:
            raise ValueError("got labels, expected none: this net was made without")
        if y is None:
            return
        if not torch.is_tensor(y) or y.is_floating_point():
            kind = y.dtype if torch.is_tensor(y) else type(y).__name__
            raise ValueError(f"got labels of {kind}, expected a tensor of integers")
        if y.shape == x.shape[:1] and not anywhere((y < -1) | (y >= self.labels)):
            return
        got = f"labels {y.flatten().tolist()[:5]} of shape {tuple(y.shape)}"
        wanted = f"({len(x)},) from -1, none, to {self.labels - 1}"
        raise ValueError(f"got {got}, expected {wanted}")


class _Clock(nn.Module):
    """Times and label as one vector a sample."""

    def __init__(self, width: int, labels: int):
        super().__init__()
        layers = nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        self.time, self.label = nn.Sequential(*layers), _Label(labels, width)

    def forward(self, s: Time, t: Time, y: Label | None, x: State) -> Tensor:
        when = self.time(time_features(s, t).to(x)) + self.label(y, x)
        return nn.functional.silu(when)


class _Block(nn.Module):
    """Two convolutions, scaled and shifted by time; starts as the identity."""

    def __init__(self, inside: int, outside: int, width: int):
        super().__init__()
        self.before = nn.Sequential(
            nn.GroupNorm(8, inside), nn.SiLU(), _conv(inside, outside)
        )
        self.when = nn.Linear(width, 2 * outside)
        self.norm = nn.GroupNorm(8, outside)
        self.after = nn.Sequential(nn.SiLU(), _zero(_conv(outside, outside)))
        same = inside == outside
        self.skip = nn.Identity() if same else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor, when: Tensor) -> Tensor:
        scale, shift = self.when(when)[..., None, None].chunk(2, 1)
        hidden = self.norm(self.before(x)) * (1 + scale) + shift
        return self.skip(x) + self.after(hidden)


class _Attention(nn.Module):
    """Every place of an image looks at every other; starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // math.gcd(16, width)  # heads of 16 numbers, or of 8
        self.norm = nn.GroupNorm(8, width)
        self.look = nn.Conv2d(width, 3 * width, 1)
        self.leave = _zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        split = "b (three k d) h w -> three b k (h w) d"
        q, k, v = rearrange(self.look(self.norm(x)), split, three=3, k=self.heads)
        seen = attention(q, k, v)
        seen = rearrange(seen, "b k (h w) d -> b (k d) h w", h=x.shape[2])
        return x + self.leave(seen)


class _Layer(nn.Module):
    """Attention and an MLP, each gated by time; starts as the identity."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.look, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.when = _zero(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, when: Tensor) -> Tensor:
        a, b, gate, c, d, gate_too = self.when(when)[:, None].chunk(6, 2)
        seen = self.look(self.norm(x) * (1 + a) + b)
        split = "b n (three k d) -> three b k n d"
        seen = attention(*rearrange(seen, split, three=3, k=self.heads))
        x = x + gate * self.leave(rearrange(seen, "b k n d -> b n (k d)"))
        return x + gate_too * self.think(self.norm(x) * (1 + c) + d)


def _conv(inside: int, outside: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1)


def _zero(layer: nn.Module) -> nn.Module:
    """The layer with zero weights, so that what it adds starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _steps(widths: Sequence[int]) -> list[tuple[int, int]]:
    """The widths before and after each resolution, on the way down."""
    return [*zip([widths[0], *widths[:-1]], widths, strict=True)]
