"""What a clause says on each fact: kept or quantized, needed or not, lowered or the same; asserted or denied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lab3.reports.understanding_clauses import Clause

Fact = Literal["weights_only", "kv_online", "kv_memory", "not_all_weights", "w_target", "k_target", "difference"]


@dataclass(frozen=True)
class Statement:
    """What a sentence says on a fact. `right` None: it says something, and it is not certain what."""

    fact: Fact
    right: bool | None
    quote: str


def statements_of(read: Clause, sentence: str) -> Iterator[Statement]:
    rules: Sequence[Callable[[Clause], Iterator[tuple[Fact, bool | None]]]] = (
        _activations, _only_weights, _calibration, _online, _memory, _tables, _quarter, _targets,
    )  # fmt: skip
    for rule in rules:
        for fact, right in rule(read):
            if right is False and (read.has("HEDGE") or not read.state.explicit):
                right = None
            yield Statement(fact, right, sentence)


def _activations(read: Clause) -> Iterator[tuple[Fact, bool | None]]:
    """W4A16's activations: kept in 16 bits is right; quantized is not."""
    for number in read.at("ACT", of="W"):
        where = read.span(number)
        if read.methods[number] != frozenset({"W"}) and read.found[number].tag != "ACT":
            continue
        if _high(read, number, where) or _denied(read, number, where):
            yield "weights_only", True
        elif read.within(where, "CAL", "AWARE", "DEQ") or _respectively(read, where):
            continue
        elif _quantizing(read, number, where) and "W" in read.methods[number]:
            yield "weights_only", False


def _high(read: Clause, number: int, where: range) -> bool:
    """16 bits right before or after; another object's 16 bits are not its own."""
    after = [each for each in where if each > number]
    for each in after:
        tag = read.found[each].tag
        if tag in ("HI", "KEEP"):
            later = [read.found[one].tag for one in after if one > each]
            turned = tag == "HI" and "LOW" in later[:3] and "WT" not in later  # from 16 bits to 4
            turned = turned or read.integers
            return not turned and not _between_negated(read, number, each)
        if tag in ("WT", "LOW"):
            break
    before = [each for each in where if each < number][-2:]
    return any(read.found[each].tag == "HI" for each in before) and not any(
        read.found[each].tag == "WT" for each in before[-1:]
    )


def _respectively(read: Clause, where: range) -> bool:
    """`权重和激活值分别是4位和16位`: the 16 bits come last, and are the activations'."""
    tags = [read.found[each].tag for each in where if read.found[each].tag in ("LOW", "HI")]
    return tags == ["LOW", "HI"]


def _between_negated(read: Clause, one: int, two: int) -> bool:
    return any(read.found[each].tag == "NEG" for each in range(one, two))


def _denied(read: Clause, number: int, where: range) -> bool:
    before = [each for each in where if each < number]
    near = [each for each in before if read.found[each].tag == "NEG"]
    if near and not any(read.found[each].tag in ("CAL", "LESS") for each in range(near[-1], number)):
        return True
    after = [read.found[each].tag for each in where if each > number][:3]
    return "NEG" in after and ("Q" in after or "APPLY" in after or "LOW" in after or after[0] == "NEG")


def _quantizing(read: Clause, number: int, where: range) -> bool:
    tags = [read.found[each].tag for each in where]
    if "ONLY" in tags and "WT" in tags:
        return False
    if "Q" in tags or "APPLY" in tags or "LOW" in tags:
        return True
    return read.state.quantizes and "WT" not in tags and len(tags) <= 2 and read.state.weights


def _only_weights(read: Clause) -> Iterator[tuple[Fact, bool | None]]:
    """Only the weights; `weight-only`."""
    for number in read.at("WT", of="W"):
        where = read.span(number)
        close = [each for each in read.within(where, "ONLY") if abs(each - number) <= 3]
        if close and not read.within(where, "NEG") and not read.within(where, "ACT"):
            if read.within(where, "EMB", "LIN") and number not in range(min(close), max(close) + 4):
                continue
            yield "weights_only", True
            return
    names = [token.text.lower().replace("-", " ") for token in read.found if token.tag == "W"]
    if any("weight only" in name or "仅权重" in name for name in names) and not read.has("NEG"):
        yield "weights_only", True


def _calibration(read: Clause) -> Iterator[tuple[Fact, bool | None]]:
    """The KV cache needs no calibration."""
    numbers = list(read.at("CAL", of="K"))
    for number in numbers:
        where = read.span(number)
        negations = len([each for each in read.within(where, "NEG") if read.found[each].text.lower() != "nor"])
        negations += sum(1 for token in read.found if token.tag == "NEITHER")
        if negations == 1:
            yield "kv_online", True
        elif negations == 0 and (read.within(where, "NEED") or any(token.tag == "BOTH" for token in read.found)):
            # of two methods that an earlier clause named, it may be W4A16 that needs it
            yield "kv_online", False if read.spoken or read.methods[number] == frozenset({"K"}) else None
    if numbers:
        return
    elided = read.state.calibration or read.has("CAL")
    if not elided or "K" not in read.spoken or read.has("ACT", "WT", "LESS", "MORE", "VRAM"):
        return
    for number in read.at("K"):
        where = read.span(number)
        negated = bool(read.within(where, "NEG"))
        if negated:
            yield "kv_online", True
            return
        if read.within(where, "NEED") and not read.has("CAL"):
            yield "kv_online", False
            return


