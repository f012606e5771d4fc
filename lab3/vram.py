"""How much device memory a server holds: read once, watched for its peak, and waited for to be given back.

On a GPU this is nvidia-smi's figure and the server's share of it; on the CPU the memory of the server's processes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import psutil

from lab3 import nvml as _nvml
from lab3.errors import InfraError
from lab3.nvml import MIB, Device, Holder, devices, holders

__all__ = ["Device", "Holder", "Meter", "Reading", "devices", "format_mib", "holders", "read", "wait_freed"]


@dataclass(frozen=True)
class Reading:
    """Device memory at one moment, in whole MiB.

    GPU: `used_mib` is what nvidia-smi shows for the whole device, `process_mib` the share of the watched processes
    and `foreign_mib` that of all others; both are None where the driver does not tell (other PID namespaces, no pid).
    CPU: `used_mib` and `process_mib` are the watched processes' memory, shared pages counted once where the system
    tells (PSS); without a pid `used_mib` is the whole machine's. `total_mib` is the budget given, else the RAM.
    """

    device: str
    uuid: str | None
    used_mib: int
    total_mib: int
    process_mib: int | None
    foreign_mib: int | None
    method: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)


def read(
    pid: int | None = None,
    *,
    device: str = "auto",
    cpu_total_mib: int | None = None,
    nvml: Any = None,
    environ: Mapping[str, str] = os.environ,
) -> Reading:
    """One reading, with `pid` and all its descendants as the watched processes. Arguments and errors as `Meter`."""
    tree = _Tree.of(pid)
    with _reader(tree, device=device, cpu_total_mib=cpu_total_mib, nvml=nvml, environ=environ) as take:
        return take()


_REST = 50  # times as long as a reading of processes on the CPU took
_STILL_S = 10.0  # after which they are read even if none of them seems to have grown
_MOVED = MIB


class Meter:
    """Watches device memory from a thread while its block runs: `baseline`, `last`, `peak` (the highest `used_mib`).

    `device`: "auto" (the first visible GPU, else the CPU), "cpu", "cuda", "cuda:N" or a GPU's or MIG slice's UUID.
    `pid` may be of a server's first process: its descendants count, those too that outlive their parents.
    Peaks shorter than `interval_s` can be missed, and longer ones of processes on the CPU: a reading there walks
    through all their pages. A rest of fifty times as long follows, and lasts until their resident memory moves, which
    is told at no cost, but ten seconds at most. `nvml` is a stand-in for the `pynvml` module.
    Raises InfraError when a GPU was asked for and no driver answers, or NVML fails while watching (at the block's
    end); UsageError for a device that is not there.
    """

    def __init__(
        self,
        pid: int | None = None,
        *,
        device: str = "auto",
        interval_s: float = 0.2,
        cpu_total_mib: int | None = None,
        nvml: Any = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._tree = _Tree.of(pid)
        self._reader: AbstractContextManager[Callable[[], Reading]] = _reader(
            self._tree, device=device, cpu_total_mib=cpu_total_mib, nvml=nvml, environ=environ
        )
        self._interval_s = interval_s
        self._opened = ExitStack()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._watch, name="lab3-vram", daemon=True)

    def __enter__(self) -> Meter:
        with ExitStack() as opening:
            self._take = opening.enter_context(self._reader)
            self.baseline = self.last = self.peak = self._take()
            self._opened = opening.pop_all()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with self._opened:
            if self._error is None:
                self._try_sample()
        if self._error is not None and error is None:
            raise self._error

    def sample(self) -> Reading:
        """A reading now, counted like those of the thread. Raises InfraError if the device cannot be read."""
        with self._lock:
            self.last = self._take()
            if self.last.used_mib > self.peak.used_mib:
                self.peak = self.last
            return self.last

    def _watch(self) -> None:
        pause_s, resident = self._interval_s, 0
        while self._error is None and not self._stop.wait(pause_s):
            self._wait_while(resident)
            before = time.thread_time()
            self._try_sample()
            if self.baseline.uuid is None:
                pause_s = max(self._interval_s, _REST * (time.thread_time() - before))
                resident = self._resident()

    def _wait_while(self, resident: int) -> None:
        """As long as the watched processes have so many bytes in memory, but not longer than `_STILL_S`."""
        end = time.monotonic() + _STILL_S
        while resident and abs(self._resident() - resident) < _MOVED and time.monotonic() < end:
            if self._stop.wait(self._interval_s):
                return

    def _resident(self) -> int:
        """Bytes of the watched processes on the CPU, told at no cost; 0 where the whole machine is watched."""
        return self._tree.resident() if self._tree else 0

    def _try_sample(self) -> None:
        try:
            self.sample()
        except Exception as error:
            lost = InfraError(f"The device's memory can no longer be read: {error}", todo="run `nvidia-smi`")
            lost.__cause__ = error
            self._error = lost


def wait_freed(
    baseline: Reading,
    *,
    pid: int | None = None,
    timeout_s: float = 30.0,
    tolerance_mib: int = 64,
    interval_s: float = 0.2,
    nvml: Any = None,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Reading:
    """Wait until the device of `baseline` is back at its `used_mib`, give or take `tolerance_mib` above it.

    Give the `pid` that the baseline was taken with. Raises InfraError after `timeout_s`, naming who holds memory.
    """
    end = clock() + timeout_s
    with _reader(
        _Tree.of(pid), device=baseline.uuid or "cpu", cpu_total_mib=baseline.total_mib, nvml=nvml, environ=environ
    ) as take:
        while (now := take()).used_mib > baseline.used_mib + tolerance_mib:
            if clock() >= end:
                raise InfraError(
                    f"{now.device} still holds {format_mib(now.used_mib - baseline.used_mib)} more than before, "
                    f"{timeout_s:g} s after the server stopped.",
                    why=_who(nvml, environ) if baseline.uuid else "a process of the server is still running",
                    todo="stop what holds it; `nvidia-smi` or `ps` shows it",
                )
            sleep(interval_s)
    return now


def format_mib(mib: float | None) -> str:
    """For people: "20616 MiB (20.1 GiB)", or "unknown" for None."""
    if mib is None:
        return "unknown"
    return f"{mib:.0f} MiB" if abs(mib) < 1024 else f"{mib:.0f} MiB ({mib / 1024:.1f} GiB)"


@contextmanager
def _reader(
    tree: _Tree | None, *, device: str, cpu_total_mib: int | None, nvml: Any, environ: Mapping[str, str]
) -> Iterator[Callable[[], Reading]]:
    """A function that takes a reading of the device, usable inside the block."""
    if device == "auto":
        device = "cuda" if devices(nvml=nvml, environ=environ) else "cpu"
    if device == "cpu":
        yield lambda: _read_cpu(tree, cpu_total_mib)
        return
    with _nvml.session(nvml) as lib:
        handle = _nvml.choose(lib, device, environ)
        yield lambda: _read_gpu(lib, handle, tree)


def _read_gpu(lib: Any, handle: Any, tree: _Tree | None) -> Reading:
    memory = _nvml.memory(lib, handle)
    process_mib, foreign_mib = _shares(memory.by_pid, tree)
    return Reading(
        device=str(lib.nvmlDeviceGetName(handle)),
        uuid=str(lib.nvmlDeviceGetUUID(handle)),
        used_mib=memory.used_mib,
        total_mib=memory.total_mib,
        process_mib=process_mib,
        foreign_mib=foreign_mib,
        method=memory.method,
    )


def _shares(by_pid: Mapping[int, int | None], tree: _Tree | None) -> tuple[int | None, int | None]:
    """(the tree's MiB, everybody else's), or None for what cannot be known.

    In a container NVML may list nobody, or pids of the host, which mean nothing here. So "the tree holds nothing" is
    believed only when somebody is listed and everybody listed is a process of this namespace.
    """
    if tree is None:
        return None, None
    pids = {process.pid for process in tree.members()}
    mine = [used for pid, used in by_pid.items() if pid in pids]
    others = [used for pid, used in by_pid.items() if pid not in pids]
    if not mine and not (others and all(psutil.pid_exists(pid) for pid in by_pid)):
        return None, None
    return _sum(mine), _sum(others)


def _sum(parts: list[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _read_cpu(tree: _Tree | None, total_mib: int | None) -> Reading:
    ram = psutil.virtual_memory()
    total_mib = ram.total // MIB if total_mib is None else total_mib
    if tree is None:
        used_mib = (ram.total - ram.available) // MIB
        return Reading("cpu", None, used_mib, total_mib, None, None, "RAM in use on the machine")
    resident = [_resident(process) for process in tree.members()]
    used_mib = sum(used for used, _ in resident) // MIB
    kind = "PSS" if all(is_pss for _, is_pss in resident) else "RSS (shared pages count once for each process)"
    return Reading("cpu", None, used_mib, total_mib, used_mib, None, f"{kind} of the process tree")


def _resident(process: psutil.Process) -> tuple[int, bool]:
    """(bytes, whether they are PSS); (0, True) for a process that has gone meanwhile."""
    try:
        try:
            pss = int(getattr(process.memory_full_info(), "pss", 0))
        except psutil.AccessDenied:
            pss = 0
        return (pss, True) if pss else (int(process.memory_info().rss), False)
    except psutil.NoSuchProcess:
        return 0, True


class _Tree:
    """A process and its descendants, those too whose parents have gone since they were first seen."""

    def __init__(self, pid: int) -> None:
        self._seen: dict[psutil.Process, None] = {}  # in the order of discovery, so that roots come first
        with suppress(psutil.NoSuchProcess):
            self._seen[psutil.Process(pid)] = None

    @classmethod
    def of(cls, pid: int | None) -> _Tree | None:
        return None if pid is None else cls(pid)

    def resident(self) -> int:
        """Bytes in memory of those seen so far, shared pages as often as they are shared: told at no cost."""
        total = 0
        for process in list(self._seen):
            with suppress(psutil.Error):
                total += int(process.memory_info().rss)
        return total

    def members(self) -> list[psutil.Process]:
        reached: set[psutil.Process] = set()
        for process in list(self._seen):
            if process not in reached:  # listing children reads all of /proc: once for each root
                with suppress(psutil.NoSuchProcess):
                    reached.update(process.children(recursive=True))
        self._seen = {process: None for process in [*self._seen, *reached] if process.is_running()}
        return list(self._seen)


def _who(nvml: Any, environ: Mapping[str, str]) -> str:
    held = [
        f"{holder.name or 'a process elsewhere'} (pid {holder.pid}): {format_mib(holder.used_mib)}"
        for holder in holders(nvml=nvml, environ=environ)
    ]
    return ", ".join(held) or "the driver names no process that holds it"
