"""What a careful person expects of a report: short names for the checks, and the whole of a right one."""

from __future__ import annotations

import zlib

from tools.report_corpus.lab import Round, Script

Expected = dict[str, str | list[str]]

OPEN = ["unknown", "fail"]  # nothing is shown: it is no pass, and a person may call it either
ANY = ["pass", "unknown", "fail"]

FIRST = (
    "baseline_memory",
    "quantize_command",
    "sizes",
    "size_prediction",
    "w4a16_memory",
    "serve_command",
    "server_started",
    "served_model_made",
    "conversation",
    "server_memory",
    "memory_prediction",
    "same_model",
    "same_card",
    "flags_agree",
)
SECOND = ("tools_server", "tool_calls", "tool_results", "completion_counts", "tools_model")
FACTS = ("weights_only", "kv_online", "kv_memory", "not_all_weights", "difference")


def all_of(status: str | list[str], *names: str) -> Expected:
    return dict.fromkeys(names, status)


def right(**other: str | list[str]) -> Expected:
    """A report that shows every step, with these exceptions."""
    return {**all_of("pass", *FIRST, *SECOND), **other}


def facts(**told: str | list[str]) -> Expected:
    """The answer on understanding; a fact that is not spoken of is open."""
    return {f"understanding.{name}": told.get(name, OPEN) for name in FACTS}


def understood() -> Expected:
    return {f"understanding.{name}": "pass" for name in FACTS}


_FIRST = (
    "I need to add {a} and {b} first.",
    "Let me first compute {a} + {b}.",
    "I will call the add function with {a} and {b}.",
    "首先计算 {a} 加 {b} 的和。",
)
_SECOND = (
    "The sum of {a} and {b} is {total}. Next I multiply it by {c}.",
    "{a} + {b} = {total}, now I multiply {total} by {c}.",
    "接下来把 {total} 乘以 {c}。",
)


def sums(
    a: float,
    b: float,
    c: float,
    *,
    model: str,
    old: bool = True,
    first: str = "",
    second: str = "",
    usage: tuple[int, int, int, int] = (263, 41, 298, 50),
    created: int = 0,
) -> Script:
    """(a + b) * c by two calls. `usage`: prompt and completion tokens of the first and of the second."""
    total, product = a + b, (a + b) * c
    moment = zlib.crc32(f"{a} {b} {c} {model}".encode())
    created = created or 1732500000 + moment % 500000
    first = first or _FIRST[moment % len(_FIRST)].format(a=a, b=b)
    second = second or _SECOND[moment // 7 % len(_SECOND)].format(a=a, b=b, c=c, total=total)
    one, two, three, four = usage
    return Script(
        rounds=[
            Round(
                content=first,
                usage=(one, two, one + two),
                call=("add", {"a": a, "b": b}),
                result=f"{total}",
                model=model,
                created=created,
            ),
            Round(
                content=second,
                usage=(three, four, three + four),
                call=("mul", {"a": total, "b": c}),
                result=f"{product}",
                model=model,
                created=created + 2,
                id="2",
            ),
        ],
        old=old,
    )
