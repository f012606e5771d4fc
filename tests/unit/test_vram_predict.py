"""Memory is told before a server starts: real readings are met; what was never read is a range, no false point."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from lab3 import cli
from lab3.errors import UsageError
from lab3.models import read_config
from lab3.nvml import MIB
from lab3.vram_predict import Prediction, VramReading, fit, parse_reading, predict, predict_model_bytes
from tests.unit.test_models import write_safetensors

BF16, W4A16 = 3603, 1471  # MiB of InternLM2.5-1.8B

INTERNLM_1_8B = {
    "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "hidden_size": 2048, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 92544,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
INTERNLM_7B = INTERNLM_1_8B | {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336
}  # fmt: skip
SMOLLM2 = INTERNLM_1_8B | {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


def awq(group_size: int = 128) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True}}


def model(folder: Path, config: dict[str, Any], **changes: Any) -> Path:
    """A folder that holds nothing but a config.json."""
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def foretell(**changes: Any) -> Prediction:
    """The lab's quantized model on the slice of an A100, unless told otherwise."""
    if "model" not in changes:
        changes = {"weights_mib": W4A16, **changes}
    asked = {"total_mib": 24566, "ratio": 0.4, "kv_bits": 4, "engine": "turbomind", "lmdeploy": "0.6.4", **changes}
    return predict(**asked)


# --- readings


@pytest.mark.parametrize(
    ("lmdeploy", "engine", "total_mib", "weights_mib", "ratio", "used_mib"),
    [
        ("0.6.4", "turbomind", 24566, BF16, 0.8, 20616),
        ("0.6.4", "turbomind", 24566, W4A16, 0.4, 11368),
        ("0.6.4", "turbomind", 40950, BF16, 0.8, 33744),  # this and the next two: the constants do not know them
        ("0.6.4", "turbomind", 40950, W4A16, 0.4, 17924),
        ("0.6.4", "turbomind", 24566, BF16, 0.4, 12616),
        ("0.18.0", "turbomind", 81559, BF16, 0.8, 66447),
        ("0.18.0", "turbomind", 81559, W4A16, 0.4, 34607),
        ("0.18.0", "pytorch", 81559, W4A16, 0.4, 34075),
    ],
)
def test_what_nvidia_smi_showed_is_predicted_within_a_percent(
    lmdeploy: str, engine: str, total_mib: int, weights_mib: int, ratio: float, used_mib: int
):
    told = foretell(lmdeploy=lmdeploy, engine=engine, total_mib=total_mib, weights_mib=weights_mib, ratio=ratio)
    assert told.used.point == pytest.approx(used_mib, rel=0.01)


@pytest.mark.parametrize(("quantized", "used_mib"), [({}, 19428), (awq(), 13578)], ids=["bf16", "w4a16"])
def test_the_7b_model_is_predicted_from_its_shape(tmp_path: Path, quantized: dict[str, Any], used_mib: int):
    told = foretell(model=model(tmp_path, INTERNLM_7B | quantized))
    assert told.used.point == pytest.approx(used_mib, rel=0.02)


def test_a_bf16_server_of_another_model_on_the_h100_is_predicted_too(tmp_path: Path):
    """`lab3 run` on the embedded model (bench/RESULTS.md), which no constant was solved from."""
    told = foretell(model=model(tmp_path, SMOLLM2), total_mib=81559, ratio=0.8, lmdeploy="0.18.0", kv_bits=16)
    assert told.used.point == pytest.approx(65504, rel=0.01)


def test_the_pytorch_engine_holds_as_many_tokens_as_it_said(tmp_path: Path):
    """From the same run. Without what the engine reserves for logits, it would be 2% more."""
    folder = model(tmp_path, SMOLLM2 | awq(64))
    told = foretell(model=folder, total_mib=81559, lmdeploy="0.18.0", engine="pytorch")
    assert told.used.point == pytest.approx(33902, rel=0.01)
    assert told.kv_tokens.point == pytest.approx(5_094_144, rel=0.01)


