"""Threads that wait asleep: set for this process and its children, unless the user has set it."""

from __future__ import annotations

import os

import pytest

from lab3 import quantize, threads


def test_openmp_is_told_to_wait_asleep(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.wait_patiently()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.wait_patiently()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(("told", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_the_worker_that_quantizes_waits_asleep_from_python_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path, told: str | None, expected: str
):
    seen: dict[str, str] = {}

    class Started(Exception):
        pass

    def start(*_: object, env: dict[str, str], **__: object) -> None:
        seen.update(env)
        raise Started

    monkeypatch.delenv("OMP_WAIT_POLICY")
    if told:
        monkeypatch.setenv("OMP_WAIT_POLICY", told)
    monkeypatch.setattr(quantize.subprocess, "Popen", start)
    with pytest.raises(Started):
        quantize._run_worker({}, tmp_path, lambda *_, **__: None)
    assert seen["OMP_WAIT_POLICY"] == expected
