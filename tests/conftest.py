"""Fixtures: one thread, fixed noise, and the exact worlds every law is tried on."""

import re

import jaxtyping
import pytest
import torch
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from flowtext.paths import cosine, linear, variance_preserving
from flowtext.worlds import Gaussian, Mixture, RotatedProduct, eight_modes

torch.set_num_threads(1)

# A picture of one point, for notebooks and pages that are bad on purpose.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGA"
    "hKmMIQAAAABJRU5ErkJggg=="
)


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


GAUSSIANS = {
    "gaussian 1-d": Gaussian(double(1.0), double([0.25])),
    "gaussian 3-d": Gaussian(
        double(0.5, -1, 2), double([1.0, 0.4, 0.1], [0.4, 0.6, 0], [0.1, 0, 2])
    ),
}
MIXTURES = {
    "mixture 1-d": Mixture(double([-2.0], [1.5]), double(0.3, 0.5), double(0.4, 0.6)),
    "mixture 2-d": eight_modes(),
    "mixture 3-d": Mixture(
        double([0.0, 1, 2], [2, -1, 0], [-1, 0, -1]),
        double(0.4, 0.7, 1.1),
        double(0.5, 0.3, 0.2),
    ),
}
TURN = torch.linalg.qr(
    torch.randn(3, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
).Q
PRODUCTS = {
    "product 3-d": RotatedProduct(
        TURN,
        double([-1.5, 1.0], [0, 2], [-1, 0.5]),
        double([0.3, 0.4], [0.5, 0.2], [0.7, 0.9]),
        double([0.4, 0.6], [0.5, 0.5], [0.8, 0.2]),
    )
}
PATHS = {"linear": linear, "cosine": cosine, "variance preserving": variance_preserving}


def named(table: dict):
    return pytest.fixture(params=table.values(), ids=table.keys())


@named(PATHS)
def path(request):
    return request.param


@named(GAUSSIANS | MIXTURES | PRODUCTS)
def world(request):
    return request.param


@named(GAUSSIANS | PRODUCTS)
def mapped(request):
    """A world whose flow map is known."""
    return request.param


def whole(n):
    """The times of a whole trip of n samples."""
    return torch.zeros(n).double(), torch.ones(n).double()


@pytest.fixture
def no_type_checker():
    """As a reader has it: nothing is checked but by the package itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def refuses(message):
    return pytest.raises(ValueError, match=re.escape(message))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def cloud(world, generator):
    """Sixty-four points and times in the bulk: (x, t)."""
    return points(world, generator)


def points(world, generator, n=64):
    x1 = world.sample(n, generator)
    x0 = torch.randn(x1.shape, generator=generator, dtype=x1.dtype)
    t = 0.05 + 0.9 * torch.rand(n, generator=generator, dtype=x1.dtype)
    return linear.at(x0, x1, t).x, t


@pytest.fixture
def shown():
    """What `display` sends to a notebook."""
    shell = InteractiveShell.instance()
    shell.display_pub, before = CapturingDisplayPublisher(), shell.display_pub
    yield shell.display_pub.outputs
    shell.display_pub = before
    InteractiveShell.clear_instance()
