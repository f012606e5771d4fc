"""Answers as read from recorded exchanges, and the faults of their shape: what the OpenAI protocol checks share."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab3.openai_client import excerpt
from lab3.protocol_facts import Exchange, ProtocolFacts
from lab3.verdicts import Finding

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")
SOURCE = "recorded exchanges with the server"
# Wrong requests, by what is wrong with them, as lab3.protocol_probe names them.
REFUSALS: dict[str, tuple[str, ...]] = {
    "unknown_model": ("unknown_model",),
    "malformed_json": ("malformed_json",),
    "missing_messages": ("missing_messages",),
    "wrong_types": ("role_is_number", "content_is_number", "messages_is_text"),
    "max_tokens_range": ("max_tokens_negative",),
    "sampling_range": ("temperature_negative", "temperature_3", "top_p_2"),
    "unknown_role": ("unknown_role",),
    "unknown_function": ("unknown_function",),
}
OWN_CHECK = {"models", "context", "after"}.union(*REFUSALS.values())  # one that tells whether it was answered at all


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A tool call as it came, put together if it was streamed. Nothing in it is what it should be until checked."""

    index: Any
    id: Any
    type: Any
    name: Any
    arguments: Any

    @property
    def parsed(self) -> dict[str, Any] | None:
        """The arguments, None unless they are a string that holds a JSON object."""
        try:
            value = json.loads(self.arguments) if isinstance(self.arguments, str) else None
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The first choice of a good answer, streamed or not. `chunks` told it: one body, or a stream's events."""

    name: str  # the probe's
    exchange: Exchange
    chunks: tuple[dict[str, Any], ...]
    text: str
    calls: tuple[ToolCall, ...]
    finish_reasons: tuple[Any, ...]  # as many as the chunks tell: in a stream that is right, one

    @property
    def request(self) -> dict[str, Any]:
        return self.exchange.request

    @property
    def streamed(self) -> bool:
        return bool(self.request.get("stream"))

    @property
    def where(self) -> str:
        return f"{self.name}, streamed" if self.streamed else self.name

    @property
    def finish_reason(self) -> Any:
        return self.finish_reasons[-1] if self.finish_reasons else None

    @property
    def usage(self) -> Any:
        return self.chunks[-1].get("usage")


def read_answer(name: str, exchange: Exchange) -> Answer | None:
    """The answer, None unless it is whole and its choices have the right shape."""
    chunks, streamed = chunks_of(exchange), bool(exchange.request.get("stream"))
    if not chunks or choice_fault(exchange):
        return None
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    messages = [each["delta" if streamed else "message"] for each in choices]
    deltas = [call for message in messages for call in message.get("tool_calls") or []]
    if not streamed:
        deltas = [call | {"index": at} for at, call in enumerate(deltas)]
    by_index: dict[str, list[dict[str, Any]]] = {}
    for delta in deltas:
        by_index.setdefault(repr(delta.get("index")), []).append(delta)
    return Answer(
        name=name,
        exchange=exchange,
        chunks=chunks,
        text="".join(message.get("content") or "" for message in messages),
        calls=tuple(_call(parts) for parts in by_index.values()),
        finish_reasons=tuple(each["finish_reason"] for each in choices if each.get("finish_reason") is not None),
    )


def chunks_of(exchange: Exchange) -> tuple[dict[str, Any], ...]:
    """The JSON objects of a whole answer; () if it is none, or an error."""
    if exchange.error or exchange.status != 200:
        return ()
    found = exchange.events if exchange.request.get("stream") else (exchange.body,)
    return found if all(isinstance(each, dict) and each.get("error") is None for each in found) else ()


def choice_fault(exchange: Exchange) -> str:
    """What is wrong with the shape of an answer's choices, "" if nothing."""
    streamed = bool(exchange.request.get("stream"))
    for chunk in chunks_of(exchange):
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
            return "choices that are no list of objects"
        indexes, wanted = [each.get("index") for each in choices], list(range(exchange.request.get("n") or 1))
        if indexes != wanted and (choices or not streamed):  # a stream's chunk with the usage has none
            return f"choices with the indexes {excerpt(indexes, 40)}, not {wanted}"
        for each in choices:
            if fault := _message_fault(each.get("delta" if streamed else "message"), streamed=streamed):
                return fault
    return ""


def _message_fault(message: Any, *, streamed: bool) -> str:
    if not isinstance(message, dict):
        return "a choice without a message"
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if role != "assistant" and not (streamed and role is None):
        return f"the role {excerpt(role, 40)}, not assistant"
    if not isinstance(content, str | None):
        return "a content that is neither text nor null"
    if not isinstance(calls, list | None) or not all(
        isinstance(call, dict) and isinstance(call.get("function"), dict | None) for call in calls or ()
    ):
        return "tool_calls that are no list of objects"
    return ""


