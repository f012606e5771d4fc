"""What a command of LMDeploy in a report asks for, by LMDeploy's own parser; flags of 2024's versions are legal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lab3.grading.commands import LmdeployCommand, QuantizeCommand, ServeCommand
from lab3.grading.lmdeploy_arguments import understand
from lab3.grading.serve_command import read_words
from lab3.grading.shell_words import Word
from lab3.reports.model import CommandSeen

_KV_BITS = {0: 16, 8: 8, 4: 4}  # --quant-policy → bits of a number in the KV cache
_ENGINES = ("torch", "turbomind")  # of `lmdeploy chat turbomind MODEL`, up to 0.2


@dataclass(frozen=True, kw_only=True)
class ChatCommand(LmdeployCommand):
    """A `lmdeploy chat`, with LMDeploy's defaults for what was not said; `kv_bits` as for a server."""

    model: str | None
    kv_bits: int | None
    cache_ratio: float
    model_format: str | None
    session_len: int | None
    tp: int
    given: tuple[str, ...]  # the flags


def lmdeploy_command(seen: CommandSeen) -> ServeCommand | QuantizeCommand | ChatCommand | None:
    """What it asks for; None for what neither serves, quantizes nor chats. `works` is about LMDeploy 0.18.

    A model that only a variable names is None. What an older LMDeploy took is told by problems of severity "old".
    """
    words = [_word(text, seen.place.line or 0) for text in seen.argv]
    found = read_words(words, source="", text=seen.text, line=seen.place.line or 0)
    if found.serve:
        said = _said(found.serve[0].argv, "--model-format")
        return replace(found.serve[0], model_format=found.serve[0].model_format or said or None)
    if found.quantize:
        return _with_old_values(found.quantize[0])
    chat = next((each for each in found.others if each.argv[1:2] == ("chat",)), None)
    return None if chat is None else _chat(chat)


def _chat(command: LmdeployCommand) -> ChatCommand | None:
    words = [_word(text, command.line) for text in command.argv[2:]]
    if len(words) > 1 and words[0].text in _ENGINES:
        words = words[1:]
    if not words or any(word.text in ("-h", "--help") for word in words):
        return None
    known = understand("chat", words, source=command.source)
    values = known.values
    return ChatCommand(
        text=command.text,
        source=command.source,
        line=command.line,
        argv=command.argv,
        launcher=command.launcher,
        environment=command.environment,
        problems=(*command.problems, *known.problems),
        model=values.get("model_path") if known.model_known else None,
        kv_bits=_KV_BITS.get(values.get("quant_policy", 0)),
        cache_ratio=values.get("cache_max_entry_count", 0.8),
        model_format=values.get("model_format") or _said(command.argv, "--model-format") or None,
        session_len=values.get("session_len"),
        tp=values.get("tp", 1),
        given=tuple(known.given),
    )


def _with_old_values(command: QuantizeCommand) -> QuantizeCommand:
    """What is gone from LMDeploy is left out of what was understood, and was asked for nevertheless."""
    dataset = _said(command.argv, "--calib-dataset")
    scale = _said(command.argv, "--search-scale")
    given = [flag for flag, value in (("--calib-dataset", dataset), ("--search-scale", scale)) if value]
    return replace(
        command,
        dataset=dataset or command.dataset,
        search_scale=command.search_scale or scale == "True",
        given=tuple(dict.fromkeys([*command.given, *given])),
    )


def _said(argv: Sequence[str], flag: str) -> str:
    for number, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else next(iter(argv[number + 1 : number + 2]), "")
    return ""


def _word(text: str, line: int) -> Word:
    return Word(text=text, line=line, unknown=text.startswith("$") or "${" in text)
