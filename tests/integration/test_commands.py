"""The commands that stay: `lab3 serve` in the foreground, asked by `lab3 chat` and `lab3 funcall`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("servers")]
LAB3 = [sys.executable, "-m", "lab3"]


def ask(*arguments: str) -> dict:
    done = subprocess.run([*LAB3, *arguments, "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_until_it_is_interrupted_and_then_leaves_nothing(w4a16: Path, tmp_path: Path, end):
    command = [*LAB3, "serve", str(w4a16), "--kv-bits", "4", "--cache-ratio", "0.3", "--port", "0", "--json"]
    with (
        (tmp_path / "progress").open("w") as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=progress, text=True, env=dict(os.environ)) as serving,
    ):
        try:
            facts = json.JSONDecoder().raw_decode(_first_object(serving))[0]
            if end == signal.SIGINT:
                reply = ask(
                    "chat", "What is the capital of Germany?", "--base-url", facts["base_url"], "--temperature", "0"
                )
                assert "Berlin" in reply["text"]
                run = ask("funcall", "What is 3 + 5?", "--base-url", facts["base_url"], "--temperature", "0")
                assert [(call["name"], call["result"]) for call in run["calls"]] == [("add", 8)]
            children = psutil.Process(serving.pid).children(recursive=True)
            assert children
            serving.send_signal(end)
            assert serving.wait(timeout=60) == 130
        finally:
            serving.terminate()  # however the test ends; the command stops what it started
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert len(gone) == len(children)
    assert "ready" in (tmp_path / "progress").read_text()


def test_a_command_starts_a_server_of_its_own_and_ends_it(w4a16: Path, tmp_path: Path):
    """`lab3 chat` comes by its server in the same way."""
    model = ("--model", str(w4a16), "--temperature", "0")
    run = _ask_and_watch(tmp_path, "funcall", "What is 8 * 2?", *model)
    assert [(call["name"], call["result"]) for call in run["calls"]] == [("mul", 16)]


def _ask_and_watch(folder: Path, *arguments: str) -> dict:
    """As `ask`; a server was among the command's processes, and none of them is there after it."""
    seen: dict[psutil.Process, list[str]] = {}
    with (
        (folder / "out").open("w") as out,
        (folder / "progress").open("w") as progress,
        subprocess.Popen([*LAB3, *arguments, "--json"], stdout=out, stderr=progress) as command,
    ):
        while command.poll() is None:
            with contextlib.suppress(psutil.Error):
                for process in psutil.Process(command.pid).children(recursive=True):
                    seen[process] = process.cmdline()
            time.sleep(0.2)
    assert command.returncode == 0, (folder / "progress").read_text()[-2000:]
    assert any("api_server" in words for words in seen.values())
    assert not psutil.wait_procs(list(seen), timeout=1)[1]
    return json.loads((folder / "out").read_text())


def _first_object(process: subprocess.Popen[str]) -> str:
    """The JSON object that the command prints once it serves."""
    text, deadline = "", time.monotonic() + 180
    while time.monotonic() < deadline and process.stdout is not None:
        line = process.stdout.readline()
        text += line
        if line.startswith("}") or not line:
            break
    return text
