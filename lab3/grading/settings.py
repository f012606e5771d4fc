"""`lab3.toml` in a submission, in which a student says what is what.

```toml
[submission]
student = "A name or number"
chat = "internlm2_5.py"
tools = "internlm2_5_func.py"
serve = "start.sh"  # a file, or the command itself
model = "internlm2_5-1_8b-chat-w4a16-4bit"
report = "report.md"
```

Each key may be left out; what is not said is looked for.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lab3.errors import UsageError
from lab3.grading.files import read_text
from lab3.grading.problems import shown

NAME = "lab3.toml"
_MOST_BYTES = 64 << 10
_FILES = {"chat": (".py", ".ipynb"), "tools": (".py", ".ipynb"), "report": ()}
_KEYS = ("student", "chat", "tools", "serve", "model", "report")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the student said; paths exist. `serve` is a file, `serve_command` the command itself."""

    student: str | None = None
    chat: Path | None = None
    tools: Path | None = None
    serve: Path | None = None
    serve_command: str | None = None
    model: Path | None = None
    report: Path | None = None


def read_settings(folder: Path, *, model_roots: Sequence[Path] = ()) -> Settings:
    """The folder's lab3.toml, or Settings that say nothing if there is none.

    Raises UsageError for an unknown key, a wrong type, and a path that is missing, leads out of the folder or is no
    regular file. A model may also be in one of `model_roots`, where the grader keeps models that were not handed in.
    """
    file = folder / NAME
    if not file.is_file() and not file.is_symlink():
        return Settings()
    try:
        content = tomllib.loads(read_text(file, most_bytes=_MOST_BYTES))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{NAME} is no TOML: {error}", todo='write lines such as chat = "internlm2_5.py"') from error
    for key in content:
        _known(key, ("submission",), "table")
    table = content.get("submission", {})
    if not isinstance(table, dict):
        raise UsageError(f"{NAME}: submission is {_kind(table)}", todo="begin with the line [submission]")
    for key, value in table.items():
        _known(key, _KEYS, "key in [submission]")
        if not isinstance(value, str) or not value.strip():
            raise UsageError(
                f"{NAME}: {key} is {_kind(value)}", why="each key is a text in quotes", todo=f'write {key} = "…"'
            )
    serve = table.get("serve")
    is_command = serve is not None and ("lmdeploy" in serve.split() or "\n" in serve.strip())
    return Settings(
        student=shown(table["student"].strip()) if "student" in table else None,
        serve=_path(folder, "serve", serve) if serve is not None and not is_command else None,
        serve_command=serve if is_command else None,
        model=_model(folder, table.get("model"), model_roots),
        **{key: _path(folder, key, table[key]) if key in table else None for key in _FILES},
    )


def _known(key: str, known: Sequence[str], what: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        raise UsageError(
            f"{NAME} has no {what} named {shown(key)}",
            todo=f"write {near[0]}" if near else f"write one of: {', '.join(known)}",
        )


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "empty"
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), "a date")


def _path(folder: Path, key: str, said: str) -> Path:
    path = _inside(folder, key, said)
    if not path.is_file():
        raise UsageError(
            f"{NAME}: {key} is {shown(said)}, and there is no such file", todo="write its name as it is in the folder"
        )
    wanted = _FILES.get(key)
    if wanted and path.suffix.lower() not in wanted:
        raise UsageError(
            f"{NAME}: {key} is {shown(said)}, which is no {' or '.join(wanted)} file", todo="name the script"
        )
    return path


def _model(folder: Path, said: str | None, roots: Sequence[Path]) -> Path | None:
    if said is None:
        return None
    if Path(said).is_absolute():
        path = Path(said)
        allowed = [root.resolve() for root in roots]
        if not any(path.resolve().is_relative_to(root) for root in allowed):
            raise UsageError(
                f"{NAME}: model is {shown(said)}, which is outside of the folder",
                why="models elsewhere are served only from where the grader keeps them",
                todo="hand the model in, and write its folder's name",
            )
    else:
        path = _inside(folder, "model", said)
    if not (path / "config.json").is_file():
        raise UsageError(
            f"{NAME}: model is {shown(said)}, and there is no config.json in such a folder",
            todo="write the name of the folder that holds config.json and the weights",
        )
    return path


def _inside(folder: Path, key: str, said: str) -> Path:
    """`said` below the folder, with no link on the way."""
    parts = PurePosixPath(said.replace("\\", "/")).parts
    path = folder.joinpath(*parts) if "\0" not in said else folder
    outside = not parts or PurePosixPath(said).is_absolute() or ".." in parts or "\0" in said
    steps = [folder.joinpath(*parts[: number + 1]) for number in range(len(parts))] if not outside else []
    try:
        outside = outside or any(step.is_symlink() for step in steps)
    except OSError:  # a name that is too long
        outside = True
    if outside:
        raise UsageError(
            f"{NAME}: {key} is {shown(said)}, which leads out of the folder or is a link",
            todo="write the name of a file in the folder",
        )
    return path
