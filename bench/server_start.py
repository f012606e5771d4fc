"""What lab3 adds to a server's start: `lmdeploy serve api_server` alone and through lab3, in turn, to the first token.

    python -m bench.server_start [--model embedded] [--engine auto] [--kv-bits 4] [--rounds 7] [--json] [--logs DIR]
                                 [--also NAME 'VARIABLE=VALUE --flag VALUE']...

Both get the same flags. The clock runs from before a process is made until the first token of a streamed answer has
come: LMDeploy's own process, or a Python that has yet to import lab3, find the model and make an `ApiServer`. A first
round is not counted; who begins changes from round to round. `--also` adds a start through lab3 with other environment
variables and flags. TurboMind serves the embedded model's narrow heads with `--kv-bits 8` or 16 only.

Two answers. The paired differences hold all that lab3 changes, and the noise of two whole starts. lab3's own steps,
timed in the same starts, have little noise: until the server's process is there, and from when it is ready until lab3
says so. LMDeploy's time in between is not theirs, whatever lab3 does to it; what lab3 computes meanwhile is told, too.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a start through lab3 is to import it in its own time
    from lab3.serve import ApiServer

_READY_S = 600.0
_POLL_S = 0.002
_STOP_S = 30.0
_ENOUGH = 0.95
_CHILD = "import sys; from bench.server_start import start_through_lab3; start_through_lab3(sys.argv[1])"
_STAMP = ': > "$0"; exec "$@"'  # a shell notes the time at which it becomes the server
LMDEPLOY, LAB3 = "lmdeploy", "lab3"


@dataclass(frozen=True)
class Start:
    """Seconds to the first token, of the server's own part of it, and of the steps around that; the memory after it.

    `watching_s` are CPU seconds that lab3 took while the server was loading.
    """

    seconds: float
    server_s: float
    steps: dict[str, float]
    watching_s: float
    memory_mib: int

    @property
    def own_s(self) -> float:
        """Until the server's process is there, and from when it is ready until that is noticed."""
        return sum(self.steps.values())


