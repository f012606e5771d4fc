"""The rubric: every check of the lab, a pure function of the Evidence.

`unknown` is a verdict: it is neither a pass nor a fail, and trouble with the machine is never a fail of the subject.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lab3.blame import blame
from lab3.evidence import CallFacts, Evidence, QuantizationFacts, ServerFacts, ToolFacts
from lab3.verdicts import Check, Finding, Status, Verdict, exit_code, score, verdict_of

__all__ = ["CHECKS", "Check", "Finding", "Status", "Verdict", "exit_code", "judge", "numbers_in", "score"]

T = TypeVar("T")

SIZE_TOLERANCE = 0.01
# LMDeploy's AWQ costs the embedded model 4.2% (bench/RESULTS.md); a broken folder is off by orders of magnitude.
PERPLEXITY_RATIO = 1.2
# int4 takes 53% of int8's bytes and 28% of fp16's: a third off is still told apart. On the CPU the pages of libraries
# that another server maps too count half (PSS), which was seen to be 14% of a small pool.
KV_TOLERANCE = 0.35


def judge(evidence: Evidence, checks: Sequence[Check] | None = None) -> list[Verdict]:
    """The verdicts of all checks (by default the lab's), in their order, and whose each failure is."""
    verdicts = []
    for check in CHECKS if checks is None else checks:
        found = verdict_of(check, evidence)
        verdicts.append(replace(found, blame=blame(found, check.section, evidence)))
    return verdicts


def _decide(good: bool, *, yes: str, no: str, source: str, expected: Any = None, actual: Any = None) -> Finding:
    return Finding("pass" if good else "fail", yes if good else no, source, expected, actual)


# --- task 1: W4A16, int4 KV cache, one conversation ----------------------------------------------------------------


def _config_says_w4a16(evidence: Evidence) -> Finding:
    q = _given(evidence.quantization)
    return _decide(
        (q.method, q.bits) == ("awq", 4) and q.group_size in (32, 64, 128),
        yes=f"AWQ, {q.bits} bits, group size {q.group_size}",
        no="config.json does not tell AWQ with 4 bits",
        source="config.json of the quantized folder",
        expected={"method": "awq", "bits": 4, "group_size": [128, 64, 32]},
        actual={"method": q.method, "bits": q.bits, "group_size": q.group_size},
    )


def _weights_are_w4a16(evidence: Evidence) -> Finding:
    """Every linear layer packed, in the configured groups, and the source's weights within what rounding explains."""
    s = _given(evidence.structure)
    whole = 0 < s.layers_expected == s.layers_packed and s.layers_plain == 0
    groups = s.group_size_found is not None and s.group_size_found == s.group_size_configured
    counted = f"all {s.layers_packed} linear layers in 4 bits, group size {s.group_size_found}"
    source = "headers and tensors of the quantized folder"
    if whole and groups and not s.problems and not s.sample:
        return Finding("unknown", f"{counted}; not compared: {s.not_compared or 'no layer was sampled'}", source)
    # Written so that a figure that is not a number counts as off.
    near = [x for x in s.sample if x.residual <= s.residual_bound and x.step_error <= s.step_bound]
    off = [x for x in s.sample if x not in near]
    worst = max(off or s.sample, key=lambda x: x.residual, default=None)
    told = f"{worst.name}: {worst.residual:.2f} of a step off, its steps by {worst.step_error:.0%}" if worst else ""
    faults = [
        *s.problems[:3],
        *([f"{len(off)} of {len(s.sample)} layers are not the source's ({told})"] if off else []),
        *([] if whole else [f"{s.layers_packed} of {s.layers_expected} linear layers packed, {s.layers_plain} plain"]),
        *([] if groups else [f"group size {s.group_size_found}, and config.json says {s.group_size_configured}"]),
    ]
    return _decide(
        not faults,
        yes=f"{counted}; {len(near)} compared with the source (at worst {told})",
        no="; ".join(faults),
        source=f"{source}, and the source model's",
        expected={"packed": s.layers_expected, "plain": 0, "residual_at_most": s.residual_bound},
        actual={
            "packed": s.layers_packed,
            "plain": s.layers_plain,
            "residual": worst.residual if worst else None,
            "step_error": worst.step_error if worst else None,
        },
    )


def _size_is_as_predicted(evidence: Evidence) -> Finding:
    q = _given(evidence.quantization)
    error = (q.weight_bytes_after - q.predicted_weight_bytes) / q.predicted_weight_bytes
    return _decide(
        abs(error) <= SIZE_TOLERANCE and q.weight_bytes_after < q.weight_bytes_before,
        yes=f"{_percent(q)} smaller, {abs(error):.2%} off the prediction",
        no=f"{_percent(q)} smaller, {error:+.1%} off what the model's shape predicts",
        source="safetensors headers of both folders",
        expected={"weight_bytes": q.predicted_weight_bytes, "within": SIZE_TOLERANCE},
        actual={"weight_bytes": q.weight_bytes_after, "before": q.weight_bytes_before},
    )


def _folder_is_smaller(evidence: Evidence) -> Finding:
    q = _given(evidence.quantization)
    saved = q.folder_bytes_before - q.folder_bytes_after
    weights_saved = q.weight_bytes_before - q.predicted_weight_bytes
    return _decide(
        saved >= 0.9 * weights_saved,
        yes=f"the folder shrank by {saved / 1e6:.0f} MB",
        no=f"the folder shrank by {saved / 1e6:.0f} MB; the weights alone must save {weights_saved / 1e6:.0f} MB",
        source="allocated blocks of both folders, as du counts them",
        expected={"saved_bytes_at_least": round(0.9 * weights_saved)},
        actual={"before": q.folder_bytes_before, "after": q.folder_bytes_after},
    )


def _quality_survives(evidence: Evidence) -> Finding:
    q = _given(evidence.quantization)
    if q.perplexity_before is None or q.perplexity_after is None:
        return Finding("unknown", "the perplexity was not measured", source="perplexity on held-out text")
    ratio = q.perplexity_after / q.perplexity_before
    return _decide(
        math.isfinite(ratio) and ratio <= PERPLEXITY_RATIO,
        yes=f"perplexity {q.perplexity_before:.2f} → {q.perplexity_after:.2f} ({ratio - 1:+.1%}){_kv_int4_cost(q)}",
        no=f"perplexity rose from {q.perplexity_before:.2f} to {q.perplexity_after:.2f} ({ratio - 1:+.1%})",
        source="perplexity on held-out text",
        expected={"ratio_at_most": PERPLEXITY_RATIO},
        actual={"ratio": round(ratio, 4)},
    )


def _kv_int4_cost(q: QuantizationFacts) -> str:
    if q.perplexity_kv_int4 is None or q.perplexity_before is None or not q.kv_int4_key_errors:
        return ""
    errors = q.kv_int4_key_errors
    worst = max(range(len(errors)), key=errors.__getitem__)
    cost = q.perplexity_kv_int4 / q.perplexity_before - 1
    return (
        f"; with an int4 KV cache {q.perplexity_kv_int4:.2f} ({cost:+.1%}), whose keys are "
        f"{statistics.median(errors):.0%} off in most layers and {errors[worst]:.0%} in layer {worst}"
    )


def _kv_cache_is_int4(evidence: Evidence) -> Finding:
    """By measurement where the server tells its capacity: the pool's bytes for each token it holds.

    used = o + W + pool + e (DESIGN's VRAM model) for both servers on one device, and o + e is the same for both, so
    pool = used - used' + W' - W + pool'.
    """
    after, before, q = _given(evidence.quantized), evidence.baseline, evidence.quantization
    flag = f"--quant-policy {after.kv_bits}" if after.kv_bits < 16 else "no KV quantization"
    if after.kv_bits != 4:
        return Finding("fail", f"the server was started with {flag}", "the server's command", 4, after.kv_bits)
    if not (before and q and before.kv_tokens and after.kv_tokens):
        return Finding("pass", f"{flag}; its capacity is not told by this engine", "the server's command", 4, 4)
    pool_before = before.kv_tokens * q.kv_bytes_per_token[str(before.kv_bits)]
    weights_saved = q.weight_bytes_before - q.weight_bytes_after
    pool = (_own_mib(after) - _own_mib(before)) * 2**20 + weights_saved + pool_before
    measured, expected = pool / after.kv_tokens, q.kv_bytes_per_token["4"]
    return _decide(
        abs(measured / expected - 1) <= KV_TOLERANCE,
        yes=f"{after.kv_tokens} tokens at {measured:.0f} bytes each: int4",
        no=f"{measured:.0f} bytes for each token are not int4's {expected}",
        source="memory of both servers and the capacity that they tell (/distserve/engine_info)",
        expected={"kv_bits": 4, "bytes_per_token": expected},
        actual={"kv_bits": after.kv_bits, "bytes_per_token": round(measured)},
    )


def _cache_ratio_is_lowered(evidence: Evidence) -> Finding:
    server = _given(evidence.quantized)
    return _decide(
        0 < server.cache_ratio <= 0.4,
        yes=f"--cache-max-entry-count {server.cache_ratio}",
        no=f"--cache-max-entry-count {server.cache_ratio}: most of the lab's drop in memory comes from 0.4",
        source="the server's command",
        expected={"at_most": 0.4},
        actual=server.cache_ratio,
    )


def _memory_falls(evidence: Evidence) -> Finding:
    after, before, q = _given(evidence.quantized), evidence.baseline, evidence.quantization
    if before is None or q is None:
        return Finding("unknown", "there is no baseline to compare with", source="memory of both servers")
    if after.total_mib != before.total_mib or after.memory_method != before.memory_method:
        return Finding("unknown", "the two servers were measured on different devices", source="memory of both servers")
    ceiling = _own_mib(before) - (q.weight_bytes_before - q.weight_bytes_after) / 2**20 / 2
    others = f", beside {after.foreign_mib} of others" if after.foreign_mib else ""
    return _decide(
        _own_mib(after) <= ceiling,
        yes=f"{_own_mib(before)} → {_own_mib(after)} MiB of {after.total_mib}{others}",
        no=f"{_own_mib(after)} MiB, above the ceiling of {ceiling:.0f}: less than half of the weights saved{others}",
        source=f"memory of both servers ({after.memory_method})",
        expected={"used_mib_at_most": round(ceiling)},
        actual={"baseline_mib": _own_mib(before), "quantized_mib": _own_mib(after)},
    )


def _own_mib(server: ServerFacts) -> int:
    """What the server holds: strangers on the card may come and go between two servers."""
    return server.used_mib - server.foreign_mib


def _model_answers(evidence: Evidence) -> Finding:
    chat = _given(evidence.chat)
    faults = [chat.error] if chat.error else []
    if not chat.text.strip():
        faults.append("the answer is empty")
    elif chat.text == chat.other_text:
        faults.append(f"it says the same to {chat.other_question!r}")
    if chat.finish_reason not in ("stop", "length"):
        faults.append(f"finish_reason is {chat.finish_reason!r}")
    counts = (chat.prompt_tokens, chat.completion_tokens, chat.total_tokens)
    if None in counts:
        faults += ["the server told no usage"] if chat.usage_due else []
    elif not (chat.prompt_tokens and chat.completion_tokens):
        faults.append("the usage counts no tokens")
    elif chat.prompt_tokens + chat.completion_tokens != (chat.total_tokens or 0):
        faults.append(f"usage: {chat.prompt_tokens} + {chat.completion_tokens} is not {chat.total_tokens}")
    return _decide(
        not faults,
        yes=f"{chat.completion_tokens} tokens: {_short(chat.text)!r}",
        no="; ".join(faults),
        source="POST /v1/chat/completions",
        expected="an answer in text, with usage that adds up",
        actual={"text": _short(chat.text), "finish_reason": chat.finish_reason, "usage": counts},
    )


# --- task 2: one add and one mul call ------------------------------------------------------------------------------


def _calls_function(name: str) -> Callable[[Evidence], Finding]:
    def check(evidence: Evidence) -> Finding:
        asked = _about(evidence, name)
        source = "tool_calls on the wire"
        if not asked:
            return Finding("unknown", f"nothing was asked that needs {name}", source)
        good = _good_calls(asked, name)
        seen = [f"{c.name}({c.arguments_json}): {c.outcome}" for t in asked for c in t.calls]
        return _decide(
            bool(good),
            yes=f"{name}({good[0].arguments_json}) → {good[0].result}" if good else "",
            no=f"no valid call of {name}: {'; '.join(seen) or asked[0].outcome}",
            source=source,
            expected=f"a call of {name} whose arguments are JSON that fits its schema",
            actual=seen,
        )

    return check


def _right_arguments(name: str) -> Callable[[Evidence], Finding]:
    def check(evidence: Evidence) -> Finding:
        asked = _about(evidence, name)
        source = "tool_calls on the wire"
        if not asked:
            return Finding("unknown", f"nothing was asked that needs {name}", source)
        called = [call.arguments for call in _good_calls(asked, name)]
        wanted = [list(call.numbers) for t in asked for call in t.expected if call.function == name]
        numbers = [sorted(_numbers(arguments or {})) for arguments in called]
        return _decide(
            all(sorted(each) in numbers for each in wanted),
            yes=f"{name} was called with the question's numbers",
            no=f"{name} was called with other numbers than the question's" if called else f"no valid call of {name}",
            source=source,
            expected=wanted,
            actual=called,
        )

    return check


def _missed(run: ToolFacts) -> str:
    if not run.answer.strip():
        return f"the model gave no answer; {run.expected_answer:g} is due"
    return f"{_short(run.answer)!r} does not say {run.expected_answer:g}"


def _says_the_answer(evidence: Evidence) -> Finding:
    runs = evidence.tools
    wrong = [t for t in runs if not (t.printed if t.ends_with_call else t.expected_answer in numbers_in(t.answer))]
    return _decide(
        not wrong,
        yes="; ".join(
            "the script printed the last call's result" if t.ends_with_call else _short(t.answer) for t in runs
        ),
        no=_missed(wrong[0]) if wrong else "",
        source="the last message, or what the script printed where its last call was computed",
        expected=[t.expected_answer for t in runs],
        actual=[_short(t.answer) for t in runs],
    )


# A minus sign counts unless it stands between two operands, as in 20-4.
_NUMBER = re.compile(
    r"(?P<minus>(?<![0-9A-Za-z)])[-−－]|负|(?:minus|negative) )?"
    r"(?<![0-9.])(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
)


def numbers_in(text: str) -> list[float]:
    """The numbers that a text names, thousands separators or not."""
    return [float(match["digits"].replace(",", "")) * (-1 if match["minus"] else 1) for match in _NUMBER.finditer(text)]


def _results_go_back(evidence: Evidence) -> Finding:
    runs = evidence.tools
    ran = [t for t in runs if any(c.outcome == "ok" for c in t.calls)]
    if not ran:
        return Finding("unknown", "no call was executed, so there is no result to feed back", source="the transcript")
    if any(t.results_returned is None for t in ran):
        return Finding("unknown", "lab3 asked, so who returns results was not shown", source="the transcript")
    # The tutorial's script computes the last call's result and asks no more: that is all the lab wants.
    ends = all(t.ends_with_call for t in ran)
    return _decide(
        all(t.results_returned and (t.answer.strip() or t.ends_with_call) for t in ran),
        yes="each result that was needed went back to the model"
        + ("; the last one was computed by the script" if ends else ", and it answered"),
        no="a result was not fed back to the model, or it gave no answer after it",
        source="the transcript",
        expected="results returned, and an answer or a computed last call after them",
        actual=[{"question": t.question, "returned": t.results_returned, "answer": _short(t.answer)} for t in ran],
    )


# fmt: off
CHECKS: tuple[Check, ...] = (
    Check("quantize.w4a16", 1, "The config says W4A16", "配置声明为 W4A16", 5, "quantization", _config_says_w4a16),
    Check("quantize.structure", 1, "The weights are W4A16", "权重确为 W4A16", 5, "structure", _weights_are_w4a16),
    Check("quantize.size", 1, "The weights take the predicted bytes", "权重大小符合预测", 10,
          "quantization", _size_is_as_predicted),
    Check("quantize.folder", 1, "The folder on disk is smaller", "量化后的文件夹更小", 5,
          "quantization", _folder_is_smaller),
    Check("quantize.quality", 1, "The quantized model is about as good", "量化后模型质量基本保持", 5,
          "quantization", _quality_survives),
    Check("serve.kv_int4", 1, "The server's KV cache is int4", "服务的 KV 缓存为 int4", 15,
          "quantized", _kv_cache_is_int4, also=("baseline", "quantization")),
    Check("serve.cache_ratio", 1, "The cache's share of memory is lowered", "已调低 KV 缓存的显存占比", 5,
          "quantized", _cache_ratio_is_lowered),
    Check("serve.memory", 1, "The quantized server takes less memory", "量化后服务占用显存更少", 15,
          "quantized", _memory_falls, also=("baseline", "quantization")),
    Check("chat.answer", 1, "The quantized model answers over the API", "量化后的模型通过 API 作答", 15,
          "chat", _model_answers),
    Check("tools.add", 2, "The model calls add", "模型调用 add", 4, "tools", _calls_function("add")),
    Check("tools.mul", 2, "The model calls mul", "模型调用 mul", 4, "tools", _calls_function("mul")),
    Check("tools.add_arguments", 2, "add gets the right numbers", "add 的参数正确", 3,
          "tools", _right_arguments("add")),
    Check("tools.mul_arguments", 2, "mul gets the right numbers", "mul 的参数正确", 3,
          "tools", _right_arguments("mul")),
    Check("tools.results", 2, "Results are fed back and used", "结果已回传并被使用", 3, "tools", _results_go_back),
    # How a model words its answer is its ability, not the lab's.
    Check("tools.answer", 2, "The model says the result", "模型说出结果", 3, "tools", _says_the_answer, required=False),
)
# fmt: on
TOOL_CHECKS = tuple(check for check in CHECKS if check.section == "tools")


def _given(section: T | None) -> T:
    if section is None:
        raise ValueError("a check was asked to judge a section that is missing")
    return section


def _about(evidence: Evidence, name: str) -> list[ToolFacts]:
    """The questions that need the function `name`."""
    return [t for t in evidence.tools if any(call.function == name for call in t.expected)]


def _good_calls(asked: list[ToolFacts], name: str) -> list[CallFacts]:
    return [call for t in asked for call in t.calls if call.name == name and call.outcome == "ok"]


def _numbers(arguments: dict[str, Any]) -> list[float]:
    return [v for v in arguments.values() if isinstance(v, int | float) and not isinstance(v, bool)]


def _percent(q: QuantizationFacts) -> str:
    return f"{1 - q.weight_bytes_after / q.weight_bytes_before:.0%}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else line[:117] + "..."
