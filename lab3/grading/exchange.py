"""One HTTP request and what became of it, as the recording proxy saw it: facts that nobody has judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

# "client" is the student's script, "server" the model server; None: neither is known to have done it.
Fault = Literal["client", "server"]

# What ended an exchange before its time, and whose doing that was.
FAULTS: dict[str, Fault | None] = {
    "not_http": "client",  # what came was no HTTP request
    "refused_target": "client",  # a URL, a CONNECT or a `*` where a path belongs
    "refused_path": "client",  # not one of the model server's
    "refused_method": "client",
    "too_large": "client",  # the body, or all bodies together
    "too_slow": "client",  # the body did not come in time
    "client_gone": "client",  # it hung up, was ended, or broke off its request
    "server_down": "server",  # no connection to it
    "server_broke": "server",  # it hung up before its answer was whole
    "proxy_failed": None,  # a mistake in lab3
    "unfinished": None,  # the recording ended first, with client and server still there
}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request and its answer. Times are seconds since the recording began, None for what never came.

    `status` is what the client was told, by the server or, `by_proxy`, in its place. A body may be cut: `truncated`
    says that not all of it was kept, `error` that not all of it came. A client that is gone may have waited long
    before: began_s and ended_s tell.
    """

    number: int  # counted from 1, in the order in which requests began
    method: str
    path: str  # with its query, as it came
    request_headers: dict[str, str]  # those that tell something and hold no secret, in lower case
    request_body: bytes
    status: int | None
    content_type: str
    response_body: bytes
    streamed: bool  # the answer was a stream of server-sent events
    by_proxy: bool  # the answer is the proxy's own
    began_s: float
    first_byte_s: float | None  # of the answer's body
    ended_s: float | None
    error: str | None  # in words
    error_kind: str | None  # one of FAULTS
    truncated: bool

    @property
    def fault(self) -> Fault | None:
        """Who broke it off, None if nobody did or nobody knows."""
        return FAULTS[self.error_kind] if self.error_kind else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values: bodies as text, with a replacement for what is no UTF-8."""
        bodies = {name: getattr(self, name).decode("utf-8", "replace") for name in ("request_body", "response_body")}
        return asdict(self) | bodies | {"fault": self.fault}
