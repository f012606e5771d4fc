"""Which of several files is meant: candidates for each role, the likeliest first, each with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lab3.errors import UsageError
from lab3.grading.commands import Commands, QuantizeCommand, ServeCommand
from lab3.grading.documents import SCRIPTS, Document
from lab3.grading.files import read_text, relative
from lab3.grading.problems import shown
from lab3.grading.python_source import Ask, PythonFacts

_COPIES = ("copy", "副本", "复制", "backup", "备份", "bak", "old", "draft", "tmp", "test", "旧", "(1)", "(2)", "(3)")
_NAMES = {"chat": "internlm2_5", "tools": "internlm2_5_func"}  # the tutorial's
_REPORT_WORDS = ("report", "报告", "作业", "homework", "实验", "lab", "task", "任务", "笔记", "note", "答", "readme")
_NO_REPORTS = ("requirements", "license", "licence", "notice", "merges", "vocab", "constraints")
_QUANTIZED_WORDS = ("w4a16", "4bit", "awq", "int4")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A file that was read, and the names of files that hold the same."""

    path: Path
    name: str
    document: Document
    copies: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something that could be meant. `named`: a serve command names it."""

    path: Path
    name: str
    why: str
    by: Literal["content", "name"] = "content"
    paper: Paper | None = None
    command: ServeCommand | None = None
    named: bool = False


def plainness(paper: Paper) -> tuple[bool, int, int, str]:
    """Sorts `script.py` before `script_copy.py`, and what lies deeper after what does not."""
    stem = paper.path.stem.lower()
    return any(mark in stem for mark in _COPIES), paper.name.count("/"), len(paper.name), paper.name


# ------------------------------------------------------------------------------------------------------------- scripts


_OF_TOOLS = ("func", "tool", "plugin", "agent")
_BY_NAME = 3  # the last rank


def scripts(papers: Sequence[Paper], folder: Path) -> dict[str, list[Candidate]]:
    """For "chat" those that ask without tools, for "tools" those that ask with them; the likeliest first."""
    imported = {paper.name for each in papers for paper in _helpers(each, papers, folder)}
    found: dict[str, list[tuple[tuple[Any, ...], Candidate]]] = {"chat": [], "tools": []}
    for paper in papers:
        for role, rank, why in _roles(paper, papers, folder):
            if rank == _BY_NAME and paper.name in imported:
                continue
            usual = paper.path.stem.lower() != _NAMES[role]
            key = (rank, paper.name in imported, usual, paper.path.suffix != ".py", *plainness(paper))
            if paper.name in imported:
                why += ", and another script imports it"
            by: Literal["name", "content"] = "name" if rank == _BY_NAME else "content"
            found[role].append((key, Candidate(path=paper.path, name=paper.name, why=why, by=by, paper=paper)))
    return {role: [candidate for _, candidate in sorted(some, key=_first)] for role, some in found.items()}


def with_helpers(paper: Paper, papers: Sequence[Paper], folder: Path) -> list[PythonFacts]:
    """The facts of a script and of the submission's modules that it imports."""
    together = [paper, *_helpers(paper, papers, folder)]
    return [each.document.python for each in together if each.document.python is not None]


def hint(papers: Sequence[Paper], *, tools: bool) -> str:
    """Why there may be no script, "" if nothing tells."""
    for paper in papers:
        document = paper.document
        if document.python and (line := document.python.pipeline):
            return f"; {paper.name}, line {line}, loads the model itself with LMDeploy's pipeline"
        if asks := [ask for ask in document.quoted_asks if ask.tools == tools]:
            return f"; {paper.name}, line {asks[0].line}, quotes one, which has to be handed in as a file"
    return ""


