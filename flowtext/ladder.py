"""The methods of part three side by side: one net, one budget, one search each.

A function `method(teacher)` makes a `Method`; its defaults are the best of the eight
settings that `tools/tuning.py` tried on the eight modes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import dct
from torch import Generator, Tensor

from flowtext import consistency as to_end
from flowtext import maps
from flowtext.maps import PairLaw, ordered
from flowtext.nets import Net
from flowtext.objectives import TimeLaw, pseudo_huber, uniform, within
from flowtext.tensors import Time
from flowtext.worlds import Mixture, RotatedProduct, eight_modes


@dataclass(frozen=True)
class Method:
    """An objective, its rate, and its passes of the network in a step, as in a Recipe.

    A `warm` one starts from the weights of the teacher.
    """

    about: str
    objective: Callable
    lr: float
    passes: int
    warm: bool


def two_moons() -> Mixture:
    """Two half moons that reach into each other, as 32 narrow modes, in float64."""
    angle = torch.linspace(0, math.pi, 16, dtype=torch.float64)
    arc = 1.5 * torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    return _even(torch.cat([arc, -arc]), 0.15)


def board() -> Mixture:
    """The black squares of a 4 x 4 board, each as 4 x 4 modes, in float64."""
    step = (torch.arange(16, dtype=torch.float64) - 7.5) / 4
    x, y = torch.meshgrid(step, step, indexing="ij")
    black = (x.floor() + y.floor()) % 2 == 0
    return _even(torch.stack([x[black], y[black]], 1), 0.1)


def waves() -> RotatedProduct:
    """Images of 8 x 8 pixels, as rows of 64, whose flow map is known.

    The coordinates are amplitudes of waves (a discrete cosine transform), each a
    mixture of two modes, which shrink with the frequency as in photographs. In float64,
    pixels have the standard deviation 1/2.
    """
    basis = torch.from_numpy(dct(np.eye(8), norm="ortho", axis=0)).T
    across = torch.arange(8, dtype=torch.float64)
    size = 1 / (1 + torch.hypot(across[:, None], across).flatten()[:, None])
    size = size / (2 * size.square().mean().sqrt())
    sides = torch.tensor([-0.9, 0.9], dtype=torch.float64)
    stds = (1 - sides**2).sqrt()
    turn = torch.kron(basis, basis)
    return RotatedProduct(turn, size * sides, size * stds, 0 * size * sides + 0.5)


def pairs(diagonal: float, lean: float) -> PairLaw:
    """Pairs s <= t of the times below, a share `diagonal` of them with s = t."""
    return ordered(starts(lean), diagonal)


def starts(lean: float) -> TimeLaw:
    """Times u^(1 + lean) of a uniform u, which lean towards the noise.

    An error made early is what the flow amplifies most. Below 0 the mirror image, which
    leans towards the data (up to a thousandth of it), where a chain of targets begins.
    """

    def draw(n: int, generator: Generator | None = None) -> Time:
        early = uniform(n, generator) ** (1 + abs(lean))
        return early if lean >= 0 else 1 - early.clamp(min=1e-3)

    return draw


def lagrangian(teacher: Net, lr=2e-3, diagonal=0.0, lean=1.0) -> Method:
    """The end of a jump moves with the teacher's velocity."""
    law = maps.LagrangianMap(teacher, pairs(diagonal, lean))
    return Method("Lagrangian map, taught", law, lr, 10, warm=True)


def eulerian(teacher: Net, lr=8e-3, diagonal=0.0, lean=-1.0) -> Method:
    """The landing stays as the start moves with the teacher's velocity."""
    law = maps.EulerianMap(teacher, pairs(diagonal, lean))
    return Method("Eulerian map, taught", law, lr, 10, warm=True)


def aligned(teacher: Net, lr=4e-3, diagonal=0.25, lean=-1.0) -> Method:
    """The Eulerian map with its target stopped: MeanFlow with a teacher."""
    law = maps.MeanFlow(teacher, pairs(diagonal, lean))
    return Method("Eulerian map, target stopped, taught", law, lr, 7, warm=True)


def semigroup(teacher: Net, lr=4e-3, diagonal=0.5, lean=1.0) -> Method:
    """A jump lands where two shorter ones do; the teacher knows the shortest."""
    law = maps.SemigroupMap(teacher, pairs(diagonal, lean))
    return Method("semigroup map, taught", law, lr, 6, warm=True)


def distilled(teacher: Net, lr=4e-3, lean=-1.0, steps=8) -> Method:
    """Consistency distillation."""
    gap = to_end.even(steps)
    law = to_end.ConsistencyDistillation(teacher, gap, times=starts(lean))
    return Method("consistency distillation", law, lr, 6, warm=True)


def continuous(teacher: Net, lr=2e-3, lean=-2.0, damp=0.1) -> Method:
    """Consistency in continuous time, with the teacher's velocity."""
    law = to_end.ContinuousConsistency(teacher, starts(lean), damp=damp)
    return Method("continuous consistency, taught", law, lr, 7, warm=True)


