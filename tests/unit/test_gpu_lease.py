"""Leases of GPUs: real processes and real locks over a stand-in for NVML."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from lab3 import gpu_lease
from lab3.errors import InfraError, UsageError
from lab3.gpu_lease import Lease, leasable, lease
from lab3.nvml import NoDriver
from tests.unit.test_vram import FakeNvml, Gpu

ROOT = Path(__file__).parents[2]


class Machine(FakeNvml):
    """GPUs of these UUIDs; those in `slices` have MIG enabled and these slices (None: an index without one)."""

    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, *uuids: str, slices: Mapping[str, Sequence[str | None]] | None = None) -> None:
        self.slices = {parent: [each and Gpu(each) for each in parts] for parent, parts in (slices or {}).items()}
        every = [part for parts in self.slices.values() for part in parts if part]
        super().__init__(*map(Gpu, uuids), mig=tuple(every))

    def nvmlDeviceGetMigMode(self, gpu: Gpu) -> list[int]:
        if gpu.uuid.endswith("-old"):
            raise self.NVMLError("Not Supported")
        return [int(gpu.uuid in self.slices or gpu in self.mig), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Gpu) -> int:
        return len(self.slices[gpu.uuid])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Gpu, index: int) -> Gpu:
        found = self.slices[gpu.uuid][index]
        if found is None:
            raise self.NVMLError("Not Found")
        return found


ONE_CARD, TWO_CARDS = Machine("GPU-a"), Machine("GPU-a", "GPU-b")


def of(machine: FakeNvml, folder: Path, count: int = 1, *, visible: str | None = None, timeout_s: float = 0, **more):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return lease(count, timeout_s=timeout_s, folder=folder, nvml=machine, environ=environ, **more)


# --- between processes --------------------------------------------------------------------------------------------


def test_two_processes_cannot_hold_one_card(tmp_path):
    with holder(tmp_path, "GPU-a"), pytest.raises(InfraError, match="did not become free"), of(ONE_CARD, tmp_path):
        pytest.fail("leased twice")


def test_two_processes_hold_two_cards_at_once(tmp_path):
    with holder(tmp_path, "GPU-a"), of(TWO_CARDS, tmp_path) as mine:
        assert mine.uuids == ("GPU-b",)


def test_a_process_that_was_killed_frees_its_card_at_once(tmp_path):
    with holder(tmp_path, "GPU-a") as process:
        process.kill()
        process.wait()

        with of(ONE_CARD, tmp_path) as mine:
            assert mine.uuids == ("GPU-a",)


def test_a_child_that_outlives_a_killed_holder_does_not_keep_the_card(tmp_path):
    with holder(tmp_path, "GPU-a", function="hold_with_child") as process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            with of(ONE_CARD, tmp_path) as mine:
                assert mine.uuids == ("GPU-a",)
        finally:
            os.kill(child, 9)


def test_waiting_gets_the_card_after_the_release(tmp_path):
    with holder(tmp_path, "GPU-a") as process:
        timer = threading.Timer(0.3, lambda: process.stdin.write("\n") and process.stdin.flush())
        timer.start()
        with of(ONE_CARD, tmp_path, timeout_s=20) as mine:
            assert mine.uuids == ("GPU-a",)
        timer.join()


def test_the_error_after_the_time_out_names_the_holder_and_its_command(tmp_path):
    with holder(tmp_path, "GPU-a") as process, pytest.raises(InfraError) as caught, of(ONE_CARD, tmp_path):
        pass

    assert f"GPU-a is held by process {process.pid} (" in caught.value.why
    assert "test_gpu_lease" in caught.value.why
    assert caught.value.todo


def test_who_waits_is_told_at_most_once_a_second_who_holds_which_card(tmp_path):
    clock, told = Clock(), []

    def progress(message: str, **_: Any) -> None:
        told.append((clock.now_s, message))

    timing = {"clock": clock, "sleep": clock.sleep, "progress": progress}
    with (
        holder(tmp_path, "GPU-a") as first,
        holder(tmp_path, "GPU-b") as second,
        pytest.raises(InfraError, match="in 5 s"),
        of(TWO_CARDS, tmp_path, timeout_s=5, **timing),
    ):
        pass

    times = [at for at, _ in told]
    assert times[0] == 0
    assert 4 <= len(times) <= 5
    assert all(later - earlier >= 1 for earlier, later in pairwise(times))
    assert f"GPU-a is held by process {first.pid}" in told[0][1]
    assert f"GPU-b is held by process {second.pid}" in told[0][1]


def test_a_free_card_is_leased_without_a_word(tmp_path):
    with of(ONE_CARD, tmp_path, progress=lambda message, **_: pytest.fail(message)):
        pass


def test_processes_that_want_overlapping_cards_neither_share_one_nor_wait_for_each_other_forever(tmp_path):
    wishes = [("0,1", 2), ("1,0", 2), ("2,1", 2), ("0,2", 1), ("2,1,0", 3)]
    processes = [python("take_turns", tmp_path, visible, count, 5) for visible, count in wishes]

    outcomes = [(process.communicate(timeout=60)[0], process.returncode) for process in processes]

    assert outcomes == [("5 turns\n", 0)] * len(wishes)


# --- inside one process -------------------------------------------------------------------------------------------


def test_threads_of_one_process_exclude_each_other(tmp_path):
    entered, leave = threading.Event(), threading.Event()

    def hold_it() -> None:
        with of(ONE_CARD, tmp_path):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=hold_it)
    thread.start()
    assert entered.wait(20)
    try:
        with pytest.raises(InfraError, match="did not become free"), of(ONE_CARD, tmp_path):
            pytest.fail("leased twice")
    finally:
        leave.set()
        thread.join()
    with of(ONE_CARD, tmp_path):
        pass


def test_a_lease_within_a_lease_gets_another_card_or_none(tmp_path):
    with of(TWO_CARDS, tmp_path) as outer, of(TWO_CARDS, tmp_path) as inner:
        assert (outer.uuids, inner.uuids) == (("GPU-a",), ("GPU-b",))
        with pytest.raises(InfraError, match="did not become free"), of(TWO_CARDS, tmp_path, timeout_s=0.2):
            pass


def test_a_lease_may_end_in_another_thread_than_it_began(tmp_path):
    mine = of(ONE_CARD, tmp_path)
    mine.__enter__()
    thread = threading.Thread(target=mine.__exit__, args=(None, None, None))
    thread.start()
    thread.join()

    with of(ONE_CARD, tmp_path):
        pass


def test_a_failure_inside_the_block_frees_the_card_and_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="mine"), of(ONE_CARD, tmp_path):
        raise FileNotFoundError("mine")

    with of(ONE_CARD, tmp_path):
        pass


def test_who_does_not_get_all_it_wants_keeps_nothing(tmp_path):
    three, others = Machine("GPU-a", "GPU-b", "GPU-c"), []

    def lease_the_rest() -> None:
        with of(three, tmp_path, 2) as rest:
            others.append(rest.uuids)

    clock = Clock(lease_the_rest)
    with (
        of(three, tmp_path, visible="1"),
        pytest.raises(InfraError, match="3 of 3 GPUs did not become free"),
        of(three, tmp_path, 3, timeout_s=0.5, clock=clock, sleep=clock.sleep),
    ):
        pass

    assert others
    assert set(others) == {("GPU-a", "GPU-c")}


def test_a_card_that_is_only_being_tried_does_not_count_as_held(tmp_path):
    choosing, trial = (FileLock(tmp_path / name, thread_local=False) for name in ("choosing.lock", "gpu-GPU-a.lock"))
    choosing.acquire()
    trial.acquire()
    timer = threading.Timer(0.2, lambda: (trial.release(), choosing.release()))
    timer.start()

    with of(ONE_CARD, tmp_path, timeout_s=0) as mine:
        assert mine.uuids == ("GPU-a",)
    timer.join()


def test_a_process_that_was_stopped_while_choosing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_lease, "_CHOOSING_TIMEOUT_S", 0.1)

    with (
        FileLock(tmp_path / "choosing.lock"),
        pytest.raises(InfraError, match=r"cannot be leased.*choosing\.lock"),
        of(ONE_CARD, tmp_path, timeout_s=5),
    ):
        pass


# --- which cards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        (None, ["GPU-1111-a", "GPU-1111-b", "GPU-2222-old"]),
        ("2,0", ["GPU-2222-old", "GPU-1111-a"]),
        ("GPU-1111-b", ["GPU-1111-b"]),
        ("GPU-22, 1", ["GPU-2222-old", "GPU-1111-b"]),
        ("0,GPU-1111-a", ["GPU-1111-a"]),
        ("1,7,0", ["GPU-1111-b"]),
        ("GPU-1111", []),
        ("-1", []),
        ("", []),
    ],
)
def test_the_cards_that_cuda_visible_devices_leaves_are_leased_in_its_order(tmp_path, asked, order):
    machine = Machine("GPU-1111-a", "GPU-1111-b", "GPU-2222-old")

    if not order:
        with pytest.raises(UsageError, match="0 can be leased") as caught, of(machine, tmp_path, visible=asked):
            pass
        assert f"CUDA_VISIBLE_DEVICES={asked}" in caught.value.why
    else:
        with of(machine, tmp_path, len(order), visible=asked) as mine:
            assert mine == Lease(tuple(order))
            assert mine.env == {"CUDA_VISIBLE_DEVICES": ",".join(order)}
    assert machine.open_sessions == 0


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        pytest.param(None, ["MIG-1", "MIG-2", "GPU-whole"], id="a sliced card stands for its slices"),
        pytest.param("0", ["MIG-1", "MIG-2"], id="also where it is named"),
        pytest.param("GPU-sl", ["MIG-1", "MIG-2"], id="by its UUID, too"),
        pytest.param("MIG-2", ["MIG-2"], id="a slice is leased by itself"),
        pytest.param("MIG-2,0", ["MIG-2", "MIG-1"], id="and only once"),
        pytest.param("1", ["GPU-whole"], id="a card without MIG as a whole"),
        pytest.param("2", [], id="a card that has MIG enabled and no slices is not usable"),
        pytest.param("MIG-9", [], id="a slice that is not there"),
    ],
)
def test_of_a_card_with_mig_the_slices_are_leased(asked, order):
    slices = {"GPU-sliced": ["MIG-1", None, "MIG-2", None], "GPU-empty": [None, None]}
    machine = Machine("GPU-sliced", "GPU-whole", "GPU-empty", slices=slices)

    assert leasable(machine, {} if asked is None else {"CUDA_VISIBLE_DEVICES": asked}) == order


def test_two_slices_of_one_card_are_leased_at_once(tmp_path):
    machine = Machine("GPU-a", slices={"GPU-a": ["MIG-GPU-a/1/0", "MIG-GPU-a/2/0"]})

    with of(machine, tmp_path) as first, of(machine, tmp_path) as second:
        assert first.env == {"CUDA_VISIBLE_DEVICES": "MIG-GPU-a/1/0"}
        assert second.env == {"CUDA_VISIBLE_DEVICES": "MIG-GPU-a/2/0"}
        with pytest.raises(InfraError), of(machine, tmp_path):
            pass
    assert all(lock.is_file() for lock in tmp_path.iterdir()), "an old driver's UUID is not taken for a path"


def test_one_server_is_not_given_two_slices(tmp_path):
    machine = Machine("GPU-a", "GPU-b", "GPU-c", slices={"GPU-a": ["MIG-1", "MIG-2"]})

    with of(machine, tmp_path, 2) as mine:
        assert mine.uuids == ("GPU-b", "GPU-c")
    with pytest.raises(UsageError, match="3 whole GPUs are wanted, and 2 can be leased"), of(machine, tmp_path, 3):
        pass


@pytest.mark.parametrize("count", [-1, 0, 3])
def test_more_cards_than_are_visible_or_none_at_all_are_the_users_mistake(tmp_path, count):
    with pytest.raises(UsageError, match="2 can be leased"), of(TWO_CARDS, tmp_path, count, timeout_s=60):
        pass


def test_without_a_driver_there_is_nothing_to_lease(tmp_path):
    machine = Machine()
    machine.driver = False

    with pytest.raises(NoDriver), of(machine, tmp_path):
        pass


# --- where the locks are ------------------------------------------------------------------------------------------


def test_a_users_processes_meet_whatever_their_environment_says(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_lease, "_TEMP", tmp_path)
    with lease(timeout_s=0, nvml=ONE_CARD, environ={}):
        monkeypatch.setenv("TMPDIR", str(tmp_path / "job"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "login"))
        with pytest.raises(InfraError, match="free"), lease(timeout_s=0, nvml=ONE_CARD, environ={}):
            pass

    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_written_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(InfraError, match="GPUs cannot be leased") as caught, of(ONE_CARD, tmp_path / "file" / "locks"):
        pass

    assert caught.value.why
    assert caught.value.todo


# --- helpers ------------------------------------------------------------------------------------------------------


@contextmanager
def holder(folder: Path, uuid: str, *, function: str = "hold") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the card until it is told to go on."""
    process = python(function, folder, uuid)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        with suppress(BrokenPipeError):  # a line that nobody read
            process.communicate()


