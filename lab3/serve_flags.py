"""Which of LMDeploy's engines serves a model on this machine, and with which flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Literal

from lab3.errors import InfraError, UsageError
from lab3.models import ModelConfig

Engine = Literal["turbomind", "pytorch", "cpu"]

QUANT_POLICY = {16: 0, 8: 8, 4: 4}  # bits of a number in the KV cache -> LMDeploy's --quant-policy
TURBOMIND_AWQ_GROUP_SIZE = 128  # lmdeploy/turbomind/converter.py
# Heads that wide end TurboMind's server at the first token of an int4 KV cache ("CUDA error: misaligned address",
# LMDeploy 0.18 on an H100); heads of 128 do not.
TURBOMIND_NO_INT4_HEAD_DIM = 64
OLDEST_CAPABILITY = (7, 0)  # of TurboMind's kernels, and of Triton's for the PyTorch engine
_MIG_CAPABILITY = "8.0"  # NVML does not tell a slice's; the first cards that can be sliced have this one


def engine_for(
    config: ModelConfig, wish: Engine | Literal["auto"], env: Mapping[str, str], *, kv_bits: int = 16
) -> Engine:
    """The engine for `wish`, where "auto" asks the hardware. Raises UsageError for one that cannot serve the model."""
    if wish not in ("auto", "turbomind", "pytorch", "cpu"):
        raise UsageError(f"there is no engine {wish!r}", todo="choose auto, turbomind, pytorch or cpu")
    if wish != "cpu" and (capability := gpu_capability(env)) is not None and capability < OLDEST_CAPABILITY:
        raise UsageError(
            f"the GPU's compute capability is {capability[0]}.{capability[1]}",
            why="LMDeploy's engines need 7.0 (Volta) or newer",
            todo="choose the engine 'cpu', or another GPU with CUDA_VISIBLE_DEVICES",
        )
    if wish == "auto":
        return choose_engine(config, gpu_capability(env), kv_bits=kv_bits)
    if wish == "turbomind" and (obstacle := _turbomind_obstacle(config, kv_bits)):
        raise UsageError("TurboMind cannot serve this model", why=obstacle[0], todo=obstacle[1])
    return wish


def check_gpu(wish: str, env: Mapping[str, str] = os.environ) -> None:
    """Raise InfraError for an engine that wants a GPU on a machine that has none, before minutes go into it."""
    if wish in ("turbomind", "pytorch") and gpu_capability(env) is None:
        raise InfraError(
            f"the engine '{wish}' needs an NVIDIA GPU",
            why="no driver on this machine tells of one that this process may use",
            todo="choose the engine 'auto' or 'cpu'; `lab3 doctor` says what is missing",
        )


def choose_engine(config: ModelConfig, capability: tuple[int, int] | None, *, kv_bits: int = 16) -> Engine:
    """The fastest engine that serves the model: `capability` is the GPU's compute capability, None without a GPU."""
    if capability is None:
        return "cpu"
    return "pytorch" if _turbomind_obstacle(config, kv_bits) else "turbomind"


def server_flags(
    config: ModelConfig,
    *,
    engine: Engine,
    kv_bits: int,
    cache_ratio: float,
    dtype: str = "auto",
    session_len: int | None = None,
    max_batch_size: int | None = None,
    tool_call_parser: str | None = "internlm",
) -> list[str]:
    """LMDeploy's flags for these wishes. Raises UsageError for what LMDeploy would refuse after loading torch."""
    if kv_bits not in QUANT_POLICY:
        raise UsageError(f"kv_bits={kv_bits} is not offered", todo="choose 16 (no quantization), 8 or 4")
    if not 0 < cache_ratio < 1:
        raise UsageError(
            f"cache_ratio={cache_ratio} is out of range",
            why="LMDeploy takes a share of the memory that is free after the weights, and needs some for itself",
            todo="choose more than 0 and less than 1, such as 0.8 or 0.4",
        )
    if dtype not in ("auto", "float16", "bfloat16"):
        raise UsageError(f"dtype={dtype} is not offered", todo="choose auto, float16 or bfloat16")
    for name, value in {"session_len": session_len, "max_batch_size": max_batch_size}.items():
        if value is not None and value < 1:
            raise UsageError(f"{name}={value} is not a positive number", todo="leave it out for LMDeploy's own choice")
    is_awq = _quant_method(config) == "awq"
    optional = {
        "--dtype": dtype,
        "--model-format": "awq" if is_awq else None,
        "--session-len": session_len,
        "--max-batch-size": max_batch_size,
        "--tool-call-parser": tool_call_parser,
    }
    return [
        *["--backend", "turbomind" if engine == "turbomind" else "pytorch"],
        *(["--device", "cpu"] if engine == "cpu" else []),
        *["--quant-policy", str(QUANT_POLICY[kv_bits]), "--cache-max-entry-count", f"{cache_ratio:g}"],
        *(word for flag, value in optional.items() if value is not None for word in (flag, str(value))),
        # A prompt costs a CPU half a second, and each round of tool calls begins with the prompt of the one before. The
        # bits of an answer do not depend on what the cache held where the weights have 4 (lab3/cpu/linear.py).
        *(["--enable-prefix-caching"] if engine == "cpu" and is_awq else []),
        *["--log-level", "INFO"],  # WARNING shows neither how far the loading is nor how many KV blocks there are
    ]


def launcher_of(engine: Engine) -> list[str]:
    """What comes before `serve api_server`: LMDeploy, or LMDeploy with lab3's CPU device."""
    module = ["lab3.cpu", "lmdeploy"] if engine == "cpu" else ["lmdeploy"]
    return [sys.executable, "-m", *module]


def gpu_capability(environ: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """The compute capability of the first GPU that a process with this environment sees, None without one (NVML)."""
    from lab3.nvml import devices

    found = devices(environ=environ)
    if not found:
        return None
    major, _, minor = (found[0].compute_capability or _MIG_CAPABILITY).partition(".")
    return int(major), int(minor)


def _turbomind_obstacle(config: ModelConfig, kv_bits: int) -> tuple[str, str] | None:
    """Why TurboMind does not serve it, and what to do."""
    group_size = (config.quantization or {}).get("group_size")
    if _quant_method(config) == "awq" and group_size not in (None, 0, TURBOMIND_AWQ_GROUP_SIZE):
        return (
            f"its AWQ group size is {group_size}, and TurboMind has kernels for {TURBOMIND_AWQ_GROUP_SIZE} only",
            "quantize with group size 128, or use the engine 'pytorch'",
        )
    if kv_bits == 4 and config.head_dim == TURBOMIND_NO_INT4_HEAD_DIM:
        return (
            f"its heads are {config.head_dim} wide, with which TurboMind's int4 KV cache ends at the first token",
            "use 8 bits for the KV cache, or the engine 'pytorch'",
        )
    return None


def _quant_method(config: ModelConfig) -> str | None:
    return (config.quantization or {}).get("quant_method")
