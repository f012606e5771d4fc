"""What the processes of a sandbox use together; the kernel's own limits are for each process alone."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

Excess = Literal["cpu", "memory", "files", "processes"]
_FIRST = "1"  # lab3's own process in there
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = resource.getpagesize()
_WRITABLE = ("tmp", "dev/shm")


@dataclass
class Watch:
    """Looks through the sandbox's own /proc, which lists its processes and no others. `init_pid`: its first one's."""

    init_pid: int
    cpu_s: float
    memory_mib: int
    files: int
    processes: int

    def __post_init__(self) -> None:
        self.used_cpu_s = 0.0
        self.peak_mib = 0
        root = f"/proc/{self.init_pid}/root"
        flags = os.O_RDONLY | os.O_DIRECTORY
        self._fds: list[int] = []
        self._proc = self._open(f"{root}/proc", flags)
        self._folders = [self._open(f"{root}/{name}", flags) for name in _WRITABLE]

    def look(self) -> Excess | None:
        """What there is too much of by now."""
        pids = [name for name in os.listdir(self._proc) if name.isdigit()]  # noqa: PTH208 (a descriptor)
        if len(pids) > self.processes + 1:  # before they are looked at: a kernel that lets them in lets in thousands
            return "processes"
        ticks, resident = 0, 0
        for pid in pids:
            with suppress(OSError, ValueError):  # it has ended
                ticks += self._ticks(pid)
                if pid != _FIRST:
                    resident += int(self._read(f"{pid}/statm").split()[1]) * _PAGE
        self.used_cpu_s = max(self.used_cpu_s, ticks / _TICKS)
        if resident >> 20 > self.memory_mib:
            # Pages that processes share were counted for each: this costs more and is exact.
            resident = sum(self._proportional(pid) for pid in pids if pid != _FIRST)
        self.peak_mib = max(self.peak_mib, resident >> 20)
        if resident >> 20 > self.memory_mib:
            return "memory"
        if self.used_cpu_s > self.cpu_s:
            return "cpu"
        if sum(self._entries(folder) for folder in self._folders) > self.files:
            return "files"
        return None

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _open(self, path: str, flags: int) -> int:
        self._fds.append(os.open(path, flags))
        return self._fds[-1]

    def _read(self, path: str) -> str:
        fd = os.open(path, os.O_RDONLY, dir_fd=self._proc)
        with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
            return file.read()

    def _ticks(self, pid: str) -> int:
        """Of a process, and of those that it has waited for; the first one waits for all orphans."""
        after_name = self._read(f"{pid}/stat").rpartition(")")[2].split()
        user, system, waited_user, waited_system = map(int, after_name[11:15])
        return waited_user + waited_system + (0 if pid == _FIRST else user + system)

    def _proportional(self, pid: str) -> int:
        """Its share of memory that is not just a file's, which the kernel can read again."""
        with suppress(OSError, ValueError, IndexError):
            lines = self._read(f"{pid}/smaps_rollup").splitlines()
            return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
        return 0

    def _entries(self, folder: int) -> int:
        status = os.fstatvfs(folder)
        return status.f_files - status.f_ffree
