"""report.json: subject, environment, evidence, verdicts and score, in one file that is written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from lab3.checks import Verdict, score
from lab3.evidence import Evidence

SCHEMA = "lab3/1"


def build_report(evidence: Evidence, verdicts: list[Verdict]) -> dict[str, Any]:
    """The report as JSON-ready values."""
    points, most = score(verdicts)
    return {
        "schema": SCHEMA,
        "subject": evidence.subject,
        "environment": evidence.environment,
        "evidence": evidence.to_dict(),
        "verdicts": [verdict.to_dict() for verdict in verdicts],
        "score": points,
        "max_score": most,
    }


def plain(value: Any) -> Any:
    """The value as JSON can carry it; what it cannot as text."""
    return json.loads(json.dumps(value, default=str))


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write `report` beside `path` and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # Half of a surrogate pair, which a server may send, is written as JSON escapes it.
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(report, file, ensure_ascii=False, indent=2)
            file.write("\n")
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
