"""The homework in Markdown, ready to hand in: each step with its command, output and picture, from a run's evidence."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from lab3.errors import UsageError
from lab3.evidence import CallFacts, ChatFacts, Evidence, QuantizationFacts, ServerFacts, ToolFacts
from lab3.report import charts_lab
from lab3.report.charts import Chart
from lab3.report.charts_figures import change, figure, grouped, megabytes, rounded_up
from lab3.report.html_commands import ask, asked_at, commands, model_folder
from lab3.report.html_page import save
from lab3.report.html_words import Language, Words
from lab3.report.markdown_text import cell, code, fence, plain, table
from lab3.report.markdown_words import HOMEWORK
from lab3.report.stored import Stored

FILE = "homework.md"


def write_homework(stored: Stored, folder: Path, *, language: Language = "en", overwrite: bool = False) -> list[Path]:
    """Write homework.md and its pictures into `folder`, and return the files, the homework first.

    Each file is whole or not there, and the homework comes last. Raises UsageError if the folder holds a homework that
    differs (somebody may have edited it) or the run is not lab3's own, InfraError if something cannot be written.
    """
    if stored.evidence.subject != "reference":
        raise UsageError(
            f"{stored.folder} is no lab that lab3 did",
            why="what others did is theirs to write down",
            todo="pass the folder of a `lab3 run`, or leave --markdown out for its page",
        )
    homework = Homework(stored, language)
    text, pictures = homework.text(), homework.pictures
    file = folder / FILE
    if not overwrite and file.exists() and file.read_bytes() != text.encode():
        raise UsageError(
            f"{file} exists and differs",
            why="it was edited, or is of another run or language",
            todo="pass another --out, or --overwrite to replace it",
        )
    for chart in pictures:
        save(chart.file(), folder / f"{chart.name}.svg")
    save(text, file)
    return [file, *(folder / f"{chart.name}.svg" for chart in pictures)]


class Homework:
    """The text, and the pictures that it shows."""

    def __init__(self, stored: Stored, language: Language) -> None:
        self.words = Words(language, HOMEWORK)
        self.stored, self.evidence = stored, stored.evidence
        self.pictures: list[Chart] = []
        self._parts: list[str] = []
        self._commands = {each.name: each for each in commands(self.evidence)}
        self._base_url = asked_at(self.evidence)

    def text(self) -> str:
        """The whole homework."""
        self._parts, self.pictures = [], []
        self._opening()
        self._say(f"## {self.words('hw_task1')}")
        self._before()
        self._quantization()
        self._server()
        self._conversation()
        self._memory()
        self._say(f"## {self.words('hw_task2')}")
        self._tools()
        self._sum_up()
        self._checks()
        return "\n\n".join(self._parts) + "\n"

    # --- the steps -------------------------------------------------------------------------------------------------

    def _opening(self) -> None:
        words, run = self.words, self.stored
        self._say(f"# {words('hw_title', model=plain(self.evidence.model))}")
        version = plain(self.evidence.environment.get("lab3", "?"))
        self._say(words("hw_intro", version=version, points=run.points, most=run.max_points))
        self._say(f"## {words('environment')}")
        rows = [(plain(name), cell(value)) for name, value in self.evidence.environment.items()]
        self._say(table((words("what"), words("value")), rows))
        if "whole_lab" in self._commands:
            self._say(words("whole_lab"))
            self._say(fence(self._commands["whole_lab"].text, "bash"))

    def _before(self) -> None:
        server = self.evidence.baseline
        self._say(f"### {self.words('hw_before')}")
        if server is None:
            return self._not_shown("baseline")
        self._say(self.words("hw_before_text", ratio=figure(server.cache_ratio, 2)))
        self._step(server.command, _told(server))
        return None

    def _quantization(self) -> None:
        q, words = self.evidence.quantization, self.words
        self._say(f"### {words('hw_quantize')}")
        if q is None:
            return self._not_shown("quantization")
        group = "?" if q.group_size is None else q.group_size
        self._say(
            words("hw_quantize_text", bits="?" if q.bits is None else q.bits, group=group, seconds=figure(q.seconds, 1))
        )
        command = self._commands.get("quantize_step")
        self._step(command.text if command else "", _quantized(q))
        self._say(words("hw_du"))
        self._say(fence(self._du(q)))
        self._draw(charts_lab.size_chart(q, words))
        self._draw(charts_lab.perplexity_chart(q, words))
        return None

    def _server(self) -> None:
        server, words = self.evidence.quantized, self.words
        self._say(f"### {words('hw_serve')}")
        if server is None:
            return self._not_shown("quantized")
        ratio = figure(server.cache_ratio, 2)
        if server.kv_bits in (4, 8):
            self._say(words("hw_serve_text", policy=server.kv_bits, bits=server.kv_bits, ratio=ratio))
        else:
            self._say(words("hw_serve_plain", bits=server.kv_bits, ratio=ratio))
        self._step(server.command, _told(server))
        self._draw(charts_lab.capacity_chart(self.evidence, words))
        return None

    def _conversation(self) -> None:
        chat = self.evidence.chat
        self._say(f"### {self.words('hw_chat')}")
        if chat is None:
            return self._not_shown("chat")
        self._step(ask("chat", chat.question, self._base_url, more="--stream "), self._turn(chat.question, chat.text))
        self._say(self._counts(chat))
        if chat.other_question and chat.other_text is not None:
            self._step(
                ask("chat", chat.other_question, self._base_url), self._turn(chat.other_question, chat.other_text)
            )
        return None

    def _memory(self) -> None:
        self._say(f"### {self.words('hw_memory')}")
        peak = charts_lab.peak_chart(self.evidence, self.words)
        if peak is None:
            return self._not_shown("quantized")
        for chart in charts_lab.time_charts(self.evidence, self.words):
            self._draw(chart)
        self._draw(peak)
        self._say(table([plain(each) for each in peak.head], [[plain(each) for each in row] for row in peak.rows]))
        return None

    def _tools(self) -> None:
        if not self.evidence.tools:
            return self._not_shown("tools")
        if self.evidence.quantized is not None:
            self._say(self.words("hw_same_server", command=code(self.evidence.quantized.command)))
        for number, asked in enumerate(self.evidence.tools, 1):
            self._asked(asked, number)
        return None

    def _asked(self, asked: ToolFacts, number: int) -> None:
        from lab3 import funcall

        words = self.words
        self._say(words("hw_functions", choice=plain(asked.tool_choice), question=code(asked.question)))
        self._say(fence("\n\n".join(inspect.getsource(each) for each in (funcall.add, funcall.mul)), "python"))
        lines = [f"{call.name}({call.arguments_json}) → {_result(call.outcome, call.result)}" for call in asked.calls]
        command = ask("funcall", asked.question, self._base_url, more="--seed 0 ")
        self._step(command, "\n".join([*lines, asked.answer or asked.outcome]))
        if asked.calls:
            self._say(words("hw_wire"))
            self._say(fence("\n".join(map(_wire, asked.calls)), "json"))
        self._draw(charts_lab.call_chart(asked, number, words))
        if asked.results_returned is not None and asked.calls:
            self._say(words("hw_returned" if asked.results_returned else "hw_not_returned"))

    def _sum_up(self) -> None:
        lines = _conclusions(self.evidence, self.words)
        if lines:
            self._say(f"## {self.words('hw_sum_up')}")
            self._say("\n".join(f"- {line}" for line in lines))

    def _checks(self) -> None:
        words = self.words
        if not self.stored.verdicts:
            return
        self._say(f"## {words('hw_checks')}")
        rows = [
            (plain(words.title(each)), words(each.status), f"{each.points} / {each.max_points}", cell(each.reason))
            for each in self.stored.verdicts
        ]
        self._say(table((words("hw_check_head"), words("verdict"), words("points"), words("hw_why")), rows))

    # --- within ----------------------------------------------------------------------------------------------------

    def _say(self, part: str) -> None:
        if part:
            self._parts.append(part)

    def _step(self, command: str, output: str) -> None:
        if command:
            self._say(self.words("hw_command"))
            self._say(fence(command, "bash"))
        self._say(self.words("hw_output"))
        self._say(fence(output))

    def _draw(self, chart: Chart | None) -> None:
        if chart is not None:
            self.pictures.append(chart)
            self._say(f"![{plain(f'{chart.title}. {chart.text}')}]({chart.name}.svg)")

    def _not_shown(self, section: str) -> None:
        trouble = self.evidence.trouble.get(section)
        why = code(trouble.text) if trouble else self.words("hw_no_evidence")
        self._say(self.words("hw_not_shown", why=why))

    def _turn(self, question: str, answer: str) -> str:
        return f"User: {question}\nAssistant: {answer or self.words('said_nothing')}"

    def _du(self, q: QuantizationFacts) -> str:
        before, after = (
            model_folder(server) if server else "" for server in (self.evidence.baseline, self.evidence.quantized)
        )
        names = (before or self.words("before"), after or self.words("after"))
        sizes = (q.folder_bytes_before, q.folder_bytes_after)
        return "\n".join(f"{rounded_up(size)}\t{name}" for size, name in zip(sizes, names, strict=True))

    def _counts(self, chat: ChatFacts) -> str:
        words, told = self.words, []
        if chat.total_tokens is not None:
            told.append(
                words(
                    "token_counts",
                    prompt=chat.prompt_tokens,
                    completion=chat.completion_tokens,
                    total=chat.total_tokens,
                )
            )
        if chat.ttft_s is not None:
            told.append(words("first_token", seconds=figure(chat.ttft_s, 2)))
        if chat.tokens_per_second is not None:
            told.append(words("speed", speed=figure(chat.tokens_per_second, 1)))
        return "; ".join(told)


def _told(server: ServerFacts) -> str:
    facts = {
        "engine": server.engine,
        "ready after": f"{figure(server.startup_seconds, 1)} s",
        "memory": f"{server.used_mib}MiB / {server.total_mib}MiB ({server.memory_method})",
        **({"held by others": f"{server.foreign_mib}MiB"} if server.foreign_mib else {}),
        **({"KV cache": f"{server.kv_tokens} tokens"} if server.kv_tokens is not None else {}),
    }
    return _columns(facts)


def _quantized(q: QuantizationFacts) -> str:
    perplexities = {
        "perplexity before": q.perplexity_before,
        "perplexity after": q.perplexity_after,
        "with int4 KV cache": q.perplexity_kv_int4,
    }
    facts = {
        "method": f"{q.method}, {q.bits} bits, group size {q.group_size}",
        "weights": f"{q.weight_bytes_before} -> {q.weight_bytes_after} bytes",
        "predicted": f"{q.predicted_weight_bytes} bytes",
        "folder (du)": f"{q.folder_bytes_before} -> {q.folder_bytes_after} bytes",
        **{name: figure(value, 4) for name, value in perplexities.items() if value is not None},
        **{f"note {number}": notice for number, notice in enumerate(q.notices, 1)},
    }
    return _columns(facts)


def _wire(call: CallFacts) -> str:
    told = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
    return json.dumps(told, ensure_ascii=False)


def _columns(facts: dict[str, str]) -> str:
    wide = max(map(len, facts))
    return "\n".join(f"{name:<{wide}}  {value}" for name, value in facts.items())


def _result(outcome: str, result: object) -> str:
    return str(result) if outcome == "ok" else outcome


def _conclusions(evidence: Evidence, words: Words) -> list[str]:
    """What the figures show, each only if they are there and show it."""
    q, before, after = evidence.quantization, evidence.baseline, evidence.quantized
    lines = []
    if q and q.weight_bytes_after < q.weight_bytes_before:
        lines.append(
            words(
                "hw_sum_size",
                before=megabytes(q.weight_bytes_before),
                after=megabytes(q.weight_bytes_after),
                change=change(q.weight_bytes_before, q.weight_bytes_after),
            )
        )
        lines.append(words("hw_sum_weights_only"))
    if q and before and after and after.used_mib < before.used_mib and before.total_mib == after.total_mib:
        lines.append(
            words(
                "hw_sum_memory",
                before=grouped(before.used_mib),
                after=grouped(after.used_mib),
                change=change(before.used_mib, after.used_mib),
                weights=grouped((q.weight_bytes_before - q.weight_bytes_after) / 2**20),
                ratio_before=figure(before.cache_ratio, 2),
                ratio_after=figure(after.cache_ratio, 2),
            )
        )
    sizes = q.kv_bytes_per_token if q else {}
    if after and after.kv_bits == 4 and sizes.get("16") and sizes.get("4"):
        times = figure(sizes["16"] / sizes["4"], 2)
        lines.append(words("hw_sum_kv", times=times, bytes16=grouped(sizes["16"]), bytes4=grouped(sizes["4"])))
    if q and q.perplexity_before is not None and q.perplexity_after is not None:
        lines.append(_quality(q, q.perplexity_before, q.perplexity_after, words))
    return lines


def _quality(q: QuantizationFacts, before: float, after: float, words: Words) -> str:
    line = words(
        "hw_sum_quality", before=figure(before, 2), after=figure(after, 2), change=change(before, after) or "–"
    )
    if q.perplexity_kv_int4 is None:
        return line
    gap = " " if words.language == "en" else ""
    return f"{line}{gap}{words('hw_sum_quality_kv', kv=figure(q.perplexity_kv_int4, 2))}"
