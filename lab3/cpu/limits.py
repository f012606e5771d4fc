"""What the CPU device cannot do, said before anything is loaded."""

from __future__ import annotations

from typing import Any

from lab3.errors import UsageError

_ON_A_GPU = "Leave the option out, or serve on a machine with an NVIDIA GPU, without lab3.cpu."


def check_engine_config(config: Any) -> None:
    """Refuse a `PytorchEngineConfig` that asks for what this device does not have.

    Raises:
        UsageError: names the option and what to do.
    """
    for option in ("tp", "dp", "ep"):
        if getattr(config, option) > 1:
            raise UsageError(
                f"--{option} {getattr(config, option)}: the CPU device is a single device.",
                why="Tensor, data and expert parallelism spread a model over several GPUs.",
                todo=f"Use --{option} 1.",
            )
    if config.adapters:
        raise UsageError("The CPU device has no LoRA adapters.", todo="Merge the adapter into the model first (peft).")
    if int(config.quant_policy) not in (0, 4, 8):
        raise UsageError(
            f"--quant-policy {int(config.quant_policy)}: the CPU's KV caches are 16-bit (0), int8 (8), int4 (4).",
            todo="Use --quant-policy 0, 8 or 4.",
        )
    if config.model_format not in (None, "hf", "awq"):
        raise UsageError(
            f"--model-format {config.model_format}: the CPU device runs unquantized (hf) and AWQ weights.",
            todo=_ON_A_GPU,
        )


def refuse_turbomind() -> None:
    """Raises: UsageError, always."""
    raise UsageError(
        "TurboMind cannot run on the CPU.",
        why="It is a CUDA engine.",
        todo="Use --backend pytorch, or a machine with an NVIDIA GPU, without lab3.cpu.",
    )


def refuse_vision(model_path: str) -> None:
    """Raises: UsageError, always."""
    raise UsageError(
        f"{model_path} is a vision-language model; the CPU device serves text only.",
        todo="Serve a text model, or add --language-model-only if the model allows it.",
    )


def refuse_speculation() -> None:
    """Raises: UsageError, always."""
    raise UsageError("The CPU device has no speculative decoding.", todo="Leave out --speculative-algorithm.")
