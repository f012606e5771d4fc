"""Checks on printed completions: their tokens add up, and are those that the model's tokenizer counts."""

from __future__ import annotations

from lab3.reports.checks import Finding, against, not_shown, passed, unsure
from lab3.reports.facts import ReportFacts
from lab3.reports.model import CompletionSeen
from lab3.reports.tokens import TokenBounds, completion_bounds, lab_tokenizer


def completion_counts(facts: ReportFacts) -> Finding:
    """In each printed completion the tokens add up."""
    counted = [
        each
        for each in facts.completions
        if None not in (each.prompt_tokens, each.completion_tokens, each.total_tokens)
    ]
    for each in counted:
        prompt, completion, total = each.prompt_tokens or 0, each.completion_tokens or 0, each.total_tokens or 0
        if prompt + completion != total:
            told = f"{prompt} + {completion} = {prompt + completion}, and the total tokens are {total}"
            if each.doubt:
                return unsure(told, each.doubt, [each.place])
            return against("contradiction", told, [each.place], expected=str(prompt + completion), actual=str(total))
    if counted:
        told = "; ".join(f"{each.prompt_tokens} + {each.completion_tokens} = {each.total_tokens}" for each in counted)
        return passed(told, [each.place for each in counted])
    if facts.completions:
        why = "the token counts of the printed completions are not all seen"
        return unsure(why, places=[each.place for each in facts.completions])
    found = not_shown(facts, "a printed completion", topics=("output",), tools=True)
    return found if found.status == "fail" else unsure(found.reason, places=found.places)


def completion_tokens(facts: ReportFacts) -> Finding:
    """The counts are those that the model's tokenizer gives, where there is one; otherwise unknown."""
    tokenizer = lab_tokenizer()
    if tokenizer is None:
        return unsure("no tokenizer of the model is at hand to count again")
    counted: list[tuple[CompletionSeen, TokenBounds]] = []
    for each in facts.completions:
        bounds = completion_bounds(tokenizer, each)
        if bounds is None or each.doubt or not each.complete or each.completion_tokens is None:
            continue
        counted.append((each, bounds))
        if not bounds.low <= each.completion_tokens <= bounds.high:
            told = (
                f"{each.completion_tokens} completion tokens are told, and the text has {bounds.low} to {bounds.high}"
            )
            return unsure(told, "please compare the text with its count", [each.place])
    if not counted:
        return unsure("no printed completion can be counted again")
    return passed("the counts fit the texts", [each.place for each, _ in counted])
