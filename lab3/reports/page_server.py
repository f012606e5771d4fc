"""The review of a batch's pages: they are served to this machine alone, and what a person decides is kept at once.

Everybody on the machine can reach a port of it, and any page in the browser can send it requests: so a secret opens
the first page, a cookie the others, and a decision carries the secret in a header, which no other page's script can.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from hmac import compare_digest
from http import HTTPStatus
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from lab3.errors import InfraError, Lab3Error, UsageError
from lab3.grading.page import PAGE
from lab3.reports.batch import graded_names, of_report, write_batch
from lab3.reports.export import LIKENESSES
from lab3.reports.overrides import asked_for, load_overrides, save_override
from lab3.reports.page import report_page
from lab3.reports.page_words import Language
from lab3.reports.store import REPORT, RESULT, load_likenesses, load_report, load_result, plain

_COOKIE = "lab3_review"
_MOST_BODY = 64 << 10  # bytes
_FILES = {"grades.csv": "text/csv", "results.csv": "text/csv", "summary.md": "text/plain", "junit.xml": "text/xml"}


@dataclass
class Desk:
    """A batch under review. Decisions come one at a time, whichever threads they come by."""

    out: Path
    language: Language = "en"
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _changed: set[str] | None = None  # reports that were decided on since all was written; None: nothing was written

    def summary(self) -> str:
        """The batch's page, with all decisions in it."""
        self.write()
        return (self.out / "summary.html").read_text(encoding="utf-8")

    def page(self, name: str) -> str:
        """A report's page. Raises UsageError if there is no such report."""
        folder = self._folder(name)
        graded = load_result(folder / RESULT)
        if graded is None:
            raise UsageError(f"no result of {name}")
        return report_page(
            graded,
            load_report(folder / REPORT),
            folder,
            overrides=load_overrides(folder, name=name),
            likenesses=of_report(load_likenesses(self.out / LIKENESSES), name),
            language=self.language,
            token=self.token,
        )

    def decide(self, name: str, told: Any) -> dict[str, Any]:
        """Keep a decision; what was decided on the report. Raises UsageError for a report or check that is none."""
        check, override = asked_for(told)
        folder = self._folder(name)
        graded = load_result(folder / RESULT, readings=False)
        judged = next((each for each in graded.judged if each.id == check), None) if graded else None
        if judged is None:
            raise UsageError(f"no check {check!r} of {name!r}")
        with self._lock:
            known = save_override(folder, name=name, judged=judged, override=override)
            if self._changed is not None:
                self._changed.add(name)
        return {"overrides": {each: asdict(one) for each, one in known.items()}}

    def write(self) -> None:
        """Write the batch's pages and tables anew, if anything was decided since."""
        with self._lock:
            if self._changed is None or self._changed:
                write_batch(graded_names(self.out), self.out, pages=self._changed, language=self.language)
                self._changed = set()

    def _folder(self, name: str) -> Path:
        if name not in graded_names(self.out):
            raise UsageError(f"no report {name!r}")
        return self.out / name


def review(out: Path, *, port: int = 0, language: Language = "en", said: Callable[[str], None]) -> None:
    """Serve the pages of the results in `out` on 127.0.0.1 until interrupted; `said` hears the address to open.

    Raises UsageError if there are no results, InfraError if the port cannot be had.
    """
    desk = Desk(out, language)
    desk.write()
    with started(desk, port=port) as server:
        said(address(server, desk))
        try:
            server.serve_forever()
        finally:
            desk.write()


def started(desk: Desk, *, port: int = 0) -> ThreadingHTTPServer:
    """The server, bound and not yet serving. Raises InfraError if the port cannot be had."""
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, desk))
    except OSError as error:
        raise InfraError(
            f"cannot listen on 127.0.0.1:{port}: {error}", todo="take another: --port, or 0 for a free one"
        ) from error
    server.daemon_threads = True
    return server


def address(server: ThreadingHTTPServer, desk: Desk) -> str:
    """What to open in a browser."""
    return f"http://127.0.0.1:{_port(server)}/?token={desk.token}"


def _port(server: BaseServer) -> int:
    bound: Any = server.server_address
    return int(bound[1])


class _Handler(BaseHTTPRequestHandler):
    server_version = "lab3"
    sys_version = ""
    timeout = 30

    def __init__(self, desk: Desk, *arguments: Any) -> None:
        self._desk = desk
        super().__init__(*arguments)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if not self._is_meant():
            return
        token = parse_qs(url.query).get("token", [""])[0]
        if url.path == "/" and compare_digest(token.encode(), self._desk.token.encode()):
            return self._enter()
        if not self._has_cookie():
            return self._answer(HTTPStatus.FORBIDDEN, "open the address that lab3 printed", "text/plain")
        parts = [unquote(each) for each in url.path.strip("/").split("/")]
        try:
            self._show(parts)
        except Lab3Error as error:
            self._answer(HTTPStatus.NOT_FOUND, str(error), "text/plain")

    def do_POST(self) -> None:
        if not self._is_meant():
            return
        token = self.headers.get("X-Lab3-Token", "")
        if not (self._has_cookie() and compare_digest(token.encode(), self._desk.token.encode())):
            return self._told({"error": "open the address that lab3 printed"}, HTTPStatus.FORBIDDEN)
        parts = [unquote(each) for each in urlsplit(self.path).path.strip("/").split("/")]
        try:
            if len(parts) != 2 or parts[1] != "override":
                raise UsageError("no such address")
            self._told(self._desk.decide(parts[0], self._body()))
        except (Lab3Error, ValueError, RecursionError) as error:
            self._told({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to lab3's own words."""

    def _show(self, parts: list[str]) -> None:
        match parts:
            case [""] | ["summary.html"]:
                self._answer(HTTPStatus.OK, self._desk.summary())
            case [name, page] if page == PAGE:
                self._answer(HTTPStatus.OK, self._desk.page(name))
            case [name] if name in _FILES:
                self._desk.write()
                self._answer(HTTPStatus.OK, (self._desk.out / name).read_text(encoding="utf-8"), _FILES[name])
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "no such page", "text/plain")

    def _is_meant(self) -> bool:
        """A page that had its name point at this machine sends its own name as the host."""
        port = _port(self.server)
        if self.headers.get("Host", "") in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return True
        self._answer(HTTPStatus.FORBIDDEN, "not this host", "text/plain")
        return False

    def _has_cookie(self) -> bool:
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        return cookie is not None and compare_digest(cookie.value.encode(), self._desk.token.encode())

    def _enter(self) -> None:
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        self.send_header("Set-Cookie", f"{_COOKIE}={self._desk.token}; HttpOnly; SameSite=Strict; Path=/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self) -> Any:
        length = int(self.headers.get("Content-Length", ""))
        if not 0 < length <= _MOST_BODY:
            raise UsageError("the request is too long")
        return json.loads(self.rfile.read(length))

    def _told(self, told: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._answer(status, json.dumps(plain(told)), "application/json")

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/html") -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(content)
