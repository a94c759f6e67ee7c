"""Data with known answers: worlds whose velocity, density and map are exact."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from flowtext.paths import Path
from flowtext.tensors import FlowMap, State, Time, Velocity, check_state, check_time

LogDensity = Callable[[State, Time], Float[Tensor, " b"]]


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

        def v(x: State, t: Time) -> State:
            a, s, a_dot, s_dot = self._at(path, x, t)
            gain = (a * a_dot * self._eigen[0] + s * s_dot) / self._scale(path, t) ** 2
            return a_dot * self.mean + self._stretch(x - a * self.mean, gain)

        return v

    def score(self, path: Path) -> Velocity:
        """The score, grad log p_t(x), as a function of (x, t)."""

        def score(x: State, t: Time) -> State:
            a, *_ = self._at(path, x, t)
            return self._stretch(x - a * self.mean, -1 / self._scale(path, t) ** 2)

        return score

    def denoise(self, path: Path) -> Velocity:
        """The posterior mean E[x1 | x] as a function of (x, t)."""

        def denoise(x: State, t: Time) -> State:
            a, *_ = self._at(path, x, t)
            gain = a * self._eigen[0] / self._scale(path, t) ** 2
            return self.mean + self._stretch(x - a * self.mean, gain)

        return denoise

    def log_density(self, path: Path) -> LogDensity:
        """log p_t(x) as a function of (x, t), of shape (b,)."""

        def log_density(x: State, t: Time) -> Float[Tensor, " b"]:
            a, *_ = self._at(path, x, t)
            scale = self._scale(path, t)
            z = self._stretch(x - a * self.mean, 1 / scale)
            return _log_normal(z) - scale.log().sum(1)

        return log_density

    def flow_map(self, path: Path) -> FlowMap:
        """The flow map X(x, s, t): where a point at x at time s is at time t.

        It keeps the standardised coordinate of x along every eigen-direction of cov.
        """

        def jump(x: State, s: Time, t: Time) -> State:
            a_s, *_ = self._at(path, x, s)
            a_t, *_ = self._at(path, x, t)
            gain = self._scale(path, t) / self._scale(path, s)
            return a_t * self.mean + self._stretch(x - a_s * self.mean, gain)

        return jump

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """The variances (d,) of the data and the directions (d, d) they belong to."""
        return tuple(torch.linalg.eigh(self.cov))

    def _at(self, path: Path, x: State, t: Time) -> tuple[Tensor, ...]:
        check_state(x, len(self.mean))
        check_time(t, x)
        return tuple(c[:, None] for c in path.coefficients(t))

    def _scale(self, path: Path, t: Time) -> Float[Tensor, "b d"]:
        """The standard deviation of p_t along every eigen-direction."""
        a, s, *_ = (c[:, None] for c in path.coefficients(t))
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
            if not (value > 0).all():
                raise ValueError(f"got {name} {value.tolist()}, expected all positive")
        total = float(self.weights.sum())
        if not math.isclose(total, 1, abs_tol=1e-5):
            raise ValueError(f"got weights that sum to {total:.6g}, expected 1")

    def sample(self, n: int, generator: Generator | None = None) -> State:
        """n draws of data, shape (n, d)."""
        mode = torch.multinomial(self.weights, n, True, generator=generator)
        z = _normal((n, self.means.shape[1]), self.means, generator)
        return self.means[mode] + self.stds[mode, None] * z

    def velocity(self, path: Path) -> Velocity:
        """The velocity v(x, t) that carries noise to this data along the path."""

        def v(x: State, t: Time) -> State:
            share, z, a, s, a_dot, s_dot = self._at(path, x, t)
            gain = a * a_dot * self.stds**2 + s * s_dot
            return _mean(share, a_dot[..., None] * self.means + gain[..., None] * z)

        return v

    def score(self, path: Path) -> Velocity:
        """The score, grad log p_t(x), as a function of (x, t)."""

        def score(x: State, t: Time) -> State:
            share, z, *_ = self._at(path, x, t)
            return -_mean(share, z)

        return score

    def denoise(self, path: Path) -> Velocity:
        """The posterior mean E[x1 | x] as a function of (x, t)."""

        def denoise(x: State, t: Time) -> State:
            share, z, a, *_ = self._at(path, x, t)
            return _mean(share, self.means + (a * self.stds**2)[..., None] * z)

        return denoise

    def log_density(self, path: Path) -> LogDensity:
        """log p_t(x) as a function of (x, t), of shape (b,)."""

        def log_density(x: State, t: Time) -> Float[Tensor, " b"]:
            a, s, *_ = self._coefficients(path, x, t)
            return self._log_joint(x, a, s).logsumexp(1)

        return log_density

    def _at(self, path: Path, x: State, t: Time) -> tuple[Tensor, ...]:
        """Each mode's share of x, (b, k), its z = (x - a m) / var, and the path."""
        a, s, a_dot, s_dot = self._coefficients(path, x, t)
        share = self._log_joint(x, a, s).softmax(1)
        variance = a**2 * self.stds**2 + s**2
        z = (x[:, None] - a[..., None] * self.means) / variance[..., None]
        return share, z, a, s, a_dot, s_dot

    def _coefficients(self, path: Path, x: State, t: Time) -> tuple[Tensor, ...]:
        check_state(x, self.means.shape[1])
        check_time(t, x)
        return tuple(c[:, None] for c in path.coefficients(t))

    def _log_joint(self, x: State, a: Tensor, s: Tensor) -> Float[Tensor, "b k"]:
        """log of weight times density of every mode at x."""
        scale = (a**2 * self.stds**2 + s**2).sqrt()
        z = (x[:, None] - a[..., None] * self.means) / scale[..., None]
        return self.weights.log() + _log_normal(z) - x.shape[1] * scale.log()


def eight_modes() -> Mixture:
    """The book's own world: eight modes on a circle, some four times as heavy.

    Radius 2, standard deviation 0.15, weights 1:2:3:4:4:3:2:1, in float64.
    """
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    weights = torch.tensor([1, 2, 3, 4, 4, 3, 2, 1], dtype=torch.float64)
    return Mixture(means, torch.full_like(weights, 0.15), weights / weights.sum())


def _mean(share: Float[Tensor, "b k"], each: Float[Tensor, "b k d"]) -> State:
    """The average over modes of one vector a mode."""
    return torch.einsum("bk,bkd->bd", share, each)


def _log_normal(z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    return -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)


def _normal(shape: tuple, like: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def _finite(name: str, value: Tensor, ndim: int) -> Tensor:
    if value.ndim != ndim or len(value) == 0:
        got = f"{name} of shape {tuple(value.shape)}"
        raise ValueError(f"got {got}, expected {ndim} axes, none of them empty")
    if not torch.isfinite(value).all():
        raise ValueError(f"got {name} with NaN or infinity, expected finite numbers")
    return value
