"""The lab itself: one test for each line of the rubric, named after its check."""

from __future__ import annotations

import pytest

from lab3.checks import CHECKS
from lab3.pytest_plugin import expect
from lab3.verdicts import Verdict

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_lab(verdict: Verdict) -> None:
    expect(verdict)
