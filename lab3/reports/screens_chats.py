"""Conversations: in a terminal with `lmdeploy chat`, and on web pages (gradio's bubbles, browser chats)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from lab3.reports.lines import Line, Sheet
from lab3.reports.model import ChatSeen

_ASKS = re.compile(r"doub[l1iI|]e\s*enter\s*to\s*end\s*input\s*[>〉》]*\s*", re.IGNORECASE)
_ASSISTANT = re.compile(r"<\s*[|lI1]\s*im_start\s*[|lI1]\s*>\s*assistant\s*", re.IGNORECASE)
_USER = re.compile(r"<\s*[|lI1]\s*im_start\s*[|lI1]\s*>\s*user\s*", re.IGNORECASE)
_TAG = re.compile(r"<\s*[|lI1]\s*im_(?:start|end)\s*[|lI1]\s*>\s*(?:system|user|assistant)?\s*", re.IGNORECASE)
_CONTROLS = re.compile(
    r"^\W*(?:Instruction|Please input.*|Cancel|Reset|Submit|Clear|Retry|Undo|Maximum new tokens|Top_?p|Temperature"
    r"|Type a message.*|Send.*|Stop|Use via API.*|Built with Gradio.*|使用 ?Gradio.*|通过 API 使用.*|Settings"
    r"|设置|提交|清除|重试|撤销"
    r"|LMDeploy Playground|Chatbot|输入.*|请输入.*|发送|停止|复制|[\d.\s□◯○G↺口]+)\W*$",
    re.IGNORECASE,
)
_SPEAKER = re.compile(
    r"^\W*(?P<who>User|用户|Human|You|我|Assistant|助手|Bot|AI|InternLM|机器人)\s*[:：>]\s*(?P<said>.*)$",
    re.IGNORECASE,
)
_CURSORS = "_□▯█▌"
_PERSON = frozenset(("user", "用户", "human", "you", "我"))
_TERMINAL = re.compile(r"[#$]\s|https?://|INFO|WARNING|\bimport\b|==|--\w|\|\s|MiB|^\s*>|\.py\b|[{}\[\]=]|Error")
_CJK = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Found:
    """A reading, and the lines that it took."""

    first: int
    last: int
    reading: ChatSeen


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
        yield from _on_page(sheet)


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


# ----------------------------------------------------------------------------------------------------------- on a page


def _on_page(sheet: Sheet) -> Iterator[Found]:
    """A page's bubbles: what stands at the right is asked, what begins at the left is answered.

    Only pages of prose are looked at: a picture of a terminal has paths, flags and figures in most of its lines.
    """
    if not _is_page(sheet):
        return
    said = [
        number
        for number, line in enumerate(sheet.lines)
        if line.box and line.text.strip() and not _CONTROLS.match(line.text) and not _is_model(line.text)
    ]
    asked = next((number for number in said if _at_right(sheet, number)), None)
    end = _end_of_talk(sheet, asked)
    said = [number for number in said if number < end]
    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    for number in said:
        group = prompts if _at_right(sheet, number) else answers
        other = answers if group is prompts else prompts
        fresh = not group or (other and other[-1][-1] > group[-1][-1])
        if fresh:
            group.append([number])
        else:
            group[-1].append(number)
    for prompt in prompts:
        following = next((each for each in answers if each[0] > prompt[-1]), [])
        later = next((each for each in prompts if each[0] > prompt[-1]), None)
        if following and later and following[0] > later[0]:
            following = []
        told = [*prompt, *following]
        yield Found(
            told[0],
            told[-1],
            ChatSeen(
                prompt=_text(sheet, prompt),
                answer=_text(sheet, following),
                place=sheet.place(told[0], told[-1]),
                where="page",
            ),
        )


def _end_of_talk(sheet: Sheet, asked: int | None) -> int:
    """Where the page's controls begin, below what was asked."""
    for number, line in enumerate(sheet.lines):
        if asked is not None and number > asked + 1 and _CONTROLS.match(line.text) and line.text.strip():
            return number
    return len(sheet.lines)


def _is_page(sheet: Sheet) -> bool:
    lines = [line for line in sheet.lines if line.text.strip()]
    if len(lines) < 2 or not sheet.width:
        return False
    controls = sum(bool(_CONTROLS.match(line.text)) for line in lines)
    odd = sum(bool(_TERMINAL.search(line.text)) for line in lines)
    if controls >= 2:
        return odd <= 0.5 * len(lines)
    proseful = sum(bool(_CJK.search(line.text)) or len(line.text.split()) >= 6 for line in lines)
    return odd <= 0.15 * len(lines) and proseful >= 2


def _at_right(sheet: Sheet, number: int) -> bool:
    """Whether a line ends at the right edge of what is said, and leaves the left free."""
    box = sheet.lines[number].box
    boxes = [line.box for line in sheet.lines if line.box is not None]
    if box is None or not boxes:
        return False
    left, right = min(each[0] for each in boxes), max(each[2] for each in boxes)
    wide = right - left
    height = median(each[3] - each[1] for each in boxes)
    return (
        box[0] - left > 0.4 * wide
        and right - box[2] < max(0.15 * wide, 4 * height)
        and box[0] - left > 1.5 * (right - box[2])
    )


def _is_model(text: str) -> bool:
    """The label of a chatbot that is called by the model's folder."""
    return bool(re.fullmatch(r"\W*[~./\w\-]*(?:internlm|chat|model)[\w.\-/]*\W*", text.strip(), re.IGNORECASE))


def _text(sheet: Sheet, numbers: Sequence[int]) -> str:
    """Lines of prose as one; Chinese needs no spaces between them."""
    text = ""
    for number in numbers:
        line = sheet.lines[number].text.strip()
        gap = "" if not text or _CJK.match(line[:1]) or _CJK.match(text[-1:]) else " "
        text += gap + line
    return text


def is_prose(line: Line) -> bool:
    """Whether a line is a sentence in Chinese or in words, not what a program prints."""
    return bool(_CJK.search(line.text)) or len(re.findall(r"[A-Za-z]{2,}", line.text)) >= 6
