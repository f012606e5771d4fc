"""What there is inside the sandbox, as bubblewrap's arguments: a system and a Python to read, a submission to read, and
a little memory to write to. What is not named here is not there."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lab3.errors import InfraError
from lab3.grading import sandbox_inside

SUBMISSION = "/submission"
HOME = "/tmp/home"
_INSIDE = "/run/lab3/sandbox_inside.py"
_UID = 1000
_SHM_MIB = 8
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # folders, or links into /usr
_DEVICES = ("null", "zero", "full", "random", "urandom")
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
# Run by the interpreter itself, which is the one to know. A module that is missing is None.
_ASK = """
import importlib.util, json, pathlib, sys
found = {name: importlib.util.find_spec(name) for name in ("openai", "requests", "lab3")}
folders = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
folders += [str(pathlib.Path(folder).resolve()) for folder in folders]
print(json.dumps({"folders": folders, "origins": {name: spec and spec.origin for name, spec in found.items()}}))
"""


@dataclass(frozen=True, kw_only=True)
class Python:
    """An interpreter, the folders that it needs besides /usr, and folders in them that nobody inside may read."""

    executable: Path
    folders: tuple[Path, ...]
    hidden: tuple[Path, ...]


@cache
def python(executable: Path) -> Python:
    """Ask it. Raises InfraError if it cannot be run, or if it is no good for students' scripts."""
    try:
        answer = subprocess.run([executable, "-I", "-c", _ASK], capture_output=True, check=True, timeout=60)
        told = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InfraError(f"The Python for students' scripts does not run: {error}", kind="sandbox") from error
    missing = [name for name in ("openai", "requests") if not told["origins"][name]]
    if missing:
        raise InfraError(
            f"{executable} is no Python for students' scripts.",
            why=f"it lacks {' and '.join(missing)}",
            todo=f"{executable} -m pip install {' '.join(missing)}",
            kind="sandbox",
        )
    folders = _outermost(Path(folder) for folder in told["folders"])
    for folder in folders:
        if Path.home().is_relative_to(folder):
            raise InfraError(
                f"{executable} cannot be shown to students' scripts.",
                why=f"its folder {folder} has your home in it",
                todo="run lab3 from a virtual environment of its own",
                kind="sandbox",
            )
    # lab3's own code and data tell what is asked and expected.
    lab3 = Path(told["origins"]["lab3"]).parent if told["origins"]["lab3"] else None
    names = {lab3, lab3.resolve()} if lab3 else set()
    hidden = tuple(name for name in names if any(name.is_relative_to(folder) for folder in folders))
    return Python(executable=executable, folders=folders, hidden=hidden)


def _outermost(folders: Iterator[Path]) -> tuple[Path, ...]:
    chosen: list[Path] = []
    for folder in sorted(set(folders), key=lambda folder: len(folder.parts)):
        if not any(folder.is_relative_to(outer) for outer in (Path("/usr"), *chosen)):
            chosen.append(folder)
    return tuple(chosen)


def environ(python: Python) -> dict[str, str]:
    """All of the script's environment variables."""
    return {
        "PATH": f"{python.executable.parent}:/usr/bin:/bin",
        "HOME": HOME,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def namespaces(*, capabilities: Sequence[str]) -> list[str]:
    """The arguments for everything but files. With `capabilities` new user namespaces are left to the filter to refuse:
    bubblewrap forbids them from within one more, where capabilities over the network are worth nothing."""
    kinds = [f"--unshare-{kind}" for kind in ("user", "pid", "net", "ipc", "uts", "cgroup")]
    who = ["--uid", str(_UID), "--gid", str(_UID), "--hostname", "sandbox", "--cap-drop", "ALL"]
    who += [part for name in capabilities for part in ("--cap-add", name)] or ["--disable-userns"]
    return [*kinds, *who, "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]


def files(
    python: Python, *, submission: Path, sources: Sequence[Path], names: Sequence[str], tmp_mib: int, fds: list[int]
) -> list[str]:
    """The arguments for the files. `sources` are python.folders as the sandbox's user reaches them; `names` are hosts
    that are this machine. `fds` gets descriptors that bubblewrap reads from and the caller closes."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        if Path(name).is_symlink():
            arguments += ["--symlink", str(Path(name).readlink()), name]
        elif Path(name).is_dir():
            arguments += ["--ro-bind", name, name]
    arguments += ["--proc", "/proc", *_dev(), *_tmpfs("/tmp", tmp_mib), "--dir", HOME]
    for source, folder in zip(sources, python.folders, strict=True):  # after /tmp, where they may lie
        arguments += ["--ro-bind", str(source), str(folder)]
    for folder in python.hidden:
        arguments += ["--size", "4096", "--tmpfs", str(folder), "--remount-ro", str(folder)]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for path, text in _texts(names).items():
        fds.append(sealed(text.encode()))
        arguments += ["--perms", "0444", "--file", str(fds[-1]), path]
    return [*arguments, "--ro-bind", str(submission), SUBMISSION, "--remount-ro", "/"]


def _dev() -> list[str]:
    # Not --dev: its terminals need a second user namespace, and its tmpfs is without a limit.
    arguments = _tmpfs("/dev", 1)
    for name in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    links = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
    for name, target in links.items():
        arguments += ["--symlink", target, f"/dev/{name}"]
    return [*arguments, *_tmpfs("/dev/shm", _SHM_MIB), "--remount-ro", "/dev"]


def _tmpfs(place: str, mib: int) -> list[str]:
    return ["--size", str(mib << 20), "--tmpfs", place]


def _texts(names: Sequence[str]) -> dict[str, str]:
    here = " ".join(["localhost", "sandbox", *names])
    return {
        "/etc/passwd": f"student:x:{_UID}:{_UID}::{HOME}:/bin/sh\n",
        "/etc/group": f"student:x:{_UID}:\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        "/etc/hosts": f"127.0.0.1 {here}\n::1 localhost ip6-localhost\n",
        _INSIDE: Path(sandbox_inside.__file__).read_text(encoding="utf-8"),
    }


def first_command(python: Python, *, control: int) -> list[str]:
    """Isolated (-I) and without site (-S): nothing that lies about in any folder is imported."""
    return [str(python.executable), "-I", "-S", _INSIDE, str(control)]


def sealed(content: bytes) -> int:
    """A descriptor to read the content from, which nobody can change, whoever gets it."""
    fd = os.memfd_create("lab3", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
