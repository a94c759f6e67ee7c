"""python -m tools.tuning [METHOD ...]: one small search for each method of the ladder.

Eight settings are drawn from the choices below, and each trains three seeds on the
eight modes for a short time; the best two then train for a longer one, since the best
rate depends on it. All runs are kept in `flowtext/released/tuning.json`. Of the two,
the better by path error of one call is to be the default of the method in `ladder.py`.
"""

import inspect
import json
import random
import sys
import time
from dataclasses import replace
from functools import partial

import torch

from flowtext import ladder, measure, recipes

CHOICES = {
    "lr": (2e-3, 4e-3, 8e-3),
    "diagonal": (0.0, 0.25, 0.5, 0.75),
    "lean": (-2.0, -1.0, 0.0, 1.0),
    "steps": (8, 16, 32),
    "n": (16, 64, 256),
    "stages": (6, 8, 10),
    "damp": (0.03, 0.1, 0.3),
    "c": (0.01, 0.03, 0.1),
    "levels": (5, 6, 7),
    "smallest": (0.25, 0.5, 0.75),
    "reach": (0.1, 0.2, 0.4),
    "particles": (2, 4, 8),
    "gap": (0.05, 0.1, 0.3),
}
TRIES, FINALISTS, SEEDS, SHORT, LONG = 8, 2, 3, 1500, 6000
FILE = recipes.RELEASED / "tuning.json"


def settings(method) -> list[dict]:
    """Eight settings, the same at every call; each value about as often as the next.

    A map that learns its velocity at s = t keeps a share of such pairs; one that jumps
    to any time does not lean far to the data.
    """
    default = inspect.signature(method).parameters
    drawn, columns = random.Random(method.__name__), {}
    for name, values in CHOICES.items():
        if name in default:
            if name == "diagonal":
                taught = method in (ladder.lagrangian, ladder.eulerian)
                values = values[:3] if taught else values[1:]
            if name == "lean" and {"diagonal", "particles"} & default.keys():
                values = values[1:]
            first = drawn.sample(values, len(values))
            columns[name] = drawn.sample((first * TRIES)[:TRIES], TRIES)
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def trial(method, setting: dict, after: int) -> dict:
    """One setting, trained so long: path error and strays of one call, over seeds."""
    made = recipes.plane_map("eight", SEEDS, partial(method, **setting))
    begin = time.process_time()
    run = {"method": method.__name__, **setting, "after": after}
    try:
        *_, last = recipes.start(replace(made, steps=after), 100, None)
    except ValueError as error:
        return run | {"failed": str(error)}
    rows = [*made.measure(last.ema, (1,))]
    for metric in ("rmse", "off-mode"):
        found = [row[4] for row in rows if row[1] == "map" and row[3] == metric]
        run[metric] = round(sum(found) / len(found), 4)
    return run | {"seconds": round(time.process_time() - begin, 1)}


def miss(run: dict) -> float:
    """The path error of a run; one that broke off missed by everything."""
    return run.get("rmse", torch.inf)


def search(method, known: list[dict]) -> list[dict]:
    """All settings for a short time, and the best of them for a long one."""

    def done(setting: dict, after: int) -> dict:
        asked = {"method": method.__name__, **setting, "after": after}
        same = (run for run in known if asked.items() <= run.items())
        return next(same, None) or trial(method, setting, after)

    tried = [(done(setting, SHORT), setting) for setting in settings(method)]
    best = sorted(tried, key=lambda pair: miss(pair[0]))[:FINALISTS]
    return [run for run, _ in tried] + [done(setting, LONG) for _, setting in best]


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    measure.SAMPLES = 2000
    for method in ladder.METHODS:
        if names and method.__name__ not in names:
            continue
        runs = search(method, json.loads(FILE.read_text()) if FILE.exists() else [])
        known = json.loads(FILE.read_text()) if FILE.exists() else []
        known = [run for run in known if run["method"] != method.__name__] + runs
        text = json.dumps(known).replace("}, {", "},\n{") + "\n"
        FILE.write_text(text)
        best = min(runs[TRIES:], key=miss)
        print(method.__name__, best, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
