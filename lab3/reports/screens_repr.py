"""The fields of a printed answer: by Python's own parser or JSON's where they can, else field by field.

OCR takes `]` for `j` or a quote for nothing; then no parser reads the whole, while each field still stands there.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

from lab3.reports.model import ToolCallSeen

_MOST = 100_000  # characters
_NO_LETTER = re.compile(r"(?<=[)\]}])[ijlI1|!](?=\s?[,)\]}])")  # OCR's idea of `]`; after a bracket no letter can stand


@dataclass(frozen=True, kw_only=True)
class Fields:
    """None for what is not there, or cannot be read. `garbled`: a call is there, and its arguments are not JSON."""

    id: str | None = None
    model: str | None = None
    created: int | None = None
    content: str | None = None
    finish_reason: str | None = None
    tool_calls: tuple[ToolCallSeen, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    garbled: bool = False


# ----------------------------------------------------------------------------------------------------- Python and JSON


def read_repr(text: str) -> Fields | None:
    """`ChatCompletion(id='1', …)` as Python's parser reads it; nothing is run."""
    tree = _tree(text) or _tree(_NO_LETTER.sub("]", text))
    if tree is None:
        return None
    value = _value(tree.body)
    if isinstance(value, list):
        value = {"tool_calls": value}
    return _fields(value) if isinstance(value, dict) else None


