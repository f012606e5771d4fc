"""A script's processes reach nothing but themselves, gain nothing, and end with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from lab3.errors import InfraError
from lab3.grading import sandbox_start
from lab3.grading.sandbox import Door
from tests.sandbox.world import is_root

pytestmark = pytest.mark.xdist_group("sandbox")

ROOT = Path(__file__).parents[2]


# --- living on ----------------------------------------------------------------------------------------------------


def test_a_daemon_ends_with_the_script(world):
    ran = world.run(
        """
        import os, signal, time
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            if os.fork() == 0:
                time.sleep(10**6)
            os._exit(0)
        os.wait()
        print("started")
        """
    )

    assert (ran.outcome, ran.stdout) == ("exited", "started\n")
    assert ran.seconds < 15, "nobody waits for a daemon that holds the script's output"


def test_the_grader_is_killed_and_nothing_lives_on(world):
    grader = grader_of(world, "import time; print('x'); time.sleep(600)")
    until(lambda: world.scripts("sleeper.py"))

    grader.kill()
    grader.wait()

    until(lambda: not world.processes())
    tidied_up_by_the_next_run(world)


@contextmanager
def before_bubblewrap(lines: str) -> Iterator[None]:
    """A shell script of these lines is found in the place of bubblewrap, which it knows as `$bwrap`."""
    real = shutil.which("bwrap")
    if real is None:
        pytest.skip("the system has no bubblewrap")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o755)  # the sandbox's user finds it there
        script = Path(folder, "bwrap")
        script.write_text(f"#!/bin/sh\nbwrap={real}\n{lines}\n")
        script.chmod(0o755)
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield


def test_the_grader_is_killed_before_bubblewrap_has_said_who_is_inside(world):
    with before_bubblewrap('while [ -d "/proc/$PPID" ]; do sleep 0.02; done; exec $bwrap "$@"'):
        grader = grader_of(world, "import time; time.sleep(600)")
        until(lambda: "sleep" in programs_of(grader))  # the shell has begun, and knows whose child it is

        grader.kill()
        grader.wait()

        until(lambda: not world.processes())
    tidied_up_by_the_next_run(world)


def test_a_sandbox_that_does_not_get_ready_ends_with_all_that_it_started(world):
    with before_bubblewrap("sleep 600 & wait"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox_start, "START_TIMEOUT_S", 1.0)
        with pytest.raises(InfraError, match="does not start on this machine"):
            world.run("pass")


# --- signals and tracing ------------------------------------------------------------------------------------------


def test_killing_all_processes_that_there_are(world):
    ran = world.run(
        """
        import os, signal
        try:
            os.kill(-1, signal.SIGKILL)
        except OSError as error:
            print(os.strerror(error.errno))
        print("still here")
        """
    )

    assert ran.stdout.endswith("still here\n")


def test_killing_the_grader_by_its_number(world):
    ran = world.run(
        """
        import os
        for pid in (GRADER, PARENT):
            try:
                os.kill(pid, 9)
                print("killed")
            except OSError as error:
                print(os.strerror(error.errno))
        """,
        GRADER=os.getpid() + 10**6,
        PARENT=os.getppid() + 10**6,
    )

    assert ran.stdout == "No such process\n" * 2


def test_killing_lab3s_process_inside(world):
    ran = world.run(
        """
        import os, signal
        for number in signal.valid_signals():
            os.kill(1, number)
        os.kill(os.getppid(), signal.SIGKILL)
        print(os.getppid())
        """
    )

    assert (ran.outcome, ran.returncode, ran.stdout) == ("exited", 0, "1\n")


def test_tracing_lab3s_process_inside_or_any_other(world):
    ran = world.run(
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        child = os.fork()
        if child == 0:
            import time
            time.sleep(60)
        for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
            for pid in (1, child):
                print(libc.ptrace(request, pid, None, None), os.strerror(ctypes.get_errno()))
        buffer = ctypes.create_string_buffer(8)
        vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
        print(libc.process_vm_readv(1, vector, 1, vector, 1, 0), os.strerror(ctypes.get_errno()))
        """
    )

    assert ran.stdout == "-1 Operation not permitted\n" * 5


def test_the_forwarder_of_the_doors_cannot_be_killed(world, echo):
    ran = world.run(
        """
        import os, signal, socket
        for pid in (1, -1, os.getppid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        with socket.create_connection(("localhost", 23333)) as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            print(client.makefile().read())
        """,
        doors=(Door(host="localhost", port=23333, socket=echo),),
    )

    assert ran.stdout == "hello\n"


# --- rights -------------------------------------------------------------------------------------------------------


def test_it_has_no_right_and_is_nobody(world):
    ran = world.run(
        """
        import os, sys
        told = ("Cap", "NoNewPrivs", "Seccomp:")
        rights = [line.split()[1] for line in open("/proc/self/status") if line.startswith(told)]
        print(os.getresuid(), os.getresgid(), os.getgroups(), *rights)
        """
    )

    none = "0" * 16
    assert ran.stdout == f"(1000, 1000, 1000) (1000, 1000, 1000) [] {none} {none} {none} {none} {none} 1 2\n"


@pytest.mark.skipif(not is_root(), reason="who is not root runs it as itself")
def test_root_runs_it_as_somebody_else_each_time(world):
    users = set()
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            ran = pool.submit(world.run, "import time; time.sleep(1)")
            until(lambda: world.scripts())
            (pid,) = world.scripts()
            users.add(psutil.Process(pid).uids().real)
            assert ran.result().outcome == "exited"

    assert len(users) == 2
    assert min(users) >= 60_000, "nobody whom this machine knows"


