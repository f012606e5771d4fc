"""A grader's machine around the sandbox: secrets to steal, files to spoil and servers to reach, all of which are looked
at from outside after each attack, as is what it left behind."""

from __future__ import annotations

import os
import re
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

from lab3.grading.sandbox import Door, Limits, Ran, run

LATE_S = 20.0  # more than any machine needs to stop one: no measure, but it tells "stopped" from "never"
LIMITS = Limits(wall_s=20, cpu_s=10, memory_mib=256, tmp_mib=16, file_mib=4)


class World:
    """`folder` is the submission; `mark` is in the mounts of every process of a sandbox started here."""

    def __init__(self, root: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.secret = f"secret-{uuid.uuid4().hex}"
        self.root = root
        self.folder = root / "submissions" / "mallory"
        self.other = root / "submissions" / "alice" / "chat.py"
        self.results = root / "results" / "mallory.json"
        self.expected = root / "expected" / "nonce.json"
        self.home = root / "home" / ".cache" / "lab3" / "key"
        for file in self.canaries:
            file.parent.mkdir(parents=True)
            file.write_text(self.secret)
        self.folder.mkdir()
        self.reached: list[str] = []  # who was connected to, of the servers below
        self._sockets: list[socket.socket] = []
        self.port: int = self._listen("TCP", socket.AF_INET, ("127.0.0.1", 0)).getsockname()[1]
        self.abstract = f"lab3-{self.mark}"
        self._listen("abstract", socket.AF_UNIX, f"\0{self.abstract}")
        self.sockets = [root / "grader.sock", Path(f"/run/lab3-{self.mark}.sock")]
        for path in self.sockets:
            with suppress(PermissionError):  # only root has /run
                self._listen(str(path), socket.AF_UNIX, str(path))
                path.chmod(0o777)

    @property
    def canaries(self) -> tuple[Path, ...]:
        return self.other, self.results, self.expected, self.home

    def write(self, text: str, *, name: str = "attack.py", **names: object) -> Path:
        """A script of the submission, which finds `names` as its own variables."""
        script = self.folder / name
        script.parent.mkdir(parents=True, exist_ok=True)
        given = "".join(
            f"{key} = {str(value) if isinstance(value, Path) else value!r}\n" for key, value in names.items()
        )
        given = "".join(
            f"{key} = {(str(value) if isinstance(value, Path) else value)!r}\n" for key, value in names.items()
        )
        script.write_text(given + dedent(text))
        return script

    def run(
        self, text: str, *, name: str = "attack.py", doors: tuple[Door, ...] = (), stdin: str = "", **names: object
    ) -> Ran:
        """Write the script and run it; names of limits are limits."""
        limits = {key: names.pop(key) for key in list(names) if key in Limits.__dataclass_fields__}
        script = self.write(text, name=name, **names)
        return run(script, folder=self.folder, doors=doors, limits=replace(LIMITS, **limits), stdin=stdin)

    def outside(self, text: str, **names: object) -> str:
        """What the script prints without a sandbox, to see that it would do harm."""
        script = self.write(text, **names)
        ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, cwd=self.folder)
        script.unlink()
        return ran.stdout

    def processes(self) -> list[int]:
        """Those on this machine that have a sandbox's mounts."""
        found = []
        for path in Path("/proc").glob("[0-9]*/mountinfo"):
            with suppress(OSError):
                if self.mark in path.read_text():
                    found.append(int(path.parent.name))
        return found

    def scripts(self, name: str = "attack.py") -> list[int]:
        """Those of them that run the script of this name by now."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(f"/{name}\0".encode()):
                    found.append(pid)
        return found

    def leftovers(self) -> list[str]:
        found = [f"process {pid}" for pid in self.processes()]
        found += [str(path) for path in Path("/tmp").glob(f"*{self.mark}*")]
        found += [str(path) for path in Path(tempfile.gettempdir()).glob(f"*{self.mark}*")]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if self.mark in line]
        return found

    def _listen(self, name: str, family: int, address: object) -> socket.socket:
        server = socket.socket(family, socket.SOCK_STREAM)
        server.bind(address)
        server.listen()
        self._sockets.append(server)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    self.reached.append(name)
                    client.close()

        threading.Thread(target=accept, daemon=True).start()
        return server

    def close(self) -> None:
        for server in self._sockets:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        self.sockets[1].unlink(missing_ok=True)


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", text)]


def is_root() -> bool:
    return os.geteuid() == 0


@contextmanager
def serving(handler: type[socketserver.BaseRequestHandler], path: Path) -> Iterator[Path]:
    """A server on a Unix socket, with a thread for each connection."""

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        request_queue_size = 100

    with Server(str(path), handler) as server:
        path.chmod(0o600)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield path
        finally:
            server.shutdown()
            thread.join()
