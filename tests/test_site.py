"""The finished site in a browser that can reach nothing but the site."""

import functools
import http.server
import io
import os
import shutil
import subprocess
import sys
import threading

import nbformat
import numpy as np
import pytest
import yaml
from conftest import PIXEL
from PIL import Image
from playwright.sync_api import sync_playwright

from tools import book, site

pytestmark = pytest.mark.site
BUILT = book.ROOT / "_build" / "html"
THEIRS = "Got invalid theme mode"  # the theme's own message on a first visit
PAGES = book.names()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def serve(folder):
    handler = functools.partial(Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


@pytest.fixture(scope="session")
def base():
    assert BUILT.exists(), "run make book first"
    return serve(BUILT)


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if path is None:
        assert "CI" not in os.environ, "Chromium is needed: apt-get install chromium"
        pytest.skip("not run: Chromium is not installed")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=quiet)


class Visit:
    """A page with outside requests blocked, and a record of what went wrong."""

    def __init__(self, browser, base, **options):
        self.context = browser.new_context(**options)
        self.page, self.base = self.context.new_page(), base
        self.outside, self.errors = [], []
        self.page.route("**/*", self.gate)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self.listen)

    def gate(self, route):
        if route.request.url.startswith((self.base, "data:", "blob:")):
            return route.continue_()
        self.outside.append(route.request.url)
        return route.abort()

    def listen(self, message):
        if message.type == "error" and THEIRS not in message.text:
            self.errors.append(message.text)

    def open(self, name):
        self.page.goto(f"{self.base}{name}.html")
        self.page.evaluate("window.MathJax?.startup?.promise")
        return self.page


@pytest.fixture
def visit(browser, base):
    visits = []

    def start(**options):
        visits.append(Visit(browser, base, **options))
        return visits[-1]

    yield start
    for each in visits:
        each.context.close()


COUNT = "selector => document.querySelectorAll(selector).length"
EMPTY = (
    "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
)
WIDTH = "document.documentElement.scrollWidth"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_without_the_outside_world(visit, name):
    there = visit()
    page = there.open(name)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_load_state("networkidle")
    assert there.outside == []
    assert there.errors == []
    assert page.evaluate(EMPTY) == []
    assert page.evaluate(COUNT, "mjx-merror") == 0
    maths = page.evaluate(COUNT, ".math")
    assert page.evaluate(COUNT, ".math mjx-container") >= maths
    if name.startswith("solve/"):
        assert maths > 0


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(visit, name):
    page = visit(viewport={"width": 390, "height": 844}).open(name)
    assert page.evaluate(WIDTH) <= 390


def test_equations_fit_a_phone(visit):
    """A displayed equation is read at a glance: its box holds it from end to end."""
    for path in book.chapters():
        name = path.relative_to(book.BOOK).with_suffix("").as_posix()
        page = visit(viewport={"width": 390, "height": 844}).open(name)
        wide = "[...document.querySelectorAll('div.math')]"
        wide += ".filter(m => m.scrollWidth > m.clientWidth + 1).map(m => m.innerText)"
        assert page.evaluate(wide) == [], name
        cut = "[...document.querySelectorAll('div.math')].filter(m => "
        cut += "m.querySelector('mjx-container').getBoundingClientRect().left < "
        cut += "m.getBoundingClientRect().left - 1).map(m => m.innerText)"
        assert page.evaluate(cut) == [], name


def test_frames_move_by_keyboard(visit):
    page = visit().open("solve/sampling-is-an-integral")
    figure = page.locator(".flowtext-frames").first
    still = figure.locator("img")
    first = still.get_attribute("src")
    assert len(still.get_attribute("alt")) > 20
    slider = page.get_by_label("time t")
    slider.focus()
    page.keyboard.press("ArrowRight")
    second = still.get_attribute("src")
    assert second != first
    words = figure.locator("output")
    assert words.inner_text() == slider.get_attribute("aria-valuetext")
    page.keyboard.press("End")
    assert words.inner_text() == "1"
    page.keyboard.press("Home")
    assert still.get_attribute("src") == first


def test_frames_show_their_first_picture_without_script_and_on_paper(visit):
    page = visit(java_script_enabled=False).open("solve/sampling-is-an-integral")
    assert page.locator(".flowtext-frames img").first.is_visible()
    page = visit().open("solve/sampling-is-an-integral")
    page.emulate_media(media="print")
    assert page.locator(".flowtext-frames img").first.is_visible()


def test_search_finds_a_chapter(visit):
    there = visit()
    there.page.goto(f"{there.base}search.html?q=odometer")
    hit = there.page.locator("#search-results a", has_text="Flows by hand")
    hit.first.wait_for(timeout=10_000)
    assert there.errors == []


def test_figures_stay_readable_in_the_dark(visit):
    page = visit(color_scheme="dark").open("solve/flows-by-hand")
    figure = page.locator("article img").first
    figure.scroll_into_view_if_needed()
    pixels = np.asarray(Image.open(io.BytesIO(figure.screenshot())).convert("L"))
    paper, ink = np.percentile(pixels, 95), pixels.min()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(c) for c in background[4:-1].split(",")) < 80, "not a dark page"
    assert paper > 120, "the figure has lost its light background"
    assert paper - ink > 100, "ink and paper are too close"


@pytest.mark.parametrize("path", book.chapters(), ids=lambda path: path.stem)
def test_launch_buttons_open_this_chapter_of_this_branch(visit, path):
    name = path.relative_to(book.BOOK).with_suffix("").as_posix()
    page = visit().open(name)
    facts = book.config()["repository"]
    slug = facts["url"].removeprefix("https://github.com/")
    file = path.relative_to(book.ROOT).as_posix()
    wanted = f"github/{slug}/blob/{facts['branch']}/{file}"
    links = page.eval_on_selector_all("a", "links => links.map(link => link.href)")
    assert f"https://colab.research.google.com/{wanted}" in links
    assert facts["url"] in links


BAD_CELLS = """# A page that a green build lets through

$$\\begin{aligned} a &= b \\\\ c &= d \\tag{1} \\end{aligned}$$

A price of 5\\$ is raw."""


def test_a_maths_error_on_a_built_page_is_caught(visit, tmp_path, browser):
    """A small book with the trap that costs an error box and no warning."""
    png = nbformat.v4.new_output("display_data", data={"image/png": PIXEL})
    cells = [
        nbformat.v4.new_markdown_cell(BAD_CELLS),
        nbformat.v4.new_code_cell("figure", outputs=[png]),
    ]
    facts = {"language_info": {"name": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=facts)
    source = tmp_path / "bad"
    source.mkdir()
    shutil.copytree(book.BOOK / "_ext", source / "_ext")
    nbformat.write(notebook, source / "index.ipynb")
    (source / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    shutil.copy(book.BOOK / "references.bib", source)
    config = book.config()
    config["sphinx"]["local_extensions"] = {"book_output": str(source / "_ext")}
    config["sphinx"]["config"].pop("html_static_path")
    config["html"].pop("favicon")
    (source / "_config.yml").write_text(yaml.safe_dump(config))
    tool = [str(sys.executable).removesuffix("python") + "jupyter-book", "build"]
    run = subprocess.run([*tool, source, "-W", "-n"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr  # a green build
    html = source / "_build" / "html"
    found = "\n".join(site.problems(html, ["index"]))
    assert "an image without alt text" in found
    assert "raw maths" in found
    there = Visit(browser, serve(html))
    page = there.open("index")
    page.wait_for_selector("mjx-container")
    assert page.evaluate(COUNT, "mjx-merror") == 1
    there.context.close()
