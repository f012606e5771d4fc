"""Follows questions through the turns on the wire: which calls the model made for each, and what became of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lab3.evidence import ExpectedCall
from lab3.funcall import CallOutcome
from lab3.grading.arithmetic import (
    Expression,
    Operation,
    among,
    computed,
    numbers_of,
    numbers_told,
    operation_of,
    read_expression,
    same,
)
from lab3.grading.wire import Turn, json_of, text_of
from lab3.openai_client import clean, excerpt

# "told": a result that had been sent back to the model by then; "untold": one that had not; "unknown": neither.
Origin = Literal["question", "told", "untold", "unknown"]

_RESULT_ROLES = ("tool", "function", "environment")
_PLUGIN_CALL = re.compile(r"<\|action_start\|>\s*<\|plugin\|>(.*?)<\|action_end\|>", re.DOTALL)  # InternLM's form
_RESULT_WORD = re.compile(r"=|result|return|output|gives|结果|等于|得到|返回|输出", re.IGNORECASE)
# A hostile script can send megabytes of messages; of an honest one these leave nothing out.
_LONGEST = 500  # letters of a text that is kept
_LONGEST_HISTORY = 20_000  # letters of a text that is searched
_MOST_NEW = 100  # messages that a request adds
_MOST_OPEN = 8  # calls without a result that one message may answer
_MOST_KEPT = 50


@dataclass(frozen=True, kw_only=True)
class ResultSent:
    """A message that carries a function's result to the model. `turn` is the request that brought it first."""

    turn: int
    role: str  # tool, function, environment, or user where the text tells the result
    content: str
    by_id: bool | None  # it names its call's id; None for roles that name none
    right: bool | None  # it tells what the function makes of these arguments; None where that is not judged


@dataclass(frozen=True, kw_only=True)
class WireCall:
    """A call that the model made. `numbers` are its arguments' and `origins` where each of them comes from."""

    number: int  # counted from 1 over all turns
    turn: int
    id: str
    name: str
    arguments_json: str
    arguments: dict[str, Any] | None  # None unless they are a JSON object
    outcome: CallOutcome  # "ok" if the function was offered and no required argument is missing
    operation: Operation | None  # by the tool's name or description
    numbers: tuple[float, ...]
    origins: tuple[Origin, ...]
    uses_results_of: tuple[int, ...]  # numbers of the calls whose results are among the arguments and had been told
    computes: float | None  # what add or mul makes of the numbers; None for other functions
    result: ResultSent | None  # what was sent back for it
    asked_after: bool  # a later request goes on with this conversation


@dataclass(frozen=True, kw_only=True)
class QuestionFacts:
    """A question and all that came of it. A user's message begins another one if it brings an expression of its own."""

    turns: tuple[int, ...]
    text: str
    tools: tuple[str, ...]  # names of the functions offered
    tool_choice: str
    expression: str | None
    value: float | None  # the expression's
    steps: tuple[ExpectedCall, ...]  # that reach the value, the inner ones first
    steps_called: tuple[bool, ...]  # whether the model called just that, for each step
    calls: tuple[WireCall, ...]
    said: tuple[str, ...]  # the model's text in each turn
    answer: str  # the last of these, "" if the last turn makes a call or has no answer
    answer_tells_value: bool | None  # None if there is no answer, or no value
    answer_tells_last_result: bool | None  # what the last call computes, in the same way
    prompt_tokens: int | None  # of the first request


@dataclass(frozen=True, kw_only=True)
class Invented:
    """Something in a request's history that the model never said on this wire. Examples for it look the same."""

    turn: int
    kind: Literal["call", "text"]
    content: str


@dataclass(frozen=True, kw_only=True)
class Followed:
    """The questions, and what in the requests belongs to no call or answer on the wire."""

    questions: tuple[QuestionFacts, ...]
    unasked_results: tuple[ResultSent, ...]
    invented: tuple[Invented, ...]


