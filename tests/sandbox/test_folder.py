"""What lies in a submission's folder, whatever it is and however it is named, harms nobody."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from lab3.errors import UsageError
from lab3.grading import sandbox_snapshot
from lab3.grading.sandbox import run
from tests.sandbox.world import LIMITS, is_root

pytestmark = pytest.mark.xdist_group("sandbox")

READ_ALL = """
    import os
    for folder, folders, names in os.walk(".", followlinks=True):
        for name in sorted(names + folders):
            path = os.path.join(folder, name)
            try:
                print(name, open(path).read(60).split() if not os.path.isdir(path) else os.listdir(path))
            except OSError as error:
                print(name, type(error).__name__)
    """


# --- links, devices, pipes ----------------------------------------------------------------------------------------


def test_links_that_lead_out_of_it(world):
    targets = {"shadow": "/etc/shadow", "alice": world.other, "results": world.results, "home": world.home.parent}
    for name, target in targets.items():
        (world.folder / name).symlink_to(target)
    (world.folder / "up").symlink_to("../alice/chat.py")
    (world.folder / "everything").symlink_to("../..")
    assert world.secret in world.outside("print(open('alice').read(), open('up').read())")

    ran = world.run(
        "for name in ('shadow', 'alice', 'results', 'home/key', 'up', 'everything/expected/nonce.json'):\n"
        "    try: print(open(name).read())\n"
        "    except OSError as error: print(type(error).__name__)"
    )

    assert ran.stdout == "FileNotFoundError\n" * 6


def test_links_that_stay_in_it(world):
    (world.folder / "data").mkdir()
    (world.folder / "data" / "prompt.txt").write_text("hello")
    (world.folder / "prompt").symlink_to("data/prompt.txt")
    (world.folder / "folder").symlink_to("data")

    ran = world.run("print(open('prompt').read(), open('folder/prompt.txt').read())")

    assert ran.stdout == "hello hello\n"


def test_links_in_a_circle(world):
    (world.folder / "a").symlink_to("b")
    (world.folder / "b").symlink_to("a")
    (world.folder / "here").symlink_to(".")

    ran = world.run(
        "import os\ntry: open('a')\nexcept OSError as error: print(error.strerror)\nprint(os.listdir('here/here'))"
    )

    assert ran.stdout.startswith("Too many levels of symbolic links\n")
    assert "attack.py" in ran.stdout


@pytest.mark.skipif(not is_root(), reason="only root can make devices")
def test_devices(world):
    disk = Path("/").stat().st_dev
    os.mknod(world.folder / "disk", 0o666 | stat.S_IFBLK, disk)
    os.mknod(world.folder / "memory", 0o666 | stat.S_IFCHR, os.makedev(1, 1))

    ran = world.run(READ_ALL)

    assert ran.stdout.startswith("attack.py ")
    assert ran.stdout.count("\n") == 1
    assert ran.left_out == ("disk: a device", "memory: a device")


def test_pipes_and_sockets(world):
    os.mkfifo(world.folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(world.folder / "s"))
        server.listen()

        ran = world.run(READ_ALL, wall_s=5)

    assert ran.outcome == "exited", "nobody waits for the other end of a pipe"
    assert ran.left_out == ("pipe: a pipe", "s: a socket")


def test_a_script_that_is_a_pipe_or_a_link_to_the_outside(world):
    os.mkfifo(world.folder / "pipe.py")
    (world.folder / "link.py").symlink_to(world.other)
    (world.folder / "folder.py").mkdir()
    for name in ("pipe.py", "link.py", "folder.py", "missing.py", "../alice/chat.py", "/etc/passwd", "."):
        with pytest.raises(UsageError) as caught:
            run(world.folder / name, folder=world.folder, limits=LIMITS)
        assert caught.value.todo


# --- modules ------------------------------------------------------------------------------------------------------

TAKE_OVER = """
import os
os.write(1, b"taken over by " + __name__.encode() + b"\\n")
for path in (RESULTS, "/tmp/" + MARK):
    try:
        open(path, "w").write("owned")
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    "name",
    [
        *("sitecustomize", "usercustomize", "conftest", "pytest", "lab3", "json", "socket", "ctypes", "resource"),
        *("encodings", "codecs", "os", "site", "sandbox_inside", "__init__", "__main__"),
    ],
)
def test_modules_that_python_or_lab3_might_import_by_themselves(world, name):
    world.write(TAKE_OVER, name=f"{name}.py", RESULTS=world.results, MARK=world.mark)

    ran = world.run("print('the script')")

    assert (ran.outcome, ran.returncode) == ("exited", 0)
    assert ran.stdout == "the script\n"


def test_settings_that_python_might_read(world):
    (world.folder / "pyvenv.cfg").write_text("home = /tmp\n")
    (world.folder / "python311._pth").write_text("import site\n")
    (world.folder / "evil.pth").write_text("import os; os.write(1, b'owned')\n")

    assert world.run("print('the script')").stdout == "the script\n"


