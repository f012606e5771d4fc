"""NVIDIA devices as NVML shows them: which this process may use, how much memory is taken, and by whom."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from lab3.errors import InfraError, UsageError

MIB = 2**20


@dataclass(frozen=True)
class Device:
    """A visible GPU (or MIG slice). `index` is its place among the visible ones: the N of `cuda:N`."""

    index: int
    name: str
    uuid: str
    total_mib: int
    compute_capability: str | None
    driver_version: str


@dataclass(frozen=True)
class Holder:
    """A process that holds GPU memory. `name` is None if it is in another container, `used_mib` if NVML is not told."""

    pid: int
    name: str | None
    used_mib: int | None
    device_uuid: str


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device in whole MiB, and `by_pid`: each process's share (None where the driver hides it).

    `used_mib` is nvidia-smi's figure, which is NVML's memory info v2: what driver and firmware reserve is not in it
    (seen on an H100, driver 580: idle, nvidia-smi and v2 say 0 used and 480 reserved, and v1 says 480 used).
    Drivers before R510 have only v1, whose `used` includes it; then `method` says so and `reserved_mib` is None.
    """

    used_mib: int
    total_mib: int
    reserved_mib: int | None
    by_pid: Mapping[int, int | None]
    method: str


def devices(*, nvml: Any = None, environ: Mapping[str, str] = os.environ) -> list[Device]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible; none on a machine without driver.

    CUDA's own numbering may differ between unlike cards unless CUDA_DEVICE_ORDER=PCI_BUS_ID, which NVML always has.
    """
    try:
        with session(nvml) as lib:
            driver = str(lib.nvmlSystemGetDriverVersion())
            return [_device(lib, handle, index, driver) for index, handle in enumerate(visible(lib, environ))]
    except NoDriver:
        return []


def holders(*, nvml: Any = None, environ: Mapping[str, str] = os.environ) -> list[Holder]:
    """Who holds memory of the visible GPUs, as far as the driver tells (in a container it may tell nothing)."""
    try:
        with session(nvml) as lib:
            return [
                Holder(pid, _process_name(pid), used_mib, str(lib.nvmlDeviceGetUUID(handle)))
                for handle in visible(lib, environ)
                for pid, used_mib in memory(lib, handle).by_pid.items()
            ]
    except NoDriver:
        return []


class NoDriver(InfraError):
    """This machine has no NVIDIA driver that NVML can talk to."""


@contextmanager
def session(nvml: Any = None) -> Iterator[Any]:
    """NVML, initialised. Raises NoDriver if there is none, InfraError for what NVML refuses inside the block."""
    lib = nvml
    if lib is None:
        import pynvml as lib  # type: ignore[no-redef]
    try:
        lib.nvmlInit()
    except lib.NVMLError as error:
        raise NoDriver(
            f"No NVIDIA driver answers: {error}.",
            why="this machine has no NVIDIA GPU, or its driver is not loaded or not passed into the container",
            todo="run `nvidia-smi`; to measure on the CPU, ask for device cpu",
        ) from error
    try:
        yield lib
    except lib.NVMLError as error:
        raise InfraError(f"NVML failed: {error}.", todo="run `nvidia-smi` and look at `dmesg`") from error
    finally:
        with suppress(lib.NVMLError):  # a lost GPU refuses this too
            lib.nvmlShutdown()


def visible(lib: Any, environ: Mapping[str, str]) -> list[Any]:
    """The handles in CUDA's order: CUDA_VISIBLE_DEVICES by index, UUID, its beginning, or MIG UUID.

    As in CUDA, the list ends at the first entry that names no device.
    """
    every = [lib.nvmlDeviceGetHandleByIndex(index) for index in range(lib.nvmlDeviceGetCount())]
    asked = environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return every
    chosen: list[Any] = []
    for entry in asked.split(","):
        handle = _named(lib, entry.strip(), every)
        if handle is None:
            break
        chosen.append(handle)
    return chosen


def choose(lib: Any, device: str, environ: Mapping[str, str]) -> Any:
    """The handle of "cuda", "cuda:N" (N among the visible) or a UUID. Raises UsageError if there is no such device."""
    usable = visible(lib, environ)
    kind, _, index = device.partition(":")
    if kind == "cuda" and (index or "0").isdecimal() and int(index or "0") < len(usable):
        return usable[int(index or "0")]
    handle = _named(lib, device, usable) if device.startswith(("GPU-", "MIG-")) else None
    if handle is None:
        names = [f"cuda:{number} ({lib.nvmlDeviceGetUUID(each)})" for number, each in enumerate(usable)]
        raise UsageError(
            f"There is no device {device!r}.",
            why=f"CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES', '(not set)')}",
            todo=f"use cpu, auto or one of: {', '.join(names) or '(no GPU is visible)'}",
        )
    return handle


def memory(lib: Any, handle: Any) -> DeviceMemory:
    """The device's memory and its holders, now."""
    try:
        info = lib.nvmlDeviceGetMemoryInfo(handle, version=lib.nvmlMemory_v2)
        reserved_mib, method = _mib(info.reserved), "nvml memory info v2"
    except lib.NVMLError:
        info = lib.nvmlDeviceGetMemoryInfo(handle)
        reserved_mib, method = None, "nvml memory info v1 (used includes reserved)"
    try:
        processes = lib.nvmlDeviceGetComputeRunningProcesses(handle)
    except Exception:  # refused, or a driver so old that pynvml raises its own mismatch error
        processes = []
    by_pid: dict[int, int | None] = {}
    for process in processes:
        before = by_pid.get(process.pid, 0)
        used = process.usedGpuMemory
        by_pid[process.pid] = None if used is None or before is None else before + _mib(used)
    return DeviceMemory(_mib(info.used), _mib(info.total), reserved_mib, by_pid, method)


def _mib(size_bytes: int) -> int:
    return (size_bytes + MIB // 2) // MIB  # nvidia-smi rounds half up: seen on an H100, 8810.8 is shown as 8811


def _named(lib: Any, entry: str, among: list[Any]) -> Any:
    if entry.isdecimal():
        return among[int(entry)] if int(entry) < len(among) else None
    if entry.startswith("MIG-"):
        try:
            return lib.nvmlDeviceGetHandleByUUID(entry)
        except lib.NVMLError:
            return None
    matches = [handle for handle in among if entry and str(lib.nvmlDeviceGetUUID(handle)).startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _device(lib: Any, handle: Any, index: int, driver_version: str) -> Device:
    try:
        major, minor = lib.nvmlDeviceGetCudaComputeCapability(handle)
        capability = f"{major}.{minor}"
    except lib.NVMLError:  # MIG slices do not tell
        capability = None
    total_mib = memory(lib, handle).total_mib
    name, uuid = str(lib.nvmlDeviceGetName(handle)), str(lib.nvmlDeviceGetUUID(handle))
    return Device(index, name, uuid, total_mib, capability, driver_version)


def _process_name(pid: int) -> str | None:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return None
