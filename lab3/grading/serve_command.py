"""The commands with which a student serves and quantizes a model: found in a text, checked, made a ServerSpec."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lab3.errors import UsageError
from lab3.grading import command_facts, old_lmdeploy
from lab3.grading.commands import Commands, LmdeployCommand, QuantizeCommand, ServeCommand
from lab3.grading.problems import Problem, shown
from lab3.grading.shell_lines import MOST_CHARACTERS, Chunk, Dialect, chunks
from lab3.grading.shell_words import Variables, Word, simple_commands

if TYPE_CHECKING:
    from lab3.hub import ServerSpec

__all__ = [
    "Commands",
    "LmdeployCommand",
    "QuantizeCommand",
    "ServeCommand",
    "read_commands",
    "read_words",
    "server_spec",
]

MOST_TEXT = 64 << 10  # characters of commands in one text


def read_commands(
    text: str,
    *,
    source: str,
    first_line: int = 1,
    dialect: Dialect = "shell",
    variables: Variables | None = None,
) -> Commands:
    """Every LMDeploy command in `text`. `variables` are known before, and get what the text assigns.

    In a "session" a prompt may stand before a command, and `lmdeploy serve api_server` alone is a mention.
    """
    known: Variables = {} if variables is None else variables
    found = Commands()
    length = 0
    for chunk in chunks(text, source=source, first_line=first_line, dialect=dialect):
        length += len(chunk.text)
        if len(chunk.text) > MOST_CHARACTERS or length > MOST_TEXT:
            what = "a command that is too long to be one" if length <= MOST_TEXT else "more commands than anybody reads"
            problem = Problem(kind="too_long", severity="note", what=what, source=source, line=chunk.line)
            found += Commands(problems=(problem,))
            if length > MOST_TEXT:
                break
            continue
        found += _of_chunk(chunk, source=source, dialect=dialect, variables=known, depth=0)
    return found


def read_words(words: Sequence[Word], *, source: str, text: str, line: int) -> Commands:
    """The command that a list of words is, such as the first argument of Python's `subprocess.run`."""
    return _of_words(words, chunk=Chunk(line=line, written=text, text=text, flaws=()), source=source, dialect="shell")


def server_spec(command: ServeCommand, *, model_folder: Path, gpu: bool | None = None) -> ServerSpec:
    """The server that the student asked for, as lab3 starts it: on a port of lab3's, without a word from the outside.

    | the student's flag | becomes |
    | --- | --- |
    | --quant-policy 0, 8, 4; --cache-max-entry-count; --session-len; --max-batch-size; --tool-call-parser | the same |
    | --backend | the engine, if there is a GPU (`gpu` None: this machine is asked); else lab3's choice |
    | the model, --model-format, --dtype, --model-name | facts: lab3 serves `model_folder`, and reads its format |
    | --server-name, --server-port | facts: a sandbox opens the student's port, and lab3's server takes a free one |
    | --adapters, --hf-overrides, --speculative-…, another KV policy, a ratio outside of 0 to 1 | UsageError |
    | any other, such as --tp 2, --trust-remote-code, --chat-template, --proxy-url | left out, told as "refused" |

    A chat template is left out even if it lies in the folder: it decides whether tools are seen, and is code.
    Without --tool-call-parser it is lab3's "internlm": LMDeploy 0.5 found tool calls without being told.
    """
    from lab3.hub import ServerSpec

    unusable = [problem for problem in command.problems if problem.severity == "unusable"]
    if unusable or command.kv_bits is None:
        raise UsageError(
            "lab3 does not start the server of this command",
            why="; ".join(map(str, unusable)) or "its KV policy is none of 0, 8 and 4",
            todo="serve the model as the lab says, with --quant-policy 4 and a --cache-max-entry-count below 1",
        )
    if gpu is None:
        from lab3.serve_flags import gpu_capability

        gpu = gpu_capability() is not None
    return ServerSpec(
        model=str(model_folder),
        kv_bits=command.kv_bits,
        cache_ratio=command.cache_ratio,
        engine=command.engine if gpu and command.engine else "auto",
        tool_call_parser=command.tool_call_parser or "internlm",
        session_len=command.session_len,
        max_batch_size=command.max_batch_size,
    )


# ------------------------------------------------------------------------------------------------ from text to commands

_GROUPS = {"serve": "api_server", "lite": "auto_awq"}
_KNOWN = ("serve", "lite", "chat", "convert", "list", "check_env")
_SHELLS = ("bash", "sh", "zsh", "dash")
_TALKERS = frozenset({"echo", "printf", "grep", "which", "man", "alias", "cat", "pkill", "pgrep", "kill", "ps", "#"})


