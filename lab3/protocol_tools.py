"""The OpenAI protocol checks of tool calls, for lab3.protocol."""

from __future__ import annotations

from typing import Any

from lab3.openai_client import excerpt
from lab3.protocol_answers import (
    Answer,
    NotJudged,
    ToolCall,
    answers_to,
    finding,
    grows,
    is_text,
    pairs_of,
    repeated,
    shown,
    sound_answers,
    tokens_of,
)
from lab3.protocol_facts import ProtocolFacts
from lab3.verdicts import Finding


def tool_calls(facts: ProtocolFacts) -> Finding:
    asked, answers = answers_to(facts, "tools"), sound_answers(facts)
    faults = [f"{a.where}: no call of a given function" for a in asked if not any(_schema(a, c) for c in a.calls)]
    for answer in answers:
        faults += [f"{answer.where}: {fault}" for call in answer.calls if (fault := _call_fault(answer, call))]
        forced = ("stop",) if isinstance(answer.request.get("tool_choice"), dict) else ()  # as OpenAI has it
        if answer.calls and answer.finish_reason not in ("tool_calls", "length", *forced):
            faults.append(f"{answer.where}: finish_reason is {excerpt(answer.finish_reason, 40)}, not tool_calls")
    calls = [call for answer in answers for call in answer.calls]
    faults += repeated([call.id for call in calls])
    return finding(faults, f"{len(calls)} calls, such as {shown(asked[0].calls)}")


def _call_fault(answer: Answer, call: ToolCall) -> str:
    if not is_text(call.id):
        return f"a call with the id {excerpt(call.id, 40)}"
    if call.type != "function" or not is_text(call.name):
        return f"a call of the type {excerpt(call.type, 40)} and the name {excerpt(call.name, 40)}"
    if type(call.index) is not int:
        return f"a call with the index {excerpt(call.index, 40)}"
    if not isinstance(call.arguments, str):
        return f"arguments as {type(call.arguments).__name__}, not as a string of JSON"
    if call.parsed is None and answer.finish_reason != "length":
        return f"arguments that are no JSON object: {excerpt(call.arguments, 60)}"
    return ""


def tool_stream(facts: ProtocolFacts) -> Finding:
    """Only of calls that are whole: that there are none, or broken ones, other checks tell."""
    asked = [name for name in ("tools", "tool_required") if name in facts.exchanges]
    pairs = [pair for name in asked for pair in pairs_of(facts, name) if all(map(_calls_well, pair))]
    if not pairs:
        raise NotJudged("there are no good calls to compare")
    faults = [
        f"{streamed.name}: streamed {shown(streamed.calls)} after {excerpt(streamed.text, 40)!r}, "
        f"unstreamed {shown(whole.calls)} after {excerpt(whole.text, 40)!r}"
        for whole, streamed in pairs
        if _told(whole) != _told(streamed)
    ]
    return finding(faults, f"{len(pairs)} streamed calls are the unstreamed ones")


def _calls_well(answer: Answer) -> bool:
    return bool(answer.calls) and not any(_call_fault(answer, call) for call in answer.calls)


def _told(answer: Answer) -> tuple[Any, ...]:
    """All of an answer but its ids."""
    return answer.text, [(call.name, call.arguments) for call in answer.calls]


def tool_none(facts: ProtocolFacts) -> Finding:
    answer = answers_to(facts, "tool_none")[0]
    faults = [f"it called {shown(answer.calls)}"] if answer.calls else []
    faults += ["neither a call nor text"] if not answer.calls and not answer.text.strip() else []
    return finding(faults, f"it said {excerpt(answer.text, 60)!r}")


def tool_required(facts: ProtocolFacts) -> Finding:
    import jsonschema

    answers = answers_to(facts, "tool_required")
    faults = []
    for answer in answers:
        faults += [f"{answer.where}: no call"] if not answer.calls else []
        for call in answer.calls:
            schema = _schema(answer, call)
            if schema is None:
                faults.append(f"{answer.where}: {excerpt(call.name, 40)} is none of the given functions")
            elif call.parsed is None:
                raise NotJudged(f"{answer.where}: arguments that are no JSON object")
            elif wrong := next(jsonschema.Draft202012Validator(schema).iter_errors(call.parsed), None):
                faults.append(f"{answer.where}: {excerpt(call.name, 40)}: {excerpt(wrong.message, 100)}")
    return finding(faults, f"it called {shown(answers[0].calls)}")


def tool_named(facts: ProtocolFacts) -> Finding:
    answer = answers_to(facts, "tool_named")[0]
    name = answer.request["tool_choice"]["function"]["name"]
    called = shown(answer.calls) or "nothing"
    good = bool(answer.calls) and all(call.name == name for call in answer.calls)
    return finding([] if good else [f"it called {called}"], f"it called {called}", expected=name)


def parallel_calls(facts: ProtocolFacts) -> Finding:
    calls = answers_to(facts, "parallel")[0].calls
    told = f"it called {shown(calls) or 'nothing'}"
    return finding([] if len(calls) >= 2 else [told], told, expected="two calls in one answer")


def tool_results(facts: ProtocolFacts) -> Finding:
    answers = answers_to(facts, "tool_results")
    faults = [
        f"no answer to {len(a.request['messages'])} messages" for a in answers[1:] if not a.text.strip() and not a.calls
    ]
    tokens = [tokens_of(answer)[0] for answer in answers]
    faults += [f"the results are not in the prompt: {tokens} tokens"] if not grows(answers) else []
    return finding(
        faults, f"prompts of {tokens} tokens with none, one and two results; {excerpt(answers[-1].text, 60)!r}"
    )


def _schema(answer: Answer, call: ToolCall) -> dict[str, Any] | None:
    """The parameters of the given function that a call names, None if none has the name."""
    functions = [tool["function"] for tool in answer.request.get("tools") or ()]
    return next((each["parameters"] for each in functions if each["name"] == call.name), None)