def test_an_openai_module_of_the_students_own_is_the_students_own_affair(world):
    world.write("def OpenAI(**_): return 'mine'", name="openai.py")

    assert world.run("from openai import OpenAI; print(OpenAI())").stdout == "mine\n"


def test_modules_beside_the_script_are_there_as_they_would_be_for_the_student(world):
    world.write("answer = 42", name="src/helper.py")
    (world.folder / "src" / "data.txt").write_text("data")

    ran = world.run("import helper; print(helper.answer, open('data.txt').read(), __name__)", name="src/chat.py")

    assert ran.stdout == "42 data __main__\n"


# --- names and sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("two\nlines.py", "\x1b[31mred.py", "-c.py", "--help", "with space.py", "quote'\".py", "$(id).py", "模型.py"),
        os.fsdecode(b"not-utf8-\xff.py"),
        *("no extension", "x" * 250 + ".py", "deep/" * 20 + "x.py"),
    ],
)
def test_names_of_all_kinds(world, name):
    script = world.folder / name
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("import sys; print(ascii(sys.argv[0][12:]))")

    ran = run(script, folder=world.folder, limits=LIMITS)

    assert ran.stdout == f"{name!a}\n"


def test_what_is_left_out_can_be_shown_on_a_terminal_whatever_its_name(world):
    os.mkfifo(world.folder / "\x1b[2J\nx")

    assert world.run("pass").left_out == (r"\x1b[2J\nx: a pipe",)


def test_a_model_is_there_but_its_weights_cannot_be_opened(world):
    model = world.folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for name, size in (("model.safetensors", 3 << 30), ("small.safetensors", 40 << 20)):
        with (model / name).open("wb") as file:
            file.truncate(size)

    ran = world.run(
        """
        import os
        print(open("model/config.json").read(), os.path.getsize("model/model.safetensors"))
        open("model/model.safetensors")
        """
    )

    assert ran.stdout == f"{{}} {3 << 30}\n"
    assert "PermissionError" in ran.stderr
    assert ran.left_out == (
        "model/model.safetensors: too large to be shown (3072 MiB)",
        "model/small.safetensors: too large to be shown (40 MiB)",
    )


def test_many_small_files_that_are_much_together(world, monkeypatch):
    for number in range(10):
        (world.folder / f"{number}").write_bytes(bytes(1000))

    with monkeypatch.context() as patch:
        patch.setattr(sandbox_snapshot, "MOST_BYTES", 5000)
        ran = world.run("import os; print(len(os.listdir()))", name="+.py")

    assert ran.stdout == "11\n", "all are there"
    assert len(ran.left_out) == 6, "but only four with what is in them"


def test_more_files_than_a_submission_has(world, monkeypatch):
    (world.folder / "z").mkdir()
    for number in range(100):
        (world.folder / "z" / f"{number}").touch()

    with monkeypatch.context() as patch:
        patch.setattr(sandbox_snapshot, "MOST_ENTRIES", 50)
        ran = world.run("import os; print(len(os.listdir('z')))", name="a.py")

    assert int(ran.stdout) < 50
    assert "more than 50 files" in ran.left_out[0]


def test_folders_nested_without_end(world):
    deep = os.open(world.folder, os.O_RDONLY)
    for _ in range(1500):  # longer than any path may be
        os.mkdir("nested", dir_fd=deep)
        deeper = os.open("nested", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = deeper
    os.close(deep)
    try:
        ran = world.run("print('ran')")

        assert ran.stdout == "ran\n"
        assert "nested more than" in ran.left_out[0]
    finally:
        subprocess.run(["rm", "-rf", world.folder / "nested"], check=True)  # more than shutil and pytest can do


@pytest.mark.skipif(not is_root(), reason="who is not root reads what is its own")
def test_a_submission_that_only_root_can_read(world):
    (world.folder / "private").mkdir(mode=0o700)
    (world.folder / "private" / "data.txt").write_text("mine")
    (world.folder / "private" / "data.txt").chmod(0o600)
    script = world.write("print(open('private/data.txt').read())")
    script.chmod(0o600)
    world.folder.chmod(0o700)

    assert run(script, folder=world.folder, limits=LIMITS).stdout == "mine\n"


def test_the_folder_may_be_named_by_a_link_and_relative_to_here(world, monkeypatch):
    world.write("print('ran')", name="chat.py")
    link = world.root / "link"
    link.symlink_to(world.folder)
    monkeypatch.chdir(world.root)

    for script, folder in (
        (link / "chat.py", world.folder),
        (world.folder / "chat.py", link),
        (Path("link/chat.py"), Path("link")),
    ):
        assert run(script, folder=folder, limits=LIMITS).stdout == "ran\n"
