"""TurboMind hands out its KV cache in slabs; what a server tells of its capacity is read off the wire and its log."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lab3.capacity import MIB, PAGE_BYTES, Slab, kv_tokens, slab_of, turbomind_tokens

# Of TurboMind of LMDeploy 0.18 on an H100, with the embedded model.
LOG = """
[TM][INFO][1125.10:11:12] Object cache budget: 15960.84 MB from free 79804.19 MB and ratio 0.200
[TM][WARNING] slab_size 33554432, object_size 1474560, object_count 22, ratio 0.9668
"""


@pytest.mark.parametrize(
    ("block_bytes", "slab"),
    [
        (1_474_560, Slab(32 * MIB, 22)),  # the embedded model in 16 bits, as the log says
        (6_291_456, Slab(128 * MIB, 21)),  # the 1.8B: 5 in a page and 10 in two would waste 6%
        (3_244_032, Slab(32 * MIB, 10)),
        (1_671_168, Slab(32 * MIB, 20)),
        (32 * MIB, Slab(32 * MIB, 1)),
        (33 * MIB, Slab(512 * MIB, 15)),  # two pages are half empty, and doubled until 95% are used
    ],
)
def test_a_slab_is_the_least_power_of_two_of_pages_that_is_used_to_95_percent(block_bytes: int, slab: Slab):
    assert slab_of(block_bytes) == slab


def test_a_slab_has_a_gibibyte_at_most_however_badly_it_is_used():
    assert slab_of(600 * MIB) == Slab(1024 * MIB, 1)


def test_only_whole_slabs_of_whole_pages_hold_tokens():
    slab = Slab(4 * PAGE_BYTES, 21)
    assert turbomind_tokens(8 * PAGE_BYTES - 1, slab) == 21 * 64
    assert turbomind_tokens(8 * PAGE_BYTES, slab) == 2 * 21 * 64
    assert turbomind_tokens(PAGE_BYTES, slab) == 0


class Answer(BaseHTTPRequestHandler):
    """/distserve/engine_info as the test's server has it."""

    def do_GET(self) -> None:
        body = json.dumps(self.server.answer).encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"


def test_the_pytorch_engine_tells_over_the_wire(server, tmp_path: Path):
    server.answer = json.dumps({"num_gpu_blocks": 4051, "block_size": 64})  # JSON within JSON, as LMDeploy sends it
    (tmp_path / "log").write_text(LOG)
    assert kv_tokens(url(server), tmp_path / "log") == 4051 * 64


def test_turbomind_tells_in_its_log(server, tmp_path: Path):
    server.answer = json.dumps({"num_gpu_blocks": None, "block_size": 64})
    (tmp_path / "log").write_text(LOG)
    assert kv_tokens(url(server), tmp_path / "log") == 498 * 22 * 64  # 15960 MiB are 498 pages


@pytest.mark.parametrize("log", ["", "[TM][INFO] Object cache budget: 15960.84 MB from free 1 MB", "slab_size x"])
def test_a_log_that_does_not_tell_is_no_capacity(server, tmp_path: Path, log: str):
    server.answer = {}
    (tmp_path / "log").write_text(log)
    assert kv_tokens(url(server), tmp_path / "log") is None
    assert kv_tokens(url(server), tmp_path / "missing") is None
    assert kv_tokens(url(server)) is None
