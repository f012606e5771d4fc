"""What a submission's scripts must show; the reference and a running server have none, which is unknown."""

from __future__ import annotations

import pytest

from lab3.grading.script_checks import SCRIPT_CHECKS
from lab3.pytest_plugin import expect
from lab3.verdicts import Verdict

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("check", SCRIPT_CHECKS, ids=lambda check: check.id)
def test_scripts(verdict: Verdict) -> None:
    expect(verdict)