@pytest.mark.parametrize(
    ("quantized", "ratio", "kv_bits", "used_mib", "tokens"),
    [(awq(), 0.4, 4, 34540, 1_209_408), ({}, 0.8, 16, 64744, 634_112)],
    ids=["w4a16", "bf16"],
)
def test_the_pytorch_engine_takes_more_with_awq_weights(
    tmp_path: Path, quantized: dict[str, Any], ratio: float, kv_bits: int, used_mib: int, tokens: int
):
    """Two servers of the 1.8B on an H100 of which another process held 619 MiB."""
    told = foretell(
        model=model(tmp_path, INTERNLM_1_8B | quantized), total_mib=81559, foreign_mib=619, ratio=ratio,
        kv_bits=kv_bits, lmdeploy="0.18.0", engine="pytorch",
    )  # fmt: skip
    assert told.used.point == pytest.approx(used_mib, abs=2)
    assert told.kv_tokens.point == pytest.approx(tokens, abs=64)


@pytest.mark.parametrize(
    ("quantized", "ratio", "kv_bits", "used_mib", "tokens"),
    [
        (awq(), 0.4, 16, 35134, 325_248),
        (awq(), 0.4, 8, 35134, 620_800),
        (awq(), 0.4, 4, 35134, 1_241_600),
        ({}, 0.8, 16, 66686, 637_056),
    ],
)
def test_turbomind_held_the_memory_and_the_tokens_that_are_predicted(
    tmp_path: Path, quantized: dict[str, Any], ratio: float, kv_bits: int, used_mib: int, tokens: int
):
    """Four servers on the same card; no constant was solved from them."""
    told = foretell(
        model=model(tmp_path, INTERNLM_1_8B | quantized), total_mib=81559, foreign_mib=619, ratio=ratio,
        kv_bits=kv_bits, lmdeploy="0.18.0", engine="turbomind",
    )  # fmt: skip
    assert told.used.point == pytest.approx(used_mib, rel=0.005)
    assert told.kv_tokens.point == pytest.approx(tokens, rel=0.005)


# --- weights and tokens


def test_the_1_8b_shape_has_its_parameters_and_measured_sizes(tmp_path: Path):
    plain, packed = read_config(model(tmp_path, INTERNLM_1_8B)), read_config(model(tmp_path, INTERNLM_1_8B | awq()))
    assert predict_model_bytes(plain) == 2 * 1_889_110_016
    assert predict_model_bytes(plain) / MIB == pytest.approx(BF16, abs=1)
    assert predict_model_bytes(packed) / MIB == pytest.approx(W4A16, abs=1)


def test_tied_embeddings_are_held_once(tmp_path: Path):
    config = read_config(model(tmp_path, SMOLLM2))
    assert predict_model_bytes(config) == 2 * 134_515_008  # what the hub says of SmolLM2-135M


def test_int8_holds_1_94_and_int4_3_76_times_the_tokens_of_fp16_in_the_same_memory(tmp_path: Path):
    folder = model(tmp_path, INTERNLM_1_8B)
    told = {bits: foretell(model=folder, kv_bits=bits) for bits in (16, 8, 4)}
    tokens = {bits: told[bits].kv_tokens.high for bits in told}
    assert told[16].kv_bytes_per_token == 24 * 8 * 2 * 128 * 2
    assert tokens[8] / tokens[16] == pytest.approx(1.94, abs=0.005)
    assert tokens[4] / tokens[16] == pytest.approx(3.76, abs=0.005)
    assert told[4].used == told[8].used == told[16].used, "nvidia-smi does not see the bits"


