"""One conversation over the OpenAI API: what was said, how it ended, how fast it came.

`ask` is the one place where lab3 sends a completion request; `lab3.funcall` builds on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lab3.errors import InfraError, UsageError
from lab3.openai_client import (
    SLOW_TODO,
    BrokenAnswer,
    MalformedAnswer,
    as_dict,
    clean,
    excerpt,
    explain,
    first_model,
    open_client,
)

if TYPE_CHECKING:
    from openai import OpenAI

STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}  # part of a request
Message = Mapping[str, Any]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Usage:
    """Token counts as the server reports them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class RawCall:
    """A tool call exactly as the server sent it: nothing parsed, nothing believed."""

    id: str | None
    name: str
    arguments: Any


@dataclass(frozen=True)
class Reply:
    """One completion. See `ChatResult` for what the times mean."""

    text: str
    tool_calls: tuple[RawCall, ...]
    model: str
    usage: Usage | None
    finish_reason: str | None
    ttft_s: float | None
    seconds: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class ChatResult:
    """One answered turn and the transcript up to it.

    `ttft_s`: seconds from the request to the first token (None when not streamed). `seconds`: from the request to
    the end. `tokens_per_second`: streamed, the decode speed (completion_tokens - 1) / (last token - first token);
    otherwise completion_tokens / seconds, which counts the prompt's time too. None when the server sent no usage.
    """

    text: str
    model: str
    usage: Usage | None
    finish_reason: str | None
    ttft_s: float | None
    seconds: float
    tokens_per_second: float | None
    messages: tuple[Message, ...]

    def followed_by(self, text: str) -> list[Message]:
        """The transcript and the user's next line: what to hand to `chat` for a further turn."""
        return [*self.messages, {"role": "user", "content": text}]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready values."""
        return asdict(self) | {"messages": [dict(message) for message in self.messages]}


def chat(
    said: str | Sequence[Message],
    *,
    base_url: str,
    model: str | None = None,
    api_key: str = "none",
    stream: bool = False,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    max_tokens: int | None = 512,
    stop: str | Sequence[str] | None = None,
    timeout_s: float = 120.0,
    clock: Clock = time.perf_counter,
) -> ChatResult:
    """Say something to the server at `base_url` (with or without `/v1`) and return its answer.

    `said` is the user's text or a whole message list. `model` defaults to the first the server lists, as in the
    tutorial. What is None is left to the server. Nothing is retried; `timeout_s` bounds every wait for the
    server, and a streamed answer as a whole.

    Raises UsageError (bad URL, unknown model, refused request or key), InfraError (no server, time-out, server
    error), its subclasses BrokenAnswer (cut off in the middle) and MalformedAnswer (not the OpenAI API).
    """
    messages: list[Message] = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
    if not messages or said == "":
        raise UsageError("There is nothing to say to the model.", todo="give a text or at least one message")
    request = {
        "messages": messages,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "max_tokens": max_tokens,
        "stop": stop if stop is None or isinstance(stop, str) else list(stop),
    }
    with open_client(base_url, api_key=api_key, timeout_s=timeout_s) as client:
        reply = ask(
            client, request | {"model": model or first_model(client)}, stream=stream, timeout_s=timeout_s, clock=clock
        )
    return ChatResult(
        text=reply.text,
        model=reply.model,
        usage=reply.usage,
        finish_reason=reply.finish_reason,
        ttft_s=reply.ttft_s,
        seconds=reply.seconds,
        tokens_per_second=reply.tokens_per_second,
        messages=(*messages, {"role": "assistant", "content": reply.text}),
    )


def ask(
    client: OpenAI,
    request: Mapping[str, Any],
    *,
    stream: bool,
    timeout_s: float,
    clock: Clock = time.perf_counter,
) -> Reply:
    """Send one completion request; entries that are None are not sent. Raises as `chat` does."""
    body = {name: value for name, value in request.items() if value is not None}
    create: Any = client.chat.completions.create
    start = clock()
    if stream:
        chunks = _open(create, client, timeout_s, body | STREAMED)
        gathered = _gather(chunks, client, timeout_s=timeout_s, elapsed=lambda: clock() - start)
        return gathered.reply(asked=body["model"], seconds=clock() - start)
    answer = as_dict(_open(create, client, timeout_s, body))
    message, finish_reason = _message_of(answer)
    seconds = clock() - start
    usage = _usage(answer.get("usage"))
    speed = None if usage is None or seconds <= 0 else usage.completion_tokens / seconds
    return _reply(
        answer,
        message,
        finish_reason,
        asked=body["model"],
        usage=usage,
        ttft_s=None,
        seconds=seconds,
        tokens_per_second=speed,
    )


def _reply(answer: dict[str, Any], message: dict[str, Any], finish_reason: Any, *, asked: str, **figures: Any) -> Reply:
    served = answer.get("model")
    return Reply(
        text=clean(message.get("content")),
        tool_calls=_raw_calls(message.get("tool_calls")),
        model=clean(served) if isinstance(served, str) else asked,
        finish_reason=clean(finish_reason) or None,
        **figures,
    )


def _open(create: Callable[..., Any], client: OpenAI, timeout_s: float, body: dict[str, Any]) -> Any:
    try:
        return create(**body)
    except Exception as error:
        raise explain(error, client, timeout_s=timeout_s) from error


def _gather(chunks: Any, client: OpenAI, *, timeout_s: float, elapsed: Clock) -> Gathered:
    """Read a stream to its end; however it breaks, the error carries the text that had come."""
    gathered = Gathered()
    try:
        for chunk in chunks:
            gathered.add(as_dict(chunk), at_s=elapsed())
            if elapsed() > timeout_s:
                raise InfraError(f"The answer was still coming after {timeout_s:g} s.", todo=SLOW_TODO)
        gathered.check_ended()
    except Exception as error:
        known = explain(error, client, timeout_s=timeout_s)
        kind = MalformedAnswer if isinstance(known, MalformedAnswer) else BrokenAnswer
        raise kind(known.what, why=known.why, todo=known.todo, partial_text=gathered.text) from error
    finally:
        chunks.close()
    return gathered


class Gathered:
    """A streamed answer while it comes: text joined, tool-call deltas put together by their index.

    `add` takes the stream's chunks, `first_s` and `last_s` are when the first and the last token came, and `pieces`
    counts those that brought any. At the end `check_ended` and `reply` make of it what `ask` returns.
    """

    def __init__(self) -> None:
        self.pieces = 0
        self.text = ""
        self.finish_reason: str | None = None
        self.first_s: float | None = None
        self.last_s: float | None = None
        self._calls: dict[Any, dict[str, Any]] = {}
        self.rest: dict[str, Any] = {}

    def add(self, chunk: dict[str, Any], *, at_s: float) -> None:
        self.rest |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name)}
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:  # the chunk with the usage has none
            return
        choice = _dict(choices[0])
        delta = _dict(choice.get("delta"))
        if any(delta.get(part) for part in ("content", "reasoning_content", "tool_calls")):
            self.first_s = at_s if self.first_s is None else self.first_s
            self.last_s = at_s
            self.pieces += 1
        self.text += clean(delta.get("content"))
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            self._add_call(_dict(call))
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _add_call(self, delta: dict[str, Any]) -> None:
        """A delta without index begins a call if it has an id or a name, and continues the last one otherwise."""
        function = _dict(delta.get("function"))
        index = delta.get("index")
        if not isinstance(index, int):
            begins = bool(delta.get("id") or function.get("name")) or not self._calls
            index = f"unnumbered {len(self._calls)}" if begins else next(reversed(self._calls))
        call = self._calls.setdefault(index, {"id": None, "function": {"name": "", "arguments": ""}})
        call["id"] = call["id"] or delta.get("id")
        call["function"]["name"] = call["function"]["name"] or function.get("name") or ""
        arguments = function.get("arguments")
        if isinstance(arguments, str) and isinstance(call["function"]["arguments"], str):
            call["function"]["arguments"] += arguments
        elif arguments is not None:
            call["function"]["arguments"] = arguments

    def check_ended(self) -> None:
        """Raise InfraError if the stream ended without saying that the answer did."""
        if self.finish_reason is None:
            raise InfraError(
                "The streamed answer ended without saying why (no finish_reason).",
                why="the server was stopped or lost its engine in the middle of the answer",
                todo="look at the end of the server's log",
            )

    def reply(self, *, asked: str, seconds: float) -> Reply:
        """The whole answer; `asked` is the model that was asked for. Raises MalformedAnswer for calls that are none."""
        usage = _usage(self.rest.get("usage"))
        return _reply(
            self.rest,
            {"content": self.text, "tool_calls": list(self._calls.values())},
            self.finish_reason,
            asked=asked,
            usage=usage,
            ttft_s=self.first_s,
            seconds=seconds,
            tokens_per_second=None if usage is None else self.speed(usage.completion_tokens),
        )

    def speed(self, tokens: int) -> float | None:
        """Tokens per second, by the definition that `ChatResult` gives; None before there is a second token."""
        if self.first_s is None or self.last_s is None or self.last_s <= self.first_s:
            return None
        return (tokens - 1) / (self.last_s - self.first_s)


def _message_of(answer: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        raise MalformedAnswer(
            f"The server's answer holds no message: {excerpt(answer)}",
            why="`choices` is empty or not as the OpenAI API has it",
            todo="look at the end of the server's log",
        )
    return choice["message"], choice.get("finish_reason")


def _raw_calls(calls: Any) -> tuple[RawCall, ...]:
    if calls is not None and not isinstance(calls, list):
        raise MalformedAnswer(f"The answer's tool_calls are not a list: {excerpt(calls)}")
    raw = []
    for call in calls or []:
        call = _dict(call)
        function = _dict(call.get("function"))
        arguments = function.get("arguments")
        raw.append(
            RawCall(
                id=clean(call.get("id")) or None,
                name=clean(function.get("name")),
                arguments=clean(arguments) if isinstance(arguments, str) else arguments,
            )
        )
    return tuple(raw)


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    total = usage.get("total_tokens")
    return Usage(prompt, completion, total if isinstance(total, int) else prompt + completion)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
