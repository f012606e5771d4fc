"""Whose a failure is: each cause is told from the others by what the evidence shows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lab3.blame import CALL_MARKERS
from lab3.checks import judge
from lab3.errors import InfraError
from lab3.evidence import DiagnosisFacts, Evidence, Trouble
from lab3.ports import taken
from lab3.serve import ServerError
from lab3.subject import trouble_of
from tests.unit.test_checks import GOOD, with_call, with_chat, with_quantization, with_tools

LOG = ("Uvicorn running", "INFO: 200 OK")


def blamed(evidence: Evidence, check: str = "tools.add"):
    return next(verdict for verdict in judge(evidence) if verdict.id == check).blame


def uncalled(**changes) -> Evidence:
    """The question was answered without a call."""
    return with_tools(calls=(), results_returned=False, outcome="no_call", **changes)


def looked(evidence: Evidence, **right: bool) -> Evidence:
    by_bits = {name.removeprefix("kv"): is_right for name, is_right in right.items()}
    return replace(evidence, diagnosis=DiagnosisFacts(command="lmdeploy serve", log_tail=LOG, right_by_kv_bits=by_bits))


def test_where_nothing_failed_nobody_is_blamed():
    assert {verdict.blame for verdict in judge(GOOD)} == {None}
    assert {verdict.blame for verdict in judge(Evidence(subject="server", model="m"))} == {None}


@pytest.mark.parametrize("fault", ["machine", "unknown", "subject"])
def test_trouble_in_gathering_is_passed_on_with_its_log_and_command(fault):
    trouble = Trouble(fault=fault, kind="gpu_memory", text="the GPU ran out of memory", command="serve", log_tail=LOG)
    found = blamed(replace(GOOD, chat=None, trouble={"chat": trouble}), "chat.answer")
    assert (found.whose, found.kind, found.text) == (fault, "gpu_memory", "the GPU ran out of memory")
    assert (found.command, found.log_tail) == ("serve", LOG)


def test_what_the_subject_does_not_show_is_nobodys_fault():
    trouble = Trouble(fault="not_shown", kind="not_shown", text="a URL does not show it")
    assert blamed(replace(GOOD, chat=None, trouble={"chat": trouble}), "chat.answer") is None


@pytest.mark.parametrize(
    ("evidence", "whose", "kind", "said"),
    [
        (
            uncalled(prompt_tokens=20, prompt_tokens_without_tools=20),
            "model",
            "template_without_tools",
            "as many tokens",
        ),
        (
            uncalled(
                content='<|action_start|><|plugin|>{"name": "add"', prompt_tokens=90, prompt_tokens_without_tools=20
            ),
            "server",
            "call_not_parsed",
            "--tool-call-parser",
        ),
        (
            with_tools(calls=(), results_returned=False, outcome="refused", answer="Please launch with a parser"),
            "server",
            "tools_refused",
            "Please launch",
        ),
        (
            with_tools(calls=(), results_returned=False, outcome="malformed", answer="no choices"),
            "server",
            "malformed",
            "no choices",
        ),
        (
            with_call("add", arguments=None, arguments_json='"{}"', outcome="not_an_object"),
            "model",
            "arguments_not_json",
            "nothing was run",
        ),
        (looked(uncalled(), kv4=False, kv8=True), "kv_cache", "kv_int4", "--quant-policy 8"),
        (looked(uncalled(), kv4=False, kv8=False, kv16=True), "kv_cache", "kv_int4", "wrong with a KV cache of 8 bits"),
        (looked(uncalled(), kv4=False, kv8=False, kv16=True), "kv_cache", "kv_int4", "--quant-policy 0"),
        (looked(uncalled(), kv8=False, kv16=True), "kv_cache", "kv_int8", "--quant-policy 0"),
        (looked(uncalled(), kv4=False, kv8=False, kv16=False), "model", "model_ability", "of 4 and 8 and 16 bits"),
        (looked(uncalled(), kv16=False), "model", "model_ability", "of 16 bits"),
        (looked(uncalled(), kv4=True), "subject", "asked_otherwise", "the same server calls right"),
        (uncalled(), "subject", "as_found", "not what the lab asks for"),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)
def test_calls_that_fail_are_told_apart(evidence: Evidence, whose: str, kind: str, said: str):
    found = blamed(evidence)
    assert (found.whose, found.kind) == (whose, kind)
    assert said in found.text


def test_what_the_wire_shows_goes_before_asking_again():
    """A template without tools fails with every cache."""
    evidence = uncalled(prompt_tokens=20, prompt_tokens_without_tools=20)
    assert blamed(looked(evidence, kv4=False, kv8=False, kv16=False)).kind == "template_without_tools"
    assert blamed(looked(evidence, kv4=True)).kind == "template_without_tools"


def test_what_more_bits_mend_is_the_cache_whatever_the_wire_showed():
    """A model that int4 makes babble may begin a call that nobody can parse."""
    evidence = uncalled(content="<|action_start|><|plugin|> fox fox", prompt_tokens=90, prompt_tokens_without_tools=20)
    assert blamed(looked(evidence, kv4=False, kv8=False, kv16=False)).kind == "call_not_parsed"
    assert blamed(looked(evidence, kv4=False, kv8=True)).kind == "kv_int4"
    assert blamed(looked(evidence, kv4=True)).kind == "call_not_parsed"


def test_a_longer_prompt_with_tools_accuses_no_template():
    assert blamed(uncalled(prompt_tokens=90, prompt_tokens_without_tools=20)).kind == "as_found"
    assert blamed(uncalled(prompt_tokens=None, prompt_tokens_without_tools=None)).kind == "as_found"


def test_a_refused_chat_is_the_servers_and_an_empty_one_is_only_found():
    assert blamed(with_chat(error="refused (400)", text=""), "chat.answer").kind == "bad_answer"
    assert blamed(with_chat(text=""), "chat.answer").kind == "as_found"


def test_a_wrong_folder_is_the_subjects():
    assert blamed(with_quantization(bits=8), "quantize.w4a16").whose == "subject"


def test_the_log_and_the_command_come_along():
    told = str(blamed(looked(uncalled(), kv4=False, kv8=True)))
    assert told.startswith("kv_cache: asked by lab3 itself it calls wrong with a KV cache of 4 bits and right with 8")
    assert "to reproduce: lmdeploy serve" in told
    assert told.endswith("  | Uvicorn running\n  | INFO: 200 OK")


def test_the_markers_are_those_of_lmdeploys_parsers():
    """Each parser's opening tag begins with, or is, one of ours."""
    import importlib.util

    spec = importlib.util.find_spec("lmdeploy")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "serve/parsers/tool_parser"
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*_tool_parser.py"))
    opened = set(re.findall(r"return '(<[^'/]*>)'|section_begin = '(<[^']*>)'", text))
    tags = {tag for pair in opened for tag in pair if tag and "_end" not in tag}
    assert {"<tool_call>", "<|python_tag|>"} <= tags
    assert not [tag for tag in tags if not any(marker in tag for marker in CALL_MARKERS)]


