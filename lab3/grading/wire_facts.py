"""All that the wire tells of one script, next to what the script printed: facts that nobody has judged yet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab3.checks import numbers_in
from lab3.evidence import CallFacts, ToolFacts
from lab3.funcall import RunOutcome
from lab3.grading.arithmetic import among, numbers_told
from lab3.grading.conversation import Invented, QuestionFacts, ResultSent, WireCall, follow
from lab3.grading.exchange import FAULTS, Exchange
from lab3.grading.wire import Problem, Turn, is_chat, problems_of, turns
from lab3.openai_client import excerpt

# Of an answer of the API that was printed as it came: numbers that are no results. And times and dates.
_FIELDS = re.compile(
    r"\b(?:\w*tokens|created|index|\w*id|port|seed|time|seconds)\b[\"']?\s*[:=]\s*[\"']?-?\d+(?:\.\d+)?"
    r"|\d{1,4}([:-])\d{1,2}\1\d{1,2}",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[A-Za-z0-9_.-]+")
_MOST_OUTPUT = 1 << 20
_MOST_ROLES = 50
_NEVER_SENT = {kind for kind in FAULTS if kind.startswith(("refused", "too_"))} | {"not_http", "server_down"}


@dataclass(frozen=True, kw_only=True)
class TurnFacts:
    """One request in short. `question` is the place of the one that it belongs to, counted from 0."""

    number: int
    question: int
    roles: tuple[str, ...]  # of its messages
    streamed: bool
    status: int | None
    calls: int
    finish_reason: str | None
    seconds: float | None
    first_byte_s: float | None  # after the request
    problems: tuple[Problem, ...]


@dataclass(frozen=True, kw_only=True)
class PrintedFacts:
    """Whether a number that answers a question stands in the script's output, and where it could come from.

    Printed with neither `called` nor `said` is an answer that the script had by itself.
    """

    value: float
    question: int | None  # which one asks for it; None: none on the wire
    printed: bool | None  # None where it stands in the question, too, so that printing it tells nothing
    called: bool  # a call of the model computes it
    said: bool  # the model named it in a text


@dataclass(frozen=True, kw_only=True)
class WireFacts:
    """All that the wire tells of one script's run."""

    requests: int
    paths: dict[str, int]  # "POST /v1/chat/completions" → how often
    asked: bool  # a chat request reached the model server
    asked_with_tools: bool
    questions: tuple[QuestionFacts, ...]
    turns: tuple[TurnFacts, ...]
    unasked_results: tuple[ResultSent, ...]  # that answer no call on the wire
    invented: tuple[Invented, ...]  # assistant messages that the model did not say
    printed: tuple[PrintedFacts, ...]
    problems: tuple[Problem, ...]  # of requests other than chat; a turn's own are in `turns`
    server_faults: int  # problems of any request that are the server's doing
    client_faults: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values. Texts may hold lone surrogates, so let json.dumps escape what is not ASCII."""
        return asdict(self)


def wire_facts(exchanges: Sequence[Exchange], *, output: str = "", answer: float | None = None) -> WireFacts:
    """What the exchanges of one script tell. `output` is what it printed; `answer` a number to look for in it although
    no question on the wire may ask for it (the lab's 16)."""
    chat = turns(exchanges)
    followed = follow(chat)
    others = [problem for each in exchanges if not is_chat(each) for problem in problems_of(each)]
    every = [*others, *(problem for turn in chat for problem in turn.problems)]
    reached = [turn for turn in chat if not any(problem.kind in _NEVER_SENT for problem in turn.problems)]
    return WireFacts(
        requests=len(exchanges),
        paths=dict(Counter(f"{each.method} {each.path.partition('?')[0][:100]}" for each in exchanges)),
        asked=bool(reached),
        asked_with_tools=any(turn.tools for turn in reached),
        questions=followed.questions,
        turns=tuple(_turn_facts(turn, followed.questions) for turn in chat),
        unasked_results=followed.unasked_results,
        invented=followed.invented,
        printed=_printed(followed.questions, output[-_MOST_OUTPUT:], answer),
        problems=tuple(others),
        server_faults=sum(problem.fault == "server" for problem in every),
        client_faults=sum(problem.fault == "client" for problem in every),
    )


def tool_runs(turns: Sequence[Turn]) -> tuple[ToolFacts, ...]:
    """The questions with tools and an expression, in the form that lab3's checks of task 2 read.

    A function goes by its operation's name where that is known, so that `plus` is judged as `add` is.
    """
    found = (_tool_facts(question) for question in follow(turns).questions if question.tools)
    return tuple(facts for facts in found if facts)


def _turn_facts(turn: Turn, questions: Sequence[QuestionFacts]) -> TurnFacts:
    first_byte_s = None if turn.first_byte_s is None else turn.first_byte_s - turn.began_s
    return TurnFacts(
        number=turn.number,
        question=next(at for at, question in enumerate(questions) if turn.number in question.turns),
        roles=tuple(excerpt(message.get("role"), 20) for message in turn.messages[-_MOST_ROLES:]),
        streamed=turn.streamed,
        status=turn.status,
        calls=len(turn.calls),
        finish_reason=turn.finish_reason,
        seconds=None if turn.ended_s is None else turn.ended_s - turn.began_s,
        first_byte_s=first_byte_s,
        problems=turn.problems,
    )


def _printed(questions: Sequence[QuestionFacts], output: str, answer: float | None) -> tuple[PrintedFacts, ...]:
    plain = _WORDS.sub(lambda word: " " if _is_name(word[0]) else word[0], _FIELDS.sub(" ", output))
    shown = numbers_in(plain)
    asked = [(at, question.value) for at, question in enumerate(questions) if question.value is not None]
    found = []
    for at, value in asked:
        question = questions[at]
        given = among(value, numbers_told(question.text))
        found.append(_printed_facts(value, None if given else among(value, shown), [question], at))
    if answer is not None and not among(answer, [value for _, value in asked]):
        found.append(_printed_facts(answer, among(answer, shown), questions, None))
    return tuple(found)


def _printed_facts(
    value: float, printed: bool | None, questions: Sequence[QuestionFacts], at: int | None
) -> PrintedFacts:
    return PrintedFacts(
        value=value,
        question=at,
        printed=printed,
        called=any(
            among(value, [call.computes]) for each in questions for call in each.calls if call.computes is not None
        ),
        said=any(among(value, numbers_told(text)) for each in questions for text in each.said),
    )


def _is_name(word: str) -> bool:
    """Such as an id, whose digits are no number."""
    return any(letter.isalpha() for letter in word) and any(letter.isdigit() for letter in word)


def _tool_facts(question: QuestionFacts) -> ToolFacts | None:
    if question.value is None:
        return None
    followed = [call for call in question.calls if call.asked_after]
    return ToolFacts(
        question=question.text,
        expected=question.steps,
        expected_answer=question.value,
        tool_choice=question.tool_choice,
        calls=tuple(_call_facts(call) for call in question.calls),
        results_returned=bool(followed) and all(call.result and call.result.right is not False for call in followed),
        answer=question.answer,
        outcome=_run_outcome(question),
        content=question.said[0] if question.said else "",
        prompt_tokens=question.prompt_tokens,
    )


def _call_facts(call: WireCall) -> CallFacts:
    return CallFacts(
        id=call.id,
        name=call.operation or call.name,
        arguments_json=call.arguments_json,
        arguments=call.arguments,
        outcome=call.outcome,
        result=call.computes,
    )


def _run_outcome(question: QuestionFacts) -> RunOutcome:
    """As lab3.funcall names it; a run that ends with a call is one that was not asked again."""
    if question.calls and question.calls[-1].turn == question.turns[-1]:
        return "max_rounds"
    if not question.answer.strip():
        return "empty_answer"
    if not question.calls:
        return "no_call"
    return "answered" if any(call.outcome == "ok" for call in question.calls) else "no_valid_call"
