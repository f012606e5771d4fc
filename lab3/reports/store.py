"""Results and reports as JSON, and back: what a batch keeps of a report so that nobody has to read it again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from lab3.report.json_report import write_report
from lab3.reports.model import GradedReport, Likeness, Reading, Report

RESULT = "result.json"
REPORT = "report.json"
SCHEMA = "lab3-report-grade/1"
_READINGS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(Reading)}

T = TypeVar("T")


def save_result(graded: GradedReport, path: Path) -> None:
    """Write a result whole or not at all. What is of its batch, the likenesses, is left out."""
    told = {name: value for name, value in asdict(graded).items() if name not in ("likenesses", "readings")}
    readings = [{"type": type(reading).__name__, **asdict(reading)} for reading in graded.readings]
    write_report(plain({"schema": SCHEMA, **told, "readings": readings}), path)


def load_result(path: Path, *, readings: bool = True) -> GradedReport | None:
    """The result again, None if there is none, or it is of another lab3. Without `readings` they are left out."""
    told = _json(path)
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        return None
    listed = [each for each in told.get("readings") or () if isinstance(each, dict)] if readings else []
    try:
        found = tuple(decoded(_READINGS[each.pop("type", "")], each) for each in listed)
        graded: GradedReport = decoded(GradedReport, {**told, "readings": found})
    except (ValidationError, KeyError):
        return None
    return graded


def save_report(report: Report, path: Path) -> None:
    """Write what a page shows of a report: its blocks."""
    write_report(plain(asdict(report)), path)


def load_report(path: Path) -> Report | None:
    """The report again, None if there is none that this lab3 knows."""
    return _loaded(Report, _json(path))


def save_likenesses(likenesses: Iterable[Likeness], path: Path) -> None:
    """Write what a batch found alike."""
    write_report({"likenesses": plain([asdict(each) for each in likenesses])}, path)


def load_likenesses(path: Path) -> tuple[Likeness, ...]:
    """What a batch found alike, nothing if it was never told."""
    told = _json(path)
    return _loaded(tuple[Likeness, ...], (told or {}).get("likenesses")) or ()


def decoded(kind: Any, told: Any) -> Any:
    """`told`, from JSON, as a record of this kind. Raises pydantic's ValidationError if it is none."""
    return _adapter(kind).validate_python(told)


def plain(value: Any) -> Any:
    """The value as JSON can carry it: paths and what else it cannot as text, and no half of a surrogate pair."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {plain(str(name)): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return value if value is None or isinstance(value, bool | int | float) else plain(str(value))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _loaded(kind: type[T], told: Any) -> T | None:
    try:
        found: T = decoded(kind, told)
    except ValidationError:
        return None
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
