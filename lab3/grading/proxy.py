"""A recording proxy between a student's script and the model server: what goes over the wire is the evidence.

It listens on a Unix socket, forwards to one server only, and passes streams on piece by piece as they come.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from lab3.errors import InfraError, UsageError
from lab3.grading.exchange import Exchange

PATHS = frozenset({"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/health"})
METHODS = frozenset({"GET", "POST"})

_OF_THIS_HOP = {
    *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"),
    *("te", "trailer", "transfer-encoding", "upgrade"),  # until here by RFC 9110, section 7.6.1
    *("host", "content-length", "expect", "accept-encoding"),  # the client library says them anew
}
_KEPT_HEADERS = {"accept", "connection", "content-encoding", "content-length", "content-type", "user-agent"}
_MAX_HEADERS, _MAX_HEADER_BYTES = 64, 8190
_SERVER_IDLE_S = 2.0  # LMDeploy's uvicorn hangs up after 5 s of silence, and a request must not meet that
_CONNECT_S = 10.0
_LINGER_S = 1.0  # how long a refused body is read, so that its sender sees the refusal
_GRACE_S, _POLL_S = 0.1, 0.005
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class ProxyLimits:
    """What one script may send, and how much of it and of the answers is kept."""

    body_bytes: int = 8 << 20  # of a request (more is refused) and of an answer (more is passed on, but not kept)
    total_bytes: int = 64 << 20  # of all bodies together, in the same way
    requests: int = 500  # each is recorded; more are refused and only counted
    connections: int = 64  # open at a time
    arrivals: int = 2000  # connections and refused requests, after which nobody is let in any more
    idle_s: float = 60.0  # for a connection to bring a whole request head
    upload_s: float = 30.0  # for a request's body to come


class RecordingProxy:
    """HTTP/1.1 on the Unix socket `socket` while the block runs, forwarded to `upstream` (like http://127.0.0.1:23333).

    `defaults` are fields that a request gets if it has none of that name, such as a seed, so that grading can be
    repeated; `names` are models by the name of the one that the server has. It runs in a thread of its own, so dozens
    fit into a process. Only `PATHS` are forwarded, by GET and POST; all else
    is refused and recorded. Raises UsageError for an unusable address and InfraError if it cannot listen.
    """

    def __init__(
        self,
        upstream: str,
        *,
        socket: Path,
        limits: ProxyLimits | None = None,
        defaults: Mapping[str, Any] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._upstream = _server_url(upstream)
        self._defaults, self._names = dict(defaults or {}), dict(names or {})
        self._socket = socket
        self._limits = limits or ProxyLimits()
        self._drafts: list[_Draft] = []
        self._bytes_left = self._limits.total_bytes
        self._began_at = 0.0
        self._arrived = 0
        self._connections: set[_Connection] = set()
        self._closing = False
        self._session: aiohttp.ClientSession  # these three are made in the thread
        self._listener: asyncio.AbstractServer
        self._stop: Callable[[], Any]
        self.refused_requests = 0  # beyond limits.requests: these are in no exchange
        self.refused_connections = 0

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All requests in the order in which they began; those under way as they stand, until the block has ended."""
        return tuple(draft.exchange() for draft in list(self._drafts))

    def __enter__(self) -> Self:
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name=f"lab3 proxy {self._socket.name}", daemon=True
        )
        self._began_at = time.monotonic()
        self._thread.start()
        try:
            started.result()
        except OSError as error:
            self._thread.join()
            raise InfraError(
                f"The recording proxy cannot listen at {self._socket}: {error}",
                why="the folder is missing or not writable, or the path is longer than the 107 bytes a socket may have",
                todo="set TMPDIR to a folder of yours with a short path",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._thread.join()
        self._socket.unlink(missing_ok=True)

    async def _serve(self, started: Future[None]) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        server = web.Server(self._handle, handler_cancellation=True)
        try:
            self._listener = await loop.create_unix_server(lambda: self._admit(server, loop), path=self._socket)
            self._socket.chmod(0o600)
        except Exception as error:
            started.set_exception(error)
            return
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_SERVER_IDLE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as self._session:
            started.set_result(None)
            await stopped.wait()
            await _settle()  # a connection that is only half accepted would outlive a closed listener
            self._listener.close()
            end = loop.time() + _GRACE_S  # for the news that a client has gone, which comes to us by way of others
            while any(draft.ended_s is None for draft in self._drafts) and loop.time() < end:
                await asyncio.sleep(_POLL_S)
            self._closing = True
            await server.shutdown(_GRACE_S)
            for connection in list(self._connections):
                connection.abort()  # closing alone would wait for a client that does not read
            await _settle()

    def _admit(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> asyncio.BaseProtocol:
        self._arrive()
        if len(self._connections) >= self._limits.connections:
            self.refused_connections += 1
            return _Refusal()
        connection = _Connection(self, server, loop=loop, idle_s=self._limits.idle_s)
        self._connections.add(connection)
        return connection

    def left(self, connection: _Connection) -> None:
        """It has ended."""
        self._connections.discard(connection)

    def _arrive(self) -> None:
        self._arrived += 1
        if self._arrived >= self._limits.arrivals:  # not at once: a connection that is only half accepted would be lost
            asyncio.get_running_loop().call_soon(self._listener.close)

    def not_http(self, error: str) -> None:
        """Something came that is no HTTP request, and was answered with 400."""
        if draft := self._begin("", "", {}):
            draft.status, draft.by_proxy = 400, True
            draft.fail("not_http", error)
            draft.ended_s = self._now()

    def _begin(self, method: str, path: str, headers: dict[str, str]) -> _Draft | None:
        """A new record, None if there are enough of them."""
        if len(self._drafts) >= self._limits.requests:
            self.refused_requests += 1
            self._arrive()
            return None
        draft = _Draft(len(self._drafts) + 1, method, path, headers, began_s=self._now())
        self._drafts.append(draft)
        return draft

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items() if name.lower() in _KEPT_HEADERS}
        draft = self._begin(request.method, request.raw_path, headers)
        if draft is None:
            return _answer(429, f"this recording holds {self._limits.requests} requests and takes no more")
        try:
            try:
                _check_target(request)
                await self._receive(request, draft)
                return await self._forward(request, draft)
            except _Ended as ended:
                draft.status, draft.by_proxy = ended.status, True
                draft.fail(ended.kind, str(ended))
                return _answer(ended.status, str(ended))
        except asyncio.CancelledError:
            if self._closing:
                draft.fail("unfinished", "the recording ended before the answer was whole")
            elif not draft.said_all:
                draft.fail("client_gone", "the client hung up before the answer was whole")
            raise
        except ConnectionError as error:
            if not draft.said_all:
                draft.fail("client_gone", f"the client hung up: {error}")
            raise
        except Exception as error:
            draft.fail("proxy_failed", repr(error))
            raise
        finally:
            draft.ended_s = self._now()

    async def _receive(self, request: web.BaseRequest, draft: _Draft) -> None:
        """The request's whole body: the server could not begin without it either."""
        most = self._limits.body_bytes
        if (request.content_length or 0) > most:
            raise _Ended("too_large", 413, f"a body of {request.content_length} bytes; {most} are allowed")
        try:
            async with asyncio.timeout(self._limits.upload_s):
                async for piece in request.content.iter_any():
                    if len(draft.request_body) + len(piece) > most:
                        raise _Ended("too_large", 413, f"a body of more than {most} bytes")
                    if not self._keep(draft, draft.request_body, piece):
                        raise _Ended("too_large", 413, f"more than {self._limits.total_bytes} bytes in all requests")
        except TimeoutError:
            raise _Ended("too_slow", 408, f"the body did not come within {self._limits.upload_s:g} s") from None
        except (web.RequestPayloadError, aiohttp.ClientPayloadError, aiohttp.http.HttpProcessingError) as error:
            raise _Ended("not_http", 400, f"the body is not HTTP: {error}") from error

    async def _forward(self, request: web.BaseRequest, draft: _Draft) -> web.StreamResponse:
        try:
            answer = await self._session.request(
                request.method,
                URL(f"{self._upstream}{request.raw_path}", encoded=True),
                headers=_end_to_end(request.headers),
                data=self._amended(draft) if request.body_exists else None,
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _Ended("server_down", 502, f"the model server cannot be reached: {error}") from error
        except ValueError as error:  # letters that pass where it came from, and that nobody may send
            raise _Ended("not_http", 400, f"the request cannot be passed on: {error}") from error
        except aiohttp.ClientError as error:
            raise _Ended("server_broke", 502, f"the model server gave no answer: {error!r}") from error
        async with answer:
            return await self._pass_on(answer, request, draft)

    def _amended(self, draft: _Draft) -> bytes:
        """The body as it goes to the server; what is recorded is what the client sent."""
        body = bytes(draft.request_body)
        if draft.method != "POST" or not (self._defaults or self._names):
            return body
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return body
        if not isinstance(asked, dict):
            return body
        changed = {**self._defaults, **asked}
        if asked.get("max_completion_tokens") is not None:  # another name for the same
            changed.pop("max_tokens", None)
        if isinstance(asked.get("model"), str):
            changed["model"] = self._names.get(asked["model"], asked["model"])
        return body if changed == asked else json.dumps(changed).encode()

    async def _pass_on(
        self, answer: aiohttp.ClientResponse, request: web.BaseRequest, draft: _Draft
    ) -> web.StreamResponse:
        draft.status, draft.content_type = answer.status, answer.content_type
        headers = _end_to_end(answer.headers)
        if answer.content_length is not None:
            headers["Content-Length"] = str(answer.content_length)
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        await response.prepare(request)  # sends the headers: the first token may be seconds away
        while True:
            try:
                piece = await answer.content.readany()
            except (aiohttp.ClientError, ConnectionError) as error:
                draft.fail("server_broke", f"the model server broke off its answer: {error!r}")
                if request.transport is not None:
                    request.transport.close()  # so that the client, too, sees an answer that is not whole
                return response
            if not piece:
                await response.write_eof()
                return response
            if draft.first_byte_s is None:
                draft.first_byte_s = self._now()
            self._keep(draft, draft.response_body, piece)
            await response.write(piece)

    def _keep(self, draft: _Draft, body: bytearray, piece: bytes) -> bool:
        """Whether there was room for all of it."""
        room = min(self._limits.body_bytes - len(body), self._bytes_left)
        kept = piece[:room]
        body += kept
        self._bytes_left -= len(kept)
        draft.truncated |= len(kept) < len(piece)
        return len(kept) == len(piece)

    def _now(self) -> float:
        return time.monotonic() - self._began_at


@dataclass
class _Draft:
    """An exchange while it goes on. Written by the proxy's thread only."""

    number: int
    method: str
    path: str
    request_headers: dict[str, str]
    began_s: float
    request_body: bytearray = field(default_factory=bytearray)
    status: int | None = None
    content_type: str = ""
    response_body: bytearray = field(default_factory=bytearray)
    by_proxy: bool = False
    first_byte_s: float | None = None
    ended_s: float | None = None
    error: str | None = None
    error_kind: str | None = None
    truncated: bool = False

    @property
    def streamed(self) -> bool:
        return self.content_type == "text/event-stream"

    @property
    def said_all(self) -> bool:
        """Whether a stream has told its end, after which some clients hang up without waiting for that of HTTP."""
        return self.streamed and self.response_body.rstrip().endswith(b"data: [DONE]")

    def fail(self, kind: str, error: str) -> None:
        """The first trouble is the cause of those that follow."""
        if self.error_kind is None:
            self.error_kind, self.error = kind, error

    def exchange(self) -> Exchange:
        bodies = {"request_body": bytes(self.request_body), "response_body": bytes(self.response_body)}
        return Exchange(**(vars(self) | bodies), streamed=self.streamed)


class _Ended(Exception):
    """An exchange that the proxy answers by itself."""

    def __init__(self, kind: str, status: int, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.status = status


class _Connection(web.RequestHandler):
    """A client's connection, which aiohttp serves; here its end and its bad requests are noticed."""

    def __init__(
        self, proxy: RecordingProxy, server: web.Server, *, loop: asyncio.AbstractEventLoop, idle_s: float
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=idle_s,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp turns it off
            logger=_SILENT,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
            lingering_time=_LINGER_S,
            auto_decompress=False,
        )
        self._proxy = proxy
        self._wire: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = transport
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._proxy.left(self)
        super().connection_lost(exc)

    def abort(self) -> None:
        """Hang up, whatever is not sent yet."""
        if isinstance(self._wire, asyncio.WriteTransport):
            self._wire.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status == 400:
            self._proxy.not_http(" ".join((message or str(exc)).split())[:200])
        return super().handle_error(request, status, exc, message)


class _Refusal(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(_TOO_MANY)
        transport.close()


_SILENT = logging.Logger("lab3.grading.proxy")  # on its own: what a client does wrong is recorded and no news
_SILENT.addHandler(logging.NullHandler())


async def _settle() -> None:
    """Let the event loop finish what has begun: to accept a connection takes it three rounds, to end one two."""
    for _ in range(5):
        await asyncio.sleep(0)


def _server_url(upstream: str) -> str:
    try:
        url = URL(upstream)
        usable = url.scheme == "http" and bool(url.host) and url.path in ("", "/") and not url.query_string
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            f"{upstream!r} is not the address of a model server.", todo="write it like http://127.0.0.1:23333"
        )
    return str(url.origin())


def _check_target(request: web.BaseRequest) -> None:
    """By the letters as they came: what is no path as it stands in the list might mean another one to the server."""
    path = request.raw_path.partition("?")[0]
    if request.method == "CONNECT" or not path.startswith("/"):
        raise _Ended("refused_target", 400, "only paths of the model server can be asked for")
    if path not in PATHS:
        raise _Ended("refused_path", 404, f"there is no {path[:100]} here; there are: {', '.join(sorted(PATHS))}")
    if request.method not in METHODS:
        raise _Ended("refused_method", 405, f"{request.method[:20]} is not one of {', '.join(sorted(METHODS))}")


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers that are not about one connection only."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    dropped = _OF_THIS_HOP | named
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


def _answer(status: int, text: str) -> web.Response:
    """In the form in which the OpenAI API tells errors."""
    response = web.json_response({"error": {"message": text, "type": "lab3_proxy", "code": status}}, status=status)
    response.force_close()
    return response
