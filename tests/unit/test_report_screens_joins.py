"""A printed answer that a window's edge cut: what OCR lost at the edge comes back where only one reading parses."""

import json
import unicodedata

import pytest

from lab3.reports.model import CompletionSeen, Recognised, TextLine
from lab3.reports.screens import read_screen, read_text

ASKED = (
    "ChatCompletion(id='c-81', choices=[Choice(finish_reason='tool_calls', index=0, message=ChatCompletionMessage("
    "content='Multiplying comes last.', role='assistant', tool_calls=[ChatCompletionMessageToolCall(id='7', "
    "function=Function(arguments='{\"left\": 417, \"right\": 36}', name='mul'), type='function')]))], "
    "created=1731002003, model='/data/internlm2_5-1_8b-chat', object='chat.completion', "
    "usage=CompletionUsage(completion_tokens=38, prompt_tokens=207, total_tokens=245))"
)
CELL = 7


def ending_with(text, tail, width=70):
    """The text as a terminal of that width cuts it; what stands before it is as long as lets a row end with `tail`."""
    first = text.index(tail) + len(tail)
    return cut("." * (-cells(text[:first]) % width) + text, width)


def cut(text, width):
    lines, line = [], ""
    for letter in text:
        if cells(line + letter) > width:
            lines, line = [*lines, line], ""
        line += letter
    return [*lines, line]


def cells(text):
    return sum(1 + (unicodedata.east_asian_width(each) in "WF") for each in text)


def seen(lines, *, lefts=None, dim=""):
    """A picture of the rows; `dim` is a word that was read with little confidence."""
    told, pieces = [], []
    for number, text in enumerate(lines):
        left = CELL * (lefts or {}).get(number, len(text) - len(text.lstrip()))
        told.append(TextLine(text, (left, 17 * number, CELL * cells(text), 17 * number + 16), 0.97))
        at = 0
        for word in text.split():
            at = text.index(word, at)
            box = (CELL * cells(text[:at]), 17 * number, CELL * cells(text[: at + len(word)]), 17 * number + 16)
            pieces.append(TextLine(word, box, 0.5 if dim and dim in word else 0.99))
            at += len(word)
    found = read_screen(
        Recognised(digest="e" * 64, width=700, height=600, lines=tuple(told), pieces=tuple(pieces)), block=0
    )
    (answer,) = [each for each in found if isinstance(each, CompletionSeen)]
    return answer


def call(answer):
    (made,) = answer.tool_calls
    return made.name, json.loads(made.arguments)


MUL = ("mul", {"left": 417, "right": 36})


@pytest.mark.parametrize("tail", ['{"left": 4', "total_tokens=2", "Function(argu"])
def test_rows_that_reach_the_edge_are_joined_as_they_are(tail):
    answer = seen(ending_with(ASKED, tail))
    assert (call(answer), answer.total_tokens, answer.doubt, answer.complete) == (MUL, 245, "", True)


@pytest.mark.parametrize("end", ['{"left"', '417, "right"', "arguments='", "name='mul'", '"right": ', "', ", "417,"])
def test_a_sign_that_is_gone_at_the_right_edge_comes_back(end):
    lines = ending_with(ASKED, end)
    at = next(number for number, each in enumerate(lines) if each.endswith(end))
    lines[at] = lines[at][:-1]
    answer = seen(lines)
    assert (call(answer), answer.doubt) == (MUL, "")


def test_a_quote_that_is_gone_at_the_left_edge_comes_back():
    lines = ending_with(ASKED, "arguments=")
    at = next(number for number, each in enumerate(lines) if each.startswith("'{"))
    lines[at] = " " + lines[at][1:]
    answer = seen(lines)
    assert (call(answer), answer.doubt) == (MUL, "")


def test_a_space_that_is_gone_at_the_edge_is_put_back():
    lines = [each.rstrip() for each in ending_with(ASKED, "Multiplying ")]
    assert seen(lines).content == "Multiplying comes last."


def test_a_wide_letter_that_did_not_fit_leaves_no_space():
    text = ASKED.replace("Multiplying comes last.", "先看17再看36")
    lines = cut("." * (70 - cells(text[: text.index("再看")]) % 71) + text, 71)
    answer = seen(lines)
    assert next(each for each in lines if each.endswith("先看17"))
    assert (answer.content, call(answer), answer.doubt) == ("先看17再看36", MUL, "")


def test_a_number_that_may_go_on_in_a_lost_cell_is_a_doubt():
    lines = [each.removesuffix("7") if "41" in each else each for each in ending_with(ASKED, '{"left": 417')]
    answer = seen(lines)
    assert answer.doubt == "a digit may be gone at the window's edge"


def test_a_figure_of_a_call_that_is_hard_to_read_is_a_doubt():
    assert seen(ending_with(ASKED, "cre"), dim="417,").doubt == "a figure of it is hard to read"


def test_a_count_that_is_hard_to_read_is_a_doubt():
    assert seen(ending_with(ASKED, "cre"), dim="total_tokens=245").doubt == "a figure of it is hard to read"


def test_what_no_verdict_rests_on_may_be_hard_to_read():
    text = ASKED.replace("Multiplying comes last.", "417 times 36, that is 15012.")
    assert seen(ending_with(text, "cre"), dim="15012").doubt == ""


@pytest.mark.parametrize("misread", ["]))i,", "]))1,", "]))j,"])
def test_a_bracket_that_became_a_letter_is_one(misread):
    answer = seen(ending_with(ASKED.replace("]))],", misread), "created=17"))
    assert (call(answer), answer.doubt, answer.content) == (MUL, "", "Multiplying comes last.")


def test_an_answer_is_whole_though_a_bracket_became_a_letter():
    text = ASKED.replace("]))],", "]))l,").replace("CompletionUsage(completion_tokens=38, prompt_tokens=207, ", "")
    answer = seen(ending_with(text.replace("total_tokens=245)", "None"), "created=17"))
    assert (answer.complete, answer.total_tokens, answer.doubt) == (True, None, "")


def test_a_quote_of_json_that_is_gone_at_the_edge_comes_back():
    usage = {"prompt_tokens": 207, "completion_tokens": 38, "total_tokens": 245}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Good day."}, "finish_reason": "stop"}
    body = json.dumps({"id": "9", "object": "chat.completion", "choices": [choice], "usage": usage})
    lines = ending_with(body, '"finish_reason"')
    answer = seen([each.removesuffix('"') if each.endswith('finish_reason"') else each for each in lines])
    assert (answer.content, answer.finish_reason, answer.total_tokens, answer.complete) == (
        "Good day.",
        "stop",
        245,
        True,
    )


def test_text_loses_nothing_but_spaces():
    lines = ending_with(ASKED, '{"left"')
    (answer,) = [
        each
        for each in read_text("\n".join(each[:-1] if each.endswith('t"') else each for each in lines), block=0, line=1)
        if isinstance(each, CompletionSeen)
    ]
    assert answer.tool_calls[0].arguments == '{"left : 417, "right": 36}'
