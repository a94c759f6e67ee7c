"""Every law can fail: the named test kills each wrong version of the source.

A mutant is a copy of the package with one text replaced. Its test runs in a process of
its own, forked from one that has already imported the libraries. A mutant that
survives, or that breaks for another reason, fails here.
"""

import contextlib
import gc
import multiprocessing
import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]
KILLED = 1  # pytest's exit code when tests ran and some failed
ANOTHER_SOURCE = 99

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributions",
        "scipy.integrate",
        "scipy.fft",
        "scipy.stats",
        "torchdiffeq",
        "beartype",
        "jaxtyping",
        "IPython",
    ]
)


def copy(folder):
    """The package, its tests and their settings, and the released weights."""
    for name in ("flowtext", "tests"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "book").mkdir()
    (folder / "book" / "models").symlink_to(ROOT / "book" / "models")


def run(folder, tests):
    """Run tests on the copy in this process, and exit with pytest's code."""
    os.chdir(folder)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # nbval takes three seconds
    options = ["-q", "-x", "-pno:cacheprovider", "-pjaxtyping", "--assert=plain"]
    gc.freeze()  # what the fork brought along is not worth a search
    sys.path[:0] = [str(folder), str(folder / "tests")]
    sys.dont_write_bytecode = True
    with open("report", "w") as report, contextlib.redirect_stdout(report):
        code = pytest.main([*options, *tests])
    used = sys.modules["flowtext"].__file__
    os._exit(code if used.startswith(str(folder)) else ANOTHER_SOURCE)


def outcome(folder, tests):
    process = forks.Process(target=run, args=(folder, tests))
    process.start()
    process.join(timeout=300)
    return process.exitcode, (folder / "report").read_text()


def test_every_test_that_kills_passes_on_the_source_itself(tmp_path):
    copy(tmp_path)
    code, report = outcome(tmp_path, sorted({mutant["test"] for mutant in MUTANTS}))
    assert code == 0, report


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant["why"])
def test_a_mutant_is_killed(tmp_path, mutant):
    copy(tmp_path)
    path = tmp_path / mutant["file"]
    source = path.read_text()
    assert source.count(mutant["old"]) == 1, "the mutant no longer fits the source"
    path.write_text(source.replace(mutant["old"], mutant["new"]))
    code, report = outcome(tmp_path, [mutant["test"]])
    assert code == KILLED, report[-2000:]
    assert "ImportError" not in report
