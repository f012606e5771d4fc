"""A script can write to a little memory of its own, and nowhere else."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.xdist_group("sandbox")


def test_the_graders_results(world):
    ran = world.run(
        """
        import os
        os.makedirs(os.path.dirname(TARGET), exist_ok=True)
        open(TARGET, "w").write('{"score": 100}')
        """,
        TARGET=world.results,
    )

    assert ran.outcome == "exited", "it may have written to a file of the same name in its own memory"


def test_its_own_submission(world):
    before = world.write("print('untouched')", name="data.py").read_text()

    ran = world.run(
        """
        import os, shutil
        attempts = {
            "open": lambda: open("data.py", "w"),
            "append": lambda: open(__file__, "a"),
            "new": lambda: open("new.py", "w"),
            "remove": lambda: os.remove("data.py"),
            "rename": lambda: os.rename("data.py", "x.py"),
            "chmod": lambda: os.chmod("data.py", 0o777),
            "utime": lambda: os.utime("data.py"),
            "link": lambda: os.link("data.py", "/tmp/link"),
            "mkdir": lambda: os.mkdir("folder"),
            "rmtree": lambda: shutil.rmtree("/submission"),
        }
        for name, attempt in attempts.items():
            try:
                attempt()
                print(name, "worked")
            except OSError:
                pass
        """
    )

    assert ran.stdout == ""
    assert ran.outcome == "exited"
    assert world.run("import os; print(bool(os.statvfs('.').f_flag & os.ST_RDONLY))", name="rw.py").stdout == "True\n"
    (world.folder / "rw.py").unlink()
    assert sorted(file.name for file in world.folder.iterdir()) == ["attack.py", "data.py"]
    assert (world.folder / "data.py").read_text() == before


def test_anywhere_but_in_its_own_memory(world):
    ran = world.run(
        """
        import os
        for folder, folders, _ in os.walk("/"):
            if folder == "/proc" or folder.count("/") > 3:
                folders.clear()
                continue
            try:
                open(os.path.join(folder, "written"), "w").close()
                print(folder)
            except OSError:
                pass
        """
    )

    assert ran.outcome == "exited"
    found = set(ran.stdout.split())
    assert found >= {"/tmp", "/tmp/home", "/dev/shm"}
    assert all(folder.startswith("/tmp/") for folder in found - {"/tmp", "/dev/shm"}), "a Python may lie below /tmp"


def test_the_kernels_switches(world):
    name = os.uname().nodename

    ran = world.run(
        """
        import os, socket
        for folder, _, names in os.walk("/proc/sys"):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    with open(path, "w") as file:
                        file.write(open(path).read())
                    print(path)
                except OSError:
                    pass
        try:
            open("/proc/sysrq-trigger", "w").write("h")
            print("sysrq")
        except OSError:
            pass
        try:
            socket.sethostname("owned")
            print("hostname")
        except OSError:
            pass
        """
    )

    assert ran.stdout == ""
    assert ran.outcome == "exited"
    assert os.uname().nodename == name


def test_what_it_writes_is_gone_in_the_next_run(world):
    first = world.run("import os; open('/tmp/note', 'w').write('x'); print(os.listdir('/tmp'))")
    second = world.run("import os; print(os.listdir('/tmp'), os.path.expanduser('~'))")

    assert "note" in first.stdout
    assert "note" not in second.stdout
    assert second.stdout.endswith("] /tmp/home\n")


def test_a_pickle_beside_the_script_that_writes_where_it_should_not(world):
    import pickle

    class Malicious:
        def __reduce__(self):
            return os.system, (f"echo owned > {world.results}; echo owned > /tmp/lab3-{world.mark}; id -u",)

    (world.folder / "weights.pkl").write_bytes(pickle.dumps(Malicious()))

    ran = world.run("import pickle; pickle.load(open('weights.pkl', 'rb'))")

    assert ran.stdout == "1000\n", "it was loaded, and ran as nobody"


def test_a_cracked_stdin_does_not_change_for_anybody(world):
    ran = world.run(
        """
        import os, sys
        print(input())
        for attempt in (lambda: os.ftruncate(0, 0), lambda: os.write(os.open("/proc/self/fd/0", os.O_RDWR), b"x" * 9)):
            try:
                attempt()
                print("worked")
            except OSError:
                pass
        """,
        stdin="42\n",
    )

    assert ran.stdout == "42\n"
