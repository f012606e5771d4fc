"""Runs a student's script where it can do no harm, with no network but doors to the model server, and tells what became
of it. There is no other way to run one: without bubblewrap and user namespaces nothing is run.

Held: by namespaces, what it can see and reach; by a system call filter, what it can ask the kernel for; by limits, what
it can use. lab3.grading.sandbox_view lists what is inside.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab3.errors import InfraError, UsageError
from lab3.grading import sandbox_snapshot, sandbox_view
from lab3.grading.sandbox_layout import Layout, layout
from lab3.grading.sandbox_stage import Stage, stage
from lab3.grading.sandbox_start import started
from lab3.grading.sandbox_supervise import LOOK_S, Ended, supervise
from lab3.grading.sandbox_types import Door, Limits, Outcome, Ran

__all__ = ["Door", "Limits", "Ran", "check_sandbox", "printable", "run"]

LIMITS = Limits()
_CHECK = "check.py"
# The kernel does not limit the number of root's processes, so it is tried with a few that do no harm.
_CHECK_SCRIPT = """
import importlib.util, subprocess, sys
for name in ("openai", "requests"):
    open(importlib.util.find_spec(name).origin).close()
try:
    for _ in range(20):
        subprocess.Popen(["sleep", "20"])
    sys.exit("unlimited")
except BlockingIOError:
    print("ready")
"""
_CHECK_LIMITS = Limits(processes=10)
_checked: set[Path] = set()
_checking = threading.Lock()
# C0 and C1 but for tab and newline, other line ends, and what turns a line's words around.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def run(
    script: Path,
    *,
    folder: Path,
    doors: Sequence[Door] = (),
    limits: Limits = LIMITS,
    interpreter: Path = Path(sys.executable),
    stdin: str = "",
) -> Ran:
    """Run the script, a file in the folder, unchanged, as if its student had typed `python SCRIPT` where it lies.

    Blocks until nothing of it is left; many may run at once, in threads, none of which may have a running event loop.
    Raises UsageError for a script that is no file in the folder or doors that cannot be; InfraError if this machine has
    no sandbox, or broke it.
    """
    place = _place(script, folder)
    ways = layout(doors)
    check_sandbox(interpreter)
    with _infra_errors(), stage() as stage_:
        left_out = sandbox_snapshot.take(folder, stage_.files)
        if not _can_be_read(stage_.files / place, stage_.files):
            raise UsageError(
                f"{script} cannot be run.",
                why="; ".join(left_out) or "it is no regular file in the folder",
                todo="hand in the script itself, as a file",
            )
        return _run(stage_, place, ways=ways, limits=limits, interpreter=interpreter, stdin=stdin, left_out=left_out)


def check_sandbox(interpreter: Path = Path(sys.executable)) -> None:
    """Run lab3's own script in the sandbox, once in a process's life. If that fails: InfraError with the remedy."""
    with _checking:
        if interpreter in _checked:
            return
        with _infra_errors(), stage() as stage_:
            (stage_.files / _CHECK).write_text(_CHECK_SCRIPT, encoding="utf-8")
            (stage_.files / _CHECK).chmod(0o644)
            ran = _run(stage_, Path(_CHECK), ways=layout(()), limits=_CHECK_LIMITS, interpreter=interpreter)
        if ran.outcome == "processes" or ran.stderr == "unlimited\n":
            raise InfraError(
                "The number of a script's processes cannot be limited on this machine.",
                why="we are root, whom the kernel does not limit, and no other user is mapped into this container",
                todo="run lab3 as an ordinary user, or map more users into the container",
                kind="sandbox",
            )
        if ran.stdout != "ready\n":
            raise InfraError(
                "The sandbox starts, but Python does not work in it.",
                why=f"{ran.outcome} {ran.returncode}: {ran.stderr.strip()[-500:]}",
                todo=f"make the environment of {interpreter} readable for everybody: chmod -R o+rX FOLDER",
                kind="sandbox",
            )
        _checked.add(interpreter)


@contextmanager
def _infra_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # no disk, no descriptor, no process
        raise InfraError(
            f"The sandbox cannot be set up: {error}",
            why="this machine has run out of something",
            todo="make room on the disk of /tmp; allow more open files (ulimit -n) or fewer scripts at once",
            kind="sandbox",
        ) from error


def printable(output: bytes) -> str:
    """As text in which control characters, and those that turn a line around, are spelled out; lines stay lines."""
    text = output.decode("utf-8", "replace").replace("\r\n", "\n")
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _place(script: Path, folder: Path) -> Path:
    """The script's path in the folder."""
    file, top = script.parent.resolve() / script.name, folder.resolve()
    if folder.is_dir() and file.is_relative_to(top) and file != top:
        return file.relative_to(top)
    raise UsageError(f"{script} is not in the folder {folder}.", todo="name a script of the submission")


