"""A submission's parts, found under any name: what is taken for what, why, and what does not lead astray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lab3.errors import UsageError
from lab3.grading.collector import Collected, Found, collect
from lab3.grading.documents import notebook_script
from tests.unit.test_models import CONFIG
from tests.unit.test_serve_command import LAB, QUANTIZE
from tests.unit.test_student_scripts import CHAT, TOOLS

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "homework").mkdir()
    return tmp_path / "homework"


def put(folder: Path, **texts: str) -> None:
    """Files by name, with `__` for a slash and `_dot_` for a dot."""
    for name, text in texts.items():
        file = folder / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def put_model(folder: Path, quantization: dict | None = AWQ) -> Path:
    folder.mkdir(parents=True)
    config = CONFIG if quantization is None else CONFIG | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def notebook(*cells: str) -> str:
    """Code cells, or Markdown ones that begin with #."""
    kinds = [{"cell_type": "markdown" if cell.startswith("#") else "code", "source": cell} for cell in cells]
    return json.dumps({"cells": kinds, "nbformat": 4, "nbformat_minor": 5, "metadata": {}})


def taken(found: Collected) -> dict[str, str]:
    """Role → file."""
    return {each.role: str(each.path.relative_to(found.folder)) for each in found.found}


def of(found: Collected, role: str) -> Found:
    return next(each for each in found.found if each.role == role)


def kinds(found: Collected) -> set[str]:
    return {problem.kind for problem in found.problems}


def lab(folder: Path) -> None:
    """All that the lab asks for, under the tutorial's names."""
    put_model(folder / "chat-1_8b-w4a16-4bit")
    put(folder, internlm2_5_dot_py=CHAT, internlm2_5_func_dot_py=TOOLS, start_dot_sh=LAB, report_dot_md="# Lab 3")


# --- what is found ------------------------------------------------------------------------------------------------


def test_the_labs_parts_are_found_under_the_tutorials_names(folder: Path):
    lab(folder)

    found = collect(folder)

    assert taken(found) == {
        "model": "chat-1_8b-w4a16-4bit",
        "chat": "internlm2_5.py",
        "tools": "internlm2_5_func.py",
        "serve": "start.sh",
        "report": "report.md",
    }
    assert found.problems == ()
    assert found.student == "homework"
    assert (found.serve.port, found.serve.kv_bits) == (23333, 4)
    assert found.doors("chat") == found.doors("tools") == (("0.0.0.0", 23333),)


def test_the_parts_are_found_under_any_name_and_each_says_why(folder: Path):
    put_model(folder / "a")
    put(folder, b_dot_py=TOOLS, c__d_dot_py=CHAT, 启动_dot_sh=LAB, 作业_dot_md="# 作业")

    found = collect(folder)

    assert taken(found) == {"model": "a", "chat": "c/d.py", "tools": "b.py", "serve": "启动.sh", "report": "作业.md"}
    assert of(found, "model").why == "config.json tells of awq in 4 bits"
    assert of(found, "chat").why == "calls chat.completions.create without tools (line 5)"
    assert of(found, "tools").why == "calls chat.completions.create with tools (line 5)"
    assert of(found, "serve").why.startswith("line 1: lmdeploy serve api_server /root")
    assert {each.by for each in found.found} == {"content", "name"}


def test_an_empty_folder_says_what_is_missing(folder: Path):
    found = collect(folder)

    assert found.found == ()
    assert kinds(found) == {"no_model", "no_chat", "no_tools", "no_serve", "no_report"}
    assert found.pick("model") is None
    assert found.serve is None


