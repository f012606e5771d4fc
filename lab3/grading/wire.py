"""From exchanges on the wire to the turns of a chat: what was asked and answered, what went wrong and whose fault."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab3 import protocol_facts
from lab3.grading.exchange import Exchange, Fault
from lab3.openai_client import clean, excerpt
from lab3.protocol_answers import Answer, choice_fault, read_answer
from lab3.protocol_probe import server_sent_events

CHAT_PATH = "/v1/chat/completions"
_DEEPEST = 32  # levels of a JSON value: nothing honest has more, and much of Python's library recurses
_BUSY = (408, 409, 425, 429)  # refusals that are not about what was asked
_MOST_OF_A_CHARACTER = 4  # tokens: a token is a byte of UTF-8 at least


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that went wrong. `fault` says whose doing it was, None if it was nobody's or nobody knows."""

    kind: str
    fault: Fault | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A chat-completions request and its answer.

    `request` is {} if it was no JSON object. `message` is the first choice as the API gives it unstreamed (role,
    content, tool_calls), put together if it came in pieces, and as far as it came if it was broken off; None without
    any. Nothing in a request or a message is what it should be until checked.
    """

    number: int  # of the exchange
    request: dict[str, Any]
    message: dict[str, Any] | None
    usage: dict[str, Any] | None
    finish_reason: str | None
    status: int | None
    streamed: bool
    began_s: float
    first_byte_s: float | None
    ended_s: float | None
    problems: tuple[Problem, ...] = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The request's messages that are objects."""
        return _objects(self.request.get("messages"))

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The functions that the request offers: name, description, parameters, as far as they are there."""
        given = (tool.get("function") for tool in _objects(self.request.get("tools")))
        return [function for function in given if isinstance(function, dict)]

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The message's tool calls."""
        return _objects((self.message or {}).get("tool_calls"))

    @property
    def text(self) -> str:
        """What the model said beside its calls."""
        return text_of(self.message or {})

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values. Texts may hold lone surrogates, so let json.dumps escape what is not ASCII."""
        return asdict(self)


def turns(exchanges: Iterable[Exchange]) -> tuple[Turn, ...]:
    """The turns among the exchanges, in their order."""
    return tuple(_turn(each) for each in exchanges if is_chat(each))


def is_chat(exchange: Exchange) -> bool:
    """Whether it asks for a chat completion."""
    return exchange.method == "POST" and exchange.path.partition("?")[0] == CHAT_PATH


def problems_of(exchange: Exchange) -> Iterable[Problem]:
    """What is wrong with it as HTTP."""
    if exchange.error_kind:
        yield Problem(kind=exchange.error_kind, fault=exchange.fault, text=exchange.error or "")
    elif exchange.status is not None and exchange.status != 200:
        said = excerpt(exchange.response_body.decode("utf-8", "replace"), 300)
        ours = exchange.status < 500 and exchange.status not in _BUSY
        yield Problem(
            kind="refused" if ours else "failed",
            fault="client" if ours else "server",
            text=f"{exchange.status}: {said}",
        )
    if exchange.truncated:
        yield Problem(kind="truncated", fault=None, text="the recording holds only the beginning")


def first_tool_request(turns: Sequence[Turn]) -> dict[str, Any] | None:
    """The first request that offers tools, None without one."""
    return next((turn.request for turn in turns if turn.tools), None)


def nonce_request(request: dict[str, Any], *, question: str) -> dict[str, Any]:
    """The same request with another question in place of its last user message, and nothing after that.

    Tools, roles, parameters and what was said before stay the student's. It asks for one whole answer, and no stream.
    """
    asked = {
        key: copy.deepcopy(value) for key, value in request.items() if key not in ("stream", "stream_options", "n")
    }
    messages = _objects(asked.get("messages"))
    last = max((at for at, message in enumerate(messages) if message.get("role") == "user"), default=len(messages))
    asker = messages[last] if last < len(messages) else {"role": "user"}
    return asked | {"messages": [*messages[:last], asker | {"content": question}]}


def text_of(message: dict[str, Any]) -> str:
    """The text of a message's content, be it text or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(clean(part.get("text")) for part in _objects(content) if part.get("text"))
    return clean(content)


