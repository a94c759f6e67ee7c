"""The committed book: every chapter in the dialect, fresh, honest and consistent."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from urllib.parse import urlsplit

import pytest

import flowtext
from tools import book, dialect, execute, generate, solutions

CHAPTERS = book.chapters()
EACH = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def prose(path):
    cells = book.read(path).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=book.ROOT, capture_output=True, check=True
    )
    return [book.ROOT / name for name in listed.stdout.decode().split("\0") if name]


def texts():
    for path in tracked():
        if path.suffix not in (".png", ".safetensors") and path.exists():
            yield path, path.read_text()


@EACH
def test_a_chapter_keeps_to_the_dialect(path):
    assert dialect.problems(book.read(path)) == []


@EACH
def test_a_chapter_is_freshly_executed(path):
    assert execute.stale(path) == "", "run make execute"


def test_chapters_keep_to_their_time():
    stamps = [json.loads(execute.stamp_of(path).read_text()) for path in CHAPTERS]
    assert max(stamp["seconds"] for stamp in stamps) <= 120
    assert sum(stamp["seconds"] for stamp in stamps) <= 30 * 60


def test_stamps_belong_to_chapters():
    assert {p.stem for p in book.STAMPS.glob("*.json")} == {p.stem for p in CHAPTERS}
    assert len({path.stem for path in CHAPTERS}) == len(CHAPTERS)


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_made_page_is_up_to_date(name):
    page = (book.BOOK / "reference" / f"{name}.md").read_text()
    assert page == generate.PAGES[name](), "run make execute"


@EACH
def test_links_between_chapters_lead_somewhere(path):
    for target in LINK.findall(prose(path)):
        if not urlsplit(target).scheme:
            assert (path.parent / target.split("#")[0]).exists(), target


def test_citations_and_bibliography_agree():
    bib = (book.BOOK / "references.bib").read_text()
    listed = set(re.findall(r"url = \{(.*?)\}", bib))
    pages = [prose(path) for path in CHAPTERS]
    pages += [path.read_text() for path in book.BOOK.glob("*.md")]
    cited = {link for page in pages for link in LINK.findall(page)}
    outside = {link for link in cited if urlsplit(link).netloc}
    assert outside <= listed, "cited, not in references.bib"
    sources = " ".join(path.read_text() for path in book.PACKAGE.glob("*.py"))
    for url in listed - outside:
        name = re.search(r"arxiv.org/abs/(.*)|$", url)[1] or "Hairer"
        assert name in sources, f"{url} in references.bib is cited nowhere"


def claim_calls(path):
    code = "\n".join(c.source for c in book.read(path).cells if c.cell_type == "code")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "claim":
            yield node


@EACH
def test_the_value_of_a_claim_is_computed(path):
    for call in claim_calls(path):
        wrong = next(word.value for word in call.keywords if word.arg == "wrong")
        for measured in (call.args[1], wrong):
            assert not isinstance(measured, ast.Constant | ast.UnaryOp)


def test_every_chapter_claims_something_and_names_are_unique():
    names = []
    for path in CHAPTERS:
        here = [call.args[0].value for call in claim_calls(path)]
        assert here, path
        assert [c["claim"] for c in book.claims(book.read(path))] == here
        names += here
    assert len(set(names)) == len(names)


@EACH
def test_solutions_are_there_to_be_run(path):
    for code in solutions.solutions(book.read(path)):
        assert "assert" in code
        compile(code, path.name, "exec")


def test_one_address_of_the_repository_everywhere():
    url = book.repository()
    owner, name = url.split("/")[-2:]
    for path, text in texts():
        if path.parent.name == "tests":
            continue
        for other in re.findall(r"https://github\.com/([\w.-]+/[\w-]+)", text):
            foreign = other.split("/")[1] != name
            assert foreign or other == f"{owner}/{name}", path
    for file in ("README.md", "CITATION.cff", "pyproject.toml"):
        assert url in (book.ROOT / file).read_text()
    assert f"git+{url}@v{flowtext.__version__}" in book.SETUP


def test_version_stands_the_same_everywhere():
    version = flowtext.__version__
    assert f"version: {version}" in (book.ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (book.ROOT / "CHANGELOG.md").read_text()


def test_one_command_moves_the_repository(tmp_path):
    clone, new = tmp_path / "clone", "https://git.example.org/school/integral"
    subprocess.run(["git", "clone", "-q", book.ROOT, clone], check=True)
    command = [sys.executable, "-m", "tools.url", new]
    subprocess.run(command, cwd=clone, check=True, capture_output=True)
    grep = ["git", "grep", "-l", book.repository().removeprefix("https://")]
    left = subprocess.run(grep, cwd=clone, capture_output=True, text=True)
    assert left.stdout == ""
    moved = book.read(clone / CHAPTERS[0].relative_to(book.ROOT))
    assert f"git+{new}@" in moved.cells[1].source
    assert book.fingerprint(moved) == book.fingerprint(book.read(CHAPTERS[0]))
    bad = subprocess.run(
        [*command[:-1], "not an address"], cwd=clone, capture_output=True
    )
    assert b"expected https://HOST/OWNER/NAME" in bad.stderr


def test_requirements_pin_everything_exactly():
    lines = (book.ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    named = {pin.split("==")[0].lower() for pin in pins}
    wanted = "torch jupyterlab jupyter-book matplotlib numpy scipy ipywidgets nbval"
    assert set(wanted.split()) <= named
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True)


def test_the_package_has_lower_bounds_only():
    facts = tomllib.loads((book.ROOT / "pyproject.toml").read_text())
    for need in facts["project"]["dependencies"]:
        assert re.fullmatch(r"[a-z-]+>=[\d.]+", need), need


def test_the_tree_stays_small():
    assert sum(path.stat().st_size for path in tracked() if path.exists()) < 60e6


def test_the_readme_is_short_and_shows_a_chapter():
    text = (book.ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    shown = re.findall(r"!\[([^\]]{20,})\]\(([^)]+)\)", text)
    assert any((book.ROOT / picture).exists() for _, picture in shown)
    for command in re.findall(r"make ([a-z]+)\b", text):
        assert f"\n{command}: " in (book.ROOT / "Makefile").read_text()


def test_the_code_in_the_readme_runs(capsys):
    text = (book.ROOT / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    exec(code, {})
    said = re.search(r"print\(.*\)\s*# (.*)", code)[1]
    assert capsys.readouterr().out.strip() == said
