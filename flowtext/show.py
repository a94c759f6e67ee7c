"""The book's pictures: tensors in, axes out. Importing this sets the book's style."""

import base64
import hashlib
import html
import io
from collections.abc import Callable, Iterable, Sequence

import matplotlib.pyplot as plt
from IPython.display import HTML, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

# Okabe and Ito's colours: told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, YELLOW, BLACK, GREY = "#56B4E9", "#E69F00", "#000000", "#8A8A8A"
CYCLE = [BLUE, ORANGE, GREEN, PINK, SKY, YELLOW]

plt.rcParams.update(
    {
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "axes.prop_cycle": plt.cycler(color=CYCLE),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 13,
        "legend.frameon": False,
    }
)


def panels(rows: int = 1, columns: int = 1, height: float = 3.6, **options):
    """A figure of the book's width, readable on a phone, and its axes."""
    return plt.subplots(rows, columns, figsize=(5.6, height), **options)


def legend(ax: Axes, columns: int = 2) -> Axes:
    """A legend under the axes, where it hides nothing."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
    ax.legend(ncol=columns, fontsize="small", columnspacing=1, **place)
    return ax


def cloud(ax: Axes, x: Tensor, **style) -> Axes:
    """Points x of shape (b, 2) in the plane, at one scale on both axes."""
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"got points of shape {tuple(x.shape)}, expected (b, 2)")
    style = {"s": 5, "alpha": 0.5, "linewidths": 0, "color": BLUE} | style
    ax.scatter(*x.detach().cpu().T, **style)
    ax.set_aspect("equal")
    return ax


def threads(ax: Axes, x: Tensor, y: Tensor, **style) -> Axes:
    """One line a particle through its coordinates x and y, each (n + 1, b)."""
    style = {"lw": 1, "alpha": 0.7, "color": GREY} | style
    label = style.pop("label", None)
    lines = ax.plot(x.detach().cpu(), y.detach().cpu(), **style)
    lines[0].set_label(label)
    return ax


def arrows(ax: Axes, x: Tensor, v: Tensor, **style) -> Axes:
    """An arrow v at every point x, both (b, 2), drawn at the scale of the axes."""
    style = {"color": BLACK, "width": 0.006} | style
    where, what = x.detach().cpu().T, v.detach().cpu().T
    ax.quiver(*where, *what, angles="xy", scale_units="xy", scale=1, **style)
    return ax


def curve(ax: Axes, x: Sequence, y: Sequence, label: str, marker: str, **style) -> Axes:
    """A measured curve: a marker at every point, and a label for the legend."""
    ax.plot(x, y, marker=marker, label=label, **style)
    return ax


def images(ax: Axes, x: Tensor, columns: int = 8) -> Axes:
    """Images (b, c, h, w) in [-1, 1] in rows of `columns`, a pixel between them.

    In colour for c = 3; for c = 1 as dark ink (1) on white paper (-1). Raises
    ValueError for another shape, or fewer than one column.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3) or columns < 1:
        got = f"images of shape {tuple(x.shape)} in {columns} columns"
        raise ValueError(f"got {got}, expected (b, 1 or 3, h, w) in one or more")
    x = x.detach().cpu().float().clamp(-1, 1)
    x = (1 + x) / 2 if x.shape[1] == 3 else (1 - x) / 2
    b, c, h, w = x.shape
    rows = -(-b // columns)
    sheet = x.new_ones(rows * columns, c, h + 1, w + 1)
    sheet[:b, :, :h, :w] = x
    sheet = sheet.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * (h + 1), columns * (w + 1), c)[:-1, :-1]
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
    return ax


def table(header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Display rows as a table; numbers to two digits, the first column as names."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[_cell(value) for value in row] for row in rows]
    display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))


def picture(fig: Figure, alt: str) -> None:
    """Display a figure with alt text that says what is to be seen, and close it.

    Raises ValueError if the alt text is empty.
    """
    if not alt.strip():
        raise ValueError("got an empty alt text, expected what the figure shows")
    png = base64.b64encode(_png(fig, dpi=110)).decode()
    bundle = {"image/png": png, "text/plain": alt}
    display(bundle, metadata={"image/png": {"alt": alt}}, raw=True)


def frames(
    draw: Callable[[Axes, float], None],
    values: Sequence[float],
    label: str,
    alt: str,
    start: int = 0,
) -> None:
    """Display a slider over still pictures, drawn beforehand, one for each value.

    It is one piece of HTML: no kernel, no network; arrow keys move it. Picture number
    `start` stands first, and alone without script or on paper. Raises ValueError
    without values, or for a start that is none of them.
    """
    if not 0 <= start < len(values):
        got = f"{len(values)} values and start {start}"
        raise ValueError(f"got {got}, expected at least one frame, and one of them")
    stills = []
    for value in values:
        fig, ax = plt.subplots(figsize=(4.4, 4.4))
        draw(ax, value)
        stills.append(base64.b64encode(_png(fig, dpi=90)).decode())
    names = [f"{value:g}" for value in values]
    words = {"label": html.escape(label), "alt": html.escape(alt, quote=True)}
    page = FRAMES.format(
        id="f" + hashlib.sha256("".join(stills).encode()).hexdigest()[:8],
        first=stills[start],
        start=names[start],
        place=start,
        last=len(stills) - 1,
        stills=stills,
        names=names,
        **words,
    )
    display(HTML(page))


def _cell(value: object) -> str:
    if isinstance(value, Tensor):
        value = value.item()
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:.0f}"


def _png(fig: Figure, dpi: int) -> bytes:
    """The figure as a small PNG of 256 colours, opaque; the figure is closed."""
    raw, small = io.BytesIO(), io.BytesIO()
    fig.savefig(raw, dpi=dpi, facecolor="white")
    plt.close(fig)
    Image.open(raw).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return small.getvalue()


FRAMES = """<figure id="{id}" class="flowtext-frames">
<img alt="{alt}" src="data:image/png;base64,{first}" style="max-width:100%">
<figcaption style="display:flex;gap:.6em;align-items:center;max-width:26em">
<label for="{id}-range">{label}</label>
<input id="{id}-range" type="range" min="0" max="{last}" value="{place}" style="flex:1">
<output for="{id}-range" style="min-width:3em">{start}</output>
</figcaption>
<script>(() => {{
const figure = document.getElementById("{id}"), names = {names};
const stills = {stills};
const range = figure.querySelector("input"), words = figure.querySelector("output");
range.addEventListener("input", () => {{
  figure.querySelector("img").src = "data:image/png;base64," + stills[range.value];
  words.textContent = names[range.value];
  range.setAttribute("aria-valuetext", names[range.value]);
}});
}})();</script>
</figure>"""
