"""What the recording proxy adds to a request: the same requests with and without it, in turn, in one run.

    python -m bench.proxy [--rounds 400] [--size 1000] [--json]

Server, proxy and client are processes of their own, as they are when a batch is graded. The client is bare
(http.client, one kept connection each way), so that its own time hides nothing. Two figures: a small JSON answer,
whole; and the first byte of a stream, whose server then waits, so that a proxy that gathered the stream would be found.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from lab3.grading.proxy import ProxyLimits, RecordingProxy

STREAM_PAUSE_S = 0.005
LIMIT_MS = 2.0
PATH = "/v1/chat/completions"


def main() -> int:
    """Measure and print; 1 if the proxy adds more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--size", type=int, default=1000, help="bytes of the JSON answer (%(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(rounds=arguments.rounds, size=arguments.size)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{'':<24}{'direct ms':>12}{'proxy ms':>12}{'more ms':>12}{'ratio':>12}{'p95 more ms':>12}")
        for name, row in found.items():
            cells = [f"{row[key]:>12.3f}" for key in ("direct_ms", "proxy_ms", "more_ms", "ratio", "p95_more_ms")]
            print(f"{name:<24}{''.join(cells)}")
    return int(any(row["more_ms"] >= LIMIT_MS for row in found.values()))


def measure(*, rounds: int, size: int) -> dict[str, dict[str, float]]:
    """For each kind of answer the medians of alternating requests, and the difference of the 95th percentiles."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.sock"
        port, times = spawn.Queue(), spawn.Queue()
        server = spawn.Process(target=serve, args=(port, size), daemon=True)
        server.start()
        upstream = port.get(timeout=60)
        limits = ProxyLimits(requests=4 * rounds + 100)
        with RecordingProxy(f"http://127.0.0.1:{upstream}", socket=path, limits=limits) as proxy:
            client = spawn.Process(target=ask, args=(times, upstream, str(path), rounds), daemon=True)
            client.start()
            found: dict[str, list[list[float]]] = times.get(timeout=600)
            client.join()
        server.terminate()
        server.join()
    broken = [exchange.error for exchange in proxy.exchanges if exchange.error or exchange.status != 200]
    if broken or len(proxy.exchanges) < 2 * rounds:
        raise SystemExit(f"the proxy did not forward all requests: {broken[:3]}")
    return {name: _row(*pair) for name, pair in found.items()}


def _row(direct: list[float], proxied: list[float]) -> dict[str, float]:
    medians = [statistics.median(each) * 1000 for each in (direct, proxied)]
    tails = [statistics.quantiles(each, n=20)[-1] * 1000 for each in (direct, proxied)]
    return {
        "direct_ms": medians[0],
        "proxy_ms": medians[1],
        "more_ms": medians[1] - medians[0],
        "ratio": medians[1] / medians[0],
        "p95_more_ms": tails[1] - tails[0],
    }


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("model")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def ask(times: Any, port: int, path: str, rounds: int) -> None:
    """The client's process: the first tenth warms up and is not counted."""
    direct, proxied = http.client.HTTPConnection("127.0.0.1", port), _UnixConnection(path)
    found: dict[str, list[list[float]]] = {}
    for name, request in (("small JSON answer", whole), ("first byte of a stream", first_byte)):
        pair: list[list[float]] = [[], []]
        for number in range(rounds + rounds // 10):
            for side, connection in enumerate((direct, proxied)):
                seconds = request(connection)
                if number >= rounds // 10:
                    pair[side].append(seconds)
        found[name] = pair
    times.put(found)


def whole(connection: http.client.HTTPConnection) -> float:
    """Seconds until the answer is there."""
    return _timed(connection, stream=False, until=lambda response: response.read())


def first_byte(connection: http.client.HTTPConnection) -> float:
    """Seconds until the stream's first byte."""
    return _timed(connection, stream=True, until=lambda response: response.read(1))


def _timed(
    connection: http.client.HTTPConnection, *, stream: bool, until: Callable[[http.client.HTTPResponse], bytes]
) -> float:
    messages = [{"role": "user", "content": "Compute (3+5)*2"}]
    body = json.dumps({"model": "m", "stream": stream, "messages": messages})
    started = time.perf_counter()
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    until(response)
    seconds = time.perf_counter() - started
    response.read()
    return seconds


def serve(port: Any, size: int) -> None:
    """The server's process, which costs nothing itself, so that the proxy's share is not hidden by a model's."""
    answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": "x" * size}}]}).encode()

    async def handle(request: web.Request) -> web.StreamResponse:
        if not (await request.json())["stream"]:
            return web.Response(body=answer, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(3):
            await response.write(b'data: {"choices": []}\n\n')
            await asyncio.sleep(STREAM_PAUSE_S)
        return response

    app = web.Application()
    app.router.add_post(PATH, handle)
    listener = socket.create_server(("127.0.0.1", 0))
    port.put(listener.getsockname()[1])
    web.run_app(app, sock=listener, print=None, handle_signals=False)


if __name__ == "__main__":
    raise SystemExit(main())
