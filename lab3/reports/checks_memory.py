"""Checks on memory: which step shows what, on which card, and whether the figure can be what the command makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lab3.reports.checks import Finding, against, came_up, errors_in, failed, not_shown, passed, unsure
from lab3.reports.facts import ReportFacts
from lab3.reports.facts_commands import DEFAULT_RATIO
from lab3.reports.facts_memory import MemoryAt
from lab3.reports.facts_models import ModelName, weight_mib
from lab3.reports.model import Place
from lab3.vram_constants import LAB_VOCABULARY, SOURCES

# Room beside the constants of the LMDeploy versions that were read (lab3.vram_constants): 300 MiB, as `lmdeploy chat`
# holds 200 MiB less than api_server of the same ratio and a CUDA context differs by card, and 1% of the card.
ROOM_MIB, ROOM_SHARE = 300.0, 0.01
SAME_CARD = 0.002  # 24566 and 24576 MiB are told apart by nobody


def baseline_memory(facts: ReportFacts) -> Finding:
    """Memory of the model that is not quantized."""
    return _step(
        facts, "baseline", "memory of the model before quantization", quantized=False, program="",
    )  # fmt: skip


def w4a16_memory(facts: ReportFacts) -> Finding:
    """Memory of the W4A16 model in `lmdeploy chat`."""
    return _step(facts, "w4a16_chat", "memory of the W4A16 model in `lmdeploy chat`", quantized=True, program="chat")


def server_memory(facts: ReportFacts) -> Finding:
    """Memory of the server with the W4A16 model and the quantized KV cache."""
    return _step(facts, "server", "memory of the server", quantized=True, program="server")


def same_card(facts: ReportFacts) -> Finding:
    """The figures that are compared are of one card."""
    shown = [
        each for each in facts.memory if each.step in ("baseline", "w4a16_chat", "server") and each.reading.total_mib
    ]
    before = [each for each in shown if each.step == "baseline"]
    after = [each for each in shown if each.step != "baseline"]
    if not before or not after:
        return unsure("there are no two figures of memory to compare", places=[each.place for each in shown])
    first = before[0]
    other = [each for each in after if not _same_total(first, each)]
    places = [first.place, *(each.place for each in (other or after))]
    totals = sorted({each.reading.total_mib or 0 for each in (first, *after)})
    if not other:
        return passed(f"all on a card of {totals[0]} MiB", places)
    told = " and ".join(f"{total} MiB" for total in totals)
    if len(other) < len(after) or any(_same_total(each, two) for each in before[1:] for two in after):
        return unsure(f"the figures are of cards of {told}", "some of the figures are of another card", places)
    sure = first.sure and all(each.sure for each in other) and first.told
    return against(
        "contradiction", f"before and after are compared on different cards: {told}", places, actual=told, sure=sure
    )


def memory_prediction(facts: ReportFacts) -> Finding:
    """The figures are what the commands make on that card: used = o + W + r (T - o - W) + e, see lab3.vram_predict."""
    judged = [fit for each in facts.memory if (fit := _fit(facts, each)) is not None]
    if not judged:
        shown = [each.place for each in facts.memory]
        why = "no figure of memory has a known model, card and cache ratio"
        return unsure(why, "please compare the figures with the commands" if shown else "", shown)
    for verdict in ("impossible", "contradiction", "doubtful"):
        bad = next((each for each in judged if each.verdict == verdict), None)
        if bad is None:
            continue
        places = [bad.at.place, *([bad.launch] if bad.launch else [])]
        expected, actual = f"{bad.low:.0f} to {bad.high:.0f} MiB", f"{bad.at.reading.used_mib} MiB"
        if bad.verdict == "doubtful":
            return unsure(bad.told, bad.told, places, expected=expected, actual=actual)
        return against(
            "impossible" if verdict == "impossible" else "contradiction", bad.told, places, expected=expected,
            actual=actual, sure=bad.at.sure,
        )  # fmt: skip
    if doubtful := [each for each in in_total(facts) if each.doubt]:
        return unsure("a figure of memory may be misread", doubtful[0].doubt, [each.place for each in doubtful])
    told = "; ".join(each.told for each in judged)
    return passed(told, [place for each in judged for place in (each.at.place, each.launch) if place])


def in_total(facts: ReportFacts) -> tuple[MemoryAt, ...]:
    """The readings of the first task, for claims in prose."""
    return tuple(each for each in facts.memory if each.step in ("baseline", "w4a16_chat", "server"))


# -------------------------------------------------------------------------------------------------------------- helpers


def _step(facts: ReportFacts, step: str, what: str, *, quantized: bool, program: str) -> Finding:
    found = [each for each in facts.memory if each.step == step]
    clear = [each for each in found if not each.doubt]
    shown = [each for each in clear if facts.report.blocks[each.place.block].kind != "table"]
    best = next((each for each in shown if each.told), shown[0] if shown else None)
    if clear and best is None:
        why = "the figure is typed into a table, and nothing else shows it"
        return unsure(f"{what}: {clear[0].reading.used_mib} MiB, told in a table", why, [clear[0].place])
    if best is not None and (same := _same_picture(facts, best)) is not None:
        why = f"{what}: the picture is also that of the memory before quantization"
        return unsure(why, "one picture is given for two steps", [best.place, same.place])
    if best is not None:
        reading = best.reading
        told = f"{reading.used_mib} of {reading.total_mib} MiB" if reading.total_mib else f"{reading.used_mib} MiB"
        if best.told:
            return passed(told, [best.place])
        return passed(f"{told}, by its place in the report", [best.place])
    if found:
        doubt = found[0].doubt
        return unsure(f"{what} is shown, and may be misread: {doubt}", doubt, [each.place for each in found])
    unplaced = [each for each in facts.memory if each.step == ""]
    if unplaced:
        why = f"{what}: a figure is shown, and the report does not say of which step"
        return unsure(why, "please say which step the figure is of", [each.place for each in unplaced])
    errors = errors_in(facts, tools=False)
    if step != "baseline" and errors and not came_up(facts, tools=False):
        return failed("not_achieved", f"{what}: the program ended with an error", [errors[0].place])
    return not_shown(facts, what, topics=("memory",), tools=False, quantized=quantized, program=program)


def _same_picture(facts: ReportFacts, at: MemoryAt) -> MemoryAt | None:
    """The baseline, if its picture is the same one."""
    if at.step == "baseline" or at.place.picture is None:
        return None
    same = [each for each in facts.memory if each.step == "baseline" and each.place.block != at.place.block]
    return next((each for each in same if each.place.picture == at.place.picture), None)


def _same_total(one: MemoryAt, two: MemoryAt) -> bool:
    first, second = one.reading.total_mib or 0, two.reading.total_mib or 0
    return abs(first - second) <= SAME_CARD * max(first, second)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    at: MemoryAt
    launch: Place | None
    verdict: Literal["fits", "doubtful", "contradiction", "impossible"]
    told: str
    low: float = 0.0
    high: float = 0.0


def _fit(facts: ReportFacts, at: MemoryAt) -> _Fit | None:
    """How a figure fits what ran then; None where model, card or ratio are not known."""
    total, launch = at.reading.total_mib, at.launch
    model = _model_of(facts, at)
    if total is None or at.doubt or at.quantized is None or model is None or at.step in ("other", ""):
        return None
    weights = weight_mib(model, quantized=at.quantized)
    if weights is None:
        return None
    used = at.reading.used_mib
    if used > total:
        told = f"{used} MiB are more than the card's {total} MiB"
        return _Fit(at=at, launch=None, verdict="impossible", told=told, high=total)
    if used < 0.85 * weights:
        told = f"{used} MiB are less than the {weights:.0f} MiB of the weights alone"
        return _Fit(
            at=at, launch=launch.place if launch else None, verdict="impossible", told=told, low=weights, high=total
        )
    if launch is None or (launch.ratio is None and (launch.cut or launch.model is None)):
        return None
    ratio = launch.ratio if launch.ratio is not None else DEFAULT_RATIO
    if not 0 < ratio < 1:
        return None
    low, high = predicted_mib(total, weights, ratio)
    said = f"ratio {ratio:g}" if launch.ratio is not None else f"the default ratio {ratio:g}"
    head = f"{used} MiB with {model.size} {'W4A16' if at.quantized else 'in 16 bits'} and {said} on {total} MiB"
    fit = _Fit(at=at, launch=launch.place, verdict="fits", told=head, low=low, high=high)
    if low <= used <= high:
        return fit
    off = f"{head}: {low:.0f} to {high:.0f} MiB were expected"
    return replace(fit, verdict=_how_far(facts, at, weights=weights, ratio=ratio, low=low, high=high), told=off)


def _how_far(
    facts: ReportFacts, at: MemoryAt, *, weights: float, ratio: float, low: float, high: float
) -> Literal["doubtful", "contradiction"]:
    """A figure that misses its prediction contradicts the command only if nothing that is known explains it."""
    used, total = at.reading.used_mib, at.reading.total_mib or 0
    margin = max(2 * (ROOM_MIB + ROOM_SHARE * total), 0.05 * total)
    close = low - margin <= used <= high + margin
    given = at.launch is not None and at.launch.ratio is not None
    pytorch = at.launch is not None and any("pytorch" in each for each in at.launch.arguments)
    others = {
        each.ratio or DEFAULT_RATIO
        for each in facts.commands
        if each.kind in ("chat", "serve") and each is not at.launch
    }
    fits_default = _within(used, predicted_mib(total, weights, DEFAULT_RATIO))
    fits_other = any(
        _within(used, predicted_mib(total, weights, other)) for other in others if 0 < other < 1 and other != ratio
    )
    more = used > high  # another process explains more, unless the table shows that there is none
    alone = bool(at.reading.processes) and not at.crowded
    if close or pytorch or not at.told or not given or fits_other or at.crowded:
        return "doubtful"
    if more and not (alone or fits_default):
        return "doubtful"
    return "contradiction"


def predicted_mib(total: float, weights: float, ratio: float) -> tuple[float, float]:
    """(least, most) MiB over the LMDeploy versions that were read, with room."""
    outcomes = [
        source.bound(LAB_VOCABULARY).outcome(total_mib=total, weights_mib=weights, ratio=ratio)[0] for source in SOURCES
    ]
    room = ROOM_MIB + ROOM_SHARE * total
    return min(outcomes) - room, min(max(outcomes) + room, total)


def _within(used: float, span: tuple[float, float]) -> bool:
    return span[0] <= used <= span[1]


def _model_of(facts: ReportFacts, at: MemoryAt) -> ModelName | None:
    """The model that ran: as the command names it, else the one that was quantized."""
    if at.launch is not None and at.launch.model is not None and at.launch.model.size:
        return at.launch.model
    return facts.lab_model if at.step != "tools" else None
