"""GPUs leased between one user's processes on this machine, so that two servers never share a card by accident."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab3.errors import InfraError, UsageError
from lab3.nvml import session, visible
from lab3.progress import Progress, silent

_POLL_S = 0.1
_CHOOSING_TIMEOUT_S = 10.0  # choosing takes milliseconds
_SLICE = "MIG-"
_TEMP = Path("/tmp")


@dataclass(frozen=True)
class Lease:
    """GPUs or MIG slices that nobody else leases while the block of `lease` runs."""

    uuids: tuple[str, ...]

    @property
    def env(self) -> dict[str, str]:
        """What a server's environment needs so that it uses these devices and no others."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.uuids)}


@contextmanager
def lease(
    count: int = 1,
    *,
    timeout_s: float,
    folder: Path | None = None,
    nvml: Any = None,
    environ: Mapping[str, str] = os.environ,
    progress: Progress = silent,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Lease]:
    """The first `count` visible devices that nobody leases, waited for if need be.

    Processes, and threads of one process, exclude each other if they use the same `folder` (default: one of the user).
    The kernel ends a lease with its process, however that ends. Memory that strangers use is not looked at.
    Raises NoDriver; UsageError if fewer than `count` are visible at all; InfraError, naming the holders, if too few
    become free in `timeout_s`, and if the locks cannot be kept.
    """
    with session(nvml) as lib:
        # A model is not split over slices: they have no peer access, and many drivers show a process only one.
        uuids = [uuid for uuid in leasable(lib, environ) if count == 1 or not uuid.startswith(_SLICE)]
    if not 1 <= count <= len(uuids):
        raise UsageError(
            f"{count}{' whole' if count > 1 else ''} GPUs are wanted, and {len(uuids)} can be leased.",
            why=f"CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES', '(not set)')}",
            todo="ask for at least one and at most as many as are visible; `nvidia-smi -L` lists them all",
        )
    end = clock() + timeout_s
    tell_at = clock()
    with ExitStack() as held:
        while not (found := _choose(uuids, count, folder, held)).taken:
            if clock() >= end:
                raise InfraError(
                    f"{count} of {len(uuids)} GPUs did not become free in {timeout_s:g} s.",
                    why="; ".join(found.busy),
                    todo="wait for a holder to finish, end it, or allow more time",
                    kind="gpu_busy",
                )
            if clock() >= tell_at:
                progress(f"waiting for a GPU: {'; '.join(found.busy)}")
                tell_at = clock() + 1
            sleep(_POLL_S)
        yield Lease(found.taken)


def leasable(lib: Any, environ: Mapping[str, str]) -> list[str]:
    """The UUIDs of the visible devices, in their order; a GPU with MIG enabled stands for its slices.

    CUDA by itself would use only the first slice, but it uses any that CUDA_VISIBLE_DEVICES names by UUID.
    """
    handles = [part for handle in visible(lib, environ) for part in _parts(lib, handle)]
    return list(dict.fromkeys(str(lib.nvmlDeviceGetUUID(handle)) for handle in handles))


def _parts(lib: Any, handle: Any) -> list[Any]:
    if str(lib.nvmlDeviceGetUUID(handle)).startswith(_SLICE):
        return [handle]
    try:
        enabled = lib.nvmlDeviceGetMigMode(handle)[0] == lib.NVML_DEVICE_MIG_ENABLE
    except lib.NVMLError:  # a GPU or a driver without MIG
        enabled = False
    if not enabled:
        return [handle]
    slices = []
    for index in range(lib.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(lib.NVMLError):  # there is none, or it is not passed into this container
            slices.append(lib.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
    return slices


@dataclass(frozen=True)
class _Choice:
    taken: tuple[str, ...]
    busy: tuple[str, ...]  # a clause on each device that somebody else has


def _choose(uuids: Sequence[str], count: int, folder: Path | None, held: ExitStack) -> _Choice:
    """Lock the first `count` free devices until `held` is closed, or none if there are too few."""
    from filelock import FileLock, Timeout

    taken: dict[str, Path] = {}
    busy: list[str] = []
    try:
        folder = _ready(folder)
        # One at a time: so what is locked is leased, not just being tried, and no two wait for each other's.
        with FileLock(folder / "choosing.lock", timeout=_CHOOSING_TIMEOUT_S), ExitStack() as trial:
            for uuid in uuids:
                file = folder / f"gpu-{uuid.replace('/', '_')}.lock"  # old drivers: MIG-GPU-<UUID>/1/0
                try:
                    # A lock counts per instance, so threads need their own, and any of them may end the lease.
                    trial.enter_context(FileLock(file, thread_local=False).acquire(timeout=0))
                except Timeout:
                    who = file.read_text(encoding="utf-8", errors="replace")
                    busy.append(f"{uuid} is held by {who or 'another process'}")
                    continue
                taken[uuid] = file
                if len(taken) == count:
                    for file in taken.values():
                        file.write_text(_myself(), encoding="utf-8", errors="replace")
                    held.push(trial.pop_all())
                    return _Choice(tuple(taken), tuple(busy))
    except OSError as error:  # a Timeout of choosing.lock is one, too
        raise InfraError(
            f"GPUs cannot be leased: {error}",
            why="the folder of the locks cannot be written, or a process was stopped while it chose",
            todo="make the folder yours and writable, or end the process that `fuser` shows for the lock",
        ) from error
    return _Choice((), tuple(busy))


def _ready(folder: Path | None) -> Path:
    """The folder, made if need be.

    By default under /tmp: $TMPDIR and $XDG_RUNTIME_DIR differ between jobs that must meet here, and /run/user/<uid>
    goes with the user's last login, its locks too, though a server left running keeps its card.
    """
    if folder is None:
        folder = _TEMP / f"lab3-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)  # refused if somebody else made it
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _myself() -> str:
    return f"process {os.getpid()} ({' '.join(' '.join(sys.orig_argv).split())[:120]})"
