"""The rubric as a batch uses it: judge a report, or say of every check that it could not be judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lab3.reports.model import Judged, Reading, Report

if TYPE_CHECKING:
    from lab3.reports.checks import Check


def judge(report: Report, readings: tuple[Reading, ...], theirs: frozenset[int]) -> tuple[Judged, ...]:
    """The verdicts of the rubric. `theirs` are the blocks that the tutorial wrote."""
    from lab3.reports.facts import gather
    from lab3.reports.rubric import judge_report

    return tuple(judge_report(gather(report, readings, theirs)))


def not_judged(why: str) -> tuple[Judged, ...]:
    """Each check of the rubric as unknown, for a report that could not be read."""
    return tuple(
        Judged(
            id=check.id,
            task=check.task,
            title=check.title,
            title_zh=check.title_zh,
            status="unknown",
            points=0,
            max_points=check.points,
            reason=why,
        )
        for check in _checks()
    )


def needs_pictures(checks: Sequence[str]) -> bool:
    """Whether a check whose id begins so is found by what pictures say; of all checks, if nothing is asked for."""
    return any(check.pictures for check in _checks() if not checks or check.id.startswith(tuple(checks)))


def check_ids() -> tuple[str, ...]:
    """The ids of the rubric's checks, in their order."""
    return tuple(check.id for check in _checks())


def _checks() -> tuple[Check, ...]:
    from lab3.reports.rubric import CHECKS

    return CHECKS
