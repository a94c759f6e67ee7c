"""Each checker catches the bad notebook, claim, stamp or page that it is there for."""

import copy
import json
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import PIXEL

from tools import book, dialect, execute, live, site, solutions


def markdown(text):
    return lambda nb: nb.cells.insert(2, nbformat.v4.new_markdown_cell(text))


def code(source, tags=(), **output):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
    if output:
        cell.outputs = [nbformat.v4.new_output(**output)]
    return lambda nb: nb.cells.insert(2, cell)


def image(**metadata):
    return code(
        "fig", output_type="display_data", data={"image/png": PIXEL}, metadata=metadata
    )


def page(html):
    return code("HTML()", output_type="display_data", data={"text/html": html})


BAD = {
    "a stored error": (
        code("1 / 0", output_type="error", ename="E", evalue="bad", traceback=[]),
        "a stored error, E: bad",
    ),
    "a warning": (
        code("f()", output_type="stream", name="stderr", text="100%|####"),
        "a stored warning or progress bar",
    ),
    "a skip comment": (code("# NBVAL_SKIP\nf()"), "a marker that skips"),
    "an ignored output": (code("# NBVAL_IGNORE_OUTPUT"), "a marker that skips"),
    "a skip tag": (code("f()", ["nbval-skip"]), "a marker that skips"),
    "an excused error": (code("f()", ["raises-exception"]), "a marker that skips"),
    "no alt text": (image(), "an image without alt text"),
    "alt that says nothing": (
        image(**{"image/png": {"alt": "figure"}}),
        "an image without alt text",
    ),
    "no alt text in HTML": (
        page('<img src="data:,">'),
        "an image without alt text in HTML",
    ),
    "a script from elsewhere": (
        page('<script src="https://cdn.example.org/a.js"></script>'),
        "an outside request in HTML output",
    ),
    "a directive": (markdown("```{note}\nhello\n```"), "a MyST directive"),
    "a colon fence": (markdown(":::{tip}\nhello\n:::"), "a MyST directive"),
    "a role": (markdown("see {cite}`ho2020`"), "a MyST role"),
    "a target": (markdown("(here)=\n## Here"), "a MyST target"),
    "a label": (markdown("$$x$$ (eq:x)"), "a labelled equation"),
    "an outside image": (
        markdown("![a cat](https://example.org/cat.png)"),
        "an outside image",
    ),
    "a local image": (markdown("![a cat](cat.png)"), "an outside image"),
    "an image tag": (markdown('<img src="http://x.org/a.png">'), "an outside image"),
    "a double backslash": (markdown(r"$$a \\ b \tag{1}$$"), "a double backslash"),
    "maths over lines": (markdown("$$\na\n\nb\n$$"), "maths over several lines"),
    "a bar in a table": (
        markdown("| a | b |\n|---|---|\n| $|x|$ | 1 |"),
        "a bar in the maths of a table",
    ),
    "maths in a summary": (
        markdown("<details><summary>why $x$</summary>\n\ny\n\n</details>"),
        "maths in a <summary>",
    ),
    "maths too close": (
        markdown("<details><summary>why</summary>\n$x$\n</details>"),
        "maths in <details> without blank lines",
    ),
    "an open fold": (markdown("<details><summary>a</summary>"), "not closed"),
    "a typed number": (markdown("It takes 0.0473 of it."), "a measured number in prose"),
    "a typed time": (markdown("It takes 12 ms."), "a measured number in prose"),
    "a long cell": (code("x = 1\n" * 21), "21 visible lines"),
    "a wide line": (code("x = " + "1" * 90), "columns, at most 80"),
    "an empty cell": (code(""), "an empty code cell"),
    "a claim not compared": (code("claim('a', x, '<', y)"), "not compared"),
    "another setup": (
        lambda nb: nb.cells[1].update(source=nb.cells[1].source + "\nx = 1"),
        "the first code cell is not the setup cell",
    ),
    "no title": (
        lambda nb: nb.cells[0].update(source="hello"),
        "does not start with a title",
    ),
    "no outputs": (
        lambda nb: [cell.update(outputs=[]) for cell in nb.cells if "outputs" in cell],
        "no stored outputs",
    ),
    "too many bytes": (markdown("<!-- " + "x" * 600_001 + " -->"), "bytes, at most"),
    "too many words": (markdown("word " * 2300), "words, at most"),
    "a missing solution": (
        lambda nb: [cell.update(source=cell.source.replace("<summary>Sol", "<summary>S"))
                    for cell in nb.cells],
        "not three exercises",
    ),
}  # fmt: skip


