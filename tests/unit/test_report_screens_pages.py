"""Conversations on web pages: who said what by where it stands, and nothing of the page's own words."""

import pytest

from lab3.reports.model import ChatSeen, Recognised, TextLine
from lab3.reports.screens import read_screen
from lab3.reports.screens_pages import is_control

WIDE, HIGH = 1120, 22


def page(*rows):
    """A picture; each row is (text, left, top, right)."""
    lines = tuple(TextLine(text, (left, top, right, top + HIGH), 0.97) for text, left, top, right in rows)
    seen = read_screen(Recognised(digest="c" * 64, width=WIDE, height=800, lines=lines), block=0)
    return [each for each in seen if isinstance(each, ChatSeen)]


SLIDERS = [
    ("Max new tokens             1024       C     Temperature           0.6", 40, 560, 1080),
    ("1     4096   0   2", 40, 590, 1080),
    ("通过 API 使用 · 使用 Gradio 构建 · 设置", 400, 640, 700),
]


def test_buttons_sliders_and_the_foot_of_a_page_are_no_answer():
    (turn,) = page(
        ("Zoology for children", 420, 0, 660),
        ("Chatbot", 40, 20, 120),
        ("Where do penguins live?", 820, 60, 1070),
        ("Penguins live on the coasts of the southern hemisphere, most of them", 50, 120, 700),
        ("where the sea is cold.", 50, 150, 260),
        ("Ω Retry                   Undo               Clear", 200, 480, 900),
        ("Type a message...                                 Submit", 50, 520, 1050),
        *SLIDERS,
    )
    assert turn.prompt == "Where do penguins live?"
    assert turn.answer == (
        "Penguins live on the coasts of the southern hemisphere, most of them where the sea is cold."
    )


def test_the_words_in_an_empty_field_are_no_answer_in_whatever_language():
    (turn,) = page(
        ("What is the capital of Peru?", 840, 60, 1075),
        ("It is Lima, on the coast;", 50, 120, 300),
        ("Cusco was it before.", 50, 180, 260),
        ("Stellen Sie hier Ihre Frage", 50, 300, 330),
        ("Cancel        Reset", 50, 360, 700),
    )
    assert turn.answer == "It is Lima, on the coast; Cusco was it before."


def test_an_answer_that_is_a_number_is_one():
    (turn,) = page(
        ("十七乘以三等于几？", 860, 60, 1075),
        ("51", 50, 120, 80),
        ("清空", 50, 400, 100),
        ("提交", 900, 400, 960),
        *SLIDERS,
    )
    assert (turn.prompt, turn.answer) == ("十七乘以三等于几？", "51")


def test_a_long_question_in_a_bubble_of_several_lines_is_one_question():
    turns = page(
        ("/data/awq/internlm2_5-1_8b-chat", 40, 20, 400),
        ("Plan a weekend in a small town by a lake, with one walk for each", 420, 60, 1078),
        ("day and a place where", 420, 90, 640),
        ("children may swim.", 420, 120, 600),
        ("On Saturday walk around the lake; on Sunday climb the hill behind the church.", 50, 190, 760),
        ("Please input the instruction", 60, 400, 330),
    )
    (turn,) = turns
    assert turn.prompt.endswith("with one walk for each day and a place where children may swim.")
    assert turn.answer.startswith("On Saturday")


def test_each_of_several_turns_has_its_own_answer():
    first, second = page(
        ("给我讲个笑话", 900, 40, 1070),
        ("有一天，程序员去买菜……", 50, 90, 330),
        ("再讲一个", 960, 150, 1070),
        ("好的：为什么海是咸的？因为鱼哭了。", 50, 200, 420),
        ("请输入消息", 60, 300, 160),
    )
    assert (first.prompt, first.answer) == ("给我讲个笑话", "有一天，程序员去买菜……")
    assert (second.prompt, second.answer) == ("再讲一个", "好的：为什么海是咸的？因为鱼哭了。")


def test_a_question_without_an_answer_has_none():
    (turn,) = page(("你好吗", 960, 40, 1070), ("Stop", 60, 260, 110), ("Type a message", 60, 300, 220))
    assert (turn.prompt, turn.answer) == ("你好吗", "")


def test_a_page_without_sides_tells_the_question_by_its_words():
    (turn,) = page(
        ("Deploy", 1030, 10, 1090),
        ("Chat with my model", 40, 60, 420),
        ("Which planet has the most moons?", 110, 140, 420),
        ("Saturn has the most moons: 146 are known.", 110, 210, 520),
        ("What is up?", 60, 320, 160),
    )
    assert (turn.prompt, turn.answer) == (
        "Which planet has the most moons?",
        "Saturn has the most moons: 146 are known.",
    )


def test_a_page_that_greets_is_no_conversation_with_a_question():
    (turn,) = page(
        ("Welcome to the demonstration of the course", 110, 140, 520),
        ("The model is loaded, everything is ready for you.", 110, 210, 560),
        ("Ask me anything", 60, 320, 200),
    )
    assert turn.prompt == ""


def test_figures_in_an_answer_do_not_make_a_terminal_of_a_page():
    (turn,) = page(
        ("Solve x + 3 = 10 and y - 1 = 4", 800, 40, 1075),
        ("x = 10 - 3 = 7, y = 4 + 1 = 5", 50, 100, 330),
        ("Type a message and press Enter", 60, 300, 330),
    )
    assert turn.answer == "x = 10 - 3 = 7, y = 4 + 1 = 5"


def test_an_answer_that_is_indented_is_no_question():
    (turn,) = page(
        ("What colours has the flag of Chad?", 780, 40, 1075),
        ("New talk", 20, 100, 110),
        ("Blue, yellow and red, in three stripes that stand upright, and nothing", 270, 160, 930),
        ("more than that.", 270, 190, 400),
        ("Type a message", 60, 300, 190),
    )
    assert "stripes" in turn.answer


def test_a_server_log_is_no_page_though_it_is_wide():
    assert not page(
        ("INFO: Started server process [991], and it waits for the application", 10, 10, 700),
        ("INFO: Uvicorn running on http://0.0.0.0:23333 (Press CTRL+C to quit it)", 10, 40, 720),
        ("INFO: 127.0.0.1 POST /v1/chat/completions was answered with 200 OK", 480, 70, 1100),
    )


def test_a_terminal_beside_buttons_is_no_page():
    assert not page(
        ("Stop", 10, 10, 50),
        ("Retry", 100, 40, 150),
        ("dev@lab:~$ lmdeploy chat /models/awq --model-format awq", 10, 70, 500),
        ("session 1 begins with 9870MiB in use", 700, 100, 1100),
    )


@pytest.mark.parametrize(
    "text", ["Cancel      Reset", "Top_p  0.8  G   Temperature  0.7", "↻ Retry   Undo", "发送", "最大长度  2048"]
)
def test_rows_of_buttons_and_sliders_are_controls(text):
    assert is_control(text)


@pytest.mark.parametrize(
    "text",
    [
        "Cancel      the order of yesterday",
        "Cancel the order, please",
        "2048",
        "清空购物车之前请确认",
        "Stop words are common words",
        "温度是二十度",
    ],
)
def test_sentences_with_such_words_are_none(text):
    assert not is_control(text)
