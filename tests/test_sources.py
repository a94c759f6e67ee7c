"""A fingerprint changes with the code behind a result, and with nothing else."""

import re

import pytest

from flowtext import sources

MODULES = {
    "low": (
        '"""Low."""\nHALF = 0.5\n\n\n'
        'def shrink(x):\n    """Less."""\n    return HALF * x\n'
    ),
    "high": (
        "from flowtext import low\nfrom flowtext.low import shrink as less\n"
        "TABLE = {}\n\n\n"
        "def through(x):\n    return low.shrink(x)\n\n\n"
        "def named(x):\n    return less(x)\n\n\n"
        "def listed(x):\n    return TABLE[x]\n\n\n"
        "def other(x):\n    return x\n"
    ),
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules, and a way to change one of its texts."""
    monkeypatch.setattr(sources, "HERE", tmp_path)

    def write(old="", new=""):
        for name, text in MODULES.items():
            (tmp_path / f"{name}.py").write_text(
                text.replace(old, new) if old else text
            )
        sources._names.cache_clear()

    write()
    yield write
    sources._names.cache_clear()


@pytest.mark.parametrize("name", ["through", "named"])
def test_a_change_far_below_is_seen(package, name):
    before = sources.fingerprint(f"high.{name}")
    package("0.5", "0.25")
    assert sources.fingerprint(f"high.{name}") != before


def test_words_and_neighbours_do_not_count(package):
    before = sources.fingerprint("high.through")
    package("Less.", "Much less.")
    assert sources.fingerprint("high.through") == before
    package("def other(x):\n    return x", "def other(x):\n    return 2 * x")
    assert sources.fingerprint("high.through") == before
    assert sources.fingerprint("high.other") != before


def test_what_is_set_apart_does_not_count(package):
    before = sources.fingerprint("high.listed", apart=("TABLE",))
    whole = sources.fingerprint("high.listed")
    package("TABLE = {}", "TABLE = {1: 2}")
    assert sources.fingerprint("high.listed", apart=("TABLE",)) == before
    assert sources.fingerprint("high.listed") != whole


def test_a_module_can_be_set_apart(package):
    before = sources.fingerprint("high.through", apart=("low",))
    package("0.5", "0.25")
    assert sources.fingerprint("high.through", apart=("low",)) == before


def test_a_name_that_is_not_there_is_refused(package):
    with pytest.raises(ValueError, match=re.escape("got 'gone', expected one of")):
        sources.fingerprint("high.gone")
