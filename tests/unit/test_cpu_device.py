"""The CPU device's memory budget and limits, without LMDeploy."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from lab3.cpu import device
from lab3.cpu.limits import check_engine_config
from lab3.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GiB", 2**31), ("2g", 2**31), ("1.5 GB", 3 * 2**29), ("512MiB", 2**29), ("4096", 4096), ("8 K", 8192)],
)
def test_the_budget_is_written_as_people_write_sizes(monkeypatch, text: str, expected: int):
    monkeypatch.setenv("LAB3_CPU_MEMORY", text)
    assert device.memory_budget() == expected


@pytest.mark.parametrize("text", ["much", "-1GiB", "0", "2GiBs", "1e9", "2 GiB extra"])
def test_a_budget_that_is_no_size_is_refused(monkeypatch, text: str):
    monkeypatch.setenv("LAB3_CPU_MEMORY", text)
    with pytest.raises(UsageError, match="LAB3_CPU_MEMORY"):
        device.memory_budget()


def test_the_default_budget_is_a_share_of_what_there_is(monkeypatch):
    monkeypatch.delenv("LAB3_CPU_MEMORY", raising=False)
    assert 0 < device.memory_budget() <= psutil.virtual_memory().total / 4


def test_memory_that_is_taken_is_no_longer_free(monkeypatch):
    monkeypatch.setenv("LAB3_CPU_MEMORY", "64GiB")
    free_before, total = device.memory_info()
    block = bytearray(b"x" * (200 * 2**20))
    free_after, _ = device.memory_info()
    assert total == 64 * 2**30
    assert free_before - free_after >= 190 * 2**20
    del block


def config(**changes):
    settings = {"tp": 1, "dp": 1, "ep": 1, "adapters": None, "quant_policy": 0, "model_format": None}
    return SimpleNamespace(**(settings | changes))


@pytest.mark.parametrize("changes", [{}, {"quant_policy": 4}, {"quant_policy": 8}, {"model_format": "awq"}])
def test_what_the_device_can_do_is_accepted(changes):
    check_engine_config(config(**changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tp": 2}, "--tp 2"),
        ({"dp": 2}, "--dp 2"),
        ({"ep": 4}, "--ep 4"),
        ({"adapters": {"a": "path"}}, "LoRA"),
        ({"quant_policy": 16}, "--quant-policy 16"),
        ({"quant_policy": 42}, "--quant-policy 42"),
        ({"model_format": "fp8"}, "--model-format fp8"),
    ],
)
def test_what_it_cannot_is_refused_by_name(changes, named: str):
    with pytest.raises(UsageError, match=named) as refused:
        check_engine_config(config(**changes))
    assert refused.value.todo
