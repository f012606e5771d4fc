"""Whatever a script wants too much of, it is stopped, and the machine does not notice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import pytest

from lab3.grading import sandbox, sandbox_cgroup
from tests.sandbox.world import LATE_S, World, numbers

pytestmark = pytest.mark.xdist_group("sandbox")


# --- processes ----------------------------------------------------------------------------------------------------


def test_a_fork_bomb(world):
    with watched(world) as most:
        ran = world.run(
            """
            import os
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
            """,
            processes=20,
            wall_s=1.5,
            cpu_s=60,
        )

    assert ran.outcome == "timeout"
    assert ran.seconds < 1.5 + LATE_S
    assert 2 < most.processes <= 20 + 2, "with lab3's own process and bubblewrap"


def test_a_fork_bomb_whose_parents_end_at_once(world):
    with watched(world) as most:
        ran = world.run(
            """
            import os
            while True:
                try:
                    if os.fork():
                        os._exit(0)
                except OSError:
                    pass
            """,
            processes=20,
            wall_s=1.5,
        )

    assert ran.outcome == "exited", "the first one has ended, so all have"
    assert most.processes <= 20 + 2


def test_a_bomb_of_threads(world):
    ran = world.run(
        """
        import threading, time
        count = 1
        try:
            while True:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                count += 1
        except RuntimeError:
            print(count)
        """,
        processes=20,
    )

    assert numbers(ran.stdout) == [20]


def test_processes_where_the_kernel_does_not_limit_them(world, monkeypatch):
    ours = sandbox._rlimits
    with monkeypatch.context() as patch:
        patch.setattr(sandbox_cgroup, "confine", lambda *_, **__: None)
        patch.setattr(
            sandbox, "_rlimits", lambda limits: [limit for limit in ours(limits) if limit[0] != "RLIMIT_NPROC"]
        )
        ran = world.run(
            """
            import subprocess
            for _ in range(40):
                subprocess.Popen(["sleep", "60"])
            subprocess.run(["sleep", "60"])
            """,
            processes=20,
        )

    assert ran.outcome == "processes"


# --- memory -------------------------------------------------------------------------------------------------------


def test_a_memory_bomb(world):
    with watched(world) as most:
        ran = world.run("x = []\nwhile True: x.append(bytearray(1 << 20))", memory_mib=200)

    assert ran.returncode == 1
    assert "MemoryError" in ran.stderr
    assert most.memory_mib <= 200 + 50, "files of libraries and lab3's own processes come on top"


def test_one_large_piece_of_memory(world):
    ran = world.run("bytearray(10 << 30)", memory_mib=200)

    assert "MemoryError" in ran.stderr


FORKS = """
    import os, time
    x = bytearray(BEFORE << 20)
    for _ in range(7):
        if os.fork() == 0:
            break
    y = bytearray(os.urandom(1) * (AFTER << 20))
    time.sleep(SLEEP_S)
    """


def test_a_memory_bomb_in_many_processes(world):
    with watched(world) as most:
        ran = world.run(FORKS, memory_mib=250, BEFORE=1, AFTER=100, SLEEP_S=60)

    assert ran.outcome == "memory"
    assert ran.returncode is None
    assert ran.seconds < LATE_S
    assert most.memory_mib < 8 * 100


def test_memory_that_processes_share_counts_once(world):
    ran = world.run(FORKS, memory_mib=250, BEFORE=100, AFTER=1, SLEEP_S=0.5)

    assert (ran.outcome, ran.returncode) == ("exited", 0)


def test_shared_memory_that_belongs_to_no_process_alone(world):
    ran = world.run(
        """
        import mmap, time
        x = mmap.mmap(-1, 600 << 20)
        for page in range(0, 600 << 20, 4096):
            x[page] = 1
        time.sleep(60)
        """,
        memory_mib=250,
    )

    assert ran.outcome == "memory"


def test_memory_behind_descriptors(world):
    ran = world.run("import os; os.memfd_create('hoard')")

    assert "PermissionError" in ran.stderr


# --- CPU and time -------------------------------------------------------------------------------------------------


def test_a_loop_that_does_not_end(world):
    ran = world.run("while True: pass", cpu_s=1)

    assert (ran.outcome, ran.returncode) == ("cpu", None)
    # The kernel's limit counts whole ticks, and its report nanoseconds: on a busy machine 0.82 of them were a second.
    assert 0.5 < ran.cpu_seconds < 4


def test_a_loop_that_ignores_the_signal(world):
    ran = world.run(
        """
        import signal
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True: pass
        """,
        cpu_s=1,
    )

    assert ran.outcome == "cpu"


def test_a_loop_in_many_processes_none_of_which_takes_long(world):
    ran = world.run(
        """
        import os, time
        while True:
            if os.fork() == 0:
                end = time.process_time() + 0.2
                while time.process_time() < end: pass
                os._exit(0)
            os.wait()
        """,
        cpu_s=1,
    )

    assert ran.outcome == "cpu"
    assert ran.cpu_seconds < 4


def test_sleeping_for_ever(world):
    ran = world.run("import time; print('good night', flush=True); time.sleep(10**6)", wall_s=0.5)

    assert (ran.outcome, ran.returncode, ran.stdout) == ("timeout", None, "good night\n")
    assert 0.5 <= ran.seconds < LATE_S


def test_ignoring_every_signal(world):
    ran = world.run(
        """
        import signal, time
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1)
        """,
        wall_s=0.5,
    )

    assert ran.outcome == "timeout"
    assert ran.seconds < LATE_S


def test_stopping_itself(world):
    ran = world.run("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", wall_s=0.5)

    assert ran.outcome == "timeout"


def test_the_clock_of_this_machine(world):
    offset = time.time() - time.monotonic()

    ran = world.run(
        """
        import time
        for clock in (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC):
            try:
                time.clock_settime(clock, 1.0)
                print("set")
            except OSError as error:
                print(type(error).__name__)
        """
    )

    assert "set" not in ran.stdout
    assert abs(time.time() - time.monotonic() - offset) < 60


def test_a_priority_above_others(world):
    ran = world.run("import os; os.nice(-5)")

    assert "PermissionError" in ran.stderr


# --- files --------------------------------------------------------------------------------------------------------

FILL = """
    import os
    written, number = 0, 0
    for folder in ("/tmp", "/dev/shm"):
        try:
            while True:
                number += 1
                with open(f"{folder}/{number}", "wb", buffering=0) as file:
                    try:
                        while True:
                            count = file.write(bytes(1 << 16))
                            written += count
                            if not count:
                                break
                    except OSError as error:
                        if error.errno != 27:  # EFBIG: take the next file
                            raise
        except OSError as error:
            print(os.strerror(error.errno))
    print(written >> 20)
    """


def test_a_file_that_fills_the_disk(world):
    ran = world.run(
        """
        import os
        with open("/tmp/large", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError as error:
                print(os.strerror(error.errno), file.tell() >> 20)
        """,
        file_mib=4,
    )

    assert ran.stdout == "File too large 4\n"


def test_files_that_fill_all_that_can_be_written(world):
    ran = world.run(FILL, file_mib=4, tmp_mib=16)

    assert ran.outcome == "exited"
    assert ran.stdout.startswith("No space left on device\n" * 2)
    assert numbers(ran.stdout)[-1] <= 16 + 8


def test_more_files_than_anybody_counts(world):
    ran = world.run(
        """
        number = 0
        while True:
            number += 1
            open(f"/tmp/{number}", "w").close()
        """,
        files=1000,
    )

    assert ran.outcome == "files"


def test_all_open_files(world):
    ran = world.run(
        """
        import os
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError as error:
            os.write(1, f"{os.strerror(error.errno)} {len(held)}".encode())
        """,
        open_files=64,
    )

    assert ran.stdout == "Too many open files 61"


def test_no_core_file(world):
    before = set(world.folder.iterdir())

    ran = world.run("import os, resource; print(resource.getrlimit(resource.RLIMIT_CORE), flush=True); os.abort()")

    assert (ran.outcome, ran.returncode, ran.stdout) == ("signal", -6, "(0, 0)\n")
    assert {path.name for path in world.folder.iterdir()} - {path.name for path in before} == {"attack.py"}


def test_raising_its_own_limits(world):
    ran = world.run(
        """
        import resource
        for name in dir(resource):
            if name.startswith("RLIMIT_") and name not in NOT_OURS:
                soft, hard = resource.getrlimit(getattr(resource, name))
                try:
                    resource.setrlimit(getattr(resource, name), (hard, hard + 1))
                    print(name)
                except (ValueError, OSError):
                    pass
        """,
        NOT_OURS=["RLIMIT_STACK", "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RSS", "RLIMIT_OFILE"],
    )

    assert ran.outcome == "exited"
    assert ran.stdout == ""


# --- helpers ------------------------------------------------------------------------------------------------------


@dataclass
class Most:
    processes: int = 0
    memory_mib: float = 0


@contextmanager
def watched(world: World) -> Iterator[Most]:
    """The most processes and memory that the sandbox has meanwhile, as this machine sees them."""
    most, done = Most(), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            pids = world.processes()
            memory = 0.0
            for pid in pids:
                with suppress(psutil.Error):
                    memory += psutil.Process(pid).memory_full_info().pss / (1 << 20)
            most.processes = max(most.processes, len(pids))
            most.memory_mib = max(most.memory_mib, memory)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()
