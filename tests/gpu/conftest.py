"""A checkpoint of InternLM2.5-1.8B's shape with random weights: sizes and memory do not depend on their values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab3.errors import InfraError

if TYPE_CHECKING:
    from lab3.quantize import QuantizeResult


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    from lab3 import vram

    if not vram.devices():
        raise InfraError("no NVIDIA GPU", todo="run these tests (`tox -e gpu`) on a machine that has one")


@pytest.fixture(scope="module")
def own_gpu(quantization: QuantizeResult) -> Iterator[None]:
    """A GPU that no other lab3 process of this user leases, for tests that start servers by themselves.

    Quantization leases one by itself and comes first: it would wait for this one for ever.
    """
    from lab3.gpu_lease import lease
    from lab3.hub import LEASE_TIMEOUT_S

    with lease(1, timeout_s=LEASE_TIMEOUT_S) as leased, pytest.MonkeyPatch.context() as patch:
        for name, value in leased.env.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def random_1_8b(embedded_model: Path, shared_folder: Path) -> Path:
    """1,889,110,016 parameters in Llama layout, bf16, with the embedded model's tokenizer and chat template."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    out = shared_folder / "random-1.8b"
    if out.exists():
        return out
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=8192,
        vocab_size=92544,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(embedded_model / name, out / name)
    del model
    torch.cuda.empty_cache()
    return out
