"""Copies of the chapters with their folded solutions as cells at the end.

python -m tools.solutions FOLDER   then nbval runs chapters and solutions at once
"""

import re
import shutil
import sys
from pathlib import Path

import nbformat

from tools import book

FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def solutions(notebook: nbformat.NotebookNode) -> list[str]:
    """The fenced Python of the folded parts, in order."""
    prose = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    folded = re.findall(r"<details>.*?</details>", prose, re.S)
    return [code.strip() for part in folded for code in FENCE.findall(part)]


def with_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    for number, code in enumerate(solutions(notebook), 1):
        cell = nbformat.v4.new_code_cell(code, id=f"solution-{number}")
        notebook.cells.append(cell)
    return notebook


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for path in book.chapters():
        target = folder / path.relative_to(book.BOOK)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(with_solutions(book.read(path)), target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
