"""What the lab's programs print on their way: servers that start, a quantization's progress, and errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lab3.reports.lines import Sheet
from lab3.reports.model import LogLine

Event = Literal["listening", "started", "loading", "quantizing", "quantized", "error", "killed", "out_of_memory"]
_PORT = r"https?\s?[:;]\s?/{1,2}\s?[\w.\-\[\]:*]{0,60}?[:.;](?P<port>\d{2,5})(?!\d|\.\d)"
_EVENTS: tuple[tuple[Event, re.Pattern[str]], ...] = (
    ("listening", re.compile(rf"[UV]v[il1]corn\s*running\s*on\s*{_PORT}", re.IGNORECASE)),
    ("listening", re.compile(rf"Runn[il1]ng\s*on\s*(?:local\s*)?URL\s*[:：]?\s*{_PORT}", re.IGNORECASE)),
    ("listening", re.compile(rf"^\W*(?:Local|Network)\s*URL\s*[:：]\s*{_PORT}", re.IGNORECASE)),
    ("started", re.compile(rf"P[l1]ease\s*open\s*{_PORT}", re.IGNORECASE)),
    ("started", re.compile(r"Application\s*startup\s*comp[l1]ete", re.IGNORECASE)),
    ("started", re.compile(r"Started\s*server\s*process", re.IGNORECASE)),
    ("started", re.compile(rf"server\s*is\s*gonna\s*mount\s*on\s*[:：]?\s*{_PORT}", re.IGNORECASE)),
    ("started", re.compile(r"^\s*(?:server )?ready\s+after\s+\d+(?:\.\d+)?\s*s\b", re.IGNORECASE)),
    ("loading", re.compile(r"Convert\s*to\s*turbomind\s*format", re.IGNORECASE)),
    ("loading", re.compile(r"gemm_config\.in\s*is\s*not\s*found", re.IGNORECASE)),
    ("quantized", re.compile(r"mode[l1]\.layers\.\d+\.\S+\s*weight\s*packed", re.IGNORECASE)),
    ("quantized", re.compile(r"Save\s+(?:awq|quantized|the quantized)\b", re.IGNORECASE)),
    ("quantizing", re.compile(r"Move\s*mode[l1]\.\S*(?:layers\.\d+|embeddings?|norm)\S*\s*to\s*[CG]PU", re.IGNORECASE)),
    ("quantizing", re.compile(r"layers?\.\d+,\s*samples?\s*[:：]", re.IGNORECASE)),
    ("quantizing", re.compile(r"smooth\s*weight\s*done", re.IGNORECASE)),
    ("out_of_memory", re.compile(r"CUDA\s*(?:error\s*[:：]\s*)?out\s*of\s*memory|OutOfMemoryError", re.IGNORECASE)),
    ("killed", re.compile(r"^\s*(?:\[\d+\][+\-]?\s+(?:\d+\s+)?)?(?:Killed|已杀死|已终止)\b", re.IGNORECASE)),
    ("error", re.compile(r"address\s*already\s*in\s*use", re.IGNORECASE)),
    ("error", re.compile(r"\blmdeploy\s*[:：]\s*error\s*[:：]", re.IGNORECASE)),
    (
        "error",
        re.compile(r"^\s*(?:usage|error)\b.*\b(?:unrecognized arguments|invalid choice|required)", re.IGNORECASE),
    ),
    ("error", re.compile(r"error\s*[:：]\s*(?:unrecognized|argument|invalid|the following arguments)", re.IGNORECASE)),
    ("error", re.compile(r"[:：]\s*command\s*not\s*found|未找到命令", re.IGNORECASE)),
    ("error", re.compile(r"No\s*such\s*file\s*or\s*directory\s*$", re.IGNORECASE)),
    ("error", re.compile(r"^\s*(?:[a-z_][\w.]*\.)*[A-Z]\w*(?:Error|Exception|Refused|Timeout)\s*(?:[:：]\s|$)")),
    ("error", re.compile(r"^\s*curl\s*[:：]\s*\(\d+\)")),
    ("error", re.compile(r"^\s*ERROR\b\s*[:：]\s*\S", re.IGNORECASE)),
)
_MODEL = re.compile(r"(?:work_dir|model_path|model_source|Save[^\n]{0,30}to)\s*[=:：]?\s*['\"]?([~./\w\-]+)")
_HARMLESS = re.compile(r"ignored|DEBUG|\bINFO\b|0\s*errors?|raise |except |print\(|logger", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A reading, and its line."""

    number: int
    reading: LogLine


def find_logs(sheet: Sheet) -> Iterator[Found]:
    """Every line that tells how far a program got. Of a Traceback it is the last line, which names the error."""
    for number, line in enumerate(sheet.lines):
        for event, pattern in _EVENTS:
            found = pattern.search(line.text)
            if found is None or (event == "error" and _HARMLESS.search(line.text)):
                continue
            port = found.groupdict().get("port")
            model = _MODEL.search(line.text)
            yield Found(
                number,
                LogLine(
                    event=event,
                    place=sheet.place(number),
                    port=int(port) if port and 0 < int(port) < 65536 else None,
                    model=model[1] if model else "",
                ),
            )
            break
