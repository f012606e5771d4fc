"""`lab3 report`: its arguments, and what it does with them. What it says is printed by lab3.cli."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab3.errors import UsageError
from lab3.places import check_beside, check_place
from lab3.report.html_words import Language

EPILOG = (
    "Exit codes: 0 written (with --compare: B passes every required check that A passes), 1 with --compare: it does "
    "not, 2 wrong usage, or no report that can be read, 3 the machine was in the way, such as a full disk. What was "
    "judged in the run itself does not change them."
)
HOMEWORK = "homework"  # the folder of --markdown, in a run's
COMPARISON = "compare.html"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    command.epilog = EPILOG
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("run_folder", nargs="?", type=Path, metavar="DIR", help="what `lab3 run --out DIR` wrote")
    what.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="two runs on one page, such as of two LMDeploy versions or two cards",
    )
    command.add_argument(
        "--markdown", action="store_true", help="the homework in Markdown, with its pictures, in place of the page"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the page (DIR/report.html, B/compare.html), or with --markdown the homework's folder (DIR/homework)",
    )
    command.add_argument("--language", choices=("en", "zh"), default="en", help="(%(default)s)")
    command.add_argument("--overwrite", action="store_true", help="replace a homework that was edited")


def run(arguments: argparse.Namespace, *, say: Callable[[str], None], tell: Callable[[Any], None]) -> int:
    """Do it, and return the exit code. `tell` hears the result for programs, with --json; else `say` hears text.

    Raises UsageError for a folder without a report that can be read and for a place that cannot be written to,
    InfraError if the result cannot be written.
    """
    language: Language = arguments.language
    if arguments.compare is not None:
        if arguments.markdown:
            raise UsageError("--markdown and --compare", why="a homework is of one run", todo="pass one of them")
        return _compare(arguments, language, say, tell)
    from lab3.report.stored import read_report

    stored = read_report(arguments.run_folder)
    if arguments.markdown:
        from lab3.report.markdown_homework import write_homework

        folder = arguments.out or stored.folder / HOMEWORK
        check_place(folder)
        files = write_homework(stored, folder, language=language, overwrite=arguments.overwrite)
    else:
        from lab3.report.html_page import PAGE, write_page

        files = [_file(arguments.out or stored.folder / PAGE)]
        write_page(stored, files[0], language=language)
    if arguments.json:
        tell({"files": [str(file) for file in files], "score": stored.points, "max_score": stored.max_points})
    else:
        say(str(files[0]))
    return 0


def _compare(
    arguments: argparse.Namespace, language: Language, say: Callable[[str], None], tell: Callable[[Any], None]
) -> int:
    from lab3.report.compare import compare, write_comparison
    from lab3.report.stored import read_report

    first, second = (read_report(path) for path in arguments.compare)
    file = _file(arguments.out or second.folder / COMPARISON)
    found = compare(first, second)
    write_comparison(found, file, language=language)
    if arguments.json:
        tell({"files": [str(file)], **found.to_dict()})
    else:
        say(f"{file}\n{found.summary(language)}")
    return 1 if found.worse else 0


def _file(path: Path) -> Path:
    """Where a page can be written. Raises UsageError if it cannot."""
    check_beside(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder", todo=f"name a file with --out, such as {path / 'page.html'}")
    return path
