"""python -m flowtext list | fit | score | release NAME: the models, from a shell."""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

import pooch
import torch
from tqdm import tqdm

from flowtext import recipes
from flowtext.fit import read, save

RUNS = Path("runs")
COLUMNS = ["seed", "sampler", "calls", "metric", "value", "floor"]


def fit(name: str, seed: int, minutes: float) -> None:
    """Train for some minutes, or go on; the weights are written when it is done."""
    recipe, run = recipes.recipe_of(name), RUNS / f"{name}-{seed}"
    RUNS.mkdir(exist_ok=True)
    begin, number = time.monotonic(), 0
    training = recipes.train(name, seed, keep=run.with_suffix(".pt"))
    log = run.with_suffix(".json")
    slices = json.loads(log.read_text()) if log.exists() else []
    try:
        for step in tqdm(training, total=recipe.steps, mininterval=5):
            number = step.number
            if time.monotonic() - begin > 60 * minutes:
                break
    finally:  # also when it is interrupted
        training.close()
        if number:
            slices.append({"until": number, "seconds": time.monotonic() - begin})
            log.write_text(json.dumps(slices))
    if number:
        print(f"{name}: step {number} of {recipe.steps}, loss {step.loss:.4f}")
    if number == recipe.steps:
        seconds = round(sum(part["seconds"] for part in slices), 1)
        facts = {"recipe": name, "seed": seed, "objective": recipe.about}
        facts |= {"train_seconds": seconds, "device": device()}
        facts |= {"source": recipes.source_of(name, trained=True)}
        save(run.with_suffix(".safetensors"), step.ema, facts)
    elif number:
        print("not done: the same command goes on")


def measured(name: str, seed: int) -> tuple[torch.nn.Module, dict, list]:
    """A trained net, rounded as it is released, its facts, and its rows."""
    recipe = recipes.recipe_of(name)
    net = recipe.net()
    facts = read(RUNS / f"{name}-{seed}.safetensors", net)
    if facts.get("source") != recipes.source_of(name, trained=True):
        raise ValueError(f"got {name} trained by other code, expected this: fit it")
    net = net.half().float().eval().requires_grad_(False)
    rows = [list(row) for row in recipe.measure(net, recipe.calls)]
    return net, facts, [[row[0] + seed, *row[1:]] for row in rows]


def score(name: str, seed: int) -> None:
    """Measure a trained net and print what was found."""
    print("\t".join(COLUMNS))
    for row in measured(name, seed)[2]:
        print("\t".join(str(entry) for entry in row))


def release(name: str) -> None:
    """Measure every trained seed; write the records, and the weights of seed 0."""
    recipe, rows, seconds = recipes.recipe_of(name), [], []
    seeds = [s for s in range(99) if (RUNS / f"{name}-{s}.safetensors").exists()]
    if 0 not in seeds:
        raise ValueError(f"got seeds {seeds} in {RUNS}/, expected seed 0: fit it first")
    for number in reversed(seeds):
        net, facts, found = measured(name, number)
        rows = found + rows
        seconds.append(facts["train_seconds"])
    shared = {"experiment": name, "method": recipe.about, "world": recipe.world}
    shared |= {"train_steps": recipe.steps, "train_evals": recipe.passes * recipe.steps}
    shared |= {"train_seconds": sum(seconds) / len(seconds)}
    shared |= {key: facts[key] for key in ("device", "version")}
    shared |= {"source": recipes.source_of(name)}
    stored = {"all": shared, "columns": COLUMNS, "rows": rows}
    text = json.dumps(stored).replace("], [", "],\n[") + "\n"
    (recipes.RELEASED / f"{name}.json").write_text(text)
    alone = recipes.alone(net)
    path = recipes.MODELS / f"{name}.safetensors"
    save(path, alone, facts, torch.float16)
    registry = recipes.RELEASED / "weights.json"
    known = json.loads(registry.read_text()) if registry.exists() else {}
    known[name] = pooch.file_hash(path)
    registry.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def names() -> None:
    """Every recipe, and whether it is released."""
    for each in recipes.RECIPES:
        state = "released" if (recipes.RELEASED / f"{each}.json").exists() else "-"
        print(f"{each:16} {state:9} {recipes.recipe_of(each).about}")


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def main(words: list[str]) -> int:
    verbs = {
        "list": lambda given: names(),
        "fit": lambda given: fit(given.name, given.seed, given.minutes),
        "score": lambda given: score(given.name, given.seed),
        "release": lambda given: release(given.name),
    }
    parser = argparse.ArgumentParser(prog="python -m flowtext", description=__doc__)
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("name", nargs="?", choices=[*recipes.RECIPES])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="a slice of training"
    )
    given = parser.parse_args(words)
    if given.verb != "list" and given.name is None:
        parser.error(f"{given.verb} needs a NAME: see python -m flowtext list")
    try:
        verbs[given.verb](given)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as an interrupt
    sys.exit(main(sys.argv[1:]))
