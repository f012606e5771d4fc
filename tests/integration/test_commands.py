"""The commands that stay: `lab3 serve` in the foreground, asked by `lab3 chat` and `lab3 funcall`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lab3 import cli
from lab3.lab import STEPS
from lab3.quantize import QuantizeResult

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("servers")]
LAB3 = [sys.executable, "-m", "lab3"]


def ask(*arguments: str) -> dict:
    done = subprocess.run([*LAB3, *arguments, "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_until_it_is_interrupted_and_then_leaves_nothing(w4a16: Path, tmp_path: Path, end):
    command = [*LAB3, "serve", str(w4a16), "--kv-bits", "4", "--cache-ratio", "0.3", "--port", "0", "--json"]
    kept = tmp_path / "server.log"
    if end == signal.SIGTERM:
        command += ["--log", str(kept)]
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
    assert kept.exists() == (end == signal.SIGTERM), "a log that was asked for stays"
    assert Path(facts["log"]).exists() == kept.exists()
    if kept.exists():
        assert facts["log"] == str(kept)
        assert "quant_policy" in kept.read_text()


def test_a_command_starts_a_server_of_its_own_and_ends_it(w4a16: Path, tmp_path: Path):
    """`lab3 chat` comes by its server in the same way."""
    model = ("--model", str(w4a16), "--temperature", "0")
    run = _ask_and_watch(tmp_path, "funcall", "What is 8 * 2?", *model)
    assert [(call["name"], call["result"]) for call in run["calls"]] == [("mul", 16)]


def test_run_does_the_whole_lab_and_its_report_is_what_it_prints(
    quantization: QuantizeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """With the model that was quantized for the whole run, by the same function."""

    def quantized(model: Path, out: Path, **_: object) -> QuantizeResult:
        assert model == quantization.source
        return replace(quantization, out=Path(shutil.copytree(quantization.out, out)))

    monkeypatch.setattr("lab3.lab.quantize", quantized)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # conftest.py's: here the servers have all cores
    before = set(psutil.Process().children(recursive=True))
    code = cli.main(["run", "--out", str(tmp_path / "out"), "--json"])
    told, progress = capsys.readouterr()
    report = json.loads(told)
    judged = {each["id"]: (each["status"], each["points"], each["max_points"]) for each in report["verdicts"]}
    assert (code, report["score"], report["max_score"]) == (0, 100, 100), judged
    assert {status for status, _, points in judged.values() if points} == {"pass"}
    assert all(f"[{number}/{len(STEPS)}] {title}" in progress for number, title in enumerate(STEPS.values(), 1))
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    assert "quantize.size" in (tmp_path / "out/report.html").read_text()
    assert set(psutil.Process().children(recursive=True)) <= before


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
