"""Names of models as students and OCR write them, and what is known of the lab's models: shape, sizes, weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from lab3.models import ModelConfig
from lab3.nvml import MIB
from lab3.quantize import predict_weight_bytes
from lab3.vram_predict import predict_model_bytes

_SIZE = re.compile(r"(?<![\d.])(?:(\d{1,2})\s?[._ ]\s?(\d)|(\d{1,3}))\s?[bB](?![a-zA-Z0-9])")
_QUANTIZED = re.compile(
    r"w4a16|w4a8|w8a8|w4(?![a-z0-9])|awq|gptq|4[\s_-]?bits?|int4|int8|quanti|quant(?![a-z])|量化|_q4|-q4", re.I | re.A
)
_FAMILY = re.compile(r"intern[\s_-]?lm[\s_-]?(2[\s._-]?5|2|3)(?!\d)", re.I | re.A)
_OTHERS = re.compile(
    r"qwen|llama|mistral|mixtral|glm|baichuan|deepseek|gemma|\bphi\b|\byi\b|xcomposer|internvl|-vl\b|vicuna",
    re.I | re.A,
)
_LOOKS_ALIKE = str.maketrans({"l": "1", "i": "1", "o": "0"})


@dataclass(frozen=True)
class ModelName:
    """What a name or path tells: `family` "internlm2.5" and `size` "1.8b", empty where it does not."""

    text: str
    family: str = ""
    size: str = ""
    quantized: bool = False

    @property
    def last(self) -> str:
        """The last part of the path."""
        return last_part(self.text)

    def same_size(self, other: ModelName) -> bool | None:
        """None if one of the two does not tell."""
        return None if not (self.size and other.size) else self.size == other.size


def model_name(text: str) -> ModelName:
    """The name that `text` is; of a path its last part, or where that tells nothing the whole."""
    last = last_part(text)
    return ModelName(
        text=text,
        family=_family(last) or _family(text),
        size=size_in(last) or size_in(text),
        quantized=bool(_QUANTIZED.search(last)),
    )


def size_in(text: str) -> str:
    """Of `internlm2_5-1_8b-chat` "1.8b", also without the underscores that OCR loses; empty without a size."""
    found = ""
    for match in _SIZE.finditer(text):
        found = f"{match[1]}.{match[2]}" if match[1] else match[3]
    found = "1.8" if found == "18" else found  # InternLM has no 18B: the underscore was lost
    return f"{found}b" if found else ""


def sizes_in(text: str) -> frozenset[str]:
    """Every size of a model that a text names."""
    return frozenset(size_in(match[0]) for match in _SIZE.finditer(text))


def last_part(path: str) -> str:
    """The name of the folder that a path leads to."""
    return path.strip().strip("'\"").replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def same_folder(one: str, other: str, *, read: bool) -> bool:
    """Whether two paths end in the same name. `read`: by OCR, which loses underscores and mixes l and 1."""
    left, right = last_part(one), last_part(other)
    if left == right:
        return bool(left)
    if not read:
        return left.lower() == right.lower()
    return _plain(left) == _plain(right) and bool(_plain(left))


def _plain(name: str) -> str:
    return "".join(each for each in name.lower() if each.isalnum()).translate(_LOOKS_ALIKE)


def _family(text: str) -> str:
    if _OTHERS.search(text):
        return "other"
    match = _FAMILY.search(text)
    if match is None:
        return ""
    version = re.sub(r"\D", "", match[1])
    return {"25": "internlm2.5", "2": "internlm2", "3": "internlm3"}[version]


# --------------------------------------------------------------------------------------------- the lab's models


def _shape(hidden: int, middle: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        architecture="InternLM2ForCausalLM",
        model_type="internlm2",
        hidden_size=hidden,
        intermediate_size=middle,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        vocab_size=92544,
        tied_embeddings=False,
        dtype="bfloat16",
        max_positions=32768,
        quantization=None,
        remote_code=True,
    )


# config.json of internlm/internlm2_5-{1_8b,7b,20b}-chat; InternLM2's are the same.
SHAPES = {
    "1.8b": _shape(2048, 8192, 24, 16),
    "7b": _shape(4096, 14336, 32, 32),
    "20b": _shape(6144, 16384, 48, 48),
}


@lru_cache(maxsize=16)
def weight_bytes(model: ModelName, *, quantized: bool) -> int | None:
    """Bytes of the tensors, in 16 bits or as W4A16; None for a model whose shape is not known here.

    A name without a family is taken for InternLM2.5: it is the lab's, and the sizes are its.
    """
    if model.size not in SHAPES or model.family in ("internlm3", "other"):
        return None
    config = SHAPES[model.size]
    return predict_weight_bytes(config, group_size=128) if quantized else predict_model_bytes(config)


def weight_mib(model: ModelName, *, quantized: bool) -> float | None:
    """The same in MiB."""
    found = weight_bytes(ModelName("", model.family, model.size), quantized=quantized)
    return None if found is None else found / MIB
