"""What is random: asked many times, and judged by the bounds that k of n tell."""

from __future__ import annotations

import pytest

from lab3.noise import NOISE_CHECKS
from lab3.pytest_plugin import expect
from lab3.verdicts import Verdict

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("check", NOISE_CHECKS, ids=lambda check: check.id)
def test_samples(verdict: Verdict) -> None:
    expect(verdict)
