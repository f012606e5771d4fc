"""What a report shows of each step of the lab: its readings, joined with the words and commands around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from lab3.reports.facts_commands import LabCommand, lab_command
from lab3.reports.facts_memory import MemoryAt, place_memory, runs_quantized
from lab3.reports.facts_models import ModelName, last_part, model_name, same_folder
from lab3.reports.facts_words import Around, around, speaks_of_tools
from lab3.reports.model import (
    ChatSeen,
    CodeSeen,
    CommandSeen,
    CompletionSeen,
    FolderSize,
    LogLine,
    MemoryReading,
    Place,
    Printed,
    Reading,
    Report,
)
from lab3.reports.understanding_said import Said, said_of

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class SizePair:
    """The folders of a model before and after, as a listing shows them."""

    model: ModelName
    before: FolderSize | None
    after: FolderSize | None


@dataclass(frozen=True, kw_only=True)
class HiddenPicture:
    """A picture of which nothing was read: it may show what the words around it say.

    `partly`: something was read, such as a command that says nothing of the lab's steps.
    """

    place: Place
    topics: frozenset[str]
    quantized: bool | None
    program: str
    tools: bool
    why: str
    partly: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """A report, what was read off it in its order, and which step it belongs to."""

    report: Report
    readings: tuple[Reading, ...]
    commands: tuple[LabCommand, ...]
    memory: tuple[MemoryAt, ...]
    hidden: tuple[HiddenPicture, ...]
    tools_blocks: frozenset[int]
    theirs: frozenset[int] = frozenset()  # blocks that the tutorial wrote

    def of(self, kind: type[R]) -> tuple[R, ...]:
        """The readings of a kind, in the report's order."""
        return tuple(each for each in self.readings if isinstance(each, kind))

    def around(self, block: int) -> Around:
        return around(self.report, block)

    def prose(self) -> Iterable[tuple[int, str]]:
        """The student's own sentences, with the block's number."""
        for number, block in enumerate(self.report.blocks):
            if number not in self.theirs and block.kind in ("paragraph", "list_item", "quote", "table", "heading"):
                yield number, block.text

    def place(self, block: int, quote: str = "") -> Place:
        """A place in the report's text."""
        return Place(
            block=block, quote=quote or self.report.blocks[block].text[:200], line=self.report.blocks[block].line
        )

    @cached_property
    def quantizations(self) -> tuple[LabCommand, ...]:
        return tuple(each for each in self.commands if each.kind == "quantize" and each.method != "kv_qparams")

    @cached_property
    def servers(self) -> tuple[LabCommand, ...]:
        return tuple(each for each in self.commands if each.kind == "serve")

    @cached_property
    def lab_servers(self) -> tuple[LabCommand, ...]:
        """The servers of the first task."""
        return tuple(each for each in self.servers if each.place.block not in self.tools_blocks)

    @cached_property
    def tool_servers(self) -> tuple[LabCommand, ...]:
        return tuple(each for each in self.servers if each.place.block in self.tools_blocks)

    def is_quantized(self, command: LabCommand) -> bool | None:
        """Whether the model that a command runs is a quantized one; None where it names none."""
        return runs_quantized(command, self.quantizations)

    def main_server(self) -> LabCommand | None:
        """The first task's server that comes nearest to what is asked: the quantized model, with a KV policy."""
        ranked = sorted(
            self.lab_servers,
            key=lambda each: (bool(self.is_quantized(each)), bool(each.kv_policy), each.seen.at_prompt, each.order),
        )
        return ranked[-1] if ranked else None

    @cached_property
    def said(self) -> tuple[Said, ...]:
        """What the student says of the two methods."""
        return said_of(self.report, self.theirs)

    @cached_property
    def completions(self) -> tuple[CompletionSeen, ...]:
        return self.of(CompletionSeen)

    @cached_property
    def size_pairs(self) -> tuple[SizePair, ...]:
        return tuple(_size_pairs(self))

    @cached_property
    def lab_model(self) -> ModelName | None:
        """The model that the first task is done with, as its quantization, or else its server, names it."""
        sources = [each.model for each in self.quantizations if each.model and each.model.size]
        served = [each.model for each in self.lab_servers if each.model and each.model.size]
        return next(iter((*sources, *served)), None)


