"""The facts that go into the sandbox and come out of it. `lab3.grading.sandbox` has them for others to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["exited", "signal", "timeout", "cpu", "memory", "files", "processes", "output"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """For all processes of a script together; `open_files` and `file_mib` for each process and file.

    `memory_mib` also bounds each process by itself. `files` is how many there may be in /tmp, which holds `tmp_mib`.
    """

    wall_s: float = 60.0
    cpu_s: int = 30
    memory_mib: int = 1024
    processes: int = 64  # and threads
    file_mib: int = 16
    output_kib: int = 256  # stdout and stderr together
    tmp_mib: int = 64
    open_files: int = 128
    files: int = 10_000
    connections: int = 32  # through the doors at once; more have to wait
    cpus: int = 4  # that it starts on: libraries start a thread for each


@dataclass(frozen=True, kw_only=True)
class Door:
    """Inside, `host:port` leads to this Unix socket outside.

    The host may be a name or an IPv4 address, any of which is this machine inside, or IPv6's ::1. Inside, a port leads
    to the same door on every host.
    """

    host: str
    port: int
    socket: Path


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What became of a script.

    "exited" and "signal" are its own end; all other outcomes are the limit at which it was ended. In `stdout` and
    `stderr` control characters are spelled out, so they may be shown anywhere; they are what the script claims.
    """

    outcome: Outcome
    returncode: int | None  # of "exited", and of "signal": negative, as subprocess does
    stdout: str
    stderr: str
    truncated: bool  # there was more output
    seconds: float
    cpu_seconds: float
    peak_mib: int  # as far as it was seen: it is looked at 20 times a second
    left_out: tuple[str, ...]  # of the folder, what the script could not see or open, and why
    door_trouble: tuple[str, ...]  # nobody answered behind a door: not the script's fault
    held_by: tuple[str, ...]  # what kept the limits on this machine
