"""Stands between lab3 and a server: `python -P serve_guard.py PARENT_PID GRACE_S COMMAND...` runs the command, and
nothing of it outlives the command's own end, a SIGTERM to the guard, or the death of PARENT_PID.

It is a process of its own because a parent that dies by SIGKILL cannot clean up. It adopts what its descendants leave
behind (Linux's "child subreaper"), so a daemonised grandchild, or LMDeploy's engine process after api_server crashed,
stays in its tree and is stopped too. It ends as the command ended: same exit code, same signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

import psutil

POLL_S = 0.1
LEFTOVER_GRACE_S = 3.0
UNKILLABLE_S = 20.0  # a process in uninterruptible sleep (a dead disk, a hung driver) cannot be waited for
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


def main(argv: Sequence[str]) -> int:
    """Run the command until it ends or must end, clean up, and return its exit code (negative: its signal)."""
    parent_pid, grace_s, command = int(argv[0]), float(argv[1]), list(argv[2:])
    asked_to_stop = _on_sigterm()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        family = _Family(subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent).pid)
    except OSError as error:
        sys.stderr.write(f"lab3: cannot run {command[0]}: {error}\n")
        return 127
    while family.returncode is None and not asked_to_stop() and os.getppid() == parent_pid:
        time.sleep(POLL_S)
        family.reap()
    return family.stop(grace_s=grace_s)


class _Family:
    """The command and all that descends from it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def stop(self, *, grace_s: float) -> int:
        """SIGTERM to the command, then to what it left behind, then SIGKILL to all that stayed."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self._wait(lambda: self.returncode is not None, timeout_s=grace_s)
        if self.returncode is not None:
            self._signal_all(signal.SIGTERM)
            self._wait(lambda: not self._members(), timeout_s=min(grace_s, LEFTOVER_GRACE_S))
        deadline = time.monotonic() + UNKILLABLE_S
        while self._members() and time.monotonic() < deadline:  # a death may hand over orphans not seen before
            self._signal_all(signal.SIGKILL)
            time.sleep(POLL_S / 5)
        return -signal.SIGKILL if self.returncode is None else self.returncode

    def reap(self) -> None:
        """Collect the dead, adopted ones too: a zombie keeps its place in the process table."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self.returncode = os.waitstatus_to_exitcode(status)

    def _members(self) -> list[psutil.Process]:
        self.reap()
        return psutil.Process().children(recursive=True)

    def _signal_all(self, signum: signal.Signals) -> None:
        for process in self._members():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signum)

    def _wait(self, condition: Callable[[], bool], *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.reap()
            if condition():
                return
            time.sleep(POLL_S / 2)


def _on_sigterm() -> Callable[[], bool]:
    asked: list[int] = []

    def remember(signum: int, _frame: FrameType | None) -> None:
        asked.append(signum)

    signal.signal(signal.SIGTERM, remember)
    return lambda: bool(asked)


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends, however that ends. Linux only."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # no prctl outside Linux: the tree alone must do there
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_as(returncode: int) -> None:
    """End by the same signal or code, so that whoever started the guard reads the command's own fate."""
    if returncode < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -returncode not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -returncode)
    sys.exit(returncode)


if __name__ == "__main__":
    _end_as(main(sys.argv[1:]))
