"""The web page's panel tells the memory of a server on the card, the ceiling that was predicted, and its KV pool."""

from __future__ import annotations

import pytest

from lab3.serve import ApiServer
from lab3.web.panel import Watch
from lab3.web.wire import Endpoint
from tests.gpu.conftest import Lab

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("own_gpu")]


def test_it_shows_what_the_card_holds_and_what_was_predicted(lab: Lab):
    with ApiServer(lab.w4a16, kv_bits=4, cache_ratio=0.4, engine="turbomind") as server:
        found = Watch(Endpoint(server.base_url), log_path=lambda: server.log_path).status()
    assert (found.up, found.place, found.engine, found.kv_bits) == (True, "here", "turbomind", 4)
    assert found.memory is not None
    assert found.ceiling is not None
    assert found.memory.used_mib == pytest.approx(found.ceiling.point, rel=0.015)
    assert found.kv_tokens
    assert found.kv_pool_mib is not None
    assert 0 < found.kv_pool_mib < found.memory.used_mib
    assert not Watch(Endpoint(server.base_url)).status().up
