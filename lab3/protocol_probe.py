"""Asks a server all that the OpenAI protocol checks need, once, and records request and answer; judges nothing."""

from __future__ import annotations

import codecs
import io
import json
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lab3.openai_client import api_url, clean, excerpt, is_this_machine
from lab3.progress import Progress, silent
from lab3.protocol_facts import ALL_CAPABILITIES, Exchange, ProtocolFacts

if TYPE_CHECKING:
    import requests

MAX_ANSWER_BYTES = 16 * 2**20
GIVE_UP_AFTER = 3  # requests that timed out; the rest is then not asked
TOO_MANY_WORDS = 300_000  # more than the context of any model that the lab serves


def probe(
    base_url: str,
    *,
    api_key: str = "none",
    model: str | None = None,
    capabilities: Iterable[str] = ALL_CAPABILITIES,
    progress: Progress = silent,
    timeout_s: float = 120.0,
) -> ProtocolFacts:
    """Ask everything that the declared capabilities allow, one request after the other, at temperature 0.

    `model` None asks the first that the server lists. An answer has `timeout_s` to begin and to come whole, so none
    takes longer than twice that (if its header lines do not drip). What the server does wrong is recorded; only an
    unusable `base_url` raises (UsageError).
    """
    import requests

    declared = frozenset(capabilities)
    with requests.Session() as session:
        asker = _Asker(session, api_url(base_url), api_key=api_key, timeout_s=timeout_s)
        listing = asker.get_models()
        model = model or _first_id(listing.body) or "default"
        exchanges: dict[str, tuple[Exchange, ...]] = {"models": (listing,)}
        everything = {**_GOOD, **_WRONG, **_LAST}
        plan = {name: wanted for name, (needs, wanted) in everything.items() if not needs or needs in declared}
        for done, (name, wanted) in enumerate(plan.items()):
            progress(f"protocol: {name}", done=done, total=len(plan))
            if name in ("stop", "stop_strings"):
                wanted = _stop_requests(exchanges["count"][0], name)
            asked = [_as_declared({"model": model, "temperature": 0, **each}, declared) for each in wanted]
            exchanges[name] = tuple(asker.post(request) for request in asked if request is not None)
    return ProtocolFacts(model=model, capabilities=tuple(sorted(declared)), exchanges=exchanges)


# --- what is asked ---------------------------------------------------------------------------------------------------


