"""What the doors of a sandbox take: ports, addresses and names that must lead to this machine inside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from lab3.errors import UsageError
from lab3.grading.sandbox_types import Door

MOST_PORTS = 16
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,250}[A-Za-z0-9_])?")
_FIRST_FREE_PORT = 1024


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`addresses` and `names` are those beyond the loopback's own."""

    ports: dict[int, Path]  # to the socket outside
    addresses: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What lab3's part inside needs to open the doors."""
        needed = ["CAP_NET_ADMIN"] if self.addresses else []
        needed += ["CAP_NET_BIND_SERVICE"] if any(port < _FIRST_FREE_PORT for port in self.ports) else []
        return ("CAP_SETPCAP", *needed) if needed else ()  # the first one is for giving up the others for good


def layout(doors: Sequence[Door]) -> Layout:
    """Raises UsageError for doors that cannot be."""
    ports: dict[int, Path] = {}
    addresses: list[str] = []
    names: list[str] = []
    for door in doors:
        if not 0 < door.port < 1 << 16:
            raise _bad(door, "a port is a number from 1 to 65535")
        if ports.setdefault(door.port, door.socket) != door.socket:
            raise _bad(door, "another door has the same port, and leads elsewhere")
        try:
            address = ip_address(door.host.strip("[]"))
        except ValueError:
            if not _NAME.fullmatch(door.host):
                raise _bad(door, "the host is neither a name nor an address") from None
            names.append(door.host)
            continue
        if isinstance(address, IPv4Address) and not (address.is_multicast or int(address) == 0xFFFFFFFF):
            addresses += [] if address.is_loopback or address.is_unspecified else [str(address)]
        elif not (address.is_loopback or address.is_unspecified):
            raise _bad(door, "of IPv6 only ::1 can lead into a sandbox")
    if len(ports) > MOST_PORTS:
        raise UsageError(f"{len(ports)} ports are more than a sandbox has: {MOST_PORTS}")
    names = [name for name in names if name.lower() not in ("localhost", "sandbox")]
    return Layout(ports=ports, addresses=tuple(dict.fromkeys(addresses)), names=tuple(dict.fromkeys(names)))


def _bad(door: Door, why: str) -> UsageError:
    return UsageError(
        f"There can be no door at {door.host!r}, port {door.port}.",
        why=why,
        todo="name the model server as http://localhost:23333/v1 does",
    )
