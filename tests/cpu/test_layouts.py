"""Llama, InternLM2 and Qwen2 layouts, and 16-bit weights, run on the CPU device as transformers runs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cpu.test_engine import PROMPTS, answer, cpu_device, engine, likeliest, reference, tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]
__all__ = ["cpu_device", "reference", "tokenizer"]

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def tiny(architecture: str) -> Any:
    import torch
    import transformers

    torch.manual_seed(7)
    config = getattr(transformers, f"{architecture}Config")(**SHAPE)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at birth, and then a layout that drops them would pass
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def as_internlm2(model: Any) -> dict[str, Any]:
    """The tensors of a Llama under InternLM2's names; wqkv holds for each KV head its queries, its key, its value."""
    import torch

    tensors = dict(model.state_dict())
    heads, kv_heads = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
    dim = SHAPE["hidden_size"] // heads
    found = {
        "model.tok_embeddings.weight": tensors["model.embed_tokens.weight"],
        "model.norm.weight": tensors["model.norm.weight"],
        "output.weight": tensors["lm_head.weight"],
    }
    for layer in range(SHAPE["num_hidden_layers"]):
        source = f"model.layers.{layer}"
        q = tensors[f"{source}.self_attn.q_proj.weight"].view(kv_heads, heads // kv_heads * dim, -1)
        k = tensors[f"{source}.self_attn.k_proj.weight"].view(kv_heads, dim, -1)
        v = tensors[f"{source}.self_attn.v_proj.weight"].view(kv_heads, dim, -1)
        found |= {
            f"{source}.attention.wqkv.weight": torch.cat([q, k, v], dim=1).flatten(0, 1),
            f"{source}.attention.wo.weight": tensors[f"{source}.self_attn.o_proj.weight"],
            f"{source}.feed_forward.w1.weight": tensors[f"{source}.mlp.gate_proj.weight"],
            f"{source}.feed_forward.w3.weight": tensors[f"{source}.mlp.up_proj.weight"],
            f"{source}.feed_forward.w2.weight": tensors[f"{source}.mlp.down_proj.weight"],
            f"{source}.attention_norm.weight": tensors[f"{source}.input_layernorm.weight"],
            f"{source}.ffn_norm.weight": tensors[f"{source}.post_attention_layernorm.weight"],
        }
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def write_layout(architecture: str, out: Path, embedded_model: Path) -> tuple[Path, Any]:
    """`out` as a checkpoint folder of this layout with random weights, and the same model in transformers."""
    from safetensors.torch import save_file

    model = tiny("Llama" if architecture == "InternLM2" else architecture)
    if architecture == "InternLM2":
        save_file(as_internlm2(model), out / "model.safetensors", metadata={"format": "pt"})
        config = SHAPE | {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
        config |= {"hidden_act": "silu", "torch_dtype": "float32"}
        config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
        (out / "config.json").write_text(json.dumps(config))
    else:
        model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(embedded_model / name, out / name)
    return out, model


@pytest.fixture(scope="module", params=["Llama", "Qwen2", "InternLM2"])
def layout(request: pytest.FixtureRequest, embedded_model: Path, tmp_path_factory) -> tuple[Path, Any]:
    return write_layout(request.param, tmp_path_factory.mktemp(request.param), embedded_model)


@pytest.fixture(scope="module")
def served(cpu_device: None, layout: tuple[Path, Any]) -> Iterator[tuple[Any, Any]]:
    with engine(layout[0], dtype="float32") as pipe:
        yield pipe, layout[1]


def test_the_layout_gives_the_tokens_of_transformers(served: tuple[Any, Any]):
    import torch

    pipe, model = served
    for response, prompt in zip(answer(pipe, list(PROMPTS[:6]), ignore_eos=True), PROMPTS[:6], strict=True):
        ids = pipe.async_engine.tokenizer.model.model.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        assert response.input_token_len == len(ids)
        with torch.inference_mode():
            best = model(torch.tensor([ids + list(response.token_ids)])).logits[0, len(ids) - 1 : -1].argmax(-1)
        assert list(response.token_ids) == best.tolist()
        assert len(set(response.token_ids)) > 3, "a model that repeats itself would prove little"


def agreement(pipe: Any, reference: Any, tokenizer: Any) -> float:
    """The share of the pipeline's greedy tokens that fp32 transformers, given those before, finds most likely too."""
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:10]]
    prompts = [tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=False) for each in asked]
    answers = [list(response.token_ids) for response in answer(pipe, list(PROMPTS[:10]))]
    best = likeliest(reference, prompts, answers)
    pairs = [pair for ours, theirs in zip(answers, best, strict=True) for pair in zip(ours, theirs, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_weights_are_kept_and_say_about_the_same(cpu_device, embedded_model, reference, tokenizer, dtype: str):
    import torch

    with engine(embedded_model, dtype=dtype) as pipe:
        weights = pipe.async_engine.engine.executor.model_agent.patched_model.get_model().parameters()
        assert {p.dtype for p in weights} == {getattr(torch, dtype)}
        assert agreement(pipe, reference, tokenizer) > 0.95


@pytest.mark.parametrize(("quant_policy", "at_least"), [(8, 0.95), (4, 0.75)])
def test_a_quantized_cache_is_used_and_changes_little(
    cpu_device, embedded_model: Path, reference, tokenizer, quant_policy: int, at_least: float
):
    with engine(embedded_model, dtype="float16", quant_policy=quant_policy) as pipe:
        caches = pipe.async_engine.engine.executor.model_agent.cache_engine.gpu_cache
        assert str(caches[0][0].dtype) == "torch.uint8"
        assert caches[0][0].shape[-1] == 64 * quant_policy // 8
        share = agreement(pipe, reference, tokenizer)
        assert at_least < share
        assert quant_policy == 8 or share < 1, "int4 that changes nothing was not used"
