"""What `pytest tests/lab` does with its options and with servers that are not what they should be.

Each test runs pytest as its user does, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.fake_openai import FakeOpenAI, as_json, call, completion, delta, fake_openai, free_port, sse

ROOT = Path(__file__).parents[2]
LAB = "tests/lab/test_lab.py"


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        yield fake


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "suite"


def run_pytest(*arguments: str | Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s, cwd=ROOT, env=env)


def answers(fake: FakeOpenAI, text: str) -> None:
    """Let the server say `text` to everything that is streamed, and it with two marks to the rest."""
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    fake.always = lambda body: (
        sse(delta(role="assistant", content=text), delta("stop"), {**delta(), "choices": [], "usage": usage})
        if body.get("stream")
        else completion(text and f"{text}..")
    )


def verdicts(out: Path) -> dict[str, dict]:
    return {each["id"]: each for each in json.loads((out / "report.json").read_text())["verdicts"]}


def test_the_options_markers_and_settings_are_told_by_pytest_itself():
    told = run_pytest("--help").stdout
    for name in ("--base-url", "--api-key", "--submission", "--lab3-model", "--lab3-engine", "--lab3-fresh"):
        assert name in told
    for name in ("lab3_model", "lab3_engine", "lab3_out", "lab3_samples", "lab3_capabilities"):
        assert f"{name} (string)" in told
    markers = run_pytest("--markers").stdout
    assert all(f"@pytest.mark.{name}:" in markers for name in ("gpu", "slow", "needs_browser"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--base-url", "http://127.0.0.1:1", "--submission", "tests"), "two subjects"),
        (("--submission", "no/such/folder"), "there is no such folder"),
        (("--base-url", "not a url"), "is not the URL of a server"),
        (("--lab3-samples", "0"), "at least one sample"),
        (("--lab3-capabilities", "stream,flying"), "no flying; there are: max_completion_tokens"),
        (("--lab3-engine", "vllm"), "invalid choice"),
        (("-o", "lab3_engine=vllm"), "lab3_engine = vllm"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_run(arguments, said):
    done = run_pytest(LAB, *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_header_says_subject_engine_card_and_versions(server, out):
    told = run_pytest(LAB, "--collect-only", "--base-url", server.url, "--lab3-out", out).stdout
    header = next(line for line in told.splitlines() if line.startswith("lab3: "))
    assert f"server ({server.url})" in header
    assert "lmdeploy 0.18" in header
    assert "torch 2" in header
    header = next(line for line in run_pytest(LAB, "--collect-only").stdout.splitlines() if line.startswith("lab3: "))
    assert "reference (embedded); engine auto" in header


def test_a_test_bears_the_name_of_its_check():
    from lab3.checks import CHECKS

    listed = run_pytest(LAB, "--collect-only", "-q").stdout.splitlines()
    assert listed[: len(CHECKS)] == [f"{LAB}::test_lab[{check.id}]" for check in CHECKS]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_server_that_is_not_there_is_an_error_and_nobodys_fail(out, workers):
    url = f"http://127.0.0.1:{free_port()}/v1"
    xml = out.parent / "junit.xml"
    done = run_pytest(
        LAB, "-n", workers, "--base-url", url, "--lab3-out", out, f"--junitxml={xml}", "-k", "chat or mul"
    )
    assert done.returncode == 3, done.stdout
    assert "No server answers at" in done.stdout
    assert "Traceback" not in done.stdout
    assert "3 errors" in done.stdout
    found = verdicts(out)["chat.answer"]
    assert (found["status"], found["points"], found["blame"]["whose"]) == ("unknown", 0, "machine")
    cases = ElementTree.parse(xml).getroot().iter("testcase")
    assert all(case.find("error") is not None and case.find("failure") is None for case in cases)


def test_what_needs_more_than_the_wire_is_unknown_and_no_trouble(server, out):
    done = run_pytest(LAB, "--base-url", server.url, "--lab3-out", out, "-k", "quantize or serve")
    assert done.returncode == 0
    assert "8 skipped" in done.stdout
    assert {each["status"] for each in verdicts(out).values()} == {"unknown"}
    assert "needs more than the wire: a URL does not show the model folder" in done.stdout
    assert server.requests == []


def test_an_empty_answer_is_the_subjects_fail_with_points_in_the_xml(server, out):
    answers(server, "")
    xml = out.parent / "junit.xml"
    done = run_pytest(LAB, "--base-url", server.url, "--lab3-out", out, f"--junitxml={xml}", "-k", "chat")
    assert done.returncode == 1
    assert "chat.answer: the answer is empty" in done.stdout
    case = next(ElementTree.parse(xml).getroot().iter("testcase"))
    told = {each.get("name"): each.get("value") for each in case.iter("property")}
    assert told == {
        "lab3.id": "chat.answer",
        "lab3.task": "1",
        "lab3.title": "The quantized model answers over the API",
        "lab3.title_zh": "量化后的模型通过 API 作答",
        "lab3.status": "fail",
        "lab3.points": "0",
        "lab3.max_points": "15",
    }


def test_sixteen_without_a_call_is_caught_and_blamed_on_what_the_wire_shows(server, out):
    """The prompt is as long with tools as without: the template hides them."""
    answers(server, "The answer is 16.")
    done = run_pytest(LAB, "--base-url", server.url, "--lab3-out", out, "-k", "tools")
    assert done.returncode == 1
    found = verdicts(out)
    assert {name for name, each in found.items() if each["status"] == "fail"} == {
        "tools.add", "tools.mul", "tools.add_arguments", "tools.mul_arguments",
    }  # fmt: skip
    assert found["tools.results"]["status"] == "unknown"
    assert found["tools.answer"]["status"] == "pass"
    assert found["tools.add"]["blame"]["kind"] == "template_without_tools"
    assert "so the chat template does not show them" in done.stdout


def test_a_check_of_mere_ability_does_not_decide_over_the_exit_code(server, out):
    server.will(
        completion(None, tool_calls=[call("add", '{"a": 3, "b": 5}', id="1")]),
        completion(None, tool_calls=[call("mul", '{"a": 8, "b": 2}', id="2")]),
        completion("Done."),
        completion("Done."),
    )
    done = run_pytest(LAB, "--base-url", server.url, "--lab3-out", out, "-k", "tools")
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
    assert "1 xfailed" in done.stdout
    assert "score 17 of 20" in done.stdout


def test_each_question_is_asked_once_however_many_processes_judge_it(server, out):
    answers(server, "The answer is 16.")
    run_pytest(LAB, "-n", "3", "--base-url", server.url, "--lab3-out", out, "-k", "tools or chat")
    assert len([body for body in server.bodies if body.get("tools")]) == 1
    assert len([body for body in server.bodies if body.get("stream")]) == 1


def test_figures_come_a_line_each_and_the_report_is_whole(server, out):
    answers(server, "I am a model.")
    done = run_pytest(LAB, "--base-url", server.url, "--lab3-out", out, "-k", "chat")
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("metric ")]
    assert "metric chat.completion_tokens 3 tokens" in lines
    report = json.loads((out / "report.json").read_text())
    assert report["schema"] == "lab3/1"
    assert report["subject"] == "server"
    assert report["evidence"]["chat"]["text"] == "I am a model."
    assert {"name": "chat.completion_tokens", "value": 3, "unit": "tokens"} in report["metrics"]
    assert "score 15 of 15" in done.stdout


def test_a_folder_that_cannot_be_written_is_told_and_no_crash(server, tmp_path):
    answers(server, "I am a model.")
    (tmp_path / "file").write_text("")
    done = run_pytest(LAB, "--base-url", server.url, "--lab3-out", tmp_path / "file", "-k", "chat")
    assert done.returncode == 3
    assert "report.json cannot be written" in done.stdout
    assert "1 passed" in done.stdout
    assert "INTERNALERROR" not in done.stdout


def test_a_key_is_sent_and_shown_nowhere(server, out):
    answers(server, "I am a model.")
    done = run_pytest(LAB, "--base-url", server.url, "--api-key", "s3cret", "--lab3-out", out, "-k", "chat")
    assert {request["headers"]["authorization"] for request in server.requests} == {"Bearer s3cret"}
    assert "s3cret" not in done.stdout + done.stderr
    assert "s3cret" not in (out / "report.json").read_text()


def test_a_capability_that_is_not_declared_is_not_asked_for(server, out):
    answers(server, "hello")
    done = run_pytest(
        "tests/lab/test_protocol.py", "--base-url", server.url, "--lab3-out", out, "--lab3-capabilities", "stream",
    )  # fmt: skip
    assert not [body for body in server.bodies if body.get("tools") or body.get("n", 1) > 1]
    assert verdicts(out)["protocol.tool_calls"]["reason"] == "the server does not declare tools"
    assert done.returncode == 1


def test_a_server_that_refuses_tools_is_told_from_a_model_that_cannot_call(server, out):
    server.will(as_json({"message": "Please launch the api_server with --tool-call-parser"}, status=400))
    done = run_pytest(LAB, "--base-url", server.url, "--lab3-out", out, "-k", "tools.add")
    assert done.returncode == 1
    assert verdicts(out)["tools.add"]["blame"]["kind"] == "tools_refused"


def test_a_wrong_key_is_the_users_mistake(server, out):
    server.models = as_json({"message": "Please request with valid api key!"}, status=401)
    done = run_pytest(LAB, "--base-url", server.url, "--api-key", "wrong", "--lab3-out", out, "-k", "chat or mul")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "refused the API key (401)" in done.stdout


def test_a_server_that_fails_is_trouble_and_no_fail(server, out):
    server.will(*[as_json({"message": "engine is dead"}, status=500)] * 9)
    done = run_pytest(LAB, "--base-url", server.url, "--lab3-out", out, "-k", "chat")
    assert done.returncode == 3
    assert "engine is dead" in done.stdout


def test_a_mistake_in_another_test_is_not_taken_for_trouble(server, out, tmp_path):
    (tmp_path / "test_mine.py").write_text("def test_mine(): assert False\n")
    url = f"http://127.0.0.1:{free_port()}"
    done = run_pytest(LAB, tmp_path / "test_mine.py", "--base-url", url, "--lab3-out", out, "-k", "chat or mine")
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert "1 error" in done.stdout


def test_a_model_that_nobody_knows_is_the_users_mistake(out):
    done = run_pytest(LAB, "--lab3-model", "./no/such/model", "--lab3-out", out, "-k", "w4a16")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no/such/model" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_plugin_costs_other_runs_next_to_nothing():
    code = (
        "import sys, lab3.pytest_plugin as _; print([m for m in ('torch', 'openai', 'lmdeploy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
