"""The tool loop of the lab: the model asks for `add` and `mul`, lab3 runs them and feeds the results back.

Nothing the model writes is ever evaluated: a call is a name looked up among the given functions and JSON checked
against their schema. What cannot be run becomes a recorded outcome and an error text for the model, not an exception.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lab3.chat import Message, RawCall, Reply, Usage, ask
from lab3.errors import UsageError
from lab3.openai_client import MalformedAnswer, excerpt, first_model, open_client
from lab3.tool_schema import parameters_of, tool_schema

Tool = Callable[..., Any]
Style = Literal["tool", "environment"]
CallOutcome = Literal["ok", "not_json", "not_an_object", "unknown_function", "invalid_arguments", "raised"]
RunOutcome = Literal["answered", "no_call", "no_valid_call", "empty_answer", "max_rounds", "malformed"]

__all__ = ["Call", "Round", "ToolRun", "add", "echo", "fresh_id", "mul", "run_call", "run_tools", "tool_schema"]


def add(a: int | float, b: int | float) -> int | float:
    """Add two numbers and return their sum.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


def mul(a: int | float, b: int | float) -> int | float:
    """Multiply two numbers and return their product.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


@dataclass(frozen=True)
class Call:
    """One call the model made and what became of it.

    `arguments` is None unless they parsed to a JSON object. `result` is what the function returned when `outcome`
    is "ok"; otherwise `error` says what was wrong, in the words that the model was told.
    """

    id: str
    name: str
    arguments_json: str
    arguments: dict[str, Any] | None
    outcome: CallOutcome
    result: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Round:
    """One request and its answer. `sent_messages` counts the messages of the request."""

    sent_messages: int
    tool_choice: Any
    content: str
    calls: tuple[Call, ...]
    usage: Usage | None
    finish_reason: str | None
    seconds: float


@dataclass(frozen=True)
class ToolRun:
    """The whole exchange. `answer` is the model's last text ("" if it never answered).

    `outcome`: "answered" after at least one good call; "no_call", it answered without any; "no_valid_call", it
    answered but none of its calls could be run; "empty_answer", no call and no text; "max_rounds", it was still
    calling; "malformed", the server's answer was not the OpenAI API's (`error` says how).
    """

    outcome: RunOutcome
    answer: str
    rounds: tuple[Round, ...]
    messages: tuple[Message, ...]
    model: str
    error: str | None = None

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls of all rounds, in the order they were made."""
        return tuple(call for each in self.rounds for call in each.calls)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready values, with the calls listed once more at the top."""
        plain = asdict(self) | {"messages": [dict(message) for message in self.messages]}
        return plain | {"calls": [asdict(call) for call in self.calls]}


def run_tools(
    question: str | Sequence[Message],
    tools: Sequence[Tool] = (add, mul),
    *,
    base_url: str,
    model: str | None = None,
    api_key: str = "none",
    tool_choice: str | Sequence[str] = "auto",
    style: Style = "tool",
    max_rounds: int = 6,
    stream: bool = False,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    max_tokens: int | None = 512,
    timeout_s: float = 120.0,
) -> ToolRun:
    """Ask, run the functions the model calls (only those in `tools`), feed the results back, until it answers.

    `tool_choice` is "auto", "required", "none" or a function's name. Since a forced model can never answer, a lone
    "required" or name holds for the first round and "auto" for the rest; a sequence says it round by round, the last
    repeated: ("required", "required", "none") is the lab's add, then mul, then the answer. LMDeploy 0.18 does not
    force a *named* function, it only hides the others; to force one, give it alone as `tools` with "required".

    `style` is how calls and results go back: "tool" as the OpenAI API has it, "environment" as InternLM was trained
    and the tutorial does it. `timeout_s` bounds each round's wait; at most `max_rounds` requests are sent.

    Raises UsageError and InfraError as `lab3.chat.chat` does, but never for what the model wrote.
    """
    functions = {tool.__name__: tool for tool in tools}
    choices = _choices(tool_choice, tuple(functions))
    if not functions or len(functions) < len(tools) or max_rounds < 1:
        raise UsageError(
            "run_tools needs functions of different names and at least one round.",
            why=f"got {[tool.__name__ for tool in tools]} and max_rounds={max_rounds}",
        )
    messages: list[Message] = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    request: dict[str, Any] = {"tools": [tool_schema(tool) for tool in tools], "temperature": temperature}
    request |= {"top_p": top_p, "seed": seed, "max_tokens": max_tokens}
    rounds: list[Round] = []
    with open_client(base_url, api_key=api_key, timeout_s=timeout_s) as client:
        request["model"] = model = model or first_model(client)
        while len(rounds) < max_rounds:
            choice = choices[min(len(rounds), len(choices) - 1)]
            try:
                reply = ask(
                    client,
                    request | {"messages": messages, "tool_choice": choice},
                    stream=stream,
                    timeout_s=timeout_s,
                )
            except MalformedAnswer as error:
                return ToolRun("malformed", "", tuple(rounds), tuple(messages), model, error.what)
            calls = _run_calls(reply.tool_calls, functions, taken={call.id for each in rounds for call in each.calls})
            rounds.append(_round(reply, calls, sent_messages=len(messages), tool_choice=choice))
            messages += echo(reply.text, calls, style=style)
            if not calls:
                break
    outcome = _outcome(rounds)
    return ToolRun(outcome, "" if outcome == "max_rounds" else reply.text, tuple(rounds), tuple(messages), reply.model)


def run_call(raw: RawCall, tools: Mapping[str, Tool], *, call_id: str) -> Call:
    """Check one call and run it if it is a good one; never raises for anything the model may have written."""
    text = raw.arguments if isinstance(raw.arguments, str) else excerpt(raw.arguments, 2000)
    arguments: dict[str, Any] | None = None
    try:
        if raw.name not in tools:
            raise _Bad("unknown_function", f"there is no function {raw.name!r}; there are: {', '.join(tools)}")
        function = tools[raw.name]
        arguments = _parse(raw.arguments)
        _validate(arguments, parameters_of(function))
        result = _call(function, arguments)
    except _Bad as bad:
        return Call(call_id, raw.name, text, arguments, bad.outcome, error=excerpt(f"{bad}", 500))
    return Call(call_id, raw.name, text, arguments, "ok", result=result)


class _Bad(Exception):
    """Why a call cannot be run."""

    def __init__(self, outcome: CallOutcome, error: str) -> None:
        super().__init__(error)
        self.outcome = outcome


def _parse(text: Any) -> dict[str, Any]:
    """A JSON object by the letter of RFC 8259, or _Bad. Python's parser alone takes NaN, 1e999 and double keys."""
    if not isinstance(text, str):
        raise _Bad("not_json", f"the arguments came as {type(text).__name__}, not as a string of JSON")
    try:
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite_float, object_pairs_hook=_distinct_keys
        )
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates pass the parser, and no UTF-8 can hold them
    except RecursionError:
        raise _Bad("invalid_arguments", "the arguments are nested too deep") from None
    except UnicodeEncodeError:
        raise _Bad("not_json", "the arguments are not valid Unicode") from None
    except json.JSONDecodeError as error:
        raise _Bad("not_json", f"the arguments are not JSON: {error}") from None
    except ValueError as error:  # Python refuses integers of more than 4300 digits
        raise _Bad("invalid_arguments", f"the arguments hold a number too large: {error}") from None
    if _is_deep(value):
        raise _Bad("invalid_arguments", "the arguments are nested too deep")
    if not isinstance(value, dict):
        inside = "a string that holds JSON" if isinstance(value, str) else type(value).__name__
        raise _Bad("not_an_object", f'the arguments are {inside}, not a JSON object like {{"a": 3}}')
    return value