def test_no_folder_is_the_users_mistake(folder: Path):
    with pytest.raises(UsageError, match="cannot be read"):
        collect(folder / "nowhere")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("start.sh", LAB),
        ("start", f"#!/bin/bash\n{LAB}"),
        ("start.txt", f"$ {LAB}"),
        ("report.md", f"# Lab\n\nServing:\n\n```bash\n(base) root@studio:~# {LAB}```\n"),
        ("report.md", f"1. Serving\n\n   ```Plain\n   conda activate lmdeploy\n{LAB}   ```\n"),
        ("report.md", f"I typed\n{LAB}and it ran."),
        ("report.md", "Run `" + LAB.replace("\\\n", " ").strip() + "` first; `lmdeploy serve api_server` serves."),
        ("lab.ipynb", notebook("# Lab", "!" + LAB)),
        (
            "lab.ipynb",
            notebook(
                "MODEL = '/root/models/chat-1_8b-w4a16-4bit/'\n!"
                + LAB.replace("/root/models/chat-1_8b-w4a16-4bit/", "{MODEL}")
            ),
        ),
        ("lab.ipynb", notebook("%%bash\n" + LAB)),
        ("lab.ipynb", notebook("# Serving\n```\n" + LAB + "```")),
        ("serve.py", f"import subprocess\nsubprocess.run({LAB!r}, shell=True)"),
        ("serve.py", f"import subprocess\nsubprocess.Popen({LAB.replace(chr(92), '').split()!r})"),
        ("start.bat", LAB.replace("0.4\\", "0.4 \\").replace("\\\n", "^\r\n")),
    ],
)
def test_a_serve_command_is_found_wherever_it_is_written(folder: Path, name: str, text: str):
    (folder / name).write_text(text, newline="")

    found = collect(folder)

    assert (found.serve.kv_bits, found.serve.cache_ratio, found.serve.port) == (4, 0.4, 23333)
    assert (found.serve.works, found.serve.model) == (True, "/root/models/chat-1_8b-w4a16-4bit/")
    assert taken(found)["serve"] == name


def test_of_several_commands_the_one_that_the_lab_asks_for_is_taken(folder: Path):
    baseline = "lmdeploy serve api_server /root/models/chat-1_8b --model-format hf --quant-policy 0"
    put(folder, a_dot_sh=baseline, report_dot_md=f"```\n{baseline} --tp 1\n```\nand then\n```\n{LAB}```\n{QUANTIZE}")

    found = collect(folder)

    assert taken(found)["serve"] == "report.md"
    assert found.serve.kv_bits == 4
    assert len(of(found, "serve").others) == 2
    assert found.quantize.work_dir == "/root/models/chat-1_8b-w4a16-4bit"


def test_a_broken_command_is_taken_and_quoted_with_its_place(folder: Path):
    put(folder, start_dot_sh=LAB.replace("--server-port", "server-port"))

    found = collect(folder)

    assert not found.serve.works
    assert found.serve.port == 23333
    (problem,) = [each for each in found.problems if each.severity == "broken"]
    assert str(problem).startswith("start.sh, line 5: two dashes are missing before a flag: server-port 23333")


def test_a_notebook_may_be_everything_at_once(folder: Path):
    put(folder, lab3_dot_ipynb=notebook("# Lab", "!" + LAB, CHAT, "%time x = 1", "def broken(:", TOOLS))

    found = collect(folder)

    assert set(taken(found).values()) == {"lab3.ipynb"}
    assert set(taken(found)) == {"chat", "tools", "serve", "report"}
    script = notebook_script(folder / "lab3.ipynb")
    assert "lmdeploy" not in script
    assert "broken" not in script
    compile(script, "lab3.py", "exec")


def test_a_script_that_does_both_is_the_chat_script_only_if_there_is_no_other(folder: Path):
    put(folder, both_dot_py=CHAT + TOOLS)
    assert taken(collect(folder)) == {"chat": "both.py", "tools": "both.py"}
    put(folder, zz_dot_py=CHAT)
    assert taken(collect(folder)) == {"chat": "zz.py", "tools": "both.py"}