def json_of(data: bytes | str) -> Any:
    """A JSON value, None for what is none, or nested deeper than anything honest."""
    try:
        value = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):  # bytes that are no UTF-8 are a ValueError, too
        return None
    return None if _is_deep(value, _DEEPEST) else value


def _turn(exchange: Exchange) -> Turn:
    problems = list(problems_of(exchange))
    request = json_of(exchange.request_body)
    if not isinstance(request, dict):
        request = {}
        if not exchange.by_proxy:
            problems.append(Problem(kind="bad_request", fault="client", text="the request is no JSON object"))
    answer = None
    if exchange.status == 200:
        recorded, faults = _recorded(exchange, request)
        answer = read_answer("", recorded)
        if not answer and (shape := choice_fault(recorded)):
            faults.append(shape)
        if answer and not answer.finish_reasons and not exchange.error:
            faults.append("the answer ended without a finish_reason")
        if answer is None and not exchange.error and not faults:
            faults.append("the answer holds no choice")
        if answer and _lost_its_text(answer):
            faults.append(
                f"{_completion_tokens(answer)} tokens came without any text; where max_tokens cuts a character in two, "
                "LMDeploy drops what it has not sent yet"
            )
        # What is missing because somebody hung up, or because no more is recorded, is no fault of its own.
        if not exchange.error and not exchange.truncated:
            problems += [Problem(kind="bad_answer", fault="server", text=fault) for fault in faults]
    return Turn(
        number=exchange.number,
        request=request,
        message=_message(answer) if answer else None,
        usage=answer.usage if answer and isinstance(answer.usage, dict) else None,
        finish_reason=clean(answer.finish_reason) or None if answer else None,
        status=exchange.status,
        streamed=exchange.streamed,
        began_s=exchange.began_s,
        first_byte_s=exchange.first_byte_s,
        ended_s=exchange.ended_s,
        problems=tuple(problems),
    )


def _lost_its_text(answer: Answer) -> bool:
    """Whether LMDeploy's detokenizer lost all of a cut answer (0.18): an unstreamed one comes in a single piece."""
    cut = answer.finish_reason == "length" and answer.text == "" and not answer.calls
    return cut and _completion_tokens(answer) > _MOST_OF_A_CHARACTER


def _completion_tokens(answer: Answer) -> int:
    told = answer.usage.get("completion_tokens") if isinstance(answer.usage, dict) else None
    return told if isinstance(told, int) else 0


def _recorded(exchange: Exchange, request: dict[str, Any]) -> tuple[protocol_facts.Exchange, list[str]]:
    """The answer as lab3 reads answers, and what in it could not be read."""
    known: dict[str, Any] = {"request": request, "status": 200, "content_type": exchange.content_type, "error": None}
    if not request.get("stream"):
        body = json_of(exchange.response_body)
        faults = [] if isinstance(body, dict) else ["the answer is no JSON object"]
        return protocol_facts.Exchange(**known, body=body, events=(), done=False), faults
    events: list[Any] = []
    faults = []
    done = False
    try:
        for data in server_sent_events([exchange.response_body]):
            done = data == "[DONE]"
            event = None if done else json_of(data)
            if done or not isinstance(event, dict) or event.get("error") is not None:
                faults += (
                    [] if done else [f"an event of the stream is an error or no JSON object: {excerpt(data, 200)}"]
                )
                break
            events.append(event)
    except UnicodeDecodeError as error:
        faults.append(f"the stream is no UTF-8: {error.reason}")
    return protocol_facts.Exchange(**known, body=None, events=tuple(events), done=done), faults


def _message(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": clean(answer.text)}
    calls = [
        {
            "id": clean(call.id),
            "type": "function",
            "function": {
                "name": clean(call.name),
                "arguments": clean(call.arguments) if isinstance(call.arguments, str) else call.arguments,
            },
        }
        for call in answer.calls
    ]
    return message | ({"tool_calls": calls} if calls else {})


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _is_deep(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(part, levels - 1) for part in parts)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value
