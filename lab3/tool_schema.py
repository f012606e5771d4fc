"""A Python function as a tool of the OpenAI API: its signature and docstring as JSON schema, by pydantic."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from lab3.errors import UsageError

_GOOGLE_SECTION = re.compile(r"^(Args|Arguments|Parameters):\s*$")
_GOOGLE_PARAMETER = re.compile(r"^\s+(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_REST_PARAMETER = re.compile(r"^:param\s+(?:[^:]*\s)?(\w+):\s*(.*)$")


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """What goes into a request's `tools`: name, description (the docstring's first paragraph) and parameters.

    Parameter descriptions come from a Google `Args:` section or reST `:param name:` lines. Raises UsageError for
    what no model can call by keyword: *args, **kwargs, positional-only, unannotated or inexpressible parameters.
    """
    summary = re.split(r"\n\s*\n|^:param", inspect.getdoc(function) or "", maxsplit=1, flags=re.MULTILINE)[0]
    description = " ".join(summary.split())
    described = {"description": description} if description else {}
    return {
        "type": "function",
        "function": {"name": function.__name__, **described, "parameters": parameters_of(function)},
    }


def parameters_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of the function's arguments; extra ones are forbidden. Raises UsageError as `tool_schema`."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    for name, parameter in inspect.signature(function).parameters.items():
        by_keyword = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not by_keyword or parameter.annotation is parameter.empty:
            raise UsageError(
                f"{function.__name__} cannot be a tool: parameter {name!r}.",
                why="it has no type annotation" if by_keyword else "a model gives arguments by name only",
                todo=f"write it like `{name}: int`",
            )
    try:
        adapter: Any = TypeAdapter  # its stubs do not say so, but it takes functions
        schema: dict[str, Any] = adapter(function).json_schema()
    except (PydanticUserError, NameError) as error:
        raise UsageError(
            f"{function.__name__} cannot be a tool: its types have no JSON schema.",
            why=str(error).splitlines()[0],
            todo="annotate with int, float, str, bool, Literal, list, dict or Optional of these",
        ) from error
    schema = {"properties": {}, "required": []} | _plain(schema)
    for name, text in _parameter_descriptions(inspect.getdoc(function) or "").items():
        if name in schema["properties"]:
            schema["properties"][name]["description"] = text
    return schema


def _plain(schema: Any) -> Any:
    """Without pydantic's titles, and `int | float` as what it is: a number. Small models read the schema as text."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):  # their keys are names that may well be "title"
            kept[key] = {name: _plain(each) for name, each in value.items()}
        elif key != "title":
            kept[key] = value if key in ("default", "enum", "const") else _plain(value)
    choices = kept.get("anyOf", [])
    if {"type": "integer"} in choices and {"type": "number"} in choices:
        choices = [choice for choice in choices if choice != {"type": "integer"}]
        kept = {key: value for key, value in kept.items() if key != "anyOf"}
        kept = choices[0] | kept if len(choices) == 1 else {"anyOf": choices} | kept
    return kept


def _parameter_descriptions(doc: str) -> dict[str, str]:
    found: dict[str, str] = {}
    in_section, current, indent = False, None, 0
    for line in doc.splitlines():
        depth = len(line) - len(line.lstrip())
        if _GOOGLE_SECTION.match(line):
            in_section, current = True, None
        elif match := _REST_PARAMETER.match(line) or (in_section and _GOOGLE_PARAMETER.match(line)):
            if current and not line.startswith(":") and depth > indent:  # "a: ...\n    note: ..." goes on about a
                found[current] += f" {line.strip()}"
                continue
            current, indent = match[1], depth
            found[current] = match[2].strip()
        elif current and line.strip() and depth > indent:
            found[current] += f" {line.strip()}"
        else:
            in_section, current = in_section and (not line.strip() or depth > 0), None
    return found