def _is_deep(value: Any) -> bool:
    """Nested deeper than 64: no honest argument is, and copying or showing it may overflow the stack."""
    level = [value]
    for _ in range(64):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
        ]
    return bool(level)


def _no_constant(name: str) -> Any:
    raise _Bad("not_json", f"the arguments are not JSON: {name} is no JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Bad("invalid_arguments", f"the arguments hold a number too large: {excerpt(text, 40)}")
    return value


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _Bad("invalid_arguments", "the arguments name the same key twice")
    return value


def _validate(arguments: dict[str, Any], schema: dict[str, Any]) -> None:
    import jsonschema

    def is_integer(_: Any, value: Any) -> bool:  # JSON Schema lets 3.0 pass, but the function says int
        return isinstance(value, int) and not isinstance(value, bool)

    checker = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", is_integer)
    extend: Any = jsonschema.validators.extend  # untyped in its stubs
    validator = extend(jsonschema.Draft202012Validator, type_checker=checker)(schema)
    try:
        problems = [excerpt(error.message, 150) for error in validator.iter_errors(arguments)]
    except RecursionError:
        problems = ["nested too deep"]
    if problems:
        raise _Bad("invalid_arguments", f"the arguments do not fit: {'; '.join(problems)}")


def _call(function: Tool, arguments: dict[str, Any]) -> Any:
    try:
        result = function(**arguments)
    except Exception as error:
        raise _Bad("raised", f"{function.__name__} raised {type(error).__name__}: {error}") from error
    try:
        json.dumps(result, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _Bad("raised", f"{function.__name__} returned what JSON cannot hold: {error}") from None
    return result


def _run_calls(raw_calls: Sequence[RawCall], tools: Mapping[str, Tool], *, taken: set[str]) -> tuple[Call, ...]:
    """Run a round's calls in order. Ids that are missing or used already are replaced, so that each answer fits one."""
    calls: list[Call] = []
    for raw in raw_calls:
        call_id = fresh_id(raw, taken)
        taken = taken | {call_id}
        calls.append(run_call(raw, tools, call_id=call_id))
    return tuple(calls)


def fresh_id(raw: RawCall, taken: Collection[str]) -> str:
    """The call's own id, or one made up where it has none or one that another call of the exchange has."""
    made_up = (f"lab3_call_{number}" for number in itertools.count(1))
    return next(each for each in (raw.id, *itertools.islice(made_up, len(taken) + 1)) if each and each not in taken)


def _round(reply: Reply, calls: tuple[Call, ...], *, sent_messages: int, tool_choice: Any) -> Round:
    return Round(sent_messages, tool_choice, reply.text, calls, reply.usage, reply.finish_reason, reply.seconds)


def _outcome(rounds: Sequence[Round]) -> RunOutcome:
    if rounds[-1].calls:
        return "max_rounds"
    if not rounds[-1].content.strip():
        return "empty_answer"
    calls = [call for each in rounds for call in each.calls]
    if not calls:
        return "no_call"
    return "answered" if any(call.outcome == "ok" for call in calls) else "no_valid_call"


def _choices(tool_choice: str | Sequence[str], names: tuple[str, ...]) -> list[Any]:
    """One `tool_choice` per round in the API's form."""
    asked = [tool_choice] if isinstance(tool_choice, str) else list(tool_choice)
    if isinstance(tool_choice, str) and tool_choice not in ("auto", "none"):
        asked.append("auto")
    unknown = [choice for choice in asked if choice not in ("auto", "required", "none", *names)]
    if unknown or not asked:
        raise UsageError(
            f"tool_choice {tool_choice!r} is not one.",
            todo=f"use auto, required, none or one of {', '.join(names)}, or a sequence of them, one for each round",
        )
    return [
        choice if choice in ("auto", "required", "none") else {"type": "function", "function": {"name": choice}}
        for choice in asked
    ]


def echo(text: str, calls: Sequence[Call], *, style: Style = "tool") -> list[Message]:
    """The assistant's turn and the results of its calls, as the next request carries them."""
    if not calls:
        return [{"role": "assistant", "content": text}]
    if style == "environment":
        blocks = "\n".join(
            f'<|action_start|><|plugin|>\n{{"name": {json.dumps(call.name, ensure_ascii=False)}, '
            f'"parameters": {call.arguments_json}}}<|action_end|>'
            for call in calls
        )
        results = [{"role": "environment", "name": "plugin", "content": _told(call)} for call in calls]
        return [{"role": "assistant", "content": text + blocks}, *results]
    echoed = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _sendable(call)}}
        for call in calls
    ]
    results = [{"role": "tool", "tool_call_id": call.id, "content": _told(call)} for call in calls]
    return [{"role": "assistant", "content": text, "tool_calls": echoed}, *results]


def _sendable(call: Call) -> str:
    """The arguments as they came, or wrapped: LMDeploy refuses a request that echoes arguments that are no JSON."""
    return call.arguments_json if call.arguments is not None else json.dumps({"malformed": call.arguments_json})


def _told(call: Call) -> str:
    """What the model is told: the result as JSON, text as it is."""
    if call.outcome != "ok":
        return json.dumps({"error": call.error}, ensure_ascii=False)
    return call.result if isinstance(call.result, str) else json.dumps(call.result, ensure_ascii=False)
