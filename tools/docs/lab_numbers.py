"""The figures of the page on the lab, computed by lab3's own functions: sizes, tokens, memory."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from lab3.models import kv_bytes_per_token
from lab3.quantize import predict_weight_bytes
from lab3.reports.facts_models import SHAPES
from lab3.vram_constants import SOURCES, fit
from lab3.vram_predict import predict, predict_model_bytes
from tools.docs import table

Language = Literal["en", "zh"]
MIB = 2**20
GROUP = 128

# InternLM2.5-1.8B, from its config.json: the lab's model.
CONFIG_JSON = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 92544,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
QUANTIZATION = {"quant_method": "awq", "bits": 4, "group_size": GROUP}
LAB = SHAPES["1.8b"]


@dataclass(frozen=True)
class Card:
    """A card of the worked example, and the LMDeploy whose servers were read on it."""

    name: str
    total_mib: int
    lmdeploy: str


CARDS = (Card("24 GB", 24566, "0.6"), Card("80 GB", 81559, "0.18"))
# (weights, ratio, bits of the KV cache): what the lab does, one change at a time.
STEPS = (("bf16", 0.8, 16), ("W4A16", 0.8, 16), ("W4A16", 0.4, 16), ("W4A16", 0.4, 4))


def linear_weights() -> int:
    """How many weights the linear layers have: those that AWQ packs."""
    attention = 2 * LAB.hidden_size * LAB.head_dim * (LAB.heads + LAB.kv_heads)
    return LAB.layers * (attention + 3 * LAB.hidden_size * LAB.intermediate_size)


def table_weights() -> int:
    """Embeddings and output matrix."""
    return 2 * LAB.vocab_size * LAB.hidden_size


def norm_weights() -> int:
    return (2 * LAB.layers + 1) * LAB.hidden_size


def bits_of_a_weight(group: int = GROUP) -> float:
    """4 bits, and a 16-bit scale and a 4-bit zero for each group."""
    return 4 + (16 + 4) / group


def before_mib() -> float:
    return predict_model_bytes(LAB) / MIB


def after_mib(group: int = GROUP) -> float:
    return predict_weight_bytes(LAB, group_size=group) / MIB


@cache
def constants(lmdeploy: str) -> tuple[float, float]:
    """o and e of TurboMind, in MiB."""
    version = tuple(int(part) for part in lmdeploy.split("."))
    source = next(each for each in SOURCES if each.engine == "turbomind" and each.version == version)
    solved = fit(source.readings)
    return solved.before_cache_mib, solved.after_cache_mib


@cache
def memory(card: Card, step: tuple[str, float, int]) -> tuple[float, float, int]:
    """(used, pool, tokens) as `lab3 vram predict --model FOLDER` has them; used and pool in MiB."""
    weights, ratio, bits = step
    config = CONFIG_JSON if weights == "bf16" else {**CONFIG_JSON, "quantization_config": QUANTIZATION}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        told = predict(
            total_mib=card.total_mib,
            ratio=ratio,
            kv_bits=bits,
            engine="turbomind",
            model=folder,
            lmdeploy=card.lmdeploy,
        )
    return told.used.low, told.kv_pool.low, int(told.kv_tokens.low) if told.kv_tokens else 0


def size_table(language: Language) -> str:
    """What is packed and what is not."""
    heads = {
        "en": ["part", "weights", "bf16, MiB", "W4A16, MiB"],
        "zh": ["部分", "参数个数", "bf16，MiB", "W4A16，MiB"],
    }[language]
    linear = {"en": "linear layers", "zh": "线性层"}[language]
    tables = {"en": "embeddings and output matrix", "zh": "词嵌入与输出矩阵"}[language]
    total = {"en": "sum", "zh": "合计"}[language]
    parts = [
        (linear, linear_weights(), bits_of_a_weight()),
        (tables, table_weights(), 16.0),
        ({"en": "norms", "zh": "归一化层"}[language], norm_weights(), 16.0),
    ]
    rows = [[name, f"{n:,}", f"{n * 2 / MIB:.1f}", f"{n * bits / 8 / MIB:.1f}"] for name, n, bits in parts]
    rows.append([total, f"{sum(n for _, n, _ in parts):,}", f"{before_mib():.1f}", f"{after_mib():.1f}"])
    return table(heads, rows)


def token_table(language: Language) -> str:
    """Bytes of a token in the KV cache."""
    heads = {
        "en": ["KV cache", "`--quant-policy`", "bytes a token", "tokens in the same pool"],
        "zh": ["KV cache", "`--quant-policy`", "每个 token 的字节数", "同样的池能放的 token 数"],
    }[language]
    plain = kv_bytes_per_token(LAB, 16)
    rows = []
    for name, policy, bits in (("16 bits", 0, 16), ("int8", 8, 8), ("int4", 4, 4)):
        size = kv_bytes_per_token(LAB, bits)
        rows.append([name, str(policy), f"{size:,}", f"{plain / size:.2f} ×"])
    return table(heads, rows)


def memory_table(language: Language) -> str:
    """The lab's steps on the two cards."""
    heads = {
        "en": ["card T", "LMDeploy", "weights", "r", "KV cache", "pool, MiB", "used, MiB", "tokens in it"],
        "zh": ["显卡 T", "LMDeploy", "权重", "r", "KV cache", "KV 池，MiB", "占用，MiB", "可放的 token 数"],
    }[language]
    rows = []
    for card in CARDS:
        for step in STEPS:
            used, pool, tokens = memory(card, step)
            cache_bits = {16: "16 bits", 4: "int4"}[step[2]]
            rows.append(
                [
                    f"{card.total_mib} MiB",
                    card.lmdeploy,
                    step[0],
                    f"{step[1]:g}",
                    cache_bits,
                    f"{pool:,.0f}",
                    f"{used:,.0f}",
                    f"{tokens:,}",
                ]
            )
    return table(heads, rows)
