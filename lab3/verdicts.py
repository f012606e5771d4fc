"""What a check is, and what becomes of its finding: a verdict with points, the line of a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lab3.evidence import Evidence

Status = Literal["pass", "fail", "unknown"]


@dataclass(frozen=True)
class Finding:
    """What a check found. `source` names the evidence that it was read from."""

    status: Status
    reason: str
    source: str
    expected: Any = None
    actual: Any = None


@dataclass(frozen=True)
class Check:
    """One line of the rubric. A check that is not required earns points but does not decide over pass and fail."""

    id: str
    task: int
    title: str
    title_zh: str
    max_points: int
    section: str  # the section of the Evidence without which there is nothing to judge
    judge: Callable[[Evidence], Finding]
    required: bool = True
    also: tuple[str, ...] = ()  # sections that the judgement takes into account where they are shown


@dataclass(frozen=True)
class Verdict:
    """A check's finding with its points; the line of a report."""

    id: str
    task: int
    title: str
    title_zh: str
    status: Status
    points: int
    max_points: int
    reason: str
    expected: Any
    actual: Any
    source: str
    required: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)


def verdict_of(check: Check, evidence: Evidence) -> Verdict:
    """The check's verdict. Where its section is missing it is unknown, or a fail if that is the subject's own fault."""
    if not getattr(evidence, check.section):
        trouble = evidence.trouble.get(check.section)
        status: Status = "fail" if trouble and trouble.fault == "subject" else "unknown"
        found = Finding(status, trouble.text if trouble else "no evidence of this step", source=check.section)
    else:
        found = check.judge(evidence)
    return Verdict(
        id=check.id,
        task=check.task,
        title=check.title,
        title_zh=check.title_zh,
        status=found.status,
        points=check.max_points if found.status == "pass" else 0,
        max_points=check.max_points,
        reason=found.reason,
        expected=found.expected,
        actual=found.actual,
        source=found.source,
        required=check.required,
    )


def score(verdicts: list[Verdict]) -> tuple[int, int]:
    """(points, most points possible)."""
    return sum(v.points for v in verdicts), sum(v.max_points for v in verdicts)


def exit_code(verdicts: list[Verdict]) -> int:
    """0 all required checks passed, 1 one failed, 3 none failed but one could not be judged."""
    statuses = {v.status for v in verdicts if v.required}
    return 1 if "fail" in statuses else 3 if "unknown" in statuses else 0
