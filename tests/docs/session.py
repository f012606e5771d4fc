"""A reader at a terminal: types a page's commands one after the other into bash, in a folder of his own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from lab3.cache import cache_root
from lab3.ports import reserve
from tests.docs.blocks import ROOT, Command, Fence, alike
from tests.docs.tables import EXIT_CODES, SLOW, STAND_INS, STAYING

_READY_S, _ENDS_S, _COMMAND_S = 180, 60, 840
LMDEPLOY_PORTS = re.compile(r"\b2333[34]\b")  # of the pages: the server's, and a second one's
_OWN = re.compile(r"\b(?:DIR|MODEL)\b")
_LOCAL = re.compile(r"(127\.0\.0\.1:)\d+")


@dataclass
class Session:
    """`folder` is where the reader is. `somebodys_port()` is that of a server which runs already."""

    folder: Path
    somebodys_port: Callable[[], int]
    slow: bool = False
    _staying: list[tuple[Command, subprocess.Popen[bytes], Path]] = field(default_factory=list)
    _own_port: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = kind is not None
        while self._staying:
            self._end(*self._staying.pop(), strict=not failed)

    def type(self, command: Command) -> None:
        """Run it, and see that it ends as it should and prints what the page shows."""
        if command.text in SLOW and not self.slow:
            return
        beginning = next((each for each in STAYING if command.text.startswith(each)), None)
        if beginning is not None:
            self._leave_running(command, STAYING[beginning])
            return
        text = self._reachable(command.text)
        here = self.folder
        if text.startswith("pytest tests/"):  # typed in the repository, where what the reader has is elsewhere
            here, text = ROOT, _OWN.sub(lambda word: shlex.quote(str(self.folder / word[0])), text)
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=here,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        said = f"{command.place}: {text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == EXIT_CODES.get(command.text, 0), said
        if command.output:
            assert alike(command.output, done.stdout), f"the page shows\n{command.output}\nand it prints\n{said}"

    def write_files(self, blocks: list[Fence]) -> None:
        """Python that begins with `# NAME.py` is a file of the reader's."""
        for block in blocks:
            if named := re.match(r"# ([\w-]+\.py)\n", block.text):
                (self.folder / named[1]).write_text(block.text, encoding="utf-8")

    def run_python(self, blocks: list[Fence], *, prelude: str) -> None:
        """The page's Python, as one script."""
        script = self.folder / "page.py"
        script.write_text("\n".join([prelude, *(block.text for block in blocks)]), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{blocks[0].place}\n{done.stdout[-3000:]}\n{done.stderr[-4000:]}"

    @property
    def environ(self) -> dict[str, str]:
        """The reader's: this Python's commands first, a home of his own, and the models that lab3 has made."""
        home = self.folder.parent / "home"
        home.mkdir(exist_ok=True)
        path = os.pathsep.join([str(home), str(Path(sys.executable).parent), os.environ["PATH"]])
        for name, does in STAND_INS.items():
            (home / name).write_text(f"#!/bin/bash\n{does}\n", encoding="utf-8")
            (home / name).chmod(0o755)
        # Not this checkout's lab3 by its path: the one that is installed, as readers have it.
        mine = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_", "PYTHONPATH"))
        }
        return mine | {
            "PATH": path,
            "HOME": str(home),
            "LAB3_CACHE": str(cache_root()),
            "PYTEST_ADDOPTS": f"-p no:cacheprovider --lab3-out={self.folder / 'lab3-suite'}",
            "KEY": "none",
            "COLUMNS": "120",
        }

    def _reachable(self, text: str) -> str:
        """With the port of a server that runs: the pages' may be taken on this machine."""
        if not LMDEPLOY_PORTS.search(text):
            return text
        return LMDEPLOY_PORTS.sub(str(self._own_port or self.somebodys_port()), text)

    def _leave_running(self, command: Command, port_option: str) -> None:
        # One server at a time, for they want memory, and one other beside it.
        if self._staying and (_is_server(command) or not _is_server(self._staying[-1][0])):
            self._end(*self._staying.pop(), strict=True)
        with reserve("127.0.0.1", None) as held:
            port = held.getsockname()[1]
        log = self.folder.parent / f"staying-{len(list(self.folder.parent.glob('staying-*')))}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {_as_env(self._reachable(command.text))} {port_option} {port}"],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._staying.append((command, process, log))
        _wait_answers(process, port, command, log)
        if command.output:
            shown = _LOCAL.sub(rf"\g<1>{port}", command.output)
            deadline = time.monotonic() + _ENDS_S
            while not alike(f"…{shown}…", log.read_text(errors="replace")) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert alike(f"…{shown}…", log.read_text(errors="replace")), f"{shown}\n{log.read_text(errors='replace')}"
        if command.text.startswith("lab3 serve "):
            self._own_port = port

    def _end(self, command: Command, process: subprocess.Popen[bytes], log: Path, *, strict: bool) -> None:
        """Ctrl-C."""
        if command.text.startswith("lab3 serve "):
            self._own_port = None
        early = process.poll()
        os.killpg(process.pid, signal.SIGINT) if early is None else None
        try:
            process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if strict:
                raise AssertionError(f"{command.place}: {command.text} outlived Ctrl-C\n{_tail(log)}") from None
        if strict:
            assert early is None, f"{command.place}: {command.text} ended by itself\n{_tail(log)}"


