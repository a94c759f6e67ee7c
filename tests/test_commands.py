"""What a stranger types: make with an unfit Python, a chapter beside an old torch."""

import shutil
import subprocess
import sys

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