def _user(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _function(name: str, description: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_NUMBERS = {"a": {"type": "number"}, "b": {"type": "number"}}
_SUMS = [
    _function("add", "Add two numbers and return their sum.", **_NUMBERS),
    _function("mul", "Multiply two numbers and return their product.", **_NUMBERS),
]
_CITIES = [
    _function("choose_city", "Choose a city.", city={"enum": ["北京🐼", "上海🦀"]}, north={"type": "boolean"}),
    _function("switch_lamp", "Switch a lamp.", room={"enum": ["厨房🍳", "卧室🌙"]}, on={"type": "boolean"}),
]
_SUM, _STORY, _CAPITAL = map(
    _user, ("What is 3 + 5?", "Tell me a story about a fox.", "What is the capital of France?")
)
_UNICODE = [
    {"role": "system", "content": "你是小熊🐻，喜欢😀和🍎。"},
    {"role": "user", "name": "王伟🐼", "content": "你好！🎉 请介绍一下你自己。"},
]
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def _talk(turns: int) -> list[dict[str, Any]]:
    """A conversation of so many turns; the last waits for its answer."""
    said = [[*_user(f"Say {turn}."), {"role": "assistant", "content": f"{turn}."}] for turn in range(turns)]
    return [message for turn in said for message in turn][:-1]


def _with_results(*numbers: int) -> list[dict[str, Any]]:
    """The question for sums, the calls that one answer made, and the result of each."""
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": "add", "arguments": f'{{"a": {n}, "b": 5}}'}}
        for n in numbers
    ]
    results = [{"role": "tool", "tool_call_id": f"call_{n}", "content": str(n + 5)} for n in numbers]
    answer = [{"role": "assistant", "content": None, "tool_calls": calls}] if calls else []
    return [*_user("What is 3 + 5, and what is 10 + 5?"), *answer, *results]


def _each(base: dict[str, Any], *changes: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple(base | change for change in changes or ({},))


def _named(function: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": function}}


_SYSTEMS = ("Be kind.", "Be kind, use short words, name no places, and end with a question for the reader.")
# Probe → the capability that it needs, if any, and its requests. Streams are left out if the server declares none.
# A name here is what the checks in lab3.protocol know it by.
_GOOD: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "plain": ("", _each({"messages": _CAPITAL, "max_tokens": 24}, {}, {"n": 1}, _STREAM)),
    "cut": ("", _each({"messages": _STORY, "max_tokens": 8}, {}, {"stream": True})),
    "cut_newer": ("max_completion_tokens", _each({"messages": _STORY, "max_completion_tokens": 6})),
    "count": ("", _each({"messages": _user("Count from 1 to 9 in digits."), "max_tokens": 24})),
    "stop": ("stop", ()),  # these two are made of the answer to "count"
    "stop_strings": ("stop_strings", ()),
    "unicode": ("", _each({"messages": _UNICODE, "max_tokens": 24}, {}, {"stream": True})),
    "history": ("", _each({"max_tokens": 4}, *({"messages": _talk(turns)} for turns in (1, 10, 40)))),
    "system": (
        "",
        _each({"max_tokens": 2}, *({"messages": [{"role": "system", "content": s}, *_STORY]} for s in _SYSTEMS)),
    ),
    "choices": ("n", _each({"messages": _STORY, "max_tokens": 6, "n": 2})),
    "tools": ("tools", _each({"messages": _SUM, "tools": _SUMS, "max_tokens": 48}, {}, _STREAM)),
    "tool_results": (
        "tools",
        _each({"tools": _SUMS, "max_tokens": 16}, *({"messages": _with_results(*n)} for n in ((), (3,), (3, 10)))),
    ),
    "tool_none": (
        "tool_choice_none",
        _each({"messages": _SUM, "tools": _SUMS, "tool_choice": "none", "max_tokens": 32}),
    ),
    "tool_required": (
        "tool_choice_required",
        _each(
            {"messages": _UNICODE, "tools": _CITIES, "tool_choice": "required", "max_tokens": 128}, {}, {"stream": True}
        ),
    ),
    "tool_named": (
        "tool_choice_named",
        _each({"messages": _SUM, "tools": _SUMS, "tool_choice": _named("mul"), "max_tokens": 48}),
    ),
    "parallel": ("parallel_calls", _each({"messages": _with_results(), "tools": _SUMS, "max_tokens": 96})),
}


def _wrong(capability: str, /, **changes: Any) -> tuple[str, tuple[dict[str, Any], ...]]:
    return capability, _each({"messages": _STORY, "max_tokens": 2}, changes)


_WRONG: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "unknown_model": _wrong("validates_requests", model="no-such-model"),
    "malformed_json": _wrong("validates_requests", raw='{"model": "m", "messages": [{"role": '),
    "missing_messages": ("validates_requests", _each({"max_tokens": 2})),
    "role_is_number": _wrong("validates_requests", messages=[{"role": 5, "content": "hi"}]),
    "content_is_number": _wrong("validates_requests", messages=_user(5)),
    "messages_is_text": _wrong("validates_requests", messages="hi"),
    "max_tokens_negative": _wrong("validates_requests", max_tokens=-1),
    "temperature_negative": _wrong("validates_requests", temperature=-1),
    "temperature_3": _wrong("validates_requests", temperature=3),
    "top_p_2": _wrong("validates_requests", top_p=2),
    "unknown_role": _wrong("validates_roles", messages=[{"role": "stranger", "content": "hi"}]),
    "unknown_function": _wrong("tool_choice_named", tools=_SUMS, tool_choice=_named("no_such_function")),
}
# What may take the server down comes last, and then a question that shows whether it did.
_LAST: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "context": ("", _each({"messages": _user("word " * TOO_MANY_WORDS), "max_tokens": 1})),
    "after": ("", _each({"messages": _CAPITAL, "max_tokens": 8})),
}


def _stop_requests(count: Exchange, capability: str) -> tuple[dict[str, Any], ...]:
    """A stop string out of the middle of an answer: a digit, which is one token, or that and what follows it."""
    text = _text_of(count.body)
    at = next(
        (at for at, letter in enumerate(text) if at >= 8 and letter in "123456789" and letter not in text[:at]), 0
    )
    if not at:
        return ()
    word = text[at : at + (1 if capability == "stop" else 4)]
    return _each({name: count.request[name] for name in ("messages", "max_tokens")} | {"stop": [word]}, {}, _STREAM)


def _as_declared(request: dict[str, Any], declared: frozenset[str]) -> dict[str, Any] | None:
    """Without the usage of a stream, or None for a stream, where the server does not declare it."""
    if request.get("stream") and "stream" not in declared:
        return None
    return {key: value for key, value in request.items() if key != "stream_options" or "stream_usage" in declared}


def _first_id(listing: Any) -> str | None:
    data = listing.get("data") if isinstance(listing, dict) else None
    ids = [each.get("id") for each in data if isinstance(each, dict)] if isinstance(data, list) else []
    return next((clean(each) for each in ids if each and isinstance(each, str)), None)


def _text_of(body: Any) -> str:
    try:
        text = body["choices"][0]["message"]["content"]
    except (TypeError, LookupError):
        return ""
    return text if isinstance(text, str) else ""


# --- the wire --------------------------------------------------------------------------------------------------------