def _of_chunk(chunk: Chunk, *, source: str, dialect: Dialect, variables: Variables, depth: int) -> Commands:
    found = Commands()
    for command in simple_commands(chunk.text, line=chunk.line, variables=variables):
        words = command.words
        if (
            words
            and _base(words[0].text) in _SHELLS
            and any(word.text in ("-c", "-lc") for word in words)
            and depth < 2
        ):
            for word in words[1:]:  # bash -c "lmdeploy serve …"
                if "lmdeploy" in word.text:
                    inner = replace(chunk, text=word.text, line=word.line)
                    found += _of_chunk(
                        inner, source=source, dialect=dialect, variables=dict(variables), depth=depth + 1
                    )
            continue
        found += _of_words(words, chunk=chunk, source=source, dialect=dialect, environment=command.environment)
    return found


def _of_words(
    words: Sequence[Word],
    *,
    chunk: Chunk,
    source: str,
    dialect: Dialect,
    environment: tuple[tuple[str, str], ...] = (),
) -> Commands:
    start, problems = _start(words, source=source, dialect=dialect)
    if start is None:
        return Commands()
    arguments = words[start + 1 :]
    group, name, typos = _which(arguments, source=source)
    facts = LmdeployCommand(
        text=shown(chunk.written, 2000),
        source=source,
        line=words[start].line,
        argv=tuple(shown(word.text, 1000) for word in words[start:]),
        launcher=tuple(shown(word.text, 1000) for word in words[:start]),
        environment=environment,
        problems=(*chunk.flaws, *problems, *typos),
    )
    for old in ((group,), (group, name)):
        if (gone := old_lmdeploy.COMMANDS.get(old)) is None:
            continue
        what = f"`lmdeploy {' '.join(old)}` is of an older LMDeploy (up to {gone.last}); today: {gone.todo}"
        problem = Problem(kind="old", severity="old", what=what, source=source, line=facts.line)
        return Commands(others=(replace(facts, problems=(*facts.problems, problem)),))
    rest = arguments[2:]
    asks_help = any(word.text in ("-h", "--help") for word in rest)
    if name not in ("api_server", "auto_awq") or asks_help or (not rest and dialect == "session"):
        return Commands(others=(facts,)) if rest or name not in ("api_server", "auto_awq") else Commands()
    if name == "api_server":
        return Commands(serve=(command_facts.serve(facts, rest),))
    return Commands(quantize=(command_facts.quantize(facts, rest),))


def _start(words: Sequence[Word], *, source: str, dialect: Dialect) -> tuple[int | None, tuple[Problem, ...]]:
    """Where `lmdeploy` stands, if these words run it."""
    if not words or _base(words[0].text) in _TALKERS or (dialect == "session" and not words[0].text.isascii()):
        return None, ()
    for number, word in enumerate(words[:-1]):
        following = words[number + 1].text
        base = _base(word.text)
        if base == "lmdeploy" and (number == 0 or following in _KNOWN or _near(following, _KNOWN)):
            return number, ()
        subject = words[number + 2].text if number + 2 < len(words) else ""
        if following in _GROUPS and subject == _GROUPS[following] and _near(base, ["lmdeploy"]):
            problem = Problem(
                kind="typo",
                severity="broken",
                what=f"there is no command {shown(base)}",
                source=source,
                line=word.line,
                text=shown(f"{word.text} {following} {subject}"),
                instead="lmdeploy",
            )
            return number, (problem,)
    return None, ()


def _which(arguments: Sequence[Word], *, source: str) -> tuple[str, str, tuple[Problem, ...]]:
    """Group and command, such as serve and api_server, with typing errors put right."""
    problems: list[Problem] = []
    said = [word.text for word in arguments[:2]] + ["", ""]
    group, name = said[0], said[1]

    def put_right(word: str, known: Sequence[str], line: int) -> str:
        near = _near(word, known)
        if word in known or not near:
            return word
        what = f"LMDeploy has no command {shown(word)}"
        problems.append(
            Problem(
                kind="typo",
                severity="broken",
                what=what,
                source=source,
                line=line,
                text=shown(" ".join(said).strip()),
                instead=near,
            )
        )
        return near

    group = put_right(group, _KNOWN, arguments[0].line)
    if group in _GROUPS and name:
        old = [command[1] for command in old_lmdeploy.COMMANDS if command[0] == group and len(command) > 1]
        name = put_right(
            name, [_GROUPS[group], "auto_gptq", "smooth_quant", "calibrate", "proxy", *old], arguments[1].line
        )
    return group, name, tuple(problems)


def _near(word: str, known: Sequence[str]) -> str:
    return (
        next(iter(difflib.get_close_matches(word.replace("-", "_"), known, 1, cutoff=0.75)), "")
        if len(word) < 40
        else ""
    )


def _base(word: str) -> str:
    return word.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".exe")
