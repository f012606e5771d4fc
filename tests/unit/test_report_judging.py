"""Verdicts on reports that are right, incomplete, contradictory, impossible and honestly failing, as literals."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from PIL import Image

from lab3.reports.checks import judged
from lab3.reports.facts import ReportFacts
from lab3.reports.model import Recognised
from lab3.reports.reading import read_report
from lab3.reports.rubric import CHECKS
from lab3.reports.understanding_said import said_of
from lab3.reports.work import Plan, Task, judge_one, own_steps
from tests.report_literals import MADE, MODEL, Draft, nothing, whole_report

SEVEN = "/root/models/internlm2_5-7b-chat"


def verdict(draft, name, **more):
    return draft.judged(**more)[name]


def told(found):
    return found.status, found.kind, bool(found.review)


def test_a_whole_report_is_not_accused_of_anything():
    assert [each.id for each in whole_report().judged().values() if each.status == "fail"] == []


def test_a_whole_report_passes_whatever_it_shows():
    unknown = {name for name, each in whole_report().judged().items() if each.status == "unknown"}
    assert {name for name in unknown if not name.startswith("understanding")} == {"prose_claims", "completion_tokens"}


def test_every_pass_has_a_place():
    assert all(each.places for each in whole_report().judged().values() if each.status == "pass")


def test_an_empty_report_passes_nothing_and_is_accused_of_nothing():
    draft = Draft().text("Hello")
    kinds = {(each.status, each.kind) for each in draft.judged().values()}
    assert kinds <= {("fail", "missing"), ("unknown", "missing"), ("unknown", "")}


# ------------------------------------------------------------------------------------------------- missing, unreadable


@pytest.mark.parametrize(
    ("step", "check"),
    [
        ("baseline", "baseline_memory"),
        ("quantize", "quantize_command"),
        ("sizes", "sizes"),
        ("chat", "w4a16_memory"),
        ("serve", "serve_command"),
        ("conversation", "conversation"),
        ("server_memory", "server_memory"),
        ("tools", "tool_calls"),
        ("tools", "tool_results"),
        ("tools", "tools_server"),
        ("tools", "completion_counts"),
    ],
)
def test_a_step_that_is_left_out_is_missing(step, check):
    assert told(verdict(whole_report(**{step: nothing}), check)) == ("fail", "missing", False)


@pytest.mark.parametrize(
    ("step", "words", "check"),
    [
        ("baseline", "量化前的显存占用", "baseline_memory"),
        ("sizes", "量化前后文件大小对比", "sizes"),
        ("server_memory", "服务启动后的显存", "server_memory"),
        ("conversation", "在浏览器里对话", "conversation"),
        ("serve", "启动 api_server 服务", "serve_command"),
    ],
)
def test_a_picture_that_cannot_be_read_is_not_missing(step, words, check):
    found = verdict(whole_report(**{step: lambda d: d.text(words).picture()}), check)
    assert told(found) == ("unknown", "", True)
    assert found.places[0].picture


def test_a_picture_that_is_not_at_hand_is_for_a_person():
    draft = whole_report(
        tools=lambda d: d.heading("Function call", level=1).text("输出结果").picture(why="not in the folder")
    )
    found = verdict(draft, "tool_calls")
    assert told(found) == ("unknown", "", True)
    assert "not in the folder" in found.review


def test_what_ocr_doubts_is_for_a_person():
    draft = whole_report(
        server_memory=lambda d: d.text("服务的显存").picture().memory(11368, doubt="the percentage does not fit")
    )
    assert told(verdict(draft, "server_memory")) == ("unknown", "", True)


def test_what_ocr_barely_read_is_no_pass():
    def serve(d):
        d.heading("启动服务").picture().command(f"lmdeploy serve api_server {MADE} --quant-policy 4", confidence=0.4)

    assert told(verdict(whole_report(serve=serve), "serve_command")) == ("unknown", "", True)


# --------------------------------------------------------------------------------------------------- honest failures


def test_a_server_that_ran_out_of_memory_is_not_achieved():
    def serve(d):
        d.heading("启动服务").picture().command(f"lmdeploy serve api_server {MADE} --model-format awq --quant-policy 4")
        d.log("out_of_memory", "torch.cuda.OutOfMemoryError: CUDA out of memory")

    draft = whole_report(serve=serve, conversation=nothing, server_memory=nothing)
    for check in ("server_started", "conversation", "server_memory"):
        assert told(verdict(draft, check)) == ("fail", "not_achieved", False), check


def test_a_server_for_tools_that_ran_out_of_memory_is_not_achieved():
    def tools(d):
        d.heading("Function call", level=1).picture().command("lmdeploy serve api_server /m/internlm2_5-7b-chat")
        d.log("out_of_memory", "torch.cuda.OutOfMemoryError: CUDA out of memory")

    assert told(verdict(whole_report(tools=tools), "tools_server")) == ("fail", "not_achieved", False)


def test_the_report_says_itself_that_the_tools_were_not_called():
    draft = whole_report(
        tools=lambda d: d.heading("Function call", level=1).text("试了很多次，函数调用没有成功，模型直接回答。")
    )
    assert told(verdict(draft, "tool_calls")) == ("fail", "not_achieved", False)


def test_an_answer_without_a_call_is_not_achieved():
    draft = whole_report(
        tools=lambda d: d.heading("Function call", level=1).picture().completion(content="The result is 33.")
    )
    assert told(verdict(draft, "tool_calls")) == ("fail", "not_achieved", False)


def test_a_failure_that_was_mended_is_none():
    draft = whole_report(server_memory=lambda d: d.text("第一次启动报错，换成 0.4 之后的显存").picture().memory(11368))
    assert verdict(draft, "server_memory").status == "pass"


# ----------------------------------------------------------------------------------------------------- memory and card


def test_before_and_after_on_different_cards_contradict_each_other():
    draft = whole_report(server_memory=lambda d: d.text("服务的显存").picture().memory(17922, 40950), chat=nothing)
    assert told(verdict(draft, "same_card")) == ("fail", "contradiction", False)


def test_a_percentage_that_does_not_fit_is_for_a_person():
    draft = whole_report(server_memory=lambda d: d.text("服务的显存").picture().memory(8368, percent=46.28))
    assert told(verdict(draft, "server_memory")) == ("unknown", "", True)


def test_a_process_that_holds_more_than_the_card_is_for_a_person():
    draft = whole_report(server_memory=lambda d: d.text("服务的显存").picture().memory(5893).processes(20189))
    assert told(verdict(draft, "server_memory")) == ("unknown", "", True)


def test_one_picture_for_two_steps_is_for_a_person():
    from dataclasses import replace

    draft = whole_report()
    before, after = (n for n, each in enumerate(draft.readings) if getattr(each, "used_mib", 0) in (20616, 11172))
    same = draft.readings[before].place.picture
    draft.readings[after] = replace(draft.readings[after], place=replace(draft.readings[after].place, picture=same))
    assert told(verdict(draft, "w4a16_memory")) == ("unknown", "", True)


def test_a_server_without_a_kv_policy_takes_the_place_of_a_chat():
    def chat(d):
        d.heading("量化后").fence(f"lmdeploy serve api_server {MADE} --model-format awq").text("显存").picture().memory(
            19979
        )

    assert "19979" in verdict(whole_report(chat=chat), "w4a16_memory").reason


def test_a_doubtful_total_accuses_nobody():
    draft = whole_report(
        server_memory=lambda d: d.text("服务的显存").picture().memory(17922, 40950, doubt="misread"), chat=nothing
    )
    assert verdict(draft, "same_card").status == "unknown"


def test_less_memory_than_the_weights_is_impossible():
    draft = whole_report(
        baseline=lambda d: d.heading("量化前").fence(f"lmdeploy chat {MODEL}").text("显存").picture().memory(2100)
    )
    assert told(verdict(draft, "memory_prediction")) == ("fail", "impossible", False)


def test_a_figure_of_another_ratio_than_the_commands_contradicts_it():
    def serve(d):
        d.heading("启动服务").picture().command(
            f"lmdeploy serve api_server {MADE} --quant-policy 4 --cache-max-entry-count 0.2"
        )
        d.log("listening", port=23333)

    draft = whole_report(
        baseline=nothing,
        chat=nothing,
        serve=serve,
        server_memory=lambda d: d.text("服务的显存").picture().memory(20100),
    )
    assert told(verdict(draft, "memory_prediction")) == ("fail", "contradiction", False)


def test_a_figure_that_fits_another_command_of_the_report_is_for_a_person():
    draft = whole_report(server_memory=lambda d: d.text("服务的显存").picture().memory(20100))
    assert told(verdict(draft, "memory_prediction")) == ("unknown", "", True)


def test_more_memory_may_be_another_process():
    draft = whole_report(server_memory=lambda d: d.text("服务的显存").picture().memory(15900).processes(11300, 4500))
    assert told(verdict(draft, "memory_prediction")) == ("unknown", "", True)


@pytest.mark.parametrize(
    ("total", "before", "after"), [(24566, 20616, 11368), (40950, 33722, 17922), (81920, 66498, 34310)]
)
def test_any_card_has_its_own_right_figures(total, before, after):
    draft = whole_report(
        baseline=lambda d: (
            d.heading("量化前").fence(f"lmdeploy chat {MODEL}").text("显存").picture().memory(before, total)
        ),
        chat=nothing,
        server_memory=lambda d: d.text("服务的显存").picture().memory(after, total),
    )
    assert verdict(draft, "memory_prediction").status == "pass"


def test_kv_bits_do_not_change_the_expected_memory():
    def serve(d):
        d.heading("启动服务").picture().command(
            f"lmdeploy serve api_server {MADE} --quant-policy 8 --cache-max-entry-count 0.4"
        )

    assert verdict(whole_report(serve=serve), "memory_prediction").status == "pass"


def test_without_a_command_a_ratio_is_not_guessed():
    draft = Draft().heading("量化前").text("显存占用").picture().memory(20616)
    assert verdict(draft, "baseline_memory").status == "pass"
    assert verdict(draft, "memory_prediction").status == "unknown"


def test_of_several_cards_the_used_one_counts():
    def memory(d):
        d.text("服务的显存").picture().memory(3, 24566, gpu=0, kind="nvidia-smi").memory(
            11368, gpu=1, kind="nvidia-smi"
        )

    assert "11368" in verdict(whole_report(server_memory=memory), "server_memory").reason


# ----------------------------------------------------------------------------------------------------------- the sizes


def test_a_quantized_folder_smaller_than_its_weights_is_impossible():
    draft = whole_report(
        sizes=lambda d: (
            d.text("大小").picture().size("internlm2_5-1_8b-chat", "3.6G").size("internlm2_5-1_8b-chat-4bit", "0.9G")
        )
    )
    assert told(verdict(draft, "size_prediction")) == ("fail", "impossible", False)


def test_by_products_of_an_older_lmdeploy_are_borne_with():
    draft = whole_report(
        sizes=lambda d: (
            d.text("大小").picture().size("internlm2_5-1_8b-chat", "3.6G").size("internlm2_5-1_8b-chat-4bit", "1.7G")
        )
    )
    assert verdict(draft, "size_prediction").status == "pass"


def test_a_folder_with_more_in_it_is_for_a_person():
    draft = whole_report(
        sizes=lambda d: (
            d.text("大小").picture().size("internlm2_5-1_8b-chat", "7.1G").size("internlm2_5-1_8b-chat-4bit", "1.5G")
        )
    )
    assert told(verdict(draft, "size_prediction")) == ("unknown", "", True)


def test_a_link_of_no_size_is_not_the_model():
    def sizes(d):
        d.text("大小").picture().size("internlm2_5-1_8b-chat", "0.0G", low=0, high=0)
        d.size("internlm2_5-1_8b-chat-4bit", "1.5G").size("internlm2_5-1_8b-chat", "3.6G").size(
            "internlm2_5-7b-chat", "15G"
        )

    found = verdict(whole_report(sizes=sizes), "sizes")
    assert found.reason == "3.6G before and 1.5G after"


def test_the_sizes_of_a_seven_billion_model_fit():
    made = f"{SEVEN}-4bit"

    def quantize(d):
        d.heading("W4A16").picture().command(f"lmdeploy lite auto_awq {SEVEN} --work-dir {made}")

    def sizes(d):
        d.text("size").picture().size("internlm2_5-7b-chat", "15G").size("internlm2_5-7b-chat-4bit", "4.9G")

    assert verdict(whole_report(quantize=quantize, sizes=sizes), "size_prediction").status == "pass"


def test_one_size_alone_is_not_before_and_after():
    draft = whole_report(sizes=lambda d: d.text("大小").picture().size("internlm2_5-1_8b-chat-4bit", "1.5G"))
    assert told(verdict(draft, "sizes")) == ("unknown", "", True)


# ------------------------------------------------------------------------------------------------ one model all along


def test_a_baseline_of_another_model_contradicts():
    draft = whole_report(
        baseline=lambda d: d.heading("量化前").fence(f"lmdeploy chat {SEVEN}").text("显存").picture().memory(22848)
    )
    assert told(verdict(draft, "same_model")) == ("fail", "contradiction", False)


def test_function_calls_on_another_model_are_no_contradiction_of_the_first_task():
    def tools(d):
        d.heading("Task 2: function call", level=1).picture().command(
            f"lmdeploy serve api_server {SEVEN} --model-format hf --quant-policy 0"
        )
        d.log("listening", port=23333).picture()
        d.completion("add", '{"a": 1, "b": 2}', model=SEVEN).printed("3")
        d.completion("mul", '{"a": 3, "b": 5}', model=SEVEN, usage=(240, 50, 290)).printed("15")

    judged = whole_report(tools=tools).judged()
    wanted = ("same_model", "serve_command", "tools_server", "tools_model", "tool_calls", "tool_results", "flags_agree")
    assert {name: judged[name].status for name in wanted} == dict.fromkeys(wanted, "pass")


def test_a_served_folder_that_was_never_made_contradicts():
    def serve(d):
        d.heading("启动服务").picture().command(
            "lmdeploy serve api_server /root/other/some_model-awq --model-format awq --quant-policy 4"
        )

    assert told(verdict(whole_report(serve=serve, chat=nothing), "served_model_made")) == (
        "fail",
        "contradiction",
        False,
    )


def test_a_folder_that_was_moved_is_for_a_person():
    def serve(d):
        d.heading("启动服务").picture().command(f"mv {MADE} /root/some_model-awq")
        d.command("lmdeploy serve api_server /root/some_model-awq --model-format awq --quant-policy 4")

    assert told(verdict(whole_report(serve=serve), "served_model_made")) == ("unknown", "", True)


def test_underscores_that_ocr_loses_make_no_other_folder():
    def serve(d):
        d.heading("启动服务").picture().command(
            f"lmdeploy serve api_server {MADE.replace('_', '')} --model-format awq --quant-policy 4"
        )

    assert verdict(whole_report(serve=serve), "served_model_made").status == "pass"


# --------------------------------------------------------------------------------------------------------- the server


def test_a_server_without_a_kv_policy_is_not_what_was_asked():
    def serve(d):
        d.heading("启动服务").picture().command(
            f"lmdeploy serve api_server {MADE} --model-format awq --cache-max-entry-count 0.4"
        )

    assert told(verdict(whole_report(serve=serve), "serve_command")) == ("fail", "mistaken", False)


def test_a_command_that_is_cut_off_is_for_a_person():
    def serve(d):
        place = f"lmdeploy serve api_server {MADE} --model-format awq"
        d.heading("启动服务").picture().command(place)
        from dataclasses import replace

        d.readings[-1] = replace(d.readings[-1], text=f"{place} \\")

    assert told(verdict(whole_report(serve=serve), "serve_command")) == ("unknown", "", True)


@pytest.mark.parametrize("rest", ["--model-format", "--model-format awqz", "--model-format awq --qnt-plc4x 9"])
def test_a_command_that_ocr_garbled_is_for_a_person(rest):
    def serve(d):
        d.heading("启动服务").picture().command(f"lmdeploy serve api_server {MADE} {rest}")

    assert told(verdict(whole_report(serve=serve), "serve_command")) == ("unknown", "", True)


@pytest.mark.parametrize(
    "rest", ["--model-format awq--quant-policy 4", "--model-format awqquant-policy 4", "--quant-polcy 4"]
)
def test_what_ocr_ran_together_is_taken_apart(rest):
    def serve(d):
        d.heading("启动服务").picture().command(f"lmdeploy serve api_server {MADE} {rest}")

    assert verdict(whole_report(serve=serve), "serve_command").status == "pass"


def test_hints_before_the_port_is_taken_are_no_start():
    def serve(d):
        d.heading("启动服务").picture().command(f"lmdeploy serve api_server {MADE} --model-format awq --quant-policy 4")
        d.log("started", "HINT:    Please open http://0.0.0.0:23333 in a browser", port=23333)
        d.log("started", "INFO:     Application startup complete.")
        d.log("error", "ERROR: [Errno 98] error while attempting to bind on address: address already in use")

    draft = whole_report(serve=serve, conversation=nothing, server_memory=nothing)
    assert told(verdict(draft, "server_started")) == ("fail", "not_achieved", False)


def test_a_log_of_another_port_contradicts_its_command():
    def serve(d):
        d.heading("启动服务").picture().command(
            f"lmdeploy serve api_server {MADE} --quant-policy 4 --server-port 23333"
        )
        d.log("listening", "Uvicorn running on http://0.0.0.0:8000", port=8000)

    assert told(verdict(whole_report(serve=serve), "flags_agree")) == ("fail", "contradiction", False)


def test_gradio_on_its_own_port_contradicts_nothing():
    def conversation(d):
        d.text("网页").picture().command("lmdeploy serve gradio http://localhost:23333 --server-port 6006")
        d.log("listening", "* Running on local URL: http://0.0.0.0:6006", port=6006)
        d.picture().chat("hi", "hello")

    assert verdict(whole_report(conversation=conversation), "flags_agree").status == "pass"


def test_a_fence_and_the_picture_below_it_with_another_ratio_contradict():
    def serve(d):
        rest = f"lmdeploy serve api_server {MADE} --quant-policy 4 --cache-max-entry-count"
        d.heading("启动服务").fence(f"{rest} 0.4").picture().command(f"{rest} 0.8").log("listening", port=23333)

    assert told(verdict(whole_report(serve=serve), "flags_agree")) == ("fail", "contradiction", False)


def test_a_chat_in_the_terminal_is_no_conversation_with_the_server():
    def chat(d):
        d.heading("量化后的 chat").picture().command(
            f"lmdeploy chat {MADE} --model-format awq --cache-max-entry-count 0.4"
        )
        d.chat("hi", "hello", where="terminal").memory(11172)

    draft = whole_report(chat=chat, conversation=nothing)
    assert told(verdict(draft, "conversation")) == ("unknown", "", True)


def test_a_client_in_the_terminal_talks_with_the_server():
    def conversation(d):
        d.picture().command("lmdeploy serve api_client http://localhost:23333").chat("hi", "hello", where="terminal")

    assert verdict(whole_report(conversation=conversation), "conversation").status == "pass"


# ------------------------------------------------------------------------------------------------------ claims in prose


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("量化后文件减少了 2.1GB", "pass"),
        ("量化后文件减少 2.5GB", "fail"),
        ("The folder is 2.5 GB smaller", "fail"),
        ("The folder is about 2.2 GB smaller", "pass"),
        ("模型大小从 3.6G 变成 1.5G", "pass"),
        ("体积减少了 58%", "pass"),
        ("体积减少了 75%", "fail"),
        ("文件大小降到原来的 42%", "pass"),
        ("3.6 - 1.5 = 2.1", "pass"),
        ("3.6 - 1.5 = 2.5", "fail"),
        ("显存从 20616 MiB 降到 11368 MiB，少了 9248 MiB", "pass"),
        ("显存占用减少了约 9GB", "pass"),
        ("显存占用减少了 5GB", "fail"),
        ("VRAM went from 20.1 GiB to 11.1 GiB", "pass"),
        ("理论上文件应减少 2.7GB", "unknown"),
        ("训练用了 3 小时", "unknown"),
        ("KV cache 每个 token 减少 75% 的显存", "unknown"),
    ],
)
def test_a_claim_in_figures_is_compared_with_the_pictures(claim, expected):
    draft = whole_report(chat=nothing)
    draft.heading("Task 1", level=1).heading("小结").text(claim)
    assert verdict(draft, "prose_claims").status == expected


def test_text_of_the_tutorial_claims_nothing():
    draft = whole_report()
    draft.heading("Task 1", level=1).text("量化后文件减少 2.5GB")
    assert verdict(draft, "prose_claims", theirs=frozenset({len(draft.blocks) - 1})).status == "unknown"


# ------------------------------------------------------------------------------------------------------ function calls


def calls(*steps, section="Task 2: function call", before=""):
    def tools(d):
        d.heading(section, level=1)
        if before:
            d.text(before)
        d.picture()
        for name, arguments, printed, more in steps:
            d.completion(name, arguments, **more)
            if printed:
                d.printed(printed)

    return whole_report(tools=tools)


ADD, MUL = ("add", '{"a": 4, "b": 7}', "11", {}), ("mul", '{"a": 11, "b": 3}', "33", {"content": "11 it is"})


def test_a_wrong_result_contradicts_its_call():
    assert told(verdict(calls(ADD, ("mul", '{"a": 11, "b": 3}', "36", {})), "tool_results")) == (
        "fail",
        "contradiction",
        False,
    )


def test_a_second_call_that_does_not_follow_from_the_first_contradicts_it():
    second = ("mul", '{"a": 12, "b": 3}', "36", {"content": "The sum is 11."})
    assert told(verdict(calls(ADD, second), "tool_results")) == ("fail", "contradiction", False)


def test_two_calls_that_need_not_follow_are_for_a_person():
    second = ("mul", '{"a": 6, "b": 3}', "18", {})
    assert told(verdict(calls(ADD, second), "tool_results")) == ("unknown", "", True)


def test_the_expression_asked_for_tells_what_follows():
    second = ("mul", '{"a": 6, "b": 3}', "18", {})
    assert told(verdict(calls(ADD, second, before="计算 (4+7)*3"), "tool_results")) == ("fail", "contradiction", False)


def test_only_one_call_is_not_both():
    assert told(verdict(calls(ADD), "tool_calls")) == ("fail", "missing", False)


def test_a_call_that_cannot_be_read_is_not_called_missing():
    second = (None, "", "33", {"finish_reason": "tool_calls"})
    assert told(verdict(calls(ADD, second), "tool_calls")) == ("unknown", "", True)


def test_a_heading_above_the_whole_report_makes_it_no_second_task():
    draft = Draft().heading("量化部署与 function call 作业", level=1).heading("量化")
    draft.picture().command(f"lmdeploy lite auto_awq {MODEL} --work-dir {MADE}").text(
        "量化后的 chat 显存"
    ).picture().memory(11172)
    assert verdict(draft, "w4a16_memory").status == "pass"


def test_calls_that_cannot_be_read_are_shown_all_the_same():
    def tools(d):
        d.heading("任务二", level=1).picture()
        d.completion(None, "", finish_reason="tool_calls", doubt="the arguments of a call cannot be read").printed("11")

    judged = whole_report(tools=tools).judged()
    assert {judged[name].status for name in ("tool_calls", "tool_results", "tools_model")} == {"unknown"}


def test_a_prompt_after_the_output_is_no_result():
    draft = calls(ADD, ("mul", '{"a": 11, "b": 3}', "root@studio-27552:~# _", {}))
    assert told(verdict(draft, "tool_results")) == ("unknown", "", True)


def test_arguments_that_cannot_be_read_are_for_a_person():
    assert told(verdict(calls(ADD, ("mul", "{'a': 11, b", "33", {})), "tool_calls")) == ("unknown", "", True)


def test_numbers_written_as_text_are_numbers():
    assert verdict(calls(ADD, ("mul", '{"a": "11", "b": "3"}', "33", {})), "tool_calls").status == "pass"


def test_a_total_that_does_not_add_up_contradicts():
    found = verdict(calls(("add", '{"a": 4, "b": 7}', "11", {"usage": (200, 40, 250)}), MUL), "completion_counts")
    assert told(found) == ("fail", "contradiction", False)


def test_a_total_that_may_be_misread_is_for_a_person():
    more = {"usage": (200, 40, 250), "doubt": "a digit is blurred"}
    assert told(verdict(calls(("add", '{"a": 4, "b": 7}', "11", more), MUL), "completion_counts")) == (
        "unknown",
        "",
        True,
    )


def test_calls_of_another_model_than_the_text_says_contradict_it():
    found = verdict(
        calls(
            *[(*each[:3], {**each[3], "model": SEVEN}) for each in (ADD, MUL)],
            before="这里使用 1.8B 的模型进行函数调用。",
        ),
        "tools_model",
    )
    assert told(found) == ("fail", "contradiction", False)


def test_a_model_that_the_text_names_rightly_passes():
    assert verdict(calls(ADD, MUL, before="We use the 1.8B model here."), "tools_model").status == "pass"


def test_a_server_of_another_model_than_that_which_calls_contradicts():
    def tools(d):
        d.heading("Function call", level=1).picture().command(f"lmdeploy serve api_server {SEVEN}").picture()
        d.completion("add", '{"a": 4, "b": 7}', model="/root/models/internlm2_5-20b-chat").printed("11")

    assert told(verdict(whole_report(tools=tools), "tools_model")) == ("fail", "contradiction", False)


# ------------------------------------------------------------------------------------- a report with three wrong things


def test_three_wrong_things_among_right_ones_are_found_and_nothing_else():
    def tools(d):
        d.heading("任务2 函数调用", level=1).text("启动服务").picture().command(
            f"lmdeploy serve api_server {SEVEN} --model-format hf"
        )
        d.log("listening", port=23333).text("结果").picture()
        d.completion("add", '{"a": 2, "b": 9}', content="先算加法", model=SEVEN).printed("11")
        d.completion("mul", '{"a": 11, "b": 4}', content="和是 11", model=SEVEN, usage=(250, 50, 300)).printed("44")

    def baseline(d):
        d.text("W4A16 量化的对象是模型的权重与激活。").text("KV Cache 量化的对象是键和值。").text("两者都要做校准。")
        d.text("没有量化时 lmdepoly chat 占的显存").picture().memory(20616)

    def sizes(d):
        d.text("量化之后文件减小了 2.6GB：").picture()
        d.size("internlm2_5-1_8b-chat", "3.6G").size("internlm2_5-1_8b-chat-4bit", "1.5G")

    def chat(d):
        d.text("用 lmdeploy chat 验证，看显存").picture().memory(11172)

    d = whole_report(baseline=baseline, sizes=sizes, chat=chat, tools=tools)
    failed = {name for name, each in d.judged().items() if each.status == "fail"}
    assert failed == {"prose_claims", "understanding.weights_only", "understanding.kv_online"}


def test_the_three_wrong_things_are_mistakes_and_quoted():
    d = Draft().text("W4A16 量化的对象是模型的权重与激活。")
    found = verdict(d, "understanding.weights_only")
    assert (found.kind, found.places[0].quote) == ("mistaken", "W4A16 量化的对象是模型的权重与激活。")


def test_sentences_of_the_tutorial_are_not_the_students():
    d = Draft().text("两者都要做校准，KV cache 量化也一样。")
    assert verdict(d, "understanding.kv_online", theirs=frozenset({0})).status == "unknown"


def test_both_a_fact_and_its_opposite_are_for_a_person():
    d = Draft().text("KV cache 量化不需要校准。").text("两者都需要校准。")
    assert told(verdict(d, "understanding.kv_online")) == ("unknown", "", True)


# --------------------------------------------------------------------------------------- checks that need no picture


def test_a_check_that_needs_no_picture_sees_the_reports_words_alone():
    d = whole_report().text("W4A16 只量化权重，激活保持 16 位。两者都需要校准。")
    facts = d.facts()
    words = SimpleNamespace(report=facts.report, said=said_of(facts.report, frozenset()))
    words.place = partial(ReportFacts.place, words)
    of_text = [each for each in CHECKS if not each.pictures]
    assert {each.id.split(".")[1] for each in of_text} == {"understanding"}
    assert [judged(each, words) for each in of_text] == [judged(each, facts) for each in of_text]


@pytest.mark.parametrize(
    ("checks", "read"),
    [
        (("report.understanding",), 0),
        (("report.understanding.kv_online", "report.understanding.difference"), 0),
        (("report.understanding", "report.sizes"), 2),
        (("report.prose_claims",), 2),
        (("report.u", "report.t"), 2),
        ((), 2),
    ],
)
def test_pictures_are_read_if_one_of_the_checks_needs_them(tmp_path, checks, read):
    for name, shade in (("a", 0), ("b", 255)):
        Image.new("L", (40, 30), shade).save(tmp_path / f"{name}.png")
    (tmp_path / "report.md").write_text("![](a.png)\n\nKV cache 量化不需要校准。\n\n![](b.png)\n\n![](a.png)\n")
    looked = []

    def recognise(path, *, digest):
        looked.append(path.name)
        return Recognised(digest=digest, width=40, height=30, lines=())

    report = read_report(tmp_path)
    task = Task(path=tmp_path, name="a", folder=tmp_path / "out")
    graded, _ = judge_one(report, task, Plan(checks=checks), replace(own_steps(), recognise=recognise))
    assert len(looked) == read
    assert {each.id: each.status for each in graded.judged}.get("report.understanding.kv_online", "pass") == "pass"
