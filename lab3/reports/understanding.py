"""Checks on understanding: what the student says of W4A16 and of KV cache quantization, with the sentences quoted.

The facts, of LMDeploy from 0.4 on: W4A16 packs the weights of linear layers, nothing else, and is calibrated offline;
the KV cache is quantized online, per head and token, without calibration; its share of the memory is set by
--cache-max-entry-count, so that fewer bits hold more tokens and leave the total as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lab3.reports.checks import Finding, failed, passed, unsure
from lab3.reports.facts import ReportFacts
from lab3.reports.model import Place
from lab3.reports.understanding_facts import Fact
from lab3.reports.understanding_said import Said

_ASKED = re.compile(r"区别|差异|异同|对比|比较|理解|difference|compar|versus|\bvs\b|understand", re.I | re.A)
_METHODS = re.compile(r"w4a16|awq|kv", re.I | re.A)

_FACTS: dict[str, tuple[str, str]] = {
    "weights_only": (
        "W4A16 quantizes the weights, and the activations stay in 16 bits",
        "W4A16 is said to quantize the activations",
    ),
    "kv_online": (
        "the KV cache is quantized online, without calibration",
        "KV cache quantization is said to need calibration",
    ),
    "kv_memory": (
        "a quantized KV cache holds more tokens in the same memory",
        "KV cache quantization is said to lower the total memory",
    ),
    "not_all_weights": ("not all weights are packed", "W4A16 is said to quarter the whole model"),
}


def weights_only(facts: ReportFacts) -> Finding:
    return _judge(facts, "weights_only")


def kv_online(facts: ReportFacts) -> Finding:
    return _judge(facts, "kv_online")


def kv_memory(facts: ReportFacts) -> Finding:
    return _judge(facts, "kv_memory")


def not_all_weights(facts: ReportFacts) -> Finding:
    return _judge(facts, "not_all_weights")


def difference(facts: ReportFacts) -> Finding:
    """What each of the two methods works on is said."""
    said = facts.said
    wrong = [each for each in said if each.statement.fact == "difference" and each.statement.right is False]
    weights = [
        each
        for each in said
        if each.statement.fact in ("w_target", "weights_only") and each.statement.right is not None
    ]
    weights = [each for each in weights if each.statement.fact == "w_target" or each.statement.right]
    cache = [
        each for each in said if each.statement.right and each.statement.fact in ("k_target", "kv_online", "kv_memory")
    ]
    odd = [each for each in said if each.statement.fact == "k_target" and each.statement.right is None]
    if wrong and weights and cache:
        return unsure(
            "the two are told apart, and called the same", "please read the sentences", _places([*wrong, *weights[:1]])
        )
    if wrong:
        return failed("mistaken", "the two are said to be the same", _places(wrong))
    if odd and not cache:
        return unsure("KV cache quantization is said to work on weights", "please read the sentence", _places(odd))
    if weights and cache:
        return passed("weights by W4A16, keys and values at run time by the other", _places([weights[0], cache[0]]))
    return _silent(facts, "what the two methods work on", [*weights, *cache])


def _judge(facts: ReportFacts, name: Fact) -> Finding:
    yes, no = _FACTS[name]
    said = [each for each in facts.said if each.statement.fact == name]
    right = [each for each in said if each.statement.right]
    wrong = [each for each in said if each.statement.right is False]
    if right and wrong:
        return unsure(
            "the report says both, this and its opposite", "please read the sentences", _places([*wrong, *right])
        )
    if wrong:
        return failed("mistaken", f"{no}: “{wrong[0].place.quote[:120]}”", _places(wrong))
    if right:
        return passed(yes, _places(right))
    if said:
        return unsure(
            f"it is not certain what the report says on this: {yes}", "please read the sentences", _places(said)
        )
    return _silent(facts, yes, [])


def _silent(facts: ReportFacts, what: str, said: Sequence[Said]) -> Finding:
    heading = next(
        (
            facts.place(number)
            for number, block in enumerate(facts.report.blocks)
            if block.kind in ("heading", "paragraph")
            and _ASKED.search(block.text)
            and _METHODS.search(block.text)
            and len(block.text) < 120
        ),
        None,
    )
    found = unsure(
        f"the report does not speak of this: {what}", places=[*_places(said), *([heading] if heading else [])]
    )
    return Finding(status="unknown", reason=found.reason, kind="missing", places=found.places)


def _places(said: Sequence[Said]) -> list[Place]:
    return [each.place for each in said]
