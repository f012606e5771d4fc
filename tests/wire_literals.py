"""Exchanges as literals: a script's requests and the model's answers, without a proxy or a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lab3.grading.exchange import Exchange

ADD = {"name": "add", "description": "Compute the sum of two numbers", "parameters": {"required": ["a", "b"]}}
MUL = {"name": "mul", "description": "Calculate the product of two numbers", "parameters": {"required": ["a", "b"]}}
QUESTION = "Compute (3+5)*2"


def exchange(number: int = 1, *, request: Any = None, answer: Any = None, **changes: Any) -> Exchange:
    """A chat completion: `request` and `answer` are JSON-ready values or bytes as they are."""
    facts: dict[str, Any] = {
        "number": number,
        "method": "POST",
        "path": "/v1/chat/completions",
        "request_headers": {},
        "request_body": request if isinstance(request, bytes) else json.dumps(request).encode(),
        "status": 200,
        "content_type": "application/json",
        "response_body": answer if isinstance(answer, bytes) else json.dumps(answer).encode(),
        "streamed": False,
        "by_proxy": False,
        "began_s": float(number),
        "first_byte_s": number + 0.25,
        "ended_s": number + 0.5,
        "error": None,
        "error_kind": None,
        "truncated": False,
    }
    return Exchange(**facts | changes)


def asked(messages: Sequence[dict[str, Any]], *, tools: Any = (ADD, MUL), **more: Any) -> dict[str, Any]:
    """A request with these functions."""
    wrapped = [{"type": "function", "function": tool} for tool in tools]
    return {"model": "m", "messages": list(messages), **({"tools": wrapped} if wrapped else {}), **more}


def said(content: str | None = None, *calls: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else finish_reason}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}


def call(name: str, arguments: Any, *, id: str = "call_1") -> dict[str, Any]:
    """A tool call; arguments that are no text are written as JSON."""
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": written}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(content: str | None, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}


def environment(content: str) -> dict[str, Any]:
    return {"role": "environment", "content": content, "name": "plugin"}


def tool(content: str, id: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": id}


def wire(*pairs: tuple[dict[str, Any], dict[str, Any]]) -> list[Exchange]:
    """Requests and their answers, in their order."""
    return [exchange(number, request=request, answer=answer) for number, (request, answer) in enumerate(pairs, 1)]


ADD_CALL, MUL_CALL = call("add", {"a": 3, "b": 5}, id="c1"), call("mul", {"a": 8, "b": 2}, id="c2")
FIRST = (asked([user(QUESTION)]), said(None, ADD_CALL))
AFTER_ADD = [user(QUESTION), assistant(None, ADD_CALL), tool("8", "c1")]
AFTER_MUL = [*AFTER_ADD, assistant(None, MUL_CALL), tool("16", "c2")]
BY_THE_BOOK = (FIRST, (asked(AFTER_ADD), said(None, MUL_CALL)), (asked(AFTER_MUL), said("The result is 16.")))
# It sends the first result back as text, computes the second one by itself and asks no third time.
TUTORIAL = (FIRST, (asked([user(QUESTION), assistant(None), environment("3+5=8")]), said(None, MUL_CALL)))
