"""A server refuses a model whose template hides tools, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab3.errors import UsageError
from lab3.rendering import chat_template, check_tools_shown

# InternLM2.5-chat's own, which ignores `tools`: LMDeploy 0.18 takes it, and function calling dies without a word.
INTERNLM2_5 = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHOWS = "{% for message in messages %}{{ message['content'] }}{% endfor %}{{ tools | tojson }}"


def folder_with(tmp_path: Path, template: object) -> Path:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "chat_template": template}))
    return tmp_path


def test_internlm2_5_s_own_template_hides_tools(tmp_path: Path):
    with pytest.raises(UsageError, match="does not show tools") as caught:
        check_tools_shown(folder_with(tmp_path, INTERNLM2_5))
    assert "--tool-call-parser none" in caught.value.todo


def test_one_that_writes_them_passes(tmp_path: Path):
    check_tools_shown(folder_with(tmp_path, SHOWS))


def test_the_embedded_model_s_passes(embedded_model: Path):
    check_tools_shown(embedded_model)


def test_to_mention_tools_is_not_to_show_them(tmp_path: Path):
    with pytest.raises(UsageError, match="does not show tools"):
        check_tools_shown(folder_with(tmp_path, "{% if tools %}You have {{ tools | length }} tools.{% endif %}"))


def test_a_template_that_refuses_tools_is_said_to(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be rendered with tools: no tools here"):
        check_tools_shown(folder_with(tmp_path, "{{ raise_exception('no tools here') }}"))
    with pytest.raises(UsageError, match="cannot be rendered"):
        check_tools_shown(folder_with(tmp_path, "{% if %}"))


def test_a_folder_without_a_template_is_not_judged(tmp_path: Path):
    check_tools_shown(tmp_path)


def test_the_template_for_tools_is_taken_where_there_are_several_and_a_file_before_all(tmp_path: Path):
    several = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    assert chat_template(folder_with(tmp_path, several)) == "t"
    assert chat_template(folder_with(tmp_path, several[:1])) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert chat_template(tmp_path) == "file"


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be rendered"):
        check_tools_shown(folder_with(tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}"))