def follow(turns: Sequence[Turn]) -> Followed:
    """Read the turns in their order. A request continues the one whose messages it begins with, or whose calls it
    answers."""
    trail = _Trail()
    for turn in turns:
        trail.add(turn)
    return Followed(
        questions=tuple(_facts(question, trail.calls) for question in trail.questions),
        unasked_results=tuple(trail.unasked[:_MOST_KEPT]),
        invented=tuple(trail.invented[:_MOST_KEPT]),
    )


@dataclass
class _Question:
    text: str
    expression: Expression | None
    numbers: list[float]  # that the user named, in all that was said about it
    turns: list[Turn] = field(default_factory=list)


@dataclass
class _Trail:
    """What is known after some of the turns."""

    questions: list[_Question] = field(default_factory=list)
    calls: list[WireCall] = field(default_factory=list)
    unasked: list[ResultSent] = field(default_factory=list)
    invented: list[Invented] = field(default_factory=list)
    _asked_by: dict[int, _Question] = field(default_factory=dict)  # number of a turn → its question
    _by_history: dict[int, Turn] = field(default_factory=dict)  # fingerprint of all messages → the last such turn
    _said: set[str] = field(default_factory=set)  # by the model, in all turns so far
    _called: set[str] = field(default_factory=set)
    _told: dict[int, tuple[float, ...]] = field(default_factory=dict)  # number of a call → what was sent back for it

    def add(self, turn: Turn) -> None:
        before, new = self._place(turn)
        new = new[-_MOST_NEW:]
        known = self._asked_by.get(before.number) if before else None
        said = [message for message in new if message.get("role") == "assistant"]
        self.invented += [each for message in said for each in self._not_said(turn, message)]
        for message in new:
            if message.get("role") in _RESULT_ROLES:
                self._take_result(turn, message, known)
        asked = [text_of(message) for message in new if message.get("role") == "user"]
        texts = []
        for text in asked:
            carried = self._take_told_results(turn, text, known)
            if carried is None:
                texts.append(text)
            elif known is None:
                known = carried
        question = self._question(known, texts)
        question.turns.append(turn)
        self._asked_by[turn.number] = question
        self._by_history[_fingerprints(turn)[-1]] = turn
        self._said.add(turn.text.strip())
        for call in turn.calls:
            self._take_call(turn, call, question)

    def _place(self, turn: Turn) -> tuple[Turn | None, list[dict[str, Any]]]:
        """The turn that this one continues, if any, and the messages that it adds."""
        history = _fingerprints(turn)
        for length in range(len(turn.messages) - 1, 0, -1):
            if before := self._by_history.get(history[length]):
                waiting = any(call.turn == before.number and call.result is None for call in self.calls)
                repeated = history[-1] in self._by_history and not waiting  # the same request, sent once more
                return before, [] if repeated else turn.messages[length:]
        ids = {message.get("tool_call_id") for message in turn.messages if message.get("role") == "tool"}
        known = next((call for call in reversed(self.calls) if call.id and call.id in ids), None)
        if known is None:
            return None, turn.messages
        before = next(each for each in self._asked_by_turns() if each.number == known.turn)
        seen = Counter(map(_canonical, before.messages))
        new = []
        for message in turn.messages:
            key = _canonical(message)
            if seen[key]:
                seen[key] -= 1
            else:
                new.append(message)
        return before, new

    def _asked_by_turns(self) -> Iterable[Turn]:
        return (turn for question in self.questions for turn in question.turns)

    def _question(self, known: _Question | None, texts: list[str]) -> _Question:
        """The question that a turn is about; a new one if nothing is continued, or if it asks for something else."""
        expression = read_expression(texts[-1]) if texts else None
        if known is not None and (expression is None or not texts):
            known.numbers += [number for text in texts for number in numbers_told(text)]
            return known
        text = texts[-1] if texts else ""
        question = _Question(text=text, expression=expression, numbers=list(numbers_told(text)))
        self.questions.append(question)
        return question

    def _not_said(self, turn: Turn, message: dict[str, Any]) -> Iterable[Invented]:
        for call in message.get("tool_calls") or () if isinstance(message.get("tool_calls"), list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict) or _call_key(function, "arguments") not in self._called:
                yield Invented(turn=turn.number, kind="call", content=excerpt(call, _LONGEST))
        text = text_of(message).strip()
        if text in self._said or text in ("", "None", "null"):
            return
        text = text[:_LONGEST_HISTORY]
        for block in _PLUGIN_CALL.findall(text):
            call = json_of(block)
            if not isinstance(call, dict) or _call_key(call, "parameters") not in self._called:
                yield Invented(turn=turn.number, kind="call", content=excerpt(block.strip(), _LONGEST))
        rest = _PLUGIN_CALL.sub("", text).strip()
        if rest and rest not in self._said:
            yield Invented(turn=turn.number, kind="text", content=excerpt(rest, _LONGEST))

    def _take_result(self, turn: Turn, message: dict[str, Any], known: _Question | None) -> None:
        """Give the message to the call that it answers: the one it names, or the likeliest that has no result yet."""
        role, content = clean(message.get("role")), text_of(message)
        open_calls = self._open_calls()
        named = message.get("tool_call_id") if role == "tool" else None
        call = next((each for each in reversed(open_calls) if each.id and each.id == named), None)
        by_id = call is not None if role == "tool" else None
        if call is None and known is not None and not any(each.id and each.id == named for each in self.calls):
            waiting = [each for each in open_calls if self._asked_by[each.turn] is known]
            call = next((each for each in waiting if _tells(content, each)), waiting[0] if waiting else None)
        result = ResultSent(turn=turn.number, role=role, content=excerpt(content, _LONGEST), by_id=by_id, right=None)
        if call is None:
            self.unasked.append(result)
        else:
            self._settle(call, replace(result, right=_tells(content, call)))

    def _take_told_results(self, turn: Turn, text: str, known: _Question | None) -> _Question | None:
        """The question whose calls' results a user's message tells, None if it tells none."""
        found = None
        for call in self._open_calls():
            question = self._asked_by[call.turn]
            if (known is None or question is known) and _carries(text, call, continued=known is not None):
                self._settle(
                    call,
                    ResultSent(
                        turn=turn.number,
                        role="user",
                        content=excerpt(text, _LONGEST),
                        by_id=None,
                        right=_tells(text, call),
                    ),
                )
                found = question
        return found

    def _open_calls(self) -> list[WireCall]:
        return [call for call in self.calls if call.result is None][-_MOST_OPEN:]

    def _settle(self, call: WireCall, result: ResultSent) -> None:
        self.calls[call.number - 1] = replace(call, result=result)
        sent = numbers_told(result.content, beside=call.numbers)
        self._told[call.number] = (call.computes,) if result.right and call.computes is not None else sent

    def _take_call(self, turn: Turn, call: dict[str, Any], question: _Question) -> None:
        function: dict[str, Any] = call["function"]
        name, given = clean(function.get("name")), function.get("arguments")
        parsed = json_of(given) if isinstance(given, str) else None
        arguments = parsed if isinstance(parsed, dict) else None
        tool = next((tool for tool in turn.tools if tool.get("name") == name), None)
        operation = operation_of(name, clean((tool or {}).get("description")))
        numbers = numbers_of(arguments)
        self._called.add(_call_key(function, "arguments"))
        self.calls.append(
            WireCall(
                number=len(self.calls) + 1,
                turn=turn.number,
                id=clean(call.get("id")),
                name=name,
                arguments_json=given if isinstance(given, str) else excerpt(given, _LONGEST),
                arguments=arguments,
                outcome=_outcome(parsed, tool),
                operation=operation,
                numbers=numbers,
                origins=tuple(self._origin(number, question) for number in numbers),
                uses_results_of=tuple(
                    each for each, told in self._told.items() if any(among(number, told) for number in numbers)
                ),
                computes=computed(operation, numbers),
                result=None,
                asked_after=False,
            )
        )

    def _origin(self, number: float, question: _Question) -> Origin:
        if any(among(number, told) for told in self._told.values()):
            return "told"
        if among(number, question.numbers):
            return "question"
        computed_only = [call.computes for call in self.calls if call.computes is not None]
        return "untold" if among(number, computed_only) else "unknown"


