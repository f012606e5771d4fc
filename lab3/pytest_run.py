"""The first process of a pytest run of the lab: it has the hub, gathers the verdicts and writes the reports."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from lab3.errors import InfraError

if TYPE_CHECKING:
    from lab3.hub import Hub
    from lab3.hub_wire import HubServer
    from lab3.pytest_plugin import Settings
    from lab3.verdicts import Verdict

SAY_EVERY_S = 10.0


class Run:
    """A plug-in of pytest's that only the controller of a run has."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config, self._settings = config, settings
        self._hub: Hub | None = None
        self._door: HubServer | None = None
        self._verdicts: dict[str, Verdict] = {}
        self._troubles: set[str] = set()
        self._other_failures = 0
        self._unwritten = ""
        self._started_at = self._said_at = time.monotonic()
        self._last_said = ""

    @property
    def hub(self) -> Hub:
        """What the run's processes share."""
        if self._hub is None:
            from lab3.hub import Hub

            self._hub = Hub(folder=self._settings.out / "logs", progress=self.say)
        return self._hub

    def say(self, message: str, *, done: float | None = None, total: float | None = None) -> None:
        """Progress on the terminal: each step when it begins, and within a long one every ten seconds."""
        now = time.monotonic()
        step = re.split("[:,]", message)[0]
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        again = step == self._last_said and now - self._said_at < SAY_EVERY_S
        if reporter is None or self._config.option.verbose < 0 or again:
            return
        self._said_at, self._last_said = now, step
        share = f" {done / total:.0%}" if done is not None and total else ""
        reporter.ensure_newline()
        reporter.write_line(f"{now - self._started_at:7.1f} s  {message.splitlines()[0][:160]}{share}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where the hub is."""
        from lab3.hub_wire import HubServer

        if self._door is None:
            self._door = HubServer(self.hub)
        node.workerinput["lab3_hub"] = self._door.address.to_dict()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the verdict from a test's report, whichever process it ran in."""
        from lab3.verdicts import Verdict

        if told := getattr(report, "lab3_verdict", None):
            found = Verdict.from_dict(told)
            self._verdicts[found.id] = found
        trouble = getattr(report, "lab3_trouble", None)
        if trouble is not None and report.failed:
            self._troubles.add(trouble)
        elif report.failed:
            self._other_failures += 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Exit 3 if nothing but the machine was in the way, 4 if it was the user's request."""
        if session.exitstatus == pytest.ExitCode.TESTS_FAILED and not self._other_failures:
            if self._troubles == {"machine"}:
                session.exitstatus = InfraError.exit_code
            elif self._troubles == {"usage"}:
                session.exitstatus = pytest.ExitCode.USAGE_ERROR
        if self._verdicts:
            self._write_report(session)

    def _write_report(self, session: pytest.Session) -> None:
        from lab3.report import write_report

        try:
            write_report(self._report(), self._settings.out / "report.json")
        except OSError as error:
            self._unwritten = f"report.json cannot be written: {error}; choose another folder with --lab3-out"
            session.exitstatus = session.exitstatus or InfraError.exit_code

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The verdicts, a line for each, then the figures."""
        if not self._verdicts:
            return
        from lab3.report.metrics import metrics
        from lab3.suite import in_order, summary

        verdicts = in_order(list(self._verdicts.values()))
        write = terminalreporter.write_line
        terminalreporter.section(f"lab3: {self._settings.kind} ({self._settings.subject})")
        for verdict in verdicts:
            points = f"{verdict.points}/{verdict.max_points}" if verdict.max_points else ""
            reason = verdict.reason.splitlines()[0] if verdict.reason else ""
            colour = {"pass": "green", "fail": "red", "unknown": "yellow"}[verdict.status]
            terminalreporter.write(f"{verdict.status:<8}", **{colour: True})
            write(f"{points:>5}  {verdict.id:<24} {reason[:160]}")
        for figure in metrics(self._evidence()):
            write(f"metric {figure}")
        told = self._unwritten or f"report: {self._settings.out / 'report.json'}"
        write(f"{summary(verdicts)}; {told}")

    def pytest_unconfigure(self) -> None:
        """Nothing is left."""
        if self._door is not None:
            self._door.close()
        if self._hub is not None:
            self._hub.close()

    def _evidence(self) -> Any:
        from lab3.suite import evidence_of

        return evidence_of(self._settings.kind, self._settings.subject, self.hub.values())

    def _report(self) -> dict[str, Any]:
        from lab3.report import build_report
        from lab3.report.metrics import metrics
        from lab3.suite import in_order

        evidence = self._evidence()
        report = build_report(evidence, in_order(list(self._verdicts.values())))
        return report | {"metrics": [{"name": m.name, "value": m.value, "unit": m.unit} for m in metrics(evidence)]}
