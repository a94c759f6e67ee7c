import json

import pytest

from flowtext.claims import claim


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    path = tmp_path / "claims.jsonl"
    monkeypatch.setenv("FLOWTEXT_CLAIMS", str(path))
    return path


def test_a_claim_that_holds_prints_one_stable_line(ledger, shown):
    claim("small", 0.1, "<", 0.2, wrong=0.3)
    (output,) = shown
    assert output["data"] == {"text/plain": "claim small: holds"}
    record = json.loads(ledger.read_text())
    assert output["metadata"]["flowtext"] == record
    expected = {"claim": "small", "value": 0.1, "relation": "<", "bound": 0.2}
    assert record == expected | {"wrong": 0.3, "seeds": [0], "device": "cpu"}


@pytest.mark.parametrize(
    ("value", "relation", "bound", "wrong"),
    [(1, "<", 1, 2), (2, "<=", 1, 2), (1, ">", 1, 0), (0, ">=", 1, 0)],
)
def test_a_false_claim_is_an_error(ledger, value, relation, bound, wrong):
    with pytest.raises(AssertionError, match="claim tall"):
        claim("tall", value, relation, bound, wrong=wrong)
    assert not ledger.exists()


def test_nan_never_holds(ledger):
    with pytest.raises(AssertionError):
        claim("nothing", float("nan"), "<", 1, wrong=2)


def test_a_claim_that_cannot_fail_is_refused(ledger):
    with pytest.raises(ValueError, match="says nothing"):
        claim("empty", 1, "<", 10, wrong=2)
    assert not ledger.exists()


def test_a_relation_is_one_of_four():
    with pytest.raises(ValueError, match="got relation '=='"):
        claim("equal", 1, "==", 1, wrong=2)


def test_a_wrong_case_is_a_number(ledger):
    with pytest.raises(ValueError, match="got wrong = nan, expected a finite wrong"):
        claim("vague", 0.1, "<", 0.2, wrong=float("nan"))
    assert not ledger.exists()
