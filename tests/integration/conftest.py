"""Real LMDeploy servers on this machine's engine, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab3.hub import RunningServer


@pytest.fixture
def plain_server(api_server: Callable[..., RunningServer]) -> RunningServer:
    """The unquantized model with a 16-bit KV cache. Only one test asks it anything, so that one is alone with it."""
    return api_server(weights="plain", kv_bits=16, cache_ratio=0.3)


@pytest.fixture
def quantized_server(api_server: Callable[..., RunningServer]) -> RunningServer:
    """W4A16 and an int4 KV cache, as the lab's server; that one's memory is measured, so it is not asked all this."""
    return api_server(weights="w4a16", kv_bits=4, cache_ratio=0.3)