def test_a_script_with_its_helper_is_the_script_and_not_the_helper(folder: Path):
    helper = CHAT.replace("print(", "def ask(messages, tools=None):\n    return (").replace(
        "messages=[]", "messages=messages, tools=tools"
    )
    put(folder, h_dot_py=helper, talk_dot_py="from h import ask\nprint(ask([]))")
    put(folder, calls_dot_py="import h\nh.ask([], tools=[{}])")

    found = collect(folder)

    assert (taken(found)["chat"], taken(found)["tools"]) == ("talk.py", "calls.py")
    assert found.doors("chat") == (("0.0.0.0", 23333),)


def test_a_script_with_a_syntax_error_is_still_the_students_script(folder: Path):
    put(folder, chat_dot_py=CHAT + "\nprint 'done'", func_dot_py=TOOLS + "\n)")

    found = collect(folder)

    assert (taken(found)["chat"], taken(found)["tools"]) == ("chat.py", "func.py")
    assert [each.source for each in found.problems if each.kind == "syntax"] == ["chat.py", "func.py"]


def test_a_script_that_loads_the_model_itself_is_named_where_none_asks(folder: Path):
    put(folder, chat_dot_py="from lmdeploy import pipeline\npipeline('/m')(['hi'])")

    assert any("chat.py, line 2, loads the model itself" in problem.what for problem in collect(folder).problems)


def test_a_script_that_only_the_report_quotes_is_named_with_its_line(folder: Path):
    put(folder, report_dot_md=f"# Lab\n\n```Python\n{CHAT}```\n")

    found = collect(folder)

    assert found.pick("chat") is None
    assert any("report.md, line 8, quotes one" in each.what for each in found.problems if each.kind == "no_chat")


# --- duplicates and what nobody means to hand in ------------------------------------------------------------------


def test_copies_environments_and_hidden_files_do_not_confuse(folder: Path):
    lab(folder)
    for name in ("internlm2_5_copy.py", "internlm2_5 (1).py", "internlm2_5 - 副本.py", "old/internlm2_5.py"):
        put(folder, **{name.replace(".", "_dot_").replace("/", "__"): CHAT})
    put(folder, internlm2_5_bak_dot_py=CHAT.replace("0.8", "0.9"))
    for place in ("__MACOSX", ".ipynb_checkpoints", ".venv/lib", "env/lib/site-packages", "__pycache__", "x/venv/lib"):
        target = folder / place / "a.py"
        target.parent.mkdir(parents=True)
        target.write_text(TOOLS)
    (folder / "env" / "pyvenv.cfg").touch()
    put(folder, env__chat_dot_py=CHAT)
    (folder / "._internlm2_5.py").write_bytes(b"\0\5\x16\7")

    found = collect(folder)

    assert taken(found)["chat"] == "internlm2_5.py"
    assert taken(found)["tools"] == "internlm2_5_func.py"
    assert sum(other.endswith("(the same)") for other in of(found, "chat").others) == 4
    assert any(other.startswith("internlm2_5_bak.py (calls") for other in of(found, "chat").others)
    assert of(found, "tools").others == ()
    assert found.problems == ()


def test_an_older_version_of_a_script_is_not_taken_for_it(folder: Path):
    put(folder, old_dot_py=CHAT, test_dot_py=CHAT + "# 1", the_chat_script_dot_py=CHAT + "# 2")

    assert taken(collect(folder))["chat"] == "the_chat_script.py"


def test_the_report_is_no_license_and_no_list_of_packages(folder: Path):
    put_model(folder / "m")
    put(folder, requirements_dot_txt="openai", LICENSE_dot_txt="MIT", m__README_dot_md="# Model", hw_dot_docx="")

    assert taken(collect(folder))["report"] == "hw.docx"


def test_a_report_that_cannot_be_read_is_found_by_its_name(folder: Path):
    (folder / "实验报告.pdf").write_bytes(b"%PDF-1.7")
    put(folder, notes_dot_txt="see the PDF")

    found = collect(folder)

    assert taken(found)["report"] == "实验报告.pdf"
    assert of(found, "report").by == "name"


