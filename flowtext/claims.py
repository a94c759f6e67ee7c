"""Claims: sentences of the book that a cell decides, in the open."""

import json
import math
import operator
import os
from typing import SupportsFloat

import torch
from IPython.display import display

RELATIONS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def claim(
    name: str,
    value: SupportsFloat,
    relation: str,
    bound: SupportsFloat,
    *,
    wrong: SupportsFloat,
    seeds: tuple[int, ...] = (0,),
) -> None:
    """Assert that value stands in the relation to bound, and that wrong does not.

    `wrong` is the same measurement on a known-wrong case: a claim must be able to
    fail. Raises AssertionError if the claim is false, ValueError if it cannot fail.
    The record goes into the output's metadata and to the file $FLOWTEXT_CLAIMS.
    """
    if relation not in RELATIONS:
        raise ValueError(f"got relation {relation!r}, expected one of {[*RELATIONS]}")
    device = _device(value)
    value, bound, wrong = float(value), float(bound), float(wrong)
    holds = RELATIONS[relation]
    if not holds(value, bound):
        raise AssertionError(f"claim {name}: {value:.6g} {relation} {bound:.6g} fails")
    if math.isnan(wrong):
        raise ValueError(f"claim {name}: got wrong = nan, expected a finite wrong case")
    if holds(wrong, bound):
        hint = "the wrong case passes too, so the claim says nothing"
        raise ValueError(f"claim {name}: {wrong:.6g} {relation} {bound:.6g}; {hint}")
    record = {"claim": name, "value": value, "relation": relation, "bound": bound}
    record |= {"wrong": wrong, "seeds": list(seeds), "device": device}
    if path := os.environ.get("FLOWTEXT_CLAIMS"):
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")
    line = f"claim {name}: holds"
    display({"text/plain": line}, metadata={"flowtext": record}, raw=True)


def _device(value: SupportsFloat) -> str:
    """Where a measured tensor lives; plain numbers count as the CPU's."""
    on_gpu = torch.is_tensor(value) and value.is_cuda
    return torch.cuda.get_device_name(value.device) if on_gpu else "cpu"