def test_becoming_root_by_programs_that_may(world):
    ran = world.run(
        """
        import os, subprocess
        for command in (["su", "-c", "id"], ["mount", "-t", "tmpfs", "x", "/tmp"], ["umount", "/proc"]):
            try:
                done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
                print(command[0], done.returncode != 0)
            except FileNotFoundError:
                print(command[0], True)
        try:
            os.setuid(0)
            print("root")
        except OSError:
            pass
        """
    )

    assert ran.outcome == "exited"
    assert "False" not in ran.stdout
    assert "root" not in ran.stdout


@pytest.mark.skipif(not is_root(), reason="only root can make a program of root's")
def test_a_program_of_roots_in_the_folder(world):
    program = world.folder / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o6755)
    assert program.stat().st_uid == 0

    ran = world.run(
        "import os, subprocess; print(subprocess.check_output(['./id', '-u'], text=True), oct(os.stat('id').st_mode))"
    )

    assert ran.stdout == "1000\n 0o100755\n"


NAMESPACES = """
    import ctypes, os, subprocess
    libc = ctypes.CDLL(None, use_errno=True)
    before = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    attempts = {
        "new user namespace": lambda: libc.unshare(0x10000000),
        "new mount namespace": lambda: libc.unshare(0x20000),
        "clone": lambda: libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0),
        "mount": lambda: libc.mount(b"x", b"/tmp", b"tmpfs", 0, None),
        "remount": lambda: libc.mount(None, b"/submission", None, 32, None),
        "umount": lambda: libc.umount2(b"/submission", 2),
        "chroot": lambda: libc.chroot(b"/tmp"),
        "pivot_root": lambda: libc.syscall(155, b"/tmp", b"/tmp"),
        "setns": lambda: libc.setns(os.open("/proc/1/ns/net", os.O_RDONLY), 0),
        "bwrap": lambda: subprocess.run(["bwrap", "--bind", "/", "/", "true"], capture_output=True).returncode,
        "unshare": lambda: subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode,
    }
    for name, attempt in attempts.items():
        try:
            if attempt() == 0:
                print(name)
        except OSError:
            pass
    print(before == {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")})
    """


def test_namespaces_and_mounts_of_its_own(world):
    assert world.run(NAMESPACES).stdout == "True\n"


def test_namespaces_where_a_door_needed_rights_to_be_opened(world, echo):
    doors = (Door(host="10.1.2.3", port=80, socket=echo),)

    assert world.run(NAMESPACES, doors=doors).stdout == "True\n"
    rights = world.run(
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('Cap')])", doors=doors
    )
    assert rights.stdout == f"{['0' * 16] * 5}\n"


def test_it_runs_in_namespaces_of_its_own(world):
    ran = world.run("import os; print(*sorted(os.readlink(f'/proc/self/ns/{n}') for n in os.listdir('/proc/self/ns')))")

    theirs = set(ran.stdout.split())
    ours = {str(path.readlink()) for path in Path("/proc/self/ns").iterdir()}
    assert {name.partition(":")[0] for name in theirs & ours} <= {"time", "time_for_children"}
    assert {name.partition(":")[0] for name in theirs} >= {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"}


# --- the terminal -------------------------------------------------------------------------------------------------


def test_typing_into_the_graders_terminal(world):
    script = world.write(
        """
        import fcntl, os
        print(os.getsid(0), [os.isatty(fd) for fd in (0, 1, 2)], os.path.exists("/dev/tty"))
        for fd in (0, 1, 2):
            try:
                fcntl.ioctl(fd, 0x5412, b"x")  # TIOCSTI
                print("typed")
            except OSError:
                pass
        """
    )
    code = f"""
        import os, sys, termios
        from pathlib import Path
        from lab3.grading import sandbox_stage
        from lab3.grading.sandbox import run
        sandbox_stage._PREFIX = "lab3-sandbox-{world.mark}-"
        assert os.isatty(0) and os.ttyname(0)
        ran = run(Path({str(script)!r}), folder=Path({str(world.folder)!r}))
        os.write(3, ran.stdout.encode())
        """
    master, slave = os.openpty()
    told, telling = os.pipe()
    os.set_inheritable(telling, True)

    def take_terminal() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.dup2(telling, 3)

    grader = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        close_fds=False,
        preexec_fn=take_terminal,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(telling)
    try:
        assert os.read(told, 1000).decode() == "1 [False, False, False] False\n"
    finally:
        assert grader.wait(60) == 0
        os.set_blocking(slave, False)
        with pytest.raises(BlockingIOError):
            os.read(slave, 100)
        for fd in (master, slave, told):
            os.close(fd)


# --- helpers ------------------------------------------------------------------------------------------------------


def grader_of(world, script: str) -> subprocess.Popen[bytes]:
    """A process of its own that runs this script, sleeper.py, in a sandbox."""
    world.write(script, name="sleeper.py")
    code = f"""
        from pathlib import Path
        from lab3.grading import sandbox_stage
        from lab3.grading.sandbox import run
        sandbox_stage._PREFIX = "lab3-sandbox-{world.mark}-"
        run(Path("sleeper.py"), folder=Path("."))
        """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=world.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def programs_of(process: subprocess.Popen[bytes]) -> set[str]:
    """The names of what it started."""
    found = set()
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            found.add(child.name())
    return found


def tidied_up_by_the_next_run(world) -> None:
    (left,) = Path("/tmp").glob(f"lab3-sandbox-{world.mark}-*")
    os.utime(left, (0, 0))
    world.run("pass")
    assert not left.exists()


def until(condition, *, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
