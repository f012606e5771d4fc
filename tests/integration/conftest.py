"""Real LMDeploy servers on this machine's engine, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab3.serve import ApiServer


@pytest.fixture(scope="package")
def plain_server(embedded_model: Path) -> Iterator[ApiServer]:
    """The unquantized model with a 16-bit KV cache."""
    with ApiServer(embedded_model, kv_bits=16, cache_ratio=0.3) as server:
        yield server


@pytest.fixture(scope="package")
def quantized_server(w4a16: Path) -> Iterator[ApiServer]:
    """The lab's server: W4A16 and an int4 KV cache."""
    with ApiServer(w4a16, kv_bits=4, cache_ratio=0.3) as server:
        yield server
