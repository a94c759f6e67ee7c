"""The package keeps to its floors, its budget and its manners."""

import ast

import pytest

from tools import book

FLOORS = {
    "tensors": 0,
    "paths": 1,
    "solve": 1,
    "nets": 1,
    "score": 1,
    "data": 1,
    "worlds": 2,
    "objectives": 2,
    "guide": 2,
    "maps": 3,
    "consistency": 4,
    "fit": 5,
    "ladder": 5,
    "measure": 5,
    "sources": 5,
    "show": 5,
    "recipes": 6,
    "claims": 6,
}
SOURCES = {path.stem: path.read_text() for path in book.PACKAGE.glob("[!_]*.py")}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}
INHERITED = {"forward"}  # PyTorch says what it does
FORBIDDEN = {"torchvision", "flow_matching", "lightning", "accelerate"}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def code_lines(source):
    """Lines without blanks, comments and docstrings."""
    tree, words = ast.parse(source), set()
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node):
            words |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in words
        for number, line in lines
    )


def public(tree):
    """Public functions, classes and methods."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    seen = [each for each in classes if not each.name.startswith("_")]
    methods = [node for each in seen for node in each.body]
    for node in [*tree.body, *methods]:
        kinds = (ast.FunctionDef, ast.ClassDef)
        known = node.name in INHERITED if isinstance(node, kinds) else True
        if not known and not node.name.startswith("_"):
            yield node


def test_every_module_has_a_floor():
    assert SOURCES.keys() == FLOORS.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_only_lower_floors(name):
    for module in imported(TREES[name]):
        assert module.split(".")[0] not in FORBIDDEN
        if module.startswith("flowtext."):
            assert FLOORS[module.removeprefix("flowtext.")] < FLOORS[name], module


def test_the_package_keeps_to_its_budget():
    size = {name: code_lines(source) for name, source in SOURCES.items()}
    assert sum(n for name, n in size.items() if FLOORS[name] < 6) <= 2500
    assert sum(n for name, n in size.items() if FLOORS[name] == 6) <= 400
    assert max(size.values()) <= 300


@pytest.mark.parametrize("name", SOURCES)
def test_functions_are_short_and_say_what_they_do(name):
    for node in public(TREES[name]):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, node.name
        assert ast.get_docstring(node), node.name


def test_one_spelling_of_ends_and_times():
    for source in SOURCES.values():
        for foreign in ("x_0", "x_1", "sigma_t"):
            assert foreign not in source
