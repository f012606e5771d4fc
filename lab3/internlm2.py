"""An InternLM2 folder, which is remote code, becomes a folder in Llama's layout that means the same.

InternLM2 is Llama with other names and one fused projection `wqkv`; transformers and LMDeploy know Llama without
running code of the checkpoint. Source of the layout: InternLM2's modeling_internlm2.py, and LMDeploy's
pytorch/models/internlm2.py.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lab3.cache import cache_root, made_once
from lab3.embedded import CHAT_TEMPLATE
from lab3.errors import InfraError, UsageError
from lab3.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TYPE = "internlm2"

_REVISION = 1  # raise it when what is written changes
_NAMES = {
    "model.tok_embeddings": "model.embed_tokens",
    "model.norm": "model.norm",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
_WQKV = "attention.wqkv"
_LINEAR = ("attention.wo", "feed_forward.w1", "feed_forward.w3", "feed_forward.w2", _WQKV)
_LEAVES = ("weight", "bias", "qweight", "qzeros", "scales")  # of a linear layer, 16-bit or AWQ
_SAME = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps"),
    *("max_position_embeddings", "initializer_range", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id"),
)
_NAME = re.compile(r"(?P<layer>model\.layers\.\d+\.)?(?P<module>[\w.]+)\.(?P<leaf>\w+)")


class Heads(NamedTuple):
    """How `wqkv` is made up: for each of `kv` heads `group` queries, then the key, then the value."""

    group: int
    kv: int


def llama_folder(source: Path, *, progress: Progress = silent) -> Path:
    """The folder `source` (InternLM2) in Llama's layout, kept in lab3's cache under its own name; made if need be.

    Raises as `to_llama` does, and InfraError if the cache cannot be written.
    """
    folder = cache_root() / "internlm2" / source_key(source)
    return made_once(
        folder / source.name,
        lambda target: to_llama(source, target, progress=progress),
        what=source.name,
        lock=folder / "lock",
        progress=progress,
    )


def to_llama(source: Path, out: Path, *, progress: Progress = silent) -> Path:
    """Write the folder `out`, `source` (InternLM2 or InternLM2.5) in Llama's layout; returns `out`.

    Weights keep their type and values; those of one file are in memory at a time, and one file is written for each.
    It appears by one rename. What was broken off is gone on with, if the source is still the same. AWQ weights as
    LMDeploy packs them are split as well.

    Raises UsageError for a source that is no complete InternLM2, or if `out` is there; InfraError without room.
    """
    from lab3.models import weight_files

    if out.exists():
        raise UsageError(f"{out} exists", todo="choose another folder, or remove it")
    config = _read_config(source)
    files = weight_files(source)
    heads = _heads(config)
    _check_complete(source, files, config)
    _check_tokenizer(source)
    llama_config(config)  # raises for what cannot be told, before the work begins
    part = out.with_name(f".{out.name}.{source_key(source)}.part")
    part.mkdir(parents=True, exist_ok=True)
    _check_room(part, files)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, file in enumerate(files, 1):
        progress("converting InternLM2 to Llama's layout", done=number - 1, total=len(files))
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        if not (part / name).exists():
            _convert_file(file, part / name, heads)
        sizes = _sizes(part / name)
        weight_map |= dict.fromkeys(sizes, name)
        total_bytes += sum(sizes.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (part / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    _write_config(config, source, part)
    _write_tokenizer(source, part, progress)
    part.rename(out)
    progress(f"{source.name} is in Llama's layout")
    return out


def source_key(source: Path) -> str:
    """Names the source's content by its small files and its weight files' names, sizes and times: another, another."""
    import hashlib

    from lab3.models import weight_files

    content = hashlib.sha256(f"{_REVISION} {CHAT_TEMPLATE.read_text(encoding='utf-8')}".encode())
    for file in [*sorted(source.glob("*.json")), source / "tokenizer.model"]:
        content.update(file.name.encode() + file.read_bytes() if file.is_file() else b"")
    for file in weight_files(source):
        facts = file.stat()
        content.update(f"{file.name} {facts.st_size} {facts.st_mtime_ns}".encode())
    return content.hexdigest()[:12]


def llama_tensors(name: str, tensor: Tensor, heads: Heads) -> Iterator[tuple[str, Tensor]]:
    """What InternLM2's tensor `name` is in Llama's layout: one tensor, or three of a `wqkv`.

    `wqkv` [KV heads x (group + 2) x head_dim, hidden]; AWQ's `qweight`, `qzeros` and `scales` have their outputs last,
    eight to a number, which a head's end never parts. Raises UsageError for a tensor that InternLM2 does not have.
    """
    if name.endswith((".inv_freq", ".cos_cached", ".sin_cached")):
        return
    match = _NAME.fullmatch(name)
    if match is None or match["leaf"] not in _LEAVES or (match["module"] != _WQKV and match["module"] not in _NAMES):
        raise UsageError(f"the weights hold {name}, which InternLM2 does not have", todo="pass an InternLM2 folder")
    layer, leaf = match["layer"] or "", match["leaf"]
    if match["module"] != _WQKV:
        yield f"{layer}{_NAMES[match['module']]}.{leaf}", tensor
        return
    axis = 0 if leaf in ("weight", "bias") else tensor.dim() - 1
    per_group = tensor.unflatten(axis, (heads.kv, heads.group + 2, -1))  # type: ignore[no-untyped-call]
    for kind, start, count in (("q", 0, heads.group), ("k", heads.group, 1), ("v", heads.group + 1, 1)):
        part = per_group.narrow(axis + 1, start, count).flatten(axis, axis + 2)
        yield f"{layer}self_attn.{kind}_proj.{leaf}", part.contiguous()


def llama_config(config: dict[str, Any]) -> dict[str, Any]:
    """InternLM2's config.json as arguments of transformers' LlamaConfig; dynamic and linear RoPE scaling are kept."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope: dict[str, Any] = {
        "rope_type": scaling.get("rope_type") or scaling.get("type") or "default",
        "rope_theta": float(scaling.get("rope_theta") or config.get("rope_theta") or 10000),
    }
    if rope["rope_type"] not in ("default", "dynamic", "linear"):
        raise UsageError(
            f"the config asks for RoPE scaling {rope['rope_type']!r}",
            why="InternLM2 has dynamic and linear scaling",
            todo="correct rope_scaling in config.json",
        )
    if rope["rope_type"] != "default":
        rope["factor"] = float(scaling["factor"])
    bias = bool(config.get("bias", False))
    return {name: config[name] for name in _SAME if name in config} | {
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "rope_parameters": rope,
        "attention_bias": bias,
        "mlp_bias": bias,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "dtype": str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch."),
    }


