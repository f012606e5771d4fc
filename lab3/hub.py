"""What the processes of one run share: values that are made once, and servers that live as long as somebody keeps them.

The hub lives in the run's first process (pytest-xdist's controller); `lab3.hub_wire` lets others take part. A member
that dies is as one that left: what it was making is made by another, and a server that only it kept is stopped.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from lab3.errors import InfraError, Lab3Error
from lab3.progress import Progress, silent
from lab3.rendering import check_tools_shown
from lab3.serve import ApiServer
from lab3.serve_flags import Engine, gpu_capability
from lab3.vram import Meter, Reading

LEASE_TIMEOUT_S = 1800.0  # another run's whole lab fits into it
METER_INTERVAL_S = {"cpu": 1.0}  # adding up a large process's pages takes tens of milliseconds
_POLL_S = 0.5
# LMDeploy's PyTorch engine checks torch, Triton and the model in a process of its own at each start, for 10 of 28 s on
# an H100. What has served the same model on the same card before has passed; lmdeploy/pytorch/envs.py, 0.18.
_UNCHECKED = {"LMDEPLOY_ENABLE_CHECK_ENV": "0"}


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """A server of LMDeploy's, in the words of `lab3.serve.ApiServer`. Equal specs are one server."""

    model: str
    kv_bits: int = 16
    cache_ratio: float = 0.8
    engine: Engine | Literal["auto"] = "auto"
    tool_call_parser: str | None = "internlm"
    session_len: int | None = None
    max_batch_size: int | None = None

    @property
    def label(self) -> str:
        """A short name for logs and messages."""
        return f"{Path(self.model).name}-kv{self.kv_bits}-{self.cache_ratio:g}-{self.engine}"


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server that somebody in this run started, and what is known of it."""

    spec: ServerSpec
    base_url: str
    model_name: str
    engine: str
    pid: int | None
    shell_command: str
    startup_seconds: float
    log_path: Path | None
    device: str | None  # the UUIDs of the leased GPUs; None on the CPU
    foreign_mib: int = 0  # what others held of the GPU before it started


class Closed(InfraError):
    """The run is over."""

    def __init__(self) -> None:
        super().__init__("the run ended before this was ready")


class MakeServer(Protocol):
    """Builds the server that a spec describes, not started yet."""

    def __call__(
        self, spec: ServerSpec, *, env: Mapping[str, str], log_path: Path | None, progress: Progress
    ) -> ApiServer: ...


def make_server(spec: ServerSpec, *, env: Mapping[str, str], log_path: Path | None, progress: Progress) -> ApiServer:
    """The real LMDeploy. Raises UsageError for a template that hides tools: what a folder shows needs no server."""
    server = ApiServer(**asdict(spec), env=env, log_path=log_path, progress=progress)
    try:
        if spec.tool_call_parser is not None:
            check_tools_shown(server.model)
    except BaseException:
        server.stop()
        raise
    return server


@dataclass
class _Value:
    """`maker` is the member that makes it; then it is settled, with a value or the error of making it."""

    maker: int | None = None
    settled: bool = False
    value: Any = None
    error: Lab3Error | None = None


@dataclass
class _Slot:
    """A server: being started, up, being stopped, or one that failed for good."""

    state: Literal["starting", "up", "stopping", "failed"] = "starting"
    waiting: set[int] = field(default_factory=set)  # members, while it starts
    users: Counter[int] = field(default_factory=Counter)  # members that are using it at this moment
    keepers: set[int] = field(default_factory=set)  # members that want it to stay for their next use
    running: RunningServer | None = None
    server: ApiServer | None = None
    meter: Meter | None = None
    held: ExitStack = field(default_factory=ExitStack)
    error: Lab3Error | None = None


class Hub:
    """Thread-safe; every call is a member's, and blocks as long as it takes. `folder` gets the servers' logs.

    A server stays while a member keeps it. One that nobody uses at the moment makes room for another that waits for
    its GPU. What failed is not tried again: whoever asks later gets the same error.
    """

    def __init__(
        self, *, folder: Path | None = None, make: MakeServer = make_server, progress: Progress = silent
    ) -> None:
        self._folder, self._make, self.progress = folder, make, progress
        self._changed = threading.Condition()
        self._members = 0
        self._values: dict[str, _Value] = {}
        self._slots: dict[ServerSpec, _Slot] = {}
        self._leases: dict[int, ExitStack] = {}
        self._closed = False
        self._stops: list[threading.Thread] = []
        self._log_numbers = itertools.count(1)  # unlike specs may have one label
        self._sound: set[tuple[str, str | None]] = set()  # (model, device) that LMDeploy's PyTorch engine has served

    def join(self) -> int:
        """A new member's number."""
        with self._changed:
            self._members += 1
            return self._members

    def leave(self, member: int) -> None:
        """The member is gone, on purpose or not."""
        with self._changed:
            for value in self._values.values():
                if value.maker == member and not value.settled:
                    value.maker = None
            for slot in self._slots.values():
                slot.users.pop(member, None)
                slot.keepers.discard(member)
            self._changed.notify_all()
        self.give_back(member)
        self._stop_unwanted()

    def close(self) -> None:
        """Everything ends: what is waited for is given up, and all servers are stopped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while any(slot.state in ("starting", "stopping") for slot in self._slots.values()):
                self._changed.wait(_POLL_S)
            for slot in self._slots.values():
                for members in (slot.users, slot.keepers, slot.waiting):
                    members.clear()
            lent = list(self._leases)
        for member in lent:
            self.give_back(member)
        self._stop_unwanted()
        for thread in self._stops:
            thread.join()

    # --- values ------------------------------------------------------------------------------------------------------

    def claim(
        self, member: int, name: str, *, gone: Callable[[], bool] = lambda: False
    ) -> tuple[Literal["make", "made"], Any]:
        """("made", value), waited for if another member makes it, or ("make", None): this member is to make it.

        Raises the error that making it ended with.
        """
        with self._changed:
            while True:
                self._check_open(gone)
                value = self._values.setdefault(name, _Value())
                if value.error is not None:
                    raise value.error
                if value.settled:
                    return "made", value.value
                if value.maker is None:
                    value.maker = member
                    return "make", None
                self._changed.wait(_POLL_S)

    def settle(self, member: int, name: str, value: Any = None, error: Lab3Error | None = None) -> None:
        """What the member made, or why it could not."""
        with self._changed:
            self._values[name] = _Value(maker=member, settled=True, value=value, error=error)
            self._changed.notify_all()

    def give_up(self, member: int, name: str) -> None:
        """The member does not make it after all; another one may."""
        with self._changed:
            self._values.pop(name, None)
            self._changed.notify_all()

    def values(self) -> dict[str, Any]:
        """All that was made."""
        with self._changed:
            return {name: each.value for name, each in self._values.items() if each.settled and each.error is None}

    def errors(self) -> dict[str, Lab3Error]:
        """What could not be made, and why."""
        with self._changed:
            return {name: each.error for name, each in self._values.items() if each.error is not None}

    # --- servers -----------------------------------------------------------------------------------------------------

    def attach(
        self, member: int, spec: ServerSpec, *, keep: bool = True, gone: Callable[[], bool] = lambda: False
    ) -> RunningServer:
        """The running server, started if need be. Pair with `detach`; with `keep` it stays up after that.

        Raises what starting it raised, and ServerError if it died since.
        """
        with self._changed:
            while (slot := self._slots.get(spec)) is not None:
                self._check_open(gone)
                if slot.error is not None:
                    raise slot.error
                if slot.state == "up" and slot.running is not None:
                    self._check_alive(slot)
                    return self._taken(slot, slot.running, member, keep=keep)
                slot.waiting.add(member)
                try:
                    self._changed.wait(_POLL_S)
                finally:
                    slot.waiting.discard(member)
            self._check_open(gone)
            slot = self._slots[spec] = _Slot()
        try:
            running = self._start(slot, spec, unwanted=lambda: self._unwanted(slot, gone))
        except Lab3Error as error:
            with self._changed:
                if isinstance(error, Closed):
                    del self._slots[spec]  # a later member may want it
                else:
                    slot.state, slot.error = "failed", error
                self._changed.notify_all()
            raise
        except BaseException:
            with self._changed:
                del self._slots[spec]
                self._changed.notify_all()
            raise
        with self._changed:
            slot.state, slot.running = "up", running
            self._changed.notify_all()
            return self._taken(slot, running, member, keep=keep)

    def detach(self, member: int, spec: ServerSpec) -> None:
        """The member does not use it at the moment."""
        with self._changed:
            if (slot := self._slots.get(spec)) is not None and slot.users[member] > 0:
                slot.users[member] -= 1
            self._changed.notify_all()
        self._stop_unwanted()

    def lend(self, member: int, *, gone: Callable[[], bool] = lambda: False) -> dict[str, str]:
        """The environment for work on a GPU that nobody else uses until `give_back`; {} where there is none."""

        def progress(message: str, *, done: float | None = None, total: float | None = None) -> None:
            self._check_open(gone)
            self.progress(message, done=done, total=total)

        with ExitStack() as held:
            env = held.enter_context(self._leased("auto", progress))
            with self._changed:
                self._check_open(gone)
                self._leases[member] = held.pop_all()
        return env

    def give_back(self, member: int) -> None:
        """The member's GPU is free again."""
        with self._changed:
            held = self._leases.pop(member, ExitStack())
        held.close()

    def peak(self, spec: ServerSpec) -> Reading:
        """The most memory that the running server held since it was ready. Raises ServerError if it died."""
        with self._changed:
            slot = self._slots.get(spec)
            if slot is None or slot.meter is None:
                raise Closed()
            self._check_alive(slot)
            meter = slot.meter
        meter.sample()
        return meter.peak

    # --- within ------------------------------------------------------------------------------------------------------

    def _check_open(self, gone: Callable[[], bool]) -> None:
        if self._closed or gone():
            raise Closed()

    def _unwanted(self, slot: _Slot, gone: Callable[[], bool]) -> bool:
        with self._changed:
            return self._closed or (gone() and not slot.waiting)

    def _check_alive(self, slot: _Slot) -> None:
        """Raise what killed it; it is not started again, since its death is a finding."""
        if slot.error is not None:
            raise slot.error
        try:
            if slot.server is not None:
                slot.server.check_running()
        except InfraError as error:
            slot.state, slot.error = "failed", error
            self._stops.append(threading.Thread(target=_let_go, args=(slot.held,), name="lab3-hub-stop"))
            self._stops[-1].start()
            raise

    def _taken(self, slot: _Slot, running: RunningServer, member: int, *, keep: bool) -> RunningServer:
        slot.users[member] += 1
        if keep:
            slot.keepers.add(member)
        return running

    def _start(self, slot: _Slot, spec: ServerSpec, *, unwanted: Callable[[], bool]) -> RunningServer:
        def progress(message: str, *, done: float | None = None, total: float | None = None) -> None:
            if unwanted():
                raise Closed()
            self.progress(message, done=done, total=total)

        log_path = self._folder / f"{spec.label}-{next(self._log_numbers)}.log" if self._folder else None
        with ExitStack() as held:
            env = held.enter_context(self._leased(spec.engine, progress))
            place = (spec.model, env.get("CUDA_VISIBLE_DEVICES"))
            unchecked = _UNCHECKED if place in self._sound else {}
            server = self._make(spec, env=env | unchecked, log_path=log_path, progress=progress)
            held.push(server)  # first: one that is unwanted just when it is ready is to be stopped, too
            server.start()
            if server.engine == "pytorch":
                self._sound.add(place)
            slot.meter = held.enter_context(_metered(server, env))
            slot.server = server
            slot.held = held.pop_all()
        return RunningServer(
            spec=spec,
            base_url=server.base_url,
            model_name=server.model_name,
            engine=server.engine,
            pid=server.pid,
            shell_command=server.shell_command,
            startup_seconds=server.startup_seconds or 0.0,
            log_path=server.log_path,
            device=env.get("CUDA_VISIBLE_DEVICES"),
            foreign_mib=server.foreign_mib,
        )

    @contextmanager
    def _leased(self, engine: str, progress: Progress) -> Iterator[dict[str, str]]:
        """The environment for what runs on a GPU that nobody else uses, {} for the CPU."""
        if engine == "cpu" or (engine == "auto" and gpu_capability() is None):
            yield {}
            return
        from lab3.gpu_lease import lease

        def waiting(message: str, *, done: float | None = None, total: float | None = None) -> None:
            self._make_room()
            progress(message, done=done, total=total)

        with lease(1, timeout_s=LEASE_TIMEOUT_S, progress=waiting) as leased:
            yield leased.env

    def _make_room(self) -> None:
        """Stop the servers on a GPU that are kept and not used at this moment."""
        with self._changed:
            for slot in self._slots.values():
                if slot.state == "up" and slot.running and slot.running.device and not slot.users.total():
                    slot.keepers.clear()
        self._stop_unwanted()

    def _stop_unwanted(self) -> None:
        with self._changed:
            unwanted = {
                spec: slot
                for spec, slot in self._slots.items()
                if slot.state == "up" and not slot.keepers and not slot.users.total() and not slot.waiting
            }
            for slot in unwanted.values():
                slot.state = "stopping"
        for spec, slot in unwanted.items():
            try:
                _let_go(slot.held)
            finally:
                with self._changed:
                    del self._slots[spec]
                    self._changed.notify_all()


def _metered(server: ApiServer, env: Mapping[str, str]) -> Meter:
    from lab3.cpu.device import memory_budget

    on_cpu = server.engine == "cpu"
    return Meter(
        server.pid,
        device="cpu" if on_cpu else "cuda",
        interval_s=METER_INTERVAL_S.get(server.engine, 0.2),
        cpu_total_mib=memory_budget() // 2**20 if on_cpu else None,
        environ={**os.environ, **env},
    )


def _let_go(held: ExitStack) -> None:
    """Stop the server. That its memory could not be read at the end is no news."""
    with suppress(InfraError):
        held.close()
