"""Gathers the facts of the lab's steps from folders and servers, whoever made or started them. It judges nothing."""

from __future__ import annotations

import importlib.metadata
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from lab3 import funcall, vram
from lab3.capacity import kv_tokens
from lab3.chat import chat
from lab3.errors import UsageError
from lab3.evidence import (
    CallFacts,
    ChatFacts,
    ExpectedCall,
    QuantizationFacts,
    SampleFacts,
    ServerFacts,
    ToolFacts,
)
from lab3.hub import RunningServer
from lab3.models import ModelConfig, kv_bytes_per_token, read_config
from lab3.openai_client import MalformedAnswer
from lab3.progress import Progress, silent
from lab3.quantize import QuantizeResult

QUESTION = "Please introduce yourself in two sentences."
OTHER_QUESTION = "List three fruits."  # so that a server with one answer for everything is found
# The tutorial's question, which takes "one simple add and one simple mul" and both in the right order.
TOOLS = (funcall.add, funcall.mul)
TOOL_QUESTION = "Compute (3+5)*2"
TOOL_CALLS = (ExpectedCall(function="add", numbers=(3.0, 5.0)), ExpectedCall(function="mul", numbers=(8.0, 2.0)))
TOOL_ANSWER = 16.0
SEED = 0
SAMPLE_TEMPERATURE = SAMPLE_TOP_P = 0.8  # the tutorial's
_SAMPLES_AT_ONCE = 4
_ASKED_WRONGLY = ("api_key", "not_an_api")  # kinds of refusal that are the user's doing and not the server's


def environment() -> dict[str, str]:
    """Versions and hardware that the figures depend on."""
    found = {"lab3": _version("lab3"), "python": platform.python_version(), "platform": platform.platform()}
    found |= {name: _version(name) for name in ("lmdeploy", "torch", "transformers", "openai", "xgrammar")}
    reading = vram.read()
    return found | {"device": reading.device, "device_mib": str(reading.total_mib)}


def ask_to_chat(base_url: str, *, api_key: str = "none", model: str | None = None) -> ChatFacts:
    """The lab's conversation, streamed. What is wrong with the answer, or with a refusal, is a fact of its own.

    Raises InfraError if the server cannot be reached, breaks off or fails (5xx), and UsageError for a wrong key or URL.
    """
    wire: dict[str, Any] = {"base_url": base_url, "api_key": api_key, "model": model, "temperature": 0.0}
    try:
        told = chat(QUESTION, stream=True, max_tokens=128, **wire)
        other = chat(OTHER_QUESTION, max_tokens=128, **wire)
    except (MalformedAnswer, UsageError) as error:
        if error.kind in _ASKED_WRONGLY:
            raise
        nothing: dict[str, Any] = dict.fromkeys(("finish_reason", "prompt_tokens", "completion_tokens", "total_tokens"))
        return ChatFacts(
            question=QUESTION,
            text=getattr(error, "partial_text", ""),
            ttft_s=None,
            tokens_per_second=None,
            error=error.what,
            **nothing,
        )
    usage = told.usage
    return ChatFacts(
        question=QUESTION,
        text=told.text,
        finish_reason=told.finish_reason,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        total_tokens=usage.total_tokens if usage else None,
        ttft_s=told.ttft_s,
        tokens_per_second=told.tokens_per_second,
        other_question=OTHER_QUESTION,
        other_text=other.text,
    )


