"""What the acceptance suite costs beside the requests themselves: attaching to a running server, and asking.

    python -m bench.suite [--rounds 40] [--tokens 16] [--json]

One real server, asked by bare `requests` and by `lab3.chat` in turn, so both meet the same machine. Attaching is what a
pytest-xdist worker does for each test: through the hub's socket, from another process than the hub's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import requests

from lab3.chat import chat
from lab3.hub import Hub, ServerSpec
from lab3.hub_wire import HubServer, member_of
from lab3.models import resolve
from lab3.quantize_cache import quantize_cached
from lab3.report.text import TerminalProgress

QUESTION = "Name three colours."
ATTACH = """
import json, sys, time
from lab3.hub import ServerSpec
from lab3.hub_wire import Address, remote_member
told = json.loads(sys.argv[1])
spec, seconds = ServerSpec(**told["spec"]), []
with remote_member(Address.from_dict(told["address"])) as member:
    for _ in range(told["rounds"]):
        started = time.perf_counter()
        with member.server(spec):
            pass
        seconds.append(time.perf_counter() - started)
print(json.dumps(seconds))
"""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(rounds=arguments.rounds, tokens=arguments.tokens)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:<28} {value:.6g}")
    return 0


def measure(*, rounds: int, tokens: int) -> dict[str, float]:
    """Medians in seconds, and the ratio of the medians of alternating requests."""
    progress = TerminalProgress()
    model = quantize_cached(resolve("embedded", progress=progress), progress=progress).out
    told = {"model": str(model), "kv_bits": 4, "cache_ratio": 0.2}
    spec = ServerSpec(**told)  # type: ignore[arg-type]
    hub = Hub(progress=progress)
    with HubServer(hub) as door, member_of(hub) as member, member.server(spec) as server:
        asked = json.dumps({"spec": told, "address": door.address.to_dict(), "rounds": rounds})
        done = subprocess.run([sys.executable, "-c", ATTACH, asked], capture_output=True, text=True, check=True)
        attaching = json.loads(done.stdout)
        body = {
            "model": server.model_name,
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0.0,
            "max_tokens": tokens,
        }
        with requests.Session() as session:

            def bare() -> Any:
                return session.post(f"{server.base_url}/chat/completions", json=body, timeout=120).json()

            def ours() -> Any:
                with member.server(spec) as running:
                    return chat(
                        QUESTION,
                        base_url=running.base_url,
                        model=running.model_name,
                        temperature=0.0,
                        max_tokens=tokens,
                    )

            timed: dict[str, list[float]] = {"bare": [], "lab3": []}
            for number in range(rounds + 1):
                for name, ask in (("bare", bare), ("lab3", ours)) if number % 2 else (("lab3", ours), ("bare", bare)):
                    seconds = _timed(ask)
                    if number:  # the first round warms both up
                        timed[name].append(seconds)
    return {
        "attach_first_s": attaching[0],
        "attach_median_s": statistics.median(attaching),
        "bare_median_s": statistics.median(timed["bare"]),
        "lab3_median_s": statistics.median(timed["lab3"]),
        "lab3_over_bare": statistics.median(timed["lab3"]) / statistics.median(timed["bare"]),
    }


def _timed(ask: Callable[[], Any]) -> float:
    started = time.perf_counter()
    ask()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
