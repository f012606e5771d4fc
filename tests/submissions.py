"""Submissions to grade, written for this project: what students hand in, well done or with one fault, and what is due.

A template writes a folder and says which checks must pass and fail. All that may differ between students (numbers,
names, ports, languages, ways to call) is drawn from `rng`, so the same seed gives the same corpus.
"""

from __future__ import annotations

import json
import pprint
import random
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Literal

CALLS = frozenset({"tools.add", "tools.mul", "tools.add_arguments", "tools.mul_arguments"})
OF_ADD = frozenset({"tools.add", "tools.add_arguments"})
OF_MUL = frozenset({"tools.mul", "tools.mul_arguments"})
CHAT = frozenset({"chat.answer"})
AFTER_CALLS = frozenset({"tools.results", "tools.answer"})
STRAIGHT = CALLS | CHAT | {"tools.results", "tools.nonce", "scripts.honest"}
LOOP = STRAIGHT | {"tools.answer"}  # which a script that ends with the second call never asks for


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What the collector should find: names of files in the folder, None for what is not to be found."""

    chat: str | None
    tools: str | None
    serve: str
    report: str
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What grading a submission with a model that calls well must come to. Checks that are not named are not judged."""

    passing: frozenset[str]
    failing: frozenset[str] = frozenset()
    not_passing: frozenset[str] = frozenset()  # fail and unknown are both right
    status: Literal["graded", "needs_review", "timeout"] = "graded"
    note: str = ""
    handed: Handed


Writer = Callable[[Path, random.Random], Expected]


def write_corpus(out: Path, count: int, seed: int = 0, *, only: Sequence[str] = ()) -> dict[str, Expected]:
    """Write `count` submissions below `out`, from each template (or each of `only`) in turn: folder → what is due."""
    every = [(name, write) for name, write in TEMPLATES.items() if not only or name in only]
    corpus = {}
    for number in range(count):
        template, write = every[number % len(every)]
        name = f"{number:04d}-{template}"
        (out / name).mkdir(parents=True)
        corpus[name] = write(out / name, random.Random(f"{seed} {number} {template}"))
    return corpus


# ------------------------------------------------------------------------------------------- what differs between them

FILES = (
    ("internlm2_5.py", "internlm2_5_func.py"),
    ("chat.py", "function_call.py"),
    ("task1_chat.py", "task2_functions.py"),
    ("src/talk.py", "src/calculator.py"),
    ("对话.py", "函数调用.py"),
)
REPORTS = ("report.md", "README.md", "实验报告.md", "lab3_report.md", "docs/notes.md")
TALKS = {
    "en": (
        "Who made you, and what are you good at?",
        "Name two rivers and say where each of them flows.",
        "Write one friendly sentence to a new classmate.",
        "Why do leaves turn yellow in autumn? Keep it brief.",
    ),
    "zh": (
        "你是谁？用一句话说说你会做什么。",
        "说出两种水果，并讲讲它们的味道。",
        "给新同学写一句欢迎的话。",
    ),
}
QUESTIONS = {
    "en": (
        "Please work out $expression with the functions that you have.",
        "How much is $expression?",
        "I need the value of $expression. Use the tools, step by step.",
        "Calculate $expression for me.",
    ),
    "zh": (
        "请用给你的函数算出 $expression 等于多少。",
        "计算 $expression",
        "帮我算一下 $expression，一步一步来。",
    ),
}
NOTES = {
    "client": ("a client for the local server", "连接本地的服务"),
    "functions": ("the functions that the model may use", "供模型使用的函数"),
    "ask": ("ask the model", "向模型提问"),
    "first": ("the first call: run it here", "第一次调用，在本地执行"),
    "back": ("tell the model what came out", "把结果告诉模型"),
    "second": ("now it wants the second call", "接着是第二次调用"),
    "until": ("go on until it has no more calls", "直到模型不再调用函数"),
}
DESCRIPTIONS = {
    "add": ("Adds two numbers and gives the sum", "求两个数的和"),
    "mul": ("Multiplies two numbers and gives the product", "求两个数的乘积"),
}
LABELS = (("Result:", "结果："), ("The answer is", "答案是"), ("=>", "=>"))


@dataclass(frozen=True, kw_only=True)
class Task:
    """The numbers of a question: `values` as its expression names them, and what it comes to."""

    expression: str
    values: tuple[int, int, int]
    first: int  # what the first call computes
    value: int


