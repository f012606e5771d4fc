"""Spreads a batch over a Ray cluster: an actor for each GPU holds the model server and grades what it is handed.

Submissions lie in a file system that all nodes share; results come back as values, and this process alone writes them.
What was on a node or an actor that was lost is graded elsewhere.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lab3.errors import InfraError, Lab3Error, UsageError
from lab3.grading.batch import WORKERS, Grader, MakeSubject, Plan, Task, code_digests, scripts_at_once
from lab3.grading.files import list_files
from lab3.grading.grade import not_graded
from lab3.grading.ray_cluster import Place, connected, places
from lab3.grading.results import Graded
from lab3.grading.sandbox import check_sandbox
from lab3.hub import Hub
from lab3.hub_wire import Member, member_of
from lab3.progress import Progress, silent
from lab3.threads import wait_patiently

START_S = 120.0  # an actor that did not start until then is done without: another job has its GPU
TOGETHER_S = 30.0  # so long those that are up wait for the others, so that each gets its share
MOST_STRIKES = 2  # actors that a submission may take with it
MOST_LOSSES = 3  # actors that one place may lose with nothing graded in between
_POLL_S = 1.0
_CLOSE_S = 60.0


def ray_grader(
    plan: Plan, out: Path, *, address: str, progress: Progress = silent, make_subject: MakeSubject | None = None
) -> Callable[[Sequence[Task]], Iterator[Graded]]:
    """What `grade_batch` takes as `grade_all`: it grades on the cluster at `address`, and comes to the same results.

    `make_subject` goes to the nodes, so it must be picklable. Raises while it runs: UsageError if a node does not see
    the submissions, InfraError if there is no cluster, or none of its nodes can grade any more.
    """

    def grade_all(tasks: Sequence[Task]) -> Iterator[Graded]:
        with connected(address) as ray, ExitStack() as held:
            batch = _Batch(ray, _as_nodes_see(plan), out.absolute(), tasks, progress, make_subject)
            held.callback(batch.close)
            yield from batch.results()

    return grade_all


# --- on the nodes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Look:
    """What an actor finds on its node."""

    unseen: tuple[str, ...]  # of the folders: those that are not what they are for the driver
    code: Mapping[str, str]
    workers: int


class Seat:
    """An actor: a hub with the model servers of one place. Its calls run in threads."""

    def __init__(self, plan: Plan, logs: Path, make_subject: MakeSubject | None, identities: dict[str, Path]) -> None:
        if os.environ.get("OMP_NUM_THREADS") == "1":  # Ray's doing, for actors that compute by themselves
            del os.environ["OMP_NUM_THREADS"]
        wait_patiently()
        self._hub = Hub(folder=logs)
        self._grader = Grader(plan, logs.parent, make_subject=make_subject, identities=dict(identities))
        self._lock = threading.Lock()
        self._group: int | None = None
        self._member: Member | None = None
        self._held = ExitStack()

    def look(self, folders: Mapping[str, str]) -> Look:
        """Raises InfraError if this node has no sandbox."""
        check_sandbox()
        unseen = tuple(folder for folder, view in folders.items() if view_of(Path(folder)) != view)
        return Look(unseen=unseen, code=code_digests(), workers=scripts_at_once(self._grader.plan))

    def grade(self, group: int, task: Task) -> dict[str, Any]:
        """As `Graded.to_dict`. The driver hands out no submission of another group before the last one's are done."""
        return self._grader.grade_one(task, self._member_for(group)).to_dict()

    def close(self) -> None:
        """The servers end."""
        self._held.close()
        self._hub.close()

    def _member_for(self, group: int) -> Member:
        with self._lock:
            if self._member is None or self._group != group:
                self._held.close()  # the server of the group before makes room
                self._member, self._group = self._held.enter_context(member_of(self._hub)), group
            return self._member


def view_of(folder: Path) -> str:
    """What tells whether two machines see the same folder: its files' names and sizes; their content may be large."""
    try:
        files = [(str(path.relative_to(folder)), path.stat().st_size) for path in sorted(list_files(folder).files)]
    except (OSError, UsageError):
        return ""
    return hashlib.sha256(repr(files).encode()).hexdigest()


