"""Conversations: in a terminal with `lmdeploy chat`, with the speakers named, and on web pages (screens_pages)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from lab3.reports.lines import Sheet
from lab3.reports.model import ChatSeen
from lab3.reports.screens_pages import Found, find_pages

_ASKS = re.compile(r"doub[l1iI|]e\s*enter\s*to\s*end\s*input\s*[>〉》]*\s*", re.IGNORECASE)
_ASSISTANT = re.compile(r"<\s*[|lI1]\s*im_start\s*[|lI1]\s*>\s*assistant\s*", re.IGNORECASE)
_USER = re.compile(r"<\s*[|lI1]\s*im_start\s*[|lI1]\s*>\s*user\s*", re.IGNORECASE)
_TAG = re.compile(r"<\s*[|lI1]\s*im_(?:start|end)\s*[|lI1]\s*>\s*(?:system|user|assistant)?\s*", re.IGNORECASE)
_SPEAKER = re.compile(
    r"^\W*(?P<who>User|用户|Human|You|我|Assistant|助手|Bot|AI|InternLM|机器人)\s*[:：>]\s*(?P<said>.*)$",
    re.IGNORECASE,
)
_CURSORS = "_□▯█▌"
_PERSON = frozenset(("user", "用户", "human", "you", "我"))


def find_chats(sheet: Sheet) -> Iterator[Found]:
    """Each turn of a conversation. Either part may be missing, e.g. where the picture is cut."""
    if any(_ASKS.search(line.text) or _ASSISTANT.search(line.text) for line in sheet.lines):
        yield from _in_terminal(sheet)
        return
    spoken = [number for number, line in enumerate(sheet.lines) if _SPEAKER.match(line.text)]
    if len(spoken) >= 2:
        yield from _with_speakers(sheet, spoken)
        return
    if sheet.picture:
        yield from find_pages(sheet)


def _in_terminal(sheet: Sheet) -> Iterator[Found]:
    """`double enter to end input >>> …`, then the rendered prompt, then the answer up to the next question."""
    starts = [number for number, line in enumerate(sheet.lines) if _ASKS.search(line.text)]
    if not starts or (starts[0] > 0 and any(_ASSISTANT.search(line.text) for line in sheet.lines[: starts[0]])):
        starts = [0, *starts]
    for first, end in zip(starts, [*starts[1:], len(sheet.lines)], strict=True):
        lines = [line.text for line in sheet.lines[first:end]]
        text = "\n".join(lines)
        assistant = list(_ASSISTANT.finditer(text))
        before = text[: assistant[-1].start()] if assistant else text
        answer = text[assistant[-1].end() :] if assistant else ""
        users = list(_USER.finditer(before))
        typed = _ASKS.sub("", before[: users[0].start()] if users else before)
        asked = _TAG.sub("", before[users[-1].end() :]) if users else typed
        if not assistant and asked.strip():
            question, _, rest = asked.strip().partition("\n\n")
            asked, answer = (question, rest) if rest else (question.partition("\n")[0], question.partition("\n")[2])
        prompt = _TAG.sub("", asked if asked.strip() else typed).strip().strip(_CURSORS).strip()
        answer = _TAG.sub("", answer).strip()
        last = end - 1
        while last > first and not lines[last - first].strip():
            last -= 1
        if (prompt or answer) and prompt.lower() not in ("exit", "end", "quit"):
            yield Found(
                first, last, ChatSeen(prompt=prompt, answer=answer, place=sheet.place(first, last), where="terminal")
            )


def _with_speakers(sheet: Sheet, spoken: Sequence[int]) -> Iterator[Found]:
    prompt, begun = "", 0
    for number, end in zip(spoken, [*spoken[1:], len(sheet.lines)], strict=True):
        found = _SPEAKER.match(sheet.lines[number].text)
        if found is None:
            continue
        said = "\n".join([found["said"], *(line.text for line in sheet.lines[number + 1 : end])]).strip()
        if found["who"].lower() in _PERSON:
            prompt, begun = said, number
        else:
            first = begun if prompt else number
            place = sheet.place(first, end - 1)
            where: Literal["page", "terminal"] = "page" if sheet.picture else "terminal"
            yield Found(first, end - 1, ChatSeen(prompt=prompt, answer=said, place=place, where=where))
            prompt = ""
