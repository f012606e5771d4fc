"""What a script tries to read, it does not find. Each attack works without the sandbox, which is shown first."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.xdist_group("sandbox")

READ = """
    try:
        print(open(TARGET).read())
    except OSError as error:
        print(type(error).__name__)
    """
SEARCH = """
    import os, re
    for top in TOPS:
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if name not in ("proc", "usr", "lib", "lib64", "bin", "sbin")]
            for name in names:
                try:
                    with open(os.path.join(folder, name), errors="replace") as file:
                        print(*re.findall("secret-[0-9a-f]{32}", file.read(2000)))
                except OSError:
                    pass
    """


def test_the_machines_passwords(world):
    assert "root:" in world.outside(READ, TARGET="/etc/shadow")

    ran = world.run(READ, TARGET="/etc/shadow")

    assert ran.stdout == "FileNotFoundError\n"


@pytest.mark.parametrize("what", ["other", "results", "expected", "home"])
def test_other_submissions_and_the_graders_files(world, what):
    target = getattr(world, what)
    assert world.secret in world.outside(READ, TARGET=target)

    ran = world.run(READ, TARGET=target)

    assert ran.stdout == "FileNotFoundError\n"


def test_whatever_can_be_found_by_walking_up_from_the_submission(world):
    assert world.secret in world.outside(SEARCH, TOPS=["../.."])

    ran = world.run(SEARCH, TOPS=["..", "../..", "/tmp", "/home", "/root/.cache", "/var", "/run", "/mnt"])

    assert ran.outcome == "exited"
    assert world.secret not in ran.stdout


def test_the_environment_of_the_grader_and_of_lab3s_process_inside(world):
    attack = """
        import glob, os
        print(dict(os.environ))
        for path in glob.glob("/proc/[0-9]*/environ"):
            try:
                print(path, open(path).read())
            except OSError as error:
                print(path, type(error).__name__)
        """
    assert world.secret in world.outside(attack)

    ran = world.run(attack)

    assert world.secret not in ran.stdout
    assert "/proc/1/environ PermissionError" in ran.stdout


def test_all_of_its_own_environment_is_what_lab3_gives(world):
    ran = world.run("import os; print(sorted(os.environ))")

    assert ran.stdout == "['HOME', 'LANG', 'PATH', 'PYTHONDONTWRITEBYTECODE', 'PYTHONUNBUFFERED']\n"


def test_processes_of_the_grader(world):
    attack = """
        import os
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
        print(str(GRADER) in pids, len(pids))
        """
    assert world.outside(attack, GRADER=os.getpid()).startswith("True")

    ran = world.run(attack, GRADER=os.getpid())

    assert ran.stdout == "False 2\n"


def test_the_memory_and_files_of_lab3s_process_inside(world):
    ran = world.run(
        """
        import os
        for attempt, path in ((open, "/proc/1/mem"), (os.listdir, "/proc/1/fd"), (os.listdir, "/proc/1/root")):
            try:
                print(attempt(path))
            except OSError as error:
                print(type(error).__name__)
        """
    )

    assert ran.stdout == "PermissionError\n" * 3


def test_descriptors_of_the_grader(world):
    ran = world.run("import os; print(os.listdir('/proc/self/fd'))")

    assert ran.stdout == "['0', '1', '2', '3']\n", "the fourth is that of the folder being listed"


def test_lab3_itself_which_knows_what_is_asked(world):
    ran = world.run(
        """
        import importlib.util, os, sys
        spec = importlib.util.find_spec("lab3")
        print(spec and spec.origin)
        for folder in sys.path:
            print(os.listdir(folder + "/lab3") if os.path.isdir(folder + "/lab3") else "")
        """
    )

    assert ran.outcome == "exited"
    assert "checks.py" not in ran.stdout
    assert ran.stdout.startswith("None\n")


def test_no_home_folders_and_no_more_of_the_system_than_python_needs(world):
    ran = world.run(
        "import os; print(sorted(os.listdir('/etc')), [os.path.exists(path) for path in ('/sys', '/home', '/var')])"
    )

    assert ran.stdout == "['group', 'hosts', 'ld.so.cache', 'nsswitch.conf', 'passwd'] [False, False, False]\n"


def test_the_kernels_log_and_memory(world):
    ran = world.run(
        """
        for path in ("/dev/kmsg", "/dev/mem", "/proc/kmsg", "/proc/kcore", "/dev/vda", "/dev/sda"):
            try:
                print(open(path, "rb").read(10))
            except OSError as error:
                print(type(error).__name__)
        """
    )

    assert set(ran.stdout.split()) <= {"FileNotFoundError", "PermissionError"}
