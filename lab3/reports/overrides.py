"""What a person decided about a report's verdicts. It lies beside the result, and no regrade touches it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from lab3.errors import UsageError
from lab3.report.json_report import write_report
from lab3.reports.model import Judged, Status
from lab3.reports.store import decoded, plain

OVERRIDES = "override.json"
SCHEMA = "lab3-report-overrides/1"
MOST_NOTE = 4000  # characters


@dataclass(frozen=True, kw_only=True)
class Override:
    """A person's word on one verdict. `status` None: only a note. `was_…` is what lab3 said then."""

    status: Status | None = None
    accepted: bool = False  # the person agreed with lab3
    note: str = ""
    was_status: str = ""
    was_reason: str = ""
    at: str = ""  # when, ISO 8601, UTC


@dataclass(frozen=True, kw_only=True)
class Final:
    """A verdict as it counts: lab3's, or a person's. `changed`: lab3 says something else now than when they decided."""

    judged: Judged
    override: Override | None
    status: Status
    points: int
    changed: bool = False

    @property
    def decided(self) -> bool:
        """Whether a person decided, whatever lab3 says."""
        return self.override is not None and self.override.status is not None

    @property
    def open(self) -> bool:
        """Whether a person has to look, and has not, or not since lab3 changed its verdict."""
        return self.changed or (bool(self.judged.review) and not self.decided)

    @property
    def told(self) -> str:
        """Who decided, in one sentence; empty where it was lab3."""
        if self.override is None or self.override.status is None:
            return ""
        lab3 = f"lab3: {self.judged.status}"
        text = f"accepted by a person ({lab3})" if self.override.accepted else f"set by a person ({lab3})"
        if self.changed:
            text += f"; lab3 said {self.override.was_status} when it was decided: look again"
        return text + (f". Note: {self.override.note}" if self.override.note else "")


def load_overrides(folder: Path, *, name: str | None = None) -> Mapping[str, Override]:
    """What a person decided about the report whose results lie in `folder`, by check.

    Raises UsageError for a file that is none: what a person wrote is never passed over in silence.
    """
    path = folder / OVERRIDES
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        raise _broken(path, f"it is no {SCHEMA}")
    if name is not None and told.get("report") not in (None, name):
        raise _broken(path, f"it is of the report {told['report']!r}")
    try:
        found: dict[str, Override] = decoded(dict[str, Override], told.get("overrides"))
    except ValidationError as error:
        raise _broken(path, f"{error.error_count()} of its entries are wrong") from error
    return found


def save_override(folder: Path, *, name: str, judged: Judged, override: Override | None) -> Mapping[str, Override]:
    """Keep one decision beside the others, by one rename; None takes it back. Returns all of the report's."""
    known = dict(load_overrides(folder, name=name))
    if override is None:
        known.pop(judged.id, None)
    else:
        known[judged.id] = Override(
            status=override.status,
            accepted=override.accepted and override.status == judged.status,
            note=override.note[:MOST_NOTE],
            was_status=judged.status,
            was_reason=judged.reason,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    told = {"schema": SCHEMA, "report": name, "overrides": {each: asdict(one) for each, one in sorted(known.items())}}
    write_report(plain(told), folder / OVERRIDES)
    return known


def finals(judged: Sequence[Judged], overrides: Mapping[str, Override]) -> tuple[Final, ...]:
    """The verdicts as they count."""
    return tuple(_final(each, overrides.get(each.id)) for each in judged)


def _final(judged: Judged, override: Override | None) -> Final:
    if override is None or override.status is None:
        return Final(judged=judged, override=override, status=judged.status, points=judged.points)
    points = judged.max_points if override.status == "pass" else 0
    changed = bool(override.was_status) and (override.was_status, override.was_reason) != (judged.status, judged.reason)
    return Final(judged=judged, override=override, status=override.status, points=points, changed=changed)


def asked_for(told: Any) -> tuple[str, Override | None]:
    """The check and the decision of a request. Raises UsageError for what is none."""
    if not isinstance(told, dict) or not isinstance(told.get("id"), str):
        raise UsageError("no check is named")
    action: Literal["set", "clear"] = told.get("action", "set")
    if action == "clear":
        return told["id"], None
    try:
        known = {name: told[name] for name in ("status", "accepted", "note") if name in told}
        return told["id"], decoded(Override, known)
    except ValidationError as error:
        raise UsageError("the decision is none", why=str(error.errors()[0].get("msg", ""))) from error


def _broken(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} cannot be used", why=why, todo="correct it, or move it away")
