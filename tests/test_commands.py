"""What a stranger types: make with an unfit Python, a chapter alone in a bare place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import flowtext
from tools import book


def make(folder, python):
    """`make book` in a folder that has the Makefile and this Python only."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(book.ROOT / name, folder)
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{python}\n")
    script.chmod(0o755)
    command = ["make", "book", f"PYTHON={script}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_missing_venv_module_names_the_package_to_install(tmp_path):
    refuse = f'case "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"'
    run = make(tmp_path, refuse)
    assert run.returncode
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"sudo apt install python{version}-venv" in run.stdout


def test_an_old_python_is_told_so(tmp_path):
    old = 'echo "got Python 3.9, expected 3.11 or newer" >&2; exit 1'
    run = make(tmp_path, f'case "$2" in *version_info*) {old};; esac')
    assert run.returncode
    assert not (tmp_path / ".venv").exists()


def test_help_lists_every_command():
    command = ["make", "help"]
    run = subprocess.run(command, cwd=book.ROOT, capture_output=True, text=True)
    for name in ["book", "test", "serve", "lab", "execute", "url", "clean"]:
        assert f"make {name} " in run.stdout


def setup_cell(version):
    """Run the setup cell beside a torch of another version; nothing is installed."""
    code = f"import torch\ntorch.__version__ = {version!r}\n{book.SETUP}\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_torch_that_is_too_old_is_told_so():
    run = setup_cell("2.8.1+cu126")
    assert run.returncode
    assert "got torch 2.8.1+cu126, expected 2.9 or newer" in run.stderr
    assert setup_cell("2.11.0+cu128").returncode == 0


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An environment with torch and Jupyter that has never heard of flowtext."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    here = Path(pytest.__file__).parent.parent
    there = next((folder / "lib").glob("python*")) / "site-packages"
    for item in here.iterdir():
        hidden = ("flowtext", "__editable__", "jaxtyping", "wadler", "pip")
        if not item.name.startswith(hidden) and not (there / item.name).exists():
            (there / item.name).symlink_to(item)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """git settings that serve the book's address from this checkout, tagged."""
    origin = tmp_path_factory.mktemp("origin") / "book.git"
    subprocess.run(["git", "clone", "-q", "--bare", book.ROOT, origin], check=True)
    tag = ["git", "tag", "--force", f"v{flowtext.__version__}"]
    subprocess.run(tag, cwd=origin, check=True, capture_output=True)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{origin}.insteadOf",
        "GIT_CONFIG_VALUE_0": book.repository(),
    }


RUN = """
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read("alone.ipynb", as_version=4)
client = NotebookClient(notebook, timeout=300, kernel_name="python3")
client.comm_open_handlers.clear()  # see tools/execute.py
client.execute()
nbformat.write(notebook, "alone.ipynb")
"""


@pytest.mark.parametrize("path", book.chapters(), ids=lambda path: path.stem)
def test_a_lone_chapter_runs_in_an_empty_folder(path, bare, release, tmp_path):
    absent = [bare, "-c", "import flowtext"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= release | {"FLOWTEXT_MODELS": str(book.ROOT / "book" / "models")}
    if path == book.chapters()[0]:  # the first one installs flowtext for the second
        refused = subprocess.run(absent, env=environment, cwd=tmp_path)
        assert refused.returncode
    shutil.copy(path, tmp_path / "alone.ipynb")
    torch = [bare, "-c", "import torch; print(torch.__version__, torch.__file__)"]
    before = subprocess.check_output(torch, env=environment)
    run = subprocess.run(
        [bare, "-c", RUN],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert subprocess.check_output(torch, env=environment) == before
    notebook = nbformat.read(tmp_path / "alone.ipynb", as_version=4)
    assert book.claims(notebook)
    where = [bare, "-c", "import flowtext; print(flowtext.__file__)"]
    there = subprocess.check_output(where, env=environment, text=True, cwd=tmp_path)
    assert str(bare.parent.parent) in there
