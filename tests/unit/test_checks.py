"""Every check of the rubric judges the reference well and catches its mutant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lab3.checks import CHECKS, exit_code, judge, numbers_in, score
from lab3.evidence import (
    CallFacts,
    ChatFacts,
    Evidence,
    ExpectedCall,
    LayerSample,
    QuantizationFacts,
    ServerFacts,
    StructureFacts,
    ToolFacts,
    Trouble,
)

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
    weight_bytes_before=269030016,
    weight_bytes_after=113924736,
    predicted_weight_bytes=113924736,
    folder_bytes_before=272609280,
    folder_bytes_after=117551104,
    perplexity_before=9.50,
    perplexity_after=9.98,
    perplexity_kv_int4=10.45,
    kv_int4_key_errors=(0.05, 0.31, 0.06),
    kv_bytes_per_token={"16": 23040, "8": 12240, "4": 6480},
    seconds=60.0,
)
SAMPLE = (
    LayerSample(name="model.layers.0.self_attn.q_proj", rows=576, of_rows=576, residual=0.31, step_error=0.014),
    LayerSample(name="model.layers.9.mlp.up_proj", rows=1536, of_rows=1536, residual=0.33, step_error=0.019),
)
STRUCTURE = StructureFacts(
    layers_expected=210,
    layers_packed=210,
    layers_plain=0,
    group_size_found=64,
    group_size_configured=64,
    sample=SAMPLE,
    residual_bound=0.5,
    step_bound=0.1333,
    not_compared=None,
    problems=(),
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
    other_question="List three fruits.",
    other_text="Apple, pear, plum.",
)


def called(name: str, a: float, b: float, result: float) -> CallFacts:
    return CallFacts(
        id=f"call_{name}",
        name=name,
        arguments_json=f'{{"a": {a}, "b": {b}}}',
        arguments={"a": a, "b": b},
        outcome="ok",
        result=result,
    )


ASKED = ToolFacts(
    question="Compute (3+5)*2",
    expected=(ExpectedCall(function="add", numbers=(3, 5)), ExpectedCall(function="mul", numbers=(8, 2))),
    expected_answer=16,
    tool_choice="auto",
    calls=(called("add", 3, 5, 8), called("mul", 8, 2, 16)),
    results_returned=True,
    answer="The answer is 16.",
    outcome="answered",
)
GOOD = Evidence(
    subject="reference",
    model="embedded",
    baseline=BASELINE,
    quantization=QUANTIZATION,
    structure=STRUCTURE,
    quantized=QUANTIZED,
    chat=CHAT,
    tools=(ASKED,),
)


def statuses(evidence: Evidence) -> dict[str, str]:
    return {verdict.id: verdict.status for verdict in judge(evidence)}


def with_quantization(**changes: Any) -> Evidence:
    return replace(GOOD, quantization=replace(QUANTIZATION, **changes))


def with_structure(**changes: Any) -> Evidence:
    return replace(GOOD, structure=replace(STRUCTURE, **changes))


def with_sample(**changes: Any) -> Evidence:
    return with_structure(sample=(replace(SAMPLE[0], **changes), SAMPLE[1]))


def with_server(**changes: Any) -> Evidence:
    return replace(GOOD, quantized=replace(QUANTIZED, **changes))


def with_chat(**changes: Any) -> Evidence:
    return replace(GOOD, chat=replace(CHAT, **changes))


def with_tools(**changes: Any) -> Evidence:
    return replace(GOOD, tools=(replace(ASKED, **changes),))


def with_call(name: str, /, **changes: Any) -> Evidence:
    return with_tools(calls=tuple(replace(call, **changes) if call.name == name else call for call in ASKED.calls))


def without_call(name: str) -> Evidence:
    return with_tools(calls=tuple(call for call in ASKED.calls if call.name != name))


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
    ("a layer is still 16-bit", with_structure(layers_plain=1), {"quantize.structure"}),
    ("a layer is not packed", with_structure(layers_packed=209), {"quantize.structure"}),
    ("no layer at all", with_structure(layers_expected=0, layers_packed=0), {"quantize.structure"}),
    ("groups of another size", with_structure(group_size_configured=128), {"quantize.structure"}),
    ("groups of many sizes", with_structure(group_size_found=None), {"quantize.structure"}),
    ("no groups at all", with_structure(group_size_found=None, group_size_configured=None), {"quantize.structure"}),
    ("scales are missing", with_structure(problems=("q_proj has no scales",)), {"quantize.structure"}),
    ("another model's weights", with_sample(residual=2.9), {"quantize.structure"}),
    ("weights a little too far off", with_sample(residual=0.51), {"quantize.structure"}),
    ("a residual that is not a number", with_sample(residual=float("nan")), {"quantize.structure"}),
    ("weights of zero", with_sample(residual=0.0, step_error=1.0), {"quantize.structure"}),
    ("a problem and no source", with_structure(sample=(), problems=("q_proj is missing",)), {"quantize.structure"}),
    ("a plain layer and no source", with_structure(sample=(), layers_plain=1), {"quantize.structure"}),
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
    ("the answer of another question", with_chat(other_text=CHAT.text), {"chat.answer"}),
    ("the answer broke off", with_chat(finish_reason=None), {"chat.answer"}),
    ("the server aborted", with_chat(finish_reason="abort"), {"chat.answer"}),
    ("usage does not add up", with_chat(total_tokens=45), {"chat.answer"}),
    ("usage counts nothing", with_chat(prompt_tokens=0, completion_tokens=0, total_tokens=0), {"chat.answer"}),
    ("the server refused", with_chat(error="refused the request (400)"), {"chat.answer"}),
    ("no usage", with_chat(prompt_tokens=None), {"chat.answer"}),
    *(
        mutant
        for name in ("add", "mul")
        for mutant in (
            (f"{name} was never called", without_call(name), {f"tools.{name}", f"tools.{name}_arguments"}),
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
            (f"other numbers for {name}", with_call(name, arguments={"a": 2, "b": 2}), {f"tools.{name}_arguments"}),
        )
    ),
    (
        "16 printed without a call",
        with_tools(calls=(), results_returned=False),
        {"tools.add", "tools.mul", "tools.add_arguments", "tools.mul_arguments"},
    ),
    ("the results never went back", with_tools(results_returned=False), {"tools.results"}),
    ("no answer after the calls", with_tools(answer=""), {"tools.results", "tools.answer"}),
    ("another answer", with_tools(answer="The answer is 8."), {"tools.answer"}),
    ("a longer number", with_tools(answer="The answer is 160."), {"tools.answer"}),
    ("a negative answer", with_tools(answer="It is -16."), {"tools.answer"}),
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


@pytest.mark.parametrize("section", ["baseline", "quantization", "structure", "quantized", "chat", "tools"])
def test_what_was_not_shown_is_unknown_and_not_a_fail(section: str):
    missing = replace(GOOD, **{section: () if section == "tools" else None})
    verdicts = judge(missing)
    assert "unknown" in {v.status for v in verdicts}
    assert "fail" not in {v.status for v in verdicts}
    assert exit_code(verdicts) == 3
    assert sum(v.points for v in verdicts) < 100


def test_weights_that_were_not_compared_are_unknown_where_all_else_is_right():
    evidence = with_structure(sample=(), not_compared="no source model was given")
    verdict = next(v for v in judge(evidence) if v.id == "quantize.structure")
    assert (verdict.status, verdict.points) == ("unknown", 0)
    assert verdict.reason == ("all 210 linear layers in 4 bits, group size 64; not compared: no source model was given")


def test_the_worst_layer_is_told():
    reasons = [
        next(v for v in judge(e) if v.id == "quantize.structure").reason for e in (GOOD, with_sample(residual=3))
    ]
    assert "at worst model.layers.9.mlp.up_proj: 0.33 of a step off, its steps by 2%" in reasons[0]
    assert "1 of 2 layers are not the source's (model.layers.0.self_attn.q_proj: 3.00 of a step off" in reasons[1]


def test_every_check_has_a_title_in_both_languages():
    for verdict in judge(GOOD):
        assert verdict.title.isascii()
        assert any("\u4e00" <= letter <= "\u9fff" for letter in verdict.title_zh)


@pytest.mark.parametrize("fault", ["machine", "unknown", "not_shown"])
def test_trouble_with_the_machine_is_the_reason_of_the_unknown(fault):
    trouble = Trouble(fault=fault, kind="gpu_memory", text="the server died: out of memory")
    evidence = replace(GOOD, chat=None, trouble={"chat": trouble})
    verdict = next(v for v in judge(evidence) if v.id == "chat.answer")
    assert (verdict.status, verdict.points, verdict.reason) == ("unknown", 0, "the server died: out of memory")


def test_a_subject_that_is_broken_itself_fails():
    trouble = Trouble(fault="subject", kind="missing_weights", text="the weights are cut short")
    verdict = next(v for v in judge(replace(GOOD, chat=None, trouble={"chat": trouble})) if v.id == "chat.answer")
    assert (verdict.status, verdict.reason) == ("fail", "the weights are cut short")


def test_servers_measured_on_different_devices_are_not_compared():
    assert statuses(with_server(total_mib=81559, kv_tokens=None))["serve.memory"] == "unknown"


def test_the_arguments_may_come_in_any_order():
    assert statuses(with_call("mul", arguments={"a": 2, "b": 8}))["tools.mul_arguments"] == "pass"


def test_an_optional_check_costs_points_and_not_the_lab():
    verdicts = judge(with_tools(answer="Done."))
    assert exit_code(verdicts) == 0
    assert score(verdicts) == (97, 100)


def test_the_cost_of_an_int4_kv_cache_is_told():
    verdict = next(v for v in judge(GOOD) if v.id == "quantize.quality")
    assert verdict.reason == (
        "perplexity 9.50 → 9.98 (+5.1%); with an int4 KV cache 10.45 (+10.0%), "
        "whose keys are 6% off in most layers and 31% in layer 1"
    )


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("The result is 16.", [16]),
        ("160", [160]),
        ("1,234,567.5 in all", [1234567.5]),
        ("3, 5 and 16", [3, 5, 16]),
        ("3,5", [3, 5]),
        ("12,3456", [12, 3456]),
        ("20-4=16", [20, 4, 16]),
        ("(3+5)-4", [3, 5, 4]),
        ("-16", [-16]),
        ("It is −16°", [-16]),
        ("结果是-16。", [-16]),
        ("等于负16", [-16]),
        ("minus 16", [-16]),
        ("(3 + 5) * 2 = 16.0", [3, 5, 2, 16]),
        ("1.6e1", [16]),
        ("$16.50", [16.5]),
        ("version 1.16.2", [1.16]),
        ("答案是16个", [16]),
        ("sixteen", []),
    ],
)
def test_numbers_in_a_text(text: str, numbers: list[float]):
    assert numbers_in(text) == numbers


def test_what_strangers_hold_of_the_card_is_not_the_server_s():
    """2000 MiB that somebody took between the two servers would hide the savings, and spoil the bytes for a token."""
    beside = with_server(used_mib=QUANTIZED.used_mib + 2000, foreign_mib=2000)
    assert statuses(beside) == statuses(GOOD)
    (memory,) = [verdict for verdict in judge(beside) if verdict.id == "serve.memory"]
    assert "beside 2000 of others" in memory.reason
    unnoticed = with_server(used_mib=QUANTIZED.used_mib + 2000)
    assert {name for name, status in statuses(unnoticed).items() if status == "fail"} == {
        "serve.memory",
        "serve.kv_int4",
    }


def test_a_model_that_calls_and_says_nothing_is_not_told_to_have_said_something_else():
    verdicts = {each.id: each for each in judge(with_tools(calls=(), answer="", outcome="no_call"))}
    assert "no valid call of add" in verdicts["tools.add_arguments"].reason
    assert "gave no answer" in verdicts["tools.answer"].reason


def test_the_rubric_in_its_order_starts_the_judged_server_once_and_after_the_one_that_it_is_compared_with():
    served = [section for check in CHECKS for section in check.sections if section in ("baseline", "quantized", "chat")]
    order = list(dict.fromkeys(served))
    assert order == ["baseline", "quantized", "chat"]
    assert all(check.sections[-1] == check.section for check in CHECKS)
