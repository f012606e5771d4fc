"""Commands at prompts, logs, printed answers, conversations and code."""

import json

from lab3.reports.model import (
    ChatSeen,
    CodeSeen,
    CommandSeen,
    CompletionSeen,
    LogLine,
    Printed,
    Reading,
    Recognised,
    TextLine,
)
from lab3.reports.screens import read_screen, read_text

MESSAGE = (
    "ChatCompletion(id='1', choices=[Choice(finish_reason='tool_calls', index=0, logprobs=None, "
    "message=ChatCompletionMessage(content='First the sum.', refusal=None, role='assistant', function_call=None, "
    "tool_calls=[ChatCompletionMessageToolCall(id='0', function=Function(arguments='{\"a\": 12, \"b\": 9}', "
    "name='add'), type='function')]))], created=1732864148, "
    "model='/root/models/internlm2_5-7b-chat', object='chat.completion', "
    "service_tier=None, usage=CompletionUsage(completion_tokens=40, prompt_tokens=263, total_tokens=303))"
)


BUBBLES = [(800, 20, 980, 40), (20, 80, 700, 100), (20, 110, 300, 130), (20, 300, 200, 320), (300, 400, 400, 420)]


def wrapped(text: str, width: int = 90) -> list[str]:
    return [text[start : start + width] for start in range(0, len(text), width)]


def screen(*lines: str, boxes: list[tuple[int, int, int, int]] | None = None) -> tuple[Reading, ...]:
    places = boxes or [(0, 20 * at, 9 * len(text), 20 * at + 18) for at, text in enumerate(lines)]
    rows = tuple(TextLine(text, box, 0.98) for text, box in zip(lines, places, strict=True))
    return read_screen(Recognised(digest="d" * 64, width=1000, height=900, lines=rows), block=1)


def of(kind, readings):
    return [each for each in readings if isinstance(each, kind)]


def test_a_picture_without_text_shows_nothing():
    assert screen() == ()


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_command_goes_on_after_backslashes_though_a_mark_is_misread():
    readings = screen(
        "O (lmdeploy) root@intern-studio-1:~# lmdeploy serve api_server \\",
        "V     /root/models/awq \\",
        ">     --quant-policy 4",
        "INFO:     Uvicorn running on http://0.0.0.0:23333 (Press CTRL+C to quit)",
    )
    (command,) = of(CommandSeen, readings)
    assert command.argv == ("lmdeploy", "serve", "api_server", "/root/models/awq", "--quant-policy", "4")
    assert command.at_prompt
    assert command.place.box == (0, 0, 576, 58)


def test_a_prompt_tells_the_folder():
    (command,) = of(CommandSeen, screen("●(base) root@dev-1:~/model#du -sh *"))
    assert (command.argv, command.folder) == (("du", "-sh", "*"), "~/model")


def test_a_command_cut_at_the_edge_of_the_terminal_is_one():
    long = "root@dev:~# lmdeploy chat /root/models/internlm2_5-1_8b-chat-w4a16-4bit --model-format awq"
    (command,) = of(CommandSeen, screen(long[:60], long[60:]))
    assert command.argv[-2:] == ("--model-format", "awq")


def test_a_command_cut_before_a_space_is_one():
    first = "wei@ubuntu:~$ lmdeploy serve api_server /home/wei/llm/internlm2_5-1_8b-chat-awq --model-format"
    (command,) = of(CommandSeen, screen(first, " awq --quant-policy 8"))
    assert command.argv[-4:] == ("--model-format", "awq", "--quant-policy", "8")


def test_a_backslash_that_ocr_takes_for_a_figure_is_one_where_the_shell_goes_on():
    (command,) = of(CommandSeen, screen("li@srv:~$ lmdeploy serve api_server \\", ">    /models/awq 1", ">    --tp 1"))
    assert command.argv == ("lmdeploy", "serve", "api_server", "/models/awq", "--tp", "1")


def test_the_arrow_of_oh_my_zsh_is_a_prompt_however_it_is_read():
    (command,) = of(CommandSeen, screen("→  ~ CUDA_VISIBLE_DEVICES=1 lmdeploy lite auto_awq /models/chat"))
    assert command.argv == ("lmdeploy", "lite", "auto_awq", "/models/chat")


def test_a_name_that_ocr_misspells_in_a_known_way_is_put_right():
    (command,) = of(CommandSeen, screen("root@dev:~# imdeploy chat /root/internlm2 5-1 8b-chat-w4al6-4bit"))
    assert command.argv == ("lmdeploy", "chat", "/root/internlm2_5-1_8b-chat-w4a16-4bit")


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_server_that_listens_tells_its_port():
    (line,) = of(LogLine, screen("INFO:     Uvicorn running on http://0.0.0.0:23333 (Press CTRL+C to quit)"))
    assert (line.event, line.port) == ("listening", 23333)


def test_errors_are_told_from_harmless_lines():
    text = (
        "WARNING: errors are ignored\ntorch.cuda.OutOfMemoryError: CUDA out of memory.\n"
        "lmdeploy: error: unrecognized arguments: --calib-dataset\nOSError: [Errno 98] Address already in use\nKilled"
    )
    events = [each.event for each in of(LogLine, read_text(text, block=0, line=1))]
    assert events == ["out_of_memory", "error", "error", "killed"]


def test_a_quantization_is_followed_from_layer_to_packed_weight():
    text = (
        "Move model.layers.0 to CPU.\nmodel.layers.0, samples: 128, max gpu memory: 5.06 GB\n"
        "model.layers.0.attention.wo weight packed."
    )
    assert [each.event for each in of(LogLine, read_text(text, block=0, line=1))] == [
        "quantizing",
        "quantizing",
        "quantized",
    ]


