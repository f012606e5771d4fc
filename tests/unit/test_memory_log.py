"""The memory of a server over time: every moment is there, the peak too, and a reading that fails harms nothing."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest

from lab3.errors import InfraError
from lab3.hub import ServerSpec
from lab3.memory_log import MOST_POINTS, MemoryLog, Recording, thinned
from lab3.serve import ApiServer
from lab3.vram import Meter, Reading
from tests.unit.test_vram import FakeNvml, Gpu

SPEC = ServerSpec(model="m", kv_bits=4, cache_ratio=0.4)
NEVER_S = 3600.0  # the thread does not read: the moments do


def reading(used_mib: int) -> Reading:
    return Reading("cpu", None, used_mib, 6026, used_mib, None, "PSS of the process tree")


def recording(*figures: int | None) -> Recording:
    """One whose readings are these, a second apart."""
    told = iter(figures)

    def take() -> Reading | None:
        used_mib = next(told)
        return None if used_mib is None else reading(used_mib)

    seconds = itertools.count()
    return Recording(SPEC, take, interval_s=NEVER_S, clock=lambda: float(next(seconds)))


def test_each_moment_has_its_time_and_its_memory():
    log = recording(5, 3001, 3307, 7).start()
    log.mark("ready")
    log.mark("chat")
    log.close()

    assert log.facts().points == ((1.0, 5, "start"), (2.0, 3001, "ready"), (3.0, 3307, "chat"), (4.0, 7, "stopped"))


def test_it_says_which_server_it_was():
    log = recording(5, 6).start()
    log.close()

    facts = log.facts()
    assert (facts.kv_bits, facts.cache_ratio, facts.total_mib) == (4, 0.4, 6026)


def test_a_moment_that_comes_again_is_marked_once():
    log = recording(5, 3001, 7).start()
    log.mark("chat")
    log.mark("chat")
    log.close()

    assert [moment for _, _, moment in log.facts().points] == ["start", "chat", "stopped"]


def test_nothing_is_marked_after_the_end():
    log = recording(5, 7).start()
    log.close()
    log.mark("tools")
    log.close()

    assert [moment for _, _, moment in log.facts().points] == ["start", "stopped"]


def test_a_reading_that_fails_is_left_out():
    def fails() -> Reading:
        raise InfraError("the driver is gone")

    log = Recording(SPEC, fails, interval_s=NEVER_S).start()
    log.mark("chat")
    log.close()

    assert log.facts() is None


def test_the_thread_reads_between_the_moments():
    log = Recording(SPEC, lambda: reading(42), interval_s=0.001).start()
    while len(log.facts().points) < 5:
        pass
    log.close()

    assert [moment for _, _, moment in log.facts().points][1:-1] == [""] * (len(log.facts().points) - 2)


def test_a_few_points_stay_as_they_are():
    points = [(0.0, 1, "start"), (1.0, 2, ""), (2.0, 1, "stopped")]

    assert thinned(points, MOST_POINTS) == points


def test_many_points_become_few_and_keep_every_moment_and_the_peak():
    points = [(float(at), at % 97, "chat" if at == 1234 else "") for at in range(10_000)]
    points[7777] = (7777.0, 5000, "")
    kept = thinned(points, 150)

    assert len(kept) <= 150
    assert points[1234] in kept
    assert points[7777] in kept
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (points[0], points[-1])


@pytest.fixture
def no_server(monkeypatch):
    """LMDeploy is neither loaded nor started."""
    monkeypatch.setattr(ApiServer, "__init__", lambda self, *_, **__: setattr(self, "engine", "cpu"))
    monkeypatch.setattr(ApiServer, "start", lambda self: self)
    monkeypatch.setattr(ApiServer, "stop", lambda self, **_: None)
    monkeypatch.setattr(ApiServer, "pid", None)


def made(log: MemoryLog) -> ApiServer:
    return log.make(SPEC, env={}, log_path=Path("log"), progress=lambda *_, **__: None)


def test_a_server_is_recorded_from_its_start_to_its_end(no_server):
    log = MemoryLog()
    with made(log):
        log.moment("chat")

    (facts,) = log.facts()
    assert [moment for _, _, moment in facts.points] == ["start", "ready", "chat", "stopped"]


def test_servers_are_told_in_the_order_of_their_starts(no_server):
    log = MemoryLog()
    with made(log):
        pass
    with made(log):
        log.moment("tools")

    assert [[moment for _, _, moment in facts.points] for facts in log.facts()] == [
        ["start", "ready", "stopped"],
        ["start", "ready", "tools", "stopped"],
    ]


def test_a_server_that_does_not_start_is_recorded_until_then(no_server, monkeypatch):
    def fails(self: ApiServer) -> None:
        raise InfraError("no memory")

    monkeypatch.setattr(ApiServer, "start", fails)
    log = MemoryLog()
    with pytest.raises(InfraError, match="no memory"):
        made(log).start()

    assert [moment for _, _, moment in log.facts()[0].points] == ["start", "stopped"]


def test_on_a_gpu_the_cards_memory_is_recorded_and_the_driver_let_go(no_server, monkeypatch):
    gpu = Gpu("GPU-a", used_mib=500)
    nvml = FakeNvml(gpu)
    monkeypatch.setattr("lab3.memory_log.Meter", partial(Meter, nvml=nvml))
    log = MemoryLog()
    server = made(log)
    server.engine = "turbomind"
    with server:
        gpu.used_mib = 66_000
        log.moment("chat")

    (facts,) = log.facts()
    assert facts.total_mib == 81_559
    assert [mib for _, mib, moment in facts.points if moment] == [500, 500, 66_000, 66_000]
    assert nvml.open_sessions == 0


@pytest.mark.parametrize("error", [InfraError("no driver"), RuntimeError("the driver is odd")])
def test_a_server_whose_memory_cannot_be_read_starts_all_the_same(no_server, monkeypatch, error: Exception):
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr("lab3.memory_log.Meter", fails)
    log = MemoryLog()
    server = made(log)
    server.engine = "turbomind"
    with server:
        log.moment("chat")

    assert log.facts() == ()
