"""The OpenAI client that lab3 talks to servers with, and what its failures mean to somebody who runs the lab."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lab3.errors import InfraError, Lab3Error, UsageError

if TYPE_CHECKING:
    from openai import OpenAI

SLOW_TODO = "ask for fewer tokens (max_tokens) or wait longer (timeout_s)"
_START_ONE = "start one: `lab3 serve MODEL --port PORT`, and wait until it says that it is serving"
SENT_HEADERS = frozenset(
    {"host", "accept", "accept-encoding", "connection", "content-type", "content-length", "transfer-encoding"}
)


class BrokenAnswer(InfraError):
    """The answer stopped in the middle or cannot be used; `partial_text` is what had come by then."""

    def __init__(self, what: str, *, why: str = "", todo: str = "", partial_text: str = "") -> None:
        super().__init__(what, why=why, todo=todo)
        self.partial_text = partial_text


class MalformedAnswer(BrokenAnswer):
    """The server answered, but not as the OpenAI API does."""


@contextmanager
def open_client(base_url: str, *, api_key: str = "none", timeout_s: float = 120.0) -> Iterator[OpenAI]:
    """An OpenAI client that sends only what it was given: no key, organization or header from the environment.

    No retries, no redirects; proxies of the environment are used for other machines only, never for this one.
    Raises UsageError for an unusable `base_url`; what goes wrong inside the block leaves it as a Lab3Error.
    """
    import openai

    url = api_url(base_url)
    if not (api_key.isascii() and api_key.isprintable()):
        raise UsageError("The API key is no text for an HTTP header.", todo="copy it again, without line ends")

    def scrub(request: Any) -> None:
        for name in [name for name in request.headers if name.lower() not in SENT_HEADERS]:
            del request.headers[name]
        request.headers["authorization"] = f"Bearer {api_key}"
        request.headers["user-agent"] = "lab3"

    timeout = openai.Timeout(timeout_s, connect=min(timeout_s, 10.0))
    with _bounded_client(
        timeout_s,
        trust_env=not is_this_machine(url),
        follow_redirects=False,
        verify=url.startswith("https:"),  # certificates cost 0.1 s to load, and plain http has none
        timeout=timeout,
        event_hooks={"request": [scrub]},
    ) as http_client:
        client = openai.OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=timeout, http_client=http_client)
        try:
            yield client
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            raise explain(error, client, timeout_s=timeout_s) from error


def _bounded_client(timeout_s: float, **options: Any) -> Any:
    """An HTTP client whose answers have `timeout_s` to come whole: by itself it bounds only the wait for each piece."""
    import openai

    httpx = _http_library()

    class Until(httpx.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, stream: Any, end: float) -> None:
            self._stream, self._end = stream, end

        def __iter__(self) -> Iterator[bytes]:
            for piece in self._stream:
                if time.monotonic() > self._end:
                    raise httpx.ReadTimeout(f"the answer was still coming after {timeout_s:g} s")
                yield piece

        def close(self) -> None:
            self._stream.close()

    class Bounded(openai.DefaultHttpxClient):
        def send(self, request: Any, *, stream: bool = False, **how: Any) -> Any:
            end = time.monotonic() + timeout_s
            response: Any = super().send(request, stream=True, **how)
            response.stream = Until(response.stream, end)
            if not stream:
                try:
                    response.read()
                finally:
                    response.close()
            return response

    return Bounded(**options)


def _http_library() -> Any:
    """What openai sends with: httpx, and from openai 3 on httpx2."""
    import importlib

    import openai

    client = next(base for base in openai.DefaultHttpxClient.__mro__ if base.__name__ == "Client")
    return importlib.import_module(client.__module__.partition(".")[0])


def list_models(client: OpenAI) -> tuple[str, ...]:
    """The names that the server lists at `/v1/models`. Raises MalformedAnswer if that is no list of models."""
    listing: Any = client.get("/models", cast_to=object)  # type: ignore[type-var]
    data = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(data, list):
        raise MalformedAnswer(
            f"{client.base_url}models is not a list of models: {excerpt(listing)}",
            why="what listens there is not an OpenAI API server",
            todo=f"check host and port, or {_START_ONE}",
        )
    return tuple(clean(entry["id"]) for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str))


def first_model(client: OpenAI) -> str:
    """The first model the server lists, which is the one it serves. Raises InfraError when it lists none."""
    models = list_models(client)
    if not models:
        raise InfraError(f"The server at {client.base_url} lists no model.", todo=_START_ONE)
    return models[0]


def api_url(base_url: str) -> str:
    """`base_url` ending in `/v1`, whether or not it did. Raises UsageError if it is no http(s) URL."""
    url = base_url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"{base_url!r} is not the URL of a server.", todo="write it like http://127.0.0.1:23333")
    return url if url.endswith("/v1") else f"{url}/v1"


def is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def as_dict(answer: Any) -> dict[str, Any]:
    plain = answer.model_dump(warnings=False) if hasattr(answer, "model_dump") else answer
    if not isinstance(plain, dict):
        raise MalformedAnswer(
            f"The server's answer is not a JSON object: {excerpt(plain)}",
            why="what listens there is not an OpenAI API server, or a proxy answered in its place",
            todo=f"check host and port, or {_START_ONE}",
        )
    return plain


def clean(text: Any) -> str:
    """Text that can be sent and stored: lone surrogates, which no UTF-8 can hold, are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else ""


