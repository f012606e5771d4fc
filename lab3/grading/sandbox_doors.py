"""Doors of the sandbox: whoever connects inside to a port of theirs talks to a Unix socket outside.

The listening sockets were opened inside and are served here, so nothing inside can be killed or replaced.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

_CHUNK_BYTES = 1 << 16
_BUSY_S = 0.05


async def serve(listener: socket.socket, *, to: Path, slots: asyncio.Semaphore, trouble: Callable[[str], None]) -> None:
    """Until cancelled; at most as many connections at once as there are `slots`, the others wait.

    `trouble` hears why nobody answered behind the door, which is not the script's fault.
    """
    listener.setblocking(False)
    async with asyncio.TaskGroup() as group:
        while True:
            await slots.acquire()
            client = await _accept(listener)
            task = group.create_task(_relay(client, to=to, trouble=trouble))
            task.add_done_callback(lambda _: slots.release())


async def _accept(listener: socket.socket) -> socket.socket:
    while True:
        try:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:  # it was gone again, or this process has no file left
            await asyncio.sleep(_BUSY_S)
        else:
            return client


async def _relay(client: socket.socket, *, to: Path, trouble: Callable[[str], None]) -> None:
    # Sockets and not asyncio's streams: those have a buffer of their own, which is lost if they are closed too early.
    with client:
        try:
            server = await _connect(to)
        except OSError as error:
            trouble(f"{to}: {error}")
            return
        with server:
            try:
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(_pump(client, server))
                    pumps.create_task(_pump(server, client))
            except* OSError:
                pass  # either side may hang up whenever it likes


async def _connect(to: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.setblocking(False)
        await asyncio.get_running_loop().sock_connect(server, str(to))
    except BaseException:
        server.close()
        raise
    return server


async def _pump(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _CHUNK_BYTES):
        await loop.sock_sendall(sink, data)
    sink.shutdown(socket.SHUT_WR)
