"""The pages that are made, not written: status, claims, api.

python -m tools.generate
"""

import ast
import json

from tools import book

NOTE = "<!-- Made by `make execute` (tools/generate.py); changes here are lost. -->\n"


def table(header: tuple, rows: list[tuple]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def link(path) -> str:
    relative = path.relative_to(book.BOOK)
    return f"[{book.title(path)}](../{relative.as_posix()})"


def status() -> str:
    """Every chapter with the time, memory, device and versions of its last run."""
    rows, seconds = [], 0
    for path in book.chapters():
        stamp = book.STAMPS / f"{path.stem}.json"
        if not stamp.exists():
            continue
        facts = json.loads(stamp.read_text())
        seconds += facts["seconds"]
        versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
        row = (link(path), f"{facts['seconds']:.0f} s", f"{facts['peak_mb']} MB")
        rows.append((*row, facts["device"], facts["date"], versions))
    header = ("chapter", "time", "peak memory", "device", "run on", "versions")
    return f"""{NOTE}
# Status

When each chapter was last run, how long it took from its first cell to its last, and
the most memory that its kernel held. CPU chapters use one thread. The pages show the
outputs of these runs. A test fails if a chapter, or a module that it uses, has changed
since.

{table(header, rows)}

All chapters together: {seconds / 60:.1f} core-minutes.
"""


def claims() -> str:
    """Every claim with its value, its bound and the value that breaks it."""
    rows = []
    for path in book.chapters():
        for record in book.claims(book.read(path)):
            value, wrong = f"{record['value']:.3g}", f"{record['wrong']:.3g}"
            bound = f"{record['relation']} {record['bound']:.3g}".replace("<", "&lt;")
            seeds = len(record["seeds"])
            row = (f"`{record['claim']}`", value, bound, wrong, seeds)
            rows.append((*row, record["device"], link(path)))
    header = ("claim", "value", "bound", "a wrong case", "seeds", "device", "chapter")
    return f"""{NOTE}
# Claims

Every claim cell of the chapters, as measured when it last ran. It
computes a value and asserts that it stands in the stated relation to the bound. Beside
it, the same measurement on a case that is known to be wrong must break the bound. Each
run of the tests repeats the claims and compares the values with these.

{table(header, rows)}
"""


def api() -> str:
    """Every public name of the package with the first sentence of its docstring."""
    parts = []
    for path in sorted(book.PACKAGE.glob("[!_]*.py")):
        tree = ast.parse(path.read_text())
        rows = []
        for node in tree.body:
            kinds = (ast.FunctionDef, ast.ClassDef)
            if isinstance(node, kinds) and not node.name.startswith("_"):
                rows.append((f"`{signature(node)}`", sentence(node)))
        heading = f"## `flowtext.{path.stem}`\n\n{ast.get_docstring(tree)}"
        parts.append(f"{heading}\n\n{table(('name', 'what it does'), rows)}")
    return f"""{NOTE}
# The package, name by name

`flowtext` is the code that the chapters share. Shapes are in the type hints of the
source; `b` is the number of samples.

{chr(10).join(part + chr(10) for part in parts)}"""


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """A function with its arguments, or a class with its fields."""
    if isinstance(node, ast.ClassDef):
        fields = [f.target.id for f in node.body if isinstance(f, ast.AnnAssign)]
        made = [f for f in node.body if getattr(f, "name", "") == "__init__"]
        return f"{node.name}({', '.join(fields) or arguments(made[0].args)})"
    return f"{node.name}({arguments(node.args)})"


def arguments(args: ast.arguments) -> str:
    names = [a.arg for a in args.args if a.arg != "self"]
    if args.kwonlyargs:
        names += ["*", *[a.arg for a in args.kwonlyargs]]
    if args.kwarg:
        names.append(f"**{args.kwarg.arg}")
    return ", ".join(names)


def sentence(node: ast.FunctionDef | ast.ClassDef) -> str:
    text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    each = node.body if isinstance(node, ast.ClassDef) else []
    methods = [f.name for f in each if isinstance(f, ast.FunctionDef)]
    if public := [f"`.{name}`" for name in methods if not name.startswith("_")]:
        text += f" Has {', '.join(public)}."
    return text.replace("|", "\\|")


PAGES = {"status": status, "claims": claims, "api": api}


def main() -> None:
    for name, page in PAGES.items():
        (book.BOOK / "reference" / f"{name}.md").write_text(page())


if __name__ == "__main__":
    main()
