"""Compare the claims of a live run with the ones that the book has stored."""

import json
import math
from pathlib import Path

from tools import book


def stored() -> list[dict]:
    """The claims in the outputs of all chapters."""
    return [c for path in book.chapters() for c in book.claims(book.read(path))]


def read(path: Path) -> list[dict]:
    """The claims that a run appended to a file, one JSON record a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def differences(stored: list[dict], live: list[dict]) -> list[str]:
    """Where two sets of claims disagree, beyond rounding and another machine's maths.

    Values agree to a hundredth, or both are below 1e-6.
    """
    old, new = ({c["claim"]: c for c in claims} for claims in (stored, live))
    found = [f"{name}: stored, not made" for name in sorted(old.keys() - new.keys())]
    found += [f"{name}: made, not stored" for name in sorted(new.keys() - old.keys())]
    for name in sorted(old.keys() & new.keys()):
        was, now = old[name], new[name]
        if was["relation"] != now["relation"]:
            found.append(f"{name}: {was['relation']} became {now['relation']}")
        for key in ("value", "bound", "wrong"):
            if not math.isclose(was[key], now[key], rel_tol=1e-2, abs_tol=1e-6):
                found.append(f"{name}: {key} {was[key]:.4g} became {now[key]:.4g}")
    return found
