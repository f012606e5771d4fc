"""Conversations on web pages: gradio's bubbles, streamlit's rows, browser chats. What the page itself says is left out.

Only pages of prose are looked at: a picture of a terminal has paths, flags and figures in most of its lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from lab3.reports.lines import Sheet
from lab3.reports.model import Box, ChatSeen

_WORDS = (  # of buttons, sliders and labels, each a whole piece of a row
    r"LMDeploy Playground|Chatbot|聊天机器人|对话(?:框|窗口)?|Deploy|Running\W*|Share|Settings?|设置|分享"
    r"|Instruction|指令|Message|Textbox|Submit|Send|Cancel|Reset|Clear(?: (?:chat )?history)?|Retry|Undo|Stop|Copy"
    r"|Regenerate|Flag|Examples?|Rerun|New chat|提交|发送|取消|重置|清除(?:历史)?(?:记录)?|清空(?:对话|历史|聊天)?"
    r"|重试|撤销|停止|复制|重新生成|新(?:建)?(?:的)?(?:对话|聊天)|历史记录|示例"
    r"|Additional inputs?|System (?:message|prompt)|Max(?:imum)?[ _](?:new[ _]tokens?|length)|Top[ _\-]?[pPkK]"
    r"|Temperature|Repetition penalty|Generation|最大(?:新)?(?:生成)?(?:长度|token ?数?)|温度"
    r"|Use via API.*|Built with.*|Made with.*|通过 ?API ?使用.*|使用 ?Gradio.*|由 ?Gradio.*"
)
_INPUT = re.compile(  # where the next question is typed
    r"^\W*(?:\S{1,2}\s+)?(?:Instruction|Please (?:input|enter|type).*|What is up\s?\?"
    r"|Your (?:message|prompt|question|instruction).*"
    r"|(?:Type|Enter|Write|Send|Input) (?:a|your|the) (?:message|prompt|question|text|instruction).*"
    r"|(?:Say|Ask)(?: me)? (?:something|anything).*|请?输入(?!是|了|为).{0,24}|请?(?:在此|在这里)输入.*"
    r"|发送?(?:一条)?消息.{0,12})\W*$",
    re.IGNORECASE,
)
_WORD = re.compile(rf"^\W*(?:\S{{1,2}}\s+)?(?:{_WORDS})(?:\s*[\d.]+)?(?:\s+\S)?\W*$", re.IGNORECASE)
_FIGURE = re.compile(r"^\W*[\d.,\s]*[\d.,\sGCO0oQ()]?\W*$")  # a slider's value or limits, and the sign that resets it
_TERMINAL = re.compile(r"[#$]\s|https?://|INFO|WARNING|\bimport\b|==|--\w|\|\s|MiB|^\s*>|\.py\b|[{}\[\]=]|Error")
_SHELL = re.compile(r"^\S{0,60}[#$]\s|INFO:|WARNING|--\w|\.py\b|MiB|HTTP/1")  # what stands on no page of a chat
_CJK = re.compile(r"[\u3400-\u9fff]")
_ASKS = re.compile(
    r"[?？]\s*$|^\W*(?:(?:hi|hello|who|what|why|how|when|where|which|write|tell|name|list|explain|give|describe"
    r"|translate|please|can you|could you|do you|are you|is|introduce|compute|calculate)\b"
    r"|请|介绍|你(?:好|是|能|会)|什么|为什么|怎么|如何|写|翻译|解释|讲|给我|帮我|用.{0,8}(?:写|说|介绍)|列|推荐|计算)",
    re.IGNORECASE,
)
_APART = 2.5  # heights of a line, more than between the paragraphs of an answer
_LEFT_FREE = 0.2  # of the page's width: a question's bubble leaves it free


@dataclass(frozen=True)
class Found:
    """A reading, and the lines that it took."""

    first: int
    last: int
    reading: ChatSeen


@dataclass(frozen=True)
class _Bubble:
    """Lines right below one another that begin at the same place."""

    numbers: tuple[int, ...]
    box: Box


def find_pages(sheet: Sheet) -> Iterator[Found]:
    """A page's turns: what stands at the right is asked, what begins at the left is answered."""
    said = _said(sheet)
    if not _is_page(sheet, said):
        return
    bubbles = _bubbles(sheet, said)
    asked = [each for each in bubbles if _at_right(sheet, each)]
    if asked:
        yield from _with_bubbles(sheet, bubbles, asked)
    elif any(_INPUT.match(line.text.strip()) for line in sheet.lines):
        yield from _in_rows(sheet, bubbles)


def _with_bubbles(sheet: Sheet, bubbles: Sequence[_Bubble], asked: Sequence[_Bubble]) -> Iterator[Found]:
    turns: list[tuple[list[int], list[int]]] = []
    for bubble in bubbles:
        if bubble in asked:
            if not turns or turns[-1][1]:
                turns.append(([], []))
            turns[-1][0].extend(bubble.numbers)
        elif turns:
            turns[-1][1].extend(bubble.numbers)
    for question, answer in turns:
        yield _turn(sheet, _text(sheet, question), question, answer)


