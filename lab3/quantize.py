"""W4A16 quantization of a model folder by LMDeploy's own AWQ, with the sizes and the quality before and after.

The work is done by a child process (`lab3.quantize_worker`): LMDeploy's prints cannot reach the user's output, its
memory is given back, and it can be stopped at any time. The new folder appears by one rename when all is well.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab3 import bytecode, threads
from lab3.calibration import read_samples
from lab3.errors import InfraError, Lab3Error, UsageError
from lab3.models import ModelConfig, check_folder, loadable, model_tensors, read_config
from lab3.places import check_beside, make_folder
from lab3.progress import Progress, silent
from lab3.structure import check_quantizable

GROUP_SIZES = (128, 64, 32)
# Keys of LAYER_TYPE_MAP in LMDeploy 0.18 (lmdeploy/lite/apis/calibrate.py) that are dense decoders of text; copied,
# because importing LMDeploy takes seconds, and compared with it by a test.
SUPPORTED = frozenset(
    f"{name}ForCausalLM" for name in ("InternLM2", "InternLM3", "Llama", "Mistral", "Phi3", "Qwen2", "Qwen3")
)
# Files that LMDeploy's lite writes beside the model and no engine reads.
BY_PRODUCTS = ("inputs_stats.pth", "outputs_stats.pth")


@dataclass(frozen=True)
class QuantizeResult:
    """What was made and what it cost.

    Weight bytes are the bytes of the tensors in the safetensors files; folder bytes are the blocks the file system
    allocates, as `du -s` counts them. Perplexities are on lab3's held-out conversations, None when not measured:
    of the model before and after, and after with keys and values through an int4 KV cache, with what that does to the
    keys of each layer (`lab3.kv_quality.KVQuality.key_errors`).
    """

    source: Path
    out: Path
    bits: int
    group_size: int
    samples: int
    seqlen: int
    search_scale: bool
    device: str
    weight_bytes_before: int
    weight_bytes_after: int
    predicted_weight_bytes: int
    folder_bytes_before: int
    folder_bytes_after: int
    perplexity_before: float | None
    perplexity_after: float | None
    perplexity_kv_int4: float | None
    kv_int4_key_errors: tuple[float, ...]
    seconds: float
    notices: tuple[str, ...]

    @property
    def prediction_error(self) -> float:
        """(predicted - found) / found, of the weight bytes after."""
        return (self.predicted_weight_bytes - self.weight_bytes_after) / self.weight_bytes_after

    @property
    def perplexity_ratio(self) -> float | None:
        """Perplexity after / before: 1.05 means 5% worse."""
        if self.perplexity_before is None or self.perplexity_after is None:
            return None
        return self.perplexity_after / self.perplexity_before

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived figures, for JSON."""
        derived = {"prediction_error": self.prediction_error, "perplexity_ratio": self.perplexity_ratio}
        return {**asdict(self), "source": str(self.source), "out": str(self.out), **derived}


