"""A submission as Gradescope's results.json (gradescope-autograders.readthedocs.io, "Autograder Specifications")."""

from __future__ import annotations

from typing import Any

from lab3.grading.export_text import one_line, visible
from lab3.grading.results import Graded

_TOLD = {
    "graded": "Graded.",
    "infra_error": "Not graded yet: the grading machine was in the way. This is not your fault, and not your result.",
    "timeout": "Grading took too long and was ended. What is not judged counts no points yet.",
    "needs_review": "A person will look at this submission; points may change.",
}
_LONGEST = 10_000


def gradescope(graded: Graded) -> dict[str, Any]:
    """As JSON-ready values. Gradescope knows passed and failed alone, and takes a test without points or status for
    neither: so an "unknown" check has none, and its output says why and how many points wait for it.

    What the machine's trouble left undone is hidden from the student.
    """
    return {
        "score": graded.score,
        "output": "\n".join([_TOLD[graded.status], *(one_line(reason) for reason in graded.reasons)]),
        "output_format": "text",
        "test_output_format": "text",
        "test_name_format": "text",
        "visibility": "hidden" if graded.status == "infra_error" else "visible",
        "stdout_visibility": "hidden",
        "tests": [_test(verdict) for verdict in graded.verdicts],
        "extra_data": {"lab3": {"status": graded.status, "max_score": graded.max_score, "key": one_line(graded.key)}},
    }


def _test(verdict: dict[str, Any]) -> dict[str, Any]:
    title = f"{verdict['title']} {verdict['title_zh']}"
    judged = {
        "score": verdict["points"],
        "max_score": verdict["max_points"],
        "status": "passed" if verdict["status"] == "pass" else "failed",
    }
    return {
        "name": one_line(f"{verdict['id']}: {title}"),
        **(judged if verdict["status"] != "unknown" else {}),
        "output": visible(_output(verdict), _LONGEST),
        "visibility": "visible",
    }


def _output(verdict: dict[str, Any]) -> str:
    blame = verdict.get("blame") or {}
    told = [verdict["reason"]]
    if verdict["status"] == "unknown":
        waiting = f" (up to {verdict['max_points']} points)" if verdict["max_points"] else ""
        told = [f"Not judged yet{waiting}: {verdict['reason']}"]
    if blame and blame["text"] != verdict["reason"]:
        told.append(f"{blame['whose']}: {blame['text']}")
    if blame.get("command"):
        told.append(f"to reproduce: {blame['command']}")
    return "\n".join(told)