def trajectory(teacher: Net, lr=8e-3, diagonal=0.25, lean=-1.0, reach=0.2) -> Method:
    """Jumps along the teacher's path, compared at the data."""
    times, split = pairs(diagonal, lean), within(0.0, reach)
    law = to_end.Trajectory(teacher, times=times, split=split)
    return Method("consistency trajectory, taught", law, lr, 9, warm=True)


def self_lagrangian(teacher: Net, lr=8e-3, diagonal=0.75, lean=1.0) -> Method:
    """The end of a jump moves with the net's own velocity."""
    law = maps.LagrangianMap(None, pairs(diagonal, lean))
    return Method("Lagrangian map, self-taught", law, lr, 10, warm=False)


def self_eulerian(teacher: Net, lr=4e-3, diagonal=0.5, lean=0.0) -> Method:
    """The landing stays as the start moves with the net's own velocity."""
    law = maps.EulerianMap(None, pairs(diagonal, lean))
    return Method("Eulerian map, self-taught", law, lr, 10, warm=False)


def self_semigroup(teacher: Net, lr=4e-3, diagonal=0.5, lean=0.0) -> Method:
    """A jump lands where two shorter ones do; pairs teach the shortest."""
    law = maps.SemigroupMap(None, pairs(diagonal, lean))
    return Method("semigroup map, self-taught", law, lr, 5, warm=False)


def shortcut(teacher: Net, lr=4e-3, levels=6, smallest=0.5) -> Method:
    """Steps double, from the smallest, which pairs teach."""
    law = maps.Shortcut(levels, smallest)
    return Method("shortcut", law, lr, 5, warm=False)


def meanflow(teacher: Net, lr=4e-3, diagonal=0.5, lean=-1.0) -> Method:
    """MeanFlow from scratch."""
    law = maps.MeanFlow(None, pairs(diagonal, lean))
    return Method("MeanFlow", law, lr, 6, warm=False)


def improved_meanflow(teacher: Net, lr=4e-3, diagonal=0.75, lean=0.0) -> Method:
    """MeanFlow along the net's own velocity."""
    law = maps.ImprovedMeanFlow(pairs(diagonal, lean))
    return Method("improved MeanFlow", law, lr, 7, warm=False)


def alphaflow(teacher: Net, lr=4e-3, diagonal=0.5, lean=-1.0) -> Method:
    """From straight steps to MeanFlow; dearer once alpha is 0."""
    law = maps.AlphaFlow(times=pairs(diagonal, lean))
    return Method("AlphaFlow", law, lr, 5, warm=False)


def even_gap(teacher: Net, lr=2e-3, lean=-1.0, n=256) -> Method:
    """Consistency training at a gap that stays."""
    law = to_end.ConsistencyTraining(to_end.even(n), starts(lean))
    return Method("consistency training, even gap", law, lr, 4, warm=False)


def easy(teacher: Net, lr=2e-3, lean=-1.0, stages=8) -> Method:
    """Consistency training at a gap that shrinks, from the teacher's weights."""
    law = to_end.ConsistencyTraining(to_end.shrinking(stages), starts(lean))
    return Method("easy consistency tuning", law, lr, 4, warm=True)


def easy_huber(teacher: Net, lr=8e-3, lean=-2.0, stages=8, c=0.1) -> Method:
    """The same with a measure that leans to a mode."""
    gap, measure = to_end.shrinking(stages), pseudo_huber(c)
    law = to_end.ConsistencyTraining(gap, starts(lean), measure)
    return Method("easy consistency tuning, pseudo-Huber", law, lr, 4, warm=True)


def self_continuous(teacher: Net, lr=2e-3, lean=1.0, damp=0.3) -> Method:
    """Consistency in continuous time, with the velocity of pairs."""
    law = to_end.ContinuousConsistency(None, starts(lean), damp=damp)
    return Method("continuous consistency, from pairs", law, lr, 6, warm=True)


def moments(teacher: Net, lr=2e-3, particles=8, gap=0.3, lean=0.0) -> Method:
    """Inductive moment matching."""
    law = to_end.MomentMatching(particles, gap, times=pairs(0.0, lean))
    return Method("moment matching", law, lr, 4, warm=False)


WORLDS = {"eight": eight_modes, "moons": two_moons, "board": board}
METHODS = (
    lagrangian,
    eulerian,
    aligned,
    semigroup,
    distilled,
    continuous,
    trajectory,
    self_lagrangian,
    self_eulerian,
    self_semigroup,
    shortcut,
    meanflow,
    improved_meanflow,
    alphaflow,
    even_gap,
    easy,
    easy_huber,
    self_continuous,
    moments,
)


def _even(means: Tensor, std: float) -> Mixture:
    """A mixture of equal weights and widths."""
    ones = torch.ones_like(means[:, 0])
    return Mixture(means, std * ones, ones / len(ones))
