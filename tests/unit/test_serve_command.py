"""LMDeploy's commands as students write them: understood, checked by LMDeploy's own parser, and quoted where wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lab3.errors import Lab3Error
from lab3.grading.serve_command import Commands, QuantizeCommand, ServeCommand, read_commands

# The lab's own, in words of ours.
LAB = """\
lmdeploy serve api_server \\
  /root/models/chat-1_8b-w4a16-4bit/ \\
  --model-format awq --quant-policy 4 \\
  --cache-max-entry-count 0.4\\
  --server-name 0.0.0.0 --server-port 23333 --tp 1
"""
QUANTIZE = """\
lmdeploy lite auto_awq \\
  /root/models/chat-1_8b --calib-dataset 'ptb' --calib-samples 128 --calib-seqlen 2048 \\
  --w-bits 4 --w-group-size 128 --batch-size 1 --search-scale False \\
  --work-dir /root/models/chat-1_8b-w4a16-4bit
"""


def read(text: str, **how: str) -> Commands:
    return read_commands(text, source="start.sh", **how)


def serve(text: str, **how: str) -> ServeCommand:
    """The one serve command of the text."""
    (command,) = read(text, **how).serve
    return command


def quantize(text: str) -> QuantizeCommand:
    (command,) = read(text).quantize
    return command


def told(command: ServeCommand | QuantizeCommand) -> list[tuple[str, int, str, str]]:
    """(kind, line, what is quoted, what to write instead) of each problem that keeps the command from working."""
    return [(p.kind, p.line, p.text, p.instead) for p in command.problems if p.severity in ("broken", "old")]


# --- what was asked for -------------------------------------------------------------------------------------------


def test_the_labs_command_works_and_its_facts_are_read():
    command = serve(LAB)

    assert command.works
    assert command.problems == ()
    assert command.model == "/root/models/chat-1_8b-w4a16-4bit/"
    assert (command.kv_bits, command.cache_ratio, command.model_format, command.tp) == (4, 0.4, "awq", 1)
    assert (command.host, command.port) == ("0.0.0.0", 23333)
    assert command.given[0] == "--model-format"
    assert (command.source, command.line, command.text) == ("start.sh", 1, LAB.rstrip().replace("\n", "\\n"))


def test_what_is_not_said_has_lmdeploys_defaults():
    command = serve("lmdeploy serve api_server m")

    assert (command.kv_bits, command.cache_ratio, command.port, command.host) == (16, 0.8, 23333, "0.0.0.0")
    assert (command.engine, command.session_len, command.tool_call_parser, command.given) == (None, None, None, ())


@pytest.mark.parametrize(
    ("said", "bits"), [("4", 4), ("8", 8), ("0", 16), ("int4", 4), ("none", 16), ("42", None), ("fp8", None)]
)
def test_a_kv_policy_is_bits_as_lmdeploy_reads_it(said: str, bits: int | None):
    assert serve(f"lmdeploy serve api_server m --quant-policy {said}").kv_bits == bits


@pytest.mark.parametrize(
    "text",
    [
        "CUDA_VISIBLE_DEVICES=0 lmdeploy serve api_server m --server-port 8000",
        "nohup lmdeploy serve api_server m --server-port 8000 > serve.log 2>&1 &",
        "lmdeploy serve api_server m > serve.log --server-port 8000",
        "conda activate lmdeploy && lmdeploy serve api_server m --server-port 8000",
        "if [ -d m ]; then lmdeploy serve api_server m --server-port 8000; fi",
        "case $1 in\n  serve) lmdeploy serve api_server m --server-port 8000;;\nesac",
        "python -m lmdeploy serve api_server m --server-port=8000",
        "/root/.local/bin/lmdeploy serve api_server m --server_port 8000",
        "bash -c 'lmdeploy serve api_server m --server-port 8000'",
        "docker run --gpus all image lmdeploy serve api_server m --server-port 8000",
        "# lmdeploy serve api_server other\nlmdeploy serve api_server m --server-port 8000  # the port",
        "PORT=8000\nMODEL=m\nlmdeploy serve api_server $MODEL --server-port ${PORT}",
        "export ARGS='--tp 1 --server-port 8000'\nlmdeploy serve api_server m $ARGS",
        'ARGS=(--tp 1\n  --server-port 8000)\nlmdeploy serve api_server "${1:-m}" "${ARGS[@]}"',
        "cat > run.sh <<EOF\nlmdeploy serve api_server m --server-port 8000\nEOF",
    ],
)
def test_a_command_is_found_wherever_it_stands_in_a_script(text: str):
    command = serve(text)

    assert (command.model, command.port, command.works) == ("m", 8000, True)


@pytest.mark.parametrize(
    "text",
    [
        "(base) root@studio-12:~/lab# lmdeploy serve api_server \\\n>   m --server-port 8000",
        "$ lmdeploy serve api_server m --server-port 8000\nINFO: Uvicorn running",
        "!lmdeploy serve api_server m --server-port 8000",
        "[student@node ~]$ lmdeploy serve api_server m --server-port 8000",
        "PS C:\\Users\\me> lmdeploy serve api_server m --server-port 8000",
    ],
)
def test_prompts_are_no_part_of_a_command(text: str):
    command = serve(text, dialect="session")

    assert (command.model, command.port, command.works) == ("m", 8000, True)


def test_a_script_of_windows_is_read_by_its_own_rules():
    command = serve(
        "set M=D:\\models\\w4\r\nlmdeploy serve api_server %M% ^\r\n  --server-port 8000\r\n", dialect="batch"
    )

    assert (command.model, command.port, command.works) == ("D:/models/w4", 8000, True)


@pytest.mark.parametrize(
    "text",
    [
        "pip install lmdeploy",
        "conda create -n lmdeploy python=3.10",
        "echo lmdeploy serve api_server m",
        "echo 'lmdeploy serve api_server m'",
        "lmdeploy check_env",
        "lmdeploy serve api_server --help",
        "vllm serve m --port 23333",
    ],
)
def test_other_commands_serve_nothing(text: str):
    assert read(text).serve == ()


def test_a_mention_in_a_report_is_no_command():
    assert read("lmdeploy serve api_server", dialect="session") == Commands()
    assert read("我用 lmdeploy serve api_server m 启动服务", dialect="session") == Commands()


def test_each_command_of_a_text_is_read_with_its_own_line():
    found = read(f"{LAB}\nlmdeploy lite auto_awq a --work-dir b\nlmdeploy chat b\nlmdeploy serve api_server b\n")

    assert [command.line for command in found.serve] == [1, 9]
    assert [command.line for command in found.quantize] == [7]
    assert [command.argv for command in found.others] == [("lmdeploy", "chat", "b")]


# --- what is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("server-port 8000", ("dashes", 1, "server-port 8000", "--server-port")),
        ("-server-port 8000", ("dashes", 1, "-server-port", "--server-port")),
        ("--server-prot 8000", ("typo", 1, "--server-prot", "--server-port")),
        ("--server-port8000", ("space", 1, "--server-port8000", "--server-port 8000")),
        ("–server-port 8000", ("dash", 1, "–server-port", "--server-port")),
        ("——server-port 8000", ("dash", 1, "——server-port", "--server-port")),
        ("－－server-port 8000", ("dash", 1, "－－server-port", "--server-port")),
        ("--server－port 8000", ("dash", 1, "--server－port", "--server-port")),
        ("--server-port “8000”", ("quote", 1, "“8000”", '"8000"')),
        (
            "--server-port\u30008000",
            ("space", 1, "lmdeploy serve api_server m --server-port\\u30008000", "ordinary spaces"),
        ),
    ],
)
def test_a_mistyped_flag_is_quoted_and_what_was_meant_is_read(words: str, problem: tuple[str, int, str, str]):
    command = serve(f"lmdeploy serve api_server m {words}")

    assert told(command) == [problem]
    assert not command.works
    assert command.port == 8000


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--quant-policy five", "--quant-policy takes one of 0, 4, 8, int4, int8, none: --quant-policy five"),
        ("--tp 1.5", "--tp takes a whole number: --tp 1.5"),
        ("--cache-max-entry-count 40%", "--cache-max-entry-count takes a number: --cache-max-entry-count 40%"),
        ("--cache-max-entry-count 1.4", "more than 0, less than 1: --cache-max-entry-count 1.4"),
        ("--model-format awk", "--model-format takes one of hf, awq,"),
        ("--server-port", "--server-port wants a value after it: --server-port"),
        ("--server-port 99999", "there is no such port: --server-port 99999"),
        ("--tool-call-parser internml", "--tool-call-parser takes one of "),
        ("--w-bits 4", "a flag of `lmdeploy lite auto_awq`, not of `lmdeploy serve api_server`: --w-bits 4"),
        ("--turbo 3", "a flag that LMDeploy does not have: --turbo 3"),
        ("another", "a word that belongs to no flag: another"),
        ("--a.b", "a flag that LMDeploy does not have: --a.b"),
    ],
)
def test_what_lmdeploy_would_refuse_is_told_in_its_place(words: str, problem: str):
    command = serve(f"lmdeploy serve api_server m \\\n {words}")

    (only,) = command.problems
    assert problem in str(only)
    assert str(only).startswith("start.sh, line 2: ")


def test_all_mistakes_are_told_and_not_only_the_first():
    command = serve("lmdeploy serve api_server m server-port 8000 --quant-polcy 4 --tp one\n")

    assert [kind for kind, *_ in told(command)] == ["dashes", "typo", "value"]
    assert (command.port, command.kv_bits, command.tp) == (8000, 4, 1)


def test_a_command_without_a_model_is_broken_and_the_rest_is_read():
    command = serve("lmdeploy serve api_server --quant-policy 4")

    assert (command.model, command.kv_bits, command.works) == (None, 4, False)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("lmdepoly serve api_server m", "lmdeploy"),
        ("lmdeploy server api_server m", "serve"),
        ("lmdeploy serve api-server m", "api_server"),
    ],
)
def test_a_mistyped_command_is_found_nevertheless(text: str, instead: str):
    command = serve(text)

    assert command.model == "m"
    assert [(kind, write) for kind, _, _, write in told(command)] == [("typo", instead)]


def test_a_space_after_a_backslash_is_found_and_quoted():
    command = serve(LAB.replace("awq --quant-policy 4 \\", "awq --quant-policy 4 \\ "))

    assert told(command) == [("backslash", 3, "--model-format awq --quant-policy 4 \\", "")]
    assert "the command ends here" in str(command.problems[0])
    assert command.cache_ratio == 0.4


def test_a_space_after_a_backslash_is_told_once():
    command = serve("lmdeploy serve api_server m --tp 1\\  \n--quant-policy 4")

    assert [problem.kind for problem in command.problems] == ["backslash"]
    assert "2 spaces after" in str(command.problems[0])


def test_a_comment_after_a_backslash_is_told():
    command = serve("lmdeploy serve api_server m \\ # the model\n--quant-policy 4")

    assert [problem.kind for problem in command.problems] == ["backslash"]
    assert "a comment after" in str(command.problems[0])
    assert command.kv_bits == 4


def test_a_line_without_its_backslash_is_found():
    command = serve(LAB.replace("awq --quant-policy 4 \\", "awq --quant-policy 4"))

    assert [(kind, line) for kind, line, *_ in told(command)] == [("no_backslash", 3)]
    assert command.port == 23333


def test_a_comment_between_the_lines_of_a_command_is_found():
    command = serve("lmdeploy serve api_server m \\\n  # four bits\n  --quant-policy 4")

    assert told(command) == [("comment", 2, "# four bits", "")]
    assert command.kv_bits == 4


def test_words_that_a_backslash_glues_together_are_found():
    command = serve("lmdeploy serve api_server m --cache-max-entry-count 0.4\\\n--server-port 8000")

    assert [(kind, line) for kind, line, *_ in told(command)] == [("space", 1)]
    assert (command.cache_ratio, command.port) == (0.4, 8000)


def test_a_quote_that_is_never_closed_is_found():
    command = serve('lmdeploy serve api_server "m --tp 1')

    assert told(command) == [("quote", 1, 'lmdeploy serve api_server "m --tp 1', "")]


def test_line_ends_of_windows_in_a_shell_script_are_told_and_break_nothing_here():
    command = serve(LAB.replace("\n", "\r\n"))

    assert (command.works, command.kv_bits, command.port) == (True, 4, 23333)
    assert [problem.kind for problem in command.problems] == ["crlf"]


def test_a_variable_that_nobody_tells_is_no_mistake():
    command = serve("lmdeploy serve api_server $1 --server-port $PORT --quant-policy 4")

    assert command.works
    assert (command.model, command.port, command.kv_bits) == (None, 23333, 4)
    assert [problem.kind for problem in command.problems] == ["variable", "variable"]


def test_a_variable_before_a_command_is_not_for_its_own_words_nor_for_the_next_command():
    found = read("PORT=8000 lmdeploy serve api_server a --server-port $PORT\nlmdeploy serve api_server b --tp $PORT")

    assert [command.environment for command in found.serve] == [(("PORT", "8000"),), ()]
    assert [[problem.kind for problem in command.problems] for command in found.serve] == [["variable"], ["variable"]]


def test_a_variable_stays_known_to_the_end_of_the_script():
    found = read("M=w4\nlmdeploy lite auto_awq m --work-dir $M\nlmdeploy serve api_server $M")

    assert (found.quantize[0].work_dir, found.serve[0].model) == ("w4", "w4")


def test_problems_are_printable_whatever_is_quoted():
    command = serve("lmdeploy serve api_server m '\x1b[2J\u202eevil'")

    assert "\x1b" not in str(command.problems[0])
    assert "\\x1b[2J\\u202eevil" in str(command.problems[0])


def test_what_is_not_ascii_is_read_as_it_is_written():
    text = (
        "MODEL='内容 😀'\nlmdeploy serve api_server 「模型」\U0010ffff --model-name \"$MODEL\" --server-port 8000 # 口"
    )
    command = serve(text)

    assert command.model == "「模型」\U0010ffff"
    assert command.model_name == "内容 😀"
    assert (command.port, command.line) == (8000, 2)


# --- hostile text -------------------------------------------------------------------------------------------------

PIECES = """lmdeploy serve api_server lite auto_awq --tp 1 --quant-policy 4 $X X= " ' ` $( ${ (( )) | & ; \\ – “ # { }
=( root@h:~#  bash -c [[ case esac ！ - -- --hf-overrides <<E <("""
WORDS = st.sampled_from([*PIECES.split(), " ", " ", "\n", "\r\n", "\\\n", "\0", "\ud800"])


def test_no_character_reaches_tree_sitter_that_its_grammar_reads_beyond_a_table_for(monkeypatch: pytest.MonkeyPatch):
    """tree-sitter-bash asks C's `isalnum` about any character; above 255 that ends the process by SIGSEGV at times."""
    from lab3.grading import shell_words

    class Spy:
        def __init__(self) -> None:
            self._real = real()

        def parse(self, data: bytes, encoding: str = "utf8") -> Any:
            given.append(data.decode({"utf8": "utf-8", "utf16le": "utf-16-le"}[encoding]))
            return self._real.parse(data, encoding=encoding)

    given: list[str] = []
    real = shell_words._parser
    monkeypatch.setattr(shell_words, "_parser", Spy)
    every = [*range(0x80, 0xD800), *range(0xE000, 0x110000)][::4999]
    for each in every:
        text = f"lmdeploy serve api_server m{chr(each)} {{{chr(each)}"
        assert [word.text for word in shell_words.simple_commands(text, line=1, variables={})[0].words] == text.split()
    assert len(given) == len(every)
    assert max(map(max, given)) <= "\xff"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(WORDS | st.text(max_size=6), max_size=25).map("".join) | st.text(),
    st.sampled_from(["shell", "session", "batch"]),
)
@example("lmdeploy serve api_server m " + "--" + ".".join("a" * 3000) + " 1", "shell")
@example('lmdeploy serve api_server "' + "$(" * 500, "shell")
@example("lmdeploy\x1b“", "shell")
@example("lmdeploy serve api_server m —tp\x1b 1", "shell")
def test_no_text_makes_reading_fail_in_any_other_way_than_told(text: str, dialect: str):
    try:
        found = read(text, dialect=dialect)
    except Lab3Error:
        return
    for command in (*found.serve, *found.quantize, *found.others):
        json.dumps(command.to_dict()).encode()
        assert all(str(problem).isprintable() for problem in command.problems)


def test_junk_of_a_megabyte_is_not_parsed_for_minutes():
    for junk in ("a=(", "|", "for ((", '"${', "(", "lmdeploy serve api_server m\n", "lmdeploy serve api_server \\\n"):
        found = read("lmdeploy serve api_server m " + junk * (10**6 // len(junk)))
        assert len(found.serve) < 5000


def test_importing_this_does_not_import_lmdeploy():
    code = "import sys, lab3.grading.collector; sys.exit('lmdeploy' in sys.modules or 'torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_reading_a_command_prints_nothing_and_does_not_leave(capfd: pytest.CaptureFixture[str]):
    read("lmdeploy serve api_server m --version\nlmdeploy serve api_server\nlmdeploy lite auto_awq -h")

    assert capfd.readouterr() == ("", "")
