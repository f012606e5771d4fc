"""A batch on a Ray cluster comes to what it comes to without one, whatever becomes of nodes and actors meanwhile.

The cluster is Ray's own, of several nodes on this machine, with a stand-in for the model; two real servers on two
cards are in tests/gpu/test_ray.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from lab3.errors import InfraError, UsageError
from lab3.grading import ray_batch, ray_cluster
from lab3.grading.batch import Plan, Task, grade_batch
from lab3.grading.grade import chosen
from lab3.grading.ray_batch import ray_grader
from lab3.grading.results import Graded
from lab3.grading.subject import Submission
from lab3.hub_wire import Member
from tests.fake_openai import Answer, FakeOpenAI
from tests.grading.conftest import CHAT, QUICK, Alone, calculates
from tests.grading.test_batch import contents

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("sandbox")]

PLAN = Plan(engine="cpu", checks=chosen(["chat", "scripts"]), workers=2)
STUDENTS = ("alice", "bob", "carol", "dave")
ROOT = Path(__file__).parents[2]
Grade = Callable[..., tuple[Graded, ...]]


@dataclass(frozen=True)
class StandIn:
    """Makes subjects whose server is the fake one at `url`. Notes which node got what; `kills` end their actor."""

    url: str
    notes: Path
    driver: int
    kills: tuple[str, ...] = ()
    models: tuple[tuple[str, str], ...] = ()  # submission → the model that its server has

    def __call__(self, task: Task, member: Member) -> Submission:
        if os.getpid() != self.driver:
            import ray

            note(self.notes, f"{task.name} {ray.get_runtime_context().get_node_id()}")
            if task.name in self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
        model = Path(dict(self.models).get(task.name, "model"))
        return Submission(
            Alone(FakeOpenAI(self.url)), str(task.folder), engine="cpu", fallback=lambda: model, seed_name=task.name,
            limits=QUICK,
        )  # fmt: skip


def note(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


def notes(path: Path) -> list[tuple[str, str]]:
    """(submission, node), in their order."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, node) for name, node in map(str.split, lines)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that grades nothing; `nodes` adds those that do."""
    with ray_cluster.only_here(), pytest.MonkeyPatch.context() as patch:
        from ray.cluster_utils import Cluster

        folder = tempfile.mkdtemp(prefix="lab3-ray-test-", dir="/tmp")
        Path(folder, "ray").mkdir()
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0, "include_dashboard": False, "node_ip_address": "127.0.0.1",
            },
        )  # fmt: skip
        yield made
        made.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(cluster: Any) -> list[Any]:
    """Two nodes of one CPU each."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    cluster.wait_for_nodes()
    return list(cluster.worker_nodes)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = []
    for name in STUDENTS:
        made.append(tmp_path / "in" / name)
        made[-1].mkdir(parents=True)
        (made[-1] / "chat.py").write_text(dedent(CHAT) + f"print({name!r})\n")
    return made


@pytest.fixture
def grade(cluster: Any, nodes: list[Any], fake: FakeOpenAI, folders: list[Path], tmp_path: Path) -> Grade:
    def run(out: Path, *, progress: Any = ray_batch.silent, **made: Any) -> tuple[Graded, ...]:
        make = StandIn(fake.url, tmp_path / "notes", os.getpid(), **made)
        grader = ray_grader(PLAN, out, address=cluster.address, progress=progress, make_subject=make)
        return grade_batch(folders, out, plan=PLAN, grade_all=grader)

    return run


@pytest.fixture
def alone(fake: FakeOpenAI, folders: list[Path], tmp_path: Path) -> dict[str, str]:
    """What the batch comes to without Ray."""
    from lab3.grading.batch import Grader

    out, make = tmp_path / "alone", StandIn(fake.url, tmp_path / "unused", os.getpid())
    grade_batch(folders, out, plan=PLAN, grade_all=Grader(PLAN, out, make_subject=make).grade_all)
    return contents(out)


def test_results_are_the_same_as_without_ray_and_both_nodes_work(grade: Grade, alone: dict[str, str], tmp_path: Path):
    grade(tmp_path / "out")
    assert contents(tmp_path / "out") == alone
    ran = notes(tmp_path / "notes")
    assert sorted(name for name, _ in ran) == sorted(STUDENTS), "each once"
    assert len({node for _, node in ran}) == 2


def test_submissions_of_one_server_are_graded_by_one_actor(grade: Grade, tmp_path: Path):
    models = {"alice": "one", "bob": "two", "carol": "one", "dave": "two"}
    grade(tmp_path / "out", models=tuple(models.items()))
    at = dict(notes(tmp_path / "notes"))
    assert at["alice"] == at["carol"] != at["bob"] == at["dave"]


def test_what_was_on_a_node_that_is_lost_is_graded_elsewhere(
    grade: Grade, alone: dict[str, str], cluster: Any, nodes: list[Any], fake: FakeOpenAI, tmp_path: Path
):
    go, lost = threading.Event(), nodes[0]

    def waits(body: dict[str, Any]) -> Answer:
        go.wait(60)
        return calculates(body)

    def lose() -> None:
        while lost.node_id not in {node for _, node in notes(tmp_path / "notes")}:
            time.sleep(0.1)
        cluster.remove_node(lost, allow_graceful=False)
        go.set()

    fake.always = waits
    losing = threading.Thread(target=lose, daemon=True)
    losing.start()
    told: list[str] = []
    grade(tmp_path / "out", progress=lambda message, **_: told.append(message))
    losing.join(60)
    assert contents(tmp_path / "out") == alone
    ran = notes(tmp_path / "notes")
    began_there = {name for name, node in ran if node == lost.node_id}
    assert began_there
    assert began_there <= {name for name, node in ran if node != lost.node_id}
    assert any("was lost with" in message for message in told)


def test_a_submission_that_kills_two_actors_is_reported_and_the_others_are_graded(
    grade: Grade, alone: dict[str, str], tmp_path: Path
):
    graded = {each.name: each for each in grade(tmp_path / "out", kills=("bob",))}
    assert graded["bob"].status == "infra_error"
    assert "its actor was lost 2 times" in graded["bob"].reasons[0]
    ran = notes(tmp_path / "notes")
    assert len({node for name, node in ran if name == "bob"}) == 2, "not twice on one node"
    assert [name for name, _ in ran].count("bob") == 2
    found = contents(tmp_path / "out")
    for name in set(STUDENTS) - {"bob"}:
        assert found[f"{name}/result.json"] == alone[f"{name}/result.json"]


def test_a_cluster_on_which_nothing_can_be_graded_is_the_machines_trouble(
    grade: Grade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_batch, "MOST_LOSSES", 1)
    monkeypatch.setattr(ray_batch, "MOST_STRIKES", 9)
    with pytest.raises(InfraError, match="can grade any more; 4 submissions are left") as caught:
        grade(tmp_path / "out", kills=STUDENTS)
    assert "it goes on" in caught.value.todo


def test_a_node_that_does_not_see_the_submissions_is_named(
    grade: Grade, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_batch, "view_of", lambda _: "what this machine has at that path")
    with pytest.raises(UsageError, match="does not see") as caught:
        grade(tmp_path / "out")
    assert str(folders[0].parent) in caught.value.what
    assert "file system that all nodes share" in caught.value.why


def test_no_cluster_says_how_to_start_one(folders: list[Path], tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for scheme in ("", "ray://"):
            address = f"{scheme}127.0.0.1:{closed.getsockname()[1]}"
            with pytest.raises(InfraError, match="No Ray cluster could be reached") as caught:
                list(ray_grader(PLAN, tmp_path, address=address)([Task(folders[0], "alice", "k")]))
            assert "ray start --head" in caught.value.todo


def test_the_command_exits_with_trouble_of_the_machine_where_there_is_no_cluster(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from lab3.cli import main

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        code = main(["grade", str(folders[0]), "--out", str(tmp_path / "out"), "--ray", address, "--json"])
    assert code == 3
    assert "No Ray cluster" in json.loads(capsys.readouterr().out)["error"]["what"]


def test_an_address_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="is no address of a Ray cluster"):
        list(ray_grader(PLAN, tmp_path, address="somewhere")([]))


LOCAL = """
import json, os, sys
from pathlib import Path
import psutil
from lab3.grading.batch import grade_batch
from lab3.grading.ray_batch import ray_grader
from tests.grading.test_ray import PLAN, StandIn

