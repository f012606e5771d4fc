"""The fixtures for tests of one's own: models quantized and servers started once for the whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lab3.capacity import kv_tokens
from lab3.chat import chat
from lab3.hub import RunningServer
from lab3.models import kv_bytes_per_token, read_config
from lab3.quantize import QuantizeResult

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("suite")]

Servers = Callable[..., RunningServer]


def test_a_model_is_quantized_once_for_all_who_ask(
    quantized_model: Callable[..., QuantizeResult], embedded_model: Path, w4a16: Path
):
    assert quantized_model(embedded_model).out == w4a16


def test_who_asks_for_the_same_server_gets_the_same(api_server: Servers):
    first = api_server()
    assert api_server(weights="w4a16", kv_bits=4, cache_ratio=0.4) == first
    assert "--quant-policy 4" in first.shell_command
    assert chat("What is the capital of Germany?", base_url=first.base_url, temperature=0.0, max_tokens=24).text


def test_it_is_still_up_for_the_next_test(api_server: Servers):
    assert api_server().startup_seconds > 0
    assert kv_tokens(api_server().base_url)


def test_weights_and_kv_policy_are_chosen_freely(api_server: Servers, embedded_model: Path):
    server, lab = api_server(weights="plain", kv_bits=16, cache_ratio=0.3), api_server()
    assert server.pid != lab.pid
    assert (server.spec.model, server.spec.kv_bits) == (str(embedded_model), 16)
    more, less = kv_tokens(lab.base_url), kv_tokens(server.base_url)
    assert more is not None
    assert less is not None
    config = read_config(embedded_model)
    # Three quarters of the memory and wider numbers; plain weights leave less of it, too.
    expected = 0.75 * kv_bytes_per_token(config, 4) / kv_bytes_per_token(config, 16)
    assert 0.75 * expected < less / more < 1.1 * expected