def test_turbomind_s_slabs_take_their_share_since_0_18(tmp_path: Path):
    folder = model(tmp_path, INTERNLM_1_8B)
    for bits, blocks_of_128_mib in ((16, 21), (8, 40), (4, 80)):
        told = foretell(model=folder, kv_bits=bits, lmdeploy="0.18.0", total_mib=81559)
        assert told.kv_tokens.point == pytest.approx(told.kv_pool.point / 128 * blocks_of_128_mib * 64, rel=0.005)


def test_what_others_hold_of_the_card_is_not_shared_and_counts_in_the_sum():
    alone, beside = foretell(total_mib=40000), foretell(total_mib=50000, foreign_mib=10000)
    assert beside.kv_pool == alone.kv_pool
    assert beside.used.point == pytest.approx(alone.used.point + 10000)
    assert beside.to_dict()["foreign_mib"] == 10000


def test_a_model_that_does_not_fit_beside_others_is_told_so():
    with pytest.raises(UsageError, match="of which others hold 22000") as caught:
        foretell(foreign_mib=22000, weights_mib=BF16)
    assert "end what holds the card" in caught.value.todo


@pytest.mark.parametrize("foreign_mib", [-1, 24566, float("nan")])
def test_others_cannot_hold_less_than_nothing_or_the_whole_card(foreign_mib: float):
    with pytest.raises(UsageError, match="that others hold"):
        foretell(foreign_mib=foreign_mib)


def test_tokens_are_whole_blocks_that_fill_the_pool(tmp_path: Path):
    told = foretell(model=model(tmp_path, INTERNLM_1_8B))
    assert told.kv_tokens.point % 64 == 0
    spare_bytes = told.kv_pool.point * MIB - told.kv_tokens.point * told.kv_bytes_per_token
    assert 0 <= spare_bytes < 64 * told.kv_bytes_per_token


def test_weights_on_disk_count_rather_than_the_config(tmp_path: Path):
    folder = model(tmp_path, INTERNLM_1_8B | awq())
    (folder / "tokenizer.json").write_text("{}")
    tensors = {"qweight": ("I32", [2**18], 2**20), "norm": ("F32", [2**18], 2**20), "head": ("F16", [2**19], 2**20)}
    write_safetensors(folder / "model.safetensors", tensors)
    told = foretell(model=folder)
    assert told.weights_mib == 2.5, "float32 is served in 16 bits, packed integers as they are"
    assert told.disk_mib == pytest.approx(3, abs=0.2)


# --- ranges


@pytest.mark.parametrize("lmdeploy", ["0.5.3", "0.7.0", "0.17.1", "0.19.0", "1.6.0"])
def test_a_version_that_was_never_read_gets_the_span_of_those_that_were(lmdeploy: str):
    told = foretell(lmdeploy=lmdeploy)
    assert told.used.point is None
    assert told.used.low == foretell(lmdeploy="0.6").used.point
    assert told.used.high == foretell(lmdeploy="0.18").used.point
    assert told.kv_pool.low < told.kv_pool.high
    assert any("never read" in note for note in told.notes)


def test_another_pytorch_engine_is_no_point():
    told = foretell(engine="pytorch", lmdeploy="0.10.0", total_mib=81559)
    assert told.used.point is None
    assert told.used.low < 34075 < told.used.high


def test_a_vocabulary_that_had_to_be_assumed_is_told(tmp_path: Path):
    asked = {"engine": "pytorch", "lmdeploy": "0.18.0", "total_mib": 81559}
    assert any("W4A16 weights and a vocabulary of 92544" in note for note in foretell(**asked).notes)
    assert not any("vocabulary" in note for note in foretell(model=model(tmp_path, INTERNLM_1_8B), **asked).notes)


def test_a_small_card_is_left_some_cache_by_the_pytorch_engine():
    """It halves its prefill where the reserve would take all that is free."""
    told = foretell(engine="pytorch", lmdeploy="0.18.0", total_mib=4096)
    assert 0 < told.kv_pool.point < 64


