"""The changes to LMDeploy are named, explained, loud when LMDeploy has moved, and undone without a trace."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab3.cpu import patches
from lab3.errors import InfraError, UsageError

pytestmark = pytest.mark.slow


@pytest.fixture
def cpu_device():
    patches.install()
    yield
    patches.uninstall()


def current() -> list[Any]:
    return [patches._find(patch)[2] for patch in patches.PATCHES]


def test_installing_and_uninstalling_leaves_lmdeploy_as_it_was():
    before = current()
    patches.install()
    assert patches.installed()
    assert all(now is not then for now, then in zip(current(), before, strict=True))
    patches.uninstall()
    assert not patches.installed()
    assert all(now is then for now, then in zip(current(), before, strict=True))


@pytest.mark.parametrize("set_before", [None, "0"])
def test_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch, set_before: str | None):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    if set_before is not None:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", set_before)
    before = dict(os.environ)
    patches.install()
    assert os.environ["TORCHDYNAMO_DISABLE"] == (set_before or "1")
    patches.uninstall()
    assert dict(os.environ) == before


def test_installing_twice_is_undone_once():
    before = current()
    patches.install()
    patches.install()
    patches.uninstall()
    assert all(now is then for now, then in zip(current(), before, strict=True))


def test_torch_itself_is_not_touched(cpu_device):
    import lmdeploy.pytorch.engine.model_agent.agent as agent
    import torch

    assert agent.torch is not torch
    assert inspect.ismodule(torch.cuda)
    assert torch.cuda.Stream.__module__.startswith("torch")
    assert agent.torch.cuda.current_stream().query()
    assert agent.torch.Tensor is torch.Tensor


@pytest.mark.parametrize(
    "change",
    [
        {"where": "lmdeploy.pytorch.backends.selector:_get_backend_of_tomorrow"},
        {"where": "lmdeploy.pytorch.backends.moved:_get_backend"},
        {"parameters": ("device_type", "something_new")},
    ],
    ids=["attribute gone", "module gone", "signature changed"],
)
def test_an_lmdeploy_that_has_moved_is_refused_before_anything_is_changed(monkeypatch, change: dict[str, Any]):
    before = current()
    moved = dataclasses.replace(patches.PATCHES[0], **change)
    monkeypatch.setattr(patches, "PATCHES", (*patches.PATCHES[1:], moved))
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    with pytest.raises(InfraError, match="_get_backend"):
        patches.install()
    assert "TORCHDYNAMO_DISABLE" not in os.environ
    monkeypatch.undo()
    assert not patches.installed()
    assert all(now is then for now, then in zip(current(), before, strict=True))


@pytest.mark.parametrize("version", ["0.17.1", "0.19.0"])
def test_another_lmdeploy_is_refused_by_its_version(monkeypatch, version: str):
    import lmdeploy

    monkeypatch.setattr(lmdeploy, "__version__", version)
    with pytest.raises(InfraError, match=version):
        patches.install()
    assert not patches.installed()


def test_every_patch_says_why():
    both = patches.PATCHES + patches.IMPORTS
    assert all(len(patch.why) > 8 for patch in both)
    assert len({patch.where for patch in both}) == len(both)


def test_lmdeploys_own_environment_check_runs_with_the_cpu_in_the_cards_place(cpu_device, embedded_model: Path):
    from lmdeploy import PytorchEngineConfig
    from lmdeploy.pytorch.check_env import model
    from lmdeploy.pytorch.check_env import torch as torch_check
    from lmdeploy.pytorch.engine.engine_checker import EngineChecker

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        for checker in (model.ModelChecker, torch_check.TorchChecker):
            original = checker.check
            patch.setattr(
                checker,
                "check",
                lambda self, original=original: (
                    seen.append((type(self).__name__, getattr(self, "device", None))) or original(self)
                ),
            )
        EngineChecker(str(embedded_model), PytorchEngineConfig(max_batch_size=4), trust_remote_code=False).handle()
        assert ("TorchChecker", "cpu") in seen
        assert "ModelChecker" in {name for name, _ in seen}
        with pytest.raises(SystemExit):
            EngineChecker(
                str(embedded_model.parent), PytorchEngineConfig(max_batch_size=4), trust_remote_code=False
            ).handle()


def test_no_random_weights_are_made_for_a_checkpoint_to_overwrite(cpu_device):
    import torch

    from lab3.cpu.backend import CpuOpsBackend

    before = torch.get_rng_state()
    with CpuOpsBackend.model_build_context(None):
        inside = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 4)
        assert torch.ones(2).sum() == 2, "all else is torch's as ever"
    assert torch.equal(torch.get_rng_state(), before)
    assert [each.weight.shape for each in inside] == [(8, 4), (4, 4)]
    torch.nn.Embedding(8, 4)
    assert not torch.equal(torch.get_rng_state(), before)


def test_turbomind_and_drafts_are_refused_when_they_are_configured(cpu_device):
    from lmdeploy import PytorchEngineConfig, TurbomindEngineConfig
    from lmdeploy.messages import SpeculativeConfig

    with pytest.raises(UsageError, match="TurboMind"):
        TurbomindEngineConfig()
    with pytest.raises(UsageError, match="speculative decoding"):
        SpeculativeConfig("eagle")
    with pytest.raises(UsageError, match="--tp 2"):
        PytorchEngineConfig(tp=2)
    with pytest.raises(AssertionError, match="cache_max_entry_count"):
        PytorchEngineConfig(cache_max_entry_count=1.2)  # LMDeploy's own check still runs
    assert PytorchEngineConfig().device_type == "cpu"


def test_turbomind_is_refused_however_it_is_asked_for(cpu_device):
    """Where it cannot be imported, LMDeploy takes its other engine after a warning."""
    import argparse

    from lmdeploy.cli.utils import ArgumentHelper

    parser = argparse.ArgumentParser()
    ArgumentHelper.backend(parser)
    assert parser.parse_args([]).backend == parser.parse_args(["--backend", "pytorch"]).backend == "pytorch"
    for asked in (["--backend", "turbomind"], ["--backend=turbomind"], ["--back", "turbomind"]):
        with pytest.raises(UsageError, match="TurboMind cannot run on the CPU"):
            parser.parse_args(asked)


def test_a_vision_model_is_refused_before_it_is_loaded(cpu_device, tmp_path: Path):
    from lmdeploy.serve.openai import api_server

    config = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="vision-language model"):
        api_server.get_task("pytorch", str(tmp_path))


def lmdeploy_on_cpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lab3.cpu", "lmdeploy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False)


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ("serve api_server MODEL --tp 2", "--tp 2: the CPU device is a single device"),
        ("serve api_server MODEL --backend=turbomind", "TurboMind cannot run on the CPU"),
    ],
)
def test_the_command_refuses_what_the_cpu_cannot_do_with_the_usage_exit_code(
    arguments: str, refusal: str, embedded_model: Path
):
    done = lmdeploy_on_cpu(*arguments.replace("MODEL", str(embedded_model)).split())
    assert done.returncode == 2
    assert refusal in done.stderr
    assert "what to do" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_offers_the_cpu_and_nothing_else():
    done = lmdeploy_on_cpu("serve", "api_server", "model", "--device", "cuda")
    assert done.returncode == 2
    assert "--device" in done.stderr
    assert "'cpu'" in done.stderr
    assert "usage: lmdeploy serve api_server " in done.stderr  # LMDeploy's own parser


def test_the_command_is_lmdeploys():
    assert lmdeploy_on_cpu("--version").stdout.strip() == "0.18.0"


def test_a_process_of_one_thread_forks_its_engine_and_another_spawns_it():
    """In a process of its own, since this one has had threads."""
    code = """