def lay_out(folder: Path, *, model: Path, w4a16: Path, slow: bool) -> None:
    """What the pages' words stand for: MODEL, DIR, submissions/*, reports/*, and what SLOW commands would make."""
    from tests.grading.conftest import CHAT, TUTORIAL  # two scripts as the tutorial has them
    from tests.run_literals import run_folder
    from tools.docs.lab_numbers import CONFIG_JSON

    for name in ("MODEL", "my-model"):
        (folder / name).symlink_to(model)
    for name in ("my-model-w4a16", "internlm2_5-1_8b-chat-w4a16-4bit"):
        (folder / name).symlink_to(w4a16)
    for name in ("DIR", "submissions/zhang", "submissions/li"):
        (folder / name).mkdir(parents=True)
        _write(folder / name / "internlm2_5.py", CHAT)
    _write(folder / "DIR/internlm2_5_func.py", TUTORIAL)
    _write(folder / "submissions/zhang/internlm2_5_func.py", TUTORIAL)
    (folder / "internlm2_5-1_8b-chat").mkdir()
    (folder / "internlm2_5-1_8b-chat/config.json").write_text(json.dumps(CONFIG_JSON), encoding="utf-8")
    corpus = ROOT / "tests/reports/corpus"
    for name in ("04-text-only", "46-negations"):
        shutil.copytree(corpus / name, folder / "reports" / name)
        (folder / "reports" / name / "expected.json").unlink()
    shutil.copy(corpus / "04-text-only/report.md", folder)
    (folder / "tutorial.md").write_text("# The tutorial\n\nQuantize the model, serve it, ask it.\n", encoding="utf-8")
    for name in ("run-old", "run-new"):
        run_folder(folder / name)
    if not slow:
        (folder / "model-w4a16").symlink_to(w4a16)
        run_folder(folder / "lab3-out")


def _write(file: Path, script: str) -> None:
    from textwrap import dedent

    file.write_text(dedent(script), encoding="utf-8")


def _is_server(command: Command) -> bool:
    return " serve " in command.text


def _as_env(text: str) -> str:
    """`exec` takes no assignments before the command."""
    return f"env {text}" if re.match(r"[A-Z][A-Z0-9_]*=", text) else text


def _wait_answers(process: subprocess.Popen[bytes], port: int, command: Command, log: Path) -> None:
    """Until something answers HTTP there; by loopback, so that no proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{command.place}: {command.text} ended\n{_tail(log)}"
        try:
            opener.open(f"http://127.0.0.1:{port}/v1/models", timeout=5)
            return
        except urllib.error.HTTPError:  # an answer, too: not all of them are model servers
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{command.place}: {command.text} did not answer\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]
