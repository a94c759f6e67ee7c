"""After the chapters have run: the claims that they made are the claims in the book."""

import os
from pathlib import Path

import pytest

from tools import live


@pytest.mark.live
def test_live_claims_are_the_stored_ones():
    made = Path(os.environ["FLOWTEXT_CLAIMS"])
    assert live.differences(live.stored(), live.read(made)) == []
