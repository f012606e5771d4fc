"""A control group for the processes of one sandbox, where this machine lets us have one: what they use together is then
the kernel's business. Elsewhere the limits of each process, and lab3.grading.sandbox_watch, must do."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CONTROLLERS = frozenset({"memory", "pids"})
_GONE_TIMEOUT_S = 5.0
_POLL_S = 0.01


@dataclass(frozen=True)
class Cgroup:
    """A group of its own, below or beside ours."""

    folder: Path

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed for it."""
        with suppress(OSError):
            for line in (self.folder / "memory.events").read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count) > 0
        return False

    def remove(self) -> None:
        """Once its processes have ended, which the kernel may notice a little late."""
        deadline = time.monotonic() + _GONE_TIMEOUT_S
        while True:
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)
            else:
                return


def confine(
    pid: int,
    *,
    memory_mib: int,
    processes: int,
    controllers: frozenset[str] = _CONTROLLERS,
    proc: Path = Path("/proc/self"),
) -> Cgroup | None:
    """Move the process into a new group with these limits. None where that is not possible, which is no error."""
    for parent in _parents(proc):
        try:
            if not controllers <= set((parent / "cgroup.subtree_control").read_text().split()):
                continue
            group = Cgroup(parent / f"lab3-sandbox-{uuid.uuid4().hex}")
            group.folder.mkdir()
        except OSError:
            continue
        try:
            _limit(group.folder, controllers, memory_mib=memory_mib, processes=processes)
            (group.folder / "cgroup.procs").write_text(str(pid))
        except OSError:
            with suppress(OSError):
                group.folder.rmdir()
            continue
        return group
    return None


def _limit(folder: Path, controllers: frozenset[str], *, memory_mib: int, processes: int) -> None:
    if "memory" in controllers:
        (folder / "memory.max").write_text(str(memory_mib << 20))
        with suppress(OSError):  # a kernel that does not account for swap
            (folder / "memory.swap.max").write_text("0")
    if "pids" in controllers:
        (folder / "pids.max").write_text(str(processes))


def _parents(proc: Path) -> Iterator[Path]:
    """Our own group and those above it, up to the first one that somebody has given a limit: we do not escape that."""
    try:
        own = [line[3:] for line in (proc / "cgroup").read_text().splitlines() if line.startswith("0::/")]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    tops = [Path(fields[4]) for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    if not own or not tops or ".." in own[0].split("/"):
        return
    group = tops[0] / own[0].strip("/")
    while True:
        yield group
        if group == tops[0] or _is_limited(group):
            return
        group = group.parent


def _is_limited(group: Path) -> bool:
    for name in ("memory.max", "pids.max"):
        with suppress(OSError):
            if (group / name).read_text().strip() != "max":
                return True
    return not os.access(group.parent, os.R_OK)
