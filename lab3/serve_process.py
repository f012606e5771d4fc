"""A server as a process: mirakuru starts it, waits until it is ready and stops it; a guard lets nothing survive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Self

import psutil
from mirakuru import HTTPExecutor
from mirakuru.base import ENV_UUID
from mirakuru.base_env import processes_with_env
from mirakuru.exceptions import ExecutorError

from lab3 import ports, serve_guard

REQUEST_TIMEOUT_S = 2.0
GONE_TIMEOUT_S = 10.0
POLL_S = 0.02
LOOK_EVERY_S = 0.05  # whether it is ready


class StartFailed(Exception):
    """The server did not become ready: `returncode` when it ended, `timed_out` or `stranger` when it did not."""

    def __init__(self, *, returncode: int | None = None, timed_out: bool = False, stranger: bool = False) -> None:
        super().__init__(returncode, timed_out, stranger)
        self.returncode = returncode
        self.timed_out = timed_out
        self.stranger = stranger


class ServerProcess(HTTPExecutor):  # type: ignore[misc]  # mirakuru is skipped by mypy
    """`start()` returns when `http://host:port/health` answers 2xx *and* it is our process that listens there.

    `watch(elapsed_s)` is called while waiting. `start()` raises StartFailed at once when the process ends, whatever its
    exit code, when somebody else answers on the port, or after `timeout_s`. `stop()` sends SIGTERM, after `grace_s`
    SIGKILL, and returns when no process of the server is left.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        host: str,
        port: int,
        log: IO[str],
        env: Mapping[str, str],
        timeout_s: float,
        grace_s: float,
        watch: Callable[[float], None],
    ) -> None:
        # By its path, and without that path's folder on sys.path (-P): it must start in any working directory.
        guard = [sys.executable, "-P", serve_guard.__file__, str(os.getpid()), str(grace_s)]
        super().__init__(
            [*guard, *command],
            url=f"http://{ports.bracketed(host)}:{port}/health",
            method="GET",
            request_timeout=REQUEST_TIMEOUT_S,
            sleep=LOOK_EVERY_S,
            timeout=timeout_s + REQUEST_TIMEOUT_S + 1.0,  # a backstop: check_subprocess keeps the time
            envvars=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        # mirakuru kills, at a Python's exit, every process whose mark *contains* that Python's pid. Ours has no digits,
        # so pid 45 does not kill a server marked "...-a451-...". The guard does what mirakuru's exit hook is for.
        self._uuid = "lab-" + uuid.uuid4().hex.translate(str.maketrans("0123456789", "ghijklmnop"))
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._watch = watch
        self._started_at = time.monotonic()

    def start(self) -> Self:
        self._started_at = time.monotonic()
        return super().start()  # type: ignore[no-any-return]

    def stop(self, *_: Any, **__: Any) -> Self:
        self._timeout = self._grace_s + serve_guard.LEFTOVER_GRACE_S + serve_guard.UNKILLABLE_S + 2.0
        ours = self._marked()  # now: a dying process loses its mark before its place in the process table
        try:
            super().stop()
        except ExecutorError:
            pass  # how it ended after it was told to end is no news
        finally:  # also after a second Ctrl-C, and for what lives on although the guard was killed
            ours += self._marked()
            self.kill()
            _wait_gone(ours, timeout_s=GONE_TIMEOUT_S)
        return self

    def pids(self) -> list[int]:
        """The guard, the server and all their descendants."""
        if self.process is None:
            return []
        try:
            root = psutil.Process(self.process.pid)
            return [root.pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.Error:
            return []

    def server_pid(self) -> int | None:
        """The server's own process: the guard's first child (later ones are orphans that the guard adopted)."""
        try:
            children = psutil.Process(self.process.pid).children() if self.process else []
            return min(children, key=psutil.Process.create_time).pid if children else None
        except psutil.Error:
            return None

    def pre_start_check(self) -> bool:
        """mirakuru asks whether the port is taken; `ports.reserve` has seen to that, with a better error."""
        return False

    def check_subprocess(self) -> bool:
        if self.process is not None and (returncode := self.process.poll()) is not None:
            raise StartFailed(returncode=returncode)
        elapsed_s = time.monotonic() - self._started_at
        if elapsed_s > self._timeout_s:
            raise StartFailed(timed_out=True)
        self._watch(elapsed_s)
        if not self.after_start_check():
            return False
        if not ports.listens(self.pids(), self.port):
            raise StartFailed(stranger=True)
        return True

    def _marked(self) -> list[psutil.Process]:
        found = []
        for pid in processes_with_env(ENV_UUID, self._uuid):
            try:
                found.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
        return found


def _wait_gone(processes: Sequence[psutil.Process], *, timeout_s: float) -> None:
    """Until none of them runs. A zombie does not: in a container without an init nobody may ever collect it."""
    deadline = time.monotonic() + timeout_s
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False