class _Broken(Exception):
    """Why there is no whole answer."""


class _Asker:
    """A session that sends one request after the other and records each, whatever comes of it."""

    def __init__(self, session: requests.Session, url: str, *, api_key: str, timeout_s: float) -> None:
        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {api_key}".encode()  # type: ignore[assignment]
            return request

        session.trust_env = not is_this_machine(url)
        session.auth = authorize  # so that requests takes none from a .netrc
        # A connection for each request: one that the server just closed would look like a broken answer.
        session.headers.update({"User-Agent": "lab3", "Accept-Encoding": "identity", "Connection": "close"})
        self._session, self._url, self._timeout_s = session, url, timeout_s
        self._timeouts = 0

    def get_models(self) -> Exchange:
        return self._exchange("GET", "/models", request={}, content=None)

    def post(self, request: dict[str, Any]) -> Exchange:
        if "raw" in request:
            request = {"raw": request["raw"]}
        content = request["raw"] if "raw" in request else json.dumps(request, ensure_ascii=False)
        return self._exchange("POST", "/chat/completions", request=request, content=content.encode("utf-8", "replace"))

    def _exchange(self, method: str, path: str, *, request: dict[str, Any], content: bytes | None) -> Exchange:
        import requests
        import urllib3

        known: dict[str, Any] = {"request": _shortened(request), "status": 0, "content_type": ""}
        found: dict[str, Any] = {"body": None, "events": [], "done": False, "error": None}
        try:
            if self._timeouts >= GIVE_UP_AFTER:
                raise _Broken(f"not asked, because {self._timeouts} requests before it timed out")
            deadline = time.monotonic() + self._timeout_s
            with self._session.request(
                method,
                self._url + path,
                data=content,
                headers={"Content-Type": "application/json"} if content else {},
                timeout=(min(self._timeout_s, 10.0), self._timeout_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                known |= {"status": response.status_code, "content_type": response.headers.get("content-type", "")}
                pieces = self._pieces(response, deadline=deadline)
                if request.get("stream") and response.status_code == 200:
                    _read_events(pieces, found)
                else:
                    found["body"] = _parsed(b"".join(pieces).decode())
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            self._timeouts += 1
            found["error"] = f"timed out: nothing came for {self._timeout_s:g} s"
        except UnicodeDecodeError as error:
            found["error"] = f"invalid UTF-8: {error.reason}"
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            found["error"] = f"{'broke off' if known['status'] else 'no answer'}: {excerpt(str(error))}"
        except _Broken as error:
            found["error"] = str(error)
        return Exchange(**known, **{**found, "events": tuple(found["events"])})

    def _pieces(self, response: requests.Response, *, deadline: float) -> Iterator[bytes]:
        """The answer's bytes as they come. A drip of them ends at the deadline, and so does a flood at its limit."""
        size = 0
        while piece := response.raw.read1(2**16):
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise _Broken(f"over the size limit of {MAX_ANSWER_BYTES} bytes")
            if time.monotonic() > deadline:
                self._timeouts += 1
                raise _Broken(f"timed out: not whole after {self._timeout_s:g} s")
            yield piece


def _read_events(pieces: Iterable[bytes], found: dict[str, Any]) -> None:
    """Put a stream's events into `found` as they come, until [DONE]: what came before a break stays."""
    for data in server_sent_events(pieces):
        if data == "[DONE]":
            found["done"] = True
            return
        event = _parsed(data)
        if event is None:
            raise _Broken(f"event {len(found['events']) + 1} of the stream is not JSON: {excerpt(data, 80)}")
        found["events"].append(event)


def server_sent_events(pieces: Iterable[bytes]) -> Iterator[str]:
    """The data of server-sent events, which end with an empty line. Raises UnicodeDecodeError."""
    # Of the three line ends that the format knows, CR LF may be cut in two: the decoder puts it together.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("strict"), translate=True)
    begun: list[str] = []  # of a line; joined only at its end, which may be megabytes away
    data: list[str] = []
    for piece in pieces:
        *ended, rest = decoder.decode(piece).split("\n")
        lines = ["".join([*begun, ended[0]]), *ended[1:]] if ended else []
        begun = [rest] if ended else [*begun, rest]
        for line in lines:
            if line.startswith("data:"):
                data.append(line.removeprefix("data:").removeprefix(" "))
            elif not line and data:
                yield "\n".join(data)
                data = []
    decoder.decode(b"", final=True)


def _parsed(text: str) -> Any:
    """The JSON value, None if it is none; NaN and the like are no JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _shortened(value: Any) -> Any:
    """The same with texts of more than 1000 letters cut: a record needs no book."""
    if isinstance(value, dict):
        return {key: _shortened(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    return f"{value[:100]}… ({len(value)} letters)" if isinstance(value, str) and len(value) > 1000 else value
