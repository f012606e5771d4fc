"""How long a batch of submissions takes, whether the grades are those that are due, and what memory the grader holds.

python -m bench.grading --count 100          (the corpus of tests/submissions.py, the embedded model)
python -m bench.grading --count 1000 --only chat_only --checks chat          (the grader's memory)
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from lab3.grading.batch import Plan, grade_batch
from lab3.grading.grade import chosen
from lab3.grading.results import Graded
from lab3.threads import wait_patiently


def disagreements(graded: Graded, due: Any) -> dict[str, str]:
    """The checks that came to something else than is due, and what; of those that were judged."""
    found = {verdict["id"]: verdict["status"] for verdict in graded.verdicts}
    wrong = {name: found[name] for name in due.passing & found.keys() if found[name] != "pass"}
    wrong |= {name: found[name] for name in due.failing & found.keys() if found[name] != "fail"}
    wrong |= {name: "pass" for name in due.not_passing & found.keys() if found[name] == "pass"}
    return wrong | ({"status": graded.status} if graded.status != due.status else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="submissions (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus (%(default)s)")
    parser.add_argument("--workers", type=int, help="at once (by the machine)")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEMPLATE", help="of the corpus's templates (all)")
    parser.add_argument("--checks", nargs="+", default=["chat", "tools", "scripts"], help="(%(default)s)")
    parser.add_argument("--alone", type=int, default=0, metavar="N", help="then N in turn, each with its own server")
    parser.add_argument("--out", type=Path, help="keep the results there")
    options = parser.parse_args()
    wait_patiently()
    from tests.submissions import write_corpus

    out = options.out or Path(tempfile.mkdtemp(prefix="lab3-bench-"))
    corpus = out / "submissions"
    due = write_corpus(corpus, options.count, options.seed, only=options.only)
    plan = Plan(checks=chosen(options.checks), workers=options.workers, timeout_s=60.0)
    began, seen, runs, me = time.monotonic(), 0, 0, psutil.Process()

    def told(each: Graded) -> None:
        nonlocal seen, runs
        seen += 1
        runs += len(each.runs)
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
        "runs": runs,
    }
    if options.alone:
        some = [corpus / name for name in due][:: max(1, len(due) // options.alone)]
        figures |= alone(some, out, plan, options.alone)
        figures["times_faster"] = round(figures["seconds_each_alone"] / figures["seconds_each"], 1)
    print(json.dumps(figures))
    return 0


def alone(folders: Sequence[Path], out: Path, plan: Plan, count: int) -> dict[str, Any]:
    """The first `count` of `folders` graded in turn, each with a server of its own: what a batch spares."""
    seconds = []
    for folder in folders[:count]:
        began = time.monotonic()
        grade_batch([folder], out / "alone" / folder.name, plan=plan)
        seconds.append(time.monotonic() - began)
        print(f"{seconds[-1]:7.1f} s  {folder.name} alone", flush=True)
    return {"alone": len(seconds), "seconds_each_alone": round(statistics.fmean(seconds), 1)}


if __name__ == "__main__":
    raise SystemExit(main())
