"""`lab3 grade-reports`: its arguments, and what it does with them. What it says is printed by lab3.cli."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab3.errors import UsageError
from lab3.places import check_place
from lab3.progress import Progress

EPILOG = (
    "Exit codes: 0 no check failed (what could not be judged waits for a person), 1 a check failed, 2 wrong usage, "
    "3 the machine was in the way of some report. A second run goes on where the first was broken off, and grades anew "
    "only what changed; what people decided is kept in RESULTS/REPORT/override.json and never written over."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    command.epilog = EPILOG
    command.add_argument("reports", nargs="*", type=Path, metavar="PATH", help="a report, or a folder that holds one")
    command.add_argument("--out", type=Path, metavar="RESULTS", help="folder for the results")
    command.add_argument("--review", type=Path, metavar="RESULTS", help="serve the pages of results on 127.0.0.1")
    command.add_argument("--port", type=int, default=0, help="of --review (a free one)")
    command.add_argument(
        "--workers", type=_positive, help="reports, or pictures of a few, at a time (one for each core, at most 8)"
    )
    command.add_argument("--fetch", action="store_true", help="fetch pictures that are linked and not at hand")
    command.add_argument(
        "--checks",
        nargs="+",
        default=[],
        metavar="PREFIX",
        help="beginnings of checks' ids, such as report.tool (all); what pictures say is read only where one needs it",
    )
    command.add_argument(
        "--tutorial",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="what is taken over from it counts neither for nor against a report; may be given several times",
    )
    command.add_argument("--language", choices=("en", "zh"), default="en", help="of the pages (%(default)s)")
    command.add_argument("--timeout", type=float, default=300.0, metavar="S", help="for one report (%(default)s)")


def run(
    arguments: argparse.Namespace, progress: Progress, *, say: Callable[[str], None], tell: Callable[[Any], None]
) -> int:
    """Do it, and return the exit code. `tell` hears the result for programs, with --json; else `say` hears text."""
    if arguments.review is not None:
        return _review(arguments, say, tell)
    if arguments.out is None or not arguments.reports:
        raise UsageError("reports and --out are needed, or --review", todo="lab3 grade-reports PATH... --out RESULTS")
    from lab3.reports.batch import grade_batch, make_plan
    from lab3.reports.pool import Bounds

    checks = tuple(each for given in arguments.checks for each in given.split(",") if each)
    _check_prefixes(checks)
    batch = grade_batch(
        arguments.reports,
        arguments.out,
        plan=make_plan(checks=checks, fetch=arguments.fetch, tutorials=arguments.tutorial),
        workers=arguments.workers,
        language=arguments.language,
        bounds=Bounds(wall_s=arguments.timeout),
        progress=progress,
    )
    if arguments.json:
        tell(_told(batch))
    else:
        say(_text(batch))
    return batch.exit_code


def _review(arguments: argparse.Namespace, say: Callable[[str], None], tell: Callable[[Any], None]) -> int:
    from lab3.reports.page_server import review

    def said(address: str) -> None:
        if arguments.json:
            tell({"address": address, "results": str(arguments.review)})
        else:
            say(f"reviewing {arguments.review}: open {address}\nCtrl-C ends it")

    check_place(arguments.review, option="--review")
    try:
        review(arguments.review, port=arguments.port, language=arguments.language, said=said)
    except KeyboardInterrupt:
        return 0
    return 0


def _told(batch: Any) -> dict[str, Any]:
    from lab3.reports.export import as_graded
    from lab3.reports.store import plain

    reports = [
        {**as_graded(each).to_dict(), "path": each.graded.path, "problems": each.graded.problems}
        for each in batch.reports
    ]
    unneeded = ("collected", "runs", "evidence")
    reports = [{name: value for name, value in each.items() if name not in unneeded} for each in reports]
    told: dict[str, Any] = plain({"out": batch.out, "reports": reports, "likenesses": batch.likenesses})
    return told


def _text(batch: Any) -> str:
    from lab3.grading.export_text import one_line

    width = max((len(each.graded.name) for each in batch.reports), default=0)
    lines = []
    for each in batch.reports:
        why = f"  {one_line(each.reasons[0], 100)}" if each.reasons else ""
        name = f"{each.graded.name:<{width}}"
        failed = sum(verdict.status == "fail" for verdict in each.verdicts)
        unjudged = sum(verdict.judged.max_points for verdict in each.verdicts if verdict.status == "unknown")
        judged = f"{failed:>2} failed, {unjudged:>3} points not judged"
        lines.append(f"{name}  {each.score:>3}/{each.max_score}  {judged}  {each.status}{why}")
    return "\n".join(
        [*lines, f"results: {batch.out / 'summary.html'}", f"review: lab3 grade-reports --review {batch.out}"]
    )


def _check_prefixes(prefixes: Sequence[str]) -> None:
    from lab3.reports.work_judging import check_ids

    known = check_ids()
    for prefix in prefixes:
        if not any(each.startswith(prefix) for each in known):
            raise UsageError(f"no check begins with {prefix!r}", todo=f"choose among {', '.join(known)}")


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value