def _online(read: Clause) -> Iterator[tuple[Fact, bool | None]]:
    for number in read.at("ONLINE", "LIVE", of="K"):
        where = read.span(number)
        if read.methods[number] != frozenset({"K"}) or read.within(where, "NEG", "CAL"):
            continue
        beside = [read.found[each].tag for each in where if 0 < abs(each - number) <= 1]
        if read.found[number].tag == "ONLINE" or "Q" in beside:
            yield "kv_online", True
            return


def _memory(read: Clause) -> Iterator[tuple[Fact, bool | None]]:
    """A quantized KV cache holds more tokens in the same memory; the total is not lowered."""
    if read.has("RATIO") and read.has("DECIDES") and read.has("VRAM", "TOTAL") and not read.has("NEG"):
        yield "kv_memory", True
        return
    if read.has("MORE", of="K") and not read.has("NEG"):
        yield "kv_memory", True
        return
    for number in read.at("VRAM", "TOTAL", of="K"):
        where = read.span(number)
        if read.methods[number] != frozenset({"K"}):
            continue
        less, negations = read.within(where, "LESS"), read.within(where, "NEG")
        if (less and len(negations) == 1) or (read.within(where, "KEEP") and not negations and not less):
            yield "kv_memory", True
            return
        if (
            less
            and not negations
            and read.within(where, "TOTAL")
            and read.has("VRAM")
            and not read.has("RATIO", "KEYS")
        ):
            yield "kv_memory", False
            return


def _tables(read: Clause) -> Iterator[tuple[Fact, bool | None]]:
    """Embeddings and output stay in 16 bits: only linear layers are packed.

    A clause that names no method is on W4A16, whatever the sentence before was on: a KV cache has no such tables.
    """
    for number in read.at("EMB"):
        if read.spoken and read.methods[number] == frozenset({"K"}):
            continue
        where = read.span(number)
        if read.within(where, "NEG", "HI", "KEEP", "EXCEPT"):
            yield "not_all_weights", True
            return
        if "W" in read.methods[number] and read.within(where, "Q", "LOW") and not read.within(where, "DEQ", "CAL"):
            yield "not_all_weights", False
            return
    for number in read.at("LIN"):
        if read.spoken and read.methods[number] == frozenset({"K"}):
            continue
        if read.within(read.span(number), "ONLY") and not read.has("NEG"):
            yield "not_all_weights", True
            return
    for number in read.at("WHOLE"):
        where = read.span(number)
        negations = [each for each in read.within(where, "NEG") if each < number]
        if (
            negations
            and "W" in read.methods[number]
            and read.within(where, "WT", "MODEL")
            and read.within(where, "Q", "LOW", "QUARTER")
        ):
            yield "not_all_weights", True
            return


def _quarter(read: Clause) -> Iterator[tuple[Fact, bool | None]]:
    for number in read.at("QUARTER", of="W"):
        where = read.span(number)
        if read.within(where, "NEG", "EMB", "EXCEPT", "LIN"):
            continue
        if read.within(where, "WHOLE") and read.within(where, "WT", "MODEL"):
            yield "not_all_weights", False
            return
        if read.within(where, "MODEL"):
            yield "not_all_weights", None
            return


def _targets(read: Clause) -> Iterator[tuple[Fact, bool | None]]:
    """What each method works on."""
    if read.has("DIFF") and (read.has("BOTH") or read.spoken == frozenset({"W", "K"})):
        yield "difference", False
    for number in read.at("WT"):
        if read.methods[number] == frozenset({"W"}) and not _denied(read, number, read.span(number)):
            yield "w_target", True
            break
    if any(token.tag == "W" and ("weight" in token.text.lower() or "权重" in token.text) for token in read.found):
        yield "w_target", True
    for number in read.at("Q", "APPLY"):
        if read.methods[number] == frozenset({"K"}) and any(token.tag == "K" for token in read.found[number + 1 :]):
            yield "k_target", True
            return
    for number in read.at("KEYS", "MORE", "ONLINE", "LIVE"):
        if read.methods[number] == frozenset({"K"}):
            yield "k_target", True
            break
    for number in read.at("WT"):
        where = read.span(number)
        if (
            read.methods[number] == frozenset({"K"})
            and read.within(where, "Q", "APPLY")
            and not read.within(where, "NEG", "KEYS", "KEEP")
        ):
            yield "k_target", None
            break
