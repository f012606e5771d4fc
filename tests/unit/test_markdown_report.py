"""The homework: each step with its command, output and picture, all from the evidence."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from lab3.cli import main
from lab3.evidence import Evidence, Trouble
from lab3.report.charts_figures import rounded_up
from lab3.report.markdown_homework import Homework
from tests.run_literals import HOSTILE, call, evidence, run_folder, server, stored, tools, verdict

BACKQUOTES = "```\n</code>\n````\n# not a heading\n![x](http://evil/x.png) <script>alert(1)</script> | a | www.evil.com"


def homework(facts: Evidence | None = None, language: str = "en") -> str:
    return Homework(stored(facts), language).text()


def tokens(text: str) -> list:
    """Block and inline tokens as GitHub's Markdown has them."""
    found = []
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        found += [token, *(token.children or [])]
    return found


def fences(text: str) -> list[str]:
    return [token.content for token in tokens(text) if token.type == "fence"]


def headings(text: str) -> list[str]:
    found = tokens(text)
    return [after.content for token, after in pairwise(found) if token.type == "heading_open"]


def test_the_steps_are_those_of_the_lab():
    assert headings(homework()) == [
        "Homework: LMDeploy quantization of odd-model",
        "Environment",
        "Task 1: W4A16 and an int4 KV cache",
        "1.1 The unquantized model",
        "1.2 Quantization to W4A16",
        "1.3 Serving W4A16 with an int4 KV cache",
        "1.4 A conversation",
        "1.5 Memory before and after",
        "Task 2: function calls",
        "What the figures show",
        "lab3’s checks",
    ]


def test_in_chinese_there_are_as_many_steps_and_they_are_chinese():
    chinese = headings(homework(language="zh"))

    assert len(chinese) == len(headings(homework()))
    assert "1.2 W4A16 量化" in chinese


@pytest.mark.parametrize(
    "command",
    [
        "lmdeploy serve one",
        "lmdeploy serve api_server /models/odd --quant-policy 4",
        "lab3 quantize odd-model --out /models/odd --overwrite",
    ],
)
def test_the_commands_stand_in_blocks_of_their_own(command):
    assert f"{command}\n" in fences(homework())


@pytest.mark.parametrize(
    "output",
    [
        *("66451MiB / 81559MiB", "34613MiB / 81559MiB", "302144 tokens", "700352 tokens"),
        *("3777777771 -> 1543210987 bytes", "3781770388 -> 1570551421 bytes", "7.1371", "7.5393", "7.9177"),
        *(
            "User: Who are you?\nAssistant: I am odd.",
            'add({"a": 3, "b": 5}) → 8\nmul({"a": 8, "b": 2}) → 16\nIt is 16.',
        ),
    ],
)
def test_the_outputs_are_the_evidences(output):
    assert any(output in block for block in fences(homework()))


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        *((0, "0.0K"), (1, "0.1K"), (4096, "4.0K"), (10_189, "10K"), (1_048_575, "1024K"), (117_551_104, "113M")),
        *((1_570_551_421, "1.5G"), (3_781_770_388, "3.6G"), (10_737_418_241, "11G")),
    ],
)
def test_folders_are_rounded_as_du_rounds_them(size, shown):
    assert rounded_up(size) == shown


def test_the_folders_stand_under_the_names_that_were_served():
    facts = evidence(baseline=server(command="lmdeploy serve api_server '/models/odd one' --quant-policy 0"))

    assert "3.6G\t/models/odd one\n1.5G\t/models/odd\n" in fences(homework(facts))


def test_the_calls_are_told_as_they_came_over_the_wire():
    block = next(block for block in fences(homework()) if '"function"' in block)

    told = [json.loads(line) for line in block.splitlines()]
    assert [each["function"]["arguments"] for each in told] == ['{"a": 3, "b": 5}', '{"a": 8, "b": 2}']


def test_the_function_calls_come_with_the_functions_that_were_run():
    assert any("def add(" in block and "def mul(" in block for block in fences(homework()))


@pytest.mark.parametrize(
    "figure", ["66,451 to 34,613 MiB (-47.9%)", "3.76x the tokens", "7.14 to 7.54 (+5.6%)", "-59.2%"]
)
def test_the_conclusions_are_from_the_figures(figure):
    assert figure in homework()


def test_what_the_figures_do_not_show_is_not_concluded():
    text = homework(evidence(quantized=server(used_mib=70000)))

    assert "The memory in use went from" not in text


def test_a_step_that_failed_says_why_and_has_no_output():
    trouble = {"quantized": Trouble(fault="machine", kind="gpu_memory", text="The card is full.")}
    text = homework(evidence(quantized=None, trouble=trouble))

    assert "This step was not shown: `The card is full.`" in text
    assert "34613" not in text


def test_a_step_that_was_never_done_is_not_made_up():
    text = homework(Evidence(subject="reference", model="m"))

    assert text.count("This step was not shown: there is no evidence of it") == 6
    assert fences(text) == ["lab3 run --model m --out lab3-out\n"]