url, out, *folders = sys.argv[1:]
listening = set()

def told(graded):
    for process in psutil.Process().children(recursive=True):
        for each in process.net_connections("inet"):
            if each.status == psutil.CONN_LISTEN and "ray" in " ".join(process.cmdline()):
                listening.add(each.laddr.ip.removeprefix("::ffff:"))

grader = ray_grader(PLAN, Path(out), address="local", make_subject=StandIn(url, Path(out, "notes"), os.getpid()))
graded = grade_batch([Path(each) for each in folders], Path(out), plan=PLAN, grade_all=grader, told=told)
left = [process.name() for process in psutil.Process().children(recursive=True)]
print(json.dumps({"statuses": [each.status for each in graded], "listening": sorted(listening), "left": left}))
"""


def test_a_local_cluster_listens_to_nobody_else_says_nothing_and_leaves_nothing(
    fake: FakeOpenAI, folders: list[Path], tmp_path: Path
):
    before = {*Path("/tmp").glob("lab3-ray-*"), *Path.home().glob(".ray")}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL, fake.url, str(tmp_path / "out"), *map(str, folders[:2])],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"statuses": ["graded"] * 2, "listening": ["127.0.0.1"], "left": []}
    assert done.stderr == ""
    assert {*Path("/tmp").glob("lab3-ray-*"), *Path.home().glob(".ray")} == before
