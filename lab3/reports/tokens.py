"""Count a printed completion's tokens again, with the model's own tokenizer where one is at hand."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lab3.reports.model import CompletionSeen

TOKENIZER = "LAB3_TOKENIZER"  # environment: a folder with tokenizer.json, or InternLM2's tokenizer.model
_AROUND_CALL = 12  # tokens: action start, plugin, action end, line ends, and how a model may space its JSON


@dataclass(frozen=True)
class TokenBounds:
    """What a count may be. The text of a call is not printed as it was generated, so that there is room."""

    low: int
    high: int


@lru_cache(maxsize=1)
def lab_tokenizer() -> Any | None:
    """The tokenizer that the environment names; None without one, or where it cannot be read."""
    folder = os.environ.get(TOKENIZER)
    if not folder:
        return None
    try:
        return _load(Path(folder))
    except Exception:
        return None


def completion_bounds(tokenizer: Any, completion: CompletionSeen) -> TokenBounds | None:
    """How many completion tokens the text of a completion can have; None where its text is not seen whole."""
    if completion.content is None and not completion.tool_calls:
        return None
    text = _count(tokenizer, completion.content or "")
    calls = [
        _count(tokenizer, json.dumps({"name": each.name, "parameters": _json(each.arguments)}))
        for each in completion.tool_calls
    ]
    room = _AROUND_CALL * len(calls)
    return TokenBounds(max(0, text + sum(calls) - room), text + sum(calls) + room + 2)


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids) if text else 0


def _json(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _load(folder: Path) -> Any:
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    from lab3.internlm2_tokenizer import SPECIAL, fast_tokenizer

    return fast_tokenizer(folder / "tokenizer.model", SPECIAL)
