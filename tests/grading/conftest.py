"""Submissions and a model server that calculates: what grading makes of scripts does not depend on a real model.

The real one grades the whole corpus in tests/integration/test_grading.py.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from lab3.grading.grade import RUBRIC, grade
from lab3.grading.results import Graded
from lab3.grading.subject import LIMITS, Submission
from lab3.hub import RunningServer, ServerSpec
from lab3.hub_wire import Member
from lab3.verdicts import Check
from tests.fake_openai import Answer, FakeOpenAI, call, completion, fake_openai

SCRIPTS = tuple(check for check in RUBRIC if check.id.startswith(("chat", "tools", "scripts")))
QUICK = replace(LIMITS, wall_s=15)


class Alone(Member):
    """One submission's part in a run whose only server is `fake`."""

    def __init__(self, fake: FakeOpenAI) -> None:
        self._fake = fake
        self._made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        if name == "environment":
            return {}
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @contextmanager
    def server(self, spec: ServerSpec, *, keep: bool = True) -> Iterator[RunningServer]:
        yield RunningServer(
            spec=spec, base_url=f"{self._fake.url}/v1", model_name="fake", engine="cpu", pid=None,
            shell_command="serve", startup_seconds=0.0, log_path=None, device=None,
        )  # fmt: skip

    def progress(self, message: str, *, done: float | None = None, total: float | None = None) -> None:
        pass

    def peak(self, spec: ServerSpec) -> Any:
        return None


def calculates(body: dict[str, Any]) -> Answer:
    """A model that calls add for the first step of the last question and mul for the second, then says the result."""
    messages, tools = body["messages"], body.get("tools")
    question = next(m["content"] for m in reversed(messages) if m["role"] == "user")
    found = re.search(r"\((\d+)\+(\d+)\)\*(\d+)", question)
    if not tools or found is None:
        return completion("I am a model that calculates, and glad to meet you.")
    names = [tool["function"]["name"] for tool in tools]
    a, b, c = map(int, found.groups())
    told = [m for m in messages if m["role"] in ("tool", "environment")]
    if not told:
        return completion("", tool_calls=[call(names[0], json.dumps({"a": a, "b": b}))])
    if len(told) == 1:
        last = ast.literal_eval(told[0]["content"].split("=")[-1])
        return completion("", tool_calls=[call(names[1], json.dumps({"a": last, "b": c}), id="call_2")])
    return completion(f"The answer is {(a + b) * c}.")


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with fake_openai() as server:
        server.always = calculates
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "alice"
    made.mkdir()
    return made


@pytest.fixture
def graded(fake: FakeOpenAI, folder: Path) -> Callable[..., Graded]:
    """Writes the scripts (name=text) into the folder and grades it."""

    def judge(checks: tuple[Check, ...] = SCRIPTS, wall_s: float = QUICK.wall_s, **scripts: str) -> Graded:
        for name, text in scripts.items():
            (folder / f"{name}.py").write_text(dedent(text))
        subject = Submission(
            Alone(fake), str(folder), engine="cpu", fallback=lambda: folder, seed_name="alice",
            limits=replace(QUICK, wall_s=wall_s),
        )  # fmt: skip
        return grade(subject, name="alice", key="k", checks=checks)

    return judge


TOOLS = """
    import json
    from openai import OpenAI
    TWO = {"a": {"type": "number"}, "b": {"type": "number"}}
    NUMBERS = {"type": "object", "properties": TWO, "required": ["a", "b"]}
    TOOLS = [{"type": "function", "function": {"name": name, "description": text, "parameters": NUMBERS}}
             for name, text in (("add", "the sum of two numbers"), ("mul", "the product of two numbers"))]
    DO = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b}
    client = OpenAI(api_key="x", base_url="http://0.0.0.0:23333/v1")
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": "Compute (3+5)*2"}]

    def ask():
        return client.chat.completions.create(model=model, messages=messages, tools=TOOLS).choices[0].message
"""
LOOP = (
    TOOLS
    + """
    while (said := ask()).tool_calls:
        messages.append(said.model_dump(exclude_none=True))
        for each in said.tool_calls:
            result = DO[each.function.name](**json.loads(each.function.arguments))
            messages.append({"role": "tool", "tool_call_id": each.id, "content": str(result)})
    print(said.content)
"""
)
TUTORIAL = (
    TOOLS
    + """
    first = ask().tool_calls[0].function
    out = eval(f"{first.name}(**{first.arguments})", {}, DO)
    messages.append({"role": "assistant", "content": ""})
    messages.append({"role": "environment", "content": f"3+5={out}", "name": "plugin"})
    second = ask().tool_calls[0].function
    print(eval(f"{second.name}(**{second.arguments})", {}, DO))
"""
)
CHAT = """
    from openai import OpenAI
    client = OpenAI(api_key="x", base_url="http://localhost:23333/v1")
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id, messages=[{"role": "user", "content": "Who are you?"}])
    print(answer.choices[0].message.content)
"""
