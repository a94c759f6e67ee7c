"""Every row of the table of other papers' conventions, checked on exact worlds."""

import math
import re

import torch
from conftest import GAUSSIANS, MIXTURES, points

from flowtext.paths import Path, cosine, linear, variance_preserving
from flowtext.solve import reference
from tools import book

WORLD = MIXTURES["mixture 3-d"]
GAUSSIAN = GAUSSIANS["gaussian 3-d"]


def cloud():
    return points(WORLD, torch.Generator().manual_seed(8))


def flow_matching():
    """Their conditional field, eq. 21, averaged over the posterior of x1."""
    least = 0.1
    path = Path(alpha=lambda t: t, sigma=lambda t: 1 - (1 - least) * t)
    x, t = cloud()
    data = WORLD.denoise(path)(x, t)
    theirs = (data - (1 - least) * x) / (1 - (1 - least) * t[:, None])
    return theirs - WORLD.velocity(path)(x, t)


def rectified_flow():
    """v = E[X1 - X0 | X_t], eq. 2: both posterior means from the denoiser."""
    x, t = cloud()
    data, now = WORLD.denoise(linear)(x, t), t[:, None]
    noise = (x - now * data) / (1 - now)
    return (data - noise) - WORLD.velocity(linear)(x, t)


def score_sde():
    """Drift of their ODE, eq. 13: f - g^2 score / 2, on their clock."""
    x, t = cloud()
    theirs = 1 - t
    beta = (0.1 + theirs * 19.9)[:, None]
    drift = -beta / 2 * x - beta / 2 * WORLD.score(variance_preserving)(x, t)
    return drift + WORLD.velocity(variance_preserving)(x, t)


def edm():
    """Their score, eq. 3: (D - x) / sigma^2 is grad log p(x; sigma), by autograd."""
    x, t = cloud()
    sigma = (1 - t) / t
    theirs = (x / t[:, None]).requires_grad_()
    # A state x / alpha of the linear path has the density of data + sigma noise.
    log_p = WORLD.log_density(linear)(theirs * t[:, None], t).sum()
    (score,) = torch.autograd.grad(log_p, theirs)
    data = WORLD.denoise(linear)(x, t)
    return (data - theirs.detach()) / sigma[:, None] ** 2 - score


def consistency():
    """f is constant along their ODE dx/dt = (x - D)/t, eq. 1, and the identity at 0."""
    x, t = cloud()
    world, ratio = GAUSSIAN, (1 - t) / t
    jump, one = world.flow_map(linear), torch.ones_like(t)

    def f(theirs, time):
        alpha = 1 / (1 + time)
        return jump(theirs * alpha[:, None], alpha, one)

    theirs = x / t[:, None]
    data = world.denoise(linear)(x, t)
    motion = (theirs - data) / ratio[:, None]
    along = torch.func.jvp(f, (theirs, ratio), (motion, torch.ones_like(ratio)))[1]
    return torch.cat([along, f(theirs, 0 * ratio) - theirs])


def trig_flow():
    """dx/dt = F on their clock, and their f for a diffusion model is the denoiser."""
    x, t = cloud()
    angle = (math.pi / 2 * (1 - t))[:, None]
    F = -2 / math.pi * WORLD.velocity(cosine)(x, t)
    return angle.cos() * x - angle.sin() * F - WORLD.denoise(cosine)(x, t)


def mean_flow():
    """Their identity u = v - (t - r) du/dt, eq. 6, in their own symbols."""
    x, s = cloud()
    end = (s + 0.3).clamp(max=1)
    jump, velocity = GAUSSIAN.flow_map(linear), GAUSSIAN.velocity(linear)

    def u(z, r, t):
        ours = (jump(z, 1 - t, 1 - r) - z) / (t - r)[:, None]
        return -ours

    t, r = 1 - s, 1 - end
    v = -velocity(x, 1 - t)
    tangent = (v, torch.zeros_like(r), torch.ones_like(t))
    average, change = torch.func.jvp(u, (x, r, t), tangent)
    return average - (v - (t - r)[:, None] * change)


ROWS = {
    "Flow matching": flow_matching,
    "Rectified flow": rectified_flow,
    "Score SDE": score_sde,
    "EDM": edm,
    "Consistency models": consistency,
    "TrigFlow": trig_flow,
    "MeanFlow": mean_flow,
}


def test_every_row_of_the_table_has_its_check():
    page = (book.BOOK / "notation.md").read_text()
    table = page.split("## Other papers' conventions")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^,|]+), \[", table, re.M)
    assert rows == [*ROWS]


def test_every_row_holds():
    for name, residual in ROWS.items():
        assert residual().abs().max() < 1e-10, name


def test_trig_flow_runs_on_its_own_clock():
    """F is the derivative of the state in the angle, found by walking a little."""
    x, t = cloud()
    h = 1e-4
    v = WORLD.velocity(cosine)
    ends = [reference(v, x, t, t - 2 / math.pi * sign * h) for sign in (1, -1)]
    motion = (ends[0] - ends[1]) / (2 * h)
    assert (motion + 2 / math.pi * v(x, t)).abs().max() < 1e-6


def test_their_sign_of_mean_flow_is_wrong_here():
    """The commonest mistake: the paper's minus with our clock."""
    x, s = cloud()
    t = (s + 0.3).clamp(max=1)
    jump, v = GAUSSIAN.flow_map(linear), GAUSSIAN.velocity(linear)

    def u(x, s):
        return (jump(x, s, t) - x) / (t - s)[:, None]

    average, change = torch.func.jvp(u, (x, s), (v(x, s), torch.ones_like(s)))
    ours = average - (v(x, s) + (t - s)[:, None] * change)
    theirs = average - (v(x, s) - (t - s)[:, None] * change)
    assert ours.abs().max() < 1e-12
    assert theirs.abs().max() > 0.1