@dataclass
class Student:
    """One student's habits. `words` fill the templates of texts; `files` is what is handed in."""

    folder: Path
    rng: random.Random
    chinese: bool = False
    host: str = ""
    port: int = 0
    chat: str = ""
    tools: str = ""
    report: str = ""
    words: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    task: Task = field(init=False)

    def __post_init__(self) -> None:
        rng = self.rng
        self.chinese = rng.random() < 0.5
        self.host = rng.choice(("0.0.0.0", "localhost", "127.0.0.1"))
        self.port = rng.choice((23333, 23333, 23333, 23334, 8000, 8080, 12345))
        self.chat, self.tools = rng.choice(FILES)
        self.report = rng.choice(REPORTS)
        self.task = any_task(rng)
        self.words |= {f"note_{name}": "# " + self.of(texts) for name, texts in NOTES.items()}
        self.words |= {
            "host": self.host,
            "port": str(self.port),
            "key": rng.choice(('"none"', '"EMPTY"', '"sk-anything"', "'123'")),
            "talk": rng.choice(TALKS["zh" if self.chinese else "en"]),
            "temperature": rng.choice(("0", "0.0", "0.2", "0.8")),
            "max_tokens": str(rng.choice((24, 32, 48))),
            "label": self.of(rng.choice(LABELS)),
            "loud": self.of(("model says", "模型说")),
            "id": str(rng.randrange(20200000, 20269999)),
        }
        self.ask(self.task)
        self.offer()

    def of(self, texts: tuple[str, str]) -> str:
        """The English or the Chinese one."""
        return texts[self.chinese]

    def ask(self, task: Task) -> None:
        """Ask the model this."""
        self.task = task
        question = self.rng.choice(QUESTIONS["zh" if self.chinese else "en"])
        self.words |= {
            "question": Template(question).substitute(expression=task.expression),
            "expression": task.expression,
            "value": str(task.value),
            "sum": str(task.first),
        }

    def offer(self, add: str = "add", mul: str = "mul", parameters: Mapping[str, Any] | None = None) -> None:
        """Define two functions under these names. `parameters`: of the first one's schema, instead of a and b."""
        a, b = self.rng.choice((("a", "b"), ("a", "b"), ("x", "y")))
        schema = [
            _function(add, self.of(DESCRIPTIONS["add"]), parameters or self._parameters(a, b)),
            _function(mul, self.of(DESCRIPTIONS["mul"]), self._parameters(a, b)),
        ]
        plain = self.rng.random() < 0.5
        written = (
            json.dumps(schema, indent=4, ensure_ascii=False) if plain else pprint.pformat(schema, sort_dicts=False)
        )
        self.words |= {"add": add, "mul": mul, "a": a, "b": b, "schema": written}
        self.words["functions"] = self.fill(self.rng.choice(FUNCTIONS))
        self.words["load"] = self.rng.choice(("json.loads(function.arguments)", "eval(function.arguments)"))
        self.words["run"] = self.fill(self.rng.choice(RUNS))

    def _parameters(self, a: str, b: str) -> dict[str, Any]:
        kind = self.rng.choice(("number", "number", "integer"))
        described = self.rng.random() < 0.5
        about = {"description": self.of(("a number", "一个数"))} if described else {}
        return {
            "type": "object",
            "properties": {a: {"type": kind, **about}, b: {"type": kind, **about}},
            "required": [a, b],
        }

    def fill(self, text: str, /, **more: str) -> str:
        return Template(text).substitute(self.words | more)

    def tells_no_role(self) -> bool:
        """Whether the function script's name does not tell what it is, so that lab3.toml has to."""
        return "func" not in self.tools

    def hand_in(
        self,
        chat: str | None,
        tools: str | None,
        *,
        found: Mapping[str, str | None] | None = None,
        toml: bool | None = None,
    ) -> Handed:
        """Write the folder: these scripts, a serve command, a report and, as `toml` says or by chance, a lab3.toml."""
        names = {"chat": self.chat if chat else None, "tools": self.tools if tools else None}
        for name, source in ((self.chat, chat), (self.tools, tools)):
            if source is not None:
                self.files[name] = source
        serve = _serve(self)
        if self.rng.random() < 0.25 if toml is None else toml:
            lines = ["[submission]", f'student = "{self.words["id"]}"']
            lines += [f'{role} = "{name}"' for role, name in names.items() if name]
            self.files["lab3.toml"] = "\n".join(lines) + "\n"
        for name, text in self.files.items():
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        names |= found or {}
        return Handed(**names, serve=serve, report=self.report, host=self.host, port=self.port)


def any_task(rng: random.Random, *, shapes: tuple[str, ...] = ("sum_first", "sum_last")) -> Task:
    """Numbers whose results stand nowhere in the question, so that a printed result tells something."""
    while True:
        a, b, c = (rng.randrange(2, 20) for _ in range(3))
        shape = rng.choice(shapes)
        gap = rng.choice(("", " "))
        plus, times = f"{gap}+{gap}", f"{gap}*{gap}"
        found = {
            "sum_first": Task(expression=f"({a}{plus}{b}){times}{c}", values=(a, b, c), first=a + b, value=(a + b) * c),
            "sum_last": Task(expression=f"{a}{times}({b}{plus}{c})", values=(a, b, c), first=b + c, value=a * (b + c)),
            "product_first": Task(expression=f"{a}{times}{b}{plus}{c}", values=(a, b, c), first=a * b, value=a * b + c),
        }[shape]
        if len({*found.values, found.first, found.first + 1, found.value}) == 6:
            return found


