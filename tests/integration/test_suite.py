"""The acceptance suite as its users run it, with the real LMDeploy: a URL, a folder, several workers, a sudden end."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
from filelock import FileLock

from lab3.cache import cache_root
from lab3.hub import RunningServer
from lab3.ports import reserve
from tests.grading.conftest import TUTORIAL

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("suite")]

ROOT = Path(__file__).parents[2]
LAB = "tests/lab/test_lab.py"
CHAT = """
from openai import OpenAI
client = OpenAI(api_key='YOUR_API_KEY', base_url="http://0.0.0.0:23333/v1")
response = client.chat.completions.create(
    model=client.models.list().data[0].id, messages=[{"role": "user", "content": "介绍一下你自己"}], temperature=0.8)
print(response.choices[0].message.content)
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", LAB, *map(str, arguments)]


def judge(out: Path, *arguments: str | Path) -> tuple[int, dict[str, dict], str]:
    """(exit code, verdicts by id, what pytest said)."""
    options = ("--lab3-out", out, *arguments)
    done = subprocess.run(command(*options), capture_output=True, text=True, check=False, timeout=600, cwd=ROOT)
    report = out / "report.json"
    found = json.loads(report.read_text())["verdicts"] if report.exists() else []
    return done.returncode, {each["id"]: each for each in found}, done.stdout + done.stderr


def passed(verdicts: dict[str, dict]) -> set[str]:
    return {name for name, each in verdicts.items() if each["status"] == "pass"}


def test_a_server_that_somebody_else_started_is_judged_by_what_goes_over_the_wire(
    api_server: Callable[..., RunningServer], tmp_path: Path
):
    somebody_elses = api_server()
    code, verdicts, said = judge(tmp_path, "--base-url", somebody_elses.base_url)
    assert code == 0, said
    assert passed(verdicts) == {name for name in verdicts if name.startswith(("chat.", "tools."))}
    assert all(each["status"] == "unknown" for name, each in verdicts.items() if name.startswith(("quant", "serve")))
    assert psutil.pid_exists(somebody_elses.pid or 0)


@pytest.fixture
def submission(w4a16: Path, tmp_path: Path) -> Path:
    """A folder as the tutorial has it: the model and two scripts."""
    folder = tmp_path / "homework"
    shutil.copytree(w4a16, folder / "internlm2_5-1_8b-chat-w4a16-4bit")
    (folder / "internlm2_5.py").write_text(CHAT)
    (folder / "internlm2_5_func.py").write_text(dedent(TUTORIAL))
    return folder


def test_a_submitted_folder_is_inspected_served_and_its_scripts_are_run_against_it(submission: Path, tmp_path: Path):
    out = tmp_path / "out"
    code, verdicts, said = judge(out, "--submission", submission, "--lab3-model", "embedded")
    assert code == 0, said
    missing = {"quantize.quality", "serve.kv_int4", "serve.cache_ratio", "serve.memory"}
    assert {name for name, each in verdicts.items() if each["status"] == "unknown"} == missing
    assert passed(verdicts) == verdicts.keys() - missing
    scripts = json.loads((out / "report.json").read_text())["evidence"]["scripts"]
    assert [(each["path"], each["role"]) for each in scripts] == [
        ("internlm2_5.py", "chat"),
        ("internlm2_5_func.py", "tools"),
    ]
    assert all(run["outcome"] == "exited" for each in scripts for run in each["runs"])