def excerpt(value: Any, limit: int = 200) -> str:
    try:
        text = clean(value if isinstance(value, str) else repr(value))
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}…"


def explain(error: Exception, client: OpenAI, *, timeout_s: float) -> Lab3Error:
    """What a failure of the OpenAI client means to somebody who runs the lab."""
    import openai

    httpx = _http_library()
    url = str(client.base_url)
    if isinstance(error, Lab3Error):
        return error
    if isinstance(error, openai.APITimeoutError | httpx.ReadTimeout):
        return InfraError(
            f"{url} did not answer within {timeout_s:g} s.",
            why="the server is still loading, is busy, or hangs",
            todo=SLOW_TODO,
            kind="timeout",
        )
    # openai 2 lets httpx's own errors through when a stream breaks in the middle
    if isinstance(error, openai.APIConnectionError | httpx.TransportError):
        cause = error.__cause__
        if type(cause).__name__ == "ConnectError":
            why = excerpt(str(cause))
            return InfraError(f"No server answers at {url}", why=why, todo=_START_ONE, kind="network")
        return InfraError(
            f"{url} broke off the connection.",
            why=excerpt(str(cause or error)),
            todo="see whether the server still runs and what its log says at the end",
            kind="network",
        )
    if isinstance(error, openai.APIStatusError):
        return _explain_status(error, client)
    if isinstance(error, openai.APIError):
        return InfraError(
            f"The server gave up in the middle of the answer: {excerpt(error.message)}",
            todo="look at the end of the server's log",
        )
    if isinstance(error, UnicodeEncodeError):
        return UsageError("The text to send is not valid Unicode.", why=str(error), todo="give it as UTF-8")
    return MalformedAnswer(f"{url} sent something that is not JSON: {excerpt(str(error))}")


def _explain_status(error: Any, client: OpenAI) -> Lab3Error:
    url, status, said = str(client.base_url), error.status_code, excerpt(_server_message(error), 500)
    if status == 404:
        try:
            models = list_models(client)
        except Exception:
            models = ()
        if not models:
            todo = "check host, port and path"
            return UsageError(f"{url} is not an OpenAI API (404).", why=said, todo=todo, kind="not_an_api")
        return UsageError(
            f"The server at {url} does not serve that model.", why=said, todo=f"ask for one of: {', '.join(models)}"
        )
    if status in (401, 403):
        return UsageError(
            f"{url} refused the API key ({status}).",
            why=said,
            todo="give one of the server's --api-keys",
            kind="api_key",
        )
    if 300 <= status < 500:
        return UsageError(f"{url} refused the request ({status}): {said}", todo="change the request as it says")
    return InfraError(f"{url} failed ({status}): {said}", todo="look at the end of the server's log")


def _server_message(error: Any) -> str:
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return body if isinstance(body, str) else str(error.message)
