"""LMDeploy on the CPU device beside transformers: the embedded model in fp32, fp16 and W4A16, all in one run.

    python -m bench.cpu_engine [--rounds N] [--json]

Tokens per second of one greedy request of 128 tokens, of a prompt of some 512 tokens until its first token, and of
eight requests at once, by the three servers and (but for the eight) by transformers' `generate` in fp32 with its KV
cache. All are up at once and asked in turn, each round in another order. Medians of the rounds, and medians of the
rounds' ratios: to transformers (asked: 3 and 1), of eight at once to one (asked: 3), of W4A16 to fp32 (asked: 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

TOKENS = 128  # each time, whatever the model would like to say
QUESTION = "Tell me a long story about a fox."
PROMPT = "The fox ran over the hill. " * 68  # some 512 tokens; a number goes before it, so that none is in a cache
TRANSFORMERS, FP32, FP16, W4A16 = "transformers fp32", "LMDeploy fp32, KV 16", "LMDeploy fp16, KV 16", "LMDeploy W4A16"


@dataclass(frozen=True)
class Engine:
    """What is asked: each function takes the round's number and gives tokens per second."""

    one: Callable[[int], float]
    prompt: Callable[[int], float]
    eight: Callable[[int], float] | None = None

    def rates(self, number: int) -> dict[str, float]:
        """All that it does, once."""
        found = {"one": self.one(number), "prompt": self.prompt(number)}
        return found | ({"eight": self.eight(number)} if self.eight else {})


def server_engine(base_url: str, model: str) -> Engine:
    """A server, as seen by who asks it."""
    from openai import OpenAI

    from lab3.chat import chat

    client = OpenAI(base_url=base_url, api_key="none")

    def ask(text: str) -> int:
        reply = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": text}],
            max_tokens=TOKENS,
            temperature=0.0,
            extra_body={"ignore_eos": True},
        )
        return reply.usage.completion_tokens if reply.usage else 0

    def rate(number: int, at_once: int) -> float:
        texts = [f"{QUESTION} Number {number}.{each}." for each in range(at_once)]
        started = time.perf_counter()
        with ThreadPoolExecutor(at_once) as threads:
            tokens = sum(threads.map(ask, texts))
        return tokens / (time.perf_counter() - started)

    def prompt(number: int) -> float:
        reply = chat(f"{number} {PROMPT}", base_url=base_url, max_tokens=1, temperature=0.0)
        return (reply.usage.prompt_tokens if reply.usage else 0) / (reply.ttft_s or reply.seconds)

    return Engine(one=lambda number: rate(number, 1), prompt=prompt, eight=lambda number: rate(number, 8))


def transformers_engine(folder: Path) -> Engine:
    """transformers' generate in this process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def rate(text: str, tokens: int) -> tuple[int, float]:
        messages = [{"role": "user", "content": text}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return int(inputs["input_ids"].shape[1]), time.perf_counter() - started

    def prompt(number: int) -> float:
        read, seconds = rate(f"{number} {PROMPT}", 1)
        return read / seconds

    return Engine(one=lambda number: TOKENS / rate(f"{QUESTION} Number {number}.", TOKENS)[1], prompt=prompt)


def measure(engines: dict[str, Engine], rounds: int) -> dict[str, list[dict[str, float]]]:
    """The rates of each, round by round; what is done once is not measured."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    names = list(engines)
    for number in range(-1, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            rates = engines[name].rates(number)
            if number >= 0:
                found[name].append(rates)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def ratios(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The medians of the rounds' ratios."""

    def paired(name: str, what: str, base: str, of_base: str) -> float:
        pairs = zip(found[name], found[base], strict=True)
        return statistics.median(one[what] / other[of_base] for one, other in pairs)

    told: dict[str, dict[str, float]] = {}
    for name in found:
        if name == TRANSFORMERS:
            continue
        told[name] = {
            "one to transformers": paired(name, "one", TRANSFORMERS, "one"),
            "prompt to transformers": paired(name, "prompt", TRANSFORMERS, "prompt"),
            "eight to one": paired(name, "eight", name, "one"),
        }
        if name != FP32:
            told[name] |= {f"{what} to LMDeploy's fp32": paired(name, what, FP32, what) for what in found[name][0]}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    from lab3 import vram
    from lab3.models import resolve
    from lab3.quantize import quantize
    from lab3.serve import ApiServer

    model = resolve("embedded")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        quantized = quantize(model, Path(scratch) / "w4a16", quality=False).out
        servers = {
            FP32: ApiServer(model, kv_bits=16, cache_ratio=0.2, extra_args=("--dtype", "float32")),
            FP16: ApiServer(model, kv_bits=16, cache_ratio=0.2),
            W4A16: ApiServer(quantized, kv_bits=4, cache_ratio=0.2),
        }
        engines = {TRANSFORMERS: transformers_engine(model)}
        for name, server in servers.items():
            running.enter_context(server)
            engines[name] = server_engine(server.base_url, server.model_name)
        found = measure(engines, arguments.rounds)
        start = {
            name: {"start_s": server.startup_seconds or 0.0, "memory_mib": vram.read(server.pid, device="cpu").used_mib}
            for name, server in servers.items()
        }
    medians = {
        name: {what: statistics.median(each[what] for each in rates) for what in rates[0]}
        for name, rates in found.items()
    }
    if arguments.json:
        told = {"tokens_per_second": medians, "ratios": ratios(found), "servers": start, "rounds": found}
        print(json.dumps(told, indent=2))
        return
    for name, row in medians.items():
        print(f"{name:<22}", "  ".join(f"{what} {value:.1f}" for what, value in (row | start.get(name, {})).items()))
    for name, row in ratios(found).items():
        print(f"{name:<22}", "  ".join(f"{what} {value:.2f}" for what, value in row.items()))


if __name__ == "__main__":
    main()
