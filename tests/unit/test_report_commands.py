"""The commands in a report's text, and what LMDeploy's own ask for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab3.reports.commands import ChatCommand, CommandSeen, commands_in, commands_of_text, lmdeploy_command
from lab3.reports.commands_lines import prompt_of
from lab3.reports.reading import read_report

QUANTIZE = """\
lmdeploy lite auto_awq \\
  /root/models/chat-1_8b \\
  --calib-dataset 'ptb' --calib-samples 128 --calib-seqlen 2048 \\
  --w-bits 4 --w-group-size 128 --batch-size 1 --search-scale False \\
  --work-dir /root/models/chat-w4a16
"""
SERVE = (
    "lmdeploy serve api_server /m --model-format awq --quant-policy 4 --cache-max-entry-count 0.4 --server-port 6000"
)


def seen(folder: Path, text: str, name: str = "report.md") -> tuple[CommandSeen, ...]:
    (folder / name).write_text(text)
    return commands_in(read_report(folder / name))


def typed(folder: Path, text: str) -> list[str]:
    """Each command's words, joined."""
    return [" ".join(command.argv) for command in seen(folder, text)]


def fenced(text: str, language: str = "bash") -> str:
    return f"```{language}\n{text}\n```\n"


# --- where commands stand ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["", "bash", "shell", "console", "text", "powershell"])
def test_a_command_in_a_fence_of_any_language_is_seen(tmp_path: Path, language: str):
    assert typed(tmp_path, fenced("du -sh *", language)) == ["du -sh *"]


@pytest.mark.parametrize(
    "text",
    [
        "执行 `lmdeploy chat /m --tp 1` 命令。",
        "执行 lmdeploy chat /m --tp 1 命令。",
        "执行：lmdeploy chat /m --tp 1，然后等待",
        "lmdeploy chat /m --tp 1",
        "- lmdeploy chat /m --tp 1",
        "> lmdeploy chat /m --tp 1",
        "run lmdeploy chat /m --tp 1 and look at the memory",
        "| step | command |\n| --- | --- |\n| chat | `lmdeploy chat /m --tp 1` |",
        "| step | command |\n| --- | --- |\n| chat | lmdeploy chat /m --tp 1 |",
        "```lmdeploy chat /m --tp 1```",
        "```lmdeploy chat /m --tp 1\n```",
        "<code>lmdeploy chat /m --tp 1</code>",
        "<pre>lmdeploy chat /m --tp 1</pre>",
        "    lmdeploy chat /m --tp 1",
        "命令：\nlmdeploy chat \\\n  /m \\\n  --tp 1\n",
        "```bash\nlmdeploy chat /m --tp 1\n\n![](never_closed.png)",
    ],
)
def test_a_command_is_seen_wherever_it_stands(tmp_path: Path, text: str):
    assert typed(tmp_path, text) == ["lmdeploy chat /m --tp 1"]


@pytest.mark.parametrize(
    "text",
    [
        "使用lmdeploy进行量化",
        "使用 lmdeploy serve api_server 启动服务",
        "`lmdeploy lite auto_awq` 用来量化，`nvidia-smi` 用来看显存",
        "lmdeploy chat 验证启动模型查看显存占用:",
        "We use lmdeploy serve api_server to start the server with --tp.",
        "LMDeploy serve api_server",
        "python is needed. find the model, then watch the memory.",
        "see https://github.com/InternLM/lmdeploy chat",
        fenced("lmdeploy - INFO - loaded"),
        fenced("python 和 lmdeploy 都要安装"),
        fenced("from lmdeploy import pipeline\npipe = pipeline('/m')", "python"),
        fenced('{"ls": "du -sh"}', "json"),
        fenced("# lmdeploy chat /m"),
        fenced(">>> python"),
    ],
)
def test_what_only_speaks_of_a_command_is_none(tmp_path: Path, text: str):
    assert typed(tmp_path, text) == []


@pytest.mark.parametrize(
    "command",
    [
        "python internlm2_5_func.py",
        "ls -lh m",
        "cd /root/models",
        "nvidia-smi",
        "studio-smi",
        "conda activate lmdeploy",
        "pip install lmdeploy==0.5.3",
        "ssh -p 37367 root@ssh.x.y -CNg -L 6006:127.0.0.1:6006",
        "ln -s /share/m /root/models",
        "watch -n 1 nvidia-smi",
        "export HF_MODEL=/m",
        "vim /root/a.py",
        "touch a.py",
        "nohup lmdeploy chat /m",
        "lmdeploy serve gradio http://localhost:23333 --server-port 6006",
    ],
)
def test_the_commands_of_the_lab_are_known(tmp_path: Path, command: str):
    assert typed(tmp_path, fenced(command)) == [command]


