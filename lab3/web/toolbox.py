"""The functions that the page offers to the model: lab3's `add` and `mul`, and those of a file of the user's own."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType

from lab3.errors import UsageError
from lab3.funcall import Tool, add, mul
from lab3.tool_schema import tool_schema

OWN: dict[str, Tool] = {"add": add, "mul": mul}
_MODULE = "lab3_web_tools"
_LIKE = 'write it like `def area(width: float, height: float) -> float:` with a docstring such as """Area in m²."""'


def toolbox(file: Path | None = None) -> dict[str, Tool]:
    """`add`, `mul` and the public functions of `file`, by name. Raises UsageError for a file that is no good one.

    The file is imported, as Python does it: what stands at its top level runs.
    """
    if file is None:
        return dict(OWN)
    functions = _functions(_imported(file))
    if not functions:
        raise UsageError(f"{file} has no function for the model", why="it defines no public function", todo=_LIKE)
    for name, function in functions.items():
        _check(file, name, function)
    return OWN | functions


def signature(tool: Tool) -> str:
    """For people: `add(a, b)`."""
    return f"{tool.__name__}({', '.join(inspect.signature(tool).parameters)})"


def description(tool: Tool) -> str:
    """The first paragraph of its docstring, as the model gets it."""
    return str(tool_schema(tool)["function"].get("description", ""))


def _imported(file: Path) -> ModuleType:
    if not file.is_file():
        raise UsageError(f"--tools {file}: there is no such file", todo="give a Python file with functions in it")
    spec = importlib.util.spec_from_file_location(_MODULE, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--tools {file} is no Python file", todo="give one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses and annotations look it up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        told = traceback.format_exception_only(error)[-1].strip()
        line = next((f" (line {at.lineno})" for at in _frames(error) if at.filename == spec.origin), "")
        raise UsageError(
            f"--tools {file} cannot be imported", why=f"{told}{line}", todo=f"try `python {file}`"
        ) from error
    return module


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(reversed(traceback.extract_tb(error.__traceback__)))


def _functions(module: ModuleType) -> dict[str, Tool]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module.__name__
    }


def _check(file: Path, name: str, function: Tool) -> None:
    if name in OWN:
        raise UsageError(f"{file}: there is a function {name} already", why="it is lab3's own", todo="rename yours")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise UsageError(f"{file}: {name} is no plain function", why="it is async or a generator", todo=_LIKE)
    if not description(function):  # which also says what is wrong with its parameters
        raise UsageError(f"{file}: {name} has no docstring", why="the model would not know what it is for", todo=_LIKE)