def _facts(question: _Question, every: Sequence[WireCall]) -> QuestionFacts:
    turns, expression = question.turns, question.expression
    numbers = [turn.number for turn in turns]
    calls = tuple(replace(call, asked_after=call.turn < numbers[-1]) for call in every if call.turn in numbers)
    first, last = turns[0], turns[-1]
    answer = "" if last.calls else excerpt(last.text, _LONGEST)
    chosen = first.request.get("tool_choice", "auto")
    usage = (first.usage or {}).get("prompt_tokens")
    return QuestionFacts(
        turns=tuple(numbers),
        text=excerpt(question.text, _LONGEST),
        tools=tuple(excerpt(clean(tool.get("name")), 100) for tool in first.tools[:_MOST_KEPT]),
        tool_choice=chosen if isinstance(chosen, str) else excerpt(chosen, 100),
        expression=expression.text if expression else None,
        value=expression.value if expression else None,
        steps=expression.calls if expression else (),
        steps_called=tuple(any(_is_step(call, step) for call in calls) for step in expression.calls)
        if expression
        else (),
        calls=calls,
        said=tuple(excerpt(turn.text, _LONGEST) for turn in turns),
        answer=answer,
        answer_tells_value=_names(answer, expression.value if expression else None),
        answer_tells_last_result=_names(answer, calls[-1].computes if calls else None),
        prompt_tokens=usage if isinstance(usage, int) else None,
    )


