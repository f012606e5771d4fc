"""What k of n samples tell of a rate: exact bounds, and a verdict that says when n is too small to tell."""

from __future__ import annotations

from dataclasses import dataclass

from lab3.errors import UsageError
from lab3.evidence import Evidence
from lab3.verdicts import Check, Finding

CONFIDENCE = 0.95
# At the tutorial's temperature a call must come right more often than not: with 20 samples 15 must be right.
TARGET = 0.5


@dataclass(frozen=True)
class Bounds:
    """`k` of `n`, and the one-sided bounds below and above which the true rate lies with `confidence` each."""

    k: int
    n: int
    lower: float
    upper: float
    confidence: float

    def __str__(self) -> str:
        sure = f"(each {self.confidence:.0%} sure)"
        return f"{self.k} of {self.n} right: at least {self.lower:.0%} and at most {self.upper:.0%} {sure}"


def bounds(k: int, n: int, *, confidence: float = CONFIDENCE) -> Bounds:
    """The exact bounds of Clopper and Pearson (Biometrika 26, 1934), computed by SciPy. Raises UsageError for no n."""
    if not 0 <= k <= n or n < 1:
        raise UsageError(f"{k} of {n} is no count of samples", todo="take at least one sample")
    from scipy.stats import binomtest

    lower = binomtest(k, n, alternative="greater").proportion_ci(confidence, method="exact").low
    upper = binomtest(k, n, alternative="less").proportion_ci(confidence, method="exact").high
    return Bounds(k, n, float(lower), float(upper), confidence)


def _often_enough(evidence: Evidence) -> Finding:
    facts = evidence.samples
    if facts is None:
        raise ValueError("a check was asked to judge a section that is missing")
    found = bounds(facts.right, len(facts.outcomes))
    wrong = next((each for each in facts.outcomes if each != "right"), None)
    told = f"{found}" + (f"; such as {wrong}" if wrong else "")
    status = "pass" if found.lower >= TARGET else "fail" if found.upper < TARGET else "unknown"
    return Finding(
        status,  # type: ignore[arg-type]
        told if status != "unknown" else f"too few samples to tell: {told}",
        source=f"{found.n} times {facts.question!r} at temperature {facts.temperature}, top_p {facts.top_p}",
        expected={"lower_bound_at_least": TARGET, "confidence": CONFIDENCE},
        actual={"k": found.k, "n": found.n, "lower": round(found.lower, 4), "upper": round(found.upper, 4)},
    )


NOISE_CHECKS: tuple[Check, ...] = (
    Check(
        "samples.tools",
        2,
        "Sampled, the calls are right more often than not",
        "采样时工具调用多数正确",
        0,
        "samples",
        _often_enough,
        required=False,
    ),
)
