"""Every check of the rubric judges the reference well and catches its mutant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lab3.checks import CHECKS, exit_code, judge, score
from lab3.evidence import CallFacts, ChatFacts, Evidence, QuantizationFacts, ServerFacts, ToolFacts

BASELINE = ServerFacts(
    command="lmdeploy serve api_server model",
    engine="cpu",
    kv_bits=16,
    cache_ratio=0.8,
    startup_seconds=20.0,
    used_mib=4961,
    total_mib=6026,
    memory_method="PSS",
    kv_tokens=146304,
)
QUANTIZED = replace(BASELINE, kv_bits=4, cache_ratio=0.4, used_mib=3388, kv_tokens=269376)
QUANTIZATION = QuantizationFacts(
    method="awq",
    bits=4,
    group_size=64,
    packed_layers=210,
    plain_layers=0,
    weight_bytes_before=269030016,
    weight_bytes_after=113924736,
    predicted_weight_bytes=113924736,
    folder_bytes_before=272609280,
    folder_bytes_after=117551104,
    perplexity_before=9.50,
    perplexity_after=9.98,
    kv_bytes_per_token={"16": 23040, "8": 12240, "4": 6480},
    seconds=60.0,
)
CHAT = ChatFacts(
    question="Who are you?",
    text="I am a language model.",
    finish_reason="stop",
    prompt_tokens=37,
    completion_tokens=7,
    total_tokens=44,
    ttft_s=0.3,
    tokens_per_second=20.0,
)


def tool(name: str, a: float, b: float, result: float) -> ToolFacts:
    call = CallFacts(
        id="c1",
        name=name,
        arguments_json=f'{{"a": {a}, "b": {b}}}',
        arguments={"a": a, "b": b},
        outcome="ok",
        result=result,
    )
    return ToolFacts(
        question="?",
        function=name,
        expected=(a, b),
        tool_choice="required",
        calls=(call,),
        results_returned=True,
        answer=f"It is {result}.",
        outcome="answered",
    )


GOOD = Evidence(
    subject="reference",
    model="embedded",
    baseline=BASELINE,
    quantization=QUANTIZATION,
    quantized=QUANTIZED,
    chat=CHAT,
    tools=(tool("add", 3, 5, 8), tool("mul", 8, 2, 16)),
)


def statuses(evidence: Evidence) -> dict[str, str]:
    return {verdict.id: verdict.status for verdict in judge(evidence)}


def with_quantization(**changes: Any) -> Evidence:
    return replace(GOOD, quantization=replace(QUANTIZATION, **changes))


def with_server(**changes: Any) -> Evidence:
    return replace(GOOD, quantized=replace(QUANTIZED, **changes))


def with_chat(**changes: Any) -> Evidence:
    return replace(GOOD, chat=replace(CHAT, **changes))


def with_tool(name: str, change: Callable[[ToolFacts], ToolFacts]) -> Evidence:
    return replace(GOOD, tools=tuple(change(t) if t.function == name else t for t in GOOD.tools))


def with_call(function: str, /, **changes: Any) -> Evidence:
    return with_tool(function, lambda t: replace(t, calls=(replace(t.calls[0], **changes),)))


def capacity_of(kv_bits: int) -> int:
    """Tokens that the quantized server's pool would hold with another policy."""
    return QUANTIZED.kv_tokens * 6480 // QUANTIZATION.kv_bytes_per_token[str(kv_bits)]


def test_the_good_lab_passes_every_check():
    assert set(statuses(GOOD).values()) == {"pass"}
    assert score(judge(GOOD)) == (100, 100)
    assert exit_code(judge(GOOD)) == 0


