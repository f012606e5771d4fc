"""What commands ask for: LMDeploy's by its own parser, of whatever year; lab3's own; and what typing errors come to."""

import shlex
from dataclasses import replace

import pytest

from lab3.reports.facts_commands import lab_command
from lab3.reports.facts_lab3 import lab3_asked
from lab3.reports.model import CommandSeen, Place
from tests.report_literals import MADE, MODEL, nothing, whole_report


def command(text, *, picture=None):
    place = Place(block=0, quote=text, picture=picture)
    return lab_command(CommandSeen(text=text, argv=tuple(shlex.split(text)), place=place), order=0)


# --- LMDeploy's -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "lmdeploy lite auto_awq /m/a --calib-dataset ptb --calib-samples 128 --search-scale False --w-bits 4",
        "lmdeploy serve api_server /m/a --quant-policy 8 --instance_num 4",
        "lmdeploy chat turbomind /m/a --tp 1",
        "lmdeploy chat /m/a --cap chat --model-format llama",
    ],
)
def test_what_an_older_lmdeploy_took_is_right(text):
    assert (command(text).refused, command(text).model.text) == ("", "/m/a")
    assert not command(text, picture="p").cut


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lmdeploy serve api_server /m/a --quant-polcy 4", "write --quant-policy"),
        ("lmdeploy serve api_server /m/a --quant-policy 4 --gpu-share 0.4", "does not have: --gpu-share 0.4"),
        ("lmdeploy serve api_server /m/a --quant-policy 4 -tp 2", "write --tp"),
        ("lmdeploy lite auto_awq /m/a --w-bit four", "--w-bits takes a whole number"),
        ("lmdeploy serve api-server /m/a --quant-policy 4", "write api_server"),
        ("lmdepoly serve api_server /m/a --quant-policy 4", "write lmdeploy"),
    ],
)
def test_what_no_lmdeploy_takes_is_told(text, said):
    assert said in command(text).refused
    assert command(text).model.text == "/m/a"


def test_a_flag_with_a_typing_error_asks_for_what_was_meant():
    found = command("lmdeploy serve api_server /m/a --quant-polcy 4 --cache-max-entry-cuont 0.3 --server-prot 7001")
    assert (found.kv_policy, found.ratio, found.port) == (4, 0.3, 7001)


def test_a_value_that_lmdeploy_refuses_leaves_it_unknown():
    found = command("lmdeploy serve api_server /m/a --cache-max-entry-count 0,4")
    assert (found.ratio, found.cut) == (None, True)


def test_a_comma_that_ocr_saw_in_a_figure_is_a_point():
    found = command("lmdeploy serve api_server /m/a --cache-max-entry-count 0,4", picture="p")
    assert (found.ratio, found.cut) == (0.4, False)


def test_what_the_parser_refuses_of_a_picture_may_be_misread():
    found = command("lmdeploy serve api_server /m/a --quant-policy 4 --zzz-server 3", picture="p")
    assert (found.kv_policy, found.cut) == (4, True)


def test_a_model_that_only_the_shell_knows_is_no_model():
    assert command("lmdeploy serve api_server $MODEL --quant-policy 4").model is None


# --- what checks make of it -------------------------------------------------------------------------------------------

TYPO = f"lmdeploy serve api_server {MADE} --model-format awq --quant-polcy 4"


def test_a_server_with_a_typing_error_that_came_up_was_typed_right():
    draft = whole_report(serve=lambda d: d.heading("启动 API 服务").fence(TYPO).picture().log("listening", port=23333))
    assert draft.judged()["serve_command"].status == "pass"


def test_a_server_with_a_typing_error_that_is_not_seen_to_come_up_is_put_to_a_person():
    judged = whole_report(serve=lambda d: d.heading("启动 API 服务").fence(TYPO)).judged()["serve_command"]
    assert (judged.status, "--quant-policy" in judged.review) == ("unknown", True)


def test_a_quantization_that_cannot_have_run_is_put_to_a_person():
    text = f"lmdeploy lite auto_awq {MODEL} --wbits 4 --work_dirr {MADE}"
    draft = whole_report(
        quantize=lambda d: d.heading("W4A16 量化").fence(text), sizes=nothing, chat=nothing, server_memory=nothing
    )
    judged = draft.judged()["quantize_command"]
    assert (judged.status, bool(judged.review)) == ("unknown", True)


def test_the_picture_that_a_person_is_to_look_at_is_named_by_its_line():
    draft = whole_report(serve=lambda d: d.heading("启动 API 服务").picture())
    number = max(
        at for at, each in enumerate(draft.blocks) if each.picture and draft.blocks[at - 1].text == "启动 API 服务"
    )
    draft.blocks[number] = replace(draft.blocks[number], line=31)
    assert draft.judged()["serve_command"].review.startswith("picture in line 31: ")


def test_a_quantization_with_a_typing_error_whose_folder_is_listed_was_typed_right():
    text = f"lmdeploy lite auto_awq {MODEL} --w-bit 4 --work-dirr {MADE}"
    judged = whole_report(quantize=lambda d: d.heading("W4A16 量化").fence(text)).judged()["quantize_command"]
    assert judged.status == "pass"