@pytest.fixture
def good():
    return copy.deepcopy(book.read(book.chapters()[0]))


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_notebook_is_caught(good, spoil, message):
    assert dialect.problems(good) == []
    spoil(good)
    assert any(message in problem for problem in dialect.problems(good))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A copy of the chapters and the package that may be spoiled."""
    for name in ("book", "flowtext"):
        shutil.copytree(book.ROOT / name, tmp_path / name)
    monkeypatch.setattr(book, "BOOK", tmp_path / "book")
    monkeypatch.setattr(book, "STAMPS", tmp_path / "book" / "stamps")
    monkeypatch.setattr(book, "PACKAGE", tmp_path / "flowtext")
    return book.chapters()[0]


def respell(path, change):
    notebook = book.read(path)
    change(notebook)
    nbformat.write(notebook, path)


def edit_code(notebook):
    notebook.cells[3].source += "\n"
    notebook.cells[3].source += "x = 1"


def edit_output(notebook):
    for _, output in book.outputs(notebook):
        if output.get("metadata", {}).get("flowtext"):
            output.metadata["flowtext"]["value"] = 0.5
            return


def edit_words(notebook):
    notebook.cells[0].source += "\n\nAnother word."


@pytest.mark.parametrize(
    ("change", "reason"),
    [(edit_code, "source"), (edit_output, "outputs"), (edit_words, "")],
)
def test_a_stale_stamp_is_caught(shelf, change, reason):
    assert execute.stale(shelf) == ""
    respell(shelf, change)
    assert reason in execute.stale(shelf)
    assert bool(reason) == bool(execute.stale(shelf))


def test_a_changed_module_makes_its_chapters_stale(shelf):
    module = book.PACKAGE / "tensors.py"  # imported by what the chapter imports
    words = '"""Another docstring, and a comment, change nothing."""  # nothing'
    module.write_text(words + module.read_text().split('"""', 2)[2])
    assert execute.stale(shelf) == ""
    module.write_text(module.read_text() + "\nx = 1\n")
    assert execute.stale(shelf) == "changed: modules"


def test_a_missing_stamp_is_caught(shelf):
    execute.stamp_of(shelf).unlink()
    assert execute.stale(shelf) == "never run"


def nbval(folder, *cells):
    """Run the chapter lane over one notebook of these cells: pytest's exit code."""
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    nbformat.write(solutions.with_solutions(notebook), folder / "case.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--nbval-lax",
        "-p",
        "no:cacheprovider",
    ]
    environment = {"cwd": folder, "capture_output": True, "text": True}
    return subprocess.run([*command, "case.ipynb"], **environment)


CLAIM = "from flowtext.claims import claim\nclaim('small', {}, '<', 2.0, wrong=3.0)"


def claim_cell(value, line):
    data = {"text/plain": line}
    output = nbformat.v4.new_output("display_data", data=data)
    tags = {"tags": ["nbval-check-output"]}
    cell = nbformat.v4.new_code_cell(
        CLAIM.format(value), outputs=[output], metadata=tags
    )
    cell.execution_count = 1
    return cell


def test_the_chapter_lane_passes_a_true_claim(tmp_path):
    run = nbval(tmp_path, claim_cell(1.0, "claim small: holds"))
    assert run.returncode == 0, run.stdout


