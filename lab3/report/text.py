"""The terminal: a table of verdicts, the doctor's findings, and progress that a pipe can read too."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lab3.doctor import Finding

_STYLES = {"pass": "green", "fail": "red", "unknown": "yellow", "ok": "green", "problem": "red", "warn": "yellow"}


def print_report(report: dict[str, Any], path: Path) -> None:
    """The verdicts as a table, then the score and where the whole report is."""
    console = Console()
    table = Table(title=f"lab3: {report['subject']} ({report['evidence']['model']})", show_lines=False)
    for column in ("task", "check", "verdict", "points", "why"):
        table.add_column(column, overflow="fold")
    told: set[str] = set()
    for verdict in report["verdicts"]:
        optional = "" if verdict["required"] else " (ability)"
        table.add_row(
            str(verdict["task"]),
            Text(verdict["title"] + optional),
            Text(verdict["status"], style=_STYLES[verdict["status"]]),
            f"{verdict['points']}/{verdict['max_points']}",
            Text(_once(verdict["reason"], told) + _cause(verdict)),
        )
    console.print(table)
    console.print(f"score {report['score']} of {report['max_score']}; report: {path}", highlight=False, soft_wrap=True)


def _once(reason: str, told: set[str]) -> str:
    """Trouble with the machine keeps many checks from being judged: its many lines are shown with the first of them."""
    first, *more = reason.splitlines() or [""]
    if more and reason in told:
        return f"{first} (as above)"
    told.add(reason)
    return reason


def _cause(verdict: dict[str, Any]) -> str:
    found = verdict["blame"]
    return f"\n→ {found['whose']}: {found['text']}" if found and found["text"] != verdict["reason"] else ""


def print_findings(findings: Sequence[Finding]) -> None:
    """The doctor's one screen: a line for each finding, and below it what to type, if there is something."""
    table = Table("status", "topic", box=None, show_header=False, padding=(0, 1))
    table.add_column("text", overflow="fold")
    for finding in findings:
        text = Text(finding.text)
        if finding.todo:
            text.append(f"\n→ {finding.todo}", style="italic")
        table.add_row(Text(finding.status, style=_STYLES.get(finding.status, "")), finding.topic, text)
    Console().print(table)


class TerminalProgress:
    """Progress on standard error: one line for each message; the same message counted on is shown once a second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = ("", -1.0)

    def __call__(self, message: str, *, done: float | None = None, total: float | None = None) -> None:
        now = time.monotonic() - self._started
        last_message, last_time = self._last
        finished = done is not None and total is not None and done >= total
        if message == last_message and not finished and now - last_time < 1.0:
            return
        self._last = (message, now)
        share = f" {done / total:.0%}" if done is not None and total else ""
        sys.stderr.write(f"{now:7.1f} s  {message}{share}\n")
        sys.stderr.flush()