def _is_step(call: WireCall, step: ExpectedCall) -> bool:
    """Whether it is a good call of this operation with these numbers, in any order where that changes nothing."""
    if call.outcome != "ok" or call.operation != step.function or len(call.numbers) != len(step.numbers):
        return False
    pair = (call.numbers, step.numbers) if step.function == "sub" else (sorted(call.numbers), sorted(step.numbers))
    return all(map(same, *pair))


def _names(answer: str, value: float | None) -> bool | None:
    return among(value, numbers_told(answer)) if answer.strip() and value is not None else None


def _tells(content: str, call: WireCall) -> bool | None:
    """Whether the text names what the call computes; None where that is not judged."""
    return None if call.computes is None else among(call.computes, numbers_told(content, beside=call.numbers))


def _carries(text: str, call: WireCall, *, continued: bool) -> bool:
    """Whether a user's message brings the call's result, and is not only another question that has its number in it."""
    if call.computes is None:
        return continued and bool(_RESULT_WORD.search(text))
    right = bool(_tells(text, call))
    left = len(numbers_told(text)) - len(numbers_told(text, beside=call.numbers))
    shows_arguments = left == len(call.numbers)
    if read_expression(text) is not None and not (shows_arguments and right):
        return False
    return (right or shows_arguments) if _RESULT_WORD.search(text) else continued and right


def _outcome(parsed: Any, tool: dict[str, Any] | None) -> CallOutcome:
    if not isinstance(parsed, dict):
        return "not_json" if parsed is None else "not_an_object"
    if tool is None:
        return "unknown_function"
    schema = tool.get("parameters")
    required = schema.get("required") if isinstance(schema, dict) else None
    missing = [name for name in required if name not in parsed] if isinstance(required, list) else []
    return "invalid_arguments" if missing else "ok"


def _call_key(call: dict[str, Any], arguments: str) -> str:
    """The same for calls of the same function with the same arguments, however these are written."""
    given = call.get(arguments)
    parsed = json_of(given) if isinstance(given, str) else given
    return _canonical([call.get("name"), given if parsed is None else parsed])


def _fingerprints(turn: Turn) -> list[int]:
    """One for no message, for the first, for the first two and so on."""
    found = [0]
    for message in turn.messages:
        found.append(hash((found[-1], _canonical(message))))
    return found


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
