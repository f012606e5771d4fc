"""LMDeploy on the CPU device: tokens per second of the plain and the W4A16 server and of transformers, in one run.

    python bench/cpu_engine.py [--json]

Tokens per second for each: one request, eight at once, a prompt of some 512 tokens until its first token, and the ratio
of one request to transformers (fp32, KV cache).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI

from lab3 import vram
from lab3.chat import chat
from lab3.models import resolve
from lab3.quantize import quantize
from lab3.serve import ApiServer

TOKENS = 128  # each time, whatever the model would like to say
QUESTION = "Tell me a long story about a fox."
PROMPT = "The fox ran over the hill. " * 68  # some 512 tokens; a number goes before it, so that none is in a cache


def served(folder: Path, *, kv_bits: int) -> dict[str, float]:
    """Tokens per second and memory of a server with one and with eight requests."""
    with ApiServer(folder, kv_bits=kv_bits, cache_ratio=0.2) as server:
        client = OpenAI(base_url=server.base_url, api_key="none")
        name = client.models.list().data[0].id

        def ask(number: int) -> int:
            reply = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": f"{QUESTION} Number {number}."}],
                max_tokens=TOKENS,
                temperature=0.0,
                extra_body={"ignore_eos": True},
            )
            return reply.usage.completion_tokens if reply.usage else 0

        def rate(at_once: int) -> float:
            started = time.perf_counter()
            with ThreadPoolExecutor(at_once) as threads:
                tokens = sum(threads.map(ask, range(at_once)))
            return tokens / (time.perf_counter() - started)

        def prefill(number: int) -> float:
            reply = chat(f"{number} {PROMPT}", base_url=server.base_url, max_tokens=1, temperature=0.0)
            return (reply.usage.prompt_tokens if reply.usage else 0) / (reply.ttft_s or reply.seconds)

        for at_once in (1, 8):  # what is done once is not measured
            rate(at_once)
        prompts = statistics.median(prefill(number) for number in range(5))
        memory = vram.read(server.pid, device="cpu").used_mib
        found = {"one": statistics.median(rate(1) for _ in range(3)), "eight": rate(8), "prefill": prompts}
        return found | {"start_s": server.startup_seconds or 0.0, "memory_mib": memory}


def transformers_alone(folder: Path) -> dict[str, float]:
    """Tokens per second of transformers' generate in fp32, and of a prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    messages = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answers, prompts = [], []
        for _ in range(3):
            started = time.perf_counter()
            model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
            answers.append(TOKENS / (time.perf_counter() - started))
        for number in range(5):
            prompt = tokenizer(f"{number} {PROMPT}", return_tensors="pt")
            started = time.perf_counter()
            model.generate(**prompt, max_new_tokens=1, do_sample=False)
            prompts.append(prompt["input_ids"].shape[1] / (time.perf_counter() - started))
    return {"one": statistics.median(answers), "prefill": statistics.median(prompts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = resolve("embedded")
    with tempfile.TemporaryDirectory() as scratch:
        quantized = quantize(model, Path(scratch) / "w4a16", quality=False)
        found = {
            "transformers fp32": transformers_alone(model),
            "LMDeploy fp16, KV 16": served(model, kv_bits=16),
            "LMDeploy W4A16, KV int4": served(quantized.out, kv_bits=4),
        }
    base = found["transformers fp32"]["one"]
    for row in found.values():
        row["ratio"] = row["one"] / base
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, row in found.items():
        print(f"{name:<26}", "  ".join(f"{key} {value:.1f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