def test_several_commands_in_one_line_are_several(tmp_path: Path):
    assert typed(tmp_path, fenced("cd /m && lmdeploy chat . ; ls | grep x")) == [
        "cd /m",
        "lmdeploy chat .",
        "ls",
        "grep x",
    ]


def test_where_there_are_prompts_the_rest_is_output(tmp_path: Path):
    text = "(base) root@h:~/model# du -sh *\n1.5G  m\nls is no command here\npython 3.10\n(base) root@h:~# ls\nm"
    first, second = seen(tmp_path, fenced(text))

    assert (first.argv, first.at_prompt, first.folder) == (("du", "-sh", "*"), True, "~/model")
    assert (second.argv, second.folder, second.place.line) == (("ls",), "~", 6)


def test_without_a_prompt_nobody_says_that_it_was_typed(tmp_path: Path):
    assert not seen(tmp_path, fenced("ls"))[0].at_prompt


def test_variables_are_put_in(tmp_path: Path):
    text = fenced("export HF_MODEL=/m\nDIR=/out") + "\n" + fenced("lmdeploy lite auto_awq $HF_MODEL --work-dir ${DIR}")

    assert typed(tmp_path, text)[-1] == "lmdeploy lite auto_awq /m --work-dir /out"


def test_what_a_shell_writes_into_a_file_is_none(tmp_path: Path):
    assert typed(tmp_path, fenced("cat > a.sh << EOF\nls\nEOF\ndu -sh m")) == ["cat", "du -sh m"]


def test_the_place_is_told(tmp_path: Path):
    (command,) = seen(tmp_path, "text\n\n" + fenced("# size\ndu -sh \\\n  m"))

    assert (command.place.block, command.place.line, command.place.quote) == (1, 5, "du -sh \\\n  m")
    assert command.text == "du -sh m"


def notebook(*cells: dict[str, object]) -> str:
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("!du -sh m", ["du -sh m"]),
        ("import os\n!lmdeploy chat \\\n  /m\nx = 1", ["lmdeploy chat /m"]),
        ("%%bash\ncd /m\nls", ["cd /m", "ls"]),
        ("import subprocess\nsubprocess.run(['lmdeploy', 'chat', '/m'])", ["lmdeploy chat /m"]),
        ("import os\nos.system('lmdeploy chat /m')", ["lmdeploy chat /m"]),
        ("%cd /m", ["cd /m"]),
        ("ls = 1\nprint(ls)", []),
    ],
)
def test_the_commands_of_a_notebook_are_seen(tmp_path: Path, source: str, words: list[str]):
    found = seen(tmp_path, notebook({"cell_type": "code", "source": source, "outputs": []}), "report.ipynb")

    assert [" ".join(command.argv) for command in found] == words


def test_a_command_of_a_cell_that_printed_something_was_typed(tmp_path: Path):
    printed = {"output_type": "stream", "text": "1.5G m"}
    (command,) = seen(
        tmp_path, notebook({"cell_type": "code", "source": "!du -sh m", "outputs": [printed]}), "report.ipynb"
    )

    assert command.at_prompt


# --- how they are written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "lmdeploy chat \\\n/m \\\n--tp 1",
        "lmdeploy chat \\  \n  /m \\ \n  --tp 1",
        "lmdeploy chat /m\n  --tp 1",
        "lmdeploy chat /m –tp 1".replace("–tp", "——tp"),
        "lmdeploy chat “/m” —tp 1",
        "lmdeploy chat\u3000/m\u00a0--tp 1",
        "root@h:~# lmdeploy chat \\\n> /m --tp 1",
        "lmdeploy chat \\\r\n/m --tp 1",
    ],
)
def test_what_was_meant_is_read(text: str):
    assert [command.argv for command in commands_of_text(text, block=0)] == [("lmdeploy", "chat", "/m", "--tp", "1")]


@pytest.mark.parametrize(
    ("line", "rest", "folder"),
    [
        ("root@intern-studio-1:~/model# ls", "ls", "~/model"),
        ("(lmdeploy) root@h:~# ls", "ls", "~"),
        ("[root@h model]# ls", "ls", "model"),
        ("me@mac ~ % ls", "ls", "~"),
        ("PS C:\\lab> ls", "ls", "C:\\lab"),
        ("C:\\lab>ls", "ls", "C:\\lab"),
        ("(base) ➜  model git:(main) ✗ ls", "ls", "model"),
        ("➜  ~ ls", "ls", "~"),
        ("sh-5.1# ls", "ls", ""),
        ("$ ls", "ls", ""),
        ("(base) $ ls", "ls", ""),
        ("❯ ls", "ls", ""),
        ("In [3]: $ ls", "ls", ""),
    ],
)
def test_prompts_are_known(line: str, rest: str, folder: str):
    prompt = prompt_of(line)

    assert prompt is not None
    assert (line[prompt.end :], prompt.folder) == (rest, folder)