def _roles(paper: Paper, papers: Sequence[Paper], folder: Path) -> Iterator[tuple[str, int, str]]:
    """(role, rank, why) of each role that the script could have."""
    python = paper.document.python
    if python is None:
        return
    if paper.document.speaks_of_asking:
        role = "tools" if any(word in paper.name.lower() for word in ("func", "tool")) else "chat"
        yield role, 2, f"its text speaks of chat completions, but it is {python.fault}"
    asks, through = list(python.asks), ""
    if not asks:
        for helper in _helpers(paper, papers, folder):
            if helper.document.python and helper.document.python.asks:
                asks, through = list(helper.document.python.asks), f" through {helper.name}"
                break
    with_tools = [ask for ask in asks if ask.tools]
    if through and python.passes_tools and not with_tools:
        with_tools = [Ask(line=python.passes_tools, tools=True, how="passes tools on")]
    if with_tools:
        yield "tools", 0, f"{with_tools[0].how} with tools (line {with_tools[0].line}){through}"
    without = [ask for ask in asks if not ask.tools]
    if without and not with_tools:
        yield "chat", 0, f"{without[0].how} without tools (line {without[0].line}){through}"
    elif without:
        yield "chat", 1, f"{without[0].how} without tools (line {without[0].line}){through}, and elsewhere with tools"
    # What it does not ask for is to be found out by running it: a script may answer by itself.
    stem = paper.path.stem.lower()
    if not with_tools and any(word in stem for word in _OF_TOOLS):
        yield "tools", _BY_NAME, f"its name says so, and it asks {'without tools' if without else 'no model'}"
    elif not asks and (stem == _NAMES["chat"] or "chat" in stem):
        yield "chat", _BY_NAME, "its name says so, and it asks no model"


def _helpers(paper: Paper, papers: Sequence[Paper], folder: Path) -> list[Paper]:
    """The submission's own modules that the script imports, and what these import."""
    by_path = {each.path: each for each in papers}
    found: dict[Path, Paper] = {}
    waiting = [paper]
    while waiting and len(found) < 50:
        each = waiting.pop()
        for module in each.document.python.imports if each.document.python else ():
            parts = module.split(".")
            for place in (each.path.parent, folder):
                for path in (place.joinpath(*parts).with_suffix(".py"), place.joinpath(*parts, "__init__.py")):
                    if path in by_path and path != paper.path and path not in found:
                        found[path] = by_path[path]
                        waiting.append(by_path[path])
    return list(found.values())


# ------------------------------------------------------------------------------------------------------------ commands


def serve_commands(papers: Sequence[Paper]) -> list[Candidate]:
    """Commands that serve a model; first those that do what the lab asks for, then those that work as they stand."""
    found: list[tuple[tuple[Any, ...], Candidate]] = []
    seen: set[tuple[str, ...]] = set()
    for paper in papers:
        for command in paper.document.commands.serve:
            if command.argv in seen:
                continue
            seen.add(command.argv)
            fits = _fits(command)
            why = f"line {command.line}: {shown(' '.join(command.argv), 100)}" + (
                f"; {', '.join(fits)}" if fits else ""
            )
            key = (-len(fits), command.model is None, not command.works, _source_rank(paper.path), len(found))
            found.append((key, Candidate(path=paper.path, name=paper.name, why=why, paper=paper, command=command)))
    return [candidate for _, candidate in sorted(found, key=_first)]


def quantize_command(commands: Commands, serve: ServeCommand | None) -> QuantizeCommand | None:
    """The one whose result is served, else the last."""
    name = _base(serve.model) if serve and serve.model else ""
    fitting = [each for each in commands.quantize if name and _base(each.work_dir) == name]
    return next(iter([*fitting, *reversed(commands.quantize)]), None)


def _fits(command: ServeCommand) -> list[str]:
    quantized = command.model_format == "awq" or any(word in (command.model or "").lower() for word in _QUANTIZED_WORDS)
    told = {
        "a quantized model": quantized,
        "int4 KV": command.kv_bits == 4,
        "a cache ratio": "--cache-max-entry-count" in command.given,
    }
    return [what for what, so in told.items() if so]


