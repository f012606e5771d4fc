"""The report's claims in words and figures against what it shows, and the sums that it writes down."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lab3.reports.checks import Finding, against, passed, unsure
from lab3.reports.checks_memory import in_total
from lab3.reports.facts import ReportFacts
from lab3.reports.model import Place
from lab3.reports.numbers import MIB, Claim, Figure, claims_in, figures_in, sums_in
from lab3.reports.understanding_words import sentences_of

_OF_SIZE = re.compile(
    r"文件|大小|体积|磁盘|存储|模型从|\bsizes?\b|\bdisk\b|\bfolders?\b|\bfiles?\b|\bdu\b|checkpoint", re.I | re.A
)
_OF_MEMORY = re.compile(r"显存|\bvram\b|\bmemory\b|\bgpu\b|nvidia-smi|MiB", re.I | re.A)
_THEORY = re.compile(
    r"理论|预计|估计|估算|应该|应为|假设|假如|如果|每个|每\s*token|每层|相当于|可以达到|最多|最大|最小|剩余"
    r"|剩下|空闲|\bkv\b.{0,10}(?:占|需要)|权重占|按照"
    r"|\btheor|\bexpect|\bestimat|\bassum|\bif\b|\bper\b|\bwould\b|\bshould\b|\bup to\b|\bat most\b|\bfree\b"
    r"|\bremaining\b|\bcache takes\b|\bweights? takes?\b",
    re.I | re.A,
)

MOST = 20_000  # characters of a block that are read


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What the report shows: bytes between, with its place."""

    low: float
    high: float
    place: Place
    sure: bool
    text: str


def prose_claims(facts: ReportFacts) -> Finding:
    """What the text says of sizes and memory is what the pictures show, and its sums are right."""
    good: list[Place] = []
    odd: Finding | None = None
    sizes, memory = _sizes(facts), _memory(facts)
    for block, text in facts.prose():
        text = text[:MOST]
        beside = [[each for each in group if each.place.block != block] for group in (sizes, memory)]  # not itself
        for each in sums_in(text):
            place = facts.place(block, each.text)
            if not each.right:
                return against(
                    "mistaken", f"{each.text}: it comes to "
                    f"{each.computed:.4g}", [place], expected=f"{each.computed:.4g}",
                    actual=f"{each.stated:g}",
                )  # fmt: skip
            good.append(place)
        for sentence in sentences_of(text):
            for found in _sentence(facts, block, sentence.written[:600], *beside):
                if found.status == "fail":
                    return found
                if found.status == "unknown":
                    odd = odd or found
                else:
                    good += found.places
    if odd is not None:
        return odd
    if good:
        return passed("what the text says in figures is what the report shows", good[:6])
    return unsure("the text claims nothing in figures that could be compared")


def _sentence(
    facts: ReportFacts, block: int, sentence: str, sizes: Sequence[Amount], memory: Sequence[Amount]
) -> Iterable[Finding]:
    theory = bool(_THEORY.search(sentence))
    subject = _subject(facts, block, sentence)
    shown = {"sizes": sizes, "memory": memory}.get(subject, (*sizes, *memory))
    claimed = claims_in(sentence)
    for claim in claimed:
        found = _claim(facts, block, sentence, claim, subject, sizes, memory)
        if found is None or (theory and found.status != "pass"):
            continue
        yield found
    if not claimed:
        for figure in figures_in(sentence):
            match = next((each for each in shown if figure.unit in ("G", "M") and _is(figure, each)), None)
            if match is not None:
                yield passed(figure.text, [facts.place(block, sentence), match.place])


def _claim(
    facts: ReportFacts,
    block: int,
    sentence: str,
    claim: Claim,
    subject: str,
    sizes: Sequence[Amount],
    memory: Sequence[Amount],
) -> Finding | None:
    """What a claim comes to; None where the report shows nothing to compare it with."""
    groups = {"sizes": [sizes], "memory": [memory]}.get(subject, [sizes, memory])
    pairs = [(one, two) for group in groups for number, one in enumerate(group) for two in group[number + 1 :]]
    place = facts.place(block, sentence)
    match = next((pair for pair in pairs if _holds(claim, *pair)), None)
    if match is not None:
        return passed(sentence, [place, match[0].place, match[1].place])
    if claim.kind == "from_to":
        return _ends(claim, place, [each for group in groups for each in group])
    if not pairs or not subject or not all(each.sure for pair in pairs for each in pair):
        return None
    if claim.figure.unit == "%" and subject == "memory" and any(_bar(claim.figure, each) for each in memory):
        return None
    if (
        re.search(r"kv|缓存|cache|token|速度|精度|准确|时间|speed|accura|latency|time|cpu", sentence, re.I | re.A)
        and subject != "sizes"
    ):
        return None
    if claim.kind == "more":
        return None
    one, two = pairs[0]
    if len(pairs) > 3:
        return unsure(
            f"the text says {claim.figure.text}", "no two figures of the report give it", [place, one.place, two.place]
        )
    change = "less" if claim.kind == "less" else "of it"
    told = f"the text says {claim.figure.text} {change}, and the report shows {one.text} and {two.text}"
    return against(
        "mistaken", told, [place, one.place, two.place], expected=_span(claim, one, two), actual=claim.figure.text
    )