def gather(report: Report, readings: Sequence[Reading], theirs: frozenset[int] = frozenset()) -> ReportFacts:
    """Join what was read off a report to the steps of the lab. `theirs` are blocks that the tutorial wrote."""
    count = len(report.blocks)
    ordered = tuple(
        sorted((each for each in readings if 0 <= each.place.block < count), key=lambda each: each.place.block)
    )
    commands = tuple(
        lab_command(each, order=number)
        for number, each in enumerate(ordered)
        if isinstance(each, CommandSeen) and each.argv
    )
    tools = _tools_blocks(report, ordered)
    quantizations = tuple(each for each in commands if each.kind == "quantize" and each.method != "kv_qparams")
    memory = place_memory(report, ordered, commands, quantizations, tools=tools)
    return ReportFacts(
        report=report,
        readings=ordered,
        commands=commands,
        memory=memory,
        hidden=tuple(_hidden(report, ordered, tools)),
        tools_blocks=tools,
        theirs=theirs,
    )


def _tools_blocks(report: Report, readings: Sequence[Reading]) -> frozenset[int]:
    """The blocks on function calls: below such a heading, or around the completions that call something."""
    called = frozenset(each.place.block for each in readings if isinstance(each, CompletionSeen) and _calls(each))
    headed: dict[str, set[int]] = {}
    for number, block in enumerate(report.blocks):
        for heading in (*block.section, *([block.text] if block.kind == "heading" else [])):
            headed.setdefault(heading, set()).add(number)
    quantized = {each.place.block for each in readings if isinstance(each, CommandSeen) and "lite" in each.argv}
    most = max(0.85 * len(report.blocks), 8)
    own = {heading: blocks for heading, blocks in headed.items() if not blocks & quantized and len(blocks) <= most}
    under = frozenset[int]().union(*(blocks for heading, blocks in own.items() if speaks_of_tools(heading)))
    if under or not called:
        return under | called
    first = min(called)
    above = next((own[heading] for heading in report.blocks[first].section if heading in own), None)
    if above is not None:
        return called.union(above)
    start = next((number for number in range(first, max(-1, first - 12), -1) if _introduces(report, number)), first)
    return called.union(range(start, max(called) + 1))


def _calls(completion: CompletionSeen) -> bool:
    """Whether a completion calls something, as far as it can be read."""
    told = "tool_calls=[" in completion.place.quote
    return bool(completion.tool_calls) or completion.finish_reason == "tool_calls" or told


def _introduces(report: Report, number: int) -> bool:
    block = report.blocks[number]
    return block.kind in ("heading", "paragraph", "list_item") and speaks_of_tools(block.text)


def _hidden(report: Report, readings: Sequence[Reading], tools: frozenset[int]) -> Iterable[HiddenPicture]:
    telling = MemoryReading | FolderSize | CommandSeen | CompletionSeen | ChatSeen | CodeSeen | LogLine
    known = {each.place.block for each in readings if isinstance(each, telling) and not _says_little(each)}
    partly = {each.place.block for each in readings}
    for number, block in enumerate(report.blocks):
        if block.picture is None or number in known:
            continue
        words = around(report, number)
        little = "little was read in it" if number in partly else "nothing was read in it"
        why = block.picture.why or (little if block.picture.path else "the picture is not at hand")
        yield HiddenPicture(
            place=Place(block=number, quote=block.picture.alt, line=block.line, picture=block.picture.digest or None),
            topics=words.topics,
            quantized=words.quantized,
            program=words.program,
            tools=number in tools or words.tools,
            why=why,
            partly=number in partly,
        )


