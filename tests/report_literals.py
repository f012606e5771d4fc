"""Reports and readings as literals, for tests of the checks: no file is read, and no picture is looked at."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from lab3.reports.facts import gather
from lab3.reports.model import (
    Block,
    ChatSeen,
    CommandSeen,
    CompletionSeen,
    FolderSize,
    GpuProcess,
    LogLine,
    MemoryReading,
    Picture,
    Place,
    Printed,
    Report,
    ToolCallSeen,
)
from lab3.reports.rubric import judge_report

GIB, MIB = 1 << 30, 1 << 20
MODEL = "/root/models/internlm2_5-1_8b-chat"
MADE = "/root/models/internlm2_5-1_8b-chat-4bit"


class Draft:
    """A report that is put together block by block; what is put at a picture is read off that picture."""

    def __init__(self):
        self.blocks, self.readings, self.section = [], [], ()

    def heading(self, text, *, level=2):
        self.section = (*self.section[: level - 1], text)
        return self._add(Block(kind="heading", text=text, level=level, section=self.section[:-1]))

    def text(self, text, *, kind="paragraph"):
        return self._add(Block(kind=kind, text=text, section=self.section))

    def table(self, *rows):
        return self._add(
            Block(kind="table", text="\n".join(" | ".join(row) for row in rows), rows=rows, section=self.section)
        )

    def fence(self, *commands):
        self._add(Block(kind="code", text="\n".join(commands), section=self.section))
        for each in commands:
            self.command(each, picture=None)
        return self

    def picture(self, *, alt="", why=""):
        number = len(self.blocks)
        picture = Picture(
            target=f"{number}.png",
            alt=alt,
            path=None if why else Path(f"{number}.png"),
            digest="" if why else f"{number:064x}",
            why=why,
        )
        return self._add(Block(kind="image", text="", picture=picture, section=self.section))

    def command(self, text, *, picture=True, confidence=0.95):
        place = self._place(text, confidence=confidence) if picture else self._written(text)
        return self._read(CommandSeen(text=text, argv=tuple(shlex.split(text)), place=place, at_prompt=bool(picture)))

    def memory(self, used, total=24566, **more):
        return self._read(
            MemoryReading(used_mib=used, total_mib=total, place=self._place(f"{used} / {total} MiB"), **more)
        )

    def processes(self, *held):
        """nvidia-smi's table of processes, for the memory that was read last."""
        rows = tuple(
            GpuProcess(pid=n, name="python", used_mib=mib, gpu=0, place=self._place(f"{mib}MiB"))
            for n, mib in enumerate(held)
        )
        self.readings[-1] = replace(self.readings[-1], processes=rows, kind="nvidia-smi")
        return self

    def size(self, name, text, *, low=None, high=None, doubt=""):
        number = float(text[:-1])
        scale, step = {"G": (GIB, 0.1 if "." in text else 1), "M": (MIB, 1)}[text[-1]]
        place = self._place(f"{text} {name}")
        return self._read(
            FolderSize(
                name=name,
                text=text,
                low=int(low or (number - step) * scale),
                high=int(high or number * scale),
                place=place,
                doubt=doubt,
            )
        )

    def log(self, event, quote="", **more):
        return self._read(LogLine(event=event, place=self._place(quote or event), **more))

    def chat(self, prompt, answer, where="page"):
        return self._read(ChatSeen(prompt=prompt, answer=answer, place=self._place(prompt), where=where))

    def completion(self, name=None, arguments="", *, content="", model=MADE, usage=(200, 40, 240), **more):
        calls = (ToolCallSeen(name=name, arguments=arguments),) if name else ()
        prompt, completion, total = usage
        return self._read(
            CompletionSeen(
                place=self._place("ChatCompletion(…)"), content=content, tool_calls=calls, model=model,
                prompt_tokens=prompt, completion_tokens=completion, total_tokens=total, **more,
            )
        )  # fmt: skip

    def printed(self, text):
        return self._read(Printed(text=text, place=self._place(text)))

    def facts(self, theirs=frozenset()):
        report = Report(path=Path("report.md"), format="markdown", encoding="utf-8", blocks=tuple(self.blocks))
        return gather(report, self.readings, theirs)

    def judged(self, theirs=frozenset()):
        return {each.id.removeprefix("report."): each for each in judge_report(self.facts(theirs))}

    def _add(self, block):
        self.blocks.append(block)
        return self

    def _read(self, reading):
        self.readings.append(reading)
        return self

    def _place(self, quote, *, confidence=0.95):
        block = len(self.blocks) - 1
        picture = self.blocks[block].picture
        return Place(
            block=block,
            quote=quote,
            picture=picture and picture.digest,
            box=(0, 0, 9, 9) if picture else None,
            confidence=confidence,
        )

    def _written(self, quote):
        return Place(block=len(self.blocks) - 1, quote=quote)


def whole_report(**other):
    """A report that shows every step; each step can be left out or replaced by a function that gets the draft."""
    d = Draft()
    for name, step in STEPS.items():
        other.get(name, step)(d)
    return d


def nothing(d):
    """A step that is left out."""


def _baseline(d):
    d.heading("Task 1", level=1).heading("量化前")
    d.text("先运行没有量化的模型").fence(f"lmdeploy chat {MODEL}").text("它占用的显存").picture().memory(20616)


def _quantize(d):
    d.heading("W4A16 量化").picture().command(f"lmdeploy lite auto_awq {MODEL} --w-bits 4 --work-dir {MADE}").log(
        "quantizing"
    )


def _sizes(d):
    d.text("两个文件夹的大小").picture().size("internlm2_5-1_8b-chat", "3.6G").size(
        "internlm2_5-1_8b-chat-4bit", "1.5G"
    )


def _chat(d):
    d.heading("量化后的 chat").fence(
        f"lmdeploy chat {MADE} --model-format awq --cache-max-entry-count 0.4"
    ).picture().memory(11172)


def _serve(d):
    d.heading("启动 API 服务").picture()
    d.command(
        f"lmdeploy serve api_server {MADE} --model-format awq --quant-policy 4 --cache-max-entry-count 0.4"
        " --server-port 23333"
    )
    d.log("listening", "Uvicorn running on http://0.0.0.0:23333", port=23333)


def _conversation(d):
    d.text("网页上的对话").picture().chat("你叫什么名字", "我是书生·浦语。")


def _server_memory(d):
    d.text("服务的显存").picture().memory(11368)


def _tools(d):
    d.heading("Task 2: function call", level=1).text("计算 (4+7)*3").picture()
    d.completion("add", '{"a": 4, "b": 7}', content="First the sum.").printed("11")
    d.completion("mul", '{"a": 11, "b": 3}', content="The sum is 11.", usage=(240, 51, 291)).printed("33")


STEPS = {
    "baseline": _baseline,
    "quantize": _quantize,
    "sizes": _sizes,
    "chat": _chat,
    "serve": _serve,
    "conversation": _conversation,
    "server_memory": _server_memory,
    "tools": _tools,
}
