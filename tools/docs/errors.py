"""Every error with its remedy, as tables: from the source (`tools.docs.raised`), the log's causes and the doctor's."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tools.docs import table
from tools.docs.raised import Raised, raised
from tools.docs.remedies import PASSED_ON, REMEDIES, SPELLED

# Beginnings of files, first match; a file in none of them is an error.
AREAS = {
    "Models, and the cache of what lab3 makes": (
        "lab3/models.py", "lab3/internlm2", "lab3/embedded.py", "lab3/cache.py", "lab3/toolcaller.py",
        "lab3/rendering.py",
    ),
    "Quantizing": ("lab3/quantize", "lab3/awq", "lab3/calibration.py", "lab3/structure.py", "lab3/perplexity.py"),
    "Serving": ("lab3/serve", "lab3/ports.py", "lab3/hub", "lab3/gpu_lease.py"),
    "The CPU device": ("lab3/cpu/",),
    "Asking a server": (
        "lab3/chat.py", "lab3/funcall.py", "lab3/openai_client.py", "lab3/tool_schema.py", "lab3/subject.py",
    ),
    "Memory": ("lab3/vram", "lab3/nvml.py", "lab3/memory_log.py"),
    "The web page": ("lab3/web/",),
    "Grading submissions": ("lab3/grading/sandbox", "lab3/grading/"),
    "Reports of runs": ("lab3/report/",),
    "Grading reports": ("lab3/reports/",),
    "The command line and pytest": ("lab3/cli.py", "lab3/places.py", "lab3/pytest_plugin.py", "lab3/noise.py"),
}  # fmt: skip


def usage() -> str:
    """Exit code 2."""
    return _by_area(2)


def machine() -> str:
    """Exit code 3."""
    return _by_area(3)


def of_pytest() -> str:
    """Exit code 4 of pytest."""
    return _rows(_told(4))


def of_commands() -> str:
    """Words that end a command without being an error: each exit code with what it means."""
    rows = [
        ["0", "all is well", ""],
        ["1", "a check failed (`run`, `funcall`, `grade-reports`), or a comparison is worse (`report --compare`)",
         "read the verdict's reason; the report quotes what it was read from"],
        ["2", "wrong usage", "[the tables below](#exit-code-2-wrong-usage)"],
        ["3", "the machine was in the way; never the fault of who is judged",
         "[the tables after them](#exit-code-3-the-machine-was-in-the-way)"],
        ["130", "interrupted: `Ctrl-C` or SIGTERM; all that was started is ended", ""],
    ]  # fmt: skip
    return table(["exit code", "means", "what to do"], rows)


def servers() -> str:
    """What a server died of, as `lab3.diagnose` reads it from the log or the exit code."""
    from lab3.diagnose import _CAUSES, _by_returncode

    whose = {"machine": "the machine", "model": "the model folder", "usage": "the flags", "unknown": "not known"}
    rows = [[f"`{each.kind}`", _plain(each.why), _plain(each.todo), whose[each.fault]] for each in _CAUSES]
    for returncode in (None, -9, -11, -15, 2, 0, 1):
        each = _by_returncode(returncode)
        why = each.why.replace("signal 11", "signal N").replace("signal 15", "signal N")
        rows.append([f"`{each.kind}`", _plain(why), _plain(each.todo), whose[each.fault]])
    return table(["kind", "why", "what to do", "whose"], rows)


def remedy(error: Raised) -> str:
    """What to do; "" if nobody says it. A remedy of this package stands in for one that is only known at run time."""
    return error.todo or REMEDIES.get(error.what, "")


def _told(exit_code: int) -> list[Raised]:
    return [each for each in raised() if each.exit_code == exit_code and (each.file, each.what) not in PASSED_ON]


def _by_area(exit_code: int) -> str:
    found: dict[str, list[Raised]] = {area: [] for area in AREAS}
    for each in _told(exit_code):
        found[area_of(each.file)].append(each)
    return "\n\n".join(f"### {area}\n\n{_rows(errors)}" for area, errors in found.items() if errors)


def area_of(file: str) -> str:
    """Raises LookupError for a file of no area: put it into one."""
    for area, beginnings in AREAS.items():
        if file.startswith(beginnings):
            return area
    raise LookupError(f"{file} is in no area of tools.docs.errors")


def _rows(errors: Iterable[Raised]) -> str:
    rows: dict[str, list[str]] = {}
    for each in errors:
        what = SPELLED.get(each.what, each.what)
        rows.setdefault(what, [f"`` {_line(what)} ``" if "`" in what else f"`{_line(what)}`"])
        if len(rows[what]) == 1:
            rows[what] += [_plain(each.why), _plain(remedy(each))]
        else:  # said at several places, for several reasons
            for column, text in ((1, _plain(each.why)), (2, _plain(remedy(each)))):
                if text and text not in rows[what][column]:
                    rows[what][column] = f"{rows[what][column]}; {text}".removeprefix("; ")
    return table(["message", "why", "what to do"], list(rows.values()))


def _line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """As Markdown: what is only known at run time, options and quoted things as code; nothing else is markup."""
    parts = re.split(r"(`[^`]*`)", _line(text).removesuffix("."))
    escaped = [part if part.startswith("`") else _escaped(part) for part in parts]
    return "".join(escaped)


def _escaped(text: str) -> str:
    text = re.sub(r"(?<![\w`])((?:-m |--)[a-z][\w.-]*|LAB3_\w+|https?://[\w.:/…-]*\w)", r"`\1`", text)
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"<([^<>]*)>", r"‹\1›", re.sub(r"([*\[\]{}])", r"\\\1", part))
        for part in parts
    )