@pytest.mark.parametrize(
    "line",
    ["# a comment", ">>> x = 1", "> quoted", "100% done", "root@h's password:", "a@b.c", "(base) text", "$5 each"],
)
def test_what_is_no_prompt_is_none(line: str):
    assert prompt_of(line) is None


# --- what LMDeploy's ask for ------------------------------------------------------------------------------------------


def asked(text: str):
    (command,) = commands_of_text(text, block=0, line=1)
    return lmdeploy_command(command)


def test_a_quantization_of_2024_is_understood():
    command = asked(QUANTIZE)

    assert (command.model, command.work_dir) == ("/root/models/chat-1_8b", "/root/models/chat-w4a16")
    assert (command.w_bits, command.group_size, command.samples, command.seqlen) == (4, 128, 128, 2048)
    assert (command.dataset, "--calib-dataset" in command.given) == ("ptb", True)
    assert {problem.severity for problem in command.problems} == {"old"}


def test_a_server_is_understood():
    command = asked(SERVE)

    assert (command.model, command.model_format, command.kv_bits) == ("/m", "awq", 4)
    assert (command.cache_ratio, command.port) == (0.4, 6000)


@pytest.mark.parametrize(
    ("text", "model", "kv_bits", "ratio", "model_format"),
    [
        ("lmdeploy chat /m", "/m", 16, 0.8, None),
        ("lmdeploy chat /m --model-format awq --cache-max-entry-count 0.4", "/m", 16, 0.4, "awq"),
        ("lmdeploy chat /m --quant-policy 8", "/m", 8, 0.8, None),
        ("lmdeploy chat turbomind /m", "/m", 16, 0.8, None),
        ("lmdeploy chat /m --model-format llama --cap chat", "/m", 16, 0.8, "llama"),
        ("lmdeploy chat $MODEL", None, 16, 0.8, None),
    ],
)
def test_a_chat_is_understood(text: str, model: str | None, kv_bits: int, ratio: float, model_format: str | None):
    command = asked(text)

    assert isinstance(command, ChatCommand)
    assert (command.model, command.kv_bits, command.cache_ratio) == (model, kv_bits, ratio)
    assert command.model_format == model_format
    assert not [problem for problem in command.problems if problem.severity == "broken"]


@pytest.mark.parametrize("text", ["nvidia-smi", "lmdeploy serve gradio http://localhost:23333", "lmdeploy chat -h"])
def test_what_neither_serves_nor_quantizes_nor_chats_is_none(text: str):
    assert asked(text) is None


# --- shells of Windows ------------------------------------------------------------------------------------------------

ON_WINDOWS = ("lmdeploy", "serve", "api_server", "D:/llm/chat-awq", "--quant-policy", "8", "--server-port", "9100")


@pytest.mark.parametrize(
    "text",
    [
        "PS D:\\llm> lmdeploy serve api_server D:\\llm\\chat-awq `\n>>   --quant-policy 8 `\n>>   --server-port 9100",
        "D:\\llm>lmdeploy serve api_server D:\\llm\\chat-awq ^\nMore? --quant-policy 8 ^\nMore? --server-port 9100",
        "lmdeploy serve api_server D:\\llm\\chat-awq --quant-policy 8 --server-port 9100",
        "lmdeploy serve api_server D:\\llm\\chat-awq ^\n   --quant-policy 8 ^\n   --server-port 9100",
        "PS D:\\llm> lmdeploy serve api_server D:\\llm\\chat-awq 、\n>>   --quant-policy 8\n>>   --server-port 9100",
        "(base) PS C:\\> lmdeploy serve api_server D:\\llm\\chat-awq --quant-policy 8 --server-port 9100",
    ],
)
def test_paths_and_continued_lines_of_windows_are_read(text: str):
    assert [command.argv for command in commands_of_text(text, block=0)] == [ON_WINDOWS]


def test_what_windows_commands_quote_is_as_it_was_written():
    (command,) = commands_of_text("PS C:\\> lmdeploy chat D:\\m\\x `\n>> --tp 1", block=0)
    assert command.place.quote == "PS C:\\> lmdeploy chat D:\\m\\x `\n>> --tp 1"


def test_a_backslash_of_linux_that_quotes_a_letter_stays():
    (command,) = commands_of_text("lmdeploy chat /m/my\\ model --tp 1", block=0)
    assert command.argv == ("lmdeploy", "chat", "/m/my model", "--tp", "1")


def test_a_quote_at_the_end_of_a_line_of_linux_is_one():
    found = commands_of_text("echo 'good ' \nlmdeploy chat /m --tp 1", block=0)
    assert [command.argv[0] for command in found] == ["echo", "lmdeploy"]
