"""TCP ports of this machine: reserve one for a server, say who holds one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lab3.errors import InfraError, UsageError


@dataclass(frozen=True)
class Holder:
    """The process that listens on a port; `pid` is None when it belongs to another user and the system does not say."""

    port: int
    pid: int | None
    command: str

    def __str__(self) -> str:
        return "a process of another user" if self.pid is None else f"process {self.pid} ({self.command})"


def reserve(host: str, port: int | None = None) -> socket.socket:
    """A socket bound to `port` (None: a free one) that does not listen: keep it open until the server is stopped.

    While it is open the kernel gives the port to nobody who asks for "any free port", yet a server that sets
    SO_REUSEADDR, as asyncio and uvicorn do, can listen on it: two servers that start at once never get the same port.
    Raises UsageError for a port or host that cannot be bound at all, InfraError, naming the holder, for one in use.
    """
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"{port} is not a TCP port", todo="give a port from 1 to 65535, or none for a free one")
    return _bound(host, port or 0)


def holder(port: int) -> Holder | None:
    """Who listens on `port` of this machine, or None."""
    import psutil

    try:
        found = [c.pid for c in psutil.net_connections(kind="tcp") if _listens(c, port)]
    except psutil.Error:  # macOS shows connections only to root
        return None
    if not found:
        return None
    pid = next((pid for pid in found if pid is not None), None)
    return Holder(port=port, pid=pid, command="" if pid is None else _command(pid))


def listens(pids: Iterable[int], port: int) -> bool:
    """Whether one of these processes listens on `port`."""
    import psutil

    for pid in pids:
        try:
            if any(_listens(c, port) for c in psutil.Process(pid).net_connections(kind="tcp")):
                return True
        except psutil.Error:  # gone meanwhile, or not ours to look into
            continue
    return False


def taken(host: str, port: int) -> InfraError:
    """The error that says who is in the way on `host:port`, and what to type."""
    who = holder(port)
    stop = "stop it" if who is None or who.pid is None else f"stop it (`kill {who.pid}`)"
    return InfraError(
        f"port {port} on {host} is taken",
        why=f"{who or 'another process'} listens there",
        todo=f"{stop}, or choose another port; `--port 0` takes a free one",
        kind="address_in_use",
    )


def bracketed(host: str) -> str:
    """`host` as it stands in a URL: an IPv6 address goes in brackets."""
    return f"[{host}]" if ":" in host else host


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise _refusal(error, host, port) from error
    return sock


def _refusal(error: OSError, host: str, port: int) -> UsageError | InfraError:
    if error.errno == errno.EADDRINUSE:
        return taken(host, port)
    if error.errno == errno.EACCES:
        return UsageError(f"port {port} needs root's rights", todo="choose a port above 1023")
    return UsageError(
        f"cannot listen on {host}:{port}: {error}", todo="use an address of this machine, such as 127.0.0.1"
    )


def _listens(connection: Any, port: int) -> bool:
    return bool(connection.status == "LISTEN" and connection.laddr and connection.laddr.port == port)


def _command(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        return " ".join(process.cmdline())[:120] or process.name()
    except psutil.Error:
        return "gone meanwhile"