def _source_rank(path: Path) -> int:
    suffix = path.suffix.lower()
    return 0 if suffix in SCRIPTS or not suffix else {".ipynb": 1, ".py": 2, ".md": 3}.get(suffix, 4)


# -------------------------------------------------------------------------------------------------------------- models


def models(files: Sequence[Path], folder: Path) -> list[Candidate]:
    """Folders with a config.json that tells of a quantization; AWQ in 4 bits first."""
    found: list[tuple[tuple[Any, ...], Candidate]] = []
    for file in files:
        told = quantization(file.parent) if file.name == "config.json" else None
        if told is None:
            continue
        method, bits = told.get("quant_method"), told.get("bits")
        name = relative(file.parent, folder)
        why = f"config.json tells of {shown(str(method))} in {shown(str(bits))} bits"
        key = ((method, bits) != ("awq", 4), name.count("/"), name)
        found.append((key, Candidate(path=file.parent, name=name, why=why)))
    return [candidate for _, candidate in sorted(found, key=_first)]


def preferring(candidates: Sequence[Candidate], named: str | None) -> list[Candidate]:
    """The candidates, and first the one whose folder has the name that the serve command gives."""
    if not named:
        return list(candidates)
    mine = [each for each in candidates if each.path.name == _base(named)]
    first = [
        Candidate(path=each.path, name=each.name, why=f"{each.why}; the serve command names it", named=True)
        for each in mine[:1]
    ]
    return [*first, *(each for each in candidates if not first or each.path != first[0].path)]


def model_outside(named: str | None, roots: Sequence[Path]) -> Path | None:
    """The quantized model of this path, or this name, in one of the grader's folders."""
    if not named or "\0" in named:
        return None
    for root in roots:
        here = root.resolve()
        for path in (Path(named), here / _base(named)):
            if path.is_absolute() and path.resolve().is_relative_to(here) and quantization(path) is not None:
                return path.resolve()
    return None


def quantization(folder: Path) -> Mapping[str, Any] | None:
    """The quantization_config of a folder's config.json, None if there is none."""
    try:
        content = json.loads(read_text(folder / "config.json"))
    except (UsageError, ValueError, RecursionError):
        return None
    told = content.get("quantization_config") if isinstance(content, dict) else None
    return told if isinstance(told, dict) else None


def _base(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


# ------------------------------------------------------------------------------------------------------------- reports


def reports(files: Sequence[Path], papers: Sequence[Paper], folder: Path) -> list[Candidate]:
    """Texts that may be the report: those with LMDeploy's commands, then those with a report's name."""
    speaking = {paper.path for paper in papers if _speaks(paper.document.commands)}
    found: list[tuple[tuple[Any, ...], Candidate]] = []
    for path in files:
        stem, suffix = path.stem.lower(), path.suffix.lower()
        if any(word in stem for word in _NO_REPORTS):
            continue
        name = relative(path, folder)
        called = any(word in stem for word in _REPORT_WORDS)
        beside_model = (path.parent / "config.json").is_file()
        speaks = path in speaking
        why = "it tells LMDeploy's commands" if speaks else "its name is a report's" if called else f"a {suffix} file"
        plain = suffix in (".txt", ".html", ".htm")
        key = (
            beside_model and not speaks,
            not (called or speaks),
            plain,
            not called,
            not speaks,
            name.count("/"),
            name,
        )
        by: Literal["content", "name"] = "content" if speaks else "name"
        found.append((key, Candidate(path=path, name=name, why=why, by=by)))
    return [candidate for _, candidate in sorted(found, key=_first)]


def _speaks(commands: Commands) -> bool:
    return bool(commands.serve or commands.quantize or commands.others)


def _first(pair: tuple[tuple[Any, ...], Candidate]) -> tuple[Any, ...]:
    return pair[0]