@pytest.mark.parametrize(
    ("spoil", "checks", "failing"),
    [
        (lambda model: _set_bits(model, 8), "quantize.w4a16", {"quantize.w4a16"}),
        (lambda model: _cut_short(model), "quantize.structure or chat.answer", {"quantize.structure", "chat.answer"}),
        (lambda model: _hide_tools(model), "tools.add", {"tools.add", "tools.add_arguments"}),
    ],
    ids=["bits", "a shard cut short", "a template without tools"],
)
def test_a_submission_with_a_fault_fails_and_is_no_trouble_of_the_machine(
    submission: Path, tmp_path: Path, spoil: Callable[[Path], object], checks: str, failing: set[str]
):
    spoil(submission / "internlm2_5-1_8b-chat-w4a16-4bit")
    code, verdicts, said = judge(tmp_path / "out", "--submission", submission, "--lab3-model", "embedded", "-k", checks)
    assert code == 1, said
    assert {name for name, each in verdicts.items() if each["status"] == "fail"} == failing
    assert "Traceback" not in said
    assert (tmp_path / "out/logs").exists() == ("chat" in checks), "what the folder itself shows needs no server"


def test_a_cache_that_the_keys_do_not_bear_is_blamed_for_calls_that_come_wrong(submission: Path, tmp_path: Path):
    """One pair of channels of every key is made 40 times as large, and its queries as much smaller. With 16 bits it is
    the same model; int4 has 16 steps from a token's smallest number to its largest, and loses all other channels."""
    model = submission / "internlm2_5-1_8b-chat-w4a16-4bit"
    _scale_keys(model, factor=40.0)
    for script in submission.glob("*.py"):  # such a model never ends by itself: no need to hear all 512 tokens of it
        text = script.read_text()
        assert "completions.create(" in text
        script.write_text(text.replace("completions.create(", "completions.create(max_tokens=96, "))
    code, verdicts, said = judge(tmp_path / "out", "--submission", submission, "-k", "tools.add")
    assert code == 1, said
    found = verdicts["tools.add"]["blame"]
    assert (found["whose"], found["kind"]) == ("kv_cache", "kv_int4"), said
    assert "--quant-policy 4" in found["command"]
    assert found["log_tail"]


def _scale_keys(model: Path, *, factor: float) -> None:
    """Channels 0 and head_dim / 2 of each head, which RoPE turns into each other."""
    from safetensors.torch import load_file, save_file

    config = json.loads((model / "config.json").read_text())
    dim = config["hidden_size"] // config["num_attention_heads"]
    tensors = load_file(model / "model.safetensors")
    for name, scales in tensors.items():
        if name.endswith(("k_proj.scales", "q_proj.scales")):
            by_head = scales.view(scales.shape[0], -1, dim)
            by_head[:, :, [0, dim // 2]] *= factor if "k_proj" in name else 1 / factor
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def _set_bits(model: Path, bits: int) -> None:
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"]["bits"] = bits
    (model / "config.json").write_text(json.dumps(config))


def _cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)


def _hide_tools(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")


def test_pytest_killed_under_four_workers_leaves_nothing_and_the_next_run_works(w4a16: Path, tmp_path: Path):
    out = tmp_path / "out"
    with (tmp_path / "said").open("w") as said:
        killed = subprocess.Popen(
            command("-n", "4", "-k", "chat or tools", "--lab3-out", out),
            stdout=said, stderr=said, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
    port = _port_when_ready(out / "logs", killed)
    family = [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]
    workers = [each for each in psutil.Process(killed.pid).children() if "serve_guard" not in " ".join(each.cmdline())]
    assert len(workers) == 4
    assert any("api_server" in each.cmdline() for each in family)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    _gone, alive = psutil.wait_procs(family, timeout=10)
    assert not [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    reserve("127.0.0.1", port).close()
    for lock in cache_root().rglob("*.lock"):
        with FileLock(lock).acquire(timeout=0):
            pass
    code, verdicts, text = judge(out, "-n", "2", "-k", "chat")
    assert code == 0, text
    assert passed(verdicts) == {"chat.answer"}


def _port_when_ready(logs: Path, process: subprocess.Popen[bytes]) -> int:
    """The port of the first server, once it is up."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        for log in logs.glob("*.log") if logs.is_dir() else ():
            if found := re.search(r"Uvicorn running on http://127\.0\.0\.1:([0-9]+)", log.read_text(errors="replace")):
                return int(found[1])
        time.sleep(0.05)
    raise AssertionError(f"no server came up (pytest's exit code: {process.poll()})")
