"""A scripted OpenAI server for faults and malformed answers, which a real server cannot be made to show.

Each POST takes the next answer from the queue; what was asked is kept in `requests`. The real client talks to it.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What to send: `body` as it is, in the pieces given; then close, or `hang` until the server stops.

    With `cut` the promised length is longer than the body, so that the client sees the connection break.
    """

    body: tuple[bytes, ...] = ()
    status: int = 200
    content_type: str = "application/json"
    hang: bool = False
    cut: bool = False
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value: Any, *, status: int = 200) -> Answer:
    return Answer((json.dumps(value).encode(),), status=status)


def completion(
    content: str | None = "hello",
    *,
    tool_calls: Any = None,
    finish_reason: str = "stop",
    usage: dict[str, int] | None = None,
) -> Answer:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if tool_calls is not None:
        message["tool_calls"] = tool_calls
        finish_reason = "tool_calls"
    return as_json(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "fake",
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
            "usage": usage or {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    )


def call(name: str, arguments: Any, *, id: str | None = "call_1") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def delta(finish_reason: str | None = None, **parts: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": parts, "finish_reason": finish_reason}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "fake", "choices": [choice]}


def sse(*events: Any, done: bool = True, hang: bool = False, cut: bool = False) -> Answer:
    """A stream of events (JSON-ready values, or bytes as they are)."""
    lines = [event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode() for event in events]
    if done:
        lines.append(b"data: [DONE]\n\n")
    return Answer(tuple(lines), content_type="text/event-stream", hang=hang, cut=cut)


USAGE_CHUNK = {
    "id": "c1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "fake",
    "choices": [],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}


@dataclass
class FakeOpenAI:
    """The running server: `url`, the queue of `answers`, and the `requests` (path, headers, JSON body) it got."""

    url: str
    answers: deque[Answer] = field(default_factory=deque)
    requests: list[dict[str, Any]] = field(default_factory=list)
    always: Callable[[Any], Answer] | None = None  # what to answer a request's JSON when the queue is empty
    models: Answer = field(default_factory=lambda: as_json({"object": "list", "data": [{"id": "fake"}]}))
    stopping: threading.Event = field(default_factory=threading.Event)

    def will(self, *answers: Answer) -> None:
        self.answers.extend(answers)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [request["body"] for request in self.requests if request["body"] is not None]


@contextmanager
def fake_openai() -> Iterator[FakeOpenAI]:
    """Serve on a free port of 127.0.0.1 until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._keep(None)
            self._send(fake.models)

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            self._keep(json.loads(self.rfile.read(length)))
            if fake.answers:
                self._send(fake.answers.popleft())
            elif fake.always is not None:
                self._send(fake.always(fake.requests[-1]["body"]))
            else:
                self._send(as_json({"message": "queue empty"}, status=500))

        def _keep(self, body: Any) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            fake.requests.append({"path": self.path, "headers": headers, "body": body})

        def _send(self, answer: Answer) -> None:
            self.close_connection = True
            self.send_response(answer.status)
            self.send_header("content-type", answer.content_type)
            self.send_header("connection", "close")
            if answer.cut:
                self.send_header("content-length", str(sum(map(len, answer.body)) + 100))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            for piece in answer.body:
                self.wfile.write(piece)
                self.wfile.flush()
            if answer.hang:
                fake.stopping.wait(30)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake = FakeOpenAI(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def free_port() -> int:
    """A port nobody listens on (a moment ago)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
