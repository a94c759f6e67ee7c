"""A place where flowtext is only what the setup cell of a lone chapter brings.

python -m tools.stranger FOLDER   then FOLDER/bin/python runs the chapters there

The environment has torch and Jupyter, but neither flowtext nor its small dependencies;
the book's address serves this working tree, tagged as the release.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import flowtext
from tools import book

UNKNOWN = ("flowtext", "__editable__", "jaxtyping", "wadler", "pip")


def environment(folder: Path) -> Path:
    """Make it from the packages of this one, and return its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    here = Path(pytest.__file__).parent.parent
    there = next((folder / "lib").glob("python*")) / "site-packages"
    for item in here.iterdir():
        if not item.name.startswith(UNKNOWN) and not (there / item.name).exists():
            (there / item.name).symlink_to(item)
    return folder / "bin" / "python"


def release(folder: Path) -> None:
    """A repository with one commit, this working tree, tagged as the release."""
    git = ["git", "-c", "user.name=flowtext", "-c", "user.email=book@localhost"]
    listed = [*git, "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.check_output(listed, cwd=book.ROOT, text=True)
    for name in filter(None, names.split("\0")):
        if (book.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(book.ROOT / name, folder / name)
    for words in (
        ["init", "-q"],
        ["add", "--all"],
        ["commit", "-qm", "release"],
        ["tag", f"v{flowtext.__version__}"],
    ):
        subprocess.run([*git, *words], cwd=folder, check=True)


def main(folder: Path) -> None:
    python = environment(folder.absolute())
    with tempfile.TemporaryDirectory() as name:
        origin, empty = Path(name) / "origin", Path(name) / "empty"
        origin.mkdir(), empty.mkdir()
        release(origin)
        known = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        known |= {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{origin}.insteadOf",
            "GIT_CONFIG_VALUE_0": book.repository(),
        }

        def say(code: str) -> str:
            command = [python, "-c", code]
            return subprocess.check_output(command, cwd=empty, env=known, text=True)

        find = "from importlib.util import find_spec; print(find_spec('flowtext'))"
        torch = "import torch; print(torch.__version__, torch.__file__)"
        assert say(find).strip() == "None", "flowtext is there before it is installed"
        before = say(torch)
        say(book.SETUP)
        assert say(torch) == before, "the setup cell has changed torch"
        assert str(folder.absolute()) in say(find), "flowtext is not of this place"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