# --- printed answers --------------------------------------------------------------------------------------------------


def test_an_answer_cut_into_lines_is_read_whole():
    readings = screen("root@dev:~# python demo.py", *wrapped(MESSAGE), "21")
    (answer,) = of(CompletionSeen, readings)
    assert [(call.name, json.loads(call.arguments)) for call in answer.tool_calls] == [("add", {"a": 12, "b": 9})]
    assert (answer.prompt_tokens, answer.completion_tokens, answer.total_tokens) == (263, 40, 303)
    assert (answer.id, answer.created, answer.finish_reason) == ("1", 1732864148, "tool_calls")
    assert (answer.content, answer.complete, answer.doubt) == ("First the sum.", True, "")
    assert [each.text for each in of(Printed, readings)] == ["21"]


def test_brackets_that_ocr_misreads_do_not_hide_the_fields():
    (answer,) = of(CompletionSeen, screen(*wrapped(MESSAGE.replace("]))]", "j))i"))))
    assert (answer.total_tokens, len(answer.tool_calls), answer.doubt) == (303, 1, "")


def test_arguments_that_ocr_breaks_are_a_doubt():
    (answer,) = of(CompletionSeen, screen(*wrapped(MESSAGE.replace('{"a": 12', "{a' 12"))))
    assert "arguments" in answer.doubt


def test_arguments_that_a_report_writes_broken_are_no_doubt():
    (answer,) = of(CompletionSeen, read_text(MESSAGE.replace('{"a": 12', "{a: 12"), block=0, line=1))
    assert (answer.doubt, answer.tool_calls[0].arguments) == ("", '{a: 12, "b": 9}')


def test_an_answer_cut_off_by_the_picture_is_not_complete():
    (answer,) = of(CompletionSeen, screen(*wrapped(MESSAGE)[:3]))
    assert (answer.complete, answer.total_tokens) == (False, None)


def test_the_end_of_an_answer_without_its_beginning_is_not_complete():
    (answer,) = of(CompletionSeen, screen(*wrapped(MESSAGE)[3:]))
    assert (answer.complete, answer.total_tokens) == (False, 303)


def test_two_answers_with_their_results_keep_their_order():
    readings = screen(*wrapped(MESSAGE), "21", *wrapped(MESSAGE.replace("name='add'", "name='mul'")), "84")
    kinds = [type(each).__name__ for each in readings]
    assert kinds == ["CompletionSeen", "Printed", "CompletionSeen", "Printed"]


def test_json_of_curl_is_read_too():
    body = {
        "id": "7",
        "object": "chat.completion",
        "model": "internlm2",
        "choices": [{"message": {"role": "assistant", "content": "你好"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    (answer,) = of(CompletionSeen, read_text(json.dumps(body, ensure_ascii=False, indent=2), block=0, line=1))
    assert (answer.content, answer.model, answer.total_tokens) == ("你好", "internlm2", 7)


def test_code_that_names_the_class_is_no_answer():
    assert of(CompletionSeen, read_text("from openai.types.chat import ChatCompletion", block=0, line=1)) == []


# --- conversations and code -------------------------------------------------------------------------------------------


def test_a_page_with_bubbles_tells_prompt_and_answer_without_its_controls():
    (chat,) = of(
        ChatSeen,
        screen(
            "介绍一下你自己",
            "我是一个由上海人工智能实验室开发的语言模型，",
            "很高兴见到你。",
            "Instruction",
            "Cancel",
            boxes=BUBBLES,
        ),
    )
    assert (chat.prompt, chat.where) == ("介绍一下你自己", "page")
    assert chat.answer == "我是一个由上海人工智能实验室开发的语言模型，很高兴见到你。"


def test_a_chat_in_a_terminal_tells_prompt_and_answer():
    text = (
        "double enter to end input >>> 介绍一下你自己\n\n<|im_start|>user\n介绍一下你自己<|im_end|>\n"
        "<|im_start|>assistant\n我是书生。\n\ndouble enter to end input >>> exit"
    )
    (chat,) = of(ChatSeen, read_text(text, block=0, line=1))
    assert (chat.prompt, chat.answer, chat.where) == ("介绍一下你自己", "我是书生。", "terminal")


def test_a_terminal_is_no_page():
    assert of(ChatSeen, screen("root@dev:~# du -sh *", "3.6G    internlm2_5-1_8b-chat", "INFO:  started")) == []


def test_an_editor_shows_code_without_its_line_numbers():
    (code,) = of(
        CodeSeen,
        screen(
            "55   client = OpenAI(api_key='YOUR_API_KEY', base_url='http://0.0.0.0:23333/v1')",
            "56   model_name = client.models.list().data[0].id",
            "57   response = client.chat.completions.create(",
            "58       model=model_name,",
            "59       tools=tools)",
            "60   print(response)",
        ),
    )
    assert code.text.startswith("client = OpenAI(")
    assert "\n    model=model_name," in code.text


def test_what_a_program_printed_beside_a_prompt_is_no_command_and_no_prompt():
    readings = screen("root@dev:~# python add.py", "the sum is 8", "root@dev:~#")
    assert [each.text for each in of(Printed, readings)] == ["the sum is 8"]


def test_a_misread_question_of_lmdeploy_chat_is_one_and_a_cursor_is_none():
    readings = screen(
        "doubie enter to end input >>> Name two planets.", "Mars and Venus.", "double enter to end input >>> _"
    )
    (turn,) = of(ChatSeen, readings)
    assert (turn.prompt, turn.answer) == ("Name two planets.", "Mars and Venus.")
