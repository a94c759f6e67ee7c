"""The picture of the front page, from the exact worlds.

python -m tools.cover
"""

import torch

from flowtext import show
from flowtext.paths import linear
from flowtext.solve import euler, grid, rk4, trajectory
from flowtext.worlds import Mixture
from tools import book

WORLD = Mixture(
    torch.tensor([[-2.0], [2.0]]).double(),
    torch.tensor([0.3, 0.3]).double(),
    torch.tensor([0.5, 0.5]).double(),
)
STARTS = torch.linspace(-2, 2, 9).double()[:, None]


def background(ax) -> None:
    """The crowd in time, as a grey density, and nine tracks through it."""
    t = torch.linspace(0, 1, 200).double()
    x = torch.linspace(-3.2, 3.2, 200).double()
    places, moments = x.repeat_interleave(200)[:, None], t.repeat(200)
    density = WORLD.log_density(linear)(places, moments).exp().reshape(200, 200)
    shade = density.sqrt().clamp(max=0.8)
    box = (0, 1, -3.2, 3.2)
    ax.imshow(shade, origin="lower", extent=box, aspect="auto", cmap="Greys", vmax=1.4)
    tracks = torch.stack(list(trajectory(v, STARTS, grid(200), rk4)))[..., 0]
    show.threads(ax, grid(200)[:, None].expand(-1, 9), tracks, lw=0.8)
    ax.set(xticks=[0, 1], xticklabels=["noise", "data"], yticks=[], xlim=(-0.05, 1.05))
    ax.tick_params(labelsize=9)
    ax.spines[:].set_visible(False)


v = WORLD.velocity(linear)


def main() -> None:
    fig, axes = show.panels(1, 3, height=2.4)
    start = STARTS[[6]]
    many = torch.stack(list(trajectory(v, start, grid(12), euler)))[:, 0]
    walked = torch.cat([grid(12)[:, None], many], 1)
    true = torch.stack(list(trajectory(v, start, grid(200), rk4)))[:, 0]
    ends = torch.cat([grid(200)[[0, -1], None], true[[0, -1]]], 1)
    titles = "solve: many calls", "learn the velocity", "learn the jump: one"
    for ax, title in zip(axes, titles, strict=True):
        background(ax)
        ax.set_title(title, fontsize=9)
    axes[0].plot(*walked.T, "o-", color=show.ORANGE, ms=4, lw=1.5)
    t = torch.linspace(0.04, 0.9, 8).double().repeat_interleave(8)
    x = torch.linspace(-2.6, 2.6, 8).double().repeat(8)[:, None]
    rate = v(x, t)
    arrow = torch.cat([torch.ones_like(rate), rate], 1) * 0.07
    show.arrows(axes[1], torch.cat([t[:, None], x], 1), arrow, color=show.BLUE)
    style = {"arrowstyle": "-|>", "color": show.GREEN, "lw": 2.5}
    style |= {"connectionstyle": "arc3,rad=-0.25", "shrinkA": 0, "shrinkB": 0}
    axes[2].annotate("", ends[1], ends[0], arrowprops=style)
    axes[2].plot(*ends.T, "D", color=show.GREEN, ms=6)
    fig.savefig(book.BOOK / "_static" / "cover.png", dpi=180)


if __name__ == "__main__":
    main()
