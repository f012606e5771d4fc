"""From a student's commands to the server that lab3 starts, and what an older LMDeploy took."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab3.errors import UsageError
from lab3.grading.serve_command import server_spec
from lab3.hub import ServerSpec
from tests.unit.test_serve_command import LAB, QUANTIZE, quantize, read, serve, told

MODEL = Path("/models/w4a16")

# --- older LMDeploys ----------------------------------------------------------------------------------------------


def test_the_labs_quantization_is_of_an_older_lmdeploy_and_no_typo():
    command = quantize(QUANTIZE)

    assert told(command) == [
        ("old", 2, "--calib-dataset ptb", ""),
        ("old", 3, "--search-scale False", ""),
    ]
    assert "of an older LMDeploy (up to 0.6.4); today: --calib-dataset wikitext2" in str(command.problems[0])
    assert (command.w_bits, command.group_size, command.samples, command.seqlen) == (4, 128, 128, 2048)
    assert (command.model, command.work_dir) == ("/root/models/chat-1_8b", "/root/models/chat-1_8b-w4a16-4bit")
    assert (command.batch_size, command.search_scale) == (1, False)


def test_todays_quantization_works():
    text = QUANTIZE.replace("ptb", "wikitext2").replace("--search-scale False", "--search-scale")

    assert quantize(text).works
    assert quantize(text).search_scale


@pytest.mark.parametrize(
    "words", ["--cap chat", "--meta-instruction 'be kind'", "--instance_num 8", "--model-format llama"]
)
def test_flags_that_are_gone_are_not_called_typos(words: str):
    command = serve(f"lmdeploy serve api_server m {words}")

    assert [kind for kind, *_ in told(command)] == ["old"]
    assert not command.works


@pytest.mark.parametrize("text", ["lmdeploy serve gradio http://localhost:23333", "lmdeploy convert internlm2 m"])
def test_commands_that_are_gone_are_told_and_serve_nothing(text: str):
    found = read(text)

    assert found.serve == ()
    assert [problem.kind for problem in found.others[0].problems] == ["old"]


# --- the server that lab3 starts ----------------------------------------------------------------------------------


def test_the_labs_server_is_started_with_what_it_says_and_nothing_else():
    assert server_spec(serve(LAB), model_folder=MODEL, gpu=False) == ServerSpec(
        model=str(MODEL), kv_bits=4, cache_ratio=0.4, tool_call_parser="internlm"
    )


def test_sizes_and_a_tool_parser_are_the_students():
    text = "lmdeploy serve api_server m --session-len 4096 --max-batch-size 8 --tool-call-parser qwen"
    spec = server_spec(serve(text), model_folder=MODEL, gpu=False)

    assert (spec.session_len, spec.max_batch_size, spec.tool_call_parser) == (4096, 8, "qwen")


@pytest.mark.parametrize(("gpu", "engine"), [(True, "pytorch"), (False, "auto")])
def test_the_students_engine_needs_a_gpu(gpu: bool, engine: str):
    command = serve("lmdeploy serve api_server m --backend pytorch")

    assert server_spec(command, model_folder=MODEL, gpu=gpu).engine == engine


@pytest.mark.parametrize(
    "words",
    [
        "--trust-remote-code",
        "--tp 2",
        "--proxy-url http://10.0.0.1:8000",
        "--ssl",
        "--api-keys secret",
        "--chat-template ./mine.json",
        "--download-dir /etc",
        "--session-len 9999999999",
        "--max-batch-size 0",
    ],
)
def test_a_flag_that_is_not_allowed_is_left_out_and_told(words: str):
    command = serve(f"lmdeploy serve api_server m {words}")

    assert command.works, "LMDeploy itself takes it"
    assert [problem.severity for problem in command.problems] == ["refused"]
    assert words.split()[0] in str(command.problems[0])
    assert server_spec(command, model_folder=MODEL, gpu=False) == ServerSpec(model=str(MODEL))


@pytest.mark.parametrize(
    "words",
    [
        "--adapters ./lora",
        "--hf-overrides {}",
        "--speculative-algorithm eagle",
        "--quant-policy 42",
        "--cache-max-entry-count 0",
        "--cache-max-entry-count nan",
    ],
)
def test_a_server_that_lab3_does_not_start_is_the_commands_fault(words: str):
    command = serve(f"lmdeploy serve api_server m {words}")

    assert [problem.severity for problem in command.problems] == ["unusable"]
    with pytest.raises(UsageError, match="does not start") as caught:
        server_spec(command, model_folder=MODEL, gpu=False)
    assert words.split()[0] in caught.value.why


def test_host_and_port_are_never_the_students():
    command = serve("lmdeploy serve api_server m --server-name 10.0.0.7 --server-port 80")

    assert (command.host, command.port) == ("10.0.0.7", 80)
    assert not {"host", "port"} & set(vars(server_spec(command, model_folder=MODEL, gpu=False)))
