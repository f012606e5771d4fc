"""A run of the lab with figures that are found nowhere else, for tests of what is told about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup

from lab3.evidence import (
    CallFacts,
    ChatFacts,
    Evidence,
    ExpectedCall,
    MemoryFacts,
    QuantizationFacts,
    ServerFacts,
    ToolFacts,
)
from lab3.report import build_report, write_report
from lab3.report.stored import Stored
from lab3.verdicts import Verdict

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \x1b[31m\u202eevil ]]>"


def server(**changes: Any) -> ServerFacts:
    told = {
        "command": "lmdeploy serve api_server /models/odd --quant-policy 4",
        "engine": "turbomind",
        "kv_bits": 4,
        "cache_ratio": 0.4,
        "startup_seconds": 23.7,
        "used_mib": 34613,
        "total_mib": 81559,
        "memory_method": "nvml",
        "kv_tokens": 700352,
    }
    return ServerFacts(**(told | changes))


def evidence(**changes: Any) -> Evidence:
    """A lab on a GPU with figures that are found nowhere else."""
    told: dict[str, Any] = {
        "subject": "reference",
        "model": "odd-model",
        "environment": {"lab3": "0.1.0", "lmdeploy": "0.18.0", "device": "NVIDIA Oddity 7"},
        "baseline": server(command="lmdeploy serve one", kv_bits=16, cache_ratio=0.8, used_mib=66451, kv_tokens=302144),
        "quantized": server(),
        "quantization": QuantizationFacts(
            method="awq",
            bits=4,
            group_size=128,
            weight_bytes_before=3_777_777_771,
            weight_bytes_after=1_543_210_987,
            predicted_weight_bytes=1_543_210_003,
            folder_bytes_before=3_781_770_388,
            folder_bytes_after=1_570_551_421,
            perplexity_before=7.1371,
            perplexity_after=7.5393,
            perplexity_kv_int4=7.9177,
            kv_int4_key_errors=(0.1, 0.2),
            kv_bytes_per_token={"16": 98304, "8": 50688, "4": 26112},
            seconds=89.3,
        ),
        "chat": ChatFacts(
            question="Who are you?",
            text="I am odd.",
            finish_reason="stop",
            prompt_tokens=31,
            completion_tokens=7,
            total_tokens=38,
            ttft_s=0.137,
            tokens_per_second=173.31,
            other_question="And else?",
            other_text="Still odd.",
        ),
        "tools": (tools(),),
        "memory": (series(16, 0.8, 66451), series(4, 0.4, 34613)),
    }
    return Evidence(**(told | changes))


def tools(**changes: Any) -> ToolFacts:
    told: dict[str, Any] = {
        "question": "Compute (3+5)*2",
        "expected": (ExpectedCall(function="add", numbers=(3.0, 5.0)),),
        "expected_answer": 16.0,
        "tool_choice": "auto",
        "calls": (call("add", '{"a": 3, "b": 5}', 8), call("mul", '{"a": 8, "b": 2}', 16)),
        "results_returned": True,
        "answer": "It is 16.",
        "outcome": "answered",
    }
    return ToolFacts(**(told | changes))


def call(name: str, arguments: str, result: Any) -> CallFacts:
    return CallFacts(id="1", name=name, arguments_json=arguments, arguments={}, outcome="ok", result=result)


def series(kv_bits: int, cache_ratio: float, peak_mib: int) -> MemoryFacts:
    points = (
        (0.0, 3, "start"),
        (11.25, peak_mib - 1999, ""),
        (23.75, peak_mib - 17, "ready"),
        (24.5, peak_mib, "chat"),
        (31.0, peak_mib - 5, "tools"),
        (42.0, 3, "stopped"),
    )
    return MemoryFacts(kv_bits=kv_bits, cache_ratio=cache_ratio, total_mib=81559, method="nvml", points=points)


def verdict(id: str = "chat.answer", status: str = "pass", **changes: Any) -> Verdict:
    told: dict[str, Any] = {
        "task": 1,
        "title": f"Title of {id}",
        "title_zh": f"{id} 的标题",
        "points": 13 if status == "pass" else 0,
        "max_points": 13,
        "reason": "the reason",
        "expected": None,
        "actual": None,
        "source": "the wire",
        "required": True,
    }
    return Verdict(id=id, status=status, **(told | changes))


def stored(facts: Evidence | None = None, *verdicts: Verdict) -> Stored:
    return Stored(Path("run"), facts or evidence(), verdicts or (verdict(),))


def read(text: str) -> BeautifulSoup:
    return BeautifulSoup(text, "html.parser")


def seen(text: str) -> str:
    """What a reader sees, on one line."""
    for hidden in (told := read(text)).select("style, head"):
        hidden.decompose()
    return " ".join(told.get_text(" ").split())


def run_folder(folder: Path, facts: Evidence | None = None, *verdicts: Verdict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_report(build_report(facts or evidence(), list(verdicts or (verdict(),))), folder / "report.json")
    return folder
