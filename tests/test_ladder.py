"""The ladder: its worlds, its laws of times, and what its methods cost."""

import inspect
import json

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Generator

from flowtext import ladder, nets, recipes
from flowtext.objectives import At
from flowtext.worlds import checkerboard, moons
from tools import tuning

METHODS = pytest.mark.parametrize("method", ladder.METHODS, ids=lambda m: m.__name__)


def nearest(x, world):
    """The distance of points from the nearest mode, in its own width."""
    return (torch.cdist(x.double(), world.means) / world.stds).amin(1)


@pytest.mark.parametrize(
    ("world", "draw"), [(ladder.two_moons(), moons), (ladder.board(), checkerboard)]
)
def test_the_other_worlds_cover_the_sets_they_are_named_after(world, draw):
    """Points of the set lie at modes, each mode holds its share, and none is apart."""
    x = draw(20_000, Generator().manual_seed(0))
    assert nearest(x, world).max() < 4
    home = torch.cdist(x.double(), world.means).argmin(1)
    share = torch.bincount(home, minlength=len(world.means)) / len(x)
    assert (share * len(world.means) - 1).abs().max() < 0.6
    assert torch.isclose(world.weights.sum(), torch.tensor(1.0).double())


def test_waves_are_images_with_the_spectrum_that_they_promise():
    """Pixels of one spread; the slowest waves are the strongest, and rows agree."""
    world = ladder.waves()
    x = world.sample(20_000, Generator().manual_seed(0))
    assert abs(x.std() - 0.5) < 0.01
    found = dctn(x.unflatten(1, (8, 8)).numpy(), axes=(1, 2), norm="ortho").std(0)
    wanted = 1 / (1 + np.hypot(*np.mgrid[:8, :8]))
    assert np.abs(found / found[0, 0] / wanted - 1).max() < 0.03


def test_pairs_are_in_order_and_lean_to_the_noise_as_asked():
    """The mean of u^p is 1/(p + 1); of two, the larger has the mean 2/(p + 2)."""
    s, t = ladder.pairs(0.3, 1.0)(40_000, Generator().manual_seed(0))
    assert (s <= t).all()
    apart = s < t
    assert abs(apart.float().mean() - 0.7) < 0.01
    assert abs(t[apart].mean() - 2 / 4) < 0.01
    assert abs(s[~apart].mean() - 1 / 3) < 0.01
    assert abs(ladder.starts(2.0)(40_000, Generator()).mean() - 1 / 4) < 0.01
    late = ladder.starts(-2.0)(40_000, Generator())
    assert abs(late.mean() - 3 / 4) < 0.01
    assert late.max() < 1


class Counted(torch.nn.Module):
    """An MLP that adds up its passes: 1 forward, 2 backward, 2 along a direction."""

    def __init__(self):
        super().__init__()
        self.net, self.passes = nets.MLP(2, width=8), 0

    def forward(self, x, s, t, y=None):
        tangent = torch._C._functorch.peek_interpreter_stack() is not None
        weights = self.net.first.weight.requires_grad
        graph = torch.is_grad_enabled() and (weights or x.requires_grad)
        backward = graph * (2 if weights else 1)  # to the state alone costs half
        self.passes += (3 if tangent else 1) * (1 + backward)
        return self.net(x, s, t, y)


@METHODS
def test_a_step_costs_the_passes_that_the_ladder_says(method):
    """Counted in the calls themselves, as a mean over a training."""
    net, teacher = Counted(), Counted().requires_grad_(False)
    made = method(teacher)
    x1 = torch.randn(64, 2, generator=Generator().manual_seed(1))
    times = [k / 20 for k in range(20)]
    for progress in times:
        at = At(progress, net.requires_grad_(True))
        made.objective(net, x1, at=at, generator=Generator().manual_seed(2))
    found = (net.passes + teacher.passes) / len(times)
    assert abs(found - made.passes) <= 0.5


@METHODS
def test_a_warm_method_starts_from_its_teacher(method):
    source, _ = recipes.released("eight-flow")
    recipe = recipes.recipe_of(f"eight-{method.__name__.replace('_', '-')}")
    first = next(recipes.start(recipe, 0, None)).net
    apart = first.net(0).first.weight - source.first.weight
    assert (apart.abs().max() < 0.1) == method(source).warm


@METHODS
def test_the_defaults_of_a_method_are_the_best_of_its_search(method):
    """Of eight settings two were tried for long; the better one is in the code."""
    runs = json.loads(tuning.FILE.read_text())
    runs = [run for run in runs if run["method"] == method.__name__]
    wanted = tuning.settings(method)
    chosen = [{key: run[key] for key in wanted[0]} for run in runs]
    after = [run["after"] for run in runs]
    assert after == [tuning.SHORT] * tuning.TRIES + [tuning.LONG] * tuning.FINALISTS
    assert chosen[: tuning.TRIES] == wanted
    best = sorted(runs[: tuning.TRIES], key=tuning.miss)[: tuning.FINALISTS]
    assert [{key: run[key] for key in wanted[0]} for run in best] == chosen[-2:]
    found = min(runs[tuning.TRIES :], key=tuning.miss)
    default = inspect.signature(method).parameters
    assert {key: default[key].default for key in wanted[0]}.items() <= found.items()


def test_a_search_gives_each_value_its_turn():
    """Eight settings of three rates: each is tried two or three times."""
    rates = [setting["lr"] for setting in tuning.settings(ladder.meanflow)]
    assert sorted(map(rates.count, tuning.CHOICES["lr"])) == [2, 3, 3]
