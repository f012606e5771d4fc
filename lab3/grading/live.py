"""Runs a student's script against a model server, in the sandbox and with the wire watched, and reads what it did."""

from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lab3.evidence import ChatFacts, NonceFacts, ScriptRun, ToolFacts
from lab3.grading.collector import TUTORIAL, Collected
from lab3.grading.conversation import QuestionFacts
from lab3.grading.documents import notebook_script
from lab3.grading.exchange import Exchange
from lab3.grading.proxy import RecordingProxy
from lab3.grading.sandbox import Door, Limits, Ran, run
from lab3.grading.wire import Turn, turns
from lab3.grading.wire_facts import WireFacts, tool_runs, wire_facts
from lab3.scratch import scratch

Role = Literal["chat", "tools"]
LAB_ANSWER = 16.0  # of the tutorial's question, looked for in what is printed although nothing may have been asked
ATTEMPTS = 4  # of a script whose calls did not come right: a model that is asked at a temperature may miss
MOST_TOKENS = 512  # of an answer whose length a script leaves open
_NONCES_AT_ONCE = 5
_CUT_OFF = ("client_gone", "unfinished")
# For scripts that ask their user: a question, and the words by which such loops are left.
STDIN = {"chat": "介绍一下你自己\n", "tools": "Compute (3+5)*2\n"}
_LEAVE = "exit\nquit\nq\n退出\n\n"
_NOTEBOOK_BYTES = 1 << 20  # of a file that goes along with a notebook
# Of an answer that is printed as it came: what differs from run to run. What was printed otherwise is left as it is.
_PASSING = re.compile(
    r"(?P<name>\b(?:id|tool_call_id|created|system_fingerprint)['\"]?\s*[=:]\s*)"
    r"(?P<value>'[^']{0,200}'|\"[^\"]{0,200}\"|[0-9]{1,20})"
)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A run of a script, and all that went over the wire meanwhile."""

    ran: Ran
    exchanges: tuple[Exchange, ...]
    turns: tuple[Turn, ...]
    wire: WireFacts

    @property
    def server_trouble(self) -> tuple[str, ...]:
        """What went wrong and was not the script's doing; it is no fail of the student's."""
        told = [p.text for turn in self.turns for p in turn.problems if p.fault == "server"]
        told += [p.text for p in self.wire.problems if p.fault == "server"]
        last = self.exchanges[-1] if self.exchanges else None
        # With the script's time its request ends, too: one that waited for most of it was the server's to answer.
        waited_s = (last.ended_s or 0.0) - last.began_s if last and last.error_kind in _CUT_OFF else 0.0
        if self.ran.outcome == "timeout" and last and waited_s > self.ran.seconds / 2:
            told.append(f"the server had not answered request {last.number} when the time was over")
        return tuple(dict.fromkeys([*told, *self.ran.door_trouble]))


def watch(
    script: Path, collected: Collected, role: Role, *, upstream: str, model: str, seed: int, limits: Limits
) -> Watched:
    """Run the script once, unchanged, against the server at `upstream` (without /v1).

    A request that names no seed gets `seed`, so that a grade can be repeated, and one without a bound on its answer's
    length `MOST_TOKENS`; the name that a script has for the model becomes `model`.
    Raises as `lab3.grading.sandbox.run` and `RecordingProxy` do.
    """
    names = dict.fromkeys(collected.models.get(role, ()), model)
    doors = collected.doors(role) or ((TUTORIAL.host, TUTORIAL.port),)
    with scratch("lab3-wire-") as folder, _runnable(script, collected.folder) as (file, at):
        socket = folder / "wire"
        with RecordingProxy(
            upstream, socket=socket, defaults={"seed": seed, "max_tokens": MOST_TOKENS}, names=names
        ) as proxy:
            ran = run(
                file,
                folder=at,
                doors=[Door(host=host, port=port, socket=socket) for host, port in doors],
                limits=limits,
                stdin=STDIN[role] + _LEAVE,
            )
        exchanges = proxy.exchanges
    answer = LAB_ANSWER if role == "tools" else None
    return Watched(
        ran=ran,
        exchanges=exchanges,
        turns=turns(exchanges),
        wire=wire_facts(exchanges, output=ran.stdout, answer=answer),
    )


def seed_of(name: str, attempt: int) -> int:
    """The same for the same submission's same attempt, whenever it is graded."""
    return (zlib.crc32(name.encode("utf-8", "surrogatepass")) + attempt) & 0x7FFFFFFF


