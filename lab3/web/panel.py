"""What the page's panel tells of a server: memory used and predicted, the KV pool, how many requests it has."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lab3.capacity import kv_tokens
from lab3.models import kv_bytes_per_token, read_config
from lab3.nvml import MIB
from lab3.openai_client import api_url, is_this_machine
from lab3.vram import Reading, read
from lab3.vram_predict import Range, predict
from lab3.web.local import LocalServer, local_server
from lab3.web.wire import Endpoint

KEPT_S = 1.5  # a reading is good for all users that ask within that time
ANSWER_S = 2.0  # how long the server may take to tell its metrics

# "lmdeploy:gpu_cache_usage_perc{engine="0",model_name="m"} 0.25" (LMDeploy 0.18, lmdeploy/metrics/loggers.py)
_METRIC = re.compile(r"^lmdeploy:(?P<name>\w+)(?:\{[^}]*\})? (?P<value>[-+.\deE]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Metrics:
    """What the server tells of itself: `kv_used` is the share of the KV pool that is taken, from 0 to 1."""

    kv_used: float | None = None
    running: int | None = None
    waiting: int | None = None


@dataclass(frozen=True)
class Status:
    """A server at one moment; what is not known is None. `place`: "here", "elsewhere", "hidden" or "down"."""

    up: bool
    place: str
    engine: str | None = None
    memory: Reading | None = None
    ceiling: Range | None = None  # MiB, predicted
    kv_bits: int | None = None
    kv_tokens: int | None = None
    kv_pool_mib: float | None = None
    metrics: Metrics = Metrics()


class Watch:
    """Looks at one server when asked, at most every `KEPT_S`; never raises. `log_path` is of a server of our own."""

    def __init__(
        self,
        where: Endpoint,
        *,
        log_path: Callable[[], Path | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._where, self._log_path, self._clock = where, log_path, clock
        self._lock = threading.Lock()
        self._read_at_s: float | None = None
        self._status = Status(up=False, place="down")
        self._known: Status | None = None  # what stays the same while the process does
        self._known_pid: int | None = None

    def status(self) -> Status:
        """The last reading, or a new one if that is old."""
        with self._lock:
            now = self._clock()
            if self._read_at_s is None or now - self._read_at_s >= KEPT_S:
                with suppress(Exception):  # whatever is wrong with a driver or a server, the page goes on
                    self._status = self._look()
                self._read_at_s = self._clock()
            return self._status

    def _look(self) -> Status:
        told = _metrics(self._where)
        if told is None:
            self._known = None
            return Status(up=False, place="down")
        server = local_server(self._where.base_url)
        if isinstance(server, str):
            tokens = self._known.kv_tokens if self._known else kv_tokens(api_url(self._where.base_url))
            self._known = Status(up=True, place=server, kv_tokens=tokens)
            return replace(self._known, metrics=told)
        memory = _memory(server)
        if self._known is None or self._known_pid != server.pid:
            self._known, self._known_pid = self._constant(server, memory), server.pid
        return replace(self._known, memory=memory, metrics=told)

    def _constant(self, server: LocalServer, memory: Reading | None) -> Status:
        tokens = kv_tokens(api_url(self._where.base_url), self._log_path())
        pool = None
        if tokens is not None and server.folder is not None:
            pool = tokens * kv_bytes_per_token(read_config(server.folder), server.kv_bits) / MIB
        return Status(
            up=True,
            place="here",
            engine=server.engine,
            ceiling=_ceiling(server, memory),
            kv_bits=server.kv_bits,
            kv_tokens=tokens,
            kv_pool_mib=pool,
        )


def metrics_of(text: str) -> Metrics:
    """From the text that LMDeploy answers at /metrics; with several engines the requests add up."""
    found: dict[str, list[float]] = {}
    for match in _METRIC.finditer(text):
        with suppress(ValueError):
            found.setdefault(match["name"], []).append(float(match["value"]))
    used = found.get("gpu_cache_usage_perc")
    running, waiting = (found.get(f"num_requests_{state}") for state in ("running", "waiting"))
    return Metrics(
        kv_used=max(used) if used else None,
        running=int(sum(running)) if running else None,
        waiting=int(sum(waiting)) if waiting else None,
    )


def _metrics(where: Endpoint) -> Metrics | None:
    """None if the server does not answer at all; a server without metrics has empty ones."""
    import requests

    url = api_url(where.base_url)
    with requests.Session() as session:
        session.trust_env = not is_this_machine(url)
        headers = {"Authorization": f"Bearer {where.api_key}"}
        try:
            answer = session.get(url.removesuffix("/v1") + "/metrics", headers=headers, timeout=ANSWER_S)
        except requests.Timeout:
            return Metrics()  # it is there, and busy
        except requests.RequestException:
            return None
    return metrics_of(answer.text) if answer.ok else Metrics()


def _memory(server: LocalServer) -> Reading | None:
    with suppress(Exception):  # no driver, no such process: then there is no figure
        if server.engine == "cpu":
            return read(server.pid, device="cpu", cpu_total_mib=_cpu_total_mib(server))
        return read(server.pid, device="cuda", environ=server.environ)
    return None


def _cpu_total_mib(server: LocalServer) -> int | None:
    """What plays the card's memory for the server, where its environment and ours say the same; None: the RAM."""
    from lab3.cpu.device import MEMORY_VARIABLE, memory_budget

    if server.environ.get(MEMORY_VARIABLE) != os.environ.get(MEMORY_VARIABLE):
        return None
    return memory_budget() // MIB


def _ceiling(server: LocalServer, memory: Reading | None) -> Range | None:
    """What the card will show at most with this server on it; None without a card or the model's folder."""
    if memory is None or memory.uuid is None or server.folder is None:
        return None
    with suppress(Exception):  # lab3 predicts AWQ only, and not every engine
        return predict(
            total_mib=memory.total_mib,
            ratio=server.ratio,
            kv_bits=server.kv_bits,
            engine=server.engine,
            model=server.folder,
            foreign_mib=memory.foreign_mib or 0.0,
        ).used
    return None