def _call(deltas: list[dict[str, Any]]) -> ToolCall:
    functions = [delta.get("function") or {} for delta in deltas]
    arguments = [each["arguments"] for each in functions if each.get("arguments") is not None]
    odd = [each for each in arguments if not isinstance(each, str)]
    return ToolCall(
        index=deltas[0].get("index"),
        id=_first(deltas, "id"),
        type=_first(deltas, "type"),
        name=_first(functions, "name"),
        arguments=odd[0] if odd else "".join(arguments) if arguments else None,
    )


def _first(parts: list[dict[str, Any]], key: str) -> Any:
    return next((part[key] for part in parts if part.get(key) is not None), None)


def finish_fault(answer: Answer) -> bool:
    """A stream without any is not meant."""
    reasons = answer.finish_reasons or (() if answer.streamed else (None,))
    return any(reason not in FINISH_REASONS for reason in reasons)


def stream_fault(answer: Answer) -> str:
    if answer.exchange.content_type.split(";")[0].strip().lower() != "text/event-stream":
        return f"the content type is {excerpt(answer.exchange.content_type, 60)}"
    if not answer.exchange.done:
        return "no [DONE] at the end"
    if len({repr(chunk.get("id")) for chunk in answer.chunks}) > 1:
        return "chunks with different ids"
    choices = [choice for chunk in answer.chunks for choice in chunk["choices"]]
    if not choices or not any(choices[0]["delta"].get(key) is not None for key in ("role", "content", "tool_calls")):
        return "the first delta has neither role nor content"
    if len(answer.finish_reasons) != 1 or choices[-1].get("finish_reason") is None:
        return f"{len(answer.finish_reasons)} finish_reasons, and not one at the end"
    return ""


# --- what the checks share -------------------------------------------------------------------------------------------


class NotJudged(Exception):
    """Why there is nothing to judge."""


def asked_for(facts: ProtocolFacts) -> list[tuple[str, Exchange]]:
    """The exchanges that must go well, and have no check of their own for whether they did."""
    found = [(name, each) for name, several in facts.exchanges.items() if name not in OWN_CHECK for each in several]
    if not found:
        raise NotJudged("nothing was asked")
    return found


def sound_answers(facts: ProtocolFacts) -> list[Answer]:
    """All sound answers."""
    found = [answer for name, each in asked_for(facts) if (answer := read_answer(name, each))]
    if not found:
        raise NotJudged("there is no good answer")
    return found


def answers_to(facts: ProtocolFacts, name: str) -> list[Answer]:
    """The answers to one probe, if no other check finds a fault with their shape."""
    exchanges = facts.exchanges.get(name)
    if not exchanges:
        raise NotJudged(f"{name} could not be asked")
    found = [answer for each in exchanges if (answer := read_answer(name, each)) and not finish_fault(answer)]
    if len(found) < len(exchanges) or any(answer.streamed and stream_fault(answer) for answer in found):
        raise NotJudged(f"{name} got no good answer")
    return found


def streams_of(facts: ProtocolFacts) -> list[Answer]:
    found = [answer for answer in sound_answers(facts) if answer.streamed]
    if not found:
        raise NotJudged("there is no good stream")
    return found


def pairs_of(facts: ProtocolFacts, name: str) -> list[tuple[Answer, Answer]]:
    """A probe's first answer, which is unstreamed, with each streamed one."""
    first, *others = answers_to(facts, name)
    return [(first, answer) for answer in others if answer.streamed]


def usage_fault(usage: Any) -> str:
    told = usage if isinstance(usage, dict) else {}
    counts = [told.get(f"{kind}_tokens") for kind in ("prompt", "completion", "total")]
    numbers = [each for each in counts if type(each) is int and each >= 1]
    if len(numbers) < len(counts):
        return f"no usage with counts of at least 1: {excerpt(usage, 100)}"
    prompt, completion, total = numbers
    return "" if prompt + completion == total else f"usage: {prompt} + {completion} is not {total}"


def tokens_of(answer: Answer) -> tuple[int, int]:
    """Prompt and completion tokens."""
    if fault := usage_fault(answer.usage):
        raise NotJudged(f"{answer.where}: {fault}")
    return answer.usage["prompt_tokens"], answer.usage["completion_tokens"]


def grows(answers: list[Answer]) -> bool:
    """Whether each longer conversation has more tokens, by one for each message at the least."""
    pairs = [(len(answer.request["messages"]), tokens_of(answer)[0]) for answer in answers]
    return all(more[1] - less[1] >= more[0] - less[0] for less, more in itertools.pairwise(pairs))


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def repeated(ids: list[Any]) -> list[str]:
    counts = Counter(each for each in ids if is_text(each))
    return [f"the id {excerpt(each, 60)} is given {times} times" for each, times in counts.items() if times > 1]


def shown(calls: Sequence[ToolCall]) -> str:
    """The calls on one line."""
    return ", ".join(f"{excerpt(call.name, 40)}({' '.join(excerpt(call.arguments).split())})" for call in calls)


def finding(faults: list[str], good: str = "", *, expected: Any = None, actual: Any = None) -> Finding:
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return Finding("fail" if faults else "pass", "; ".join(faults[:3]) + more or good, SOURCE, expected, actual)
