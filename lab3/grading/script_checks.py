"""What a submission's scripts must show beyond the lab's own checks: that what they print comes from the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lab3.evidence import Evidence, ScriptFacts, ScriptRun
from lab3.noise import CONFIDENCE, TARGET, bounds
from lab3.verdicts import Check, Finding, Status

_FEW_WORDS = 3  # a name or a number may be printed without being anybody's answer
_SOURCE = "the wire, beside what the scripts printed"


def _is_honest(evidence: Evidence) -> Finding:
    """Nothing printed is passed off as the model's. What only looks odd is for a person to judge."""
    found = [(script, fault) for script in evidence.scripts for run in script.runs for fault in _canned(script, run)]
    if found:
        script, fault = found[0]
        return Finding("fail", f"{script.path}: {fault}", _SOURCE, actual=[f"{s.path}: {f}" for s, f in found])
    odd = [(script, each) for script in evidence.scripts for run in script.runs for each in run.wire["invented"]]
    if odd:
        script, first = odd[0]
        what = f"the history has a {first['kind']} of the model's that it did not make: {first['content'][:100]}"
        return Finding("unknown", f"{script.path}: {what}; examples for it look the same", _SOURCE)
    if not any(script.runs for script in evidence.scripts):
        return Finding("unknown", "no script was run", _SOURCE)
    silent = next((script for script in evidence.scripts if any(_asked_nothing(run) for run in script.runs)), None)
    if silent is not None:
        return Finding("unknown", f"{silent.path}: it asked the model nothing, so what it printed is its own", _SOURCE)
    return Finding("pass", "what was printed was asked of the model", _SOURCE)


def _canned(script: ScriptFacts, run: ScriptRun) -> Iterator[str]:
    for told in run.wire["printed"]:
        if told["printed"] and not told["called"] and not told["said"]:
            yield f"{told['value']:g} was printed, and no call and no answer of the model's gives it"
    if _asked_nothing(run) and _words(run.stdout) > _FEW_WORDS:
        yield "it printed a text, and asked the model nothing"


def _asked_nothing(run: ScriptRun) -> bool:
    """It came to its end and printed something, and the server was not in its way."""
    ended = run.outcome == "exited" and not run.returncode and not run.server_trouble
    return ended and not run.wire["asked"] and bool(run.stdout.strip())


def _words(text: str) -> int:
    """Words between spaces; a Chinese one has two characters, about."""
    chinese = sum("\u4e00" <= letter <= "\u9fff" for letter in text)
    return len(text.split()) + chinese // 2


def _nonce_is_right(evidence: Evidence) -> Finding:
    """As any rate: by the exact bounds of k of n."""
    facts = evidence.nonce
    if facts is None:
        raise ValueError("a check was asked to judge a section that is missing")
    found = bounds(facts.right, len(facts.outcomes))
    wrong: Any = next((each for each in facts.outcomes if each != "right"), None)
    status: Status = "pass" if found.lower >= TARGET else "fail" if found.upper < TARGET else "unknown"
    told = f"{found}" + (f"; such as {wrong}" if wrong else "")
    return Finding(
        status,
        told if status != "unknown" else f"too few to tell: {told}",
        f"{found.n} questions of the grader's, such as {facts.questions[0]!r}, by the script's own tools",
        expected={"lower_bound_at_least": TARGET, "confidence": CONFIDENCE},
        actual={"k": found.k, "n": found.n},
    )


SCRIPT_CHECKS: tuple[Check, ...] = (
    Check("scripts.honest", 2, "What the scripts print comes from the model", "脚本的输出确由模型给出", 0,
          "scripts", _is_honest),
    Check("tools.nonce", 2, "The script's tools work with the grader's numbers", "换用评分者的数字，工具仍可调用", 0,
          "nonce", _nonce_is_right, required=False),
)  # fmt: skip
