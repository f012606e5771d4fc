"""The reference collector: lab3 does the lab itself, step by step, and writes down what it saw. It judges nothing."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lab3 import funcall, vram
from lab3.chat import ChatResult, chat
from lab3.errors import InfraError
from lab3.evidence import CallFacts, ChatFacts, Evidence, ExpectedCall, QuantizationFacts, ServerFacts, ToolFacts
from lab3.models import ModelConfig, read_config, resolve
from lab3.progress import Progress, silent
from lab3.quantize import QuantizeResult, quantize
from lab3.serve import ApiServer
from lab3.structure import inspect_structure

STEPS = ("model", "baseline", "quantize", "serve", "chat", "tools")
QUESTION = "Please introduce yourself in two sentences."
# The tutorial's question, which takes "one simple add and one simple mul" and both in the right order.
TOOLS = (funcall.add, funcall.mul)
TOOL_QUESTION = "Compute (3+5)*2"
TOOL_CALLS = (ExpectedCall(function="add", numbers=(3.0, 5.0)), ExpectedCall(function="mul", numbers=(8.0, 2.0)))
TOOL_ANSWER = 16.0
BASELINE_RATIO, QUANTIZED_RATIO = 0.8, 0.4
SEED = 0


@dataclass
class _Collection:
    """The evidence as it grows, and where the lab works."""

    evidence: Evidence
    out: Path
    progress: Progress
    servers: dict[str, Any] = field(default_factory=dict)

    def add(self, **sections: Any) -> None:
        self.evidence = replace(self.evidence, **sections)


def run_lab(model: str, out: Path, *, server: dict[str, Any] | None = None, progress: Progress = silent) -> Evidence:
    """Do the whole lab with `model` (a name, path or hub id); the quantized folder and the logs go to `out`.

    `server` are further arguments for both ApiServers (an engine, say). Trouble with the machine ends the lab: what
    was gathered before is returned, with the trouble at the sections that it kept from being filled.

    Raises UsageError for a model that cannot be resolved or quantized.
    """
    out.mkdir(parents=True, exist_ok=True)
    lab = _Collection(
        Evidence(subject="reference", model=model, environment=environment()), out, progress, server or {}
    )
    with _trouble_goes_to(lab, "baseline", "quantization", "structure", "quantized", "chat", "tools"):
        _say(lab, "model", f"{model}: finding the model folder")
        folder = resolve(model, progress=progress)
        config = read_config(folder)
        _say(lab, "baseline", f"serving the unquantized model, cache ratio {BASELINE_RATIO}")
        _collect_baseline(lab, folder)
        _say(lab, "quantize", "W4A16 with LMDeploy's AWQ")
        quantized = out / f"{folder.name}-w4a16"
        made = quantize(folder, quantized, overwrite=True, progress=progress)
        lab.add(quantization=_quantization(made, config))
        progress("comparing the quantized weights with the source's")
        lab.add(structure=inspect_structure(made.out, source=made.source))
        _say(lab, "serve", f"serving the quantized model, int4 KV cache, cache ratio {QUANTIZED_RATIO}")
        _collect_quantized(lab, quantized)
    return lab.evidence


def environment() -> dict[str, str]:
    """Versions and hardware that the figures depend on."""
    found = {"lab3": _version("lab3"), "python": platform.python_version(), "platform": platform.platform()}
    found |= {name: _version(name) for name in ("lmdeploy", "torch", "transformers", "openai", "xgrammar")}
    reading = vram.read()
    return found | {"device": reading.device, "device_mib": str(reading.total_mib)}


@contextmanager
def _trouble_goes_to(lab: _Collection, *sections: str) -> Iterator[None]:
    try:
        yield
    except InfraError as error:
        open_sections = [name for name in sections if not getattr(lab.evidence, name)]
        lab.add(trouble=dict.fromkeys(open_sections, str(error)))
        lab.progress(f"stopped: {error.what}")


def _say(lab: _Collection, step: str, message: str) -> None:
    lab.progress(f"[{STEPS.index(step) + 1}/{len(STEPS)}] {message}")


def _collect_baseline(lab: _Collection, folder: Path) -> None:
    log = lab.out / "baseline.log"
    ratio = BASELINE_RATIO
    with ApiServer(folder, kv_bits=16, cache_ratio=ratio, log_path=log, progress=lab.progress, **lab.servers) as server:
        with _metered(server) as meter:
            chat(QUESTION, base_url=server.base_url, max_tokens=64, temperature=0.0)
        lab.add(baseline=_server(server, meter, kv_bits=16, cache_ratio=ratio))


def _collect_quantized(lab: _Collection, folder: Path) -> None:
    log = lab.out / "quantized.log"
    ratio = QUANTIZED_RATIO
    with ApiServer(folder, kv_bits=4, cache_ratio=ratio, log_path=log, progress=lab.progress, **lab.servers) as server:
        with _metered(server) as meter:
            _say(lab, "chat", QUESTION)
            said = chat(QUESTION, base_url=server.base_url, stream=True, max_tokens=128, temperature=0.0)
            lab.add(chat=_chat(said))
            lab.progress(f"model: {said.text}")
            _say(lab, "tools", TOOL_QUESTION)
            asked = ask_with_tools(server)
            lab.add(tools=(asked,))
            for call in asked.calls:
                lab.progress(f"call: {call.name}({call.arguments_json}) → {call.result}")
            lab.progress(f"model: {asked.answer}")
        lab.add(quantized=_server(server, meter, kv_bits=4, cache_ratio=ratio))


def ask_with_tools(server: ApiServer) -> ToolFacts:
    """The lab's task 2: one question that takes both functions, called by the model's own choice."""
    choice = "auto"
    run = funcall.run_tools(
        TOOL_QUESTION, TOOLS, base_url=server.base_url, tool_choice=choice, temperature=0.0, max_tokens=128, seed=SEED
    )
    return ToolFacts(
        question=TOOL_QUESTION,
        expected=TOOL_CALLS,
        expected_answer=TOOL_ANSWER,
        tool_choice=choice,
        calls=tuple(_call(call) for call in run.calls),
        results_returned=any(message.get("role") in ("tool", "environment") for message in run.messages)
        and len(run.rounds) > 1,
        answer=run.answer,
        outcome=run.outcome,
    )


def _metered(server: ApiServer) -> vram.Meter:
    from lab3.cpu.device import memory_budget

    on_cpu = server.engine == "cpu"
    total = memory_budget() // 2**20 if on_cpu else None
    return vram.Meter(server.pid, device="cpu" if on_cpu else "cuda", cpu_total_mib=total)


def _server(server: ApiServer, meter: vram.Meter, *, kv_bits: int, cache_ratio: float) -> ServerFacts:
    return ServerFacts(
        command=server.shell_command,
        engine=server.engine,
        kv_bits=kv_bits,
        cache_ratio=cache_ratio,
        startup_seconds=round(server.startup_seconds or 0.0, 1),
        used_mib=meter.peak.used_mib,
        total_mib=meter.peak.total_mib,
        memory_method=meter.peak.method,
        kv_tokens=kv_tokens(server.base_url),
    )


def kv_tokens(base_url: str) -> int | None:
    """Tokens that the server's KV cache holds, from its own /distserve/engine_info; None if it does not tell.

    LMDeploy's PyTorch engine tells blocks and tokens in a block; TurboMind leaves the blocks out.
    """
    import requests

    try:
        told = requests.get(base_url.removesuffix("/v1") + "/distserve/engine_info", timeout=10).json()
        info = json.loads(told) if isinstance(told, str) else told  # LMDeploy sends JSON within JSON
        return int(info["num_gpu_blocks"]) * int(info["block_size"]) or None
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return None


def _quantization(result: QuantizeResult, config: ModelConfig) -> QuantizationFacts:
    told = read_config(result.out).quantization or {}
    return QuantizationFacts(
        method=told.get("quant_method"),
        bits=told.get("bits"),
        group_size=told.get("group_size"),
        weight_bytes_before=result.weight_bytes_before,
        weight_bytes_after=result.weight_bytes_after,
        predicted_weight_bytes=result.predicted_weight_bytes,
        folder_bytes_before=result.folder_bytes_before,
        folder_bytes_after=result.folder_bytes_after,
        perplexity_before=result.perplexity_before,
        perplexity_after=result.perplexity_after,
        perplexity_kv_int4=result.perplexity_kv_int4,
        kv_int4_key_errors=result.kv_int4_key_errors,
        kv_bytes_per_token={str(bits): kv_bytes_per_token(config, bits) for bits in (16, 8, 4)},
        seconds=round(result.seconds, 1),
        notices=result.notices,
    )


def kv_bytes_per_token(config: ModelConfig, bits: int) -> int:
    """Bytes that one token takes in LMDeploy's KV cache: layers x KV heads x 2 x (head_dim x bits / 8 + scale, zero).

    Scale and zero are two 16-bit numbers for each head and token, where the cache is quantized.
    """
    scale_and_zero = 0 if bits == 16 else 4
    return config.layers * config.kv_heads * 2 * (config.head_dim * bits // 8 + scale_and_zero)


def _chat(result: ChatResult) -> ChatFacts:
    usage = result.usage
    return ChatFacts(
        question=QUESTION,
        text=result.text,
        finish_reason=result.finish_reason,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        total_tokens=usage.total_tokens if usage else None,
        ttft_s=result.ttft_s,
        tokens_per_second=result.tokens_per_second,
    )


def _call(call: funcall.Call) -> CallFacts:
    return CallFacts(
        id=call.id,
        name=call.name,
        arguments_json=call.arguments_json,
        arguments=call.arguments,
        outcome=call.outcome,
        result=call.result,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