class Span(NamedTuple):
    """When a call began, how long it took, and what this process computed meanwhile."""

    began: float
    seconds: float
    cpu_s: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="(%(default)s)")
    parser.add_argument("--engine", choices=("auto", "turbomind", "pytorch", "cpu"), default="auto")
    parser.add_argument("--kv-bits", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--cache-ratio", type=float, default=0.4, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="counted, after one that is not (%(default)s)")
    parser.add_argument("--logs", type=Path, help="folder that keeps the servers' logs")
    parser.add_argument("--also", nargs=2, action="append", default=[], metavar=("NAME", "CHANGES"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds: at least one")
    changes: dict[str, tuple[dict[str, str], list[str]]] = {LMDEPLOY: ({}, []), LAB3: ({}, [])}
    changes |= {name: _changes(text) for name, text in options.also}
    figures = measure(options, changes)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        _print(figures)
    return 0


def measure(options: argparse.Namespace, changes: dict[str, tuple[dict[str, str], list[str]]]) -> dict[str, Any]:
    """The figures of all starts, with the other environment variables and flags of each."""
    from lab3.models import resolve
    from lab3.serve_flags import check_gpu

    check_gpu(options.engine)
    model = resolve(options.model)  # made now, if it has to be
    starts: dict[str, list[Start]] = {name: [] for name in changes}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(options.rounds + 1):
            for name in list(changes) if turn % 2 else reversed(changes):
                env, flags = changes[name]
                asked = {"kv_bits": options.kv_bits, "cache_ratio": options.cache_ratio, "engine": options.engine}
                asked |= {"env": env, "extra_args": flags}
                log = (options.logs / f"{name}.{turn}.log").absolute() if options.logs else None
                engine, start = _timed_start(name, model, options.model, asked, log, Path(scratch) / f"{name}.{turn}")
                if turn:
                    starts[name].append(start)
                told = f"{start.seconds:.2f} s, of which {start.own_s:.3f} around the server's own"
                print(f"{turn or 'not counted'}: {name} {told}", file=sys.stderr, flush=True)
    return {"model": model.name, "engine": engine, "kv_bits": options.kv_bits, **compared(starts)}


def compared(starts: dict[str, list[Start]]) -> dict[str, Any]:
    """Medians, and what the others add to LMDeploy's own start, round by round."""
    seconds = {name: [each.seconds for each in made] for name, made in starts.items()}
    others = [name for name in starts if name != LMDEPLOY]
    return {
        "seconds": {name: [round(each, 2) for each in times] for name, times in seconds.items()},
        "median_s": {name: round(statistics.median(times), 3) for name, times in seconds.items()},
        "adds_s": {
            name: spread([one - alone for one, alone in zip(seconds[name], seconds[LMDEPLOY], strict=True)])
            for name in others
        },
        "ratio": {
            name: round(statistics.median(seconds[name]) / statistics.median(seconds[LMDEPLOY]), 3) for name in others
        },
        "own_s": {name: spread([each.own_s for each in made]) for name, made in starts.items()},
        "steps_s": {
            name: {step: round(statistics.median(each.steps[step] for each in made), 4) for step in made[0].steps}
            for name, made in starts.items()
        },
        "server_s": {name: spread([each.server_s for each in made]) for name, made in starts.items()},
        "watching_cpu_s": {
            name: round(statistics.median(each.watching_s for each in starts[name]), 3) for name in others
        },
        "memory_mib": {name: made[-1].memory_mib for name, made in starts.items()},
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, and an interval that holds the true median by the sign test, with how surely it does.

    The narrowest between two order statistics that does so with 95%; with fewer than six values, the widest.
    """
    ordered, n = sorted(values), len(values)

    def sure(rank: int) -> float:
        return 1 - sum(math.comb(n, fewer) for fewer in range(rank)) * 0.5 ** (n - 1)

    rank = max((each for each in range(1, n // 2 + 1) if sure(each) >= _ENOUGH), default=1)
    low, high = ordered[rank - 1], ordered[n - rank]
    found = {"median": statistics.median(values), "min": ordered[0], "max": ordered[-1], "low": low, "high": high}
    return {name: round(value, 4) for name, value in found.items()} | {"sure": round(sure(rank), 3)}


def _print(figures: dict[str, Any]) -> None:
    print(f"{figures['model']}, {figures['engine']}, KV cache {figures['kv_bits']} bits, seconds")
    for name, median in figures["median_s"].items():
        ratio = f"{figures['ratio'][name]:>8.3f} times" if name in figures["ratio"] else ""
        print(f"{name:<14}{median:>9.2f}{ratio}   {figures['seconds'][name]}, {figures['memory_mib'][name]} MiB")
    for name, adds in figures["adds_s"].items():
        print(f"{name} adds, by paired differences: {_words(adds)}")
        print(f"{name}'s own steps: {_words(figures['own_s'][name])}")
        for step, median in figures["steps_s"][name].items():
            print(f"    {step:<34}{median:>9.4f}")
        print(f"    (CPU seconds while the server loads {figures['watching_cpu_s'][name]:>8.3f})")
    for name, own in figures["server_s"].items():
        print(f"the server's own part, {name}: {_words(own)}")


def _words(told: dict[str, Any]) -> str:
    interval = f"{told['low']:.3f} to {told['high']:.3f} with {told['sure']:.1%}"
    return f"median {told['median']:.3f}, {told['min']:.3f} to {told['max']:.3f}; {interval}"


def _changes(text: str) -> tuple[dict[str, str], list[str]]:
    words = shlex.split(text)
    variables = [word for word in words if "=" in word and not word.startswith("-")]
    return dict(word.split("=", 1) for word in variables), [word for word in words if word not in variables]


# --- a start ---------------------------------------------------------------------------------------------------------


def _timed_start(
    name: str, model: Path, asked_model: str, asked: dict[str, Any], log: Path | None, stamp: Path
) -> tuple[str, Start]:
    """The engine, and the start; what it held of the GPU is free again."""
    from lab3 import vram
    from lab3.errors import InfraError
    from lab3.serve import ApiServer
    from lab3.serve_flags import launcher_of

    server = ApiServer(model, **asked)  # for its port and its command
    server.stop()
    shell = ["sh", "-c", _STAMP, str(stamp)]
    asked = asked | {"port": server.port, "launcher": [*shell, *launcher_of(server.engine)]}
    before = None if server.engine == "cpu" else vram.read(device="cuda")
    if name == LMDEPLOY:
        start = _alone([*shell, *server.command], server, log, stamp)
    else:
        start = _through_lab3(asked | {"log_path": log and str(log)}, asked_model, server, stamp)
    if before is not None:
        with suppress(InfraError):  # held by another
            vram.wait_freed(before)
    return server.engine, start


def _alone(command: Sequence[str], server: ApiServer, log: Path | None, stamp: Path) -> Start:
    """As a shell script would start it and wait for it, but that looks more often."""
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with (log or Path(os.devnull)).open("wb") as out:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        ready = _wait_ready(process, server.port)
        _first_token(server.port, server.model_name)
        ended = time.monotonic()
        there = _stamped(stamp)
        return Start(ended - began, ready - there, {"process": there - began}, 0.0, _memory(server, process.pid))
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        process.wait()


def _through_lab3(asked: dict[str, Any], model: str, server: ApiServer, stamp: Path) -> Start:
    told = json.dumps({"model": model, "asked": asked})
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:  # which stops its server when its stdin is closed, at the end of this block
        ready = _wait_ready(process, server.port)
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            raise RuntimeError(f"lab3 did not start a server: exit code {process.wait()}")
        _first_token(server.port, server.model_name)
        ended = time.monotonic()
        memory = _memory(server, (answer := json.loads(line))["pid"])
    there, clock = _stamped(stamp), answer["clock"]
    steps = {"python": clock["python"] - began}
    steps |= answer["steps"]
    steps["log, port, bytecode"] = clock["guard"] - began - sum(steps.values())
    steps["guard, until the server's process"] = there - clock["guard"]
    steps["noticed that it is ready"] = clock["noticed"] - ready
    return Start(ended - began, ready - there, steps, answer["watching_s"], memory)


def start_through_lab3(told: str) -> None:
    """In a Python of its own: what `lab3 serve` does, with its steps timed, until stdin is closed."""
    clock = {"python": time.monotonic()}
    from lab3 import models, serve, serve_process

    imported = time.monotonic()
    spans: dict[str, Span] = {}
    for owner, name in (
        (serve, "engine_for"),
        (serve.ApiServer, "_read_vram"),
        (serve_process.ServerProcess, "start"),
    ):
        _keep_span(owner, name, spans)
    given = json.loads(told)
    model = models.resolve(given["model"])
    resolved = time.monotonic()
    log = given["asked"].pop("log_path")
    server = serve.ApiServer(model, log_path=log and Path(log), **given["asked"])
    made = time.monotonic()
    with server:
        clock |= {"noticed": time.monotonic(), "guard": spans["start"].began}
        took = {name: span.seconds for name, span in spans.items()}
        steps = {
            "import of lab3": imported - clock["python"],
            "the model's folder": resolved - imported,
            "which engine (NVML)": took["engine_for"],
            "the rest of ApiServer()": made - resolved - took["engine_for"],
            "memory of the GPU (NVML)": took["_read_vram"],
        }
        answer = {"pid": server.pid, "clock": clock, "steps": steps, "watching_s": spans["start"].cpu_s}
        print(json.dumps(answer), flush=True)
        sys.stdin.read()


def _keep_span(owner: Any, name: str, spans: dict[str, Span]) -> None:
    function = getattr(owner, name)

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began, computed = time.monotonic(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spans[name] = Span(began, time.monotonic() - began, time.process_time() - computed)

    setattr(owner, name, timed)


# --- what is seen of a server ----------------------------------------------------------------------------------------


def _wait_ready(process: subprocess.Popen[Any], port: int) -> float:
    """When it answered that it is."""
    began = time.monotonic()
    while not _healthy(port):
        if process.poll() is not None or time.monotonic() - began > _READY_S:
            raise RuntimeError(f"{process.args!r}: exit code {process.poll()}")
        time.sleep(_POLL_S)
    return time.monotonic()


def _healthy(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _first_token(port: int, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "stream": True}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.read(2000)!r}")
        next(line for line in answer if line.startswith(b"data: "))


def _stamped(stamp: Path) -> float:
    """When the file was made, by the clock of `time.monotonic`; a file's time lags by up to a tick (4 ms)."""
    return time.monotonic() - (time.time() - stamp.stat().st_mtime)


def _memory(server: ApiServer, pid: int | None) -> int:
    """MiB of the GPU, or of the process tree without one."""
    from lab3 import vram

    return vram.read(device="cuda").used_mib if server.engine != "cpu" else vram.read(pid, device="cpu").used_mib


if __name__ == "__main__":
    sys.exit(main())
