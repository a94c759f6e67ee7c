"""What a result depends on: the package's code behind a name, as a fingerprint."""

import ast
import hashlib
from collections.abc import Collection
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


def bare(tree: ast.AST) -> str:
    """What code does: its syntax tree without comments and docstrings."""
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def fingerprint(*places: str, apart: Collection[str] = ()) -> str:
    """A hash of definitions, "module.name", and of all that they use in the package.

    Two results with one fingerprint were made by the same code, apart from the
    definitions or modules named. Raises ValueError for a name that is not defined.
    """
    waiting, found = [tuple(place.split(".")) for place in places], {}
    for key in waiting:
        if key in found or {*key} & {*apart}:
            continue
        defined, imported = _names(key[0])
        if key[1] not in defined:
            raise ValueError(f"got {key[1]!r}, expected one of {sorted(defined)}")
        found[key] = bare(ast.parse(ast.unparse(defined[key[1]])))
        waiting += _used(defined[key[1]], key[0], defined, imported)
    text = "\n".join(f"{key}: {found[key]}" for key in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _used(node: ast.AST, module: str, defined: dict, imported: dict):
    """The package's definitions that a piece of code names."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in defined:
            yield module, part.id
        elif isinstance(part, ast.Name) and part.id in imported:
            home, name = imported[part.id]
            if name is not None:
                yield home, name
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            home, name = imported.get(part.value.id, (None, ""))
            if home and name is None:
                yield home, part.attr


@cache
def _names(module: str) -> tuple[dict, dict]:
    """What a module defines at its top, and what it imports from the package."""
    defined, imported = {}, {}
    for node in ast.parse((HERE / f"{module}.py").read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign):
            defined |= dict.fromkeys((ast.unparse(t) for t in node.targets), node)
        elif isinstance(node, ast.ImportFrom) and node.module == "flowtext":
            names = node.names
            imported |= {a.asname or a.name: (a.name, None) for a in names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("flowtext."):
            home = node.module.removeprefix("flowtext.")
            names = node.names
            imported |= {a.asname or a.name: (home, a.name) for a in names}
    return defined, imported
