"""How long a batch of submissions takes, whether the grades are those that are due, and what memory the grader holds.

python -m bench.grading --count 100          (the corpus of tests/submissions.py, the embedded model)
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from lab3.grading.batch import Plan, grade_batch
from lab3.grading.grade import chosen
from lab3.grading.results import Graded
from lab3.threads import wait_patiently


def disagreements(graded: Graded, due: Any) -> dict[str, str]:
    """The checks that came to something else than is due, and what."""
    found = {verdict["id"]: verdict["status"] for verdict in graded.verdicts}
    wrong = {name: found.get(name, "missing") for name in due.passing if found.get(name) != "pass"}
    wrong |= {name: found.get(name, "missing") for name in due.failing if found.get(name) != "fail"}
    wrong |= {name: "pass" for name in due.not_passing if found.get(name) == "pass"}
    return wrong | ({"status": graded.status} if graded.status != due.status else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="submissions (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus (%(default)s)")
    parser.add_argument("--workers", type=int, help="at once (by the machine)")
    parser.add_argument("--out", type=Path, help="keep the results there")
    options = parser.parse_args()
    wait_patiently()
    from tests.submissions import write_corpus

    out = options.out or Path(tempfile.mkdtemp(prefix="lab3-bench-"))
    corpus = out / "submissions"
    due = write_corpus(corpus, options.count, options.seed)
    plan = Plan(checks=chosen(["chat", "tools", "scripts"]), workers=options.workers, timeout_s=60.0)
    began, seen, me = time.monotonic(), 0, psutil.Process()

    def told(_: Graded) -> None:
        nonlocal seen
        seen += 1
        if seen % 10 == 0:
            resident = me.memory_info().rss >> 20
            print(f"{time.monotonic() - began:7.1f} s  {seen} graded, {resident} MiB in the grader", flush=True)

    graded = grade_batch([corpus / name for name in due], out / "results", plan=plan, told=told)
    seconds = time.monotonic() - began
    wrong = {each.name: found for each in graded if (found := disagreements(each, due[each.name]))}
    for name, found in wrong.items():
        print(f"{name}: {found}")
    figures = {
        "submissions": len(graded),
        "seconds": round(seconds, 1),
        "seconds_each": round(seconds / len(graded), 2),
        "as_due": len(graded) - len(wrong),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "runs": sum(len(each.runs) for each in graded),
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
