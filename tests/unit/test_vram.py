"""Memory of a server: on a GPU by NVML (a stand-in here), on the CPU by the resident memory of real processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lab3.errors import InfraError, UsageError
from lab3.vram import Meter, Reading, devices, format_mib, holders, read, wait_freed

MIB = 2**20


@dataclass
class Gpu:
    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    total_mib: int = 81559
    used_mib: float = 4
    reserved_mib: int = 500
    processes: list[tuple[int, float | None]] = field(default_factory=list)


class FakeNvml:
    """As much of the `pynvml` module as lab3 calls, over a list of `Gpu`s; `mig` are the slices, found by UUID only."""

    nvmlMemory_v2 = 0x02000028

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: Gpu, mig: tuple[Gpu, ...] = (), driver: bool = True, v2: bool = True) -> None:
        self.gpus, self.mig, self.driver, self.v2 = list(gpus), mig, driver, v2
        self.open_sessions = 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open_sessions += 1

    def nvmlShutdown(self) -> None:
        self.open_sessions -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.04"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:
        for gpu in (*self.gpus, *self.mig):
            if gpu.uuid == uuid:
                return gpu
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:
        return gpu.name

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetCudaComputeCapability(self, gpu: Gpu) -> tuple[int, int]:
        if gpu in self.mig:
            raise self.NVMLError("Not Supported")
        return 9, 0

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu, version: int | None = None) -> Any:
        if gpu.used_mib < 0:
            raise self.NVMLError("GPU is lost")
        if version is None:
            return SimpleNamespace(total=gpu.total_mib * MIB, used=(gpu.used_mib + gpu.reserved_mib) * MIB)
        if not self.v2:
            raise self.NVMLError("Function Not Found")
        return SimpleNamespace(total=gpu.total_mib * MIB, used=int(gpu.used_mib * MIB), reserved=gpu.reserved_mib * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: Gpu) -> list[Any]:
        return [SimpleNamespace(pid=p, usedGpuMemory=m if m is None else int(m * MIB)) for p, m in gpu.processes]


ONE, TWO, THREE = Gpu("GPU-1111-aa"), Gpu("GPU-1111-bb"), Gpu("GPU-2222-cc")
HERE, NOWHERE = os.getpid(), 2**22 + 7  # the second is beyond Linux's highest pid


# --- a GPU --------------------------------------------------------------------------------------------------------


def test_the_figure_is_nvidia_smis_and_leaves_out_what_the_driver_reserves():
    nvml = FakeNvml(Gpu("GPU-1", used_mib=34607, reserved_mib=552))

    reading = read(device="cuda", nvml=nvml, environ={})

    assert (reading.used_mib, reading.total_mib) == (34607, 81559)
    assert (reading.device, reading.uuid) == ("NVIDIA H100 80GB HBM3", "GPU-1")
    assert nvml.open_sessions == 0


def test_the_figure_is_rounded_as_nvidia_smi_rounds():
    nvml = FakeNvml(Gpu("GPU-1", used_mib=8810.8125, processes=[(HERE, 8802.5)]))

    reading = read(HERE, device="cuda", nvml=nvml, environ={})

    assert (reading.used_mib, reading.process_mib) == (8811, 8803)


def test_an_old_driver_is_measured_with_what_it_reserves_and_says_so():
    reading = read(device="cuda", nvml=FakeNvml(Gpu("GPU-1", used_mib=100, reserved_mib=50), v2=False), environ={})

    assert reading.used_mib == 150
    assert "includes reserved" in reading.method


@pytest.mark.parametrize(
    ("processes", "process_mib", "foreign_mib"),
    [
        pytest.param([(HERE, 900)], 900, 0, id="only ours"),
        pytest.param([(HERE, 900), (1, 50)], 900, 50, id="ours and another's"),
        pytest.param([(HERE, 900), (HERE, 100)], 1000, 0, id="one pid in two slices"),
        pytest.param([(HERE, 900), (NOWHERE, 50)], 900, 50, id="ours and one elsewhere"),
        pytest.param([(1, 50)], 0, 50, id="only another's"),
        pytest.param([(NOWHERE, 900)], None, None, id="pids of another namespace"),
        pytest.param([], None, None, id="a container where nobody is listed"),
        pytest.param([(HERE, None)], None, 0, id="the driver hides the amount"),
    ],
)
def test_memory_is_attributed_only_as_far_as_the_driver_tells(processes, process_mib, foreign_mib):
    nvml = FakeNvml(Gpu("GPU-1", used_mib=1200, processes=processes))

    reading = read(HERE, device="cuda", nvml=nvml, environ={})

    assert (reading.process_mib, reading.foreign_mib) == (process_mib, foreign_mib)


def test_memory_of_the_engine_process_that_api_server_spawned_is_the_servers():
    with child("pass") as engine:
        nvml = FakeNvml(Gpu("GPU-1", processes=[(engine.pid, 700)]))

        assert read(HERE, device="cuda", nvml=nvml, environ={}).process_mib == 700


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        (None, [ONE, TWO, THREE]),
        ("2,0", [THREE, ONE]),
        ("GPU-2222-cc", [THREE]),
        ("GPU-22", [THREE]),
        ("GPU-1111", []),
        ("1,7,0", [TWO]),
        ("-1", []),
        ("", []),
        ("MIG-1", [Gpu("MIG-1")]),
    ],
)
def test_only_what_cuda_visible_devices_leaves_is_measured(asked, seen):
    nvml = FakeNvml(ONE, TWO, THREE, mig=(Gpu("MIG-1"),))
    environ = {} if asked is None else {"CUDA_VISIBLE_DEVICES": asked}

    found = devices(nvml=nvml, environ=environ)

    assert [device.uuid for device in found] == [gpu.uuid for gpu in seen]
    assert [device.index for device in found] == list(range(len(seen)))
    if seen:
        last = read(device=f"cuda:{len(seen) - 1}", nvml=nvml, environ=environ)
        assert last.uuid == seen[-1].uuid


def test_a_mig_slice_is_a_device_without_compute_capability():
    nvml = FakeNvml(ONE, mig=(Gpu("MIG-1", name="A100 MIG 3g.20gb", total_mib=24566),))

    device = devices(nvml=nvml, environ={"CUDA_VISIBLE_DEVICES": "MIG-1"})[0]

    assert (device.name, device.total_mib, device.compute_capability) == ("A100 MIG 3g.20gb", 24566, None)
    assert devices(nvml=nvml, environ={})[0].compute_capability == "9.0"


@pytest.mark.parametrize("asked", ["cuda:3", "cuda:x", "GPU-9", "MIG-9", "tpu", ""])
def test_a_device_that_is_not_there_is_the_users_mistake(asked):
    with pytest.raises(UsageError, match="There is no device") as caught:
        read(device=asked, nvml=FakeNvml(ONE), environ={})

    assert "cuda:0 (GPU-1111-aa)" in caught.value.todo


def test_without_a_driver_auto_means_the_cpu():
    nvml = FakeNvml(driver=False)

    assert read(HERE, nvml=nvml).device == "cpu"
    assert devices(nvml=nvml) == []
    assert holders(nvml=nvml) == []


def test_without_a_visible_gpu_auto_means_the_cpu():
    assert read(HERE, nvml=FakeNvml(ONE), environ={"CUDA_VISIBLE_DEVICES": ""}).device == "cpu"


def test_without_a_driver_a_gpu_that_was_asked_for_is_an_error():
    with (
        pytest.raises(InfraError, match="No NVIDIA driver answers"),
        Meter(device="cuda:0", nvml=FakeNvml(driver=False)),
    ):
        pass


def test_who_holds_the_gpu_is_named():
    nvml = FakeNvml(Gpu("GPU-1", processes=[(HERE, 11172), (NOWHERE, None)]))

    mine, elsewhere = holders(nvml=nvml, environ={})

    assert (mine.pid, mine.used_mib, mine.device_uuid) == (HERE, 11172, "GPU-1")
    assert mine.name == psutil.Process().name()
    assert (elsewhere.name, elsewhere.used_mib) == (None, None)


def test_the_peak_stays_when_the_memory_is_given_back():
    gpu = Gpu("GPU-1", used_mib=4)
    with Meter(device="cuda", interval_s=60, nvml=FakeNvml(gpu), environ={}) as meter:
        for gpu.used_mib in (20616, 11368):
            meter.sample()

    assert [r.used_mib for r in (meter.baseline, meter.peak, meter.last)] == [4, 20616, 11368]


def test_the_peak_is_seen_without_asking():
    gpu = Gpu("GPU-1", used_mib=4)
    with Meter(device="cuda", interval_s=0.01, nvml=FakeNvml(gpu), environ={}) as meter:
        gpu.used_mib = 20616
        until(lambda: meter.peak.used_mib == 20616)
        gpu.used_mib = 4

    assert meter.last.used_mib == 4


def test_a_gpu_that_is_lost_while_watched_is_an_error_at_the_end():
    gpu = Gpu("GPU-1")
    nvml = FakeNvml(gpu)
    with (
        pytest.raises(InfraError, match="can no longer be read: GPU is lost"),
        Meter(device="cuda", interval_s=0.01, nvml=nvml, environ={}),
    ):
        gpu.used_mib = -1

    assert nvml.open_sessions == 0


def test_a_failure_inside_the_block_is_not_hidden_by_one_of_the_meter():
    gpu = Gpu("GPU-1")

    def fail() -> None:
        with Meter(device="cuda", nvml=FakeNvml(gpu), environ={}):
            gpu.used_mib = -1
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_the_watching_thread_ends_with_the_block():
    with Meter(HERE, device="cpu", interval_s=0.01) as meter:
        assert meter._thread.is_alive()

    assert not meter._thread.is_alive()


@pytest.mark.parametrize(("device", "pause_s"), [("cpu", 100.0), ("cuda", 0.01)])
def test_a_slow_reading_of_processes_on_the_cpu_is_followed_by_a_rest(monkeypatch, device: str, pause_s: float):
    monkeypatch.setattr("lab3.vram._STILL_S", 0)
    clock = itertools.count(0, 2)  # each reading takes two seconds of processor time
    monkeypatch.setattr("lab3.vram.time.thread_time", lambda: float(next(clock)))
    pauses: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return len(pauses) > 2

    gpu = FakeNvml(Gpu("GPU-1", used_mib=4))
    meter = Meter(HERE if device == "cpu" else None, device=device, interval_s=0.01, nvml=gpu, environ={})
    meter._stop = Stop()
    with meter:
        meter._thread.join()
    assert pauses == [0.01, pause_s, pause_s]


def test_processes_on_the_cpu_are_read_again_when_their_memory_moves_and_not_while_it_rests(monkeypatch):
    monkeypatch.setattr("lab3.vram._STILL_S", 1000)
    readings: list[Reading] = []
    with child("print('ready', flush=True); input(); " + ALLOCATE.format(mib=150) + "; input()", wait=False) as server:
        server.stdout.readline()
        meter = Meter(server.pid, device="cpu", interval_s=0.01)
        sample = meter.sample
        monkeypatch.setattr(meter, "sample", lambda: readings.append(sample()))
        with meter:
            until(lambda: rests(readings))  # a page or two of the child's may move yet
            tell(server)
            until(lambda: meter.peak.used_mib > 150)


def rests(readings: list[Reading]) -> bool:
    """There was one, and none came for a second."""
    before = len(readings)
    time.sleep(1.0)
    return 0 < before == len(readings)


# --- waiting until it is given back -------------------------------------------------------------------------------


def baseline(used_mib: int) -> Reading:
    return Reading("NVIDIA H100", "GPU-1", used_mib, 81559, None, None, "nvml")


def test_memory_that_comes_back_slowly_is_waited_for():
    gpu = Gpu("GPU-1", used_mib=34607)
    clock = Clock(lambda: setattr(gpu, "used_mib", max(4, gpu.used_mib - 10000)))

    now = wait_freed(baseline(4), nvml=FakeNvml(gpu), environ={}, clock=clock, sleep=clock.sleep, timeout_s=30)

    assert now.used_mib == 4
    assert 0 < clock.now_s < 30


def test_memory_within_the_tolerance_counts_as_given_back():
    gpu, clock = Gpu("GPU-1", used_mib=60), Clock()

    wait_freed(baseline(4), nvml=FakeNvml(gpu), environ={}, clock=clock, sleep=clock.sleep, tolerance_mib=64)

    assert clock.now_s == 0


def test_memory_that_never_comes_back_names_its_holder():
    gpu, clock = Gpu("GPU-1", used_mib=11372, processes=[(HERE, 11368)]), Clock()

    with pytest.raises(InfraError, match=r"still holds 11368 MiB \(11\.1 GiB\) more than before, 30 s") as caught:
        wait_freed(baseline(4), nvml=FakeNvml(gpu), environ={}, clock=clock, sleep=clock.sleep, timeout_s=30)

    assert f"pid {HERE}" in caught.value.why
    assert 30 <= clock.now_s < 31


# --- the CPU ------------------------------------------------------------------------------------------------------

ALLOCATE = "block = bytearray(b'x') * ({mib} * 2**20)"


def test_what_a_process_allocates_is_what_is_read():
    with child(ALLOCATE.format(mib=10)) as small, child(ALLOCATE.format(mib=210)) as large:
        grown_mib = read(large.pid, device="cpu").used_mib - read(small.pid, device="cpu").used_mib

    assert abs(grown_mib - 200) < 10


def test_children_of_children_count():
    grandchild = ALLOCATE.format(mib=150) + "; print('ready', flush=True); import time; time.sleep(30)"
    spawn = "import subprocess, sys; s = subprocess.Popen([sys.executable, '-c', {!r}], stdout=-1); {}"
    parent = spawn.format(grandchild, "print(s.stdout.readline(), flush=True); s.wait()")
    with child(spawn.format(parent, "s.stdout.readline()")) as server:
        reading = read(server.pid, device="cpu")

        assert reading.used_mib > 150
        assert reading.process_mib == reading.used_mib


def test_pages_shared_by_the_tree_count_once():
    with child(ALLOCATE.format(mib=200) + "\nimport os, time\nif not os.fork(): time.sleep(30)") as server:
        reading = read(server.pid, device="cpu")

        if Path("/proc/self/smaps_rollup").exists():
            assert reading.method == "PSS of the process tree"
            assert 200 < reading.used_mib < 300
        else:
            assert reading.used_mib > 400, "RSS counts them twice, and the method says so"
            assert "shared pages count once for each process" in reading.method


def test_an_engine_that_outlives_its_server_still_counts():
    engine = ALLOCATE.format(mib=150) + "; print('ready', flush=True); import time; time.sleep(30)"
    parent = f"import subprocess, sys; s = subprocess.Popen([sys.executable, '-c', {engine!r}], stdout=-1)"
    with child(f"{parent}; s.stdout.readline()") as server:
        orphan = psutil.Process(server.pid).children()[0]
        try:
            with Meter(server.pid, device="cpu", interval_s=60) as meter:
                server.kill()
                server.wait()
                assert meter.sample().used_mib > 150
                orphan.kill()
                until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
                assert meter.sample().used_mib == 0
        finally:
            if orphan.is_running():
                orphan.kill()


def test_the_peak_of_a_process_is_kept_after_it_freed_the_memory():
    code = (
        f"input(); {ALLOCATE.format(mib=300)}; print('up', flush=True); input(); del block; print('down', flush=True)"
    )
    with child(code + "; input()", wait=False) as server, Meter(server.pid, device="cpu", interval_s=0.02) as meter:
        tell(server)
        server.stdout.readline()
        meter.sample()  # the thread's own may have begun when half was allocated
        tell(server)
        server.stdout.readline()
        freed = meter.sample()

    assert meter.peak.used_mib - freed.used_mib > 250


def test_processes_that_come_and_go_do_not_disturb_the_meter():
    code = "import subprocess, sys\nfor _ in range(40): subprocess.run(['true'])"
    with child(code + "\nprint('done', flush=True)\ninput()", wait=False) as server:
        with Meter(server.pid, device="cpu", interval_s=0.001) as meter:
            server.stdout.readline()
        assert meter.peak.used_mib > 0


def test_a_process_that_vanishes_between_listing_and_reading_counts_nothing(monkeypatch):
    def gone(self: psutil.Process) -> None:
        raise psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", gone)
    monkeypatch.setattr(psutil.Process, "memory_info", gone)

    assert read(HERE, device="cpu").used_mib == 0


def test_where_pss_may_not_be_read_rss_is():
    def denied(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    with pytest.MonkeyPatch.context() as patch, child("pass") as server:
        patch.setattr(psutil.Process, "memory_full_info", denied)
        reading = read(server.pid, device="cpu")

    assert reading.used_mib > 0
    assert reading.method.startswith("RSS")


def test_a_stopped_server_holds_nothing_and_is_not_waited_for():
    with child("pass") as server:
        before = read(device="cpu", pid=NOWHERE)
        server.kill()
        server.wait()

        assert wait_freed(before, pid=server.pid, sleep=lambda _: pytest.fail("waited")).used_mib == 0


def test_a_server_that_does_not_stop_is_said_to_run():
    clock = Clock()
    with child(ALLOCATE.format(mib=100)) as server, pytest.raises(InfraError, match="cpu still holds") as caught:
        wait_freed(read(NOWHERE, device="cpu"), pid=server.pid, timeout_s=1, clock=clock, sleep=clock.sleep)

    assert "still running" in caught.value.why


def test_the_budget_given_is_the_cpus_total():
    assert read(HERE, device="cpu", cpu_total_mib=2048).total_mib == 2048
    assert read(HERE, device="cpu").total_mib == psutil.virtual_memory().total // MIB


def test_without_a_pid_the_cpus_figure_is_the_whole_machines():
    reading = read(device="cpu")

    assert 0 < reading.used_mib <= reading.total_mib
    assert reading.process_mib is None


@pytest.mark.parametrize(
    ("mib", "text"), [(20616, "20616 MiB (20.1 GiB)"), (34, "34 MiB"), (0, "0 MiB"), (None, "unknown")]
)
def test_figures_are_written_for_people(mib, text):
    assert format_mib(mib) == text


# --- helpers ------------------------------------------------------------------------------------------------------


@contextmanager
def child(code: str, *, wait: bool = True):
    """A Python process that has run `code` and then waits (with wait=False: the code itself talks and waits)."""
    code = f"{code}\nprint('ready', flush=True)\ninput()" if wait else code
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if wait:
            process.stdout.readline()
        yield process
    finally:
        for each in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            each.kill()
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def until(condition: Any, timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


class Clock:
    """Time that passes only when somebody sleeps; `on_sleep` is what happens meanwhile."""

    def __init__(self, on_sleep: Any = lambda: None) -> None:
        self.now_s, self._on_sleep = 0.0, on_sleep

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self._on_sleep()
