"""Grades one submission: its evidence through the rubric, and what a person should look at."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from lab3.checks import CHECKS, judge, score
from lab3.errors import Lab3Error, UsageError
from lab3.evidence import Evidence
from lab3.grading.results import Graded, Status
from lab3.grading.script_checks import SCRIPT_CHECKS
from lab3.grading.subject import Submission
from lab3.report.json_report import plain
from lab3.verdicts import Check, Verdict

RUBRIC: tuple[Check, ...] = (*CHECKS, *SCRIPT_CHECKS)
# Facts that differ from run to run, or from machine to machine: they are told among the times.
_PASSING = {
    "quantized": ("startup_seconds", "used_mib", "command", "kv_tokens", "foreign_mib"),
    "chat": ("ttft_s", "tokens_per_second"),
}


def grade(subject: Submission, *, name: str, key: str, checks: Sequence[Check] = RUBRIC) -> Graded:
    """The result of one submission; trouble with the machine is one, too, and no exception.

    Raises nothing but what ends the whole batch: KeyboardInterrupt and the like.
    """
    began = time.monotonic()
    times: dict[str, float] = {}
    try:
        evidence = _gathered(subject, checks, times)
        collected = subject.collected.to_dict()
        student = subject.collected.student
    except Lab3Error as error:
        return not_graded(name, key, f"{error.what}: {error.why}" if error.why else error.what, checks)
    verdicts = judge(evidence, checks)
    status, reasons = _status(evidence, verdicts, subject)
    points, most = score(verdicts)
    times["total"] = round(time.monotonic() - began, 1)
    return Graded(
        name=name,
        student=student,
        status=status,
        reasons=reasons,
        score=points,
        max_score=most,
        verdicts=tuple(plain(verdict.to_dict()) for verdict in verdicts),
        collected=plain(collected),
        runs=tuple(_runs(evidence)),
        evidence=_lasting(evidence),
        key=key,
        times=times,
    )


def not_graded(name: str, key: str, reason: str, checks: Sequence[Check]) -> Graded:
    """The result where the machine, or lab3, was in the way."""
    most = sum(check.max_points for check in checks)
    return Graded(
        name=name, student=name, status="infra_error", reasons=(reason,), score=0, max_score=most, verdicts=(),
        collected={}, runs=(), evidence={}, key=key, times={},
    )  # fmt: skip


def chosen(prefixes: Sequence[str]) -> tuple[Check, ...]:
    """The checks whose ids begin with one of `prefixes`; all for none. Raises UsageError for one that fits none."""
    for prefix in prefixes:
        if not any(check.id.startswith(prefix) for check in RUBRIC):
            raise UsageError(f"no check is named {prefix}…", todo=f"name some of: {', '.join(c.id for c in RUBRIC)}")
    return tuple(c for c in RUBRIC if not prefixes or c.id.startswith(tuple(prefixes)))


def _gathered(subject: Submission, checks: Sequence[Check], times: dict[str, float]) -> Evidence:
    sections = list(dict.fromkeys(section for check in checks for section in check.sections))
    evidence = subject.evidence()
    for section in sections:
        began = time.monotonic()
        found = subject.evidence(section)
        times[section] = round(time.monotonic() - began, 1)
        evidence = _joined(evidence, found, section)
    return evidence


def _joined(evidence: Evidence, found: Evidence, section: str) -> Evidence:
    return replace(evidence, trouble={**evidence.trouble, **found.trouble}, **{section: getattr(found, section)})


def _status(evidence: Evidence, verdicts: Sequence[Verdict], subject: Submission) -> tuple[Status, tuple[str, ...]]:
    """The worst of what stands in the way of a plain grade, with the reasons."""
    machine = [trouble.text for trouble in evidence.trouble.values() if trouble.fault in ("machine", "unknown")]
    if machine:
        return "infra_error", tuple(dict.fromkeys(machine))
    late = [
        f"{script.path} was ended at its limit: {script.runs[-1].outcome}"
        for script in evidence.scripts
        if script.runs and script.runs[-1].outcome in ("timeout", "cpu")
    ]
    if late:
        return "timeout", tuple(late)
    review = [trouble.text for trouble in evidence.trouble.values() if trouble.kind == "needs_review"]
    review += [f"{v.id}: {v.reason}" for v in verdicts if v.status == "unknown" and _was_looked_at(v, evidence)]
    review += [str(problem) for problem in subject.collected.problems if problem.kind in ("ambiguous", "unreadable")]
    return ("needs_review" if review else "graded"), tuple(dict.fromkeys(review))


def _was_looked_at(verdict: Verdict, evidence: Evidence) -> bool:
    """Whether there was something to judge, and it could not be decided. What was not handed in is no riddle."""
    check = next((each for each in RUBRIC if each.id == verdict.id), None)
    if check is None or not getattr(evidence, check.section):
        return False
    return check.section in ("scripts", "nonce") and verdict.reason != "no script was run"


def _runs(evidence: Evidence) -> Iterator[dict[str, Any]]:
    for script in evidence.scripts:
        for run in script.runs:
            yield plain({"role": script.role, "path": script.path, "asked": run.wire["requests"], **asdict(run)})


def _lasting(evidence: Evidence) -> dict[str, Any]:
    """The evidence without what the runs tell already, and without what passes."""
    told: dict[str, Any] = plain(evidence.to_dict())
    for section, names in _PASSING.items():
        if told.get(section):
            told[section] = {name: value for name, value in told[section].items() if name not in names}
    for script in told["scripts"]:
        script["runs"] = len(script["runs"])
    for name in ("baseline", "samples", "protocol", "diagnosis"):
        told.pop(name, None)
    return told
