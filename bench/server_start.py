"""How long a server takes to its first token: `lmdeploy serve api_server` alone and through lab3, started in turn.

    python -m bench.server_start [--model embedded] [--engine auto] [--kv-bits 4] [--rounds 3] [--logs DIR]
                                 [--also NAME 'VARIABLE=VALUE --flag VALUE']...

Both get the same flags. The clock runs from before the process is made until the first token of a streamed answer has
come. `--also` adds a start through lab3 with other environment variables and flags. What the server holds of the GPU
after its first token is told, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from lab3 import vram
from lab3.models import resolve
from lab3.ports import reserve
from lab3.serve import ApiServer

_READY_S = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="embedded", help="(%(default)s)")
    parser.add_argument("--engine", choices=("auto", "turbomind", "pytorch", "cpu"), default="auto")
    parser.add_argument("--kv-bits", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--cache-ratio", type=float, default=0.4, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--logs", type=Path, help="folder that keeps the servers' logs")
    parser.add_argument("--also", nargs=2, action="append", default=[], metavar=("NAME", "CHANGES"))
    options = parser.parse_args(argv)
    model = resolve(options.model)
    asked = {"kv_bits": options.kv_bits, "cache_ratio": options.cache_ratio, "engine": options.engine}
    starts: dict[str, tuple[dict[str, str], list[str]]] = {"lmdeploy": ({}, []), "lab3": ({}, [])}
    starts |= {name: _changes(text) for name, text in options.also}
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    held: dict[str, int] = {}
    for turn in range(options.rounds):
        for name, (env, flags) in starts.items():
            log = options.logs / f"{name}.{turn}.log" if options.logs else None
            server = ApiServer(model, **asked, env=env, extra_args=flags, log_path=log)
            took, held[name] = _alone(server, log) if name == "lmdeploy" else _through_lab3(server)
            seconds[name].append(took)
            print(f"{name}: {took:.2f} s", file=sys.stderr, flush=True)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    figures: dict[str, Any] = {
        "model": model.name,
        "engine": server.engine,
        "seconds": {name: [round(each, 2) for each in times] for name, times in seconds.items()},
        "median_s": {name: round(each, 2) for name, each in median.items()},
        "lab3_adds_s": round(median["lab3"] - median["lmdeploy"], 2),
        "ratio": {name: round(each / median["lmdeploy"], 3) for name, each in median.items() if name != "lmdeploy"},
        "memory_mib": held,
    }
    print(json.dumps(figures))
    return 0


def _changes(text: str) -> tuple[dict[str, str], list[str]]:
    words = shlex.split(text)
    variables = [word for word in words if "=" in word and not word.startswith("-")]
    return dict(word.split("=", 1) for word in variables), [word for word in words if word not in variables]


def _through_lab3(server: ApiServer) -> tuple[float, int]:
    began = time.monotonic()
    with server:
        _first_token(server.base_url, server.model_name)
        return time.monotonic() - began, _memory(server.pid)


def _alone(server: ApiServer, log: Path | None) -> tuple[float, int]:
    """The same command line, started and waited for as a shell script would."""
    command, url, name = server.command, server.base_url, server.model_name
    server.stop()
    reserve("127.0.0.1", server.port).close()
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (log or Path(os.devnull)).open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        while not _healthy(url.removesuffix("/v1") + "/health"):
            if process.poll() is not None or time.monotonic() - began > _READY_S:
                raise RuntimeError(f"{shlex.join(command)}: exit code {process.poll()}")
            time.sleep(0.05)
        _first_token(url, name)
        return time.monotonic() - began, _memory(process.pid)
    finally:
        process.terminate()
        process.wait()


def _healthy(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


def _first_token(base_url: str, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "stream": True}
    with requests.post(f"{base_url}/chat/completions", json=body, stream=True, timeout=120) as answer:
        answer.raise_for_status()
        next(line for line in answer.iter_lines() if line.startswith(b"data: "))


def _memory(pid: int | None) -> int:
    """MiB of the GPU, or of the process tree without one."""
    return vram.read(device="cuda").used_mib if vram.devices() else vram.read(pid, device="cpu").used_mib


if __name__ == "__main__":
    sys.exit(main())