# (what is wrong, the mutant, the only checks that may fail)
MUTANTS = [
    ("the config says 8 bits", with_quantization(bits=8), {"quantize.w4a16"}),
    ("the config says GPTQ", with_quantization(method="gptq"), {"quantize.w4a16"}),
    ("the folder was only renamed", with_quantization(method=None, bits=None, group_size=None), {"quantize.w4a16"}),
    ("the group size is 16", with_quantization(group_size=16), {"quantize.w4a16"}),
    ("a layer is still 16-bit", with_quantization(plain_layers=1), {"quantize.w4a16"}),
    ("no layer is packed", with_quantization(packed_layers=0), {"quantize.w4a16"}),
    ("weights 2% too large", with_quantization(weight_bytes_after=116203230), {"quantize.size"}),
    ("weights 2% too small: a layer is missing", with_quantization(weight_bytes_after=111646241), {"quantize.size"}),
    ("by-products fill the folder", with_quantization(folder_bytes_after=200_000_000), {"quantize.folder"}),
    ("the folder did not shrink", with_quantization(folder_bytes_after=272609280), {"quantize.folder"}),
    ("the model is broken", with_quantization(perplexity_after=4000.0), {"quantize.quality"}),
    ("the perplexity is not a number", with_quantization(perplexity_after=float("nan")), {"quantize.quality"}),
    ("the policy flag was dropped", with_server(kv_bits=16), {"serve.kv_int4"}),
    ("KV int8 for int4", with_server(kv_bits=8), {"serve.kv_int4"}),
    ("int4 claimed, int8 measured", with_server(kv_tokens=capacity_of(8)), {"serve.kv_int4"}),
    ("int4 claimed, fp16 measured", with_server(kv_tokens=capacity_of(16)), {"serve.kv_int4"}),
    ("cache ratio 0.8 for 0.4", with_server(cache_ratio=0.8), {"serve.cache_ratio"}),
    ("no memory was saved", with_server(used_mib=4961, kv_tokens=None), {"serve.memory"}),
    ("more memory than before", with_server(used_mib=5500, kv_tokens=None), {"serve.memory"}),
    ("an empty answer", with_chat(text="  \n"), {"chat.answer"}),
    ("the answer broke off", with_chat(finish_reason=None), {"chat.answer"}),
    ("the server aborted", with_chat(finish_reason="abort"), {"chat.answer"}),
    ("usage does not add up", with_chat(total_tokens=45), {"chat.answer"}),
    ("usage counts nothing", with_chat(prompt_tokens=0, completion_tokens=0, total_tokens=0), {"chat.answer"}),
    ("no usage", with_chat(prompt_tokens=None), {"chat.answer"}),
    *(
        mutant
        for name in ("add", "mul")
        for mutant in (
            (
                f"{name} was never called",
                with_tool(name, lambda t: replace(t, calls=(), outcome="no_call")),
                {f"tools.{name}", f"tools.{name}_arguments"},
            ),
            (
                f"another function than {name}",
                with_call(name, name="sub"),
                {f"tools.{name}", f"tools.{name}_arguments"},
            ),
            (
                f"arguments of {name} are a string in a string",
                with_call(name, arguments=None, outcome="not_an_object"),
                {f"tools.{name}", f"tools.{name}_arguments"},
            ),
            (
                f"arguments of {name} do not fit the schema",
                with_call(name, outcome="invalid_arguments"),
                {f"tools.{name}", f"tools.{name}_arguments"},
            ),
            (
                f"other numbers for {name}",
                with_call(name, arguments={"a": 2, "b": 2}),
                {f"tools.{name}_arguments"},
            ),
            (
                f"the result of {name} never went back",
                with_tool(name, lambda t: replace(t, results_returned=False)),
                {"tools.results"},
            ),
            (f"no answer after {name}", with_tool(name, lambda t: replace(t, answer="")), {"tools.results"}),
        )
    ),
]


@pytest.mark.parametrize(("mutant", "failing"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_mutant_is_caught_by_the_check_that_should_and_only_by_it(mutant: Evidence, failing: set[str]):
    found = statuses(mutant)
    assert {check for check, status in found.items() if status == "fail"} == failing
    required = {check.id for check in CHECKS if check.required}
    assert exit_code(judge(mutant)) == (1 if failing & required else 0)


def test_every_check_has_a_mutant():
    caught = set().union(*(failing for *_, failing in MUTANTS))
    assert caught == {check.id for check in CHECKS}


@pytest.mark.parametrize("section", ["baseline", "quantization", "quantized", "chat", "tools"])
def test_what_was_not_shown_is_unknown_and_not_a_fail(section: str):
    missing = replace(GOOD, **{section: () if section == "tools" else None})
    verdicts = judge(missing)
    assert "unknown" in {v.status for v in verdicts}
    assert "fail" not in {v.status for v in verdicts}
    assert exit_code(verdicts) == 3
    assert sum(v.points for v in verdicts) < 100


def test_trouble_with_the_machine_is_the_reason_of_the_unknown():
    evidence = replace(GOOD, chat=None, trouble={"chat": "the server died: out of memory"})
    verdict = next(v for v in judge(evidence) if v.id == "chat.answer")
    assert (verdict.status, verdict.points, verdict.reason) == ("unknown", 0, "the server died: out of memory")


def test_servers_measured_on_different_devices_are_not_compared():
    assert statuses(with_server(total_mib=81559, kv_tokens=None))["serve.memory"] == "unknown"


def test_the_arguments_may_come_in_any_order():
    assert statuses(with_call("mul", arguments={"a": 2, "b": 8}))["tools.mul_arguments"] == "pass"


def test_an_optional_check_costs_points_and_not_the_lab():
    verdicts = judge(with_call("mul", arguments={"a": 2, "b": 2}))
    assert exit_code(verdicts) == 0
    assert score(verdicts) == (97, 100)
