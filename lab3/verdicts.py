"""What a check is, and what becomes of its finding: a verdict with points, the line of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from lab3.evidence import Evidence

Status = Literal["pass", "fail", "unknown"]
Whose = Literal["machine", "server", "model", "kv_cache", "subject", "unknown"]


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

    @property
    def sections(self) -> tuple[str, ...]:
        """All that it reads, in the order in which it is best gathered: what is judged comes after what it is compared
        with. Where one server at a time fits on a card, the judged one then stays for the checks that follow."""
        return (*self.also, self.section)


@dataclass(frozen=True, kw_only=True)
class Blame:
    """`text` is one sentence on the cause and one on what to do; `command` shows the failure again."""

    whose: Whose
    kind: str
    text: str
    command: str = ""
    log_tail: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.whose}: {self.text} ({self.kind})"]
        lines += [f"to reproduce: {self.command}"] if self.command else []
        return "\n".join([*lines, *(f"  | {line}" for line in self.log_tail)])


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
    blame: Blame | None = None  # whose failure or trouble it is

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """The verdict again, from `to_dict` that has been through JSON."""
        found = told.get("blame")
        blame = Blame(**{**found, "log_tail": tuple(found["log_tail"])}) if found else None
        return cls(**{**told, "blame": blame})


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