def test_a_flag_that_there_is_not_stands_in_the_reason_of_a_fail():
    text = f"lmdeploy serve api_server {MADE} --model-format awq --kv-cache-bits 4"
    judged = whole_report(serve=lambda d: d.heading("启动 API 服务").fence(text)).judged()["serve_command"]
    assert (judged.status, "--kv-cache-bits 4" in judged.reason) == ("fail", True)


def test_a_folder_whose_making_is_seen_in_part_is_no_contradiction():
    def quantize(draft):
        draft.heading("W4A16 量化").picture().command(f"lmdeploy lite auto_awq {MODEL} --w-bits 4").log("quantizing")

    def serve(draft):
        draft.heading("启动").picture().command("lmdeploy serve api_server /m/small-chat --quant-policy 4")

    judged = whole_report(quantize=quantize, sizes=nothing, serve=serve).judged()["served_model_made"]
    assert judged.status == "unknown"


def test_the_model_that_was_quantized_is_not_what_came_of_it():
    text = f"lmdeploy serve api_server {MODEL} --quant-policy 4"
    judged = whole_report(serve=lambda d: d.heading("启动").fence(text)).judged()["served_model_made"]
    assert (judged.status, judged.kind) == ("fail", "contradiction")


# --- lab3's own -------------------------------------------------------------------------------------------------------


def test_lab3_quantize_is_a_quantization():
    found = command("lab3 quantize /m/internlm2_5-7b-chat --out /m/made --group-size 64 --overwrite")
    assert (found.kind, found.method, found.w_bits, found.group_size) == ("quantize", "auto_awq", None, 64)
    assert (found.model.size, found.work_dir) == ("7b", "/m/made")


def test_lab3_serve_says_bits_where_lmdeploy_says_a_policy():
    found = command("python -m lab3 serve --kv-bits=4 --cache-ratio 0.35 --port 8011 /m/made")
    assert (found.kind, found.model.text, found.kv_policy, found.ratio, found.port) == (
        "serve",
        "/m/made",
        4,
        0.35,
        8011,
    )
    assert command("lab3 serve /m/made --kv-bits 16").kv_policy == 0


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("lab3 run --model /m/internlm2_5-1_8b-chat", "lab3-out/internlm2_5-1_8b-chat-w4a16"),
        ("lab3 run --out /o/ --model internlm/internlm2_5-7b-chat", "/o/internlm2_5-7b-chat-w4a16"),
        ("lab3 run", ""),
        ("lab3 run --model embedded", ""),
    ],
)
def test_lab3_run_quantizes_into_its_folder(text, folder):
    assert (command(text).kind, command(text).work_dir) == ("quantize", folder)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("lab3 chat 'Hello there' --base-url http://127.0.0.1:23333/v1 --stream", "client"),
        ("lab3 funcall 'Compute 3+5' --base-url http://127.0.0.1:23333/v1", "script"),
        ("lab3 web", "web"),
        ("lab3 doctor", "other"),
    ],
)
def test_lab3_asks_and_looks(text, kind):
    assert command(text).kind == kind


@pytest.mark.parametrize("text", ["ls lab3", "cd lab3", "python -m pytest --rootdir lab3", "git clone lab3"])
def test_a_folder_of_that_name_is_no_command(text):
    assert lab3_asked(shlex.split(text)) is None


# --- who made the calls -----------------------------------------------------------------------------------------------


def calls(*, model, text="函数调用"):
    def step(draft):
        draft.heading(text).fence(*(f"lmdeploy serve api_server {each}" for each in model)).picture()
        draft.completion("add", '{"a": 2, "b": 7}', model=None).printed("9")
        draft.completion("mul", '{"a": 9, "b": 4}', model=None).printed("36")

    return step


def test_calls_that_do_not_tell_their_model_are_those_of_the_model_served_for_them():
    judged = whole_report(tools=calls(model=["/m/internlm2_5-7b-chat"])).judged()["tools_model"]
    assert (judged.status, len(judged.places)) == ("pass", 2)


def test_of_two_models_served_for_the_calls_neither_is_known_to_have_made_them():
    models = ["/m/internlm2_5-7b-chat", "/m/internlm2_5-20b-chat"]
    assert whole_report(tools=calls(model=models)).judged()["tools_model"].status == "unknown"


def test_a_text_that_claims_another_model_leaves_it_open():
    step = calls(model=["/m/internlm2_5-7b-chat"], text="用 internlm2_5-20b-chat 做函数调用")
    assert whole_report(tools=step).judged()["tools_model"].status == "unknown"


def test_every_option_without_a_value_is_known_where_lab3_s_commands_are_read():
    """Else the word after it would be taken for its value."""
    import argparse

    from lab3.cli import _parser
    from lab3.reports.facts_lab3 import _SWITCHES

    (commands,) = [each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction)]
    found = {
        name
        for command in ("quantize", "run", "serve", "chat", "funcall")
        for action in commands.choices[command]._actions
        for name in action.option_strings
        if action.nargs == 0 and name.startswith("--") and name != "--help"
    }
    assert found == set(_SWITCHES)
