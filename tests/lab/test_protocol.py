"""The OpenAI protocol beyond the lab; what the server does not promise is not judged (--lab3-capabilities)."""

from __future__ import annotations

import pytest

from lab3.protocol import PROTOCOL_CHECKS
from lab3.pytest_plugin import expect
from lab3.verdicts import Verdict

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("check", PROTOCOL_CHECKS, ids=lambda check: check.id)
def test_protocol(verdict: Verdict) -> None:
    expect(verdict)