def python(function: str, *args: object) -> subprocess.Popen[str]:
    """A process that calls this function of this file."""
    code = f"import sys; from tests.unit import test_gpu_lease as t; t.{function}(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def hold(folder: str, uuid: str) -> None:
    with of(Machine(uuid), Path(folder)):
        say("held")
        input()


def hold_with_child(folder: str, uuid: str) -> None:
    with of(Machine(uuid), Path(folder)):
        child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        say("held")
        say(child.pid)
        input()


def take_turns(folder: str, visible: str, count: str, turns: str) -> None:
    """Lease again and again, and fail if somebody else has a card of ours."""
    machine = Machine("GPU-a", "GPU-b", "GPU-c")
    for _ in range(int(turns)):
        with of(machine, Path(folder), int(count), timeout_s=40, visible=visible) as mine:
            marks = [Path(folder, f"{uuid}.in-use") for uuid in mine.uuids]
            for mark in marks:
                mark.touch(exist_ok=False)
            time.sleep(random.uniform(0, 0.02))
            for mark in marks:
                mark.unlink()
    say(f"{turns} turns")


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


class Clock:
    """Time that passes only when somebody sleeps; `on_sleep` is what happens meanwhile."""

    def __init__(self, on_sleep: Callable[[], None] = lambda: None) -> None:
        self.now_s, self._on_sleep = 0.0, on_sleep

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self._on_sleep()
