"""Pictures fetched from the web, for those who allow it: small, quick, of public servers alone."""

from __future__ import annotations

import ipaddress
import socket
import time
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

MOST_HOPS = 4
TIMEOUT_S = 10.0
_ALL_S = 30.0
_CHUNK = 1 << 16


class NotFetched(Exception):
    """Why there is no picture."""


def fetch_picture(url: str, *, most_bytes: int) -> bytes:
    """The bytes behind `url`. Raises NotFetched for anything but a picture of a public server in time."""
    import requests

    address = _direct(f"https:{url}" if url.startswith("//") else url)
    deadline = time.monotonic() + _ALL_S
    with requests.Session() as session:
        session.trust_env = False  # a proxy would hide whom lab3 talks to
        for _ in range(MOST_HOPS):
            _check(address)
            try:
                with session.get(address, stream=True, timeout=TIMEOUT_S, allow_redirects=False) as answer:
                    if answer.is_redirect:
                        address = urljoin(address, answer.headers["location"])
                        continue
                    return _body(answer, most_bytes, deadline)
            except requests.RequestException as error:
                raise NotFetched(type(error).__name__) from error
    raise NotFetched("it leads from address to address")


def _body(answer: Any, most_bytes: int, deadline: float) -> bytes:
    if answer.status_code != 200:
        raise NotFetched(f"the server answers {answer.status_code}")
    kind = answer.headers.get("content-type", "").split(";")[0].strip().lower()
    if not kind.startswith("image/") and kind not in ("application/octet-stream", "binary/octet-stream"):
        raise NotFetched(f"it is {kind[:40] or 'nothing that is named'}, and no picture")
    _check_peer(answer)
    body = bytearray()
    for chunk in answer.iter_content(_CHUNK):
        body += chunk
        if len(body) > most_bytes:
            raise NotFetched(f"it has more than {most_bytes >> 20} MiB")
        if time.monotonic() > deadline:
            raise NotFetched(f"it was not there after {_ALL_S:.0f} s")
    return bytes(body)


def _direct(url: str) -> str:
    """GitHub's page about a file leads to the file."""
    parts = urlsplit(url)
    if parts.hostname in ("github.com", "gitee.com") and "/blob/" in parts.path:
        return urlunsplit(parts._replace(path=parts.path.replace("/blob/", "/raw/", 1), query="", fragment=""))
    return url


def _check(url: str) -> None:
    """Only the web, and no machine of the grader's own network, by whatever name."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise NotFetched("the link is no URL") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise NotFetched("only http and https, without a password")
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise NotFetched("there is no such server") from error
    if not found or not all(_is_public(each) for each in found):
        raise NotFetched("the server is of a private network")


def _check_peer(answer: Any) -> None:
    """A name may have led elsewhere after it was asked for."""
    connection = getattr(answer.raw, "_connection", None)
    sock = getattr(connection, "sock", None)
    if sock is not None and not _is_public(str(sock.getpeername()[0])):
        raise NotFetched("the server is of a private network")


def _is_public(address: str) -> bool:
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return known.is_global and not known.is_multicast
