"""A turn as the messages of a chat; an answer's figures and a server's status as HTML, what others wrote escaped."""

from __future__ import annotations

import html
import re

from lab3.chat import RawCall
from lab3.funcall import Call
from lab3.openai_client import excerpt
from lab3.vram_predict import Range
from lab3.web.panel import Status
from lab3.web.talk import MAX_ROUNDS, Conversation, Figures, Turn
from lab3.web.words import Language, word

Messages = list[dict[str, str]]
_SHOWN = 2000  # characters of a call's arguments or result


def messages(conversation: Conversation, language: Language) -> Messages:
    """The conversation for a chat that renders Markdown."""
    return [message for turn in conversation.turns for message in _turn(turn, language)]


def answer(turn: Turn, language: Language) -> str:
    """The answer alone, as Markdown."""
    return "\n\n".join(message["content"] for message in _turn(turn, language)[1:])


def _turn(turn: Turn, language: Language) -> Messages:
    parts = [part if isinstance(part, str) else call_card(part, language) for part in turn.parts]
    parts = [part for part in parts if part.strip()]
    notes = [f"⚠ {turn.fault.sentence(language)}"] if turn.fault else []
    if turn.too_many_rounds:
        notes.append(f"⚠ {word('too_many_rounds', language, count=MAX_ROUNDS)}")
    if turn.stopped:
        notes.append(f"*{word('stopped', language)}*")
    elif turn.finish_reason == "length":
        notes.append(f"*{word('cut', language)}*")
    elif turn.done and not parts and not notes:
        notes.append(f"*{word('no_answer', language)}*")
    said = [{"role": "user", "content": turn.said}]
    return said + [{"role": "assistant", "content": content} for content in parts + notes]


def call_card(call: RawCall | Call, language: Language) -> str:
    """A call as a block of code, in which no Markdown or HTML takes effect: `add({"a": 3, "b": 5})` and its result."""
    if isinstance(call, RawCall):
        arguments = call.arguments if isinstance(call.arguments, str) else repr(call.arguments)
        became = word("calling", language)
    else:
        arguments = call.arguments_json
        became = f"→ {call.result}" if call.outcome == "ok" else f"✗ {call.error}"
    text = excerpt(f"{call.name}({' '.join(arguments.split())})\n{became}", _SHOWN)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}text\n{text}\n{fence}"


def last_answer(told: Figures, language: Language) -> str:
    """The speed of the last answer under a heading, as HTML."""
    return f"<h3>{html.escape(word('answer_figures', language))}</h3>{figures(told, language)}"


def figures(told: Figures, language: Language) -> str:
    """An answer's speed, as HTML."""

    def number(value: float | None, key: str) -> str:
        return "–" if value is None else word(key, language, count=f"{value:.2f}" if value < 10 else f"{value:.1f}")

    rows = {
        "first_token": number(told.ttft_s, "seconds"),
        "speed": number(told.tokens_per_second, "per_second"),
        "tokens": "–" if told.tokens is None else f"{told.tokens:,}",
    }
    return _list({word(key, language): value for key, value in rows.items()})


def panel(statuses: dict[str, Status], language: Language) -> str:
    """The servers' memory and load, as HTML; `statuses` by the word for each server."""
    return "".join(_server(name, status, language) for name, status in statuses.items())


def _server(name: str, status: Status, language: Language) -> str:
    state = "up" if status.up else "down"
    badge = f'<span class="lab3-badge lab3-{state}">{html.escape(word(state, language))}</span>'
    head = f"<h3>{html.escape(word(name, language))} {badge}</h3>"
    return f'<section class="lab3-server">{head}{_memory_bar(status)}{_list(_rows(status, language))}</section>'


def _rows(status: Status, language: Language) -> dict[str, str]:
    rows: dict[str, str] = {}
    memory, key = status.memory, "cpu_memory" if status.engine == "cpu" else "gpu_memory"
    if memory is not None:
        total = word("used_of", language, used=f"{memory.used_mib:,}", total=f"{memory.total_mib:,}")
        rows[word(key, language)] = total
        if status.engine != "cpu" and memory.process_mib is not None:
            rows[word("of_which_server", language)] = word("mib", language, count=f"{memory.process_mib:,}")
    elif status.up:
        rows[word(key, language)] = word("unknown" if status.place == "here" else status.place, language)
    if status.place == "here":
        rows[word("ceiling", language)] = _ceiling(status, language)
    if status.up:
        rows |= _pool(status, language)
    told = status.metrics
    if told.running is not None:
        waiting = told.waiting or 0
        rows[word("requests", language)] = word("running_waiting", language, running=told.running, waiting=waiting)
    return rows


def _ceiling(status: Status, language: Language) -> str:
    if status.ceiling is None:
        return word("no_ceiling_cpu" if status.engine == "cpu" else "unknown", language)
    return word("mib", language, count=_range(status.ceiling))


def _range(mib: Range) -> str:
    return f"{mib.high:,.0f}" if mib.point is not None else f"{mib.low:,.0f} – {mib.high:,.0f}"


def _pool(status: Status, language: Language) -> dict[str, str]:
    size = [] if status.kv_pool_mib is None else [word("mib", language, count=f"{status.kv_pool_mib:,.0f}")]
    size += [f"int{status.kv_bits}"] if status.kv_bits is not None and status.kv_bits < 16 else []
    rows = {word("kv_pool", language): " · ".join(size)} if size else {}
    if status.kv_tokens is not None:
        rows[word("kv_holds" if size else "kv_pool", language)] = word(
            "kv_tokens", language, count=f"{status.kv_tokens:,}"
        )
    if status.metrics.kv_used is not None:
        rows[word("kv_used", language)] = f"{status.metrics.kv_used:.1%}"
    return rows or {word("kv_pool", language): word("unknown", language)}


def _memory_bar(status: Status) -> str:
    """The rows beside it say the same in words."""
    memory = status.memory
    if memory is None or memory.total_mib <= 0:
        return ""
    used = min(100.0, 100 * memory.used_mib / memory.total_mib)
    mark = ""
    if status.ceiling is not None:
        mark = f'<i style="left:{min(100.0, 100 * status.ceiling.high / memory.total_mib):.1f}%"></i>'
    return f'<div class="lab3-bar" aria-hidden="true"><b style="width:{used:.1f}%"></b>{mark}</div>'


def _list(rows: dict[str, str]) -> str:
    inside = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in rows.items()
    )
    return f'<dl class="lab3-figures">{inside}</dl>'
