"""InternLM2 in Llama's layout says what LMDeploy's own InternLM2 says, an implementation nobody here wrote."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lab3.internlm2 import to_llama
from tests import internlm2_folder as made

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]

IDS = random.Random(0).choices(range(3, made.PIECES), k=180)  # more than the 64 positions before RoPE is scaled


@pytest.fixture(scope="module")
def cpu_device() -> Iterator[None]:
    from lab3 import cpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB3_CPU_MEMORY", "6GiB")
        cpu.install()
        yield
        cpu.uninstall()


def logits(folder: Path) -> torch.Tensor:
    """Of each of `IDS` [180, vocabulary], by LMDeploy's PyTorch engine in fp32."""
    from lmdeploy import PytorchEngineConfig, pipeline

    config = PytorchEngineConfig(cache_max_entry_count=0.05, session_len=512, dtype="float32")
    with pipeline(str(folder), backend_config=config, log_level="ERROR") as pipe:
        found: Any = pipe._run(coro=pipe.async_engine.async_get_logits(input_ids=[IDS])).result()[0]
    return found.float()


@pytest.fixture(scope="module")
def source(internlm2_tokenizer: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write(tmp_path_factory.mktemp("source") / "internlm2", internlm2_tokenizer)


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_llama(source, tmp_path_factory.mktemp("converted") / "llama")


@pytest.fixture(scope="module")
def native_logits(source: Path, converted: Path, cpu_device: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of the checkpoint as it is: LMDeploy has an InternLM2 of its own, once the config points to no remote code."""
    folder = tmp_path_factory.mktemp("native")
    shutil.copy(source / "model.safetensors", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(converted / name, folder)
    config = made.config()
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    return logits(folder)


def test_the_logits_are_those_of_lmdeploy_s_own_internlm2(native_logits: torch.Tensor, converted: Path):
    assert native_logits.std() > 0.1
    assert torch.allclose(logits(converted), native_logits, atol=1e-4)


def test_they_are_not_without_the_scaling_of_rope(native_logits: torch.Tensor, converted: Path, tmp_path: Path):
    shutil.copytree(converted, tmp_path / "plain")
    config = json.loads((converted / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    assert (logits(tmp_path / "plain") - native_logits).abs().max() > 1e-2
