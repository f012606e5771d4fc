"""Servers on real cards: never two on one, at once on two, and nothing of them is left when pytest is killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lab3 import vram
from lab3.chat import chat
from lab3.hub import Hub, ServerSpec

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


def spec(model: Path, kv_bits: int) -> ServerSpec:
    return ServerSpec(model=str(model), kv_bits=kv_bits, cache_ratio=0.1, engine="turbomind")


def test_a_server_that_nobody_uses_makes_room_on_the_only_card_for_another(
    hub: Hub, embedded_model: Path, monkeypatch: pytest.MonkeyPatch
):
    only = vram.devices()[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", only.uuid)
    member = hub.join()
    first = hub.attach(member, spec(embedded_model, 16))
    hub.detach(member, first.spec)
    second = hub.attach(member, spec(embedded_model, 8))
    assert first.device == second.device == only.uuid
    assert not psutil.pid_exists(first.pid)
    assert chat("Say hello.", base_url=second.base_url, max_tokens=8).text
    hub.leave(member)


def test_servers_that_fit_on_different_cards_run_at_once(hub: Hub, embedded_model: Path):
    cards = vram.devices()
    if len(cards) < 2:
        pytest.skip("this machine has one GPU")
    before = {card.uuid: vram.read(device=card.uuid).used_mib for card in cards}
    member = hub.join()
    running = [hub.attach(member, spec(embedded_model, bits)) for bits in (16, 8)]
    assert len({server.device for server in running}) == 2
    for server in running:
        assert chat("Say hello.", base_url=server.base_url, max_tokens=8).text
        assert vram.read(device=server.device).used_mib > before[server.device] + 0.1 * cards[0].total_mib
    hub.leave(member)


KEPT = """
import time

def test_a_server_is_up(api_server):
    api_server(weights="plain", kv_bits=16, cache_ratio=0.2, engine="turbomind")
    time.sleep(600)
"""


def test_pytest_killed_under_four_workers_leaves_no_process_and_no_memory_on_the_card(tmp_path: Path):
    before = {card.uuid: vram.read(device=card.uuid) for card in vram.devices()}
    (tmp_path / "test_kept.py").write_text(KEPT)
    command = [sys.executable, "-m", "pytest", "-p", "lab3.pytest_plugin", "-p", "no:cacheprovider", "-n", "4"]
    with (tmp_path / "said").open("w") as said:
        killed = subprocess.Popen(
            [*command, "--rootdir", str(tmp_path), "--lab3-out", str(tmp_path / "out"), str(tmp_path / "test_kept.py")],
            stdout=said, stderr=said, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
    _wait_ready(tmp_path, killed)
    assert any(vram.read(device=uuid).used_mib > then.used_mib + 1024 for uuid, then in before.items())
    family = [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    _gone, alive = psutil.wait_procs(family, timeout=10)
    assert not [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for then in before.values():
        vram.wait_freed(then, timeout_s=5)


def _wait_ready(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        for log in folder.rglob("*.log"):
            if re.search(r"Uvicorn running on http://127\.0\.0\.1:[0-9]+", log.read_text(errors="replace")):
                return
        time.sleep(0.1)
    raise AssertionError(f"no server came up: {(folder / 'said').read_text()[-2000:]}")
