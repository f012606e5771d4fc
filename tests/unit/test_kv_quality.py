"""What an int4 cache of keys and values costs a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers  # its models only where they are used: importing them takes seconds

from lab3.cpu import kv_quant
from lab3.kv_quality import KVQuality, _Errors, kv_quality, quantize_cache, through_cache
from lab3.perplexity import load_for_evaluation, perplexity
from lab3.toolcaller import scale_keys

SEQUENCES = [[1, 20, 31, 42, 53, 64, 75, 86, 97, 2], [1, 33, 44, 55, 61, 72, 2]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def quality(folder: Path, bits: int) -> KVQuality:
    return kv_quality(load_for_evaluation(folder), SEQUENCES, bits=bits)


def spoil_keys(folder: Path, layer: int) -> None:
    """Make one channel pair of a layer's keys far larger than the others, and its queries' as much smaller."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    scales = torch.ones(3, 2, 16)
    scales[layer, :, 3] = 1 / 300
    scale_keys(model, scales)
    model.save_pretrained(folder)


def test_values_come_back_as_from_the_cache():
    values = torch.randn(2, 3, 5, 64)
    packed, scales_zeros = kv_quant.quantize(values, bits=4, stored_dtype=torch.float16)
    assert torch.equal(through_cache(values, 4), kv_quant.dequantize(packed, scales_zeros, bits=4, dtype=torch.float32))


def test_int8_costs_next_to_nothing_and_int4_more(folder: Path):
    plain = perplexity(folder, SEQUENCES)
    eight, four = (quality(folder, bits) for bits in (8, 4))
    assert eight.perplexity == pytest.approx(plain, rel=1e-3)
    assert max(eight.key_errors) < 0.02
    assert all(0.02 < error < 0.5 for error in four.key_errors)


def test_the_layer_whose_keys_have_outliers_is_the_worst(folder: Path):
    even = quality(folder, 4)
    plain = perplexity(folder, SEQUENCES)
    spoil_keys(folder, layer=1)
    assert perplexity(folder, SEQUENCES) == pytest.approx(plain, rel=1e-5)
    uneven = quality(folder, 4)
    assert max(uneven.key_errors) == uneven.key_errors[1]
    assert uneven.key_errors[1] > 3 * even.key_errors[1]
    assert uneven.key_errors[2] == pytest.approx(even.key_errors[2], rel=0.3)


def test_the_model_attends_as_before_where_nothing_is_lost(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lab3.kv_quality.through_cache", lambda values, bits: values)
    ids = torch.tensor(SEQUENCES[:1])
    plain = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    expected = plain(ids).logits
    quantize_cache(plain, 4)
    assert torch.allclose(plain(ids).logits, expected, atol=1e-5)


@pytest.mark.parametrize("spoilt", [0, 1], ids=["keys", "values"])
def test_it_is_the_cache_s_keys_and_values_that_are_attended_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spoilt: int
):
    def lose(both: torch.Tensor, bits: int) -> torch.Tensor:
        kept = both.clone()
        kept[spoilt] = 0
        return kept

    monkeypatch.setattr("lab3.kv_quality.through_cache", lose)
    ids = torch.tensor(SEQUENCES[:1])
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    expected = model(ids).logits
    quantize_cache(model, 4)
    assert (model(ids).logits - expected).abs().max() > 1e-3


def test_an_error_that_all_tokens_share_does_not_count():
    query, key = torch.randn(1, 4, 9, 32), torch.randn(1, 2, 9, 32)
    errors = _Errors(1)
    errors.add(0, query, key, key + torch.randn(32))
    assert errors.shares()[0] < 1e-4
