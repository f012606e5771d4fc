"""k of n: the bounds are the exact ones, and a verdict is given only where n is large enough for one."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import pytest

from lab3.checks import judge
from lab3.errors import UsageError
from lab3.evidence import SampleFacts
from lab3.noise import NOISE_CHECKS, TARGET, bounds
from tests.unit.test_checks import GOOD


def sampled(right: int, n: int, wrong: str = "no_call: 16"):
    outcomes = ("right",) * right + (wrong,) * (n - right)
    facts = SampleFacts(question="Compute (3+5)*2", temperature=0.8, top_p=0.8, outcomes=outcomes)
    (verdict,) = judge(replace(GOOD, samples=facts), NOISE_CHECKS)
    return verdict


@pytest.mark.parametrize("n", [1, 5, 20, 100])
def test_at_the_ends_the_bounds_are_the_roots_of_alpha(n: int):
    """(1 - p)**n or p**n of 5%: with none or all right the binomial has a single term."""
    assert bounds(n, n).lower == pytest.approx(0.05 ** (1 / n))
    assert bounds(n, n).upper == 1
    assert bounds(0, n).upper == pytest.approx(1 - 0.05 ** (1 / n))
    assert bounds(0, n).lower == 0


@pytest.mark.parametrize(
    ("k", "n", "lower", "upper"),
    [  # two-sided 90% intervals of Clopper and Pearson, as tables have them
        (1, 10, 0.0051, 0.3942),
        (5, 10, 0.2224, 0.7776),
        (9, 10, 0.6058, 0.9949),
        (10, 20, 0.3020, 0.6980),
    ],
)
def test_known_intervals(k: int, n: int, lower: float, upper: float):
    found = bounds(k, n)
    assert (found.lower, found.upper) == (pytest.approx(lower, abs=1e-4), pytest.approx(upper, abs=1e-4))


@pytest.mark.parametrize("n", [1, 7, 20, 60])
def test_a_bound_is_wrong_in_at_most_one_of_twenty_runs_whatever_the_rate(n: int):
    lowers, uppers = ([getattr(bounds(k, n), side) for k in range(n + 1)] for side in ("lower", "upper"))
    for rate in (0.01, 0.1, 0.3, 0.499, 0.501, 0.7, 0.95, 0.99):
        chance = [comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)]
        assert sum(p for p, lower in zip(chance, lowers, strict=True) if lower > rate) <= 0.05
        assert sum(p for p, upper in zip(chance, uppers, strict=True) if upper < rate) <= 0.05


def test_more_right_is_never_worse():
    lowers = [bounds(k, 20).lower for k in range(21)]
    assert lowers == sorted(lowers)


def test_fifteen_of_twenty_is_where_a_pass_begins_and_five_where_a_fail_ends():
    found = [sampled(right, 20).status for right in range(21)]
    assert found == ["fail"] * 6 + ["unknown"] * 9 + ["pass"] * 6
    assert bounds(15, 20).lower > TARGET > bounds(14, 20).lower


def test_one_sample_proves_nothing():
    assert sampled(1, 1).status == "unknown"
    assert sampled(0, 1).status == "unknown"


def test_k_of_n_the_bound_and_what_went_wrong_are_told():
    verdict = sampled(17, 20)
    assert verdict.reason.startswith(
        "17 of 20 right: at least 66% and at most 96% (each 95% sure); such as no_call: 16"
    )
    assert verdict.actual == {"k": 17, "n": 20, "lower": 0.6563, "upper": 0.9578}
    assert verdict.expected == {"lower_bound_at_least": 0.5, "confidence": 0.95}
    assert "20 times 'Compute (3+5)*2' at temperature 0.8, top_p 0.8" in verdict.source


def test_it_is_ability_and_no_requirement():
    assert not sampled(0, 20).required


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_count_is_refused(k: int, n: int):
    with pytest.raises(UsageError, match="no count of samples"):
        bounds(k, n)