def test_a_range_that_reaches_past_the_card_ends_at_it_and_says_so():
    told = foretell(lmdeploy="0.10.0", total_mib=5000, weights_mib=3600, ratio=0.4)
    assert told.used.high == 5000
    assert any("may not fit" in note for note in told.notes)


# --- what cannot be


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"ratio": 0}, "ratio 0"),
        ({"ratio": 1}, "ratio 1"),
        ({"ratio": float("nan")}, "ratio nan"),
        ({"total_mib": 0}, "^a card of 0"),
        ({"total_mib": float("inf")}, "^a card of inf"),
        ({"weights_mib": 0}, "^weights of 0"),
        ({"weights_mib": float("nan")}, "^weights of nan"),
        ({"kv_bits": 5}, "5 bits"),
        ({"engine": "vllm"}, "'vllm'"),
        ({"lmdeploy": "newest"}, "'newest'"),
        ({"weights_mib": None}, "by size or by model"),
        ({"model": "embedded", "weights_mib": W4A16}, "by size or by model"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(wrong: dict[str, Any], named: str):
    with pytest.raises(UsageError, match=named) as refused:
        foretell(**wrong)
    assert refused.value.why
    assert refused.value.todo


def test_weights_that_do_not_fit_are_refused_with_what_would():
    with pytest.raises(UsageError, match=r"30000 MiB .* 24566 MiB") as refused:
        foretell(weights_mib=30000)
    limit = int(refused.value.why.split("at most ")[1].split()[0])
    foretell(weights_mib=limit - 1)
    with pytest.raises(UsageError):
        foretell(weights_mib=limit + 1)


def test_a_ratio_that_leaves_no_room_for_what_comes_after_the_cache_is_refused():
    assert foretell(ratio=0.99).used.high <= 24566
    with pytest.raises(UsageError, match="do not fit"):
        foretell(ratio=0.9999)


def test_a_model_that_would_fit_quantized_is_told_so(tmp_path: Path):
    with pytest.raises(UsageError, match=r"W4A16 takes about 4905 MiB"):
        foretell(model=model(tmp_path, INTERNLM_7B), total_mib=12000)
    with pytest.raises(UsageError, match="no model fits") as refused:
        foretell(model=model(tmp_path, INTERNLM_7B), total_mib=1000)
    assert "W4A16" not in refused.value.todo
    with pytest.raises(UsageError, match="do not fit") as refused:
        foretell(model=model(tmp_path, INTERNLM_7B | awq(32)), total_mib=6200)
    assert "W4A16" not in refused.value.todo, "it is that already"


@pytest.mark.parametrize("told", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "awq", "bits": 8}, {}])
@pytest.mark.parametrize("weights", [True, False])
def test_a_quantization_that_is_not_awq_in_4_bits_is_refused(tmp_path: Path, told: dict[str, Any], weights: bool):
    folder = model(tmp_path, INTERNLM_1_8B, quantization_config=told)
    if weights:
        write_safetensors(folder / "model.safetensors", {"a": ("I32", [4], 16)})
    with pytest.raises(UsageError, match="is quantized by"):
        foretell(model=folder)


def test_lmdeploy_that_is_not_installed_must_be_named(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UsageError, match="not installed") as refused:
        foretell(lmdeploy=None)
    assert "--lmdeploy" in refused.value.todo


# --- constants found anew


def test_two_servers_on_one_card_give_the_constants():
    found = fit([VramReading(24566, BF16, 0.8, 20616), VramReading(24566, W4A16, 0.4, 11368)])
    assert (found.before_cache_mib, found.after_cache_mib) == pytest.approx((1041, 34.4), abs=0.1)
    assert found.worst_error_mib < 0.01


def test_more_readings_are_weighed_and_their_worst_error_told():
    readings = "24566,3603,0.8,20616 24566,1471,0.4,11368 40950,3603,0.8,33744 24566,3603,0.4,12616"
    found = fit([parse_reading(text) for text in readings.split()])
    assert 900 < found.before_cache_mib < 1050
    assert 10 < found.worst_error_mib < 30


