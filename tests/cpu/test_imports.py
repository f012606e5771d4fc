"""A server on the CPU imports what text needs; what it leaves out is there for those who ask for it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab3.cpu import patches
from lab3.cpu.__main__ import main
from lab3.cpu.patches import IMPORTS, import_less, uninstall
from lab3.errors import UsageError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]


@pytest.fixture(autouse=True)
def _garbage_is_no_part_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes what there is for imported, which in this process may be an engine that nobody has any more."""
    monkeypatch.setattr("lab3.cpu.__main__.all_of_it_stays", contextlib.nullcontext)


# What api_server does before its engine starts, and the modules of layers, in a Python of its own.
_START = """
import json, sys
from lab3.cpu.patches import import_less, install

moved = import_less()
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
    "moved": moved,
    "imported": imported,
    "read": len(read),
    "scale": scale.tolist(),
}))
"""


@pytest.fixture
def as_it_was() -> Iterator[None]:
    yield
    uninstall()


def current() -> list[Any]:
    return [patches._find(patch)[2] for patch in IMPORTS]


def test_a_servers_start_imports_nothing_for_pictures_compilers_and_clusters(embedded_model: Path):
    done = subprocess.run(
        [sys.executable, "-c", _START, str(embedded_model)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["moved"] == []
    assert told["imported"] == []
    assert told["read"] < 100  # sources, which tell what transformers has; all its models were read once before
    assert told["task"] == "llm"
    assert "<|im_start|>user\nHi<|im_end|>\n" in told["prompt"]
    assert told["scale"] == [[pytest.approx(3 / 12.5**0.5)] * 2]


def test_a_processor_is_imported_when_it_is_asked_for(embedded_model: Path, as_it_was: None):
    from transformers.models.auto.processing_auto import AutoProcessor

    assert import_less() == []
    import transformers  # now: importing the processors makes the module anew

    assert transformers.AutoProcessor is not AutoProcessor
    assert type(transformers.AutoProcessor.from_pretrained(embedded_model)) is type(
        AutoProcessor.from_pretrained(embedded_model)
    )


def test_a_tokenizer_is_read_once_by_those_who_ask_for_it_in_the_same_way(
    embedded_model: Path, embedded_base: Path, tmp_path: Path, as_it_was: None
):
    from transformers import AutoTokenizer

    assert import_less() == []
    first = AutoTokenizer.from_pretrained(embedded_model)
    same = tmp_path / "same"
    same.symlink_to(embedded_model)
    assert AutoTokenizer.from_pretrained(str(same)) is first
    assert AutoTokenizer.from_pretrained(embedded_base) is not first
    left = AutoTokenizer.from_pretrained(embedded_model, padding_side="left")
    assert (left.padding_side, first.padding_side) == ("left", "right")
    uninstall()
    assert AutoTokenizer.from_pretrained(embedded_model) is not first


@pytest.mark.parametrize("disabled", ["1", "0"])
def test_torch_compiles_for_those_who_ask_for_it(disabled: str, monkeypatch: pytest.MonkeyPatch, as_it_was: None):
    import torch

    def function() -> int:
        return 3

    monkeypatch.setenv("TORCHDYNAMO_DISABLE", disabled)
    compiler = torch.compile
    assert import_less() == []
    if disabled == "0":
        assert torch.compile is compiler
    else:
        assert torch.compile(function, dynamic=True) is function
        assert torch.compile(dynamic=True)(function) is function


def test_what_is_imported_less_is_taken_back(monkeypatch: pytest.MonkeyPatch, as_it_was: None):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    before = current()
    assert import_less() == []
    assert import_less() == []
    assert all(now is not then for now, then in zip(current(), before, strict=True))
    uninstall()
    assert all(now is then for now, then in zip(current(), before, strict=True))
    assert "TORCHDYNAMO_DISABLE" not in os.environ


def test_what_nobody_has_asked_for_is_not_imported_to_be_put_back(monkeypatch: pytest.MonkeyPatch):
    class Lazy(types.ModuleType):
        def __dir__(self) -> list[str]:
            return ["Processor"]

        def __getattr__(self, name: str) -> str:
            return f"{name}, imported"

    lazy = Lazy("tests.lazy")
    monkeypatch.setitem(sys.modules, "tests.lazy", lazy)
    monkeypatch.setattr(patches, "IMPORTS", (patches.Patch("tests.lazy:Processor", "of a test", lambda _: "ours"),))
    assert import_less() == []
    assert lazy.Processor == "ours"
    uninstall()
    assert "Processor" not in vars(lazy)
    assert lazy.Processor == "Processor, imported"


def test_what_has_moved_is_told_and_the_rest_is_done(monkeypatch: pytest.MonkeyPatch, capsys, as_it_was: None):
    moved = [dataclasses.replace(IMPORTS[0], where="torch.testing:_HAS_MOVED")]
    moved += [dataclasses.replace(IMPORTS[2], parameters=("folder",))]
    monkeypatch.setattr(patches, "IMPORTS", (moved[0], IMPORTS[1], moved[1]))
    monkeypatch.setattr(patches, "install", _enough)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    import torch

    compiler = torch.compile
    assert main(["lmdeploy", "chat", "m"]) == 2
    first, second, _ = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: the start is slower than it could be")
    assert "torch.testing:_HAS_MOVED" in first
    assert "create_import_structure_from_path: takes module_path" in second
    assert torch.compile is not compiler


def _enough() -> None:
    raise UsageError("enough")


@pytest.mark.parametrize(
    ("command", "less"), [("serve api_server m", True), ("chat m", True), ("lite auto_awq m", False)]
)
def test_commands_that_answer_import_less(command: str, less: bool, monkeypatch: pytest.MonkeyPatch):
    called: list[None] = []
    monkeypatch.setattr(patches, "import_less", lambda: called.append(None) or [])
    monkeypatch.setattr(patches, "install", _enough)
    assert main(["lmdeploy", *command.split()]) == 2
    assert bool(called) is less