def test_the_chapter_lane_catches_a_wrong_claim(tmp_path):
    run = nbval(tmp_path, claim_cell(5.0, "claim small: holds"))
    assert run.returncode == 1
    assert "claim small" in run.stdout


def test_the_chapter_lane_catches_a_line_that_was_changed_by_hand(tmp_path):
    run = nbval(tmp_path, claim_cell(1.0, "claim tiny: holds"))
    assert run.returncode == 1
    assert "claim tiny: holds" in run.stdout


def test_the_chapter_lane_runs_the_folded_solutions(tmp_path):
    text = "<details><summary>Solution</summary>\n\n```python\nassert {}\n```\n\n</details>"
    start = nbformat.v4.new_code_cell("x = 1")
    for condition, code in (("x == 1", 0), ("x == 2", 1)):
        fold = nbformat.v4.new_markdown_cell(text.format(condition))
        assert nbval(tmp_path, start, fold).returncode == code


def record(**changes):
    base = {"claim": "a", "value": 1.0, "relation": "<", "bound": 2.0, "wrong": 3.0}
    return base | changes


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ([record(value=1.1)], "a: value 1 became 1.1"),
        ([record(bound=20.0)], "a: bound 2 became 20"),
        ([record(wrong=4.0)], "a: wrong 3 became 4"),
        ([record(relation="<=")], "a: < became <="),
        ([], "a: stored, not made"),
        ([record(), record(claim="b")], "b: made, not stored"),
    ],
)
def test_a_claim_that_moved_is_caught(now, message):
    assert live.differences([record()], now) == [message]


def test_claims_may_differ_by_rounding():
    assert live.differences([record()], [record(value=1.005)]) == []
    assert live.differences([record(value=3e-15)], [record(value=8e-15)]) == []


GOOD_PAGE = """<html><body><article><h1>Title</h1><p id="here">Words $</p>
<a href="other.html#there">link</a><img src="a.png" alt="A curve that falls by half.">
</article></body></html>"""


@pytest.fixture
def built(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    (tmp_path / "other.html").write_text("<p id='there'></p>")
    (tmp_path / "searchindex.js").write_text("x" * 2000)
    filler = "<!-- " + "x" * 5000 + " -->"
    (tmp_path / "page.html").write_text(GOOD_PAGE.replace(" $<", "<") + filler)
    return tmp_path


PAGES = {
    "raw maths": (("Words", "Words $x$"), "raw maths"),
    "a table as text": (("Words", "| a | b |"), "a table that is a paragraph"),
    "an image that is gone": (("a.png", "b.png"), "a request for a missing file"),
    "alt is a file name": (
        ("A curve that falls by half.", "a.png"),
        "without alt text",
    ),
    "a dead link": (("other.html", "gone.html"), "a link to nowhere"),
    "a dead anchor": (("#there", "#nowhere"), "a link to nowhere"),
    "an outside image": (
        ("a.png", "https://x.org/a.png"),
        "request to an outside host",
    ),
    "an outside script": (
        ("<h1>", "<script src='//cdn.x.org/a.js'></script><h1>"),
        "a request to an outside host",
    ),
}


@pytest.mark.parametrize(("swap", "message"), PAGES.values(), ids=PAGES.keys())
def test_a_bad_page_is_caught(built, swap, message):
    assert site.problems(built, ["page"]) == []
    path = built / "page.html"
    path.write_text(path.read_text().replace(*swap))
    assert any(message in problem for problem in site.problems(built, ["page"]))


def test_a_site_without_pages_is_caught(built):
    assert site.problems(built, ["page", "gone"]) == ["gone: page missing or empty"]
    (built / "searchindex.js").unlink()
    assert site.problems(built, ["page"]) == ["no search index"]


def test_stamps_are_plain_facts():
    stamp = json.loads(execute.stamp_of(book.chapters()[0]).read_text())
    assert stamp["seconds"] > 0
    assert stamp["peak_mb"] > 50
    assert stamp["versions"]["torch"]
