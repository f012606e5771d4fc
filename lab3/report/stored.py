"""A report.json read back: the evidence and the verdicts of a run, also of an older lab3's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lab3.errors import UsageError
from lab3.evidence import Evidence
from lab3.report.json_report import SCHEMA
from lab3.verdicts import Verdict, score

REPORT = "report.json"
_MOST_BYTES = 64 * 2**20  # a run's report has some 100 kB
_MOST_DIGITS = 30  # of a whole number
_RUN_AGAIN = "run the lab again (`lab3 run --out DIR`)"


@dataclass(frozen=True)
class Stored:
    """What was judged in `folder`, and how."""

    folder: Path
    evidence: Evidence
    verdicts: tuple[Verdict, ...]

    @property
    def points(self) -> int:
        return score(list(self.verdicts))[0]

    @property
    def max_points(self) -> int:
        return score(list(self.verdicts))[1]


def read_report(path: Path) -> Stored:
    """The report in a run's folder, or the report.json itself.

    Raises UsageError where there is none, or none that this lab3 can read.
    """
    file = path / REPORT if path.is_dir() else path
    return as_stored(_read(file, asked=path), file)


def as_stored(told: Any, file: Path) -> Stored:
    """The report that `build_report` made, as it is after a trip through JSON; `file` is where it stands."""
    from pydantic import ValidationError

    _check_schema(told, file)
    told = _whole(told)
    given = told.get("evidence")
    facts = {**(given if isinstance(given, dict) else {}), "subject": told.get("subject")}
    try:
        evidence_from, verdicts_from = _adapters()
        evidence = evidence_from.validate_python(facts | {"environment": told.get("environment") or {}})
        verdicts = verdicts_from.validate_python(told.get("verdicts") or ())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UsageError(f"{file} is damaged", why=f"{where}: {first['msg']}", todo=_RUN_AGAIN) from None
    return Stored(file.parent, evidence, verdicts)


@cache
def _adapters() -> tuple[Any, Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(Evidence), TypeAdapter(tuple[Verdict, ...])


def _read(file: Path, *, asked: Path) -> Any:
    if not asked.exists():
        raise UsageError(f"there is no {asked}", todo="pass the folder that `lab3 run --out DIR` wrote")
    if not file.is_file():
        raise UsageError(
            f"{asked} has no {REPORT}",
            why="no run of the lab ended there",
            todo="pass the folder that `lab3 run --out DIR` wrote, or run it",
        )
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{file} is no report", why="it is far too large", todo=_RUN_AGAIN)
        return json.loads(file.read_bytes(), parse_int=_number)
    except OSError as error:
        raise UsageError(f"{file} cannot be read", why=str(error), todo="see who may read it") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON", why=str(error), todo=_RUN_AGAIN) from error


def _check_schema(told: Any, file: Path) -> None:
    schema = told.get("schema") if isinstance(told, dict) else None
    if schema == SCHEMA:
        return
    if isinstance(schema, str) and schema.startswith("lab3/"):
        raise UsageError(
            f"{file} has the schema {schema[:40]}",
            why=f"this lab3 reads {SCHEMA}: another version of lab3 wrote it",
            todo="use the lab3 that wrote it, or a newer one",
        )
    raise UsageError(
        f"{file} is not lab3's report", why=f"it does not say schema {SCHEMA}", todo="pass the folder of a `lab3 run`"
    )


def _number(digits: str) -> int | float:
    """A whole number; one that no figure of the lab can be, such as in a server's answer, only roughly."""
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _whole(value: Any) -> Any:
    """With half surrogate pairs, which a server may send, replaced: no file can hold them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(each) for name, each in value.items()}
    return value
