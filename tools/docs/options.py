"""Every option of every command, from lab3's own parsers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

from tools.docs import table

COMMON = ("--json", "--quiet")  # of every command; said once
# Options whose help in the parser is their default alone, or nothing.
WORDS = {
    "--engine": "LMDeploy's engine",
    "--dtype": "of the scales and of what stays unquantized (auto: float16)",
    "--language": "language of the page",
    "--max-tokens": "most tokens of an answer",
    "--seed": "seed of the server's sampling",
    "--style": "role of the messages in which results go back",
}


def commands() -> str:
    """A section for each command of `lab3`."""
    from lab3.cli import _parser

    return "\n\n".join(section for section in _sections(_parser()))


def command_names() -> list[str]:
    """Every command, such as `lab3 vram predict`."""
    from lab3.cli import _parser

    return [parser.prog for parser in _leaves(_parser())]


def pytest_options() -> str:
    """A table of lab3's options of pytest, with the setting of the ini file."""
    import lab3.pytest_plugin as plugin

    seen = _Seen()
    plugin.pytest_addoption(seen, seen)  # type: ignore[arg-type]
    rows = []
    for name, told in seen.options:
        ini = name.removeprefix("--").replace("-", "_")
        rows.append(
            [f"`{name}{_value(told)}`", _text(told.get("help", "")), f"`{ini}`" if ini in seen.settings else ""]
        )
    return table(["option", "says", "in pytest's ini file"], rows)


class _Seen:
    """Stands in for pytest's parser, its group and its plug-in manager."""

    def __init__(self) -> None:
        self.options: list[tuple[str, dict[str, Any]]] = []
        self.settings: list[str] = []

    def getgroup(self, *_: str) -> _Seen:
        return self

    def hasplugin(self, _: str) -> bool:
        return False

    def addoption(self, name: str, **told: Any) -> None:
        self.options.append((name, told))

    def addini(self, name: str, _: str) -> None:
        self.settings.append(name)


def _value(told: dict[str, Any]) -> str:
    if told.get("action") == "store_true":
        return ""
    choices = told.get("choices")
    return f" {'|'.join(choices) if choices else told.get('metavar', 'X')}"


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for each in action.choices.values():
            yield from _leaves(each)


def _sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    for each in _leaves(parser):
        said = [f"### {each.prog}", _sentence(each.description or ""), _arguments(each)]
        if each.epilog:
            said.append(_text(each.epilog))
        yield "\n\n".join(part for part in said if part)


def _arguments(parser: argparse.ArgumentParser) -> str:
    alone = {id(action): group for group in parser._mutually_exclusive_groups for action in group._group_actions}
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or set(action.option_strings) & set(COMMON):
            continue
        group = alone.get(id(action))
        needed = action.required and action.nargs not in ("?", "*")
        note = "required" if needed else ""
        if group is not None:
            names = [f"`{_name(each)}`" for each in group._group_actions]
            note = f"{'one' if group.required else 'at most one'} of {', '.join(names)}"
        rows.append([f"`{_name(action)}{_shown_value(action)}`", _help(parser, action), note])
    return table(["option", "says", ""], rows) if rows else "It has no options of its own."


def _name(action: argparse.Action) -> str:
    return ", ".join(action.option_strings) or str(action.metavar or action.dest).upper()


def _shown_value(action: argparse.Action) -> str:
    if not action.option_strings:
        return "…" if action.nargs in ("+", "*") else ""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, tuple):
        return " " + " ".join(action.metavar)
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    return f" {value}{'…' if action.nargs in ('+', '*') else ''}"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    told = (action.help or "") % {**vars(action), "prog": parser.prog}
    if not told or told.startswith("("):
        told = f"{WORDS.get(_name(action), '')} {told}".strip()
    choices = "" if not action.choices or action.metavar is None else f"; one of {', '.join(map(str, action.choices))}"
    return _text(told + choices)


def _sentence(text: str) -> str:
    return _text(text[:1].upper() + text[1:].removesuffix(".") + ".") if text else ""


def _text(text: str) -> str:
    """As Markdown: options, paths and addresses as code, where they are not yet."""
    word = r"(?<![\w`/])(--[a-z][\w-]*|[A-Z_]+/[\w./]+|https?://[\w.:/]+)"
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(word, r"`\1`", part) for part in parts)
