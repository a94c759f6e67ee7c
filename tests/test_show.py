import io
import re
from base64 import b64decode

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import refuses
from PIL import Image

from flowtext import show


def figure():
    fig, ax = show.panels()
    show.cloud(ax, torch.randn(10, 2), label="points")
    show.threads(ax, torch.rand(5, 3), torch.rand(5, 3), label="tracks")
    show.arrows(ax, torch.rand(3, 2), torch.rand(3, 2))
    show.curve(ax, [1, 2], [3, 4], "curve", "o")
    show.legend(ax)
    return fig


def test_a_picture_carries_its_alt_text_and_an_opaque_background(shown):
    show.picture(figure(), "Ten points, three tracks, three arrows and a curve.")
    (output,) = shown
    assert output["metadata"]["image/png"]["alt"].startswith("Ten points")
    assert output["data"]["text/plain"].startswith("Ten points")
    image = Image.open(io.BytesIO(b64decode(output["data"]["image/png"])))
    corner = np.asarray(image.convert("RGBA"))[0, 0]
    assert corner.tolist() == [255, 255, 255, 255]


def test_a_picture_without_alt_text_is_refused():
    with pytest.raises(ValueError, match="got an empty alt text"):
        show.picture(figure(), " ")


def test_frames_are_one_piece_of_html_that_needs_no_network(shown):
    def draw(ax, value):
        ax.plot([0, value])

    show.frames(draw, [0.0, 0.5, 1.0], label="time t", alt='A "line" that rises.')
    page = shown[0]["data"]["text/html"]
    assert "http" not in page
    assert 'alt="A &quot;line&quot; that rises."' in page
    assert page.count("<script>") == 1
    assert re.search(r'type="range" min="0" max="2" value="0"', page)
    label = re.search(r'<label for="([^"]+)">time t</label>', page)[1]
    assert f'<input id="{label}"' in page
    stills = re.search(r"stills = (\[.*?\]);", page, re.S)[1]
    assert stills.count("'") == 6
    assert 'src="data:image/png;base64,' in page


def test_frames_need_something_to_draw():
    for values, start in (([], 0), ([1.0, 2.0], 2), ([1.0, 2.0], -1)):
        with refuses(f"got {len(values)} values and start {start}, expected"):
            show.frames(lambda ax, value: None, values, "t", "nothing", start)


def test_frames_can_start_with_any_of_them(shown):
    def draw(ax, value):
        ax.plot([0, value])

    show.frames(draw, [0.0, 0.5, 1.0], "time t", "A line that rises.", start=1)
    page = shown[0]["data"]["text/html"]
    assert re.search(r'type="range" min="0" max="2" value="1"', page)
    assert re.search(r"<output[^>]*>0.5</output>", page)
    stills = re.search(r"stills = \['(.*?)', '(.*?)', '(.*?)'\];", page, re.S)
    first = re.search(r'src="data:image/png;base64,([^"]*)"', page)
    assert first[1] == stills[2]


def test_a_table_rounds_numbers_and_keeps_names(shown):
    rows = [("euler", 0.012345), ("calls", 16), ("late", torch.tensor(0.5))]
    show.table(("name", "error"), [*rows, ("hours", 99.6), ("days", 1234.5)])
    text = shown[0]["data"]["text/markdown"]
    assert text.splitlines() == [
        "| name | error |",
        "| --- | ---: |",
        "| euler | 0.012 |",
        "| calls | 16 |",
        "| late | 0.5 |",
        "| hours | 100 |",
        "| days | 1234 |",
    ]


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_line_colours_stand_out_on_white():
    """Contrast of at least 3 to 1, as the accessibility guidelines ask of graphics."""
    for colour in (show.BLUE, show.ORANGE, show.GREEN, show.BLACK, show.GREY):
        assert 1.05 / (luminance(colour) + 0.05) >= 3, colour


def sheet(x, **options):
    """The picture that `images` draws, and its scale."""
    _, ax = show.panels()
    assert show.images(ax, x, **options) is ax
    (image,) = ax.get_images()
    assert not ax.axison
    return np.asarray(image.get_array()), image.get_clim()


def test_images_stand_in_rows_with_a_pixel_between():
    x = torch.rand(5, 3, 2, 4) * 1.8 - 1
    picture, _ = sheet(x, columns=3)
    assert picture.shape == (2 * 3 - 1, 3 * 5 - 1, 3)
    for i in range(5):
        row, column = 3 * (i // 3), 5 * (i % 3)
        found = picture[row : row + 2, column : column + 4]
        assert np.allclose(found, (x[i].permute(1, 2, 0) + 1) / 2)
    assert (picture[2] == 1).all(), "white between the rows"
    assert (picture[:, [4, 9]] == 1).all(), "white between the columns"
    assert (picture[3:, 10:] == 1).all(), "white where no image is left"


def test_gray_images_are_ink_on_paper_on_one_scale_for_all():
    x = torch.tensor([-1.0, -0.5, 0.0, 1.0]).reshape(4, 1, 1, 1)
    picture, limits = sheet(x, columns=4)
    assert picture.ravel()[::2].tolist() == [1, 0.75, 0.5, 0]
    assert limits == (0, 1)
    assert sheet(x[1:3])[1] == (0, 1), "also where no image is black or white"


def test_colours_beyond_the_range_are_cut_without_a_complaint(caplog):
    picture, _ = sheet(torch.tensor([-3.0, 0, 3]).reshape(1, 3, 1, 1), columns=1)
    assert picture.ravel().tolist() == [0, 0.5, 1]
    assert not caplog.records


def test_images_of_a_graph_in_half_precision_can_be_drawn():
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float16, requires_grad=True)
    assert (sheet(x)[0][:4, :4] == 0.5).all()


@pytest.mark.usefixtures("no_type_checker")
def test_what_cannot_be_drawn_is_refused():
    _, ax = show.panels()
    with refuses("got points of shape (4, 3), expected (b, 2)"):
        show.cloud(ax, torch.zeros(4, 3))
    for shape, columns in (((4, 64), 8), ((4, 2, 8, 8), 8), ((4, 1, 8, 8), 0)):
        with refuses(f"got images of shape {shape} in {columns} columns, expected (b,"):
            show.images(ax, torch.zeros(shape), columns)
    plt.close("all")
