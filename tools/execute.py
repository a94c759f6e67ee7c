"""Run the chapters that are stale, two side by side, and stamp them.

python -m tools.execute [NOTEBOOK ...]   names run whether stale or not
"""

import datetime
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

import nbformat
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

from tools import book, generate

CELL_TIMEOUT = 600
MEASURE = (
    "__import__('resource').getrusage(__import__('resource').RUSAGE_SELF).ru_maxrss",
    "__import__('torch').cuda.get_device_name() "
    "if __import__('torch').cuda.is_available() else 'CPU'",
)


def stamp_of(path: Path) -> Path:
    return book.STAMPS / f"{path.stem}.json"


def stale(path: Path) -> str:
    """Why a chapter must run again; empty if its stamp still holds."""
    stamp = stamp_of(path)
    if not stamp.exists():
        return "never run"
    held, now = json.loads(stamp.read_text()), book.fingerprint(book.read(path))
    changed = [key for key in now if held.get(key) != now[key]]
    return f"changed: {', '.join(changed)}" if changed else ""


def run(path: Path) -> str:
    """Execute a chapter and store its outputs and its stamp; return what to print."""
    notebook = book.read(path)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=CRITICAL"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    # A widget's output area makes nbclient wait for ever now and then (its issue 312),
    # and what a live widget shows is not stored anyway.
    client.comm_open_handlers.clear()
    begin = time.perf_counter()
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
            print(f"  {path.stem}: {index + 1}/{len(notebook.cells)}", flush=True)
        seconds = time.perf_counter() - begin
        peak, device = ask(client, MEASURE)
    for cell in notebook.cells:
        if "remove-output" in cell.metadata.get("tags", []):
            cell.outputs = []
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    stamp = book.fingerprint(notebook) | {
        "seconds": round(seconds, 1),
        "peak_mb": round(int(peak) / 1024),
        "device": device.strip("'"),
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()}
        | {name: version(name).split("+")[0] for name in ("torch", "numpy", "scipy")},
    }
    write(path, nbformat.writes(notebook) + "\n")
    write(stamp_of(path), json.dumps(stamp, indent=1) + "\n")
    return f"{path.stem}: {seconds:.0f} s"


def ask(client: NotebookClient, questions: tuple[str, ...]) -> list[str]:
    """Values from the live kernel that leave no trace in the notebook."""
    named = {str(i): question for i, question in enumerate(questions)}
    message = client.kc.execute("", silent=True, user_expressions=named)
    while True:
        reply = run_sync(client.kc.get_shell_msg)(timeout=30)
        if reply["parent_header"].get("msg_id") == message:
            answers = reply["content"]["user_expressions"]
            return [answers[name]["data"]["text/plain"] for name in named]


def write(path: Path, text: str) -> None:
    """Write all or nothing."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    os.replace(draft, path)


def main(names: list[str]) -> int:
    paths = [Path(name).resolve() for name in names]
    if unknown := [p for p in paths if p not in book.chapters()]:
        raise SystemExit(f"got {unknown[0]}, expected a notebook of _toc.yml")
    paths = paths or [path for path in book.chapters() if stale(path)]
    book.STAMPS.mkdir(exist_ok=True)
    failed = 0
    with ProcessPoolExecutor(2) as pool:
        jobs = {pool.submit(run, path): path for path in paths}
        for job in as_completed(jobs):
            try:
                print(job.result(), flush=True)
            except Exception as error:
                failed += 1
                print(f"{jobs[job].stem} FAILED\n{error}", flush=True)
    generate.main()
    print(f"{len(paths)} run, {failed} failed, {len(book.chapters())} chapters in all")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
