"""What the GPU tests share: the lab done once on InternLM2.5-1.8B's shape, with random weights.

Sizes, memory and capacity do not depend on the weights' values.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab3.errors import InfraError

NAME = "internlm2_5-1_8b-chat"
SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
}


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    from lab3 import vram

    if not vram.devices():
        raise InfraError("no NVIDIA GPU", todo="run these tests (`tox -e gpu`) on a machine that has one")


@dataclass(frozen=True)
class Lab:
    """What `lab3 run` left of the 1.8B: its exit code and report, and the folders that it served."""

    returncode: int
    report: dict[str, Any]
    source: Path  # in Llama's layout
    w4a16: Path
    progress: str

    @property
    def statuses(self) -> dict[str, str]:
        """Check → verdict."""
        return {verdict["id"]: verdict["status"] for verdict in self.report["verdicts"]}


@pytest.fixture(scope="session")
def internlm2(internlm2_tokenizer: bytes, shared_folder: Path) -> Path:
    """InternLM2.5-1.8B as the hub has it, remote code and all: 1,889,110,016 random parameters."""
    from tests import internlm2_folder

    folder = shared_folder / NAME
    return folder if folder.exists() else internlm2_folder.write(folder, internlm2_tokenizer, device="cuda", **SHAPE)


@pytest.fixture(scope="session")
def lab(internlm2: Path, shared_folder: Path) -> Lab:
    """`lab3 run` on it. It leases the GPU by itself, so nobody may hold one while this is made."""
    from lab3.models import resolve

    out = shared_folder / "lab3-run"
    command = [sys.executable, "-m", "lab3", "run", "--model", str(internlm2), "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return Lab(done.returncode, json.loads(done.stdout), resolve(internlm2), out / f"{NAME}-w4a16", done.stderr)


@pytest.fixture(scope="module")
def own_gpu(lab: Lab) -> Iterator[None]:
    """A GPU that no other lab3 process of this user leases, for tests that start servers by themselves.

    The lab leases one by itself and comes first: it would wait for this one for ever.
    """
    from lab3.gpu_lease import lease
    from lab3.hub import LEASE_TIMEOUT_S

    with lease(1, timeout_s=LEASE_TIMEOUT_S) as leased, pytest.MonkeyPatch.context() as patch:
        for name, value in leased.env.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def wide_model(embedded_model: Path, shared_folder: Path) -> Path:
    """The embedded model with heads of 128 channels, half of them zero: the same function.

    TurboMind's int4 KV cache has no kernel for heads of 64. A channel pair keeps its place among the frequencies of
    the rotary embedding, and queries are scaled by the root of two, since scores are divided by that of head_dim.
    """
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    out = shared_folder / "embedded-wide"
    narrow = AutoModelForCausalLM.from_pretrained(embedded_model, dtype=torch.float32)
    dim = narrow.config.hidden_size // narrow.config.num_attention_heads
    fields = {name: value for name, value in narrow.config.to_dict().items() if name != "transformers_version"}
    wide = LlamaForCausalLM(LlamaConfig(**fields | {"head_dim": 2 * dim})).float()
    places = torch.cat([torch.arange(0, dim, 2), dim + torch.arange(0, dim, 2)])
    state = dict(narrow.state_dict())
    for name, weight in narrow.state_dict().items():
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            heads = torch.zeros(len(weight) // dim, 2 * dim, weight.shape[1])
            heads[:, places] = weight.view(-1, dim, weight.shape[1]) * (2**0.5 if kind == "q_proj" else 1)
            state[name] = heads.flatten(0, 1)
        elif kind == "o_proj":
            heads = torch.zeros(len(weight), weight.shape[1] // dim, 2 * dim)
            heads[:, :, places] = weight.view(len(weight), -1, dim)
            state[name] = heads.flatten(1)
    wide.load_state_dict(state)
    wide.tie_weights()
    ids = torch.arange(100, 140)[None]
    with torch.inference_mode():
        torch.testing.assert_close(wide(ids).logits, narrow(ids).logits, rtol=1e-3, atol=1e-3)
    wide.half().save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(embedded_model / name, out)
    return out
