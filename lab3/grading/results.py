"""What grading a submission came to: a record that goes to result.json and comes back from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

# "needs_review": judged as far as lab3 can, and a person must look. "infra_error": the machine was in the way.
Status = Literal["graded", "infra_error", "timeout", "needs_review"]
SCHEMA = "lab3-grade/1"


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One submission's result. Nothing in it depends on when it was graded or beside whom, but `times`."""

    name: str  # of the submission's folder, printable; unique in a batch
    student: str
    status: Status
    reasons: tuple[str, ...]  # why it is not simply graded
    score: int
    max_score: int
    verdicts: tuple[dict[str, Any], ...]  # lab3.verdicts.Verdict.to_dict()
    collected: dict[str, Any]  # lab3.grading.collector.Collected.to_dict()
    runs: tuple[dict[str, Any], ...]  # of its scripts, in their order
    evidence: dict[str, Any]
    key: str  # of what it was graded from
    times: dict[str, float]  # seconds

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"schema": SCHEMA, **asdict(self)}

    def brief(self) -> Self:
        """Without what was found and seen, for a batch that is larger than memory."""
        return replace(self, collected={}, runs=(), evidence={})

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """The result again, from `to_dict` that has been through JSON. Raises ValueError if it is none."""
        names = {field.name for field in fields(cls)}
        if told.get("schema") != SCHEMA or not names <= told.keys():
            raise ValueError(f"no {SCHEMA}")
        known = {name: told[name] for name in names}
        listed = {name: tuple(known[name]) for name in ("reasons", "verdicts", "runs")}
        return cls(**{**known, **listed})


def in_short(graded: Graded) -> str:
    """How many checks failed, and how many points nobody has judged: those are missing in the score."""
    failed = sum(each["status"] == "fail" for each in graded.verdicts)
    open_points = sum(each["max_points"] for each in graded.verdicts if each["status"] == "unknown")
    return f"{failed:>2} failed, {open_points:>3} points not judged"


def exit_code(graded: Sequence[Graded]) -> int:
    """0 all were graded or are for a person to look at, whatever the grades; 3 the machine was in the way of some."""
    return 3 if any(each.status == "infra_error" for each in graded) else 0
