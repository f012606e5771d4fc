"""Two model servers on two cards, through Ray. Needs: two NVIDIA GPUs, bubblewrap, LMDeploy; the embedded model and
six submissions of tests/submissions.py are what it grades. Run it alone: `pytest tests/gpu/test_ray.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lab3 import vram
from lab3.grading.batch import Plan, grade_batch
from lab3.grading.grade import chosen
from lab3.grading.ray_batch import ray_grader
from lab3.grading.results import Graded
from tests.submissions import write_corpus

pytestmark = pytest.mark.gpu

# TurboMind's int4 KV cache has no kernel for the embedded model's heads of 64 channels.
PLAN = Plan(engine="pytorch", checks=chosen(["chat", "tools", "scripts"]), workers=3)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    corpus = write_corpus(tmp_path / "in", 6)
    return [tmp_path / "in" / name for name in corpus]


def test_two_cards_grade_with_a_server_each_and_come_to_the_same_as_one_without_ray(
    folders: list[Path], tmp_path: Path
):
    if len(vram.devices()) < 2:
        pytest.skip("this machine has one GPU")
    out = tmp_path / "two"
    on_two = grade_batch(folders, out, plan=PLAN, grade_all=ray_grader(PLAN, out, address="local"))
    logs = sorted((out / "logs").glob("*/*.log"))
    assert len(logs) == 2, "one server at each card"
    assert {log.parent.name.rpartition("-")[2] for log in logs} == {"gpu0", "gpu1"}
    on_one = grade_batch(folders, tmp_path / "one", plan=PLAN)
    assert verdicts(on_two) == verdicts(on_one)


def verdicts(graded: tuple[Graded, ...]) -> dict[str, list[tuple[str, str]]]:
    """Words may differ, since a GPU rounds by what else is in the batch."""
    return {each.name: [(each.status, ""), *((v["id"], v["status"]) for v in each.verdicts)] for each in graded}
