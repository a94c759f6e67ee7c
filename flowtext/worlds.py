"""Data with known answers: worlds whose velocity, density and map are exact."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.func import jvp

from flowtext.paths import Path
from flowtext.tensors import (
    FlowMap,
    State,
    Time,
    Velocity,
    anywhere,
    check_state,
    check_time,
    expand,
)

LogDensity = Callable[[State, Time], Float[Tensor, " b"]]
# What a world knows of x at t: the posterior mean E[x1 | x], and z = -score.
Explain = Callable[[Path, State, Time], tuple[State, State]]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Data from one normal distribution: everything is known, the flow map too.

    Raises ValueError unless mean is (d,) and cov (d, d), symmetric, positive definite.
    Source: the linear ODE of a Gaussian, eigen-direction by eigen-direction.
    """

    mean: Float[Tensor, " d"]
    cov: Float[Tensor, "d d"]

    def __post_init__(self) -> None:
        d = len(_finite("mean", self.mean, 1))
        if _finite("cov", self.cov, 2).shape != (d, d):
            raise ValueError(f"got cov {tuple(self.cov.shape)}, expected ({d}, {d})")
        if not torch.allclose(self.cov, self.cov.T):
            raise ValueError("got a cov that is not symmetric, expected cov = cov.T")
        spectrum = torch.linalg.eigvalsh(self.cov)
        rounding = d * torch.finfo(self.cov.dtype).eps * spectrum[-1].abs()
        if not spectrum[0] > rounding:
            got = f"cov with eigenvalue {float(spectrum[0]):.3g}"
            raise ValueError(f"got {got}, expected positive definite")

    def sample(self, n: int, generator: Generator | None = None) -> State:
        """n draws of data, shape (n, d)."""
        z = _normal((n, len(self.mean)), self.mean, generator)
        return self.mean + z @ torch.linalg.cholesky(self.cov).T

    def velocity(self, path: Path) -> Velocity:
        """The velocity v(x, t) that carries noise to this data along the path."""
        return _velocity(path, self._explain)

    def score(self, path: Path) -> Velocity:
        """The score, grad log p_t(x), as a function of (x, t)."""
        return lambda x, t: -self._explain(path, x, t)[1]

    def denoise(self, path: Path) -> Velocity:
        """The posterior mean E[x1 | x] as a function of (x, t)."""
        return lambda x, t: self._explain(path, x, t)[0]

    def log_density(self, path: Path) -> LogDensity:
        """log p_t(x) as a function of (x, t), of shape (b,)."""

        def log_density(x: State, t: Time) -> Float[Tensor, " b"]:
            a = self._alpha(path, x, t)
            scale = self._scale(path, t)
            z = self._stretch(x - a * self.mean, 1 / scale)
            return _log_normal(z) - scale.log().sum(1)

        return log_density

    def flow_map(self, path: Path) -> FlowMap:
        """The flow map X(x, s, t): where a point at x at time s is at time t.

        It keeps the standardised coordinate of x along every eigen-direction of cov.
        """

        def jump(x: State, s: Time, t: Time) -> State:
            a_s, a_t = self._alpha(path, x, s), self._alpha(path, x, t)
            gain = self._scale(path, t) / self._scale(path, s)
            return a_t * self.mean + self._stretch(x - a_s * self.mean, gain)

        return jump

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """The variances (d,) of the data and the directions (d, d) they belong to."""
        return tuple(torch.linalg.eigh(self.cov))

    def _explain(self, path: Path, x: State, t: Time) -> tuple[State, State]:
        a, scale = self._alpha(path, x, t), self._scale(path, t)
        z = self._stretch(x - a * self.mean, scale**-2)
        return self.mean + self._stretch(z, a * self._eigen[0]), z

    def _alpha(self, path: Path, x: State, t: Time) -> Float[Tensor, "b 1"]:
        check_state(x, len(self.mean))
        check_time(t, x)
        return path.alpha(t)[:, None]

    def _scale(self, path: Path, t: Time) -> Float[Tensor, "b d"]:
        """The standard deviation of p_t along every eigen-direction."""
        a, s = _levels(path, t)
        return (a**2 * self._eigen[0] + s**2).sqrt()

    def _stretch(self, x: State, gain: Float[Tensor, "b d"]) -> State:
        """Multiply x by a factor along every eigen-direction."""
        directions = self._eigen[1]
        common = torch.promote_types(x.dtype, directions.dtype)
        x, directions = x.to(common), directions.to(common)
        return (x @ directions * gain) @ directions.T


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data from k round normal distributions with weights: many modes, exact velocity.

    Raises ValueError unless means is (k, d), stds and weights are (k,) and positive,
    and the weights sum to one. Source: Bayes' rule on the components, mode by mode.
    """

    means: Float[Tensor, "k d"]
    stds: Float[Tensor, " k"]
    weights: Float[Tensor, " k"]

    def __post_init__(self) -> None:
        k = len(_finite("means", self.means, 2))
        for name in ("stds", "weights"):
            value = _finite(name, getattr(self, name), 1)
            if len(value) != k:
                raise ValueError(f"got {len(value)} {name}, expected {k}: one a mode")
        _check_mixture(self.stds, self.weights)

    def sample(self, n: int, generator: Generator | None = None) -> State:
        """n draws of data, shape (n, d)."""
        mode = torch.multinomial(self.weights, n, True, generator=generator)
        z = _normal((n, self.means.shape[1]), self.means, generator)
        return self.means[mode] + self.stds[mode, None] * z

    def velocity(self, path: Path) -> Velocity:
        """The velocity v(x, t) that carries noise to this data along the path."""
        return _velocity(path, self._explain)

    def score(self, path: Path) -> Velocity:
        """The score, grad log p_t(x), as a function of (x, t)."""
        return lambda x, t: -self._explain(path, x, t)[1]

    def denoise(self, path: Path) -> Velocity:
        """The posterior mean E[x1 | x] as a function of (x, t)."""
        return lambda x, t: self._explain(path, x, t)[0]

    def log_density(self, path: Path) -> LogDensity:
        """log p_t(x) as a function of (x, t), of shape (b,)."""

        return lambda x, t: self._log_joint(path, x, t).logsumexp(1)

    def _explain(self, path: Path, x: State, t: Time) -> tuple[State, State]:
        share = self._log_joint(path, x, t).softmax(1)
        a, s = _levels(path, t)
        variance = a**2 * self.stds**2 + s**2
        z = (x[:, None] - a[..., None] * self.means) / variance[..., None]
        data = self.means + (a * self.stds**2)[..., None] * z
        return _mean(share, data), _mean(share, z)

    def _log_joint(self, path: Path, x: State, t: Time) -> Float[Tensor, "b k"]:
        """log of weight times density of every mode at x."""
        check_state(x, self.means.shape[1])
        check_time(t, x)
        a, s = _levels(path, t)
        scale = (a**2 * self.stds**2 + s**2).sqrt()
        z = (x[:, None] - a[..., None] * self.means) / scale[..., None]
        return self.weights.log() + _log_normal(z) - x.shape[1] * scale.log()


@dataclass(frozen=True, eq=False)
class RotatedProduct:
    """Independent coordinates, each a 1-D mixture, turned: a flow map in any dimension.

    Column i of rotation (d, d) is the direction of coordinate i; means, stds and
    weights are (d, k), one mixture a row. Raises ValueError unless rotation is
    orthogonal, stds and weights are positive and each row of weights sums to one.
    """

    rotation: Float[Tensor, "d d"]
    means: Float[Tensor, "d k"]
    stds: Float[Tensor, "d k"]
    weights: Float[Tensor, "d k"]

    def __post_init__(self) -> None:
        d = len(_finite("rotation", self.rotation, 2))
        turned = self.rotation @ self.rotation.T
        if self.rotation.shape != (d, d) or not torch.allclose(
            turned, torch.eye(d).to(turned), atol=1e-5
        ):
            raise ValueError("got a rotation that is not orthogonal, expected R R' = 1")
        for name in ("means", "stds", "weights"):
            shape = _finite(name, getattr(self, name), 2).shape
            if shape != (d, self.means.shape[1]):
                got = f"{name} of shape {tuple(shape)}"
                raise ValueError(f"got {got}, expected one row for {d} coordinates")
        _check_mixture(self.stds, self.weights)

    def sample(self, n: int, generator: Generator | None = None) -> State:
        """n draws of data, shape (n, d)."""
        mode = torch.multinomial(self.weights, n, True, generator=generator)
        z = _normal((n, len(self.means)), self.means, generator)
        mean, std = self.means.gather(1, mode).T, self.stds.gather(1, mode).T
        return (mean + std * z) @ self.rotation.T

    def velocity(self, path: Path) -> Velocity:
        """The velocity v(x, t) that carries noise to this data along the path."""
        return _velocity(path, self._explain)

    def score(self, path: Path) -> Velocity:
        """The score, grad log p_t(x), as a function of (x, t)."""
        return lambda x, t: -self._explain(path, x, t)[1]

    def denoise(self, path: Path) -> Velocity:
        """The posterior mean E[x1 | x] as a function of (x, t)."""
        return lambda x, t: self._explain(path, x, t)[0]

    def log_density(self, path: Path) -> LogDensity:
        """log p_t(x) as a function of (x, t), of shape (b,)."""

        def log_density(x: State, t: Time) -> Float[Tensor, " b"]:
            z, variance = self._standard(path, self._untilt(x, t), t)
            each = _log_normal(z[..., None]) - variance.log() / 2
            return (self.weights.log() + each).logsumexp(2).sum(1)

        return log_density

    def flow_map(self, path: Path) -> FlowMap:
        """The flow map X(x, s, t): where a point at x at time s is at time t.

        Every coordinate keeps its rank, F_t(y_t) = F_s(y_s), so y_t is a quantile. It
        is found by bisection; its first derivatives, in x, s and t, are exact.
        """

        def jump(x: State, s: Time, t: Time) -> State:
            check_time(t, x)
            rank = self._log_odds(path, self._untilt(x, s), s)
            y = self._place(path, rank.detach(), t.detach())
            odds = partial(self._log_odds, path, t=t.detach())
            slope = jvp(odds, (y,), (torch.ones_like(y),))[1]
            miss = (rank - self._log_odds(path, y, t)) / slope
            return self._turn(y + miss - miss.detach())

        return jump

    def _untilt(self, x: State, t: Time) -> State:
        """The coordinates of x, after the checks at the door."""
        check_state(x, len(self.means))
        check_time(t, x)
        common = torch.promote_types(x.dtype, self.rotation.dtype)
        return x.to(common) @ self.rotation.to(common)

    def _turn(self, y: State) -> State:
        return y @ self.rotation.to(y.dtype).T

    def _standard(self, path: Path, y: State, t: Time) -> tuple[Tensor, Tensor]:
        """Every coordinate in units of every mode, (b, d, k), and their variances."""
        a, s = (c[..., None] for c in _levels(path, t))
        variance = a**2 * self.stds**2 + s**2
        return (y[..., None] - a * self.means) / variance.sqrt(), variance

    def _explain(self, path: Path, x: State, t: Time) -> tuple[State, State]:
        z, variance = self._standard(path, self._untilt(x, t), t)
        share = (self.weights.log() - z**2 / 2 - variance.log() / 2).softmax(2)
        z = z / variance.sqrt()
        data = self.means + path.alpha(t)[:, None, None] * self.stds**2 * z
        return self._turn((share * data).sum(2)), self._turn((share * z).sum(2))

    def _log_odds(self, path: Path, y: State, t: Time) -> State:
        """log F/(1 - F) of every coordinate: a rank that is exact in both tails."""
        z, _ = self._standard(path, y, t)
        below = (self.weights.log() + torch.special.log_ndtr(z)).logsumexp(2)
        above = (self.weights.log() + torch.special.log_ndtr(-z)).logsumexp(2)
        return below - above

    def _place(self, path: Path, rank: State, t: Time) -> State:
        """The coordinates of given rank at time t, by bisection."""
        a, s = (c[..., None] for c in _levels(path, t))
        reach = 40 * (a**2 * self.stds**2 + s**2).sqrt()
        low = (a * self.means - reach).amin(2).expand_as(rank)
        high = (a * self.means + reach).amax(2).expand_as(rank)
        for _ in range(60):
            middle = (low + high) / 2
            before = self._log_odds(path, middle, t) < rank
            low = torch.where(before, middle, low)
            high = torch.where(before, high, middle)
        return (low + high) / 2


def quantile_map(world: Mixture, path: Path) -> FlowMap:
    """The exact flow map X(x, s, t) of a mixture on a line: every point keeps its rank.

    Raises ValueError if the world has more than one dimension.
    """
    if world.means.shape[1] != 1:
        d = world.means.shape[1]
        raise ValueError(f"got a mixture in {d} dimensions, expected one dimension")
    one = torch.ones_like(world.means[:1])
    line = world.means.T, world.stds[None], world.weights[None]
    return RotatedProduct(one, *line).flow_map(path)


@dataclass(frozen=True, eq=False)
class Empirical:
    """Data that are finitely many points (n, *d), each as likely as the next.

    Its velocity is the best that flow matching can reach on this training set: it
    leads back to the points. Raises ValueError unless there are points, all finite.
    Source: Bayes' rule on the points.
    """

    points: State

    def __post_init__(self) -> None:
        if len(self.points) == 0:
            raise ValueError("got no points, expected at least one")
        check_state(self.points)

    def sample(self, n: int, generator: Generator | None = None) -> State:
        """n draws with replacement, shape (n, *d)."""
        even = torch.ones(len(self.points), device=self.points.device)
        return self.points[torch.multinomial(even, n, True, generator=generator)]

    def velocity(self, path: Path) -> Velocity:
        """The velocity v(x, t) that carries noise to the points; t < 1."""
        return _velocity(path, self._explain)

    def score(self, path: Path) -> Velocity:
        """The score, grad log p_t(x), as a function of (x, t); t < 1."""
        return lambda x, t: -self._explain(path, x, t)[1]

    def denoise(self, path: Path) -> Velocity:
        """The posterior mean E[x1 | x], an average of the points; t < 1."""
        return lambda x, t: self._explain(path, x, t)[0]

    def log_density(self, path: Path) -> LogDensity:
        """log p_t(x) as a function of (x, t), of shape (b,); t < 1."""

        def log_density(x: State, t: Time) -> Float[Tensor, " b"]:
            joint = self._log_joint(path, x, t).logsumexp(1)
            scale = path.sigma(t).log() + math.log(2 * math.pi) / 2
            return joint - math.log(len(self.points)) - x[0].numel() * scale

        return log_density

    def _explain(self, path: Path, x: State, t: Time) -> tuple[State, State]:
        share = self._log_joint(path, x, t).softmax(1)
        data = (share @ self.points.to(share).flatten(1)).reshape(x.shape)
        a, s = (expand(c, x) for c in (path.alpha(t), path.sigma(t)))
        return data, (x - a * data) / s**2

    def _log_joint(self, path: Path, x: State, t: Time) -> Float[Tensor, "b n"]:
        """-|x - a x1|^2 / (2 s^2) for every point x1."""
        check_state(x)
        check_time(t, x)
        if x.shape[1:] != self.points.shape[1:]:
            got, wanted = tuple(x.shape[1:]), tuple(self.points.shape[1:])
            raise ValueError(f"got states of shape {got}, expected {wanted}")
        a, s = _levels(path, t)
        if anywhere(s <= 0):
            raise ValueError("got a time without noise, expected t < 1: on the points")
        common = torch.promote_types(x.dtype, self.points.dtype)
        x, points = x.to(common).flatten(1), self.points.to(common).flatten(1)
        squares = (x**2).sum(1, True) + a**2 * (points**2).sum(1)
        return (a * (x @ points.T) - squares / 2) / s**2


def eight_modes() -> Mixture:
    """The book's own world: eight modes on a circle, some four times as heavy.

    Radius 2, standard deviation 0.15, weights 1:2:3:4:4:3:2:1, in float64.
    """
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    weights = torch.tensor([1, 2, 3, 4, 4, 3, 2, 1], dtype=torch.float64)
    return Mixture(means, torch.full_like(weights, 0.15), weights / weights.sum())


def moons(n: int, generator: Generator | None = None) -> State:
    """n points on two half moons that reach into each other, (n, 2), thickness 0.1."""
    upper, angle, z = _draws(n, generator)
    sign = torch.where(upper, 1, -1)[:, None]
    arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    return 1.5 * sign * arc + 0.1 * z


def spirals(n: int, generator: Generator | None = None) -> State:
    """n points on two spiral arms of one and a half turns, (n, 2), thickness 0.05."""
    first, angle, z = _draws(n, generator)
    radius = torch.where(first, 2, -2) * (angle / math.pi).sqrt()
    turn = 1.5 * math.pi * radius.abs()
    return radius[:, None] * torch.stack([turn.cos(), turn.sin()], 1) + 0.05 * z


def checkerboard(n: int, generator: Generator | None = None) -> State:
    """n points on the black squares of a 4 x 4 board, [-2, 2] by [-2, 2], (n, 2)."""
    square = torch.randint(8, (n,), generator=generator)
    row = square // 2
    corner = torch.stack([2 * (square % 2) + row % 2, row], 1) - 2
    return corner + torch.rand(n, 2, generator=generator)


def _draws(n: int, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """A coin, an angle in [0, pi] and a normal pair, for each of n points."""
    coin = torch.rand(n, generator=generator) < 0.5
    angle = math.pi * torch.rand(n, generator=generator)
    return coin, angle, torch.randn(n, 2, generator=generator)


def _velocity(path: Path, explain: Explain) -> Velocity:
    """v = alpha' E[x1 | x] + sigma' E[x0 | x]; the mean of the noise is sigma z."""

    def v(x: State, t: Time) -> State:
        data, z = explain(path, x, t)
        _, s, a_dot, s_dot = (expand(c, x) for c in path.coefficients(t))
        return a_dot * data + s_dot * s * z

    return v


def _levels(path: Path, t: Time) -> tuple[Float[Tensor, "b 1"], Float[Tensor, "b 1"]]:
    """alpha and sigma as columns."""
    return path.alpha(t)[:, None], path.sigma(t)[:, None]


def _mean(share: Float[Tensor, "b k"], each: Float[Tensor, "b k d"]) -> State:
    """The average over modes of one vector a mode."""
    return torch.einsum("bk,bkd->bd", share, each)


def _log_normal(z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    return -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)


def _normal(shape: tuple, like: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def _check_mixture(stds: Tensor, weights: Tensor) -> None:
    """Refuse modes without width or weight, and weights that do not sum to one."""
    for name, value in (("stds", stds), ("weights", weights)):
        if not (value > 0).all():
            raise ValueError(f"got {name} {value.tolist()}, expected all positive")
    for total in weights.sum(-1).flatten().tolist():
        if not math.isclose(total, 1, abs_tol=1e-5):
            raise ValueError(f"got weights that sum to {total:.6g}, expected 1")


def _finite(name: str, value: Tensor, ndim: int) -> Tensor:
    if value.ndim != ndim or len(value) == 0:
        got = f"{name} of shape {tuple(value.shape)}"
        raise ValueError(f"got {got}, expected {ndim} axes, none of them empty")
    if not torch.isfinite(value).all():
        raise ValueError(f"got {name} with NaN or infinity, expected finite numbers")
    return value
