"""A server on the CPU imports what text needs; what it leaves out is there for those who ask for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab3.cpu.__main__ import main
from lab3.cpu.imports import import_less
from lab3.errors import UsageError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]

# What api_server does before its engine starts, and the modules of layers, in a Python of its own.
_START = """
import json, sys
from lab3.cpu.imports import import_less
from lab3.cpu.patches import install

import_less()
from transformers.utils import import_utils
read = []
all_of = import_utils.fetch__all__
import_utils.fetch__all__ = lambda source: read.append(source) or all_of(source)
install()
import lmdeploy.pytorch.backends.default.rotary_embedding
import lmdeploy.pytorch.nn.norm
from lmdeploy.archs import get_task
from lmdeploy.model import get_chat_template
from lmdeploy.pytorch.check_env.torch import TorchChecker

model = sys.argv[1]
task, _ = get_task("pytorch", model)
template = get_chat_template(model)
TorchChecker(device="cpu").check()
unused = ("torchvision", "torch._dynamo", "torch.distributed.tensor", "sympy", "transformers.processing_utils")
imported = [name for name in unused if sys.modules.get(name)]
import torch
scale = lmdeploy.pytorch.nn.norm.rms_scale(torch.full((1, 2), 3.0), torch.tensor([[3.0, 4.0]]), eps=0.0)
print(json.dumps({
    "task": task,
    "prompt": template.messages2prompt("Hi"),
    "imported": imported,
    "read": len(read),
    "scale": scale.tolist(),
}))
"""


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import transformers
    from transformers.utils import import_utils

    monkeypatch.setattr(torch, "compile", torch.compile)
    monkeypatch.setattr(torch.testing._comparison, "_HAS_DTENSOR", torch.testing._comparison._HAS_DTENSOR)
    structure = import_utils.create_import_structure_from_path
    monkeypatch.setattr(import_utils, "create_import_structure_from_path", structure)
    monkeypatch.setattr(transformers, "AutoProcessor", transformers.AutoProcessor)
    for module in (import_utils, transformers.utils):
        for name in ("is_torchvision_available", "is_torch_distributed_available"):
            monkeypatch.setattr(module, name, getattr(module, name))


def test_a_servers_start_imports_nothing_for_pictures_compilers_and_clusters(embedded_model: Path):
    done = subprocess.run(
        [sys.executable, "-c", _START, str(embedded_model)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["imported"] == []
    assert told["read"] < 100  # sources, which tell what transformers has; all its models were read once before
    assert told["task"] == "llm"
    assert "<|im_start|>user\nHi<|im_end|>\n" in told["prompt"]
    assert told["scale"] == [[pytest.approx(3 / 12.5**0.5)] * 2]


def test_a_processor_is_imported_when_it_is_asked_for(embedded_model: Path, as_it_was: None):
    import transformers

    processors = transformers.AutoProcessor
    import_less()
    assert transformers.AutoProcessor is not processors
    assert type(transformers.AutoProcessor.from_pretrained(embedded_model)) is type(
        processors.from_pretrained(embedded_model)
    )


@pytest.mark.parametrize("disabled", ["1", "0"])
def test_torch_compiles_for_those_who_ask_for_it(disabled: str, monkeypatch: pytest.MonkeyPatch, as_it_was: None):
    import torch

    def function() -> int:
        return 3

    monkeypatch.setenv("TORCHDYNAMO_DISABLE", disabled)
    compiler = torch.compile
    import_less()
    if disabled == "0":
        assert torch.compile is compiler
    else:
        assert torch.compile(function, dynamic=True) is function
        assert torch.compile(dynamic=True)(function) is function


@pytest.mark.parametrize(
    ("command", "less"), [("serve api_server m", True), ("chat m", True), ("lite auto_awq m", False)]
)
def test_commands_that_answer_import_less(command: str, less: bool, monkeypatch: pytest.MonkeyPatch):
    called: list[None] = []

    def stop() -> None:
        raise UsageError("enough")

    monkeypatch.setattr("lab3.cpu.imports.import_less", lambda: called.append(None))
    monkeypatch.setattr("lab3.cpu.patches.install", stop)
    assert main(["lmdeploy", *command.split()]) == 2
    assert bool(called) is less
