"""Which model and program a reading of memory belongs to: the words beside it, and the command that was last run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lab3.reports.facts_commands import LabCommand
from lab3.reports.facts_models import same_folder
from lab3.reports.facts_words import around_cell
from lab3.reports.model import MemoryReading, Place, Reading, Report

MemoryStep = Literal["baseline", "w4a16_chat", "server", "tools", "other", ""]
_PERCENT_ROOM = 0.6  # a percentage without digits is half a percent off
_PROCESS_ROOM_MIB = 200  # processes and the card are not read at the same moment
_NOTHING_RUNS = 700  # MiB: a bare CUDA context is below it


@dataclass(frozen=True, kw_only=True)
class MemoryAt:
    """A reading of memory and what ran then.

    `launch` is the command that started it, as far as it is seen; `told` says that the words beside the figure name the
    step, not its place in the report alone; `alone`: no other process is on the card, as far as its table shows.
    """

    reading: MemoryReading
    step: MemoryStep
    launch: LabCommand | None
    quantized: bool | None
    program: str
    told: bool
    crowded: bool = False

    @property
    def place(self) -> Place:
        return self.reading.place

    @property
    def sure(self) -> bool:
        """Whether the figure may bear a verdict against the report."""
        return not self.doubt and self.reading.place.confidence >= SURE

    @property
    def doubt(self) -> str:
        """Why the figure may be misread, or not be what it seems; empty where it is sure."""
        used, total, percent = self.reading.used_mib, self.reading.total_mib, self.reading.percent
        if self.reading.doubt:
            return self.reading.doubt
        if percent is not None and total and abs(100 * used / total - percent) > _PERCENT_ROOM:
            return f"{used} / {total} MiB are {100 * used / total:.2f}%, and {percent:g}% stands beside it"
        gpu = self.reading.gpu
        held = [each.used_mib for each in self.reading.processes if gpu is None or each.gpu in (None, gpu)]
        if held and sum(held) > used + _PROCESS_ROOM_MIB:
            return f"processes hold {sum(held)} MiB, and {used} MiB are shown as used"
        return ""


SURE = 0.8  # confidence of OCR above which a figure is taken as read


def place_memory(
    report: Report,
    readings: Sequence[Reading],
    commands: Sequence[LabCommand],
    quantizations: Sequence[LabCommand],
    *,
    tools: frozenset[int],
) -> tuple[MemoryAt, ...]:
    """The main reading of each block, with its step."""
    order = {id(each): number for number, each in enumerate(readings)}
    found = []
    for reading in _main_readings(readings):
        found.append(
            _placed(report, reading, order[id(reading)], commands, quantizations, tools=reading.place.block in tools)
        )
    return tuple(found)


def runs_quantized(command: LabCommand, quantizations: Sequence[LabCommand]) -> bool | None:
    """Whether a command runs a quantized model: by its format, its name, or a folder that a quantization wrote."""
    if command.model is None:
        return None if not command.model_format else command.model_format in ("awq", "gptq")
    if command.model_format in ("awq", "gptq") or command.model.quantized:
        return True
    made = [each.work_dir for each in quantizations if each.work_dir] or ["work_dir"]
    return any(same_folder(command.model.text, each, read=True) for each in made)


def _main_readings(readings: Sequence[Reading]) -> list[MemoryReading]:
    """Of a table with several cards the one that is used; of the bars of one block each other one."""
    blocks: dict[int, list[MemoryReading]] = {}
    for each in readings:
        if isinstance(each, MemoryReading):
            blocks.setdefault(each.place.block, []).append(each)
    found: list[MemoryReading] = []
    for group in blocks.values():
        cards = {each.gpu for each in group}
        if len(group) > 1 and (len(cards) > 1 or all(each.kind == "nvidia-smi" for each in group)):
            found.append(max(group, key=lambda each: each.used_mib))
        else:
            found += group
    return found


def _placed(
    report: Report,
    reading: MemoryReading,
    order: int,
    commands: Sequence[LabCommand],
    quantizations: Sequence[LabCommand],
    *,
    tools: bool,
) -> MemoryAt:
    words = around_cell(report, reading.place)
    starts = [each for each in commands if each.kind in ("chat", "serve")]
    last = next((each for each in reversed(starts) if each.order < order), None)
    quantized, program = words.quantized, words.program
    told = quantized is not None or bool(program)
    launch = last
    if last is not None and not _fits(last, quantized, program, quantizations):
        launch = _nearby(report, reading, starts, order, quantized, program, quantizations)
    if launch is not None:
        known = runs_quantized(launch, quantizations)
        quantized = known if quantized is None else quantized
        program = program or ("chat" if launch.kind == "chat" else "server")
    if quantized is None:
        quantized = _by_order(order, quantizations, starts)
    return MemoryAt(
        reading=reading,
        step=_step(reading, quantized, "chat" if _plain_cache(launch, starts) else program, tools=tools),
        launch=launch,
        quantized=quantized,
        program=program,
        told=told or launch is not None,
        crowded=len([each for each in reading.processes if each.used_mib > 100]) > 1,
    )


def _plain_cache(launch: LabCommand | None, starts: Sequence[LabCommand]) -> bool:
    """A server without a KV policy takes the place of `lmdeploy chat`, where another server has one."""
    if launch is None or launch.kind != "serve" or launch.kv_policy or launch.cut:
        return False
    return any(each.kind == "serve" and each.kv_policy and each is not launch for each in starts)


def _fits(command: LabCommand, quantized: bool | None, program: str, quantizations: Sequence[LabCommand]) -> bool:
    runs = runs_quantized(command, quantizations)
    kind = "chat" if command.kind == "chat" else "server"
    return (quantized is None or runs is None or runs == quantized) and (not program or program == kind)


def _nearby(
    report: Report,
    reading: MemoryReading,
    starts: Sequence[LabCommand],
    order: int,
    quantized: bool | None,
    program: str,
    quantizations: Sequence[LabCommand],
) -> LabCommand | None:
    """A command that fits the words, in the same section: before the reading, or else right after it."""
    section = report.blocks[reading.place.block].section
    same = [
        each for each in starts
        if report.blocks[each.place.block].section == section and _fits(each, quantized, program, quantizations)
    ]  # fmt: skip
    before = [each for each in same if each.order < order]
    return before[-1] if before else same[0] if same else None


def _by_order(order: int, quantizations: Sequence[LabCommand], starts: Sequence[LabCommand]) -> bool | None:
    """Before the model was quantized a reading is of the plain one."""
    if quantizations:
        return quantizations[0].order < order
    return None


def _step(reading: MemoryReading, quantized: bool | None, program: str, *, tools: bool) -> MemoryStep:
    if tools:
        return "tools"
    if reading.used_mib < _NOTHING_RUNS:
        return "other"
    if quantized is None:
        return ""
    if not quantized:
        return "baseline"
    return {"server": "server", "chat": "w4a16_chat", "": "w4a16_chat"}[program]  # type: ignore[return-value]