def test_constants_of_the_pytorch_engine_are_found_beside_what_it_reserves():
    def read(ratio: float) -> VramReading:
        pool = ratio * (81559 - 1700 - W4A16 - 1807.5)  # 10240 rows of 92544 logits of 2 bytes
        return VramReading(81559, W4A16, ratio, 1700 + W4A16 + pool + 300)

    found = fit([read(0.3), read(0.5), read(0.8)], engine="pytorch")
    assert (found.before_cache_mib, found.after_cache_mib) == pytest.approx((1700, 300), abs=0.1)


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["24566,3603,0.8,20616"], "1 reading"),
        (["24566,3603,0.8,20616", "40950,3603,0.8,33744"], "2 reading.*1 cache ratio"),
        (["24566,3603,0.8"], "'24566,3603,0.8'"),
        (["24566,3603,0.8,much"], "much"),
        (["24566,3603,0.8,24567", "24566,1471,0.4,11368"], "24567"),
        (["24566,3603,0.8,3000", "24566,1471,0.4,11368"], "3000"),
        (["24566,3603,0.8,nan", "24566,1471,0.4,11368"], "nan"),
        (["24566,3603,8,20616", "24566,1471,0.4,11368"], "ratio 8"),
    ],
)
def test_readings_that_tell_too_little_are_refused(texts: list[str], named: str):
    with pytest.raises(UsageError, match=named) as refused:
        fit([parse_reading(text) for text in texts])
    assert refused.value.todo


# --- the command line


def test_predict_prints_json_with_the_installed_versions_constants(capsys: pytest.CaptureFixture[str]):
    told = command(capsys, "predict", "--total-mib=81559", "--weights-mib=3603", "--ratio=0.8", "--kv-bits=16")
    assert told["lmdeploy"] == importlib.metadata.version("lmdeploy")
    assert told["used_mib"] == told["used_mib_low"] == told["used_mib_high"] == 66447
    assert told["kv_pool_mib"] == 61121.6
    assert told["kv_tokens"] is None, "without a model nobody knows what a token takes"
    assert told["weights_mib"] == 3603


def test_predict_prints_a_range_of_an_unknown_version_and_tokens_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = str(model(tmp_path, INTERNLM_1_8B))
    told = command(
        capsys, "predict", "--total-mib=24566", "--model", folder, "--ratio=0.4", "--kv-bits=4", "--lmdeploy=0.9"
    )
    assert told["used_mib"] is None
    assert told["used_mib_low"] < told["used_mib_high"]
    assert told["kv_bytes_per_token"] == 24 * 8 * 2 * (64 + 4)
    assert told["kv_tokens_low"] < told["kv_tokens_high"]
    assert told["disk_mib"] == told["weights_mib"] == 3603.2


def test_fit_prints_the_constants(capsys: pytest.CaptureFixture[str]):
    told = command(capsys, "fit", "24566,3603,0.8,20616", "24566,1471,0.4,11368")
    assert told == {"before_cache_mib": 1041.0, "after_cache_mib": 34.4, "worst_error_mib": 0.0}


def test_wrong_usage_exits_2_and_says_what_to_do(capsys: pytest.CaptureFixture[str]):
    told = command(
        capsys, "predict", "--total-mib=2000", "--weights-mib=3603", "--ratio=0.8", "--kv-bits=16", expected=2
    )
    assert "do not fit" in told["error"]["what"]
    assert told["error"]["todo"]


def command(capsys: pytest.CaptureFixture[str], name: str, *arguments: str, expected: int = 0) -> dict[str, Any]:
    engine = ["--engine", "turbomind"]
    assert cli.main(["vram", name, *arguments, *engine, "--json"]) == expected
    return json.loads(capsys.readouterr().out)