def _function(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


# ------------------------------------------------------------------------------------------- texts beside the scripts

MODELS = ("/root/models/internlm2_5-1_8b-chat-w4a16-4bit", "./internlm2_5-1_8b-w4a16", "/data/lab3/chat-awq-int4")
SERVES = (
    """lmdeploy serve api_server $model \\
    --model-format awq \\
    --quant-policy 4 \\
    --cache-max-entry-count $ratio \\
    --server-name 0.0.0.0 \\
    --server-port $port
""",
    "lmdeploy serve api_server $model --model-format awq --quant-policy 4 --cache-max-entry-count $ratio "
    "--server-port $port --tool-call-parser internlm\n",
    "lmdeploy serve api_server $model --quant-policy=4 --cache-max-entry-count=$ratio --server-port=$port --tp 1\n",
)
ABOUT = {
    False: """# Lab 3, student $id

I quantized the 1.8B chat model to 4 bits; the folder went from $before to $after GB.
Then I served it with an int4 cache and asked it from Python.

$command
The function script asked "$question".
GPU memory while serving: $used MiB.
""",
    True: """# 实验三（学号 $id）

把 1.8B 对话模型量化到 4 比特，文件夹从 $before GB 变成 $after GB。
之后用 int4 的 KV 缓存启动服务，再用 Python 提问。

$command
函数脚本的问题是“$question”。
服务占用的显存：$used MiB。
""",
}


def _serve(student: Student) -> str:
    """Write report and serve command; the name of the file that holds the command."""
    rng = student.rng
    ratio = rng.choice(("0.4", "0.3", "0.2"))
    command = student.fill(rng.choice(SERVES), model=rng.choice(MODELS), ratio=ratio)
    script = rng.choice(("start.sh", "serve.sh", "scripts/run_server.sh", None))
    told = "" if script else f"```bash\n{command}```\n"
    figures = {
        "before": f"{rng.uniform(3.4, 3.8):.2f}",
        "after": f"{rng.uniform(1.4, 1.7):.2f}",
        "used": str(rng.randrange(9000, 13000)),
    }
    student.files[student.report] = student.fill(ABOUT[student.chinese], command=told, **figures)
    if script:
        shebang = rng.choice(("#!/bin/bash\n", "#!/usr/bin/env bash\nset -e\n", ""))
        student.files[script] = shebang + command
    return script or student.report


# ------------------------------------------------------------------------------------------------- parts of scripts

HEADS = (
    """from openai import OpenAI

$note_client
client = OpenAI(api_key=$key, base_url="http://$host:$port/v1")
model_name = client.models.list().data[0].id
""",
    """import openai

HOST, PORT = "$host", $port
client = openai.OpenAI(base_url=f"http://{HOST}:{PORT}/v1", api_key=$key)
model_name = next(iter(client.models.list())).id
""",
    """import os

from openai import OpenAI

$note_client
BASE_URL = os.environ.get("LLM_BASE_URL", "http://$host:$port/v1")
client = OpenAI(base_url=BASE_URL, api_key=$key)
model_name = client.models.list().data[0].id
""",
)
ARGUMENTS_HEAD = """import argparse

from openai import OpenAI

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=$port)
options = parser.parse_args()
client = OpenAI(base_url=f"http://$host:{options.port}/v1", api_key=$key)
model_name = [each.id for each in client.models.list().data][0]
"""
TALK = """
$note_ask
reply = client.chat.completions.create(
    model=model_name,
    messages=[{"role": "user", "content": "$talk"}],
    temperature=$temperature,
    top_p=0.8,
    max_tokens=$max_tokens,
)
$show
"""
SHOWS = (
    "print(reply.choices[0].message.content)",
    "print(reply)",
    'print("$loud:", reply.choices[0].message.content)',
    "print(reply.model_dump_json(indent=2))",
)
FUNCTIONS = (
    """def $add($a, $b):
    return $a + $b


def $mul($a, $b):
    return $a * $b
""",
    """def $add($a: float, $b: float) -> float:
    total = $a + $b
    return total


def $mul($a: float, $b: float) -> float:
    product = $a * $b
    return product
""",
    """$add = lambda $a, $b: $a + $b
$mul = lambda $a, $b: $a * $b
""",
)
RUNS = (
    'eval(f"{function.name}(**{function.arguments})")',
    '{"$add": $add, "$mul": $mul}[function.name](**values)',
    "globals()[function.name](**values)",
    '$add(**values) if function.name == "$add" else $mul(**values)',
)
ENVIRONMENTS = (
    '{"role": "environment", "content": f"{sign.join(map(str, values.values()))}={result}"}',
    '{"role": "environment", "content": f"{sign.join(map(str, values.values()))}={result}", "name": "plugin"}',
)
TOOL_RESULTS = (
    '{"role": "tool", "tool_call_id": call.id, "content": str(result)}',
    '{"role": "tool", "tool_call_id": call.id, "name": function.name, "content": json.dumps(result)}',
    '{"role": "tool", "tool_call_id": call.id, "content": json.dumps({"result": result})}',
)
ASK = (
    "client.chat.completions.create(\n    model=model_name, messages=messages, tools=tools, temperature=$temperature\n)"
)
DEFINED = """import json

$head

$note_functions
$functions

tools = $schema
messages = [{"role": "user", "content": "$question"}]
"""
FIRST_CALL = """
$note_ask
reply = $ask
print(reply.choices[0].message)

$note_first
call = reply.choices[0].message.tool_calls[0]
function = call.function
values = $load
result = $run
sign = "+" if function.name == "$add" else "*"
print(function.name, values, "->", result)
"""
SEND_BACK = """
$note_back
messages.append(reply.choices[0].message)
messages.append($result)
"""
SECOND_CALL = """
$note_second
reply = $ask
function = reply.choices[0].message.tool_calls[0].function
values = $load
result = $run
print("$label", result)
"""
UNTIL_DONE = """
$note_until
for step in range(6):
    reply = $ask_inside
    message = reply.choices[0].message
    messages.append($kept)
    if not message.tool_calls:
        break
    for call in message.tool_calls:
        function = call.function
        values = $load
        result = $run
        sign = "+" if function.name == "$add" else "*"
        print(step, function.name, function.arguments, result)
        messages.append($result)
print("$label", message.content)
"""
KEPT = ("message", "message.model_dump(exclude_none=True)")


DISPATCH = """

def call_function(name, arguments):
    known = {"$add": $add, "$mul": $mul}
    if name not in known:
        return f"unknown function {name}"
    return known[name](**json.loads(arguments))


def solve(most_rounds=5):
    for _ in range(most_rounds):
        reply = client.chat.completions.create(
            model=model_name, messages=messages, tools=tools, temperature=$temperature, tool_choice="auto"
        )
        message = reply.choices[0].message
        messages.append($kept)
        if not message.tool_calls:
            return message.content
        for call in message.tool_calls:
            function = call.function
            result = call_function(function.name, function.arguments)
            print(f"{function.name}{function.arguments} = {result}")
            messages.append($result)
    return None


if __name__ == "__main__":
    print("$label", solve())
"""
ASYNC_TALK = """import asyncio

from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://$host:$port/v1", api_key=$key)


async def ask(model, text):
    reply = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        max_tokens=$max_tokens,
        temperature=$temperature,
    )
    return reply.choices[0].message.content


async def main():
    models = await client.models.list()
    model = models.data[0].id
    $note_ask
    answers = await asyncio.gather(ask(model, "$talk"), ask(model, "$other"))
    for answer in answers:
        print("-", answer)


asyncio.run(main())
"""
ASYNC_TOOLS = """import asyncio
import json

from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://$host:$port/v1", api_key=$key)

$note_functions
$functions

tools = $schema


async def main():
    model = (await client.models.list()).data[0].id
    messages = [{"role": "user", "content": "$question"}]
    $note_until
    while len(messages) < 14:
        reply = await client.chat.completions.create(
            model=model, messages=messages, tools=tools, temperature=$temperature
        )
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            print("$label", message.content)
            break
        for call in message.tool_calls:
            function = call.function
            values = $load
            result = $run
            print(function.name, values, result)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})


if __name__ == "__main__":
    asyncio.run(main())
"""
WIRES = (  # the import, what gets a path, what sends `body`
    (
        "import requests",
        "requests.get(BASE + path, timeout=60).json()",
        'answer = requests.post(f"{BASE}/chat/completions", json=body, timeout=120).json()',
    ),
    (
        "import httpx",
        "httpx.get(BASE + path).json()",
        'response = httpx.post(f"{BASE}/chat/completions", json=body, timeout=120)\nanswer = response.json()',
    ),
    (
        "import urllib.request",
        "json.load(urllib.request.urlopen(BASE + path))",
        """request = urllib.request.Request(
    f"{BASE}/chat/completions",
    data=json.dumps(body).encode(),
    headers={"Content-Type": "application/json"},
)
answer = json.load(urllib.request.urlopen(request))""",
    ),
)
RAW_HEAD = """import json

$module

BASE = "http://$host:$port/v1"


def get(path):
    return $get


model = get("/models")["data"][0]["id"]
"""
RAW_TALK = """body = {
    "model": model,
    "messages": [{"role": "user", "content": "$talk"}],
    "max_tokens": $max_tokens,
    "temperature": $temperature,
}
$note_ask
$send
print(answer["choices"][0]["message"]["content"])
print(json.dumps(answer["usage"]))
"""
RAW_TOOLS = """

$functions

tools = $schema
messages = [{"role": "user", "content": "$question"}]
$note_until
for _ in range(6):
    body = {"model": model, "messages": messages, "tools": tools, "temperature": $temperature}
    $send_inside
    message = answer["choices"][0]["message"]
    messages.append({key: value for key, value in message.items() if value is not None})
    if not message.get("tool_calls"):
        print("$label", message["content"])
        break
    for call in message["tool_calls"]:
        name, values = call["function"]["name"], json.loads(call["function"]["arguments"])
        result = {"$add": $add, "$mul": $mul}[name](**values)
        print(name, values, result)
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": str(result)})
"""
STREAMED_TALK = """
$note_ask
pieces = client.chat.completions.create(
    model=model_name,
    messages=[{"role": "user", "content": "$talk"}],
    stream=True,
    ${usage}max_tokens=$max_tokens,
    temperature=$temperature,
)
for piece in pieces:
    if piece.choices and piece.choices[0].delta.content:
        print(piece.choices[0].delta.content, end="", flush=True)
print()
"""
STREAMED_TOOLS = """

def ask_streamed():
    text, calls = "", {}
    stream = client.chat.completions.create(
        model=model_name, messages=messages, tools=tools, temperature=$temperature, stream=True
    )
    for chunk in stream:
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        text += delta.content or ""
        for piece in delta.tool_calls or []:
            call = calls.setdefault(piece.index, {"id": "", "name": "", "arguments": ""})
            call["id"] = piece.id or call["id"]
            call["name"] += piece.function.name or ""
            call["arguments"] += piece.function.arguments or ""
    return text, list(calls.values())


for turn in range(6):
    text, calls = ask_streamed()
    if not calls:
        print("$label", text)
        break
    asked = [
        {"id": each["id"], "type": "function", "function": {"name": each["name"], "arguments": each["arguments"]}}
        for each in calls
    ]
    messages.append({"role": "assistant", "content": text, "tool_calls": asked})
    for each in calls:
        values = json.loads(each["arguments"])
        result = $add(**values) if each["name"] == "$add" else $mul(**values)
        print(turn, each["name"], values, result)
        messages.append({"role": "tool", "tool_call_id": each["id"], "content": str(result)})
"""
CLASS = """import json

from openai import OpenAI


class Assistant:
    def __init__(self, host="$host", port=$port):
        self.client = OpenAI(base_url=f"http://{host}:{port}/v1", api_key=$key)
        self.model = self.client.models.list().data[0].id
        self.history = []
"""
CLASS_TALK = """
    def say(self, text):
        self.history.append({"role": "user", "content": text})
        reply = self.client.chat.completions.create(
            model=self.model, messages=self.history, temperature=$temperature, max_tokens=$max_tokens
        )
        self.history.append({"role": "assistant", "content": reply.choices[0].message.content})
        return self.history[-1]["content"]


assistant = Assistant()
print(assistant.say("$talk"))
"""
CLASS_TOOLS = """        self.functions = {"$add": self.$add, "$mul": self.$mul}

    @staticmethod
    def $add($a, $b):
        return $a + $b

    @staticmethod
    def $mul($a, $b):
        return $a * $b

    def solve(self, text, tools):
        self.history.append({"role": "user", "content": text})
        while len(self.history) < 14:
            reply = self.client.chat.completions.create(
                model=self.model, messages=self.history, tools=tools, temperature=$temperature
            )
            message = reply.choices[0].message
            self.history.append(message)
            if not message.tool_calls:
                return message.content
            for call in message.tool_calls:
                self.run(call)
        return "..."

    def run(self, call):
        values = json.loads(call.function.arguments)
        result = self.functions[call.function.name](**values)
        print(call.function.name, values, result)
        self.history.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})


tools = $schema
print("$label", Assistant().solve("$question", tools))
"""
OFF_BY_ONE = (
    "def $add($a, $b):\n    return $a + $b + 1\n\n\ndef $mul($a, $b):\n    return $a * $b\n",
    "def $add($a, $b):\n    total = $a\n    for _ in range($b + 1):\n        total += 1\n    return total\n\n\n"
    "def $mul($a, $b):\n    return $a * $b\n",
)
INVENTED = """
$note_first
made_up = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "$add", "arguments": json.dumps({"$a": $one, "$b": $other})},
}
messages.append({"role": "assistant", "content": "", "tool_calls": [made_up]})
messages.append({"role": "tool", "tool_call_id": "call_1", "content": "$sum"})
"""
TYPOS = (
    ("for step in range(6):", "for step in range(6)"),
    ('print("$label", message.content)', 'print("$label", message.content'),
    ('print("$label", message.content)', 'print("$label"，message.content)'),
    ('print("$label", message.content)', "print message.content"),
    ("        break\n", "    break\n"),
)
ENDLESS = (
    """
import time

done = False
while not done:
    time.sleep(0.5)
""",
    """
while True:
    if reply.choices[0].message.content == "ok":
        break
""",
    """
import time

while reply.choices[0].message.tool_calls:
    time.sleep(5)
    reply = $ask_inside
""",
)
TYPED = (
    """
question = input("? ")
reply = client.chat.completions.create(
    model=model_name, messages=[{"role": "user", "content": question}], max_tokens=$max_tokens
)
print(reply.choices[0].message.content)
""",
    """
history = []
while True:
    history.append({"role": "user", "content": input("$id> ")})
    if history[-1]["content"] in ("quit", "退出"):
        break
    reply = client.chat.completions.create(model=model_name, messages=history, max_tokens=$max_tokens)
    history.append({"role": "assistant", "content": reply.choices[0].message.content})
    print(history[-1]["content"])
""",
)
INTRODUCTIONS = (
    (
        "I am a language model with 1.8 billion parameters. Ask me anything.",
        "我是一个 18 亿参数的语言模型，有问题尽管问我。",
    ),
    ("Hi! I can write, translate and count.", "你好！我会写作、翻译，也会算数。"),
)
UNCALLED = """

def ask():
    return client.chat.completions.create(model=model_name, messages=[{"role": "user", "content": "$talk"}])


"""


def talk_script(student: Student, talk: str = TALK) -> str:
    """A chat script that asks one question and prints the answer."""
    rng = student.rng
    head = student.fill(rng.choice((*HEADS, ARGUMENTS_HEAD)))
    return head + student.fill(talk, show=student.fill(rng.choice(SHOWS)))


def tool_script(student: Student, *parts: str, result: str = "", head: str = "", **more: str) -> str:
    """A function script of these parts, after client, functions and tools."""
    rng = student.rng
    ask = student.fill(ASK)
    words = {
        "head": student.fill(head or rng.choice(HEADS)).rstrip(),
        "ask": ask,
        "ask_inside": textwrap.indent(ask, "    ").lstrip(),
        "result": result or rng.choice((*ENVIRONMENTS, *TOOL_RESULTS)),
        "kept": rng.choice(KEPT),
    } | more
    return "".join(student.fill(part, **words) for part in (DEFINED, *parts))


def good_loop(student: Student) -> str:
    """A function script without fault, for submissions whose fault is elsewhere."""
    return tool_script(student, UNTIL_DONE)


# ---------------------------------------------------------------------------------------------------- well done


def tutorial(folder: Path, rng: random.Random) -> Expected:
    """The lab's own shape: a call, its result sent back by the environment, a second call that is computed here."""
    student = Student(folder, rng)
    script = tool_script(student, FIRST_CALL, SEND_BACK, SECOND_CALL, result=rng.choice(ENVIRONMENTS))
    return Expected(passing=STRAIGHT, handed=student.hand_in(talk_script(student), script))


def loop_with_ids(folder: Path, rng: random.Random) -> Expected:
    """Results under role tool, by the calls' ids, until the model answers."""
    student = Student(folder, rng)
    script = tool_script(student, UNTIL_DONE, result=rng.choice(TOOL_RESULTS))
    return Expected(passing=LOOP, handed=student.hand_in(talk_script(student), script))


def dispatch_table(folder: Path, rng: random.Random) -> Expected:
    """Functions with a loop inside, and a table of what may be called."""
    student = Student(folder, rng)
    script = tool_script(student, DISPATCH, result=rng.choice(TOOL_RESULTS))
    return Expected(passing=LOOP, handed=student.hand_in(talk_script(student), script))


def async_client(folder: Path, rng: random.Random) -> Expected:
    """AsyncOpenAI: two questions at once, and a loop."""
    student = Student(folder, rng)
    other = rng.choice(TALKS["en"])
    chat = student.fill(ASYNC_TALK, other=other)
    return Expected(passing=LOOP, handed=student.hand_in(chat, student.fill(ASYNC_TOOLS)))


def without_openai(folder: Path, rng: random.Random) -> Expected:
    """No OpenAI client: requests, httpx or what Python brings."""
    student = Student(folder, rng)
    module, get, send = rng.choice(WIRES)
    head = student.fill(RAW_HEAD, module=module, get=get)
    chat = head + student.fill(RAW_TALK, send=send)
    script = head + student.fill(RAW_TOOLS, send_inside=textwrap.indent(send, "    ").lstrip())
    return Expected(passing=LOOP, handed=student.hand_in(chat, script))


def streamed(folder: Path, rng: random.Random) -> Expected:
    """Answers piece by piece, the calls put together from their pieces."""
    student = Student(folder, rng)
    usage = rng.choice(("", 'stream_options={"include_usage": True}, '))
    chat = student.fill(rng.choice(HEADS)) + student.fill(STREAMED_TALK, usage=usage)
    script = tool_script(student, STREAMED_TOOLS, result=rng.choice(TOOL_RESULTS))
    return Expected(passing=LOOP, handed=student.hand_in(chat, script))


def other_numbers(folder: Path, rng: random.Random) -> Expected:
    """A product first and a sum of it then."""
    student = Student(folder, rng)
    student.ask(any_task(rng, shapes=("product_first",)))
    return Expected(passing=LOOP, handed=student.hand_in(talk_script(student), good_loop(student)))


def own_class(folder: Path, rng: random.Random) -> Expected:
    """A class that keeps the conversation, with tools or without."""
    student = Student(folder, rng)
    chat = student.fill(CLASS) + student.fill(CLASS_TALK)
    return Expected(passing=LOOP, handed=student.hand_in(chat, student.fill(CLASS) + student.fill(CLASS_TOOLS)))


def notebook(folder: Path, rng: random.Random) -> Expected:
    """One notebook or two."""
    student = Student(folder, rng)
    chat = talk_cells = [student.fill(rng.choice(HEADS)), student.fill(TALK, show=SHOWS[0])]
    parts = tool_script(student, UNTIL_DONE, head="# client: see above" if (together := rng.random() < 0.5) else "")
    defined, loop = parts.split("\n" + student.words["note_until"], 1)
    cells = [defined, student.words["note_until"] + loop]
    if together:
        student.chat = rng.choice(("lab3.ipynb", "作业.ipynb", "all_tasks.ipynb"))
        source = _notebook("# Lab 3", *talk_cells, "# Functions", *cells)
        return Expected(passing=LOOP, handed=student.hand_in(source, None, found={"tools": student.chat}))
    student.chat, student.tools = (str(Path(name).with_suffix(".ipynb")) for name in (student.chat, student.tools))
    return Expected(passing=LOOP, handed=student.hand_in(_notebook("# Chat", *chat), _notebook("# Tools", *cells)))


def plus_and_times(folder: Path, rng: random.Random) -> Expected:
    """The functions have other names, and descriptions that tell what they do."""
    student = Student(folder, rng)
    student.offer(*rng.choice((("plus", "times"), ("sum_of", "product_of"), ("add_numbers", "multiply"))))
    return Expected(passing=LOOP, handed=student.hand_in(talk_script(student), good_loop(student)))


def one_script(folder: Path, rng: random.Random) -> Expected:
    """Chat and functions in one file."""
    student = Student(folder, rng)
    source = tool_script(student, TALK, UNTIL_DONE, show=SHOWS[0])
    return Expected(passing=LOOP, handed=student.hand_in(source, None, found={"tools": student.chat}))


def own_modules(folder: Path, rng: random.Random) -> Expected:
    """The client in one module, the functions in another, both imported."""
    student = Student(folder, rng)
    beside = Path(student.chat).parent
    module = rng.choice(("common", "settings_lab", "llm_client"))
    student.files[str(beside / f"{module}.py")] = student.fill(rng.choice(HEADS))
    student.files[str(beside / "operations.py")] = student.words["functions"]
    head = f"from {module} import client, model_name\n"
    student.words["functions"] = student.fill("from operations import $add, $mul")
    chat = head + student.fill(TALK, show=SHOWS[0])
    script = tool_script(student, UNTIL_DONE, head=head)
    return Expected(passing=LOOP, handed=student.hand_in(chat, script))


# ------------------------------------------------------------------------------------------------------ with one fault


def answer_without_asking(folder: Path, rng: random.Random) -> Expected:
    """Prints the calls and the result, and never asks: the function that would is not called."""
    student = Student(folder, rng)
    a, b = student.task.values[:2]
    show = 'print("$add", $sum)\nprint("$mul", $value)\n' if rng.random() < 0.5 else ""
    told = rng.random() < 0.5
    source = student.fill(rng.choice(HEADS)) + student.fill("print(model_name)\n") if told else ""
    source = source or tool_script(student, "\n\ndef ask():\n    return $ask_inside\n\n\n")
    source += student.fill(show + 'print("$label", $value)\n')
    return Expected(
        passing=CHAT,
        failing=CALLS,
        not_passing=AFTER_CALLS | {"tools.nonce", "scripts.honest"},  # a lone number may be anything
        note=f"no question reaches the model; {a} and {b} stand in the script only",
        handed=student.hand_in(talk_script(student), source, toml=told or None),
    )


def no_tools_offered(folder: Path, rng: random.Random) -> Expected:
    """The function script, by its name or by lab3.toml, asks as the chat script does and prints the answer."""
    student = Student(folder, rng)
    chat = talk_script(student)
    student.words["talk"] = student.words["question"]
    source = student.fill(rng.choice(HEADS)) + student.fill(TALK, show=SHOWS[0])
    return Expected(
        passing=CHAT,
        failing=CALLS,
        not_passing=AFTER_CALLS | {"tools.nonce"},
        handed=student.hand_in(chat, source, toml=student.tells_no_role() or None),
    )


def ignores_the_calls(folder: Path, rng: random.Random) -> Expected:
    """Asks with tools, and computes the answer by itself."""
    student = Student(folder, rng)
    own = rng.choice(('print("$label", $expression)\n', 'result = $value\nprint("$label", result)\n'))
    source = tool_script(student, "\n$note_ask\nreply = $ask\n", own)
    return Expected(
        passing=CHAT | OF_ADD | {"tools.nonce"},
        failing=OF_MUL | AFTER_CALLS | {"scripts.honest"},
        note="only the first call was on the wire, and the printed result comes from the script",
        handed=student.hand_in(talk_script(student), source),
    )


def stops_after_the_first_call(folder: Path, rng: random.Random) -> Expected:
    """Runs the first call and never tells the model its result."""
    student = Student(folder, rng)
    return Expected(
        passing=CHAT | OF_ADD | {"tools.nonce", "scripts.honest"},
        failing=OF_MUL | AFTER_CALLS,
        handed=student.hand_in(talk_script(student), tool_script(student, FIRST_CALL)),
    )


def wrong_result(folder: Path, rng: random.Random) -> Expected:
    """The sum that goes back to the model is one too many."""
    student = Student(folder, rng)
    student.words["functions"] = student.fill(rng.choice(OFF_BY_ONE))
    return Expected(
        passing=CHAT | OF_ADD | {"tools.mul", "tools.nonce"},
        failing=frozenset({"tools.results", "tools.mul_arguments", "tools.answer"}),
        note="the model goes on with the wrong sum",
        handed=student.hand_in(talk_script(student), good_loop(student)),
    )


def invented_history(folder: Path, rng: random.Random) -> Expected:
    """The first call and its result are written into the history, though the model never made it."""
    student = Student(folder, rng)
    a, b = _first_numbers(student.task)
    source = tool_script(student, INVENTED, UNTIL_DONE, one=str(a), other=str(b), result=rng.choice(TOOL_RESULTS))
    return Expected(
        passing=CHAT | {"tools.nonce"},
        failing=OF_ADD,
        not_passing=frozenset({"scripts.honest"}),
        status="needs_review",
        note="examples for the model would look the same on the wire, so a person must look",
        handed=student.hand_in(talk_script(student), source),
    )


def useless_schema(folder: Path, rng: random.Random) -> Expected:
    """The first function is defined with the parameters of another."""
    student = Student(folder, rng)
    names = rng.choice((("city", "date"), ("file_path", "encoding"), ("recipient", "subject")))
    properties = {name: {"type": "string", "description": student.of((f"the {name}", f"{name}"))} for name in names}
    student.offer(parameters={"type": "object", "properties": properties, "required": list(names)})
    return Expected(
        passing=CHAT,
        failing=OF_MUL | {"tools.answer"},
        not_passing=frozenset({"tools.results"}),
        note="what the model makes of such a definition is its own; the function cannot take it",
        handed=student.hand_in(talk_script(student), good_loop(student)),
    )


def renamed_parameters(folder: Path, rng: random.Random) -> Expected:
    """The first function's definition calls its parameters other than the function does: a TypeError here."""
    student = Student(folder, rng)
    one, other = rng.choice((("first", "second"), ("num1", "num2"), ("left", "right")))
    properties = {name: {"type": "number"} for name in (one, other)}
    student.offer(parameters={"type": "object", "properties": properties, "required": [one, other]})
    return Expected(
        passing=CHAT | OF_ADD | {"tools.nonce"},
        failing=OF_MUL | AFTER_CALLS,
        handed=student.hand_in(talk_script(student), good_loop(student)),
    )


def syntax_error(folder: Path, rng: random.Random) -> Expected:
    """The function script is no Python."""
    student = Student(folder, rng)
    right, wrong = rng.choice(TYPOS)
    source = good_loop(student).replace(student.fill(right), student.fill(wrong))
    return Expected(
        passing=CHAT,
        failing=CALLS,
        not_passing=AFTER_CALLS | {"tools.nonce"},
        handed=student.hand_in(talk_script(student), source, toml=student.tells_no_role() or None),
    )


def crash_after_the_chat(folder: Path, rng: random.Random) -> Expected:
    """One script: the model has answered, and a KeyError ends it before the functions."""
    student = Student(folder, rng)
    key = rng.choice(("answer", "content", "total_tokens"))
    show = f'{SHOWS[0]}\nprint(reply.model_dump()["{key}"])'
    source = tool_script(student, TALK, UNTIL_DONE, show=show)
    return Expected(
        passing=CHAT,
        failing=CALLS,
        not_passing=AFTER_CALLS | {"tools.nonce"},
        handed=student.hand_in(source, None, found={"tools": student.chat}),
    )


def wrong_argument_names(folder: Path, rng: random.Random) -> Expected:
    """Reads arguments from the call that are not there: a KeyError after the first one."""
    student = Student(folder, rng)
    one, other = rng.choice((("first", "second"), ("num1", "num2"), ("left", "right")))
    student.words["run"] = student.fill(f'$add(values["{one}"], values["{other}"])')
    return Expected(
        passing=CHAT | OF_ADD | {"tools.nonce"},
        failing=OF_MUL | AFTER_CALLS,
        handed=student.hand_in(talk_script(student), tool_script(student, FIRST_CALL, SEND_BACK, SECOND_CALL)),
    )


def endless_loop(folder: Path, rng: random.Random) -> Expected:
    """The function script never ends."""
    student = Student(folder, rng)
    source = tool_script(student, "\n$note_ask\nreply = $ask\n", rng.choice(ENDLESS))
    return Expected(
        passing=CHAT,
        not_passing=OF_MUL | AFTER_CALLS,
        status="timeout",
        handed=student.hand_in(talk_script(student), source),
    )


def reads_stdin(folder: Path, rng: random.Random) -> Expected:
    """The chat script waits for somebody to type the question: the grader types one."""
    student = Student(folder, rng)
    chat = student.fill(rng.choice(HEADS)) + student.fill(rng.choice(TYPED))
    return Expected(
        passing=LOOP,
        handed=student.hand_in(chat, good_loop(student)),
    )


def huge_output(folder: Path, rng: random.Random) -> Expected:
    """The chat script prints megabytes after the model's answer."""
    student = Student(folder, rng)
    times = str(rng.randrange(200_000, 300_000))
    spew = rng.choice(("for line in range($times):\n    print(line, $text)\n", "print($text * $times)\n"))
    chat = talk_script(student) + student.fill(spew, times=times, text='"reply of the server, once more " ')
    return Expected(
        passing=LOOP - {"scripts.honest"},
        note="the answer was on the wire before the output was cut off, so nothing stands in the way of a grade",
        handed=student.hand_in(chat, good_loop(student)),
    )


def chat_only(folder: Path, rng: random.Random) -> Expected:
    """No function script was handed in."""
    student = Student(folder, rng)
    return Expected(
        passing=CHAT | {"scripts.honest"},
        not_passing=CALLS | AFTER_CALLS | {"tools.nonce"},
        handed=student.hand_in(talk_script(student), None),
    )


def canned_chat(folder: Path, rng: random.Random) -> Expected:
    """The chat script prints an introduction of its own."""
    student = Student(folder, rng)
    text = student.of(rng.choice(INTRODUCTIONS))
    told = rng.random() < 0.5
    source = student.fill(rng.choice(HEADS))
    source += student.fill("print(model_name)\n" if told else UNCALLED) + f'print("{text}")\n'
    return Expected(
        passing=LOOP - CHAT - {"scripts.honest"},
        failing=CHAT | {"scripts.honest"},
        handed=student.hand_in(source, good_loop(student), toml=told or None),
    )


def _first_numbers(task: Task) -> tuple[int, int]:
    a, b, c = task.values
    return (a, b) if a + b == task.first else (b, c)


def _notebook(*cells: str) -> str:
    """Code cells, or Markdown ones where they begin with "# " and have one line."""
    written: list[dict[str, Any]] = []
    for cell in cells:
        markdown = cell.startswith("# ") and "\n" not in cell
        more: dict[str, Any] = {} if markdown else {"outputs": [], "execution_count": None}
        kind = "markdown" if markdown else "code"
        written.append({"cell_type": kind, "metadata": {}, "source": cell.splitlines(keepends=True), **more})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": written, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}, ensure_ascii=False)


TEMPLATES: dict[str, Writer] = {
    each.__name__: each
    for each in (
        tutorial,
        answer_without_asking,
        loop_with_ids,
        no_tools_offered,
        dispatch_table,
        ignores_the_calls,
        async_client,
        stops_after_the_first_call,
        without_openai,
        wrong_result,
        streamed,
        invented_history,
        other_numbers,
        useless_schema,
        renamed_parameters,
        own_class,
        syntax_error,
        notebook,
        crash_after_the_chat,
        plus_and_times,
        wrong_argument_names,
        one_script,
        endless_loop,
        own_modules,
        reads_stdin,
        huge_output,
        chat_only,
        canned_chat,
    )
}
