"""The notebook dialect: what book, JupyterLab and Colab all show alike.

`problems(notebook)` lists what breaks it; an empty list is a good notebook.
"""

import re

import nbformat

from tools import book

MAX_BYTES = 600_000
MAX_CELL_LINES = 20
MAX_COLUMNS = 80
MAX_WORDS = 2200
MAX_CODE_LINES = 130

MYST = {
    "a MyST directive": r"^\s*(:{3,}|`{3,}\{|~{3,}\{)",
    "a MyST role": r"\{[a-zA-Z:_-]+\}`",
    "a MyST target": r"^\([\w-]+\)=\s*$",
    "a MyST block break": r"^\+\+\+",
    "a labelled equation": r"\$\$\s*\([\w:-]+\)\s*$",
}
SKIPS = r"NBVAL_SKIP|NBVAL_IGNORE_OUTPUT|NBVAL_RAISES_EXCEPTION|PYTEST_VALIDATE_IGNORE"
SKIP_TAGS = {
    "nbval-skip",
    "nbval-ignore-output",
    "nbval-raises-exception",
    "raises-exception",
    "skip-execution",
}
MEASURED = r"\d+\.\d{3,}|\d+(\.\d+)?\s?(%|ms\b|milliseconds?\b|seconds?\b|minutes?\b)"


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """Everything in a notebook that some reader would not see as meant."""
    found = []
    for index, cell in enumerate(notebook.cells):
        check = markdown if cell.cell_type == "markdown" else code
        found += [f"cell {index}: {problem}" for problem in check(cell)]
    return found + whole(notebook)


def markdown(cell: nbformat.NotebookNode) -> list[str]:
    """Problems of a markdown cell."""
    prose = re.sub(r"^```.*?^```$", "", cell.source, flags=re.M | re.S)
    found = [
        f"{name}, which Colab prints raw"
        for name, pattern in MYST.items()
        if re.search(pattern, cell.source, re.M)
    ]
    words = re.sub(r"`[^`]*`", "", prose)
    for source in re.findall(
        r"!\[[^\]]*\]\(([^)]*)\)|<img[^>]*src=[\"']([^\"']*)", words
    ):
        if not "".join(source).startswith("data:"):
            found.append(f"an outside image, {''.join(source)}")
    for maths in re.findall(r"\$\$(.*?)\$\$", words, re.S):
        if "\n" in maths.strip("\n"):
            found.append("display maths over several lines")
        if r"\\" in maths:
            found.append(r"a double backslash in display maths: use \cr")
    for line in words.splitlines():
        inline = "".join(re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", line))
        if line.startswith("|") and re.search(r"(?<!\\)\|", inline):
            found.append(r"a bar in the maths of a table: use \lvert")
    found += details(words)
    plain = re.sub(r"\$[^$]*\$|\]\([^)]*\)", "", words)
    if number := re.search(MEASURED, plain):
        found.append(f"a measured number in prose, {number[0]!r}: let a cell print it")
    return found


def details(words: str) -> list[str]:
    """Problems of the folded parts."""
    found = []
    if words.count("<details>") != words.count("</details>"):
        found.append("a <details> that is not closed")
    for summary in re.findall(r"<summary>(.*?)</summary>", words):
        if "$" in summary:
            found.append("maths in a <summary>")
    for inside in re.findall(r"</summary>(.*?)</details>", words, re.S):
        if "$" in inside and not (inside[:2] == "\n\n" and inside[-2:] == "\n\n"):
            found.append("maths in <details> without blank lines around it")
    return found


def code(cell: nbformat.NotebookNode) -> list[str]:
    """Problems of a code cell and of its outputs."""
    found = []
    lines, tags = cell.source.splitlines(), cell.metadata.get("tags", [])
    marks = " ".join(tags)
    if re.search(SKIPS, cell.source) or SKIP_TAGS & set(tags):
        found.append(f"a marker that skips or excuses the test: {marks or 'comment'}")
    if not lines:
        found.append("an empty code cell")
    if len(lines) > MAX_CELL_LINES and "hide-input" not in tags:
        found.append(f"{len(lines)} visible lines, at most {MAX_CELL_LINES}")
    if wide := [line for line in lines if len(line) > MAX_COLUMNS]:
        found.append(f"{len(wide[0])} columns, at most {MAX_COLUMNS}: {wide[0][:40]}")
    if "claim(" in cell.source and "nbval-check-output" not in tags:
        found.append("a claim whose line is not compared: tag nbval-check-output")
    for output in cell.outputs:
        found += stored(output)
    return found


def stored(output: nbformat.NotebookNode) -> list[str]:
    """Problems of one stored output."""
    if output.output_type == "error":
        return [f"a stored error, {output.ename}: {output.evalue}"]
    if output.output_type == "stream":
        return ["a stored warning or progress bar"] if output.name == "stderr" else []
    found = []
    for kind in output.data:
        alt = output.metadata.get(kind, {}).get("alt", "")
        if kind.startswith("image/") and len(alt) < 20:
            found.append(f"an image without alt text: {alt!r}")
    page = output.data.get("text/html", "")
    for tag in re.findall(r"<img[^>]{0,600}", page):
        alt = re.search(r'alt="([^"]*)"', tag)
        if not alt or len(alt[1]) < 20:
            found.append("an image without alt text in HTML output")
    if outside := re.search(r"(src|href)=[\"'](https?:)?//", page):
        found.append(f"an outside request in HTML output, {outside[0]}")
    return found


def whole(notebook: nbformat.NotebookNode) -> list[str]:
    """Problems that no single cell shows."""
    found, cells = [], notebook.cells
    runnable = [cell for cell in cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    if not cells or not re.match(r"# \S", cells[0].source):
        found.append("the first cell does not start with a title")
    if not runnable or runnable[0].source.strip() != book.SETUP:
        found.append("the first code cell is not the setup cell")
    if not any(cell.outputs for cell in runnable):
        found.append("no stored outputs")
    size = len(nbformat.writes(notebook).encode())
    if size > MAX_BYTES:
        found.append(f"{size} bytes, at most {MAX_BYTES}")
    words = len(re.sub(r"<details>.*?</details>", "", prose, flags=re.S).split())
    if words > MAX_WORDS:
        found.append(f"{words} words, at most {MAX_WORDS}")
    lines = "\n".join(
        c.source for c in runnable[1:] if "hide-input" not in c.metadata.get("tags", [])
    )
    count = sum(bool(line.strip()) for line in lines.splitlines())
    if count > MAX_CODE_LINES:
        found.append(f"{count} visible lines of code, at most {MAX_CODE_LINES}")
    exercises = re.split(r"^## Exercises$", prose, flags=re.M)[1:]
    if not exercises or len(re.findall(r"<summary>Solution", exercises[0])) != 3:
        found.append("not three exercises with folded solutions")
    return found
