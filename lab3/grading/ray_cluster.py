"""The connection to a Ray cluster, or a cluster on this machine alone, and nothing left of either afterwards.

Ray is imported here when a cluster is asked for, and nowhere else: it is heavy.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lab3.errors import InfraError, UsageError

LOCAL = "local"
_CLIENT = "ray://"
_CONNECT_S = 5.0  # Ray itself tries for minutes to reach where nobody listens
_OBJECTS_BYTES = 100 << 20  # results are all that travels
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_ONLY_HERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # without it Ray listens on all addresses, whatever it is told
_TODO = (
    "start one with `ray start --head` and `ray start --address=…` at the other nodes, and pass its HOST:PORT; "
    "`--ray local` uses this machine's GPUs alone"
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an actor can be: a GPU of a node, or a node that is used without any."""

    node: str  # Ray's id
    label: str  # unique in the cluster, and fit for a folder's name
    gpu: bool


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at `address` ("auto", "local", HOST:PORT, ray://HOST:PORT) while the block runs.

    A local cluster listens on 127.0.0.1, asks for a key that nobody else has, and ends with the block.
    Raises UsageError for an address that is none, InfraError if there is no cluster.
    """
    _check_address(address)
    with ExitStack() as held:
        key = {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if address == LOCAL else {}
        held.enter_context(_environment(_QUIET | key))
        held.enter_context(_signals())
        options: dict[str, Any] = {}
        if address == LOCAL:
            held.enter_context(only_here())
            folder = tempfile.mkdtemp(prefix="lab3-ray-", dir="/tmp")  # its sockets' paths have at most 107 bytes
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            options = {
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
                "include_dashboard": False,
                "object_store_memory": _OBJECTS_BYTES,
            }
        import ray

        logger = logging.getLogger("ray")
        held.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        held.callback(ray.shutdown)
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
                **options,
            )
        except (Exception, SystemExit) as error:  # Ray's, Python's and even the interpreter's end
            raise InfraError(
                f"No Ray cluster could be reached at {address}: {str(error).strip() or type(error).__name__}",
                why=(
                    "ray:// needs the Python package grpcio"
                    if isinstance(error, ImportError)
                    else "none runs there, its Ray is another version, or it asks for a key"
                ),
                todo=_TODO,
            ) from error
        yield ray


def places(ray: Any, *, gpus: bool) -> list[Place]:
    """Every GPU of the cluster; without `gpus`, or where there is none, every node."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    found = [
        Place(node=node["NodeID"], label=f"{node['NodeName']}-{node['NodeID'][:6]}-gpu{number}", gpu=True)
        for node in nodes
        for number in range(int(node["Resources"].get("GPU", 0)))
        if gpus
    ]
    return found or [
        Place(node=node["NodeID"], label=f"{node['NodeName']}-{node['NodeID'][:6]}", gpu=False)
        for node in nodes
        if node["Resources"].get("CPU", 0) >= 1
    ]


@contextmanager
def only_here() -> Iterator[None]:
    """What Ray starts in the block listens on 127.0.0.1 and no other address."""
    with _environment({_ONLY_HERE: "0"}):
        from ray._private import ray_constants

        before = ray_constants.ENABLE_RAY_CLUSTER  # read from the environment when Ray was imported, maybe before
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


def _check_address(address: str) -> None:
    """Ask the door before Ray does."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    if address in ("auto", LOCAL):
        return
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(
            f"{address!r} is no address of a Ray cluster", todo="pass auto, local, HOST:PORT or ray://HOST:PORT"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise InfraError(
            f"No Ray cluster could be reached at {address}: {error}",
            why="none runs there, or a firewall is in between",
            todo=_TODO,
        ) from error


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """The settings, where the user made none; Ray sets some by itself, which go, too."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    os.environ.update({**settings, **before})
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself and keeps it."""
    mine = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