@pytest.mark.parametrize("said", [HOSTILE, BACKQUOTES])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_that_was_said_becomes_markup(said, language):
    chat = replace(evidence().chat, question=said, text=said, other_text=said)
    facts = evidence(
        model=said,
        environment={said: said, "lab3": said},
        chat=chat,
        tools=(tools(question=said, answer=said, calls=(call(said, said, said),)),),
        baseline=None,
        trouble={"baseline": Trouble(fault="machine", kind="x", text=said)},
    )
    text = Homework(stored(facts, verdict(reason=said, title=said, title_zh=said)), language).text()

    found = tokens(text)
    assert not [token for token in found if token.type in ("html_block", "html_inline", "link_open")]
    assert all(re.fullmatch(r"[\w-]+\.svg", token.attrs["src"]) for token in found if token.type == "image")
    assert len(headings(text)) == 11
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_model_that_is_named_like_a_heading_keeps_the_table_of_checks():
    text = Homework(stored(None, verdict(title="a | b", reason="c | d")), "en").text()

    cells = [token.content for token in tokens(text) if token.type == "inline"]
    assert "a \\| b" in cells or "a | b" in cells
    assert "`c | d`" in cells


def test_the_grader_of_reports_reads_the_figures_back(tmp_path):
    reading = pytest.importorskip("lab3.reports.reading")
    screens = pytest.importorskip("lab3.reports.screens")
    model = pytest.importorskip("lab3.reports.model")
    hand_in(run_folder(tmp_path), "--language", "zh")

    blocks = reading.read_report(tmp_path / "homework").blocks
    found = [
        each
        for number, block in enumerate(blocks)
        if block.kind == "code"
        for each in screens.read_text(block.text, block=number, line=block.line)
    ]
    memory = {(each.used_mib, each.total_mib) for each in found if isinstance(each, model.MemoryReading)}
    assert memory == {(66451, 81559), (34613, 81559)}
    assert {each.text for each in found if isinstance(each, model.FolderSize)} >= {"3.6G", "1.5G"}
    assert [(each.prompt, each.answer) for each in found if isinstance(each, model.ChatSeen)] == [
        ("Who are you?", "I am odd."),
        ("And else?", "Still odd."),
    ]


# --- the files --------------------------------------------------------------------------------------------------------


def hand_in(folder: Path, *arguments: str) -> int:
    return main(["report", str(folder), "--markdown", *arguments])


def test_every_picture_lies_beside_the_homework(tmp_path):
    assert hand_in(run_folder(tmp_path)) == 0

    folder = tmp_path / "homework"
    linked = re.findall(r"\]\(([^)]*)\)", (folder / "homework.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(path.name for path in folder.glob("*.svg"))
    assert set(linked) == {
        *("sizes.svg", "perplexity.svg", "kv-capacity.svg", "memory-before.svg", "memory-after.svg", "memory.svg"),
        "calls-1.svg",
    }


def test_the_pictures_are_whole_and_need_nothing_else(tmp_path):
    hand_in(run_folder(tmp_path))

    for picture in (tmp_path / "homework").glob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in text
        assert "<script" not in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_every_picture_has_words_for_who_does_not_see_it(tmp_path):
    images = [token for token in tokens(homework()) if token.type == "image"]

    assert all(len(token.content) > 40 for token in images)


def test_what_was_edited_is_not_replaced(tmp_path, capsys):
    hand_in(run_folder(tmp_path))
    file = tmp_path / "homework" / "homework.md"
    file.write_text("my own words")

    assert hand_in(tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert file.read_text() == "my own words"


def test_unless_it_is_asked_for(tmp_path):
    hand_in(run_folder(tmp_path))
    file = tmp_path / "homework" / "homework.md"
    file.write_text("my own words")

    assert hand_in(tmp_path, "--overwrite", "--language", "zh") == 0
    assert "任务一" in file.read_text(encoding="utf-8")


def test_the_same_homework_may_be_written_again(tmp_path):
    hand_in(run_folder(tmp_path))

    assert hand_in(tmp_path) == 0


def test_it_goes_where_it_is_sent(tmp_path, capsys):
    assert hand_in(run_folder(tmp_path / "run"), "--out", str(tmp_path / "mine"), "--language", "zh") == 0

    assert capsys.readouterr().out.strip() == str(tmp_path / "mine" / "homework.md")


def test_what_others_did_is_no_homework_of_ours(tmp_path, capsys):
    assert hand_in(run_folder(tmp_path, evidence(subject="submission"))) == 2
    assert "what to do:" in capsys.readouterr().err


def test_the_questions_go_to_the_server_that_the_command_before_them_starts():
    served = server(command="lmdeploy serve api_server /models/odd --server-port 37499")
    asked = [
        text for text in fences(homework(evidence(quantized=served))) if text.startswith(("lab3 chat", "lab3 funcall"))
    ]
    assert len(asked) >= 2
    assert all("--base-url http://127.0.0.1:37499/v1" in text for text in asked)