def _can_be_read(script: Path, files: Path) -> bool:
    """Whether it is in the copy, by any links that do not lead out of it, and not just its name and size."""
    real = script.resolve()
    return real.is_relative_to(files.resolve()) and real.is_file() and real.stat().st_mode & 0o444 != 0


def _run(
    stage_: Stage,
    place: Path,
    *,
    ways: Layout,
    limits: Limits,
    interpreter: Path,
    stdin: str = "",
    left_out: tuple[str, ...] = (),
) -> Ran:
    python = sandbox_view.python(interpreter)
    with started(
        _task(python, place, ways=ways, limits=limits),
        stage=stage_,
        python=python,
        names=ways.names,
        capabilities=ways.capabilities,
        tmp_mib=limits.tmp_mib,
        stdin=stdin,
    ) as sandbox:
        ended = supervise(sandbox, limits=limits, doors=ways.ports)
    outcome, returncode = _outcome(ended, limits)
    return Ran(
        outcome=outcome,
        returncode=returncode,
        stdout=printable(bytes(ended.output["stdout"])),
        stderr=printable(bytes(ended.output["stderr"])),
        truncated=ended.truncated,
        seconds=ended.seconds,
        cpu_seconds=ended.cpu_seconds,
        peak_mib=ended.peak_mib,
        left_out=tuple(printable(os.fsencode(name)).replace("\n", r"\n") for name in left_out),
        door_trouble=tuple(ended.door_trouble),
        held_by=_held_by(ended),
    )


def _task(python: sandbox_view.Python, place: Path, *, ways: Layout, limits: Limits) -> dict[str, Any]:
    """What sandbox_inside is told."""
    script = Path(sandbox_view.SUBMISSION, place)
    return {
        "ports": list(ways.ports),
        "addresses": list(ways.addresses),
        "cpus": limits.cpus,
        "rlimits": _rlimits(limits),
        "folder": str(script.parent),
        "command": [str(python.executable), str(script)],
        "environ": sandbox_view.environ(python),
    }


def _rlimits(limits: Limits) -> list[tuple[str, int, int]]:
    """Name, soft and hard limit. The hard one of the CPU is for who ignores the signal that comes at the soft one."""
    memory_bytes, file_bytes = limits.memory_mib << 20, limits.file_mib << 20
    values = {
        "RLIMIT_DATA": memory_bytes,
        # Also mappings that are no memory yet: libraries reserve much of it, shared memory is seen by the watch.
        "RLIMIT_AS": 4 * memory_bytes + (2 << 30),
        "RLIMIT_NPROC": limits.processes + 1,  # with lab3's own
        "RLIMIT_FSIZE": file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_SIGPENDING": 256,
        "RLIMIT_MEMLOCK": 1 << 20,
    }
    return [("RLIMIT_CPU", limits.cpu_s, limits.cpu_s + 1), *((name, most, most) for name, most in values.items())]


def _outcome(ended: Ended, limits: Limits) -> tuple[Outcome, int | None]:
    if ended.truncated:
        return "output", None
    if ended.limit is not None:
        return ended.limit, None
    if ended.out_of_memory:
        return "memory", None
    if ended.status is None:
        raise InfraError(
            "The sandbox ended before the script in it did.",
            why="somebody killed it, or this machine ran out of memory",
            todo="look for both in `dmesg`, then grade again",
            kind="sandbox",
        )
    returncode = os.waitstatus_to_exitcode(ended.status)
    if returncode == -signal.SIGXCPU or (returncode == -signal.SIGKILL and ended.cpu_seconds >= limits.cpu_s):
        return "cpu", None
    return ("signal" if returncode < 0 else "exited"), returncode


def _held_by(ended: Ended) -> tuple[str, ...]:
    together = "control group" if ended.cgroup else f"lab3, which looks every {LOOK_S:g} s"
    return (
        "namespaces and system call filter: what it sees and reaches",
        "limits of each process: CPU, memory, files, number of processes",
        f"{together}: memory of all processes together",
    )
