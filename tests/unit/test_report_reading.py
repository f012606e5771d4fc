"""A student's Markdown as blocks, whatever the fences, the indentation and the encoding are like."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lab3.errors import UsageError
from lab3.reports.commands import commands_in
from lab3.reports.model import Block, Report
from lab3.reports.reading import read_report


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LAB3_CACHE", str(tmp_path_factory.mktemp("cache")))


def read(folder: Path, text: str | bytes, name: str = "report.md") -> Report:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return read_report(folder / name)


def told(report: Report) -> list[tuple[str, str]]:
    """(kind, text) of each block; of a picture what it is linked as."""
    return [(block.kind, block.picture.target if block.picture else block.text) for block in report.blocks]


def sections(report: Report) -> dict[str, tuple[str, ...]]:
    return {block.picture.target: block.section for block in report.blocks if block.picture}


def only(report: Report, kind: str) -> Block:
    (block,) = (block for block in report.blocks if block.kind == kind)
    return block


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_headings_prose_code_and_pictures_come_in_their_order(tmp_path: Path):
    report = read(tmp_path, "# Lab\n\nSize:\n\n```bash\ndu -sh *\n```\n\n![du](a.png)\n\n> quoted\n\n- item\n")

    assert told(report) == [
        ("heading", "Lab"),
        ("paragraph", "Size:"),
        ("code", "du -sh *"),
        ("image", "a.png"),
        ("quote", "quoted"),
        ("list_item", "item"),
    ]
    assert [block.line for block in report.blocks] == [1, 3, 6, 9, 11, 13]
    assert only(report, "code").language == "bash"


def test_text_is_plain_and_its_code_is_kept_apart(tmp_path: Path):
    block = only(read(tmp_path, "Run **now** `du -sh m`, see [this](https://x.y/z).\n"), "paragraph")

    assert block.text == "Run now du -sh m, see this."
    assert block.codes == ("du -sh m",)


def test_a_picture_amid_a_paragraph_parts_it(tmp_path: Path):
    report = read(tmp_path, "before\n![](a.png)\nafter\n")

    assert told(report) == [("paragraph", "before"), ("image", "a.png"), ("paragraph", "after")]
    assert [block.line for block in report.blocks] == [1, 2, 3]


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("![[shot.png]]", "shot.png"),
        ("![[shot.png|400]]", "shot.png"),
        ("![](my shot (1).png)", "my shot (1).png"),
        ("![x](图 一.png =300x)", "图 一.png"),
        ('![x](a b.png "title")', "a b.png"),
        ("![x][one]\n\n[one]: a.png", "a.png"),
        ('<img src="a.png" width=300>', "a.png"),
        ("<div align=center>\n<img src='a.png'/>\n</div>", "a.png"),
        ("<center>\n![](a.png)\n</center>", "a.png"),
        ("see [the shot](a.png)", "a.png"),
        ("https://x.y/a.png", "https://x.y/a.png"),
        ("<https://x.y/a.png>", "https://x.y/a.png"),
        ("- item\n\n    ![](a.png)", "a.png"),
        ("text\n\n    ![](a.png)\n", "a.png"),
        ("[![](a.png)](b.png)", "a.png"),
        ("![](C:\\\\Users\\\\me\\\\a.png)", "C:\\Users\\me\\a.png"),
        ("![](images/%E5%9B%BE.png)", "images/图.png"),
        ("![a](a.png){width=50%}", "a.png"),
    ],
)
def test_a_picture_is_seen_however_it_is_embedded(tmp_path: Path, written: str, target: str):
    assert [picture.target for picture in read(tmp_path, written).pictures] == [target]


def test_a_table_has_rows_and_its_pictures_stand_under_their_columns(tmp_path: Path):
    report = read(tmp_path, "| before | after |\n| --- | --- |\n| 3.6G | 1.5G |\n| ![](a.png) | ![](b.png) |\n")

    assert only(report, "table").rows == (("before", "after"), ("3.6G", "1.5G"), ("", ""))
    assert sections(report) == {"a.png": ("before",), "b.png": ("after",)}


def test_pictures_above_their_captions_in_a_table_stand_under_these(tmp_path: Path):
    report = read(tmp_path, "| ![](a.png) | ![](b.png) |\n| --- | --- |\n| before | after |\n")

    assert sections(report) == {"a.png": ("before",), "b.png": ("after",)}


def test_a_heading_without_its_space_is_one(tmp_path: Path):
    assert told(read(tmp_path, "##任务1\n#总结\n")) == [("heading", "任务1"), ("heading", "总结")]


def test_settings_on_top_are_not_shown(tmp_path: Path):
    report = read(tmp_path, "---\ntitle: x\ndate: 1\n---\n\ntext\n")

    assert told(report) == [("paragraph", "text")]
    assert report.blocks[0].line == 6


def test_html_between_markdown_is_read(tmp_path: Path):
    report = read(tmp_path, "<details>\n<summary>more</summary>\n\n**bold** text\n\n</details>\n<!-- ![](x.png) -->\n")

    assert told(report) == [("paragraph", "more"), ("paragraph", "bold text")]


def test_a_table_of_html_is_a_table(tmp_path: Path):
    report = read(tmp_path, "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td><img src=x.png></td></tr></table>\n")

    assert only(report, "table").rows == (("a", "b"), ("1", ""))
    assert sections(report)["x.png"][0] == "b"


# --- sections ---------------------------------------------------------------------------------------------------------


def test_bold_lines_and_lines_with_a_colon_stand_in_for_headings(tmp_path: Path):
    text = "# T\n\n**Size**\n\nbefore:\n\n![](a.png)\n\nafter：\n\n![](b.png)\n\n## U\n\n![](c.png)\n"

    assert sections(read(tmp_path, text)) == {
        "a.png": ("T", "Size", "before:"),
        "b.png": ("T", "Size", "after："),
        "c.png": ("T", "U"),
    }


def test_a_short_line_above_a_picture_heads_it(tmp_path: Path):
    assert sections(read(tmp_path, "查看显存\n![](a.png)\n")) == {"a.png": ("查看显存",)}


def test_a_paragraph_ends_what_a_line_has_headed(tmp_path: Path):
    text = "before:\n\n![](a.png)\n\nNow this is a whole sentence about something else.\n\n![](b.png)\n"

    assert sections(read(tmp_path, text))["b.png"] == ()


# --- indented text ----------------------------------------------------------------------------------------------------


def test_indented_prose_is_prose(tmp_path: Path):
    report = read(tmp_path, "## 区别\n\n    校准：\n        只有权重量化需要数据。\n\n    缓存：\n        不需要。\n")

    assert told(report)[1:] == [("paragraph", "校准：\n只有权重量化需要数据。"), ("paragraph", "缓存：\n不需要。")]
    assert [block.line for block in report.blocks] == [1, 3, 6]


@pytest.mark.parametrize(
    "code", ["import os\nprint(os.name)", "root@h:~# du -sh m\n1.5G\tm", "lmdeploy chat /m", "# 中文注释\nx = 1"]
)
def test_indented_code_is_code(tmp_path: Path, code: str):
    indented = "".join(f"    {line}\n" for line in code.split("\n"))

    assert told(read(tmp_path, f"text\n\n{indented}")) == [("paragraph", "text"), ("code", code)]


# --- code that nothing marks ------------------------------------------------------------------------------------------


def test_a_command_in_a_line_of_its_own_is_code(tmp_path: Path):
    report = read(tmp_path, "启动服务\nlmdeploy serve api_server /m \\\n  --tp 1\n然后等待。\n")

    assert told(report) == [
        ("paragraph", "启动服务"),
        ("code", "lmdeploy serve api_server /m \\\n  --tp 1"),
        ("paragraph", "然后等待。"),
    ]


def test_a_pasted_terminal_is_code(tmp_path: Path):
    text = "root@h:~# du -sh *\n3.6G    base\n1.5G    quantized"

    assert told(read(tmp_path, text)) == [("code", text)]


@pytest.mark.parametrize(
    "prose",
    [
        "lmdeploy chat 验证启动模型查看显存占用:",
        "lmdeploy is a toolkit for serving models.",
        "python is needed, and so is pip.",
        "watch the memory while it loads",
        "find the model in the folder",
        "nvidia-smi shows the memory",
        "Size: 1.5G",
    ],
)
def test_prose_about_commands_is_prose(tmp_path: Path, prose: str):
    assert told(read(tmp_path, prose)) == [("paragraph", prose)]


# --- fences -----------------------------------------------------------------------------------------------------------


def test_a_fence_that_is_never_closed_ends_before_the_picture_after_it(tmp_path: Path):
    report = read(tmp_path, "```bash\ndu -sh *\n\n结果如图\n\n![](a.png)\n\ntext\n")

    assert told(report) == [
        ("code", "du -sh *"),
        ("paragraph", "结果如图"),
        ("image", "a.png"),
        ("paragraph", "text"),
    ]
    assert any("line 1" in problem for problem in report.problems)


def test_a_fence_that_is_not_closed_ends_before_the_next_one(tmp_path: Path):
    report = read(tmp_path, "```bash\ndu -sh *\n\n然后启动\n```python\nprint(1)\n```\nend\n")

    assert told(report) == [
        ("code", "du -sh *"),
        ("paragraph", "然后启动"),
        ("code", "print(1)"),
        ("paragraph", "end"),
    ]


def test_a_lost_closing_line_does_not_turn_the_report_inside_out(tmp_path: Path):
    report = read(tmp_path, "```\nls -l\n\n## 任务2\n\n文字\n\n```\ndu -sh m\n```\n\nend\n")

    assert told(report) == [
        ("code", "ls -l"),
        ("heading", "任务2"),
        ("paragraph", "文字"),
        ("code", "du -sh m"),
        ("paragraph", "end"),
    ]


def test_a_fence_that_reaches_the_end_is_code(tmp_path: Path):
    report = read(tmp_path, "text\n\n```\nls -l\ndu -sh m")

    assert told(report) == [("paragraph", "text"), ("code", "ls -l\ndu -sh m")]
    assert report.problems == ("the fence of line 3 is never closed",)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```lmdeploy chat /m\n```\n", "lmdeploy chat /m"),
        ("```bash lmdeploy chat /m\n```\n", "lmdeploy chat /m"),
        ("```bash\nlmdeploy chat /m```\n", "lmdeploy chat /m"),
        ("```bash\nlmdeploy chat /m\n```之后\n", "lmdeploy chat /m"),
        ("````md\n```\nx\n```\n````\n", "```\nx\n```"),
        ("~~~\n```\n~~~\n", "```"),
        ("1. a\n   ```bash\ndu -sh m\n   ```\n", "du -sh m"),
        ("1. a\n\n    ```bash\n    du -sh m\n    ```\n", "du -sh m"),
        ("text\n    ```bash\n    du -sh m\n    ```\n", "du -sh m"),
        ("> ```\n> du -sh m\n> ```\n", "du -sh m"),
        ("'''bash\ndu -sh m\n'''\n", "du -sh m"),
        ("···\ndu -sh m\n···\n", "du -sh m"),
        ("```\tpython\nx = 1\n```\n", "x = 1"),
        ("<br>\n```\ndu -sh m\n```\n", "du -sh m"),
    ],
)
def test_code_is_found_in_any_fence(tmp_path: Path, text: str, code: str):
    assert only(read(tmp_path, text), "code").text == code


def test_a_comment_in_chinese_ends_no_fence(tmp_path: Path):
    code = "# 量化\n\n# 查看\ndu -sh m\n\n## 再看\nls"

    assert only(read(tmp_path, f"```bash\n{code}\n```\n"), "code").text == code


# --- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("# 作业\r\n显存".encode(), "utf-8"),
        ("# 作业\r\n显存".encode("utf-8-sig"), "utf-8-sig"),
        ("# 作业\r\n显存".encode("gb18030"), "gb18030"),
        ("# 作业\r\n显存".encode("utf-16"), "utf-16"),
        (codecs.BOM_UTF16_BE + "# 作业\r\n显存".encode("utf-16-be"), "utf-16"),
        ("# 作业\n显存 and some plain words".encode("utf-16-le"), "utf-16-le"),
    ],
)
def test_any_usual_encoding_is_read_without_loss(tmp_path: Path, data: bytes, encoding: str):
    report = read(tmp_path, data)

    assert report.blocks[0].text == "作业"
    assert report.blocks[1].text.startswith("显存")
    assert (report.encoding, report.problems) == (encoding, ())


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("显存占用".encode() * 20 + b"\xff", "1 places are no UTF-8"),
        (b"a\0b", "1 NUL characters"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8a\x00", "UTF-16"),
    ],
)
def test_what_cannot_be_kept_is_said(tmp_path: Path, data: bytes, problem: str):
    assert any(problem in each for each in read(tmp_path, data).problems)


# --- choosing ---------------------------------------------------------------------------------------------------------

LAB = "lmdeploy internlm w4a16 量化 显存 ![](a.png)"


def chosen(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return read_report(folder).path.relative_to(folder.resolve()).as_posix()


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"README.md": "my repository", "homework.md": LAB}, "homework.md"),
        ({"README.md": LAB, "notes.md": "todo"}, "README.md"),
        ({"README.md": LAB, "作业.md": LAB}, "作业.md"),
        ({"requirements.txt": "lmdeploy", "a.md": LAB}, "a.md"),
        ({"report.md": LAB, "report.html": LAB}, "report.md"),
        ({"report.md": LAB, "report copy.md": LAB + " more"}, "report.md"),
        ({"README.md": "see the document", "lab.html": LAB}, "lab.html"),
        ({"docs/report.md": LAB}, "docs/report.md"),
        ({"m/config.json": "{}", "m/README.md": LAB, "作业.md": LAB}, "作业.md"),
    ],
)
def test_the_report_is_found_in_its_folder(tmp_path: Path, files: dict[str, str], name: str):
    assert chosen(tmp_path, files) == name


def test_a_report_in_parts_is_one(tmp_path: Path):
    (tmp_path / "task1.md").write_text(f"one {LAB}")
    (tmp_path / "task2.md").write_text(f"two {LAB}")
    report = read_report(tmp_path)

    assert [block.text for block in report.blocks if block.kind == "heading"] == ["task2.md"]
    assert [block.text[:3] for block in report.blocks if block.kind == "paragraph"] == ["one", "two"]


def test_another_text_about_the_lab_is_told_of(tmp_path: Path):
    (tmp_path / "homework.md").write_text(LAB)
    (tmp_path / "extra.md").write_text(LAB)

    assert any("extra.md" in problem for problem in read_report(tmp_path).problems)


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("report.doc", b"\xd0\xcf\x11\xe0" + b"x" * 600, "old Word"),
        ("report.md", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "a picture"),
        ("report.docx", b"PK\x03\x04 broken", "archive"),
        ("report.docx", b"plain text", "no docx"),
        ("report.pdf", b"%PDF-1.4 broken", "no PDF"),
        ("report.ipynb", b"{", "no notebook"),
        ("report.ipynb", b"[1]", "no notebook"),
        ("report.rtf", b"{\\rtf1 x}", "rich text"),
    ],
)
def test_what_is_no_report_is_refused_with_advice(tmp_path: Path, name: str, data: bytes, what: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=what) as raised:
        read_report(tmp_path / name)

    assert raised.value.todo


def test_a_folder_without_a_report_is_refused(tmp_path: Path):
    (tmp_path / "a.py").write_text("1")
    with pytest.raises(UsageError, match="no report"):
        read_report(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="there is no"):
        read_report(tmp_path / "gone.md")


# --- whatever it is ---------------------------------------------------------------------------------------------------

_MARKS = (
    "```|```bash\n|~~~\n|> |- |1. |    |\t|\n|\n\n|![a](b.png)|![[c.png]]|<img src=x>|<br>|<div>|</div>|# |##x"
    "|量化：|`|*|[|]|(|)|\\|\0|<table><tr><td>|lmdeploy chat /m --tp 1|lmdeploy serve api_server \\\n /m|$ ls"
    "|root@h:~# nvidia-smi|<!--|-->|data:image/png;base64,AA|export A=b\n|cat <<E\n|<pre>|'''|···|---\n|!ls|\"|$("
)
_PIECES = st.sampled_from([*_MARKS.split("|"), "|a|b|\n|-|-|\n"])
_TEXTS = st.lists(st.one_of(_PIECES, st.text(max_size=8)), max_size=60).map("".join)
_FILES = st.one_of(st.binary(max_size=300), _TEXTS.map(lambda text: text.encode("utf-8", "replace")))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=_FILES, suffix=st.sampled_from([".md", ".txt", ".html", ".ipynb", ""]))
@example(data=b"```\n![](a)", suffix=".md")
@example(data=b'{"cells": [{"cell_type": "code", "source": 1, "outputs": {"a": 1}}]}', suffix=".ipynb")
def test_any_bytes_are_a_report_or_refused(tmp_path: Path, data: bytes, suffix: str):
    path = tmp_path / f"report{suffix}"
    path.write_bytes(data)
    try:
        report = read_report(path)
    except UsageError:
        return
    for each in (*report.blocks, *commands_in(report)):
        each.text.encode()