def _in_rows(sheet: Sheet, bubbles: Sequence[_Bubble]) -> Iterator[Found]:
    """Question and answer begin at the same place, as streamlit sets them: right of the pictures of who speaks.

    Who said what is seen only by the question's words; where they do not ask, an answer without a question is told.
    """
    height = _height(sheet)
    lefts = [each.box[0] for each in bubbles for _ in each.numbers]
    usual = median(lefts) if lefts else 0
    talk = [each for each in bubbles if abs(each.box[0] - usual) < 1.5 * height]
    if len(talk) < 2:
        return
    question, answer = list(talk[0].numbers), [number for each in talk[1:] for number in each.numbers]
    text = _text(sheet, question)
    if len(question) <= 4 and _ASKS.search(text):
        yield _turn(sheet, text, question, answer)
    else:
        yield _turn(sheet, "", [], [*question, *answer])


def _turn(sheet: Sheet, prompt: str, question: Sequence[int], answer: Sequence[int]) -> Found:
    first, *_, last = [*question, *answer] if len(question) + len(answer) > 1 else [*question, *answer] * 2
    place = sheet.place(first, last)
    return Found(first, last, ChatSeen(prompt=prompt, answer=_text(sheet, answer), place=place, where="page"))


# ------------------------------------------------------------------------------------------------- what belongs to it


def _said(sheet: Sheet) -> list[int]:
    """The lines that are said: neither a label nor a button, and above the first of them that follow the talk."""
    found: list[int] = []
    controls = [number for number, line in enumerate(sheet.lines) if line.box and is_control(line.text)]
    for number, line in enumerate(sheet.lines):
        if number in controls or not line.box or not line.text.strip() or _is_model(line.text):
            continue
        found.append(number)
    right = [each for each in found if _at_right(sheet, _Bubble((each,), _box(sheet, [each])))]
    last = next((each for each in controls if right and each > right[-1]), len(sheet.lines))
    said = [number for number in found if number < last]
    while len(said) > 2 and last < len(sheet.lines) and said[-1] not in right and _stands_apart(sheet, *said[-2:]):
        said.pop()  # the words in an empty field, in whatever language
    return said


def _stands_apart(sheet: Sheet, above: int, number: int) -> bool:
    return _box(sheet, [number])[1] - _box(sheet, [above])[3] > _APART * _height(sheet)


def is_control(text: str) -> bool:
    """Whether all pieces of a row are words of a page's buttons, sliders and labels; some are, others are figures."""
    pieces = [each for each in re.split(r"\s{2,}", text.strip()) if each]
    words = [each for each in pieces if _WORD.match(each) or _INPUT.match(each)]
    return bool(words) and all(each in words or _FIGURE.match(each) or len(each) == 1 for each in pieces)


def _is_page(sheet: Sheet, said: Sequence[int]) -> bool:
    lines = [line for line in sheet.lines if line.text.strip()]
    if len(lines) < 2 or not sheet.width or not said:
        return False
    controls = sum(is_control(line.text) for line in lines)
    if controls >= 2 or any(_INPUT.match(line.text.strip()) for line in lines):
        return sum(bool(_SHELL.search(line.text)) for line in lines) <= 0.3 * len(lines)
    odd = sum(bool(_TERMINAL.search(line.text)) for line in lines)
    proseful = sum(bool(_CJK.search(line.text)) or len(line.text.split()) >= 6 for line in lines)
    return odd <= 0.15 * len(lines) and proseful >= 2


def _is_model(text: str) -> bool:
    """The label of a chatbot that is called by the model's folder."""
    label = r"\W*(?:\S{1,2}\s+)?[~./\w\-]*(?:internlm|chat|model)[\w.\-/]*\W*"
    return bool(re.fullmatch(label, text.strip(), re.IGNORECASE))


# --------------------------------------------------------------------------------------------------------- where it is


def _bubbles(sheet: Sheet, said: Sequence[int]) -> list[_Bubble]:
    height = _height(sheet)
    groups: list[list[int]] = []
    for number in said:
        last = _box(sheet, groups[-1][-1:]) if groups else None
        box = _box(sheet, [number])
        near = last is not None and abs(box[0] - last[0]) < 1.2 * height and box[1] - last[3] < 1.1 * height
        if near and groups[-1][-1] == number - 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return [_Bubble(tuple(each), _box(sheet, each)) for each in groups]


def _at_right(sheet: Sheet, bubble: _Bubble) -> bool:
    """Whether a bubble ends at the right edge of what is said, and leaves the left free."""
    boxes = [line.box for line in sheet.lines if line.box is not None]
    left, right = min(each[0] for each in boxes), max(each[2] for each in boxes)
    wide = right - left
    before, after = bubble.box[0] - left, right - bubble.box[2]
    return before > _LEFT_FREE * wide and after < max(0.15 * wide, 4 * _height(sheet)) and before > 2.5 * after


def _box(sheet: Sheet, numbers: Sequence[int]) -> Box:
    boxes = [box for number in numbers if (box := sheet.lines[number].box)]
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _height(sheet: Sheet) -> float:
    return median(line.box[3] - line.box[1] for line in sheet.lines if line.box is not None)


def _text(sheet: Sheet, numbers: Sequence[int]) -> str:
    """Lines of prose as one; Chinese needs no spaces between them."""
    text = ""
    for number in numbers:
        line = sheet.lines[number].text.strip()
        gap = "" if not text or _CJK.match(line[:1]) or _CJK.match(text[-1:]) else " "
        text += gap + line
    return text