def run_of(watched: Watched, role: Role, attempt: int) -> ScriptRun:
    """The run as a fact, without anything that differs from run to run by itself."""
    right = chat_of(watched).error is None if role == "chat" else tools_right(tools_of(watched))
    return ScriptRun(
        attempt=attempt,
        outcome=watched.ran.outcome,
        returncode=watched.ran.returncode,
        stdout=lasting(watched.ran.stdout),
        stderr=lasting(watched.ran.stderr),
        wire=_timeless(watched.wire.to_dict()),
        right=right and not watched.server_trouble,
        server_trouble=watched.server_trouble,
    )


def lasting(text: str) -> str:
    """`text` without the ids and times of answers."""
    return _PASSING.sub(lambda found: f"{found['name']}…", text)


# --- what its task asks for -------------------------------------------------------------------------------------------


def chat_of(watched: Watched) -> ChatFacts:
    """The last conversation that the script had, judged by nobody; `error` if it had none."""
    good = [turn for turn in watched.turns if turn.message is not None and turn.text.strip()]
    turn = good[-1] if good else watched.turns[-1] if watched.turns else None
    usage = (turn.usage if turn else None) or {}
    asked = [message for message in turn.messages if message.get("role") == "user"] if turn else []
    return ChatFacts(
        question=_text(asked[-1].get("content")) if asked else "",
        text=turn.text[:4000] if turn else "",
        finish_reason=turn.finish_reason if turn else None,
        ttft_s=None,
        tokens_per_second=None,
        error=_chat_fault(watched, turn),
        usage_due=turn is None or not turn.streamed or bool(turn.usage),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        total_tokens=_count(usage, "total_tokens"),
    )


def _count(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) else None


def _chat_fault(watched: Watched, turn: Turn | None) -> str | None:
    if turn is None:
        how = _ending(watched.ran)
        return f"the script asked the model nothing{how}"
    # Who breaks out of a stream after its last word has the whole answer.
    whole = turn.finish_reason is not None and bool(turn.text.strip())
    told = [p.text for p in turn.problems if p.fault != "server" and not (whole and p.kind == "client_gone")]
    return f"no answer came{_ending(watched.ran)}: {'; '.join(told)}" if told or turn.message is None else None


def _ending(ran: Ran) -> str:
    if ran.outcome == "exited":
        last = (ran.stderr.strip().splitlines() or [""])[-1]
        return f" and ended with {last[:200]}" if ran.returncode and last else ""
    return f" and was ended at a limit ({ran.outcome})" if ran.outcome != "signal" else " and was ended by a signal"


def tools_of(watched: Watched) -> tuple[ToolFacts, ...]:
    """Its questions with tools and what came of them; where it asked none, one that says so."""
    # Printed, or the question names the number itself, and in either case a call of the model's gives it.
    printed = {each.question: each.called and each.printed is not False for each in watched.wire.printed}
    with_tools = [
        at for at, question in enumerate(watched.wire.questions) if question.tools and question.value is not None
    ]
    found = []
    for at, facts in zip(with_tools, tool_runs(watched.turns), strict=True):
        calls = tuple(replace(call, id=f"call {number}") for number, call in enumerate(facts.calls, 1))
        ends = facts.outcome == "max_rounds"
        found.append(replace(facts, calls=calls, ends_with_call=ends, printed=printed.get(at) if ends else None))
    return tuple(found)


def tools_right(asked: Sequence[ToolFacts]) -> bool:
    """Whether each question got the calls that it needs, with the right numbers, and results went back."""
    from lab3.checks import TOOL_CHECKS, judge
    from lab3.evidence import Evidence

    if not asked:
        return False
    verdicts = judge(Evidence(subject="", model="", tools=tuple(asked)), TOOL_CHECKS)
    return all(verdict.status == "pass" for verdict in verdicts if verdict.required)


def model_missed(question: QuestionFacts) -> bool:
    """Whether the model was asked for a step that was due, with tools, and made no call for it."""
    if any(call.result and call.result.right is False for call in question.calls):
        return False  # it was told something wrong
    due = len(question.steps)
    for turn in question.turns:
        if due and not any(call.turn == turn and call.outcome == "ok" for call in question.calls):
            return bool(question.tools)
        due -= 1 if due else 0
    return bool(question.tools) and bool(question.calls) and not all(question.steps_called[: len(question.calls)])