def _says_little(reading: Reading) -> bool:
    """A command that is none of LMDeploy's shows a step only by what it prints."""
    return isinstance(reading, CommandSeen) and not any("lmdeploy" in word.lower() for word in reading.argv[:4])


# --------------------------------------------------------------------------------------------------- the sizes


def _size_pairs(facts: ReportFacts) -> Iterable[SizePair]:
    """A pair for each quantized folder listed; without one, what is listed of the model that was quantized."""
    rows = [each for each in facts.of(FolderSize) if each.high > 0 and each.low >= 50 << 20]
    made = [each.work_dir for each in facts.quantizations if each.work_dir]
    after = _after(rows, made, facts.lab_model)
    before = [row for row in rows if not _is_made(row, made)]
    used: set[str] = set()
    for row in after:
        name = _source_of(row, facts)
        if (key := f"{last_part(row.name)} {row.text}") in used:
            continue
        used.add(key)
        yield SizePair(model=name, before=_best_before(before, name, facts), after=row)
    if not after and facts.lab_model is not None:
        found = _best_before(before, facts.lab_model, facts)
        if found:
            yield SizePair(model=facts.lab_model, before=found, after=None)


def _after(rows: Sequence[FolderSize], made: Sequence[str], model: ModelName | None) -> list[FolderSize]:
    """What the report's quantization wrote; where that is not listed, quantized folders of the lab's model."""
    written = [
        row for row in rows if any(same_folder(row.name, each, read=row.place.picture is not None) for each in made)
    ]
    named = [row for row in rows if model_name(row.name).quantized and model_name(row.name).family != "other"]
    same = [row for row in named if model is None or model.same_size(model_name(row.name)) is not False]
    return written or same or named


def _is_made(row: FolderSize, made: Sequence[str]) -> bool:
    read = row.place.picture is not None
    return model_name(row.name).quantized or any(same_folder(row.name, each, read=read) for each in made)


def _source_of(row: FolderSize, facts: ReportFacts) -> ModelName:
    """The model that a quantized folder was made from, by the command that made it or by its name."""
    read = row.place.picture is not None
    for command in facts.quantizations:
        if command.work_dir and same_folder(row.name, command.work_dir, read=read) and command.model:
            return command.model
    named = model_name(row.name)
    return named if named.size or facts.lab_model is None else facts.lab_model


def _best_before(rows: Sequence[FolderSize], model: ModelName, facts: ReportFacts) -> FolderSize | None:
    """The listed folder that is the unquantized model: by its name, else by family and size."""
    exact = [row for row in rows if same_folder(row.name, model.text, read=True)]
    wanted = "".join(each for each in model.last.lower() if each.isalnum())
    begins = [
        row for row in rows
        if (name := "".join(each for each in last_part(row.name).lower() if each.isalnum()))
        and wanted.startswith(name) and model_name(row.name).size == model.size and "chat" in name
    ]  # fmt: skip
    sized = [
        row for row in rows
        if (other := model_name(row.name)).size == model.size != ""
        and (not other.family or not model.family or other.family == model.family)
    ]  # fmt: skip
    for group in (exact, sorted(begins, key=lambda row: -len(row.name))):
        if group:
            return group[0]
    return sized[0] if sized and len({row.text for row in sized}) == 1 else None


def printed_after(facts: ReportFacts, completion: CompletionSeen) -> tuple[Printed, ...]:
    """What a program printed after a completion, up to the next one, in the same block."""
    mine = [each for each in facts.readings if each.place.block == completion.place.block]
    at = next(number for number, each in enumerate(mine) if each is completion)
    found = []
    for each in mine[at + 1 :]:
        if isinstance(each, CompletionSeen | CommandSeen):
            break
        if isinstance(each, Printed):
            found.append(each)
    return tuple(found)
