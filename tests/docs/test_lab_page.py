"""No figure on the page about the lab, in either language, but one that lab3's own functions give here."""

from __future__ import annotations

import operator
import re

import pytest

from lab3.models import ModelConfig, kv_bytes_per_token, read_config
from lab3.quantize import GROUP_SIZES
from lab3.serve_flags import QUANT_POLICY, TURBOMIND_AWQ_GROUP_SIZE
from lab3.vram_constants import SOURCES
from tests.docs.blocks import ROOT
from tools.docs import lab_numbers as lab

PAGES = ["docs/lab.md", "docs/zh/lab.md"]
CARD = lab.CARDS[0]
BF16, PACKED, LOWER, INT4 = (lab.memory(CARD, step) for step in lab.STEPS)
BEFORE, AFTER = round(lab.before_mib()), round(lab.after_mib())
TAKEN_BEFORE, TAKEN_AFTER = lab.constants(CARD.lmdeploy)


def computed() -> dict[str, str]:
    """Each figure of the prose: what it is, by its text."""
    free = {"before": CARD.total_mib - TAKEN_BEFORE - BEFORE, "after": CARD.total_mib - TAKEN_BEFORE - AFTER}
    packed = lab.bits_of_a_weight()
    figures = {
        f"{CARD.total_mib}": "the card",
        f"{TAKEN_BEFORE:.0f}": "o",
        f"{TAKEN_AFTER:.0f}": "e",
        f"{BEFORE}": "weights, 16 bits",
        f"{AFTER}": "weights, W4A16",
        f"{free['before']:.0f}": "free after the weights, before",
        f"{free['after']:.0f}": "free after the weights, after",
        f"{0.8 * free['before']:.0f}": "pool, before",
        f"{0.4 * free['after']:.0f}": "pool, after",
        f"{BF16[0]:.0f}": "used, before",
        f"{INT4[0]:.0f}": "used, after",
        f"{lab.before_mib() - lab.after_mib():.0f}": "what W4A16 saves of the weights",
        f"{BF16[0] - PACKED[0]:.0f}": "what W4A16 alone saves of the figure",
        f"{BF16[0] - INT4[0]:.0f}": "what the lab saves of the figure",
        f"{kv_bytes_per_token(lab.LAB, 16) / kv_bytes_per_token(lab.LAB, 4):.1f}": "tokens of int4 over 16 bits",
        f"{packed:.2f}": "bits of a weight",
        f"{lab.bits_of_a_weight(64):.2f}": "the same, groups of 64",
        f"{lab.bits_of_a_weight(32):g}": "the same, groups of 32",
        f"{1 - packed / 16:.0%}": "what the linear layers lose",
        f"{1 - lab.after_mib() / lab.before_mib():.0%}": "what the model loses",
        f"{16 + 4}/{lab.GROUP}": "bits of scale and zero, of each weight",
        f"{lab.LAB.layers}": "layers",
        **{f"{size}": "a group size" for size in GROUP_SIZES},
        CARD.lmdeploy: "the LMDeploy that was read on it",
        **{f"{ratio:g}": "a cache ratio" for _, ratio, _ in lab.STEPS},
    }
    return {text.removesuffix("%"): what for text, what in figures.items()}


def prose(page: str) -> str:
    """Without code, generated tables, links, and names that have a number in them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"<!-- begin .*?<!-- end .*? -->", "", text, flags=re.S)
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"^    \S.*$", "", text, flags=re.M)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)
    return re.sub(r"W4A16|InternLM2\.5-1\.8B|InternLM2\.5|A100|W4|A16|\bint[48]\b", "", text)


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_of_the_prose_is_computed_and_every_computed_one_is_there(page: str):
    found = set(re.findall(r"\d[\d,.]*(?:/\d+)?(?<![.,])", prose(page)))
    # Of one digit, and the bits and small numbers of the explanation: a group's 16 steps, 15 steps between them.
    small = {each for each in found if re.fullmatch(r"\d", each)} | {"15", "16"}
    told = set(computed()) | {"24", "80", "9", "0.4", "0.8"}  # GB of the cards, the misconception's GB, LMDeploy 0.4
    assert found - small <= told
    assert set(computed()) <= found


@pytest.mark.parametrize("page", PAGES)
def test_the_sums_by_hand_come_out(page: str):
    """Each line of the form `a − b − c = d`; its parts are rounded to whole MiB."""
    sums = re.findall(r"([\d.]+(?: [−+×] [\d.]+)+) = ([\d.]+)", prose(page))
    assert len(sums) == 6
    for left, right in sums:
        first, *rest = re.split(r" (?=[−+×])", left)
        value = float(first)
        for sign, number in (part.split(" ") for part in rest):
            value = {"−": operator.sub, "+": operator.add, "×": operator.mul}[sign](value, float(number))
        assert value == pytest.approx(float(right), abs=1), left


def test_the_worked_example_is_what_was_read_on_the_card():
    readings = next(source for source in SOURCES if source.version == (0, 6)).readings
    assert [round(each.used_mib) for each in readings] == [round(BF16[0]), round(INT4[0])]
    assert {each.total_mib for each in readings} == {CARD.total_mib}


def test_what_the_page_says_of_the_steps():
    """W4A16 alone: four fifths of what it saves go into the pool. The ratio makes the difference; int4 makes none."""
    saved = lab.before_mib() - lab.after_mib()
    assert (PACKED[1] - BF16[1]) / saved == pytest.approx(4 / 5)
    assert PACKED[0] - LOWER[0] > 10 * (BF16[0] - PACKED[0])
    assert LOWER[:2] == INT4[:2]
    for card in lab.CARDS:
        fewer_bits, more_bits = (lab.memory(card, lab.STEPS[number])[2] for number in (3, 2))
        assert f"{fewer_bits / more_bits:.1f}" == "3.8"


def test_what_the_page_says_of_the_formats():
    assert TURBOMIND_AWQ_GROUP_SIZE == lab.GROUP == 128
    assert QUANT_POLICY == {16: 0, 8: 8, 4: 4}


def test_the_configuration_of_the_example_is_the_models(tmp_path):
    import json

    (tmp_path / "config.json").write_text(json.dumps(lab.CONFIG_JSON), encoding="utf-8")
    found = read_config(tmp_path)
    assert isinstance(found, ModelConfig)
    assert {**vars(found), "remote_code": True} == vars(lab.LAB)
    assert BEFORE == 3603
    assert AFTER == 1471


# --- the misconceptions, as `lab3 grade-reports` reads them ----------------------------------------------------------

ROW = re.compile(r"^\| (?P<wrong>[^|]+) \| (?P<right>[^|]+) \|$", re.M)


@pytest.mark.parametrize("page", PAGES)
def test_each_fact_that_reports_are_judged_by_has_its_misconception_on_the_page(page: str):
    from lab3.reports.understanding import _FACTS
    from lab3.reports.understanding_said import statements_in

    text = (ROOT / page).read_text(encoding="utf-8")
    start = text.index("## Common misconceptions") if page == "docs/lab.md" else text.index("## 常见误解")
    rows = [match["wrong"] for match in ROW.finditer(text, start)][2:]
    wrong = {each.fact for row in rows for each in statements_in(row) if each.right is False}
    assert set(_FACTS) | {"difference"} == wrong
