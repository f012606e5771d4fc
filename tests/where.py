"""Where the suite's time goes, said at its end: by xdist group and folder, and CPU seconds of pytest and the rest."""

from __future__ import annotations

import os
import re
import resource
import time
from collections import Counter
from typing import Any

import psutil
import pytest


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(_Worker(config), "lab3-where-worker")
    elif config.getoption("durations") is not None:
        config.pluginmanager.register(Where(), "lab3-where")


def place(nodeid: str) -> str:
    """The xdist group of a test, or its folder below tests."""
    path, _, name = nodeid.partition("::")
    group = re.search(r"@(\w+)$", name)
    return f"@{group[1]}" if group else "/".join(path.split("/")[:2])


class Where:
    """What the controller of a run gathers."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.tests: Counter[str] = Counter()
        self.workers: list[tuple[float, float]] = []
        self._started_at = time.monotonic()
        self._ended = 0.0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[place(report.nodeid)] += report.duration
        self.tests[place(report.nodeid)] += report.when == "call"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        if told := getattr(node, "workeroutput", {}).get("lab3_cpu"):
            self.workers.append(tuple(told))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Before pytest-xdist's workers are waited for, who tell themselves what they took."""
        self._ended = _of_ended_children()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        elapsed = time.monotonic() - self._started_at
        terminalreporter.section("where the time went")
        for name, seconds in self.seconds.most_common():
            terminalreporter.write_line(f"{seconds:8.1f} s  {name} ({self.tests[name]} tests)")
        own = time.process_time() + sum(own for own, _ in self.workers)
        started = sum(started for _, started in self.workers) + self._ended + _of_living_children()
        terminalreporter.write_line(
            f"{elapsed:.1f} s in all; CPU seconds: pytest {own:.1f}, what it started {started:.1f}; "
            f"{(own + started) / elapsed / (os.cpu_count() or 1):.0%} of {os.cpu_count()} cores"
        )


class _Worker:
    def __init__(self, config: pytest.Config) -> None:
        self._config: Any = config

    def pytest_sessionfinish(self) -> None:
        self._config.workeroutput["lab3_cpu"] = (time.process_time(), _of_ended_children() + _of_living_children())


def _of_ended_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _of_living_children() -> float:
    total = 0.0
    for child in psutil.Process().children(recursive=True):  # the hub's servers, which live until the run has ended
        try:
            if "exec(eval(sys.stdin.readline()))" not in " ".join(child.cmdline()):  # a worker
                total += sum(child.cpu_times()[:4])
        except psutil.Error:
            continue
    return total