def server_error(log: str) -> ServerError:
    from lab3.diagnose import diagnose

    lines = log.splitlines()
    return ServerError(
        "the server exited", diagnosis=diagnose(log, returncode=1), command="serve", log_path=None, log_lines=lines
    )


@pytest.mark.parametrize(
    ("error", "fault", "kind"),
    [
        (server_error("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"), "machine", "gpu_memory"),
        (server_error("RuntimeError: CUDA error: no kernel image is available"), "machine", "compute_capability"),
        (server_error("OSError: [Errno 28] No space left on device"), "machine", "disk_full"),
        (server_error("[Errno 98] error while attempting to bind on address: in use"), "machine", "address_in_use"),
        (server_error("AssertionError: mismatched quant method"), "subject", "format_mismatch"),
        (server_error("api_server: error: unrecognized arguments: --quant"), "subject", "bad_flag"),
        (server_error("something nobody knows"), "unknown", "unknown"),
        (taken("127.0.0.1", 1), "machine", "address_in_use"),
        (InfraError("quantization failed", why="OSError: [Errno 28] No space left on device"), "machine", "disk_full"),
        (InfraError("No server answers", kind="network"), "machine", "network"),
        (InfraError("the sky fell"), "machine", "machine"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_trouble_is_recognised_and_whose_it_is(error: InfraError, fault: str, kind: str):
    found = trouble_of(error)
    assert (found.fault, found.kind) == (fault, kind)
    assert error.what in found.text
    if isinstance(error, ServerError):
        assert found.command == "serve"
        assert found.log_tail == tuple(error.log_lines)