def _ends(claim: Claim, place: Place, shown: Sequence[Amount]) -> Finding | None:
    """From so much to so much: each end is shown somewhere, or else is not what is shown."""
    if claim.to is None or not shown:
        return None
    first, last = ([each for each in shown if _is(figure, each)] for figure in (claim.figure, claim.to))
    if first and last:
        return passed(claim.text, [place, first[0].place, last[0].place])
    if bool(first) == bool(last) or not all(each.sure for each in shown):
        return None
    missing = claim.to if first else claim.figure
    return unsure(
        f"the text says {missing.text}, which is not shown", "please compare the text with the figures",
        [place, *(each.place for each in shown[:3])],
    )  # fmt: skip


def _holds(claim: Claim, one: Amount, two: Amount) -> bool:
    """Whether two amounts, before and after, give what is claimed."""
    figure = claim.figure
    if claim.kind == "from_to":
        return claim.to is not None and (
            (_is(figure, one) and _is(claim.to, two)) or (_is(figure, two) and _is(claim.to, one))
        )
    if one.high < two.low:
        one, two = two, one
    low, high = one.low - two.high, one.high - two.low
    if figure.unit in ("G", "M"):
        return any(least <= high and most >= low for least, most in figure.bytes_between())
    least, most = figure.span()
    room = 1.0
    share = (100 * two.low / one.high, 100 * two.high / one.low) if one.low > 0 else (0.0, 100.0)
    if claim.kind == "share":
        return least - room <= share[1] and most + room >= share[0]
    fall = (100 - share[1], 100 - share[0])
    return least - room <= fall[1] and most + room >= fall[0]


def _is(figure: Figure, amount: Amount) -> bool:
    if figure.unit not in ("G", "M"):
        return False
    return any(least <= amount.high and most >= amount.low for least, most in figure.bytes_between())


def _bar(figure: Figure, amount: Amount) -> bool:
    return f"{figure.value:g}%" in amount.text


def _span(claim: Claim, one: Amount, two: Amount) -> str:
    if one.high < two.low:
        one, two = two, one
    if claim.figure.unit == "%":
        return f"{100 * (1 - two.high / one.low):.0f} to {100 * (1 - two.low / one.high):.0f} %"
    scale, name = ((1 << 30), "GiB") if claim.figure.unit == "G" else (MIB, "MiB")
    return f"{(one.low - two.high) / scale:.2f} to {(one.high - two.low) / scale:.2f} {name}"


def _subject(facts: ReportFacts, block: int, sentence: str) -> str:
    """What a claim is of: the sentence says so, or else the heading above it."""
    for text in (sentence, "\n".join(facts.report.blocks[block].section)):
        size, memory = bool(_OF_SIZE.search(text)), bool(_OF_MEMORY.search(text))
        if size != memory:
            return "sizes" if size else "memory"
    return ""


def _sizes(facts: ReportFacts) -> tuple[Amount, ...]:
    rows = [row for pair in facts.size_pairs[:1] for row in (pair.before, pair.after) if row is not None]
    return tuple(
        Amount(
            low=row.low,
            high=row.high,
            place=row.place,
            sure=not row.doubt and row.place.confidence >= 0.8,
            text=row.text,
        )
        for row in rows
    )


def _memory(facts: ReportFacts) -> tuple[Amount, ...]:
    return tuple(
        Amount(
            low=each.reading.used_mib * MIB, high=each.reading.used_mib * MIB, place=each.place, sure=each.sure,
            text=f"{each.reading.used_mib} MiB",
        )
        for each in in_total(facts)
    )  # fmt: skip
