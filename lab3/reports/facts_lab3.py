"""What a command of lab3 asks for: a homework that was made with lab3 shows `lab3 quantize`, not `lmdeploy lite`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lab3.reports.facts_models import last_part

_SWITCHES = frozenset(("--stream", "--json", "--quiet", "--overwrite", "--search-scale"))
_POLICIES = {"16": 0, "8": 8, "4": 4}  # --kv-bits → --quant-policy
_RUN_OUT = "lab3-out"  # where `lab3 run` writes unless told


@dataclass(frozen=True, kw_only=True)
class Lab3Asked:
    """`kind` is that of LMDeploy's command that lab3 runs; None and empty where it is not said."""

    kind: Literal["quantize", "serve", "client", "script", "web", "other"]
    model: str = ""
    work_dir: str = ""
    kv_policy: int | None = None
    ratio: float | None = None
    port: int | None = None
    w_bits: int | None = None
    group_size: int | None = None


def lab3_asked(words: Sequence[str]) -> Lab3Asked | None:
    """What `lab3 …` or `python -m lab3 …` asks for; None for another command.

    `lab3 run` quantizes into its output folder, under the model's name with `-w4a16`.
    """
    rest = _after_lab3(words)
    if not rest:
        return None
    said = _parsed(rest[1:])
    flags = said.flags
    match rest[0]:
        case "quantize":
            return Lab3Asked(
                kind="quantize",
                model=said.first,
                work_dir=flags.get("--out", ""),
                w_bits=_whole(flags.get("--bits")),
                group_size=_whole(flags.get("--group-size")),
            )
        case "run":
            model = flags.get("--model", "")
            named = bool(model) and model != "embedded"
            folder = f"{flags.get('--out', _RUN_OUT).rstrip('/')}/{last_part(model)}-w4a16"
            return Lab3Asked(kind="quantize", model=model, work_dir=folder if named else "")
        case "serve":
            return Lab3Asked(
                kind="serve",
                model=said.first,
                kv_policy=_POLICIES.get(flags.get("--kv-bits", "")),
                ratio=_number(flags.get("--cache-ratio")),
                port=_whole(flags.get("--port")),
            )
        case "chat":
            return Lab3Asked(kind="client", model=flags.get("--model", ""))
        case "funcall":
            return Lab3Asked(kind="script", model=flags.get("--model", ""))
        case "web":
            return Lab3Asked(kind="web")
        case _:
            return Lab3Asked(kind="other")


@dataclass(frozen=True)
class _Said:
    first: str = ""
    flags: Mapping[str, str] = field(default_factory=dict)


def _after_lab3(words: Sequence[str]) -> Sequence[str]:
    for at, word in enumerate(words[:6]):
        name = word.replace("\\", "/").rsplit("/", 1)[-1]
        if name == "lab3" and (at == 0 or words[at - 1] == "-m" or not words[at - 1].startswith("-")):
            return words[at + 1 :]
    return ()


def _parsed(words: Sequence[str]) -> _Said:
    flags: dict[str, str] = {}
    first, waiting = "", ""
    for word in words:
        if waiting:
            flags[waiting], waiting = word, ""
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            if equals:
                flags[name] = value
            elif name not in _SWITCHES:
                waiting = name
        else:
            first = first or word
    return _Said(first, flags)


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
