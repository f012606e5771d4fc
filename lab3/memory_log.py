"""The memory of a run's servers over time: from before a server starts until it is gone, with what happened meanwhile.

The meter of lab3.hub watches for the peak of a server that is ready; this one tells how it came to that.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Self

from lab3.evidence import MemoryFacts
from lab3.hub import ServerSpec
from lab3.progress import Progress
from lab3.serve import ApiServer
from lab3.vram import Meter, Reading, read

MOST_POINTS = 150  # of a server
INTERVAL_S = {"cpu": 1.0}  # adding up a large process's pages takes tens of milliseconds
_OTHER_INTERVAL_S = 0.25
_SELDOM_S = 3600.0

Point = tuple[float, int, str]
Take = Callable[[], Reading | None]


class MemoryLog:
    """Remembers the servers of one run. `make` is what a Hub makes them with, `moment` tells what is happening now."""

    def __init__(self) -> None:
        self._recordings: list[Recording] = []

    def make(self, spec: ServerSpec, *, env: Mapping[str, str], log_path: Path | None, progress: Progress) -> ApiServer:
        """The server that a spec describes, not started yet; its memory is recorded from its start."""
        return _Recorded(spec, self._recordings.append, env=env, log_path=log_path, progress=progress)

    def moment(self, name: str) -> None:
        """Mark this moment in the memory of the servers that run now."""
        for recording in list(self._recordings):
            recording.mark(name)

    def facts(self) -> tuple[MemoryFacts, ...]:
        """What was recorded, in the order of the servers' starts."""
        found = (recording.facts() for recording in self._recordings)
        return tuple(each for each in found if each is not None)


class Recording:
    """One server's memory, read every `interval_s` from a thread. `take` reads it; None, or an error, is no reading."""

    def __init__(
        self,
        spec: ServerSpec,
        take: Take,
        *,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec, self._take, self._clock, self._interval_s = spec, take, clock, interval_s
        self._began = clock()
        self._points: list[Point] = []
        self._last: Reading | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="lab3-memory-log", daemon=True)

    def start(self) -> Self:
        """Begin, with the moment `start`."""
        self.mark("start")
        self._thread.start()
        return self

    def mark(self, name: str) -> None:
        """Read now, and remember the moment; one that comes again is marked the first time only."""
        if not self._ended.is_set() and not any(moment == name for _, _, moment in list(self._points)):
            self._sample(name)

    def close(self) -> None:
        """End, with the moment `stopped`."""
        if not self._ended.is_set():
            self.mark("stopped")
            self._ended.set()
            self._thread.join()

    def facts(self) -> MemoryFacts | None:
        """What is known, None without a reading."""
        if self._last is None:
            return None
        return MemoryFacts(
            kv_bits=self._spec.kv_bits,
            cache_ratio=self._spec.cache_ratio,
            total_mib=self._last.total_mib,
            method=self._last.method,
            points=tuple(thinned(self._points, MOST_POINTS)),
        )

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._sample("")

    def _sample(self, moment: str) -> None:
        with self._lock, suppress(Exception):  # whatever is wrong with a driver, the lab goes on
            reading = self._take()
            if reading is not None:
                self._last = reading
                self._points.append((round(self._clock() - self._began, 2), reading.used_mib, moment))


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` of the points (more only if there are more moments): the moments, and the highest of each span."""
    if len(points) <= most:
        return list(points)
    kept = {number for number, (_, _, moment) in enumerate(points) if moment} | {0, len(points) - 1}
    spans = max(0, most - len(kept))
    for span in range(spans):
        inside = range(span * len(points) // spans, (span + 1) * len(points) // spans)
        kept.add(max(inside, key=lambda number: points[number][1]))
    return [points[number] for number in sorted(kept)]


class _Recorded(ApiServer):
    """A server whose memory is recorded while it starts and runs."""

    def __init__(
        self,
        spec: ServerSpec,
        remember: Callable[[Recording], None],
        *,
        env: Mapping[str, str],
        log_path: Path | None,
        progress: Progress,
    ) -> None:
        super().__init__(**asdict(spec), env=env, log_path=log_path, progress=progress)
        self._spec, self._remember, self._environ = spec, remember, {**os.environ, **env}
        self._recording: ExitStack | None = None

    def start(self) -> Self:
        if self._recording is not None:
            return self
        with ExitStack() as opening:
            recording = self._record(opening)
            super().start()
            if recording is not None:
                recording.mark("ready")
            self._recording = opening.pop_all()
        return self

    def stop(self, *, keep_log: bool = False) -> None:
        try:
            super().stop(keep_log=keep_log)
        finally:
            recording, self._recording = self._recording, None
            if recording is not None:
                with suppress(Exception):  # that memory could not be read at the end is no news
                    recording.close()

    def _record(self, held: ExitStack) -> Recording | None:
        """Recording does not matter enough to keep a server from starting."""
        try:
            take = self._reader(held)
            recording = Recording(self._spec, take, interval_s=INTERVAL_S.get(self.engine, _OTHER_INTERVAL_S)).start()
        except Exception:  # a driver may raise anything
            return None
        held.callback(recording.close)
        self._remember(recording)
        return recording

    def _reader(self, held: ExitStack) -> Take:
        if self.engine != "cpu":
            # Its thread reads once an hour: the recording asks.
            meter = held.enter_context(Meter(device="cuda", interval_s=_SELDOM_S, environ=self._environ))
            return meter.sample
        from lab3.cpu.device import memory_budget

        total_mib = memory_budget() // 2**20

        def read_processes() -> Reading:
            pid = self.pid
            if pid is None:  # not started yet, or gone
                return Reading("cpu", None, 0, total_mib, 0, None, "PSS of the process tree")
            return read(pid, device="cpu", cpu_total_mib=total_mib)

        return read_processes
