"""Figures, claims and sums in prose; names of models; commands as OCR writes them; the words around a picture."""

import shlex

import pytest

from lab3.reports.facts_commands import lab_command
from lab3.reports.facts_models import model_name, same_folder, weight_mib
from lab3.reports.model import CommandSeen, Place
from lab3.reports.numbers import claims_in, figures_in, sums_in
from lab3.reports.rubric import CHECKS
from tests.report_literals import Draft


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("减少2.5GB的文件大小", [("less", "2.5GB")]),
        ("2.5 GB smaller", [("less", "2.5 GB")]),
        ("从 3.6G 变成 1.5G", [("from_to", "3.6G")]),
        ("size dropped from 3.6 GB to 1.5 GB, a reduction of 58%", [("from_to", "3.6 GB"), ("less", "58%")]),
        ("about 42% of the old size", [("share", "42%")]),
        ("降到原来的 42%", [("share", "42%")]),
        ("节省了约９GB显存", [("less", "9GB")]),
        ("体积降到1.5G", []),
        ("显存占用 11368 MiB", []),
        ("用了 24GB 的显卡", []),
        ("W4A16 与 INT8", []),
    ],
)
def test_the_changes_that_a_sentence_claims(text, expected):
    assert [(each.kind, each.figure.text) for each in claims_in(text)] == expected


def test_about_makes_a_figure_loose():
    assert [each.loose for each in figures_in("约 2.1GB 与 3.6GB")] == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        "3.6 - 1.5 = 2.1", "3.6G－1.5G＝2.1G", "1-1.5/3.6=58%", "(3+5)*2=16", "3+5*2=16", "20616/24566=83.92%",
        "24*0.8=19.2GB", "(24-3.6)*0.8=16.3G", "3.6+20.4*0.8=19.9", "11368 / 24566 ≈ 46%", "1.8×2=3.6GB",
    ],
)  # fmt: skip
def test_a_right_sum_is_right(text):
    assert [each.right for each in sums_in(text)] == [True]


@pytest.mark.parametrize("text", ["3.6 - 1.5 = 2.5", "3.6G-1.5G=2.5G", "1-1.5/3.6=42%", "6*7=43", "20616/24566=73.92%"])
def test_a_wrong_sum_is_wrong(text):
    assert [each.right for each in sums_in(text)] == [False]


@pytest.mark.parametrize("text", ["2^3=8", "2024-11-29=x", "--tp=1", "ratio=0.4", "a-b=3", "v0.6.1-2=3.4.5", "10/0=5"])
def test_what_is_no_sum_is_none(text):
    assert sums_in(text) == ()


@pytest.mark.parametrize(
    ("name", "size", "quantized"),
    [
        ("/root/model/internlm2_5-1_8b-chat-w4a16-4bit", "1.8b", True),
        ("internlm2 5-1 8b-chat", "1.8b", False),
        ("internlm2_5-7b-chat", "7b", False),
        ("InternLM2.5-20B-chat-AWQ", "20b", True),
        ("./work_dir", "", False),
    ],
)
def test_what_a_models_name_tells(name, size, quantized):
    found = model_name(name)
    assert (found.size, found.quantized) == (size, quantized)


def test_the_weights_of_the_labs_model_are_the_measured_ones():
    model = model_name("internlm2_5-1_8b-chat")
    assert [round(weight_mib(model, quantized=each)) for each in (False, True)] == [3603, 1471]


def test_a_model_of_another_family_has_no_known_weights():
    assert weight_mib(model_name("Qwen2.5-7B-Instruct"), quantized=False) is None


def test_names_that_ocr_writes_without_underscores_are_the_same():
    assert same_folder("/a/internlm2_5-1_8b-chat", "internlm25-18b-chat", read=True)


def test_names_of_other_sizes_are_not_the_same():
    assert not same_folder("internlm2_5-1_8b-chat", "internlm2_5-7b-chat", read=True)


def command(text):
    return lab_command(CommandSeen(text=text, argv=tuple(shlex.split(text)), place=Place(block=0, quote=text)), order=0)


RATIO = "--cache-max-entry-count 0.4"


@pytest.mark.parametrize(
    "text",
    [
        f"lmdeploy serve api_server /m/a-4bit --model-format awq --quant-policy 4 {RATIO} --server-port 8000",
        f"lmdeploy serve api_server --model-format=awq --quant-policy=4 {RATIO} --server-port=8000 /m/a-4bit",
        "lmdeploy serve api_server /m/a-4bit --model_format awq --quant_policy 4 --cache_max_entry_count 0.4"
        " --server_port 8000",
        f"CUDA_VISIBLE_DEVICES=0 lmdeploy serve api_server /m/a-4bit —model-format awq —quant-policy4 {RATIO}"
        " --server-port 8000",
        f"lmdeploy serve api-server /m/a-4bit --model-format awq --quant-policy 4 {RATIO} --server-port 8000",
    ],
)
def test_flags_are_read_however_they_are_written(text):
    found = command(text)
    assert found.kind == "serve"
    assert (found.model.text, found.model_format, found.kv_policy, found.ratio, found.port) == (
        "/m/a-4bit",
        "awq",
        4,
        0.4,
        8000,
    )


def test_a_quantization_is_read():
    found = command("lmdeploy lite auto_awq /m/a --calib-dataset ptb --search-scale False --w-bits 4 --work-dir /m/b")
    assert (found.kind, found.method, found.model.text, found.w_bits, found.work_dir) == (
        "quantize",
        "auto_awq",
        "/m/a",
        4,
        "/m/b",
    )


def test_a_command_that_goes_on_is_cut():
    assert lab_command(
        CommandSeen(text="lmdeploy chat /m/a \\", argv=("lmdeploy", "chat", "/m/a"), place=Place(block=0, quote="")),
        order=0,
    ).cut


@pytest.mark.parametrize(
    ("words", "step"),
    [
        ("量化前的显存", "baseline"),
        ("未量化模型占用", "baseline"),
        ("VRAM of the original model", "baseline"),
        ("unquantized, lmdeploy chat", "baseline"),
        ("量化后用 lmdeploy chat 看显存", "w4a16_chat"),
        ("VRAM of the quantized model in lmdeploy chat", "w4a16_chat"),
        ("量化后启动 api_server 的显存", "server"),
        ("W4A16 + KV cache int4 的服务显存", "server"),
    ],
)
def test_the_words_beside_a_figure_tell_its_step(words, step):
    (found,) = Draft().text(words).picture().memory(12000).facts().memory
    assert found.step == step


def test_a_figure_without_words_follows_the_command_before_it():
    draft = Draft().picture().command("lmdeploy serve api_server /m/internlm2_5-1_8b-chat-4bit --quant-policy 4")
    (found,) = draft.picture().memory(12000).facts().memory
    assert found.step == "server"


def test_a_figure_before_the_quantization_is_the_baseline():
    draft = (
        Draft()
        .picture()
        .memory(20616)
        .picture()
        .command("lmdeploy lite auto_awq /m/internlm2_5-1_8b-chat --work-dir /m/b")
    )
    (found,) = draft.facts().memory
    assert found.step == "baseline"


def test_the_points_of_the_rubric_are_a_hundred():
    assert sum(check.points for check in CHECKS) == 100


def test_every_check_has_an_id_of_its_own():
    assert len({check.id for check in CHECKS}) == len(CHECKS)


def test_every_check_is_named_in_both_languages():
    assert all(check.title.isascii() and not check.title_zh.isascii() for check in CHECKS)