def _tree(text: str) -> ast.Expression | None:
    end = closing(text)
    if end is None:
        return None
    try:
        return ast.parse(text[:end].strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def read_json(text: str) -> Fields | None:
    """The first JSON object in the text, if it is an answer. Lines that a terminal cut were joined before."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text[start : start + _MOST])
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not {"choices", "tool_calls", "message", "usage"} & set(value):
        return None
    return _fields(value)


def closing(text: str) -> int | None:
    """Where the bracket is closed that opens first, and None if it never is; brackets in quotes do not count."""
    depth, quote, escaped = 0, "", False
    for number, each in enumerate(text[:_MOST]):
        if escaped:
            escaped = False
        elif each == "\\" and quote:
            escaped = True
        elif quote:
            quote = "" if each == quote else quote
        elif each in "'\"":
            quote = each
        elif each in "([{":
            depth += 1
        elif each in ")]}":
            depth -= 1
            if depth == 0:
                return number + 1
    return None


def _value(node: ast.AST) -> Any:
    """A call as the dictionary of its keywords, a list as a list, a constant as itself; None for all else."""
    match node:
        case ast.Call():
            return {word.arg: _value(word.value) for word in node.keywords if word.arg}
        case ast.List() | ast.Tuple():
            return [_value(each) for each in node.elts]
        case ast.Dict():
            return {
                key.value: _value(value)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            }
        case ast.Constant():
            return node.value
        case _:
            return None


def _fields(value: dict[str, Any]) -> Fields | None:
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else value
    message = choice.get("message") if isinstance(choice.get("message"), dict) else choice
    told_usage = value.get("usage")
    usage: dict[str, Any] = told_usage if isinstance(told_usage, dict) else {}
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    read = [_call(each) for each in calls] if isinstance(calls, list) else []
    known = tuple(each for each in read if each)
    fields = Fields(
        id=_text(value.get("id")),
        model=_text(value.get("model")),
        created=_whole(value.get("created")),
        content=_text(message.get("content")) if isinstance(message, dict) else None,
        finish_reason=_text(choice.get("finish_reason")),
        tool_calls=known,
        prompt_tokens=_whole(usage.get("prompt_tokens")),
        completion_tokens=_whole(usage.get("completion_tokens")),
        total_tokens=_whole(usage.get("total_tokens")),
        garbled=len(known) < len(read) or any(not is_json(each.arguments) for each in known),
    )
    shown = (fields.content, fields.finish_reason, fields.total_tokens, fields.model)
    return fields if known or any(each is not None for each in shown) else None


def _call(value: Any) -> ToolCallSeen | None:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments", function.get("parameters", ""))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCallSeen(name=function["name"], arguments=text)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# ------------------------------------------------------------------------------------------------------ field by field

_KEY = r"['\"]?\s*[=:≡＝]\s*"
_ID = re.compile(rf"(?:ChatCompletion\s?\(|\{{)\s*['\"]?id{_KEY}['\"]([^'\"]{{0,80}})['\"]")
_FINISH = re.compile(rf"finish[_ .~-]?reason{_KEY}['\"](\w+)['\"]?")
_CREATED = re.compile(rf"\bcreated{_KEY}([\dilI|][\dilI|OoS ]{{6,12}})(?![\d\ufffd])")
_MODEL = re.compile(rf"(?<![\w.])mode[l1I]{_KEY}['\"]([^'\"]{{1,300}})['\"]")
_TOKENS = {
    name: re.compile(rf"(?<![a-z]){name[:-7]}[_ .~-]{{0,2}}tokens{_KEY}(\d+)(?![\d\ufffd])")
    for name in ("prompt_tokens", "completion_tokens", "total_tokens")
}
_CONTENT = re.compile(
    rf"(?<![\w])content{_KEY}(?:(?P<none>None|null)\b|(?P<quoted>'.*?(?<!\\)'|\".*?(?<!\\)\"))"
    r"(?=\s*,\s*['\"]?(?:refusal|role|function[_ ]call|tool[_ ]calls|annotations|audio|reasoning|gen_tokens"
    r"|index)|\s*[)}])",
    re.DOTALL,
)
_CALL = re.compile(
    rf"arguments{_KEY}(?P<q>['\"]?)(?P<arguments>\{{.*?\}})\s*(?P=q)?\s*[,;]\s*['\"]?name"
    rf"{_KEY}['\"]?(?P<name>[\w.\-]+)['\"]",
    re.DOTALL,
)
_CALL_NAME_FIRST = re.compile(
    rf"name{_KEY}['\"](?P<name>[\w.\-]+)['\"]\s*,\s*['\"]?(?:arguments|parameters)"
    rf"{_KEY}(?P<q>['\"]?)(?P<arguments>\{{.*?\}})",
    re.DOTALL,
)
_FULL_WIDTH = re.compile(r"，(?=\s*['\"]?[a-z_]{2,}\s*['\"]?\s*[=:])")  # between fields, where it cannot be meant
_DIGITS = str.maketrans("ilI|OoS", "1111005")
_TOOL_CALL = re.compile(r"Tool\s?[Cc]all\s?\(|Function\s?\(\s*arguments")


def read_loosely(text: str) -> Fields | None:
    """Each field for itself."""
    text = _FULL_WIDTH.sub(", ", text[:_MOST]).replace("’", "'").replace("‘", "'").replace("”", '"').replace("“", '"')
    calls = [(found["name"], _arguments(found["arguments"])) for found in _CALL.finditer(text)]
    if not calls:
        calls = [(found["name"], _arguments(found["arguments"])) for found in _CALL_NAME_FIRST.finditer(text)]
    read = tuple(ToolCallSeen(name=name, arguments=arguments) for name, arguments in calls)
    content = _CONTENT.search(text)
    tokens = {name: _number(pattern.search(text)) for name, pattern in _TOKENS.items()}
    fields = Fields(
        id=_first(_ID.search(text)),
        model=_first(_MODEL.search(text)),
        created=_number(_CREATED.search(text)),
        content=_unquoted(content["quoted"]) if content and content["quoted"] else None,
        finish_reason=_first(_FINISH.search(text)),
        tool_calls=read,
        prompt_tokens=tokens["prompt_tokens"],
        completion_tokens=tokens["completion_tokens"],
        total_tokens=tokens["total_tokens"],
        garbled=len(read) < len(re.findall(r"ToolCall\s?\(", text))
        or any(not is_json(each.arguments) for each in read)
        or bool(not read and _TOOL_CALL.search(text)),
    )
    told = (fields.finish_reason, fields.total_tokens, fields.content, fields.created)
    return fields if read or any(each is not None for each in told) else None


def is_json(text: str) -> bool:
    """Whether it is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _arguments(text: str) -> str:
    """The JSON of a call's arguments, with what OCR makes of its quotes put right if that makes it JSON."""
    for each in (text, text.replace('\\"', '"'), text.replace("\\'", "'").replace("'", '"')):
        if is_json(each):
            return each
    spaced = re.sub(r"[\"'`]{1,2}\s*(\w+)\s*[\"'`]{1,2}\s*[:;]", r'"\1":', text)
    return spaced if is_json(spaced) else text


def _first(found: re.Match[str] | None) -> str | None:
    return found[1] if found else None


def _number(found: re.Match[str] | None) -> int | None:
    return int(found[1].replace(" ", "").translate(_DIGITS)) if found else None


def _unquoted(text: str) -> str:
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return text[1:-1]
    return value if isinstance(value, str) else text[1:-1]