def _read_config(source: Path) -> dict[str, Any]:
    from lab3.models import read_config

    read_config(source)  # says what is missing
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != MODEL_TYPE:
        raise UsageError(
            f"{source} is a {config.get('model_type')} model, not {MODEL_TYPE}", todo="it needs no conversion; use it"
        )
    return config


def _heads(config: dict[str, Any]) -> Heads:
    heads = int(config["num_attention_heads"])
    kv = int(config.get("num_key_value_heads") or heads)
    if heads % kv:
        raise UsageError(f"{heads} heads cannot share {kv} KV heads", todo="correct config.json")
    return Heads(heads // kv, kv)


def _check_complete(source: Path, files: Sequence[Path], config: dict[str, Any]) -> None:
    """Every tensor of the config's shape is in the files, as far as headers tell (those of safetensors do)."""
    from lab3.models import read_tensors

    if not files:
        raise UsageError(f"{source} has no weights (*.safetensors or pytorch_model*.bin)", todo="download it again")
    if any(file.suffix != ".safetensors" for file in files):
        return
    found = {tensor.name: tensor.shape for file in files for tensor in read_tensors(file)}
    wanted = ["model.tok_embeddings.weight", "model.norm.weight"]
    wanted += [] if config.get("tie_word_embeddings") else ["output.weight"]
    kind = "qweight" if config.get("quantization_config") else "weight"
    for layer in range(int(config["num_hidden_layers"])):
        wanted += [f"model.layers.{layer}.{norm}.weight" for norm in ("attention_norm", "ffn_norm")]
        wanted += [f"model.layers.{layer}.{linear}.{kind}" for linear in _LINEAR]
    if missing := [name for name in wanted if name not in found]:
        raise UsageError(
            f"{source} lacks {len(missing)} of {len(wanted)} tensors: {', '.join(missing[:3])}",
            why="a weight file is missing or the index names the wrong ones, or config.json is of another model",
            todo="download the model again",
        )
    _check_wqkv(source, found, config)


def _check_wqkv(source: Path, found: dict[str, tuple[int, ...]], config: dict[str, Any]) -> None:
    shape = found.get(f"model.layers.0.{_WQKV}.weight")
    heads, hidden = _heads(config), int(config["hidden_size"])
    rows = (heads.group + 2) * heads.kv * (hidden // int(config["num_attention_heads"]))
    if shape is not None and shape != (rows, hidden):
        raise UsageError(
            f"{source}: {_WQKV} is {shape[0]} x {shape[-1]}, and by config.json it is {rows} x {hidden}",
            why="the config is of another model than the weights",
            todo="download the model again",
        )


def _check_room(part: Path, files: Sequence[Path]) -> None:
    done = sum(file.stat().st_size for file in part.iterdir())
    needed = sum(file.stat().st_size for file in files) - done + 50_000_000
    free = shutil.disk_usage(part).free
    if free < needed:
        raise InfraError(
            f"{part.parent} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed for the converted model",
            todo="make room, or set LAB3_CACHE to a folder on another disk",
        )


def _convert_file(file: Path, out: Path, heads: Heads) -> None:
    from safetensors.torch import save_file

    converted = {
        new_name: new_tensor
        for name, tensor in _tensors(file)
        for new_name, new_tensor in llama_tensors(name, tensor, heads)
    }
    scratch = out.with_suffix(".tmp")
    save_file(converted, scratch, metadata={"format": "pt"})
    scratch.chmod(0o644)  # others may read what they could read before
    scratch.rename(out)


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one at a time."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:  # type: ignore[no-untyped-call]
            for name in sorted(opened.keys()):
                yield name, opened.get_tensor(name)
        return
    import pickle

    import torch

    try:  # tensors only: nothing in the file is run
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise UsageError(
            f"{file} cannot be read as weights: {str(error).splitlines()[0]}",
            why="the download was cut off, or it holds more than tensors, which lab3 does not run",
            todo="download the file again, or a version in safetensors",
        ) from error
    for name, tensor in loaded.items():
        yield name, tensor.contiguous()


def _sizes(file: Path) -> dict[str, int]:
    from lab3.models import read_tensors

    return {tensor.name: tensor.size_bytes for tensor in read_tensors(file)}


def _write_config(config: dict[str, Any], source: Path, part: Path) -> None:
    from transformers import GenerationConfig, LlamaConfig

    fields = llama_config(config)
    if quantization := config.get("quantization_config"):
        fields["quantization_config"] = quantization
    LlamaConfig(**fields, architectures=["LlamaForCausalLM"]).save_pretrained(part)
    told: dict[str, Any] = {}
    if (source / "generation_config.json").is_file():
        told = json.loads((source / "generation_config.json").read_text(encoding="utf-8"))
    ends = told.get("eos_token_id", config.get("eos_token_id", 2))
    # A chat model ends its turn with <|im_end|>, which not every config says.
    ends = sorted({*(ends if isinstance(ends, list) else [ends]), _IM_END})
    kept = {name: value for name, value in told.items() if name != "transformers_version"}
    ids = {"bos_token_id": config.get("bos_token_id", 1), "pad_token_id": config.get("pad_token_id", 2)}
    GenerationConfig(**ids | kept | {"eos_token_id": ends}).save_pretrained(part)


_IM_END = 92542


def _check_tokenizer(source: Path) -> None:
    if not (source / "tokenizer.model").is_file():
        raise UsageError(
            f"{source} has no tokenizer.model",
            why="InternLM2's tokenizer is a SentencePiece model of this name",
            todo="download the model again",
        )


def _write_tokenizer(source: Path, part: Path, progress: Progress) -> None:
    from lab3.internlm2_tokenizer import save_tokenizer

    progress("converting InternLM2's tokenizer")
    save_tokenizer(source, part, template=f"{{{{- bos_token -}}}}\n{CHAT_TEMPLATE.read_text(encoding='utf-8')}")