# --- the model ----------------------------------------------------------------------------------------------------


def test_of_several_models_the_one_that_the_command_serves_is_taken(folder: Path):
    for name in ("another", "chat-1_8b-w4a16-4bit", "base"):
        put_model(folder / name, None if name == "base" else AWQ)
    put(folder, start_dot_sh=LAB)

    found = collect(folder)

    assert taken(found)["model"] == "chat-1_8b-w4a16-4bit"
    assert "the serve command names it" in of(found, "model").why
    assert len(of(found, "model").others) == 1
    assert "ambiguous" not in kinds(found)


def test_several_models_that_nobody_names_are_told(folder: Path):
    put_model(folder / "b"), put_model(folder / "a"), put_model(folder / "8bit", {"quant_method": "gptq", "bits": 8})

    found = collect(folder)

    assert taken(found)["model"] == "a"
    assert "ambiguous" in kinds(found)


def test_a_model_of_another_name_than_the_commands_is_told(folder: Path):
    put_model(folder / "w4")
    put(folder, start_dot_sh=LAB)

    assert "other_model" in kinds(collect(folder))


def test_a_model_that_was_not_handed_in_is_taken_only_from_the_graders_folders(folder: Path, tmp_path: Path):
    model = put_model(tmp_path / "models" / "chat-1_8b-w4a16-4bit")
    put_model(tmp_path / "other-student" / "secret")
    put(folder, start_dot_sh=LAB)

    assert collect(folder).pick("model") is None
    assert collect(folder, model_roots=[tmp_path / "models"]).pick("model") == model
    put(folder, start_dot_sh=f"lmdeploy serve api_server {tmp_path / 'other-student' / 'secret'}")
    assert collect(folder, model_roots=[tmp_path / "models"]).pick("model") is None
    put(folder, start_dot_sh=f"lmdeploy serve api_server {tmp_path / 'models' / '..' / 'other-student' / 'secret'}")
    assert collect(folder, model_roots=[tmp_path / "models"]).pick("model") is None


# --- where the scripts ask ----------------------------------------------------------------------------------------


def test_a_script_that_names_no_server_gets_the_tutorials_and_a_note(folder: Path):
    put(folder, chat_dot_py="from openai import OpenAI\nOpenAI().chat.completions.create(model='m')")

    found = collect(folder)

    assert found.doors("chat") == (("0.0.0.0", 23333),)
    assert any("not told where the server is; 0.0.0.0:23333 is taken" in each.what for each in found.problems)
    assert found.models["chat"] == ("m",)


def test_another_port_than_the_commands_and_a_server_elsewhere_are_told(folder: Path):
    put(folder, start_dot_sh=LAB, chat_dot_py=CHAT.replace("23333", "8000"))
    put(folder, func_dot_py=TOOLS.replace("http://0.0.0.0:23333", "https://api.example.com"))

    found = collect(folder)

    assert found.doors("chat") == (("0.0.0.0", 8000),)
    assert found.doors("tools") == ()
    assert {"port", "elsewhere"} <= kinds(found)


# --- and nothing else --------------------------------------------------------------------------------------------


def test_the_same_folder_elsewhere_gives_the_same_facts(folder: Path, tmp_path: Path):
    lab(folder)
    put(folder, copy_dot_py=CHAT, notes_dot_md=f"```\n{QUANTIZE}```")
    shutil.copytree(folder, tmp_path / "elsewhere" / "homework")

    assert collect(folder).to_dict() == collect(tmp_path / "elsewhere" / "homework").to_dict()


def test_nothing_of_a_submission_is_run(folder: Path):
    ran = folder.parent / "ran"
    put(folder, chat_dot_py=f"open({str(ran)!r}, 'w')\n{CHAT}", start_dot_sh=f"touch {ran}\n{LAB}$(touch {ran})")
    put(folder, sitecustomize_dot_py=f"open({str(ran)!r}, 'w')")

    collect(folder)

    assert not ran.exists()
