"""Function calls that a script tells in its own words."""

import json

import pytest

from lab3.reports.model import CodeSeen, CompletionSeen, Printed, Recognised, TextLine
from lab3.reports.screens import read_screen, read_text


def told(text):
    """(name, arguments) of each call, and what was printed."""
    seen = read_text(text, block=0, line=1)
    calls = [call for each in seen if isinstance(each, CompletionSeen) for call in each.tool_calls]
    return (
        [(call.name, json.loads(call.arguments)) for call in calls],
        [each.text for each in seen if isinstance(each, Printed)],
    )


def pictured(rows):
    lines = tuple(TextLine(text, (0, 20 * at, 300, 20 * at + 18), 0.95) for at, text in enumerate(rows))
    return read_screen(Recognised(digest="a" * 64, width=600, height=200, lines=lines), block=2)


@pytest.mark.parametrize(
    "text",
    [
        'add({"a": 40, "b": 2}) → 42',
        'calling add({"a": 40, "b": 2}) => 42',
        '[1] function: add\n    arguments: {"a": 40, "b": 2}\n    result: 42',
        'Tool call "add" with {"a": 40, "b": 2} -> 42',
        "模型选择的工具：add\n参数：{“a”：40，“b”：2}\n返回值：42",
        '调用了 add，参数 {"a": 40, "b": 2}，结果是 42',
        'function name = add\narguments = {" a ": 40, " b ": 2}\noutput = 42',
    ],
)
def test_a_call_with_its_arguments_and_result_is_read_however_it_is_told(text):
    calls, printed = told(text)
    assert calls == [("add", {"a": 40, "b": 2})]
    assert printed == ["42"]


def test_calls_follow_one_another_with_their_own_results():
    text = 'tool: add\nargs: {"x": 7, "y": 5}\nresult: 12\ntool: mul\nargs: {"x": 12, "y": 3}\nresult: 36\nfinal: 36'
    calls, printed = told(text)
    assert calls == [("add", {"x": 7, "y": 5}), ("mul", {"x": 12, "y": 3})]
    assert printed == ["12", "36"]


def test_a_call_without_a_result_has_none():
    assert told('function: mul\narguments: {"a": 3, "b": 3}\n(the server did not answer)') == (
        [("mul", {"a": 3, "b": 3})],
        [],
    )


def test_the_number_of_another_line_is_no_result():
    assert told('function: mul\narguments: {"a": 3, "b": 3}\ntook 14 s\nresult: 9')[1] == []


@pytest.mark.parametrize(
    "text",
    [
        'name: add\nparameters: {"type": "object", "required": 2}',
        "tool: add\narguments: {a: 1, b: 2}",
        "the function add takes {a} and {b}",
        'python tools.py\n{"a": 1, "b": 2}',
        'function: add\n\n\n\n\narguments: {"a": 1, "b": 2}',
    ],
)
def test_schemas_templates_and_strangers_are_no_calls(text):
    assert told(text)[0] == []


CODE = """\
client = OpenAI(base_url='http://127.0.0.1:23333/v1', api_key='none')
response = client.chat.completions.create(model=name, messages=messages, tools=tools)
call = response.choices[0].message.tool_calls[0].function
expected = [('function: add', '{"a": 40, "b": 2}')]
print(call.name, call.arguments)
"""


def test_code_with_such_words_is_no_call():
    assert told(CODE)[0] == []


def test_a_picture_of_code_with_such_words_is_no_call():
    assert [type(each) for each in pictured(CODE.splitlines())] == [CodeSeen]


def test_a_picture_of_such_a_terminal_is_read_with_its_places():
    rows = ["ops@box:~$ python ask.py", "调用函数：mul", '参数：{"a"：9，"b"：8}', "结果：72", "ops@box:~$"]
    seen = pictured(rows)
    (call,) = [each for each in seen if isinstance(each, CompletionSeen)]
    (result,) = [each for each in seen if isinstance(each, Printed)]
    assert (call.place.box, result.text, result.place.box) == ((0, 20, 300, 78), "72", (0, 60, 300, 78))
