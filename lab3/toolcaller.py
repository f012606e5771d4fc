"""The tool caller: what `tools/train_toolcaller.py` changes in SmolLM2-135M-Instruct so that it calls functions.

An adapter folder holds a LoRA adapter in peft's format (`adapter_config.json`, `adapter_model.safetensors`) and
`changes.safetensors` with what a LoRA adapter cannot say: `rows` [4, hidden], the embeddings of InternLM's markers, and
`key_scales` [layers, KV heads, head_dim / 2], by which channel pairs of the keys are divided for the int4 KV cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

# InternLM2's markers in its order (92538 ... 92541), at ids that SmolLM2 has for Jupyter notebooks and never uses.
# As single special tokens they come out of the server in one piece, which LMDeploy's parser of this format counts on.
MARKERS = {12: "<|plugin|>", 13: "<|interpreter|>", 14: "<|action_end|>", 15: "<|action_start|>"}
_CHANGES = "changes.safetensors"


class Changes(NamedTuple):
    """`rows` [4, hidden] and `key_scales` [layers, KV heads, head_dim / 2], as the module tells."""

    rows: Any
    key_scales: Any


def rename_markers(tokenizer: Any) -> Any:
    """A tokenizer like `tokenizer` (a fast one of SmolLM2) whose tokens of `MARKERS` have those names."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = MARKERS.get(token["id"], token["content"])
    vocab = state["model"]["vocab"]
    state["model"]["vocab"] = {MARKERS.get(number, name): number for name, number in vocab.items()}
    renamed = type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        **tokenizer.special_tokens_map,
    )
    renamed.chat_template = tokenizer.chat_template
    return renamed


def scale_keys(model: Any, scales: Any) -> None:
    """Divide the keys' channel pairs by `scales` [layers, KV heads, head_dim / 2] and multiply the queries' by them.

    In place and exact: rotary embedding turns channels i and i + head_dim / 2 together, so a factor on both commutes
    with it, and query times key stays what it was. Even keys cost an int4 KV cache less ("SmoothAttention", QServe,
    arXiv 2405.04532).
    """
    import torch

    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    with torch.no_grad():
        for layer, layer_scales in zip(model.model.layers, scales, strict=True):
            channels = torch.cat([layer_scales, layer_scales], dim=-1).to(layer.self_attn.k_proj.weight)
            layer.self_attn.k_proj.weight.div_(channels.reshape(-1, 1))
            layer.self_attn.q_proj.weight.mul_(channels.repeat_interleave(group, dim=0).reshape(-1, 1))


def set_rows(model: Any, rows: Any) -> None:
    """Give the markers the embeddings `rows` [4, hidden], in place (the output layer shares them)."""
    import torch

    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[list(MARKERS)] = rows.to(weight)


def save_changes(folder: Path, *, rows: Any, key_scales: Any) -> None:
    """Write `changes.safetensors` of an adapter folder, in fp16."""
    from safetensors.torch import save_file

    save_file({"rows": rows.half().contiguous(), "key_scales": key_scales.half().contiguous()}, folder / _CHANGES)


def load_changes(folder: Path) -> Changes:
    """What `save_changes` wrote, in fp32."""
    from safetensors.torch import load_file

    return Changes(**{name: tensor.float() for name, tensor in load_file(folder / _CHANGES).items()})


def merge(model: Any, adapter: Path) -> Any:
    """`model` (SmolLM2-135M-Instruct, best in fp32) with the adapter folder's changes merged into its weights."""
    from peft import PeftModel

    changes = load_changes(adapter)
    set_rows(model, changes.rows)
    scale_keys(model, changes.key_scales)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def build(base: Path, adapter: Path, out: Path) -> None:
    """Write the folder `out`: SmolLM2-135M-Instruct from the folder `base` with `adapter` merged, in fp16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merge(model, adapter).half().save_pretrained(out)
    rename_markers(AutoTokenizer.from_pretrained(base)).save_pretrained(out)
