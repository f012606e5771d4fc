"""Lets a sandbox run within its limits: reads its output, serves its doors, looks at what it uses, and ends it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab3.grading import sandbox_cgroup, sandbox_doors, sandbox_inside
from lab3.grading.sandbox_start import Sandbox
from lab3.grading.sandbox_types import Limits, Outcome
from lab3.grading.sandbox_watch import Watch

LOOK_S = 0.05
_OWN_MIB = 64  # for lab3's own process inside, /dev/shm and the kernel
_MOST_TROUBLE = 20
_CHUNK_BYTES = 1 << 16


@dataclass
class Ended:
    """How it ended and what came out. `limit` is None if it ended by itself, `status` None if it did not."""

    limit: Outcome | None = None
    status: int | None = None  # as os.wait tells
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: int = 0
    out_of_memory: bool = False
    truncated: bool = False
    cgroup: bool = False
    door_trouble: list[str] = field(default_factory=list)
    output: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})


def supervise(sandbox: Sandbox, *, limits: Limits, doors: Mapping[int, Path]) -> Ended:
    """Let it go, and return when nothing of it is left. `doors`: the sockets behind its ports, in their order."""
    ended = Ended()
    group = sandbox_cgroup.confine(
        sandbox.init_pid, memory_mib=limits.memory_mib + limits.tmp_mib + _OWN_MIB, processes=limits.processes + 1
    )
    ended.cgroup = group is not None
    watch = Watch(
        sandbox.init_pid,
        cpu_s=limits.cpu_s,
        memory_mib=limits.memory_mib,
        files=limits.files,
        processes=limits.processes,
    )
    try:
        asyncio.run(_run(sandbox, ended, limits=limits, doors=doors, watch=watch))
        if group is not None:
            ended.out_of_memory = group.ran_out_of_memory()
    finally:
        sandbox.stop()
        watch.close()
        if group is not None:
            group.remove()
    ended.cpu_seconds = max(ended.cpu_seconds, watch.used_cpu_s)
    ended.peak_mib = max(ended.peak_mib, watch.peak_mib)
    return ended


async def _run(sandbox: Sandbox, ended: Ended, *, limits: Limits, doors: Mapping[int, Path], watch: Watch) -> None:
    loop = asyncio.get_running_loop()
    end: asyncio.Future[Outcome | None] = loop.create_future()

    def finish(why: Outcome | None) -> None:
        if not end.done():
            end.set_result(why)

    def trouble(what: str) -> None:
        if what not in ended.door_trouble and len(ended.door_trouble) < _MOST_TROUBLE:
            ended.door_trouble.append(what)

    def status() -> None:
        told = b""
        with suppress(OSError):  # it was killed before it had read what we sent
            told = sandbox.control.recv(sandbox_inside.ENDED.size)
        if len(told) == sandbox_inside.ENDED.size:
            ended.status, ended.cpu_seconds, most_kib = sandbox_inside.ENDED.unpack(told)
            ended.peak_mib = most_kib >> 10
        loop.remove_reader(sandbox.control)
        finish(None)

    def broken(task: asyncio.Task[None]) -> None:
        """They are made to run until they are cancelled; whatever else ends one is a mistake in here."""
        if not task.cancelled() and not end.done():
            end.set_exception(task.exception() or RuntimeError("a part of the sandbox has ended too early"))

    output = _Output(sandbox, ended, limit_bytes=limits.output_kib << 10, full=lambda: finish("output"))
    slots = asyncio.Semaphore(limits.connections)
    tasks = [loop.create_task(_look(watch, finish))]
    tasks += [
        loop.create_task(sandbox_doors.serve(listener, to=to, slots=slots, trouble=trouble))
        for listener, to in zip(sandbox.listeners, doors.values(), strict=True)
    ]
    for task in tasks:
        task.add_done_callback(broken)
    output.open()
    loop.add_reader(sandbox.control, status)
    began = time.monotonic()
    loop.call_later(limits.wall_s, finish, "timeout")
    try:
        sandbox.go()
        ended.limit = await end
        ended.seconds = time.monotonic() - began
    finally:
        with suppress(OSError):
            watch.look()  # once more, while its first process may still be there
        sandbox.stop()
        loop.remove_reader(sandbox.control)
        output.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _look(watch: Watch, finish: Callable[[Outcome | None], None]) -> None:
    while True:
        with suppress(OSError):  # the sandbox has just ended
            if (excess := watch.look()) is not None:
                finish(excess)
        await asyncio.sleep(LOOK_S)


class _Output:
    """The two pipes, read as they fill, up to a limit that they share."""

    def __init__(self, sandbox: Sandbox, ended: Ended, *, limit_bytes: int, full: Callable[[], None]) -> None:
        pipes = {"stdout": sandbox.process.stdout, "stderr": sandbox.process.stderr}
        self._fds = {name: pipe.fileno() for name, pipe in pipes.items() if pipe is not None}
        self._ended = ended
        self._left_bytes = limit_bytes
        self._full = full

    def open(self) -> None:
        loop = asyncio.get_running_loop()
        for name, fd in self._fds.items():
            os.set_blocking(fd, False)
            loop.add_reader(fd, self._read, name)

    def close(self) -> None:
        """Read what is left in the pipes, which nobody writes to any more."""
        for name, fd in self._fds.items():
            asyncio.get_running_loop().remove_reader(fd)
            with suppress(BlockingIOError):
                while not self._ended.truncated and self._read(name):
                    pass

    def _read(self, name: str) -> bool:
        with suppress(BlockingIOError):
            data = os.read(self._fds[name], _CHUNK_BYTES)
            if not data:
                asyncio.get_running_loop().remove_reader(self._fds[name])
                return False
            self._ended.output[name] += data[: self._left_bytes]
            if len(data) > self._left_bytes:
                self._ended.truncated = True
                self._full()
            self._left_bytes -= min(len(data), self._left_bytes)
            return True
        return False