def nonce(
    request: dict[str, Any], *, ask: Callable[[dict[str, Any]], dict[str, Any]], seed: int, count: int
) -> NonceFacts:
    """Ask `count` questions of the grader's, each with other numbers, by the student's own first request with tools.

    `ask` sends a request and returns the answer's message. What is right is the first call: the operation by the
    tool's name or description, and its numbers. Raises what `ask` raises.
    """
    import random

    from lab3.grading.arithmetic import numbers_of, same
    from lab3.grading.wire import json_of, nonce_request

    draw = random.Random(seed)
    numbers = [(draw.randint(11, 49), draw.randint(11, 49), draw.randint(2, 9)) for _ in range(count)]
    questions = [f"Compute ({a}+{b})*{c}" for a, b, c in numbers]
    requests = [
        {**nonce_request(request, question=question), "seed": seed + number}
        for number, question in enumerate(questions)
    ]
    with ThreadPoolExecutor(_NONCES_AT_ONCE) as pool:
        messages = list(pool.map(ask, requests))
    operations, required = _operations(request), _required(request)

    def outcome(message: dict[str, Any], a: int, b: int) -> str:
        call = next((each.get("function") for each in message.get("tool_calls") or [] if isinstance(each, dict)), None)
        if not isinstance(call, dict):
            return f"no call: {_text(message.get('content'))[:100]}"
        name, given = str(call.get("name")), call.get("arguments")
        arguments = json_of(given) if isinstance(given, str) else given
        found = sorted(numbers_of(arguments)) if isinstance(arguments, dict) else []
        right = operations.get(name) == "add" and len(found) == 2 and required[name] <= set(arguments or {})
        right = right and all(map(same, found, sorted((float(a), float(b)))))
        return "right" if right else f"{name}({given})"[:200]

    outcomes = tuple(outcome(message, a, b) for message, (a, b, _) in zip(messages, numbers, strict=True))
    return NonceFacts(questions=tuple(questions), outcomes=outcomes)


def offers_add(request: dict[str, Any]) -> bool:
    """Whether one of the request's tools adds, by its name or description."""
    return "add" in _operations(request).values()


def message_of(client: Any, body: dict[str, Any]) -> dict[str, Any]:
    """The answer's message; of a request that the server refuses one that says so.

    Raises InfraError if the server cannot be reached, or fails.
    """
    from openai import APIError, APIStatusError

    from lab3.openai_client import explain

    try:
        answer: Any = client.post("/chat/completions", cast_to=object, body=body)
    except APIError as error:
        if isinstance(error, APIStatusError) and error.status_code < 500:
            return {"content": f"the server refuses the request: {error.message[:200]}"}
        raise explain(error, client, timeout_s=client.timeout) from error
    choices = answer.get("choices") if isinstance(answer, dict) else None
    message = (
        choices[0].get("message") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    )
    return message if isinstance(message, dict) else {}


def _required(request: dict[str, Any]) -> dict[str, set[str]]:
    """The parameters that a call of each tool must have."""
    found: dict[str, set[str]] = {}
    for tool in request.get("tools") or []:
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict):
            schema = function.get("parameters")
            names = schema.get("required") if isinstance(schema, dict) else None
            found[str(function.get("name"))] = set(map(str, names)) if isinstance(names, list) else set()
    return found


def _operations(request: dict[str, Any]) -> dict[str, str | None]:
    from lab3.grading.arithmetic import operation_of

    offered = [tool.get("function") for tool in request.get("tools") or [] if isinstance(tool, dict)]
    return {
        str(tool.get("name")): operation_of(str(tool.get("name")), str(tool.get("description") or ""))
        for tool in offered
        if isinstance(tool, dict)
    }


# --- helpers ----------------------------------------------------------------------------------------------------------


@contextmanager
def _runnable(script: Path, folder: Path) -> Iterator[tuple[Path, Path]]:
    """(script, folder) that the sandbox can run: a notebook's code beside copies of the small files around it."""
    if script.suffix.lower() != ".ipynb":
        yield script, folder
        return
    with scratch("lab3-notebook-") as beside:
        for path in sorted(script.parent.iterdir())[:200]:
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= _NOTEBOOK_BYTES:
                shutil.copy(path, beside)
        file = beside / f"{script.stem}.lab3.py"
        file.write_text(notebook_script(script), encoding="utf-8", errors="surrogateescape")
        yield file, beside


def _timeless(value: Any) -> Any:
    """Without what the clock or a counter of the server's made: times, and ids as the wire had them."""
    if isinstance(value, dict):
        dropped = ("seconds", "first_byte_s", "id", "prompt_tokens")
        return {name: _timeless(each) for name, each in value.items() if name not in dropped}
    if isinstance(value, list | tuple):
        return [_timeless(each) for each in value]
    return lasting(value) if isinstance(value, str) else value


def _text(content: Any) -> str:
    from lab3.grading.wire import text_of

    return text_of({"content": content})