def quantize(
    model: Path,
    out: Path,
    *,
    samples: int | None = None,
    seqlen: int | None = None,
    bits: int = 4,
    group_size: int = 128,
    search_scale: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    calibration: Path | None = None,
    quality: bool = True,
    overwrite: bool = False,
    progress: Progress = silent,
) -> QuantizeResult:
    """Quantize the folder `model` to W4A16 AWQ in the new folder `out`.

    `samples` x `seqlen` tokens calibrate it: by default the lab's 128 x 2048 on a GPU, and on the CPU lab3's own text
    once, in blocks of 512. `batch_size` costs memory, saves time and changes no figure, but with `search_scale`,
    which searches once for each batch; by default up to 16, on a GPU as many as its free memory allows. `group_size` is
    taken down to 64 or 32 where 128 does not divide every linear layer's inputs; a notice says so.
    `device` is "auto", "cpu", "cuda" or "cuda:N"; `dtype`, that of the scales and of
    what is not quantized, is "auto" (float16), "float16" or "bfloat16". `quality` measures the perplexities.

    Raises UsageError for input that cannot be quantized (already quantized, an architecture LMDeploy's AWQ does not
    know, bits other than 4, what `check_target` says of `out`, unusable calibration text) and InfraError when
    the disk is too small or LMDeploy fails. Either way `out` is as it was.
    """
    started = time.monotonic()
    given, out = check_folder(Path(model).resolve()), Path(out).absolute()
    check_quantizable(given)
    model = loadable(given, progress=progress)
    config = read_config(model)
    _check_request(bits=bits, samples=samples, seqlen=seqlen, batch_size=batch_size, device=device, dtype=dtype)
    _check_model(model, config)
    if out == model or out in model.parents or model in out.parents:
        raise UsageError(f"{out} overlaps the source {model}", todo="write to a folder beside it")
    check_target(out, overwrite=overwrite)
    if calibration is not None:
        read_samples(calibration)  # so that a bad file is refused before the model is read
    notices = []
    chosen = choose_group_size(config, group_size)
    if chosen != group_size:
        inputs = "/".join(str(size) for size in sorted(_input_sizes(config)))
        notices.append(f"group size {chosen} instead of {group_size}, which does not divide {inputs} inputs")
        progress(notices[-1])
    predicted = predict_weight_bytes(config, group_size=chosen)
    _check_disk(out, predicted)

    scratch = _make_scratch(out)
    try:
        job = {
            "model": str(model),
            "out": str(scratch / "model"),
            "samples": samples,
            "seqlen": seqlen,
            "bits": bits,
            "group_size": chosen,
            "search_scale": search_scale,
            "batch_size": batch_size,
            "device": device,
            "dtype": dtype,
            "calibration": str(calibration.absolute()) if calibration else None,
            "quality": quality,
        }
        answer = _run_worker(job, scratch, progress)
        finish_folder(model, scratch / "model")
        _put_in_place(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return QuantizeResult(
        source=model,
        out=out,
        bits=bits,
        group_size=chosen,
        samples=int(answer["samples"]),
        seqlen=int(answer["seqlen"]),
        search_scale=search_scale,
        device=str(answer["device"]),
        weight_bytes_before=sum(tensor.size_bytes for tensor in model_tensors(model)),
        weight_bytes_after=sum(tensor.size_bytes for tensor in model_tensors(out)),
        predicted_weight_bytes=predicted,
        folder_bytes_before=folder_bytes(model),
        folder_bytes_after=folder_bytes(out),
        perplexity_before=answer["perplexity_before"],
        perplexity_after=answer["perplexity_after"],
        perplexity_kv_int4=answer["perplexity_kv_int4"],
        kv_int4_key_errors=tuple(answer["kv_int4_key_errors"]),
        seconds=time.monotonic() - started,
        notices=(*notices, *answer["notices"]),
    )


def check_target(out: Path, *, overwrite: bool = False) -> None:
    """Raise UsageError for what no quantized model can be put at: what exists, unless it is a model and `overwrite`."""
    check_beside(out)
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists", todo="choose another folder, or pass --overwrite to replace it")
    if out.exists() and not (out / "config.json").is_file():
        raise UsageError(f"{out} is not a model folder, so it is not overwritten", todo="choose another folder")


def choose_group_size(config: ModelConfig, asked: int = 128) -> int:
    """The largest of 128, 64 and 32 that is at most `asked` and divides the inputs of every linear layer.

    Raises UsageError when none does, or `asked` is none of them.
    """
    if asked not in GROUP_SIZES:
        raise UsageError(f"group size {asked}", why="LMDeploy's engines read 128, and some 64 and 32", todo="use 128")
    for size in GROUP_SIZES:
        if size <= asked and not any(inputs % size for inputs in _input_sizes(config)):
            return size
    inputs = ", ".join(str(size) for size in sorted(_input_sizes(config)))
    raise UsageError(
        f"no group size of {asked} or less divides every linear layer's inputs ({inputs})",
        why="AWQ gives every group of that many inputs a scale of its own",
        todo="use a model whose hidden and intermediate sizes are multiples of 32",
    )


def predict_weight_bytes(config: ModelConfig, *, group_size: int) -> int:
    """Bytes of the weights of a dense decoder after W4A16 quantization, from its config alone.

    A linear layer of K inputs and N outputs takes K*N/2 bytes of packed int4, (K/g)*N*2 of fp16 scales and (K/g)*N/2 of
    packed int4 zeros (qzeros: int32 [K/g, N/8]). A layer has q and o (hidden x heads*head_dim), k and v
    (hidden x kv_heads*head_dim), gate, up and down (hidden x intermediate). Embeddings, head (unless tied) and the
    2*layers + 1 norms stay at 16 bits. Biases and the norms of q and k are left out (below 0.1%).
    """

    def packed(inputs: int, outputs: int) -> int:
        groups = inputs // group_size
        return inputs * outputs // 2 + groups * outputs * 2 + groups * outputs // 2

    hidden, middle = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = packed(hidden, queries) + 2 * packed(hidden, keys) + packed(queries, hidden)
    mlp = 2 * packed(hidden, middle) + packed(middle, hidden)
    tables = config.vocab_size * hidden * (1 if config.tied_embeddings else 2)
    norms = (2 * config.layers + 1) * hidden
    return config.layers * (attention + mlp) + 2 * (tables + norms)


def folder_bytes(folder: Path) -> int:
    """What `du -s` counts, in bytes: the allocated blocks of the folder and all in it, a hard link once."""
    seen: dict[tuple[int, int], int] = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def finish_folder(source: Path, made: Path) -> None:
    """Drop LMDeploy's by-products, and carry along what serving needs and LMDeploy does not write itself."""
    for name in BY_PRODUCTS:
        (made / name).unlink(missing_ok=True)
    for name in ("chat_template.jinja", "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, made / name)
    for file in made.iterdir():
        file.chmod(0o644)  # safetensors files are written for their owner only; a server may run as another user
    check_folder(made)


def _input_sizes(config: ModelConfig) -> set[int]:
    return {config.hidden_size, config.heads * config.head_dim, config.intermediate_size}


def _check_request(
    *, bits: int, samples: int | None, seqlen: int | None, batch_size: int | None, device: str, dtype: str
) -> None:
    if bits != 4:
        raise UsageError(f"{bits} bits", why="LMDeploy's AWQ engines read 4-bit weights only", todo="use --bits 4")
    for name, value, least in (("samples", samples, 1), ("seqlen", seqlen, 8), ("batch size", batch_size, 1)):
        if value is not None and value < least:
            raise UsageError(f"{name} {value}", todo=f"use {least} or more")
    if device not in ("auto", "cpu", "cuda") and not device.removeprefix("cuda:").isdigit():
        raise UsageError(f"device {device!r}", todo="use auto, cpu, cuda or cuda:N")
    if dtype not in ("auto", "float16", "bfloat16"):
        raise UsageError(f"dtype {dtype!r}", todo="use auto, float16 or bfloat16")


def _check_model(model: Path, config: ModelConfig) -> None:
    if config.architecture not in SUPPORTED:
        raise UsageError(
            f"{model} is a {config.architecture or 'model without architecture'}, which lab3 cannot quantize",
            why="LMDeploy's AWQ knows the layers of a few architectures only",
            todo=f"use one of {', '.join(sorted(SUPPORTED))}",
        )


def _check_disk(out: Path, needed_bytes: int) -> None:
    place = next(folder for folder in out.parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    wanted = needed_bytes * 11 // 10 + 50_000_000  # the tokenizer, and room to breathe
    if free < wanted:
        raise InfraError(
            f"{place} has {free / 1e9:.1f} GB free, and {wanted / 1e9:.1f} GB are needed for {out.name}",
            todo="make room, or write to another disk",
        )


def _make_scratch(out: Path) -> Path:
    """A folder beside `out`, on the same file system, so that a rename puts the result in place."""
    make_folder(out.parent)
    return Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))


def _put_in_place(scratch: Path, out: Path) -> None:
    if out.exists():
        out.rename(scratch / "old")
    try:
        (scratch / "model").rename(out)
    except OSError:
        if (scratch / "old").exists():
            (scratch / "old").rename(out)
        raise


def _run_worker(job: dict[str, Any], scratch: Path, progress: Progress) -> dict[str, Any]:
    """Run the job in a child process; its events arrive on its standard output, one JSON object a line."""
    log = scratch / "log.txt"
    answer: dict[str, Any] = {}
    with log.open("wb") as log_stream:
        worker = subprocess.Popen(
            [sys.executable, "-m", "lab3.quantize_worker", json.dumps(job)],
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, however it ends
            stdout=subprocess.PIPE,
            stderr=log_stream,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the worker
            env={**threads.PATIENT, **os.environ, **bytecode.kept()},
        )
    try:
        for line in worker.stdout or ():
            event = json.loads(line)
            if "message" in event:
                progress(event["message"], done=event["done"], total=event["total"])
            else:
                answer = event
        worker.wait()
    finally:
        worker.kill()
        worker.wait()
    if "result" in answer:
        return dict(answer["result"])
    if "error" in answer:
        error = answer["error"]
        raise _ERRORS[error["kind"]](error["what"], why=error["why"], todo=error["todo"])
    raise InfraError(
        f"LMDeploy's AWQ ended with status {worker.returncode}: {_last_lines(log)}",
        why="the process was killed, probably for want of memory" if worker.returncode == -9 else "",
        todo="free memory or use fewer, shorter samples; otherwise report the lines above",
    )


_ERRORS: dict[str, type[Lab3Error]] = {"UsageError": UsageError, "InfraError": InfraError}


def _last_lines(log: Path, count: int = 5) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or "it wrote nothing"
