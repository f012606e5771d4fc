"""LMDeploy's own argument parser, alone: it says what it makes of a command, starts nothing, prints nothing, stays.

The first call imports LMDeploy, which takes seconds and loads no model.
"""

from __future__ import annotations

import argparse
import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NoReturn

_ADDING = threading.Lock()
Name = Literal["api_server", "auto_awq", "chat"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`values` by LMDeploy's names for them, or why it refuses: the flag, if it names one, and its message."""

    values: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    flag: str = ""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A flag of a command: how many words follow it (None: as many as there are), and what they may be."""

    flags: tuple[str, ...]
    words: int | None
    expects: str


class _Stop(Exception):
    pass


def ask(name: Name, arguments: Sequence[str]) -> Answer:
    """What LMDeploy makes of `lmdeploy serve api_server ARGUMENTS`, `lmdeploy lite auto_awq …` or `lmdeploy chat …`."""
    try:
        values = _quiet(name).parse_args(list(arguments))
    except argparse.ArgumentError as error:
        return Answer(refused=error.message, flag=_long(error.argument_name or ""))
    except _Stop as stop:
        return Answer(refused=str(stop))
    except Exception as error:  # its code for dotted flags trips over some words, and so would the command
        return Answer(refused=f"{type(error).__name__}: {error}")
    return Answer(values={key: value for key, value in vars(values).items() if key != "run"})


def find(name: Name, flag: str) -> Option | None:
    """The option that LMDeploy takes `flag` for, which may be spelled with underscores or cut short."""
    options = _options(name)
    if flag.startswith("--"):
        flag = flag.replace("_", "-")
    if flag in options:
        return options[flag]
    if not flag.startswith("--") or len(flag) < 3:
        return None
    begun = {id(option): option for each, option in options.items() if each.startswith(flag)}
    return next(iter(begun.values())) if len(begun) == 1 else None


def flags(name: Name) -> tuple[str, ...]:
    """All flags of the command."""
    return tuple(_options(name))


@lru_cache(maxsize=1)
def tool_parsers() -> tuple[str, ...]:
    """The names that --tool-call-parser takes; LMDeploy looks at them only when it starts."""
    from lmdeploy.serve.parsers.tool_parser import ToolParserManager

    return tuple(sorted(ToolParserManager.module_dict))


@lru_cache(maxsize=3)
def _parser(name: Name) -> Any:
    from lmdeploy.cli.cli import CLI
    from lmdeploy.cli.lite import SubCliLite
    from lmdeploy.cli.serve import SubCliServe

    group, add = {
        "api_server": (SubCliServe, SubCliServe.add_parser_api_server),
        "auto_awq": (SubCliLite, SubCliLite.add_parser_auto_awq),
        "chat": (CLI, CLI.add_parser_chat),
    }[name]
    with _ADDING:  # LMDeploy's parsers are made once for a process
        if name not in group.subparsers.choices:
            add()
    return group.subparsers.choices[name]


def _quiet(name: Name) -> Any:
    """A copy that raises where the original would print and leave the process."""
    parser = copy.copy(_parser(name))
    parser.exit_on_error = False
    parser.error = _stop
    parser.exit = lambda status=0, message=None: _stop(message or "it only prints something")
    parser.print_help = parser.print_usage = _nothing
    return parser


def _stop(message: str) -> NoReturn:
    raise _Stop(message)


def _nothing(*_: Any) -> None:
    pass


@lru_cache(maxsize=3)
def _options(name: Name) -> dict[str, Option]:
    found: dict[str, Option] = {}
    for action in _parser(name)._actions:  # argparse has no public list
        words = {None: 1, "*": None, "+": None, "?": 1}.get(action.nargs, action.nargs)
        option = Option(flags=tuple(action.option_strings), words=words, expects=_expects(action))
        found.update(dict.fromkeys(action.option_strings, option))
    return found


def _expects(action: Any) -> str:
    if action.choices:
        return "one of " + ", ".join(str(each) for each in action.choices)
    named: dict[Callable[..., Any], str] = {int: "a whole number", float: "a number"}
    if action.type in named:
        return named[action.type]
    return "one of 0, 4, 8, int4, int8, none" if "--quant-policy" in action.option_strings else "a value"


def _long(names: str) -> str:
    """argparse names an argument by all of its spellings: "-v/--version"."""
    return names.split("/")[-1]