# --- on the driver ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Actor:
    place: Place
    handle: Any
    ready: Any  # what `look` will have told
    since: float
    workers: int = 0  # 0: not ready
    group: int | None = None
    running: dict[Any, _Job] = field(default_factory=dict)


@dataclass
class _Job:
    task: Task
    group: int
    strikes: int = 0
    lost_at: Place | None = None


class _Batch:
    """One run: which actors there are, what each has in hand, and what waits."""

    def __init__(
        self, ray: Any, plan: Plan, out: Path, tasks: Sequence[Task], progress: Progress, make: MakeSubject | None
    ) -> None:
        self._ray, self._plan, self._out, self._progress, self._make = ray, plan, out, progress, make
        tasks = [replace(task, folder=task.folder.absolute()) for task in tasks]
        self._views = {str(task.folder): view_of(task.folder) for task in tasks}
        # Which share a server is told by the folders alone: what stands in for a missing model is the nodes' to make.
        sorter = Grader(plan, out, make_subject=make, fallback=lambda: Path("fallback"))
        groups = list(sorter.groups(tasks, Hub()))
        self._identities = sorter.identities
        self._waiting = {n: deque(_Job(task, n) for task in group) for n, group in enumerate(groups)}
        self._suspects: list[_Job] = []  # were on an actor that was lost: each is graded again with none beside it
        self._losses: Counter[Place] = Counter()
        self._why: list[str] = []  # actors were lost
        self._left = len(tasks)
        where = places(ray, gpus=plan.engine != "cpu")
        self._share = math.ceil(len(tasks) / max(len(where), 1))
        self._actors = [self._actor(place) for place in where[: len(tasks)]]
        self._together_until = time.monotonic() + TOGETHER_S

    def results(self) -> Iterator[Graded]:
        """As they come."""
        self._progress(f"grading at {len(self._actors)} places of a Ray cluster")
        while self._left:
            self._hand_out()
            owners = {ref: actor for actor in self._actors for ref in self._awaited(actor)}
            if not owners:
                raise self._nobody_left()
            done, _ = self._ray.wait(list(owners), num_returns=1, timeout=_POLL_S)
            for ref in done:
                if owners[ref] in self._actors:  # it may have been lost a moment ago
                    for graded in self._settled(owners[ref], ref):
                        self._left -= 1
                        yield graded
            self._drop_late()

    def close(self) -> None:
        """Their servers end, and the actors."""
        closing = [actor.handle.close.remote() for actor in self._actors if actor.workers]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        for actor in self._actors:
            self._ray.kill(actor.handle)

    # --- what to do next ---------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        if any(not actor.workers for actor in self._actors) and time.monotonic() < self._together_until:
            return
        for actor in [actor for actor in self._actors if actor.workers]:
            if not actor.running and not self._waiting.get(actor.group if actor.group is not None else -1):
                group = self._next_group(actor)
                if group is None:
                    self._hand_suspect(actor)
                    continue
                actor.group = group
            if any(job.strikes for job in actor.running.values()) or actor.group is None:
                continue
            waiting = self._waiting[actor.group]
            while waiting and len(actor.running) < min(actor.workers, self._share):
                self._hand(actor, waiting.popleft())

    def _next_group(self, actor: _Actor) -> int | None:
        """One that nobody is at; else the one with the most to do for each that is."""
        busy = Counter(each.group for each in self._actors if each is not actor and each.running)
        groups = [group for group, waiting in self._waiting.items() if waiting]
        return max(groups, key=lambda n: (not busy[n], len(self._waiting[n]) / (1 + busy[n])), default=None)

    def _hand_suspect(self, actor: _Actor) -> None:
        elsewhere = any(each.place != actor.place for each in self._actors)
        able = [job for job in self._suspects if job.lost_at != actor.place or not elsewhere]
        if able:
            job = min(able, key=lambda each: each.group != actor.group)
            self._suspects.remove(job)
            actor.group = job.group
            self._hand(actor, job)

    def _hand(self, actor: _Actor, job: _Job) -> None:
        actor.running[actor.handle.grade.remote(job.group, job.task)] = job

    # --- what happened -----------------------------------------------------------------------------------------------

    def _settled(self, actor: _Actor, ref: Any) -> Iterator[Graded]:
        from ray.exceptions import RayError, RayTaskError

        try:
            told = self._ray.get(ref)
        except RayTaskError as error:
            yield from self._failed(actor, ref, error)
        except RayError as error:
            yield from self._lost(actor, str(error))
        else:
            if ref == actor.ready:
                self._arrived(actor, told)
            else:
                del actor.running[ref]
                self._losses[actor.place] = 0
                yield Graded.from_dict(told)

    def _arrived(self, actor: _Actor, look: Look) -> None:
        if look.unseen:
            raise UsageError(
                f"the node {actor.place.label} does not see {look.unseen[0]} as this machine does",
                why="--ray needs the submissions in a file system that all nodes share, at the same path",
                todo="mount it there, or put a copy at the same path of each node",
            )
        if look.code != code_digests():
            raise InfraError(
                f"the node {actor.place.label} has another lab3",
                why="then grades would depend on where a submission was graded",
                todo="install the same version of lab3 at all nodes",
            )
        actor.workers = look.workers

    def _failed(self, actor: _Actor, ref: Any, error: Any) -> Iterator[Graded]:
        """An actor's call raised: looking, which says that its node cannot grade, or grading, which is our mistake."""
        cause = error.cause if isinstance(error.cause, Lab3Error) else None
        why = cause.what if cause else str(error).strip().splitlines()[-1]
        if ref == actor.ready:
            self._losses[actor.place] = MOST_LOSSES
            yield from self._lost(actor, why)
        else:
            job = actor.running.pop(ref)
            yield not_graded(job.task.name, job.task.key, f"lab3 failed: {why}", self._plan.checks)

    def _lost(self, actor: _Actor, why: str) -> Iterator[Graded]:
        """What it had in hand is suspected once, and graded elsewhere; what it is suspected of twice is told."""
        self._actors.remove(actor)
        self._ray.kill(actor.handle)  # one that is merely out of reach must not go on
        place, why = actor.place, " ".join(why.split())
        self._why.append(f"{place.label}: {why[:300]}")
        self._progress(f"{place.label} was lost with {len(actor.running)} submissions: {why[:200]}")
        self._losses[place] += 1
        for job in actor.running.values():
            job.strikes, job.lost_at = job.strikes + 1, place
            if job.strikes < MOST_STRIKES:
                self._suspects.append(job)
            else:
                reason = (
                    f"its actor was lost {job.strikes} times while it was graded, the last time with none beside it"
                )
                yield not_graded(job.task.name, job.task.key, reason, self._plan.checks)
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        if actor.workers and place.node in alive and self._losses[place] < MOST_LOSSES:
            self._actors.append(self._actor(place))

    def _drop_late(self) -> None:
        for actor in [each for each in self._actors if not each.workers and time.monotonic() > each.since + START_S]:
            self._losses[actor.place] = MOST_LOSSES
            for _ in self._lost(actor, f"no actor could be started there in {START_S:g} s"):
                pass  # it had nothing in hand

    def _nobody_left(self) -> InfraError:
        return InfraError(
            f"no node of the Ray cluster can grade any more; {self._left} submissions are left",
            why="; ".join(dict.fromkeys(self._why)) or "the cluster has neither a GPU nor a CPU",
            todo="see to the nodes (`ray status`, `lab3 doctor` at each), then type the same command: it goes on",
        )

    # --- within ------------------------------------------------------------------------------------------------------

    def _actor(self, place: Place) -> _Actor:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        made = self._ray.remote(Seat).options(
            num_gpus=1 if place.gpu else 0,
            num_cpus=0 if place.gpu else 1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=(self._plan.workers or max(WORKERS.values())) + 2,
        )
        handle = made.remote(self._plan, self._out / "logs" / place.label, self._make, self._identities)
        return _Actor(place, handle, handle.look.remote(self._views), time.monotonic())

    def _awaited(self, actor: _Actor) -> list[Any]:
        return list(actor.running) if actor.workers else [actor.ready]


def _as_nodes_see(plan: Plan) -> Plan:
    """Without paths that depend on where this process is."""
    model = str(Path(plan.model).absolute()) if Path(plan.model).is_dir() else plan.model
    return replace(plan, model=model, model_roots=tuple(root.absolute() for root in plan.model_roots))
