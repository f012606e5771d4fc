"""All checks of the acceptance suite, and the report of a run of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from lab3.checks import CHECKS, score
from lab3.evidence import SHARED, Evidence
from lab3.grading.script_checks import SCRIPT_CHECKS
from lab3.noise import NOISE_CHECKS
from lab3.protocol import PROTOCOL_CHECKS
from lab3.verdicts import Check, Verdict

SUITE_CHECKS: tuple[Check, ...] = (*CHECKS, *SCRIPT_CHECKS, *NOISE_CHECKS, *PROTOCOL_CHECKS)


def evidence_of(subject: str, model: str, values: dict[str, Any]) -> Evidence:
    """The evidence that a run gathered: `values` are those that its processes shared."""
    known = {field.name for field in fields(Evidence)}
    sections = {name.removeprefix(SHARED): value for name, value in values.items() if name.startswith(SHARED)}
    found = Evidence(subject=subject, model=model, environment=values.get("environment", {}))
    return replace(found, **{name: value for name, value in sections.items() if name in known})


def in_order(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """By the rubric, however tests were spread over processes; those of unknown checks last."""
    order = {check.id: place for place, check in enumerate(SUITE_CHECKS)}
    return sorted(verdicts, key=lambda verdict: order.get(verdict.id, len(order)))


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line: the score, and how many of the checks without points passed."""
    points, most = score(list(verdicts))
    beyond = [verdict for verdict in verdicts if not verdict.max_points]
    counts = {status: sum(v.status == status for v in beyond) for status in ("pass", "fail", "unknown")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"score {points} of {most}" + (f"; beyond the lab: {told}" if told else "")
