"""Every check of the OpenAI protocol passes a good server and catches its mutant; the probe outlives a bad one."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lab3 import protocol_probe
from lab3.errors import UsageError
from lab3.protocol import (
    ALL_CAPABILITIES,
    CAPABILITIES,
    LMDEPLOY_CAPABILITIES,
    LMDEPLOY_LACKS,
    PROTOCOL_CHECKS,
    Exchange,
    ProtocolFacts,
    probe,
)
from lab3.protocol_answers import REFUSALS
from lab3.verdicts import Finding
from tests.fake_openai import Answer, FakeOpenAI, as_json, completion, fake_openai, free_port, sse

MODEL = "fake"
NUMBER = itertools.count(1)


# --- a good server ---------------------------------------------------------------------------------------------------


def request(messages: Any, max_tokens: int = 24, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return {"model": MODEL, "temperature": 0, "messages": said, "max_tokens": max_tokens, **more}


def function(name: str, **properties: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


def called(name: str, **arguments: Any) -> dict[str, Any]:
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": f"call_{next(NUMBER)}", "type": "function", "function": {"name": name, "arguments": text}}


def answered(
    request: dict[str, Any],
    text: str | None,
    finish_reason: str = "stop",
    *,
    tokens: tuple[int, int] = (12, 6),
    calls: tuple[dict[str, Any], ...] = (),
) -> Exchange:
    """What a good server answers: as a stream, in pieces of four letters, if the request says so."""
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    head = {"id": f"c{next(NUMBER)}", "created": 1_790_000_000, "model": MODEL}
    if not request.get("stream"):
        message = {"role": "assistant", "content": text} | ({"tool_calls": list(calls)} if calls else {})
        choices = [
            {"index": at, "message": message, "finish_reason": finish_reason} for at in range(request.get("n", 1))
        ]
        body = head | {"object": "chat.completion", "choices": choices, "usage": usage}
        return exchange(request, body=body)
    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    deltas += [{"content": (text or "")[at : at + 4]} for at in range(0, len(text or ""), 4)]
    for index, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        deltas.append({"tool_calls": [call | {"index": index, "function": {"name": call["function"]["name"]}}]})
        pieces = [arguments[at : at + 5] for at in range(0, len(arguments), 5)]
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in pieces]
    head |= {"object": "chat.completion.chunk"}
    chunks = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
    if request.get("stream_options"):
        chunks = [chunk | {"usage": None} for chunk in chunks] + [head | {"choices": [], "usage": usage}]
    return exchange(request, events=tuple(chunks), done=True, content_type="text/event-stream; charset=utf-8")


def refused(request: dict[str, Any], message: str, status: int = 400) -> Exchange:
    return exchange(request, status=status, body={"object": "error", "message": message, "code": status})


def exchange(request: dict[str, Any], **told: Any) -> Exchange:
    usual: dict[str, Any] = {"status": 200, "body": None, "events": (), "done": False, "error": None}
    return Exchange(request=request, **{**usual, "content_type": "application/json", **told})


STREAM = {"stream": True, "stream_options": {"include_usage": True}}
SUMS = [function(name, a={"type": "number"}, b={"type": "number"}) for name in ("add", "mul")]
CITIES = [
    function("choose_city", city={"enum": ["北京🐼", "上海🦀"]}, north={"type": "boolean"}),
    function("switch_lamp", room={"enum": ["厨房🍳", "卧室🌙"]}, on={"type": "boolean"}),
]
CHINESE = [{"role": "system", "content": "你是小熊🐻。"}, {"role": "user", "name": "王伟🐼", "content": "你好！🎉"}]
PLAIN, CUT, COUNT = request("Capital of France?"), request("A story.", 8), request("Count.")
CITY = request(CHINESE, tools=CITIES, tool_choice="required")
SUM = request("What is 3 + 5?", tools=SUMS)
BOTH = request("What is 3 + 5, and what is 10 + 5?", tools=SUMS)
NAMED = {"type": "function", "function": {"name": "mul"}}


def plus(request: dict[str, Any], messages: int) -> dict[str, Any]:
    """The request with so many messages more."""
    return request | {"messages": request["messages"] + [{"role": "tool", "content": "8"}] * messages}


def good_facts() -> ProtocolFacts:
    listing = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
    counted, poem = "1, 2, 3, 4, 5, 6, 7, 8, 9", "Once there was a fox who"
    exchanges = {
        "models": (exchange({}, body=listing),),
        "plain": tuple(answered(PLAIN | more, "It is Paris.") for more in ({}, {"n": 1}, STREAM)),
        "cut": tuple(answered(CUT | more, poem, "length", tokens=(11, 8)) for more in ({}, {"stream": True})),
        "cut_newer": (
            answered(
                {key: each for key, each in CUT.items() if key != "max_tokens"} | {"max_completion_tokens": 6},
                "Once there was",
                "length",
                tokens=(11, 6),
            ),
        ),
        "count": (answered(COUNT, counted, tokens=(10, 24)),),
        "stop": tuple(answered(COUNT | {"stop": ["4"]} | more, "1, 2, 3, ", tokens=(10, 9)) for more in ({}, STREAM)),
        "stop_strings": tuple(
            answered(COUNT | {"stop": ["4, 5"]} | more, "1, 2, 3,", tokens=(10, 9)) for more in ({}, STREAM)
        ),
        "unicode": tuple(
            answered(request(CHINESE) | more, "你好🐻，很高兴认识你🎉") for more in ({}, {"stream": True})
        ),
        "history": tuple(answered(plus(request("Say 0."), n), "20.", tokens=(10 + 5 * n, 2)) for n in (0, 18, 78)),
        "system": tuple(answered(request(f"{n}", 2), "Once", "length", tokens=(n, 2)) for n in (20, 37)),
        "choices": (answered(CUT | {"n": 2}, "Once there", "length", tokens=(11, 12)),),
        "tools": tuple(
            answered(SUM | more, "Let me add.", "tool_calls", tokens=(90, 20), calls=(called("add", a=3, b=5),))
            for more in ({}, STREAM)
        ),
        "tool_results": tuple(
            answered(plus(BOTH, n), "The answers are 8 and 15.", tokens=(95 + 9 * n, 12)) for n in (0, 2, 3)
        ),
        "tool_none": (answered(SUM | {"tool_choice": "none"}, "It is 8.", tokens=(80, 5)),),
        "tool_required": tuple(
            answered(
                CITY | more,
                None,
                "tool_calls",
                tokens=(99, 19),
                calls=(called("choose_city", city="北京🐼", north=True),),
            )
            for more in ({}, {"stream": True})
        ),
        "tool_named": (
            answered(SUM | {"tool_choice": NAMED}, None, "stop", tokens=(70, 9), calls=(called("mul", a=3, b=5),)),
        ),
        "parallel": (
            answered(
                BOTH, "", "tool_calls", tokens=(95, 24), calls=(called("add", a=3, b=5), called("add", a=10, b=5))
            ),
        ),
        "unknown_model": (refused(PLAIN | {"model": "no-such-model"}, "there is no such model", 404),),
        "malformed_json": (refused({"raw": "{"}, "no JSON"),),
        "missing_messages": (refused({"model": MODEL}, "messages: Field required"),),
        **{
            name: (refused(PLAIN, f"{name}: no"),)
            for name in (
                *("role_is_number", "content_is_number", "messages_is_text", "max_tokens_negative"),
                *("temperature_negative", "temperature_3", "top_p_2", "unknown_role", "unknown_function"),
            )
        },
        "context": (refused(request("word word…", 1), "longer than the context"),),
        "after": (answered(PLAIN | {"max_tokens": 8}, "It is Paris."),),
    }
    return ProtocolFacts(model=MODEL, capabilities=tuple(sorted(ALL_CAPABILITIES)), exchanges=exchanges)


GOOD = good_facts()


def findings(facts: ProtocolFacts) -> dict[str, Finding]:
    evidence: Any = SimpleNamespace(protocol=facts)  # as lab3.evidence.Evidence has it
    return {check.id.removeprefix("protocol."): check.judge(evidence) for check in PROTOCOL_CHECKS}


def with_status(facts: ProtocolFacts, status: str) -> set[str]:
    return {name for name, found in findings(facts).items() if found.status == status}


def test_a_good_server_passes_every_check():
    assert {name: found.reason for name, found in findings(GOOD).items() if found.status != "pass"} == {}


@pytest.mark.parametrize(
    ("whole", "streamed", "end", "failing"),
    [
        ("你好🎉\ufffd熊", "你好🎉\ufffd熊", "stop", set()),  # the model wrote bytes that are no letter, seen in CI
        ("你好🎉\ufffd；；", "你好🎉\ufffd；", "length", set()),  # so it did here, and its stream ends a letter sooner
        ("你好🎉\ufffd；；", "你好🎉\ufffd；", "stop", {"unicode"}),
        ("你好🎉\ufffd；", "你好🎉\ufffd；\ufffd", "length", {"unicode"}),  # where the stream is cut, a letter breaks
        ("你好\ufffd\ufffd", "你好\ufffd\ufffd", "stop", {"unicode"}),  # the server breaks what takes several tokens
        ("你好🎉熊", "你好🎉\ufffd", "stop", {"unicode"}),
        ("你好🎉\ud83d", "你好🎉\ud83d", "stop", {"unicode"}),
    ],
)
def test_letters_that_the_model_broke_are_not_the_server_s_fault(
    whole: str, streamed: str, end: str, failing: set[str]
):
    said = (({}, whole), ({"stream": True}, streamed))
    answers = (answered(request(CHINESE) | more, text, end) for more, text in said)
    facts = replace(GOOD, exchanges={**GOOD.exchanges, "unicode": tuple(answers)})
    assert with_status(facts, "fail") == failing


def test_a_check_is_worth_no_points_and_has_a_title_in_both_languages():
    assert len({check.id for check in PROTOCOL_CHECKS}) == len(PROTOCOL_CHECKS)
    for check in PROTOCOL_CHECKS:
        assert (check.task, check.max_points, check.section, check.required) == (0, 0, "protocol", True)
        assert check.id.startswith("protocol.")
        assert check.title.isascii()
        assert any("\u4e00" <= letter <= "\u9fff" for letter in check.title_zh)


# --- mutants ---------------------------------------------------------------------------------------------------------

GONE = object()
ERROR = {"error": {"message": "the engine died", "code": 500}}


def changed(*changes: tuple[str, Any]) -> ProtocolFacts:
    """The good facts with other values at some paths, such as "plain.0.body.id"; GONE takes one away."""
    plain = json.loads(json.dumps(GOOD.to_dict()))
    for path, value in changes:
        *way, last = [int(step) if step.lstrip("-").isdigit() else step for step in path.split(".")]
        place: Any = plain["exchanges"]
        for step in way:
            place = place[step]
        if value is GONE:
            del place[last]
        else:
            place[last] = value(place[last]) if callable(value) else value
    return ProtocolFacts.from_dict(plain)


def message(name: str, key: str, value: Any, *, at: int = 0) -> tuple[str, Any]:
    return f"{name}.{at}.body.choices.0.message.{key}", value


def delta(name: str, event: int, key: str, value: Any, *, at: int = 1) -> tuple[str, Any]:
    return f"{name}.{at}.events.{event}.choices.0.delta.{key}", value


def finish(name: str, value: Any, *, at: int = 0) -> tuple[str, Any]:
    """The finish_reason of an unstreamed answer."""
    return f"{name}.{at}.body.choices.0.finish_reason", value


def ended(name: str, value: Any, *, at: int = 1, event: int = -1) -> tuple[str, Any]:
    """The finish_reason of a streamed one."""
    return f"{name}.{at}.events.{event}.choices.0.finish_reason", value


def used(name: str, prompt: int, answer: int, *, at: int = 0) -> tuple[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return f"{name}.{at}.body.usage", usage


def taken(name: str) -> tuple[tuple[str, Any], ...]:
    """A wrong request that is answered as if it were right."""
    return (f"{name}.0.status", 200), (f"{name}.0.body", GOOD.exchanges["plain"][0].body)


def died(name: str, at: int = 0) -> tuple[tuple[str, Any], ...]:
    return (f"{name}.{at}.status", 500), (f"{name}.{at}.body", ERROR), (f"{name}.{at}.events", [])


def hung(name: str, at: int = 0) -> tuple[tuple[str, Any], ...]:
    return *died(name, at), (f"{name}.{at}.status", 0), (f"{name}.{at}.error", "timed out: nothing came for 120 s")


CALL = "tool_calls.0"
ARGUMENTS = f"{CALL}.function.arguments"
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}

# (what is wrong, the changes that make it so, the only checks that may fail)
MUTANTS: list[tuple[str, tuple[tuple[str, Any], ...], set[str]]] = [
    ("the list of models is no list", (("models.0.body.object", "models"),), {"models"}),
    ("another model is listed", (("models.0.body.data.0.id", "other"),), {"models"}),
    ("a model without an id", (("models.0.body.data.0.id", GONE),), {"models"}),
    ("a model that is only a name", (("models.0.body.data", [MODEL]),), {"models"}),
    ("there is no list of models", died("models"), {"models"}),
    ("the list of models hangs", hung("models"), {"models"}),
    ("an answer hangs", hung("plain"), {"whole"}),
    ("a stream hangs in the middle", (("unicode.1.error", "timed out: not whole after 120 s"),), {"whole"}),
    ("an answer is invalid UTF-8", (("unicode.0.error", "invalid UTF-8: invalid start byte"),), {"whole"}),
    ("a good request breaks the server", died("count"), {"status"}),
    ("a stream is refused", died("plain", 2), {"status"}),
    ("a stream ends with an error", (("plain.2.events.2", ERROR),), {"status"}),
    ("a stream of nothing", (("cut.1.events", []),), {"status"}),
    ("an answer that is no JSON", (("system.0.body", None),), {"status"}),
    ("tools are refused", died("tools"), {"status"}),
    ("two choices for one", (("plain.0.body.choices", lambda choices: choices * 2),), {"choice"}),
    ("no choice", (("plain.0.body.choices", []),), {"choice"}),
    ("choices that are no list", (("count.0.body.choices", {}),), {"choice"}),
    ("counting from one", (("plain.0.body.choices.0.index", 1),), {"choice"}),
    ("a streamed choice of another index", (("cut.1.events.2.choices.0.index", 1),), {"choice"}),
    ("the user answers", (message("history", "role", "user"),), {"choice"}),
    ("the user answers in a stream", (delta("plain", 0, "role", "user", at=2),), {"choice"}),
    ("an answer without a role", (message("system", "role", GONE),), {"choice"}),
    ("content in parts", (message("unicode", "content", [{"type": "text", "text": "你好"}]),), {"choice"}),
    ("a chunk without a delta", (("cut.1.events.2.choices.0.delta", GONE),), {"choice"}),
    ("a call that is a string", (message("tools", "tool_calls", ["add"]),), {"choice"}),
    ("one choice where two were asked for", (("choices.0.body.choices", lambda c: c[:1]),), {"n"}),
    ("two choices of one index", (("choices.0.body.choices.1.index", 0),), {"n"}),
    ("an empty id", (("plain.0.body.id", ""),), {"ids"}),
    ("no id", (("count.0.body.id", GONE),), {"ids"}),
    ("an id given twice", (("plain.0.body.id", "same"), ("cut.0.body.id", "same")), {"ids"}),
    ("the object of another API", (("plain.0.body.object", "text_completion"),), {"envelope"}),
    ("a chunk that says it is whole", (("cut.1.events.3.object", "chat.completion"),), {"envelope"}),
    ("created in milliseconds", (("plain.0.body.created", 1_790_000_000_000),), {"envelope"}),
    ("created as text", (("cut.1.events.3.created", "2026-09-21"),), {"envelope"}),
    ("another model answers", (("plain.1.body.model", "other"),), {"envelope"}),
    ("a finish_reason of its own", (finish("system", "eos_token"),), {"finish_reason"}),
    ("no finish_reason", (finish("count", None),), {"finish_reason"}),
    ("a stream is aborted", (ended("unicode", "abort"),), {"finish_reason"}),
    ("usage does not add up", (("count.0.body.usage.total_tokens", 99),), {"usage"}),
    ("no usage", (("system.0.body.usage", GONE),), {"usage"}),
    ("usage counts no answer", (used("tool_none", 80, 0),), {"usage"}),
    ("usage as text", (("tool_none.0.body.usage.prompt_tokens", "80"),), {"usage"}),
    ("usage as true", (("tool_none.0.body.usage.completion_tokens", True),), {"usage"}),
    ("one prompt counted in two ways", (used("plain", 13, 6, at=1),), {"usage"}),
    ("max_tokens is ignored", (finish("cut", "stop"), ended("cut", "stop"), used("cut", 11, 60)), {"length"}),
    ("a cut that is not told", (finish("cut", "stop"), ended("cut", "stop")), {"length"}),
    ("cut a token late", (used("cut", 11, 9),), {"length"}),
    ("cut a token early", (used("cut", 11, 7),), {"length"}),
    ("more tokens than allowed", (used("tool_none", 80, 33),), {"length"}),
    (
        "max_completion_tokens is ignored",
        (finish("cut_newer", "stop"), used("cut_newer", 11, 60)),
        {"max_completion_tokens"},
    ),
    ("the stop token is ignored", (message("stop", "content", "1, 2, 3, 4, 5"),), {"stop"}),
    ("the stop token is in the text", (message("stop", "content", "1, 2, 3, 4"),), {"stop"}),
    ("the streamed stop token is in the text", (delta("stop", -3, "content", ", 4"),), {"stop"}),
    ("a stop that finish_reason calls length", (finish("stop", "length"),), {"stop"}),
    ("the stop takes the text before it along", (message("stop", "content", "1, 2"),), {"stop"}),
    ("a stop string is ignored", (message("stop_strings", "content", "1, 2, 3, 4, 5"),), {"stop_strings"}),
    ("half of the stop string is in the text", (message("stop_strings", "content", "1, 2, 3, 4"),), {"stop_strings"}),
    ("an emoji cut into chunks", (delta("unicode", 1, "content", "你好\ufffd\ufffd"),), {"unicode"}),
    ("half an emoji", (message("unicode", "content", "你好\ud83d"),), {"unicode"}),
    ("the history is dropped", (used("history", 10, 2, at=1), used("history", 10, 2, at=2)), {"history"}),
    ("the history is cut short", (used("history", 110, 2, at=2),), {"history"}),
    ("the system message is dropped", (used("system", 20, 2, at=1),), {"system"}),
    ("a stream that says it is JSON", (("plain.2.content_type", "application/json"),), {"stream_shape"}),
    ("a stream without [DONE]", (("cut.1.done", False),), {"stream_shape"}),
    ("an id for each chunk", (("plain.2.events.2.id", "other"),), {"stream_shape"}),
    ("a first delta of nothing", (("plain.2.events.0.choices.0.delta", {}),), {"stream_shape"}),
    ("a stream without finish_reason", (ended("cut", None),), {"stream_shape"}),
    ("a finish_reason in each chunk", (ended("cut", "length", event=2),), {"stream_shape"}),
    ("a finish_reason too early", (ended("cut", "length", event=2), ended("cut", None)), {"stream_shape"}),
    ("another text is streamed", (delta("plain", 2, "content", "was ", at=2),), {"stream_same"}),
    ("a piece of the stream is lost", (delta("plain", 2, "content", None, at=2),), {"stream_same"}),
    ("another letter is streamed", (delta("unicode", 1, "content", "您好🐻，"),), {"stream_same"}),
    ("the end of a stream is lost", (delta("unicode", -2, "content", ""),), {"stream_same"}),
    ("a stream ends for another reason", (ended("plain", "length", at=2, event=-2),), {"stream_same"}),
    ("a stream without usage", (("plain.2.events.-1", GONE),), {"stream_usage"}),
    ("usage in every chunk", (("plain.2.events.2.usage", USAGE),), {"stream_usage"}),
    ("usage that nobody asked for", (("cut.1.events.-1.usage", USAGE),), {"stream_usage"}),
    ("streamed usage does not add up", (("plain.2.events.-1.usage.total_tokens", 1),), {"stream_usage"}),
    ("streamed usage counts other tokens", (("plain.2.events.-1.usage", USAGE),), {"stream_usage"}),
    ("no call", (message("tools", "tool_calls", None), finish("tools", "stop")), {"tool_calls"}),
    ("no call in a stream", (("tools.1.events", lambda events: events[:4] + events[-2:]),), {"tool_calls"}),
    (
        "a call of an unknown function",
        (message("tools", f"{CALL}.function.name", "sub"), delta("tools", 4, f"{CALL}.function.name", "sub")),
        {"tool_calls"},
    ),
    ("a call without an id", (message("tools", f"{CALL}.id", ""),), {"tool_calls"}),
    ("a streamed call without an id", (delta("tools", 4, f"{CALL}.id", None),), {"tool_calls"}),
    ("a streamed call without an index", (delta("tools", 4, f"{CALL}.index", GONE),), {"tool_calls"}),
    (
        "two calls of one id",
        (message("parallel", "tool_calls.0.id", "same"), message("parallel", "tool_calls.1.id", "same")),
        {"tool_calls"},
    ),
    ("a call of another type", (message("tools", f"{CALL}.type", "tool"),), {"tool_calls"}),
    ("arguments as an object", (message("tools", ARGUMENTS, {"a": 3, "b": 5}),), {"tool_calls"}),
    ("streamed arguments as an object", (delta("tools", 5, ARGUMENTS, {"a": 3}),), {"tool_calls"}),
    ("arguments that are no JSON", (message("tools", ARGUMENTS, "{a: 3, b: 5}"),), {"tool_calls"}),
    ("arguments as a list", (message("tool_required", ARGUMENTS, "[3, 5]"),), {"tool_calls"}),
    ("no arguments", (message("tools", ARGUMENTS, None),), {"tool_calls"}),
    ("a call that finish_reason does not tell", (finish("tools", "stop"),), {"tool_calls"}),
    ("other arguments are streamed", (delta("tools", 6, ARGUMENTS, ' 4, "'),), {"tool_stream"}),
    ("another city is streamed", (delta("tool_required", 4, ARGUMENTS, '上海🦀",'),), {"tool_stream"}),
    ("another text before the call is streamed", (delta("tools", 1, "content", "Bet "),), {"tool_stream"}),
    (
        "a call in spite of none",
        (message("tool_none", "tool_calls", [called("add", a=3, b=5)]), finish("tool_none", "tool_calls")),
        {"tool_none"},
    ),
    ("nothing in place of a call", (message("tool_none", "content", None),), {"tool_none"}),
    (
        "no call in spite of required",
        (message("tool_required", "tool_calls", GONE), finish("tool_required", "stop")),
        {"tool_required"},
    ),
    (
        "a forced call of an unknown function",
        (
            message("tool_required", f"{CALL}.function.name", "fly"),
            delta("tool_required", 1, f"{CALL}.function.name", "fly"),
        ),
        {"tool_required"},
    ),
    (
        "forced arguments with broken letters",
        (
            message("tool_required", ARGUMENTS, lambda text: text.replace("北京🐼", "??")),
            delta("tool_required", 4, ARGUMENTS, '??",'),
        ),
        {"tool_required"},
    ),
    ("another function than the one named", (message("tool_named", f"{CALL}.function.name", "add"),), {"tool_named"}),
    ("no call of the one named", (message("tool_named", "tool_calls", None),), {"tool_named"}),
    ("one call for two", (message("parallel", "tool_calls", lambda calls: calls[:1]),), {"parallel_calls"}),
    ("results are dropped", (used("tool_results", 95, 12, at=1),), {"tool_results"}),
    ("the second result is dropped", (used("tool_results", 113, 12, at=2),), {"tool_results"}),
    ("no answer to the results", (message("tool_results", "content", "", at=1),), {"tool_results"}),
    ("an unknown model answers", taken("unknown_model"), {"unknown_model"}),
    ("an unknown model is unprocessable", (("unknown_model.0.status", 422),), {"unknown_model"}),
    ("malformed JSON breaks the server", died("malformed_json"), {"malformed_json"}),
    ("malformed JSON is refused without a word", (("malformed_json.0.body", None),), {"malformed_json"}),
    ("a request without messages hangs", hung("missing_messages"), {"missing_messages"}),
    ("a refusal without a message", (("missing_messages.0.body", {"detail": "no"}),), {"missing_messages"}),
    ("a role may be a number", taken("role_is_number"), {"wrong_types"}),
    ("content that is a number breaks the server", died("content_is_number"), {"wrong_types"}),
    ("messages may be text", taken("messages_is_text"), {"wrong_types"}),
    ("max_tokens may be negative", taken("max_tokens_negative"), {"max_tokens_range"}),
    ("temperature may be negative", taken("temperature_negative"), {"sampling_range"}),
    ("temperature may be 3", taken("temperature_3"), {"sampling_range"}),
    ("top_p may be 2", taken("top_p_2"), {"sampling_range"}),
    ("anybody may speak", taken("unknown_role"), {"unknown_role"}),
    ("a function that is not there may be named", taken("unknown_function"), {"unknown_function"}),
    ("too long a prompt breaks the server", died("context"), {"context"}),
    ("too long a prompt hangs", hung("context"), {"context"}),
    ("too long a prompt is answered", taken("context"), {"context"}),
    ("the server is gone afterwards", hung("after"), {"still_answers"}),
    ("the server only fails afterwards", died("after"), {"still_answers"}),
    ("the server has nothing to say afterwards", (message("after", "content", ""),), {"still_answers"}),
]


@pytest.mark.parametrize(("changes", "failing"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_mutant_is_caught_by_the_check_that_should_and_only_by_it(changes: Any, failing: set[str]):
    assert with_status(changed(*changes), "fail") == failing


def test_every_check_has_a_mutant():
    assert set().union(*(failing for *_, failing in MUTANTS)) == set(findings(GOOD))


@pytest.mark.parametrize(("broken", "general"), [(hung, "whole"), (died, "status")])
def test_an_answer_that_did_not_come_is_the_fault_of_one_check(broken: Any, general: str):
    own = {"models": "models", "context": "context", "after": "still_answers"}
    own |= {name: check for check, names in REFUSALS.items() for name in names}
    for name, exchanges in GOOD.exchanges.items():
        for at in range(len(exchanges)):
            assert with_status(changed(*broken(name, at)), "fail") == {own.get(name, general)}, (name, at)


def test_whatever_an_answer_holds_it_is_judged():
    """Odd values at any place of any answer lead to verdicts, never to an exception."""

    def paths(value: Any, path: str) -> Iterator[str]:
        steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for step, inner in steps:
            yield f"{path}.{step}"
            yield from paths(inner, f"{path}.{step}")

    plain = json.loads(json.dumps(GOOD.to_dict()))["exchanges"]
    places = [
        path
        for name, exchanges in plain.items()
        for at, each in enumerate(exchanges)
        for part in ("body", "events")
        for path in (f"{name}.{at}.{part}", *paths(each[part], f"{name}.{at}.{part}"))
        if path != f"{name}.{at}.events"
    ]
    odd: list[Any] = [None, True, -1, "", "\ud800", [], [[]], [None], {}, {"a": []}]
    chance = random.Random(0)
    for place in chance.sample(places, 250):
        for found in findings(changed((place, chance.choice(odd)))).values():
            assert found.status in ("pass", "fail", "unknown")
            json.dumps([found.reason, found.expected, found.actual], ensure_ascii=False).encode()


# --- capabilities ----------------------------------------------------------------------------------------------------


def without(*capabilities: str, exchanges: Any = None) -> ProtocolFacts:
    return ProtocolFacts(
        model=MODEL,
        capabilities=tuple(sorted(ALL_CAPABILITIES - set(capabilities))),
        exchanges=GOOD.exchanges if exchanges is None else exchanges,
    )


@pytest.mark.parametrize("capability", sorted(ALL_CAPABILITIES))
def test_what_is_not_declared_is_unknown_for_that_reason_alone(capability: str):
    found = findings(without(capability))
    unknown = {name: each.reason for name, each in found.items() if each.status == "unknown"}
    assert unknown
    assert set(unknown.values()) == {f"the server does not declare {capability}"}
    assert {each.expected for name, each in found.items() if name in unknown} == {CAPABILITIES[capability]}
    assert not with_status(without(capability), "fail")


def test_a_server_that_declares_nothing_is_judged_by_what_every_server_does():
    assert with_status(without(*ALL_CAPABILITIES), "pass") == {
        *("models", "whole", "status", "choice", "ids", "envelope", "finish_reason", "usage", "length", "unicode"),
        *("history", "system", "context", "still_answers"),
    }


def test_what_lmdeploy_lacks_has_a_reason_and_the_rest_is_declared():
    assert LMDEPLOY_CAPABILITIES | LMDEPLOY_LACKS.keys() == ALL_CAPABILITIES == CAPABILITIES.keys()
    assert not LMDEPLOY_CAPABILITIES & LMDEPLOY_LACKS.keys()
    assert all(len(reason) > 20 for reason in LMDEPLOY_LACKS.values())


def test_nothing_recorded_is_nothing_judged():
    assert set(findings(without(exchanges={}))) == with_status(without(exchanges={}), "unknown")


def test_an_error_may_be_told_as_openai_tells_it():
    told = {"error": {"message": "no such model", "type": "invalid_request_error"}}
    assert not with_status(changed(("unknown_model.0.body", told)), "fail")


def test_too_long_a_prompt_may_be_cut():
    cut = GOOD.exchanges["cut"][0].body
    assert not with_status(changed(("context.0.status", 200), ("context.0.body", cut)), "fail")


def test_a_call_that_max_tokens_cut_needs_no_whole_arguments():
    cut = (message("parallel", "tool_calls.1.function.arguments", '{"a": 1'), finish("parallel", "length"))
    assert not with_status(changed(*cut), "fail")


def test_a_letter_that_max_tokens_cut_may_take_letters_before_it_along():
    short = (finish("unicode", "length"), ended("unicode", "length"), delta("unicode", -2, "content", ""))
    assert not with_status(changed(*short), "fail")


def test_the_reason_says_what_was_wrong_and_where():
    found = findings(changed(message("tools", ARGUMENTS, "{a: 3}"), used("cut", 11, 9), finish("system", None)))
    assert found["tool_calls"].reason == "tools: arguments that are no JSON object: {a: 3}"
    assert found["length"].reason == "9 tokens"
    assert (found["length"].expected, found["length"].actual) == (8, 9)
    assert found["finish_reason"].reason == "system: finish_reason is None"
    assert found["system"].reason == "not judged: system got no good answer"
    assert findings(changed(*taken("top_p_2")))["sampling_range"].reason == (
        "top_p_2: status 200, answered 'It is Paris.' (stop)"
    )


# --- the probe -------------------------------------------------------------------------------------------------------


def as_answer(exchange: Exchange) -> Answer:
    return sse(*exchange.events) if exchange.events else as_json(exchange.body, status=exchange.status)


def ask(fake: FakeOpenAI, *answers: Answer, **settings: Any) -> ProtocolFacts:
    """Without capabilities the probe asks a plain question twice, then a story, and so on, and streams nothing."""
    fake.will(*answers)
    settings = {"capabilities": (), "timeout_s": 5.0} | settings
    return probe(fake.url, **settings)


def test_a_good_server_is_asked_all_and_passes():
    asked = set(ALL_CAPABILITIES - {"validates_requests"})  # the fake does not outlive malformed JSON
    with fake_openai() as fake:
        fake.models = as_json(GOOD.exchanges["models"][0].body)
        needless = {"models", "malformed_json", "unknown_model", "missing_messages", "max_tokens_negative"}
        needless |= {"role_is_number", "content_is_number", "messages_is_text"}
        needless |= {"temperature_negative", "temperature_3", "top_p_2"}
        for name, exchanges in GOOD.exchanges.items():
            fake.will(*(as_answer(each) for each in exchanges if name not in needless))
        told: list[str] = []
        facts = probe(fake.url, capabilities=asked, progress=lambda message, **_: told.append(message))
        assert not fake.answers
    assert with_status(facts, "fail") == set()
    assert {found.reason for found in findings(facts).values() if found.status == "unknown"} == {
        "the server does not declare validates_requests"
    }
    assert told[0] == "protocol: plain"
    assert facts.model == MODEL
    assert facts.exchanges.keys() | needless == GOOD.exchanges.keys()
    assert [len(each) for each in facts.exchanges.values()] == [len(GOOD.exchanges[name]) for name in facts.exchanges]


def test_the_facts_are_the_same_after_they_were_json():
    for facts in (GOOD, changed(message("unicode", "content", "\ud83d"))):
        again = ProtocolFacts.from_dict(json.loads(json.dumps(facts.to_dict())))
        assert again == facts
        assert findings(again) == findings(facts)


def test_what_is_not_declared_is_not_asked():
    with fake_openai() as fake:
        ask(fake)
        assert not [body for body in fake.bodies if body.keys() & {"tools", "stream", "stop", "max_completion_tokens"}]
        assert {body["temperature"] for body in fake.bodies} == {0}
        ask(fake, capabilities={"stream"})
        assert [body for body in fake.bodies if body.get("stream")]
        assert not [body for body in fake.bodies if "stream_options" in body]


def test_it_sends_the_key_and_utf_8_and_asks_the_given_model():
    with fake_openai() as fake:
        facts = ask(fake, api_key="s3cret", model="mine")
        assert {request["headers"]["authorization"] for request in fake.requests} == {"Bearer s3cret"}
        assert {request["path"] for request in fake.requests} == {"/v1/models", "/v1/chat/completions"}
        assert {body["model"] for body in fake.bodies} == {facts.model} == {"mine"}
        assert [body for body in fake.bodies if body["messages"][0]["content"].startswith("你是小熊🐻")]


def test_a_text_of_a_megabyte_is_recorded_in_short():
    with fake_openai() as fake:
        facts = ask(fake)
        assert max(len(body["messages"][-1]["content"]) for body in fake.bodies) > 10**6
    assert len(json.dumps(facts.to_dict())) < 10**5


def test_an_answer_that_breaks_off_or_hangs_is_recorded_and_the_next_is_asked():
    hanging = Answer((b'{"choices": [',), hang=True)
    with fake_openai() as fake:
        started = time.monotonic()
        facts = ask(fake, Answer((b'{"id": "c1"',), cut=True), hanging, completion("a story"), timeout_s=0.5)
        assert time.monotonic() - started < 5
    broken, hung, good = facts.exchanges["plain"] + facts.exchanges["cut"]
    assert (broken.status, broken.body, broken.error[:10]) == (200, None, "broke off:")
    assert (hung.status, hung.body, hung.error) == (200, None, "timed out: nothing came for 0.5 s")
    assert (good.status, good.error, good.body["id"]) == (200, None, "c1")


def test_a_server_that_only_hangs_is_given_up():
    hang = Answer(hang=True)
    with fake_openai() as fake:
        started = time.monotonic()
        facts = ask(fake, hang, hang, hang, hang, timeout_s=0.3)
        assert time.monotonic() - started < 5
        assert len(fake.bodies) == 3
    assert facts.exchanges["after"][0].error == "not asked, because 3 requests before it timed out"
    assert {"whole", "context", "still_answers"} <= with_status(facts, "fail")


def drip(piece: bytes, *, pause_s: float = 0.1) -> Iterator[bytes]:
    for _ in range(300):
        yield piece
        time.sleep(pause_s)


@pytest.mark.parametrize("piece", [b" ", b": still here\n\n", b"data: {}\n\n"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_drip_ends(piece: bytes, stream: bool):
    body: Any = drip(piece)  # pieces as the fake sends them, one by one
    dripping = Answer(body)
    ahead = (completion(), completion()) if stream else ()
    with fake_openai() as fake:
        started = time.monotonic()
        facts = ask(fake, *ahead, dripping, capabilities={"stream"}, timeout_s=0.5)
        assert time.monotonic() - started < 8
    found = facts.exchanges["plain"][len(ahead)]
    assert found.error == "timed out: not whole after 0.5 s"
    assert bool(found.events) == (stream and piece.startswith(b"data"))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (sse(b'data: {"text": "\xff\xfe"}\n\n'), "invalid UTF-8: invalid start byte"),
        (sse(b'data: {"text": "\xf0\x9f', done=False), "invalid UTF-8: unexpected end of data"),
        (sse(b"data: " + b"x" * 10_000_000 + b"\n\n"), "event 1 of the stream is not JSON: " + "x" * 80 + "…"),
        (sse(b"data: " + b"x" * 17 * 2**20), "over the size limit of 16777216 bytes"),
        (sse(b'data: {"a": NaN}\n\n'), 'event 1 of the stream is not JSON: {"a": NaN}'),
        (sse(b"data: " + b"[" * 100_000 + b"\n\n"), "event 1 of the stream is not JSON: " + "[" * 80 + "…"),
        (sse({"id": "c1"}, done=False, hang=True), "timed out: nothing came for 0.5 s"),
        (sse({"id": "c1"}, done=False), None),
        (sse({"id": "c1"}, done=True, hang=True), None),
    ],
    ids=["utf-8", "half a letter", "10 MB line", "17 MB", "NaN", "deep", "hang", "no [DONE]", "hang after [DONE]"],
)
def test_what_a_stream_does_wrong_is_recorded(answer: Answer, error: str | None):
    with fake_openai() as fake:
        facts = ask(
            fake, completion(), completion(), answer, capabilities={"stream"}, timeout_s=0.5 if answer.hang else 30.0
        )
    found = facts.exchanges["plain"][2]
    assert (found.status, found.error) == (200, error)
    assert found.done == (error is None and answer.hang)


@pytest.mark.parametrize(
    ("answer", "body", "error"),
    [
        (Answer((b'{"text": "\xff"}',)), None, "invalid UTF-8: invalid start byte"),
        (Answer((b"<html>busy</html>",), status=502), None, None),
        (Answer((b"[" * 100_000,)), None, None),
        (Answer((b"1" * 5000,)), None, None),
        (Answer((b"x" * 2**20,) * 17), None, "over the size limit of 16777216 bytes"),
        (as_json({"detail": "moved"}, status=307), {"detail": "moved"}, None),
    ],
    ids=["utf-8", "HTML", "deep", "a huge number", "17 MB", "redirect"],
)
def test_what_an_unstreamed_answer_does_wrong_is_recorded(answer: Answer, body: Any, error: str | None):
    with fake_openai() as fake:
        facts = ask(fake, answer)
    found = facts.exchanges["plain"][0]
    assert (found.status, found.body, found.error) == (answer.status, body, error)


def test_a_listing_that_is_none_leaves_a_name_to_ask_for():
    with fake_openai() as fake:
        fake.models = as_json({"data": [None, {"id": 5}]})
        assert ask(fake).model == "default"
        fake.models = Answer(hang=True)
        assert ask(fake, timeout_s=0.3).exchanges["models"][0].error == "timed out: nothing came for 0.3 s"


def test_no_server_is_recorded_and_no_url_is_refused():
    facts = probe(f"http://127.0.0.1:{free_port()}", timeout_s=1.0)
    assert {each.error[:10] for several in facts.exchanges.values() for each in several} == {"no answer:"}
    assert "whole" in with_status(facts, "fail")
    with pytest.raises(UsageError):
        probe("not a URL")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_read_however_they_are_cut(end: str, size: int):
    lines = [
        ": a comment",
        "",
        'data: {"a": "🐼"}',
        "",
        "event: x",
        "id: 1",
        "data:first",
        "data: second",
        "",
        "",
        "retry: 1",
    ]
    sent = end.join([*lines, "data: [DONE]", "", "data: never ended"]).encode()
    pieces = (sent[at : at + size] for at in range(0, len(sent), size))
    assert list(protocol_probe.server_sent_events(pieces)) == ['{"a": "🐼"}', "first\nsecond", "[DONE]"]
