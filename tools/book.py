"""Where things are, and the fingerprints by which staleness is told."""

import ast
import hashlib
import json
import re
from pathlib import Path

import nbformat
import yaml

from flowtext.sources import bare

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
STAMPS = BOOK / "stamps"
PACKAGE = ROOT / "flowtext"
SETUP = (ROOT / "tools" / "setup_cell.py").read_text().strip()

INSTALL = re.compile(r"git\+https?://[^\s\"']+")


def config() -> dict:
    return yaml.safe_load((ROOT / "_config.yml").read_text())


def repository() -> str:
    """The address of the repository, from its one place."""
    return config()["repository"]["url"]


def names() -> list[str]:
    """Every page of the book, in order, without suffix: _toc.yml."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    parts = (chapter["file"] for part in toc["parts"] for chapter in part["chapters"])
    return [toc["root"], *parts]


def chapters() -> list[Path]:
    """The notebooks of the book, in order."""
    files = [BOOK / f"{name}.ipynb" for name in names()]
    return [file for file in files if file.exists()]


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def title(path: Path) -> str:
    """The first heading of a page."""
    text = read(path).cells[0].source if path.suffix == ".ipynb" else path.read_text()
    return next(line[2:] for line in text.splitlines() if line.startswith("# "))


def outputs(notebook: nbformat.NotebookNode):
    """Every stored output, with its cell."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield cell, output


def claims(notebook: nbformat.NotebookNode) -> list[dict]:
    """The records of the claims that the notebook's outputs hold."""
    found = (
        output.get("metadata", {}).get("flowtext") for _, output in outputs(notebook)
    )
    return [record for record in found if record]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(notebook: nbformat.NotebookNode) -> dict:
    """What a stamp must match: the code, the stored outputs, the modules used."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    stored = [cell.get("outputs", []) for cell in notebook.cells]
    return {
        "source": digest(INSTALL.sub("", "\n".join(code))),
        "outputs": digest(json.dumps(stored, sort_keys=True)),
        "modules": {
            module.name: digest(bare(ast.parse(module.read_text())))
            for module in modules("\n".join(code))
        },
    }


def modules(code: str) -> list[Path]:
    """The files of flowtext that code imports, and those that these import."""
    found, waiting = set(), [_plain(code)]
    while waiting:
        for name in _imports(waiting.pop()):
            path = PACKAGE / f"{name}.py"
            if path.exists() and path not in found:
                found.add(path)
                waiting.append(path.read_text())
    return sorted(found)


def _plain(code: str) -> str:
    """Notebook code without IPython's magics."""
    return re.sub(r"^\s*[%!].*$", "", code, flags=re.M)


def _imports(code: str) -> set[str]:
    names = {"__init__"}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == "flowtext":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.removeprefix("flowtext."))
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("flowtext.") for alias in node.names}
    return names