def ask_with_tools(base_url: str, *, api_key: str = "none", model: str | None = None) -> ToolFacts:
    """The lab's task 2: one question that takes both functions, called by the model's own choice.

    Raises as `ask_to_chat` does; a refusal is the outcome "refused".
    """
    choice = "auto"
    asked = ToolFacts(
        question=TOOL_QUESTION,
        expected=TOOL_CALLS,
        expected_answer=TOOL_ANSWER,
        tool_choice=choice,
        calls=(),
        results_returned=False,
        answer="",
        outcome="refused",
    )
    known: dict[str, Any] = {"base_url": base_url, "api_key": api_key, "model": model}
    known |= {"temperature": 0.0, "seed": SEED}
    try:
        run = funcall.run_tools(TOOL_QUESTION, TOOLS, tool_choice=choice, max_tokens=128, **known)
        plain = chat(TOOL_QUESTION, max_tokens=1, **known)
    except UsageError as error:
        if error.kind in _ASKED_WRONGLY:
            raise
        return replace(asked, answer=error.what)
    except MalformedAnswer as error:
        return replace(asked, answer=error.what, outcome="malformed")
    first = run.rounds[0] if run.rounds else None
    return replace(
        asked,
        calls=tuple(_call(call) for call in run.calls),
        results_returned=any(message.get("role") in ("tool", "environment") for message in run.messages)
        and len(run.rounds) > 1,
        answer=run.answer or run.error or "",
        outcome=run.outcome,
        content=first.content if first else "",
        prompt_tokens=first.usage.prompt_tokens if first and first.usage else None,
        prompt_tokens_without_tools=plain.usage.prompt_tokens if plain.usage else None,
    )


def ask_often(
    count: int,
    base_url: str,
    *,
    api_key: str = "none",
    model: str | None = None,
    temperature: float = SAMPLE_TEMPERATURE,
    top_p: float = SAMPLE_TOP_P,
    progress: Progress = silent,
) -> SampleFacts:
    """The lab's task 2, `count` times (by default at the tutorial's temperature), with the seeds 0, 1, 2 …

    Right is what calls add and mul with the right numbers in the right order, and nothing else.
    """

    def ask(seed: int) -> str:
        run = funcall.run_tools(
            TOOL_QUESTION,
            TOOLS,
            base_url=base_url,
            api_key=api_key,
            model=model,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            max_tokens=128,
        )
        made = [(call.name, sorted(map(float, (call.arguments or {}).values()))) for call in run.calls if _ran(call)]
        wanted = [(call.function, sorted(call.numbers)) for call in TOOL_CALLS]
        if made == wanted and len(run.calls) == len(wanted):
            return "right"
        return f"{run.outcome}: " + (", ".join(f"{c.name}({c.arguments_json})" for c in run.calls) or run.answer)[:200]

    outcomes = []
    with ThreadPoolExecutor(_SAMPLES_AT_ONCE) as pool:
        for outcome in pool.map(ask, range(count)):
            outcomes.append(outcome)
            progress(f"sampling {TOOL_QUESTION}", done=len(outcomes), total=count)
    return SampleFacts(question=TOOL_QUESTION, temperature=temperature, top_p=top_p, outcomes=tuple(outcomes))


def server_facts(server: RunningServer, peak: vram.Reading) -> ServerFacts:
    """What is known of a server and the most memory that it held."""
    return ServerFacts(
        command=server.shell_command,
        engine=server.engine,
        kv_bits=server.spec.kv_bits,
        cache_ratio=server.spec.cache_ratio,
        startup_seconds=round(server.startup_seconds, 1),
        used_mib=peak.used_mib,
        total_mib=peak.total_mib,
        memory_method=peak.method,
        kv_tokens=kv_tokens(server.base_url, server.log_path),
        foreign_mib=server.foreign_mib,
    )


def quantization_facts(result: QuantizeResult, config: ModelConfig) -> QuantizationFacts:
    """What a quantization made; `config` is the source model's."""
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
        kv_bytes_per_token=kv_bytes_by_bits(config),
        seconds=round(result.seconds, 1),
        notices=result.notices,
    )


def kv_bytes_by_bits(config: ModelConfig) -> dict[str, int]:
    """KV bits ("16", "8", "4") → bytes of a token."""
    return {str(bits): kv_bytes_per_token(config, bits) for bits in (16, 8, 4)}


def _ran(call: funcall.Call) -> bool:
    return call.outcome == "ok"


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