import gc, multiprocessing, threading
from lab3.cpu.worker import Multiprocessing
ours = Multiprocessing(multiprocessing)
print(ours.get_context("forkserver").get_start_method(), gc.get_freeze_count() > 0)
print(ours.get_context("spawn").get_start_method(), gc.get_freeze_count() > 0)
stop = threading.Event()
threading.Thread(target=stop.wait).start()
print(ours.get_context("spawn").get_start_method(), ours.Manager is multiprocessing.Manager)
stop.set()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["forkserver", "False", "fork", "True", "spawn", "True"]


def test_an_idle_engine_sleeps_until_it_is_asked_or_ended():
    import zmq.asyncio

    from lab3.cpu.worker import Zmq

    async def wait() -> None:
        ours = Zmq(zmq)
        with zmq.asyncio.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
            one.bind("inproc://engine")
            other.connect("inproc://engine")
            poller = ours.asyncio.Poller()
            poller.register(one, ours.POLLIN)
            assert await poller.poll(timeout=0) == []
            waiting = asyncio.ensure_future(poller.poll(timeout=10))
            await asyncio.sleep(0.1)
            assert not waiting.done(), "LMDeploy's looks up after 10 ms"
            await other.send(b"ask")
            assert await asyncio.wait_for(waiting, 10) == [(one, zmq.POLLIN)]
            await one.recv()
            assert await asyncio.wait_for(poller.poll(timeout=10), 10) == [], "and it does look up"
            waiting = asyncio.ensure_future(poller.poll(timeout=10))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(wait())


def test_what_was_there_before_is_found_and_what_is_not_replaced_is_not(cpu_device):
    from lmdeploy.pytorch.engine.mp_engine.zmq_engine import ZMQMPEngine

    from lab3.cpu import patches

    assert patches.original(ZMQMPEngine, "_mp_proc").__func__.__module__ == ZMQMPEngine.__module__
    assert ZMQMPEngine._mp_proc.__module__ == "lab3.cpu.worker"
    with pytest.raises(LookupError, match="not replaced"):
        patches.original(ZMQMPEngine, "close")
