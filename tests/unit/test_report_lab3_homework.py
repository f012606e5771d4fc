"""A homework that lab3 wrote itself, from the evidence of a run, is graded as one that shows every step."""

import pytest

from lab3.evidence import ChatFacts
from lab3.report.markdown_homework import write_homework
from lab3.reports.work import Plan, Task, judge_one, own_steps
from tests.run_literals import call, evidence, series, server, stored, tools

MODEL = "/root/models/internlm2_5-1_8b-chat"
MADE = "lab3-out/internlm2_5-1_8b-chat-w4a16"
SERVE = "lmdeploy serve api_server {model} --server-port {port} --backend turbomind --cache-max-entry-count {ratio}"
SHOWN = (
    "baseline_memory",
    "quantize_command",
    "sizes",
    "size_prediction",
    "serve_command",
    "server_started",
    "served_model_made",
    "conversation",
    "server_memory",
    "memory_prediction",
    "same_model",
    "same_card",
    "prose_claims",
    "tools_server",
    "tool_calls",
    "tool_results",
    "tools_model",
    "understanding.weights_only",
    "understanding.kv_online",
    "understanding.kv_memory",
    "understanding.not_all_weights",
    "understanding.difference",
)


def run(**changes):
    """A run with InternLM2.5-1.8B on an H100: sizes, memory and commands as lab3 measured and typed them."""
    before = SERVE.format(model=MODEL, port=41873, ratio=0.8)
    after = SERVE.format(model=MADE, port=41911, ratio=0.4) + " --quant-policy 4"
    told = {
        "model": MODEL,
        "baseline": server(command=before, kv_bits=16, cache_ratio=0.8, used_mib=66447, kv_tokens=302144),
        "quantized": server(command=after, used_mib=34607),
        "memory": (series(16, 0.8, 66447), series(4, 0.4, 34607)),
        "chat": ChatFacts(
            question="Who are you?",
            text="I am an assistant.",
            finish_reason="stop",
            prompt_tokens=31,
            completion_tokens=7,
            total_tokens=38,
            ttft_s=0.05,
            tokens_per_second=170.2,
        ),
    }
    return evidence(**(told | changes))


def judged(facts, folder, language="en"):
    homework, *_ = write_homework(stored(facts), folder, language=language)
    report = own_steps().read(homework, fetch=False)
    task = Task(path=homework, name="homework", folder=folder / "results")
    graded, _ = judge_one(report, task, Plan(), own_steps())
    return {each.id.removeprefix("report."): each for each in graded.judged}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_step_of_a_homework_of_lab3_is_found(tmp_path, language):
    found = judged(run(), tmp_path, language)
    others = {check: (found[check].status, found[check].reason) for check in SHOWN if found[check].status != "pass"}
    assert not others
    assert [each.id for each in found.values() if each.status == "fail"] == []


def test_a_wrong_result_in_it_is_found(tmp_path):
    facts = run(tools=(tools(calls=(call("add", '{"a": 3, "b": 5}', 8), call("mul", '{"a": 8, "b": 2}', 18))),))
    found = judged(facts, tmp_path)["tool_results"]
    assert (found.status, found.kind, found.expected, found.actual) == ("fail", "contradiction", "16", "18")


def test_memory_that_cannot_be_is_found(tmp_path):
    facts = run(quantized=server(command=SERVE.format(model=MADE, port=1, ratio=0.4), used_mib=1200))
    assert judged(facts, tmp_path)["memory_prediction"].kind == "impossible"


def test_a_server_of_sixteen_bits_is_not_the_one_that_is_asked_for(tmp_path):
    facts = run(quantized=server(command=SERVE.format(model=MADE, port=41911, ratio=0.4), kv_bits=16, used_mib=34607))
    found = judged(facts, tmp_path)["serve_command"]
    assert (found.status, "no `--quant-policy 4` or `8`" in found.reason) == ("unknown", True)
